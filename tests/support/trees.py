"""What lies in directories: contents by relative path, and the manifest's rows."""

from __future__ import annotations

import os
import shutil
import sqlite3
import tempfile
from contextlib import closing
from pathlib import Path

Tree = dict[str, bytes | str]

COLUMNS = (
    "pass",
    "batch",
    "file",
    "first_row",
    "rows",
    "seconds",
    "bytes_in",
    "bytes_out",
    "part",
    "digest",
    "rss",
    "peak",
)


def tree(folder: Path) -> Tree:
    """Return contents (or link target, or "directory") of everything below `folder`."""
    found: Tree = {}
    for here, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(here, name)
            key = str(path.relative_to(folder))
            if path.is_symlink():
                found[key] = f"link to {path.readlink()}"
            elif path.is_file():
                found[key] = path.read_bytes()
            else:
                found[key] = "directory" if path.is_dir() else "special file"
    return found


def names(folder: Path) -> set[str]:
    """Return the relative paths of everything below `folder`."""
    return set(tree(folder))


def parts(out: Path) -> dict[str, bytes]:
    """Return the output directory's files; it must hold parts and nothing else."""
    found = tree(out)
    odd = [name for name in found if not name.startswith("part-") or not name.endswith(".parquet")]
    assert not odd, f"{out} holds more than parts: {odd}"
    return {name: content for name, content in found.items() if isinstance(content, bytes)}


def state_of(out: Path) -> Path:
    """Return the state directory that belongs to `out`."""
    return out.with_name(f"{out.name}.polar-etl")


def scaler_bytes(out: Path) -> bytes:
    """Return the scaler of a run."""
    return (state_of(out) / "scaler.json").read_bytes()


def result(out: Path) -> tuple[dict[str, bytes], bytes]:
    """Return all that two runs on one input must have in common: the parts and the scaler."""
    return parts(out), scaler_bytes(out)


def leftovers(out: Path) -> list[str]:
    """Return what a run has left in its directories that is neither part nor state."""
    kept = {"manifest.db", "scaler.json", "lock", "tmp"}
    kept |= {f"manifest.db-{suffix}" for suffix in ("wal", "shm", "journal")}
    state = state_of(out)
    odd = [name for name in names(state) if name not in kept] if state.exists() else []
    odd += [
        name
        for name in (names(out) if out.exists() else ())
        if not name.startswith("part-") or not name.endswith(".parquet")
    ]
    return odd


def batch_rows(out: Path, pass_name: str | None = None) -> list[tuple[object, ...]]:
    """Return the manifest's rows of finished batches, in order; none where there is no manifest."""
    path = state_of(out) / "manifest.db"
    where = "" if pass_name is None else f"WHERE pass = '{pass_name}'"
    try:
        with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as connection:
            return connection.execute(
                f"SELECT {', '.join(COLUMNS)} FROM batches {where} ORDER BY pass, batch"
            ).fetchall()
    except sqlite3.OperationalError:
        return []


def rows_as_found(out: Path) -> list[tuple[object, ...]]:
    """Return the manifest's rows, read from a copy so that the reader changes nothing."""
    state = state_of(out)
    if not state.exists():
        return []
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(state, state_of(Path(folder, out.name)))
        return batch_rows(Path(folder, out.name))
