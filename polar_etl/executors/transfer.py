"""Results on their way from a child to its parent: pickled, and memory as it stands.

Where the system allows it, the parent reads memory where the child has it, and the child waits
until that is no longer needed. Sending memory copies it twice, into pages that the kernel takes and
gives back for it: a fifteenth of a run (measured).
"""

from __future__ import annotations

import ctypes
import io
import os
import pickle
from abc import ABC, abstractmethod
from collections.abc import Iterator
from functools import cached_property
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from polar_etl.errors import RunFailedError

Octets = npt.NDArray[np.uint8]

_DROPPED_AT_A_TIME = 1 << 20
_PROBE = np.frombuffer(b"x", np.uint8)
"""Stands where it does in every child, too."""
_IN_PLACE, _SENT, _GO_ON = b"m", b"s", b"g"
"""What a parent says to a child: how it reads memory, and that it needs none of it any more."""
_readv = getattr(ctypes.CDLL(None), "process_vm_readv", None)
if _readv:
    _readv.restype = ctypes.c_ssize_t


class Incoming(ABC):
    """Bytes that a child has, and its parent wants.

    Args:
        size: How many there are.
    """

    def __init__(self, size: int) -> None:
        self._size = size

    def __len__(self) -> int:
        """Return how many there are."""
        return self._size

    @abstractmethod
    def read_into(self, room: Octets) -> None:
        """Fill `room` with the next of them.

        Raises:
            RunFailedError: The child was killed.
        """

    @abstractmethod
    def drop(self) -> None:
        """Let go of those that were not read."""


class _InPlace(Incoming):
    """Bytes in the memory of a child."""

    def __init__(self, process: int, address: int, size: int) -> None:
        super().__init__(size)
        self._process, self._address = process, address

    def read_into(self, room: Octets) -> None:
        if not _read(self._process, self._address, room):
            raise ended()
        self._address += len(room)

    def drop(self) -> None:
        pass  # the child has them


class _Sent(Incoming):
    """Bytes that are on their way."""

    def __init__(self, file: io.BufferedReader, size: int) -> None:
        super().__init__(size)
        self._file, self._left = file, size

    def read_into(self, room: Octets) -> None:
        try:
            if self._file.readinto(room.data) != len(room):
                raise ended()
        except ConnectionError:
            raise ended() from None
        self._left -= len(room)

    def drop(self) -> None:
        while self._left:
            self.read_into(np.empty(min(self._left, _DROPPED_AT_A_TIME), np.uint8))


def ended() -> RunFailedError:
    """Return the error that tells of a child which is not there any more."""
    return RunFailedError(
        "A worker process was killed, perhaps because memory ran out. Finished parts are safe."
    )


class _Span(ctypes.Structure):
    """What the system calls an `iovec`."""

    _fields_ = (("address", ctypes.c_void_p), ("size", ctypes.c_size_t))


def _read(process: int, address: int, room: Octets) -> bool:
    """Fill `room` with memory of another process; return whether that could be done."""
    if _readv is None:
        return False
    here, there = _Span(_address(room), len(room)), _Span(address, len(room))
    one, flags = ctypes.c_ulong(1), ctypes.c_ulong(0)
    found = _readv(process, ctypes.byref(here), one, ctypes.byref(there), one, flags)
    return bool(found == len(room))


def _address(memory: Octets) -> int:
    return int(memory.__array_interface__["data"][0])


def _can_be_read(process: int) -> bool:
    """Tell whether this process may read the memory of a child; containers can forbid it."""
    room = np.zeros_like(_PROBE)
    return _read(process, _address(_PROBE), room) and bool(room == _PROBE)


class Sender:
    """The child's end.

    Args:
        file: Leads to the parent, and back.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    @cached_property
    def _in_place(self) -> bool:
        return self._heard() == _IN_PLACE

    def _heard(self) -> bytes:
        return os.read(self._file.fileno(), 1)

    def send(self, value: object) -> None:
        """Send a value; return when its memory may change."""
        pickler = _Pickler(self._file)
        pickler.dump(value)
        if self._in_place:
            self._file.flush()
            if pickler.memories:
                self._heard()
            return
        for memory in pickler.memories:
            self._file.write(memory)
        self._file.flush()


class Receiver:
    """The parent's end.

    Args:
        file: Leads to the child, and back.
        process: Number of the child.
    """

    def __init__(self, file: io.BufferedReader, process: int) -> None:
        self._file = file
        self._process = process if _can_be_read(process) else None
        self._say(_SENT if self._process is None else _IN_PLACE)

    def _say(self, word: bytes) -> None:
        try:
            os.write(self._file.fileno(), word)
        except ConnectionError:
            raise ended() from None

    def values(self) -> Iterator[Any]:
        """Yield what the child sends.

        Memory in a value is `Incoming`, and what of it is not read until the next value is asked
        for is gone then.

        Raises:
            RunFailedError: The child was killed.
        """
        while True:
            unpickler = _Unpickler(self._file, self._process)
            try:
                value = unpickler.load()
            except (EOFError, ConnectionError, pickle.UnpicklingError):
                raise ended() from None
            yield value
            for memory in unpickler.memories:
                memory.drop()
            if unpickler.memories and self._process is not None:
                self._say(_GO_ON)


class _Pickler(pickle.Pickler):
    """Pickles all but memory, of which it says where it stands."""

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__(file, pickle.HIGHEST_PROTOCOL)
        self.memories: list[memoryview] = []

    def reducer_override(self, value: object) -> Any:
        """Return how a value is made again."""
        if not isinstance(value, memoryview):
            return NotImplemented
        self.memories.append(value)
        address = _address(np.frombuffer(value, np.uint8)) if len(value) else 0
        return Incoming, (address, len(value))


class _Unpickler(pickle.Unpickler):
    """Knows where memory is: in a process, or on its way behind what was pickled."""

    def __init__(self, file: io.BufferedReader, process: int | None) -> None:
        super().__init__(file)
        self._file, self._process = file, process
        self.memories: list[Incoming] = []

    def find_class(self, module: str, name: str) -> Any:
        """Return what a name in a pickle stands for."""
        found = super().find_class(module, name)
        return self._incoming if found is Incoming else found

    def _incoming(self, address: int, size: int) -> Incoming:
        if self._process is None:
            memory: Incoming = _Sent(self._file, size)
        else:
            memory = _InPlace(self._process, address, size)
        self.memories.append(memory)
        return memory
