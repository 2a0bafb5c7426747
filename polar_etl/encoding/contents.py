"""Bytes on their way into a file: read once, from start to end, to where they are wanted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

Octets = npt.NDArray[np.uint8]
Wait = Callable[[], None]
"""Returns when what was begun is done."""

_SHORT = 1 << 12
"""Bytes up to which a copy is over before another thread could have the interpreter."""


class Readable(Protocol):
    """Bytes that are read once, wherever they are."""

    def __len__(self) -> int:
        """Return how many there are in all."""

    def read_into(self, room: Octets) -> Wait | None:
        """Begin to fill `room` with the next of them.

        Returns:
            What waits until it is full, and raises what went wrong; None if it is full already.
        """


class Content:
    """Bytes of this process.

    Args:
        pieces: They, one behind the other.

    Example:
        >>> import numpy as np
        >>> content, room = Content([b"some", b"thing"]), np.zeros(6, np.uint8)
        >>> content.read_into(room)
        >>> len(content), room.tobytes()
        (9, b'someth')
    """

    def __init__(self, pieces: Sequence[bytes | memoryview]) -> None:
        self._pieces = pieces
        self._size = sum(map(len, pieces))
        self._at = self._start = 0
        """The next piece, and how much of it was read."""

    def __len__(self) -> int:
        """Return how many there are in all."""
        return self._size

    def read_into(self, room: Octets) -> None:
        """Fill `room` with the next of them."""
        short, done = room.data, 0
        while done < len(room):
            piece, start = self._pieces[self._at], self._start
            some = min(len(piece) - start, len(room) - done)
            if some <= _SHORT:
                short[done : done + some] = piece[start : start + some]
            else:  # NumPy lets other threads have the interpreter meanwhile
                room[done : done + some] = np.frombuffer(piece, np.uint8, some, start)
            done += some
            self._start += some
            if self._start == len(piece):
                self._at, self._start = self._at + 1, 0
