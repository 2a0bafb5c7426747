"""One run at a time per output: an advisory lock that dies with its process."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Self

from polar_etl.durable import is_regular
from polar_etl.errors import OutputLockedError, StateMismatchError, describe

_REFUSAL = (
    "The output is being written by another run: {}. "
    "Wait until it ends, or write to another directory."
)


def _lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def directory_lock(path: Path) -> Iterator[None]:
    """Hold `flock` on the directory `path` itself, against runs that keep their state elsewhere.

    Raises:
        OutputLockedError: Another process holds it.
    """
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(path, flags)
    try:
        if not _lock(descriptor):
            found = _kernel_knows(descriptor)
            raise OutputLockedError(_REFUSAL.format(f"{found}with another --state-dir"))
        yield
    finally:
        os.close(descriptor)


def _kernel_knows(descriptor: int) -> str:
    """Return who holds `flock` on an open file, "" if a process that can't be seen from here."""
    try:
        found = os.fstat(descriptor)
        place = f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}:{found.st_ino}"
        locks = map(str.split, Path("/proc/locks").read_text().splitlines())
        pid = next(lock[4] for lock in locks if lock[1] == "FLOCK" and lock[5] == place)
        ticks = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    except (OSError, ValueError, IndexError, StopIteration):
        return ""
    booted = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
    since = datetime.fromtimestamp(booted + ticks / os.sysconf("SC_CLK_TCK"), UTC)
    return f"pid {pid} on {socket.gethostname()}, since {since.isoformat(timespec='seconds')}, "


class OutputLock:
    """Holds `flock` on a file for as long as the context lasts.

    The kernel frees the lock when the process ends, however it ends; the file's text only tells
    who holds it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor = -1

    def __enter__(self) -> Self:
        while not self._taken():
            pass
        return self

    def _taken(self) -> bool:
        """Take the lock and say so, or return False: its file was removed by a run that ended.

        Raises:
            OutputLockedError: Another process holds it.
            StateMismatchError: Something else than a file has its name.
        """
        if os.path.lexists(self._path) and not is_regular(self._path):
            raise StateMismatchError(
                f"{describe(str(self._path))} is not a regular file: remove it, or use another "
                "--state-dir."
            )
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        self._descriptor = os.open(self._path, flags, 0o600)
        try:
            if not _lock(self._descriptor):
                raise OutputLockedError(_REFUSAL.format(self._holder()))
            if not self._is_current():
                os.close(self._descriptor)
                return False
            mine = {
                "pid": os.getpid(),
                "host": socket.gethostname(),
                "since": datetime.now(UTC).isoformat(timespec="seconds"),
            }
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, json.dumps(mine).encode(), 0)
        except BaseException:
            os.close(self._descriptor)
            raise
        return True

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        os.close(self._descriptor)

    def _is_current(self) -> bool:
        """Tell whether the locked file is the one that others will find."""
        try:
            return os.path.samestat(os.fstat(self._descriptor), self._path.lstat())
        except FileNotFoundError:
            return False

    def _holder(self) -> str:
        try:
            found = json.loads(os.pread(self._descriptor, 4096, 0))
            return describe(f"pid {found['pid']} on {found['host']}, since {found['since']}")[1:-1]
        except (ValueError, KeyError, TypeError):
            return "it has not said who it is yet"
