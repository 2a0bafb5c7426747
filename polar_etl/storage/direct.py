"""A file written once, from start to end, past the page cache where the file system lets us.

What is synced to disk at once gains nothing from the cache. Copying it there takes as much
processor time as compressing it does (measured), evicts what others keep there, and counts as
memory of a container. The disk is waited for in threads, while the next bytes are put together.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from functools import partial
from pathlib import Path
from queue import LifoQueue

import numpy as np
import xxhash

from polar_etl.encoding.contents import Readable, Wait

_STAGED, _LEAST_STAGED = 2 << 20, 1 << 19
"""Bytes written at a time: the fewest are enough for the disk, but a piece takes changing threads.
"""
_AHEAD = 7
"""How often as many may wait for the disk, which is not always as fast as on average: with half of
them a run takes 1.02 of the time (measured)."""
_WRITING = 2
"""Pieces on their way at a time: one is hashed while the other is written."""


def staged_bytes(files: int) -> int:
    """Return the bytes that are staged at most while so many files are written in turn."""
    return (files + _AHEAD) * _piece_bytes(files)


def _piece_bytes(files: int) -> int:
    return _STAGED if files == 1 else _LEAST_STAGED


class Staging:
    """Pieces of memory that files are written from, in threads: fresh ones cost time.

    Processes that are forked later see the same memory.

    Args:
        files: How many are written in turn. Each has one of the pieces, and some more wait for the
            disk; whoever wants yet another one waits, too.
    """

    def __init__(self, files: int = 1) -> None:
        size = _piece_bytes(files)
        self.memory = mmap.mmap(-1, staged_bytes(files))
        """All of them; what was never taken takes no memory."""
        whole = memoryview(self.memory)
        self._free: LifoQueue[memoryview] = LifoQueue()
        for place in reversed(range(0, len(whole), size)):
            self._free.put(whole[place : place + size])
        self._threads = ThreadPoolExecutor(_WRITING, thread_name_prefix="polar-etl-write")

    def take(self) -> memoryview:
        """Return one, as soon as there is one; it is aligned to pages, as the disk demands."""
        return self._free.get()

    def give(self, memory: memoryview) -> None:
        """Take one back."""
        self._free.put(memory)

    def write(self, write: Callable[[memoryview], None], memory: memoryview) -> Future[None]:
        """Let a piece be written, and take it back then.

        Args:
            write: Writes it. It begins after those before it, but need not end after them.
            memory: The piece.
        """
        return self._threads.submit(self._written, write, memory)

    def _written(self, write: Callable[[memoryview], None], memory: memoryview) -> None:
        try:
            write(memory)
        finally:
            self.give(memory)

    def close(self) -> None:
        """End the threads, once all is written."""
        self._threads.shutdown()


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
        self._fillings: list[Wait] = []
        """What must be waited for before that is there which fills it."""
        self._waiting: deque[Future[None]] = deque()
        """What was staged before and is being written."""
        self._hash, self._hashed = xxhash.xxh3_128(), 0
        self._turn = threading.Condition()
        """To hash, for whoever has the next piece."""
        self.size = 0
        """Bytes appended so far."""

    def append(self, content: Readable) -> None:
        """Append some bytes."""
        left = len(content)
        while left:
            room = np.frombuffer(self._staged, np.uint8)[self._filled : self._filled + left]
            if filling := content.read_into(room):
                self._fillings.append(filling)
            self._filled += len(room)
            self.size += len(room)
            left -= len(room)
            if self._filled == len(self._staged):
                self._flush()

    def _flush(self) -> None:
        """Let what is staged be written, and stage what comes next elsewhere."""
        write = partial(self._write, self.size - self._filled, self._fillings)
        self._waiting.append(self._staging.write(write, self._staged))
        self._staged, self._filled, self._fillings = self._staging.take(), 0, []
        while self._waiting and self._waiting[0].done():
            self._waiting.popleft().result()

    def _write(self, place: int, fillings: Sequence[Wait], content: memoryview) -> None:
        """Write what is staged to its place in the file, once it is there."""
        try:
            for filling in fillings:
                filling()
        finally:  # whatever fails, others wait for their turn
            self._update_hash(place, content)
        while content:
            try:
                written = os.pwrite(self._descriptor, content, place)
                content, place = content[written:], place + written
            except OSError as error:
                if error.errno != errno.EINVAL or not self._direct:
                    raise
                self._go_through_cache()  # the file system wants another alignment

    def _update_hash(self, place: int, content: memoryview) -> None:
        with self._turn:
            self._turn.wait_for(lambda: self._hashed == place)
            self._hash.update(content)
            self._hashed += len(content)
            self._turn.notify_all()

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
        self._write(self.size - self._filled, self._fillings, self._staged[: self._filled])
        os.fsync(self._descriptor)
        return self._hash.hexdigest()

    def close(self) -> None:
        """Let go of the file; what is not synced may be lost."""
        wait(self._waiting)
        if self._descriptor >= 0:
            for filling in self._fillings:  # or it would go where another file is staged
                with suppress(Exception):
                    filling()
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
