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
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import xxhash

_STAGED, _LEAST_STAGED = 2 << 20, 1 << 19
"""Bytes written at a time: the fewest are enough for the disk, but a piece takes changing threads.
"""
_AHEAD = 3
"""How often as many may wait for the disk, at most: it is used in between, too."""
_SHORT = 1 << 12
"""Bytes up to which a copy is over before another thread could have the interpreter."""


def staged_bytes(files: int) -> int:
    """Return the bytes that are staged for each of so many files that are written in turn."""
    return _STAGED if files == 1 else _LEAST_STAGED


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
    """Pieces of memory that files are written from, in a thread: fresh ones cost time.

    Args:
        size: Bytes of a piece, a multiple of a page of memory.
    """

    def __init__(self, size: int = _STAGED) -> None:
        self._size = size
        self._free: deque[mmap.mmap] = deque()
        self._waiting: deque[Future[None]] = deque()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="polar-etl-write")

    def take(self) -> mmap.mmap:
        """Return one; it is aligned to pages, as the disk demands."""
        try:
            return self._free.pop()
        except IndexError:
            return mmap.mmap(-1, self._size)

    def give(self, memory: mmap.mmap) -> None:
        """Take one back."""
        self._free.append(memory)

    def write(self, write: Callable[[memoryview], None], memory: mmap.mmap) -> Future[None]:
        """Let a piece be written behind the others, and take it back then.

        Args:
            write: Writes it.
            memory: The piece.
        """
        written = self._thread.submit(self._written, write, memory)
        self._waiting.append(written)
        while len(self._waiting) > _AHEAD:
            wait([self._waiting.popleft()])
        return written

    def _written(self, write: Callable[[memoryview], None], memory: mmap.mmap) -> None:
        try:
            write(memoryview(memory))
        finally:
            self.give(memory)

    def close(self) -> None:
        """End the thread, once all is written."""
        self._thread.shutdown()


class DirectFile:
    """An existing, empty file that is appended to.

    Args:
        path: Where it is.
        staging: The memory that it is written from.
    """

    def __init__(self, path: Path, staging: Staging) -> None:
        self._descriptor, self._direct = _opened(path)
        self._staging = staging
        self._staged = staging.take()
        self._filled = 0
        self._waiting: deque[Future[None]] = deque()
        """What was staged before and is being written."""
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
            elif size > min(_SHORT, len(self._staged) - self._filled):
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
            if self._filled == len(self._staged):
                self._flush()

    def _flush(self) -> None:
        """Let what is staged be written, and stage what comes next elsewhere."""
        self._waiting.append(self._staging.write(self._write, self._staged))
        self._staged, self._filled = self._staging.take(), 0
        while self._waiting and self._waiting[0].done():
            self._waiting.popleft().result()

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
        while self._waiting:
            self._waiting.popleft().result()
        if self._direct:
            self._go_through_cache()  # the end of a file is not aligned
        self._write(memoryview(self._staged)[: self._filled])
        os.fsync(self._descriptor)
        return self._hash.hexdigest()

    def close(self) -> None:
        """Let go of the file; what is not synced may be lost."""
        wait(self._waiting)
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
