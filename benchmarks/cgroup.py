"""A control group with a memory limit, in which the kernel kills what needs more.

Both versions of Linux's control groups will do; making one takes root. The page cache of what runs
in the group counts too, but the kernel takes it back before it kills. In version 2 the group has
a limit only where the root group hands its memory controller down, which systemd has it do.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

_MOUNT = Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True)
class Group:
    """A control group and the names that its version gives to its files."""

    folder: Path
    peak_file: str
    kills_file: str

    @property
    def procs(self) -> Path:
        """The file that a process writes its number to, to join."""
        return self.folder / "cgroup.procs"

    def peak(self) -> int | None:
        """Return the most bytes in use so far, page cache included; None on older kernels."""
        with suppress(OSError):
            return int((self.folder / self.peak_file).read_text())
        return None

    def kills(self) -> int:
        """Return how many processes the kernel has killed."""
        lines = (self.folder / self.kills_file).read_text().splitlines()
        return next((int(n) for name, n in map(str.split, lines) if name == "oom_kill"), 0)


@contextmanager
def limited(limit: int) -> Iterator[Group | None]:
    """Make a group that may use `limit` bytes and no swap; None where that can't be done."""
    old = (_MOUNT / "memory" / "memory.limit_in_bytes").exists()
    name = f"polar-etl-benchmark-{os.getpid()}"
    if old:
        group = Group(_MOUNT / "memory" / name, "memory.max_usage_in_bytes", "memory.oom_control")
        settings = {"memory.limit_in_bytes": limit, "memory.swappiness": 0}
    else:
        group = Group(_MOUNT / name, "memory.peak", "memory.events")
        settings = {"memory.max": limit, "memory.swap.max": 0}
    try:
        group.folder.mkdir()
    except OSError:
        yield None
        return
    try:
        yield group if _set(group.folder, settings) else None
    finally:
        _remove(group.folder)


def _set(folder: Path, settings: dict[str, int]) -> bool:
    """Tell whether the settings could be made; a kernel without swap has no file for it."""
    limit, *_ = settings
    try:
        for file, value in settings.items():
            if file == limit or (folder / file).exists():
                (folder / file).write_text(str(value))
    except OSError:
        return False
    return True


def _remove(folder: Path) -> None:
    """Remove a group; one that was just left is busy for a moment."""
    for _ in range(50):
        with suppress(OSError):
            folder.rmdir()
            return
        time.sleep(0.1)
