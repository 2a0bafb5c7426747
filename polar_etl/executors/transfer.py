"""Results on their way from a child to its parent: pickled, but for contents of files.

The child copies those to where its parent wants them, in memory that both see and that files are
written from, while the parent goes on. Sending them, or reading them where they stand, has each
byte copied by the parent, who has more to do than others; that takes a twelfth of a run (measured).
"""

from __future__ import annotations

import io
import mmap
import os
import pickle
import struct
import threading
from collections.abc import Iterator, Sequence
from functools import partial
from typing import IO, Any

import numpy as np

from polar_etl.encoding.contents import Content, Octets, Wait
from polar_etl.errors import RunFailedError

_REQUEST = struct.Struct("<3q")
"""What a parent asks for: which content, the place in shared memory, and how many bytes of it."""
_GO_ON = _REQUEST.pack(-1, 0, 0)
"""It needs none of the contents any more."""
_DONE = b"."
"""What a child answers."""


class Incoming:
    """The content of a child.

    Args:
        receiver: Knows the child.
        number: Which one of the present value it is.
        size: Bytes of it.
    """

    def __init__(self, receiver: Receiver, number: int, size: int) -> None:
        self._receiver, self._number, self._size = receiver, number, size

    def __len__(self) -> int:
        """Return how many bytes there are in all."""
        return self._size

    def read_into(self, room: Octets) -> Wait:
        """Let the child fill `room`, which lies in shared memory, with the next of them.

        Returns:
            What waits for that, and raises `RunFailedError` if the child was killed.
        """
        return self._receiver.ask(self._number, room)


def ended() -> RunFailedError:
    """Return the error that tells of a child which is not there any more."""
    return RunFailedError(
        "A worker process was killed, perhaps because memory ran out. Finished parts are safe."
    )


class Sender:
    """The child's end.

    Args:
        file: Leads to the parent.
        requests: What the parent says.
        shared: Memory that both see.
    """

    def __init__(self, file: IO[bytes], requests: IO[bytes], shared: mmap.mmap) -> None:
        self._file, self._requests = file, requests
        self._shared = np.frombuffer(shared, np.uint8)

    def send(self, value: object) -> None:
        """Send a value; return when its contents are no longer needed."""
        pickler = _Pickler(self._file)
        pickler.dump(value)
        self._file.flush()
        if pickler.contents:
            self._serve(pickler.contents)

    def _serve(self, contents: Sequence[Content]) -> None:
        """Copy contents to where the parent wants them, until it wants no more."""
        while len(request := self._requests.read(_REQUEST.size)) == _REQUEST.size:
            number, place, size = _REQUEST.unpack(request)
            if number < 0:
                return
            contents[number].read_into(self._shared[place : place + size])
            self._file.write(_DONE)
            self._file.flush()


class Receiver:
    """The parent's end.

    Args:
        file: Leads to the child, and back.
        shared: Memory that both see.
    """

    def __init__(self, file: io.BufferedReader, shared: mmap.mmap) -> None:
        self._file = file
        self._shared = _address(np.frombuffer(shared, np.uint8))
        self._asked = self._answered = 0
        self._answering = threading.Lock()
        self._lost = False
        """Whether the child was found killed: its channel may be closed, and is read no more."""

    def values(self) -> Iterator[Any]:
        """Yield what the child sends.

        Contents in a value are `Incoming`, and what of them is not asked for until the next value
        is asked for is gone then.

        Raises:
            RunFailedError: The child was killed.
        """
        while True:
            unpickler = _Unpickler(self._file, self)
            try:
                value = unpickler.load()
            except (EOFError, ConnectionError, pickle.UnpicklingError):
                raise ended() from None
            yield value
            if unpickler.has_contents:
                self.settle()
                self._say(_GO_ON)

    def ask(self, number: int, room: Octets) -> Wait:
        """Let the child fill `room` with the next bytes of a content; return what waits for it."""
        self._say(_REQUEST.pack(number, _address(room) - self._shared, len(room)))
        self._asked += 1
        return partial(self._wait, self._asked)

    def settle(self) -> None:
        """Wait until the child has done all that it was asked for.

        Raises:
            RunFailedError: It was killed.
        """
        self._wait(self._asked)

    def _wait(self, asked: int) -> None:
        """Wait until so many requests are answered: in whichever thread comes first."""
        with self._answering:
            while self._answered < asked:
                answers = b"" if self._lost else self._answers(asked - self._answered)
                self._lost = not answers
                if self._lost:
                    raise ended()
                self._answered += len(answers)

    def _answers(self, most: int) -> bytes:
        """Return the next answers, as soon as there are some; none if the child was killed."""
        try:
            return os.read(self._file.fileno(), most)
        except ConnectionError:
            return b""

    def _say(self, request: bytes) -> None:
        try:
            os.write(self._file.fileno(), request)
        except ConnectionError:
            raise ended() from None


def _address(memory: Octets) -> int:
    return int(memory.__array_interface__["data"][0])


class _Pickler(pickle.Pickler):
    """Pickles all but contents, which it numbers."""

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__(file, pickle.HIGHEST_PROTOCOL)
        self.contents: list[Content] = []

    def reducer_override(self, value: object) -> Any:
        """Return how a value is made again."""
        if not isinstance(value, Content):
            return NotImplemented
        self.contents.append(value)
        return Incoming, (len(self.contents) - 1, len(value))


class _Unpickler(pickle.Unpickler):
    """Knows whose the contents are."""

    def __init__(self, file: io.BufferedReader, receiver: Receiver) -> None:
        super().__init__(file)
        self._receiver = receiver
        self.has_contents = False

    def find_class(self, module: str, name: str) -> Any:
        """Return what a name in a pickle stands for."""
        found = super().find_class(module, name)
        if found is not Incoming:
            return found
        self.has_contents = True
        return partial(Incoming, self._receiver)
