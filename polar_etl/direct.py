"""A file written once, from start to end, past the page cache where the file system lets us.

What is synced to disk at once gains nothing from the cache. Copying it there takes as much
processor time as compressing it does (measured), evicts what others keep there, and counts as
memory of a container. The disk is waited for in a thread, while the next bytes are put together.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
from collections import deque
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import xxhash

_STAGED = 2 << 20
"""Bytes written at a time: enough for the speed of the disk."""
_AHEAD = 3
"""How often as many may wait for the disk, at most: it is used in between, too."""
_SHORT = 1 << 12
"""Bytes up to which a copy is over before another thread could have the interpreter."""


class Readable(Protocol):
    """Bytes that are not in memory yet."""

    def __len__(self) -> int:
        """Return how many there are."""

    def read_into(self, room: npt.NDArray[np.uint8]) -> None:
        """Fill `room` with the next of them."""


class _Memory:
    """Bytes copied by NumPy, which lets other threads have the interpreter meanwhile."""

    def __init__(self, content: bytes | memoryview) -> None:
        self._rest = np.frombuffer(content, np.uint8)

    def __len__(self) -> int:
        return len(self._rest)

    def read_into(self, room: npt.NDArray[np.uint8]) -> None:
        room[:] = self._rest[: len(room)]
        self._rest = self._rest[len(room) :]


class Staging:
    """Pieces of memory from which files are written, one after the other: fresh ones cost time."""

    def __init__(self) -> None:
        self._free: deque[mmap.mmap] = deque()

    def take(self) -> mmap.mmap:
        """Return one; it is aligned to pages, as the disk demands."""
        try:
            return self._free.pop()
        except IndexError:
            return mmap.mmap(-1, _STAGED)

    def give(self, memory: mmap.mmap) -> None:
        """Take one back."""
        self._free.append(memory)


class DirectFile:
    """An existing, empty file that is appended to.

    Args:
        path: Where it is.
        staging: Where memory is taken from, and given back to.
    """

    def __init__(self, path: Path, staging: Staging) -> None:
        self._descriptor, self._direct = _opened(path)
        self._staging = staging
        self._staged = staging.take()
        self._filled = 0
        self._waiting: deque[tuple[Future[None], mmap.mmap]] = deque()
        """What was staged before and is being written."""
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="polar-etl-write")
        self._hash = xxhash.xxh3_128()
        self.size = 0
        """Bytes appended so far."""

    def append(self, pieces: Iterable[bytes | memoryview | Readable]) -> None:
        """Append some bytes."""
        for piece in pieces:
            size = len(piece)
            self.size += size
            if not isinstance(piece, (bytes, memoryview)):
                self._append_long(piece, size)
            elif size > min(_SHORT, _STAGED - self._filled):
                self._append_long(_Memory(piece), size)
            else:
                self._staged[self._filled : self._filled + size] = piece
                self._filled += size

    def _append_long(self, piece: Readable, left: int) -> None:
        while left:
            room = np.frombuffer(self._staged, np.uint8)[self._filled : self._filled + left]
            piece.read_into(room)
            self._filled += len(room)
            left -= len(room)
            if self._filled == _STAGED:
                self._flush()

    def _flush(self) -> None:
        """Let what is staged be written, and stage what comes next elsewhere."""
        written = self._thread.submit(self._write, memoryview(self._staged))
        self._waiting.append((written, self._staged))
        self._wait(_AHEAD)
        self._staged, self._filled = self._staging.take(), 0

    def _wait(self, most: int) -> None:
        """Wait until no more is being written than `most` pieces; raise what went wrong."""
        while len(self._waiting) > most or (self._waiting and self._waiting[0][0].done()):
            written, memory = self._waiting.popleft()
            written.result()
            self._staging.give(memory)

    def _write(self, content: memoryview) -> None:
        self._hash.update(content)
        while content:
            try:
                content = content[os.write(self._descriptor, content) :]
            except OSError as error:
                if error.errno != errno.EINVAL or not self._direct:
                    raise
                self._go_through_cache()  # the file system wants another alignment

    def _go_through_cache(self) -> None:
        flags = fcntl.fcntl(self._descriptor, fcntl.F_GETFL)
        fcntl.fcntl(self._descriptor, fcntl.F_SETFL, flags & ~os.O_DIRECT)
        self._direct = False

    def sync(self) -> str:
        """Bring everything to disk, and return its XXH3-128 as hexadecimal text.

        A failure is final: never called again.
        """
        self._wait(0)
        if self._direct:
            self._go_through_cache()  # the end of a file is not aligned
        self._write(memoryview(self._staged)[: self._filled])
        os.fsync(self._descriptor)
        return self._hash.hexdigest()

    def close(self) -> None:
        """Let go of the file; what is not synced may be lost."""
        self._thread.shutdown()
        if self._descriptor >= 0:
            descriptor, self._descriptor = self._descriptor, -1
            self._staging.give(self._staged)
            os.close(descriptor)


def _opened(path: Path) -> tuple[int, bool]:
    """Return a descriptor for writing, and whether it goes past the page cache."""
    flags = os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        return os.open(path, flags | os.O_DIRECT), True
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
    return os.open(path, flags), False
