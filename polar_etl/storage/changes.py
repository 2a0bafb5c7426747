"""What differs between an earlier run and this one, said so that a person can mend it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from polar_etl.errors import StateMismatchError, describe, describe_some
from polar_etl.storage.manifest import Manifest


def refuse_changes(manifest: Manifest, facts: dict[str, object]) -> None:
    """Raise an error that says what differs between the earlier run and this one.

    Raises:
        StateMismatchError: Input, settings, versions or what shapes the parts differ.
    """
    for kind in ("input", "settings", "versions", "plan"):
        if found := list(_differences(manifest.fact(kind), facts[kind])):
            more = f" and {len(found) - 5} more differences" if len(found) > 5 else ""
            raise StateMismatchError(
                f"The output was begun with other {kind}: {'; '.join(found[:5])}{more}. Repeat the "
                "earlier command, write to another directory, or start anew with --overwrite."
            )


def _identities(items: list[Any]) -> list[str]:
    """Return what tells the items of a list: the path of a file, or the item itself."""
    return [str(item.get("path")) if isinstance(item, dict) else str(item) for item in items]


def _only_in_one(before: list[str], now: list[str]) -> tuple[list[str], list[str]]:
    """Return what is in the first list alone, and what is in the second alone."""
    both = set(before) & set(now)
    return [name for name in before if name not in both], [x for x in now if x not in both]


def _differences(before: object, now: object, name: str = "") -> Iterator[str]:
    """Yield what differs; what only the earlier run has recorded is not asked for."""
    if isinstance(before, dict) and isinstance(now, dict):
        label = f"{name} {now['path']}" if "path" in now else name
        for key in now:
            old = before.get(key, "not recorded")
            if old != now[key]:
                yield from _differences(old, now[key], f"{label} {key}".strip())
    elif isinstance(before, list) and isinstance(now, list):
        names, others = _identities(before), _identities(now)
        gone, new = _only_in_one(names, others)
        if gone or new:
            lost = [f"without {describe_some(gone)}"] if gone else []
            more = [f"with {describe_some(new)}"] if new else []
            yield f"{name} are now {', '.join(lost + more)}"
        elif len(names) != len(others):
            yield f"{len(names)} {name}, now {len(others)}"
        elif names != others:
            yield f"{name} are now in another order"
        else:
            for old, item in zip(before, now, strict=True):
                yield from _differences(old, item, name)
    elif before != now:
        yield f"{describe(name)[1:-1]} was {describe(str(before))}, now {describe(str(now))}"


def file_difference(path: Path, expected: bytes) -> str | None:
    """Return how a file differs from what it is to hold, None if it does not."""
    size = path.stat().st_size
    if size != len(expected):
        return f"{size} bytes instead of {len(expected)}"
    found = path.read_bytes()
    if found == expected:
        return None
    lines = zip(found.splitlines(), expected.splitlines(), strict=False)
    number = next((i for i, (a, b) in enumerate(lines, 1) if a != b), 1)
    return f"line {number} differs"
