"""Columns that a process keeps decoded from the first pass for the second, where memory allows it.

Decoding a column again takes longer than copying it once does, and all that the first pass has
decoded is needed by the second one.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from polar_etl.columns import Bitmap, Piece, validity
from polar_etl.pages.ahead import NONE_AHEAD, Ahead
from polar_etl.sources.base import Columns, Window

Array = npt.NDArray[np.generic]

_POPULATE = 23
"""`MADV_POPULATE_WRITE`: the system takes pages at one go, in two thirds of the time that it takes
when each of them is first written to. It is not there before Linux 5.14."""
_LONG = 1 << 16
"""Bytes from which on memory is taken from the system, so that it goes back there at once."""


class Kept:
    """Decoded columns of numbers, by name: their rows from the first one on, as far as read."""

    def __init__(self) -> None:
        self._pieces: dict[str, list[Piece]] = {}
        self._rows: dict[str, int] = {}
        self._full = False
        """Whether memory could not be had: nothing is kept from then on."""

    def rows(self, name: str) -> int:
        """Return how many rows of a column are kept, from the first one on."""
        return self._rows.get(name, 0)

    def put(
        self, names: Sequence[str], columns: Sequence[list[Piece]], rows: int
    ) -> list[list[Piece]]:
        """Keep the next rows of some columns; return them as they are kept.

        They are returned as they are where there is no memory to be had, and nothing is kept then.

        Args:
            names: Names of the columns.
            columns: Each as its pieces.
            rows: How many there are of each.
        """
        found = list(columns)
        if self._full:
            return found
        try:
            for dtype, which in _by_dtype(columns).items():
                block = _room(len(which), rows, dtype)
                values = [piece.values for at in which for piece in columns[at]]
                np.concatenate(values, out=block.reshape(-1))
                for at, row in zip(which, block, strict=True):
                    found[at] = [self._held(names[at], row, _bitmaps(columns[at], rows))]
        except (OSError, MemoryError):
            self._full = True
            self.drop(list(self._rows))
        return found

    def _held(self, name: str, values: Array, bitmaps: tuple[Bitmap, ...]) -> Piece:
        """Return the next rows of a column as a piece that is kept."""
        piece = Piece(values, bitmaps)
        if name in self._rows:
            self._pieces[name].append(piece)
            self._rows[name] += len(values)
        else:
            self._pieces[name], self._rows[name] = [piece], len(values)
        return piece

    def take(self, name: str, rows: int) -> list[Piece]:
        """Return the next rows of a column, which are no longer kept then."""
        pieces = self._pieces[name]
        found = []
        while rows:
            piece = pieces.pop(0)
            if len(piece.values) > rows:
                pieces.insert(0, piece.between(rows, len(piece.values)))
                piece = piece.between(0, rows)
            found.append(piece)
            rows -= len(piece.values)
        return found

    def drop(self, names: Iterable[str]) -> None:
        """Let go of some columns."""
        for name in names:
            self._pieces.pop(name, None)
            self._rows.pop(name, None)


def _by_dtype(columns: Sequence[Sequence[Piece]]) -> dict[np.dtype[np.generic], list[int]]:
    """Return which columns are of each dtype; none of those that change it on the way."""
    if len(kinds := {piece.values.dtype for pieces in columns for piece in pieces}) == 1:
        return {kinds.pop(): list(range(len(columns)))}  # as a rule
    found: dict[np.dtype[np.generic], list[int]] = {}
    for at, pieces in enumerate(columns):
        if len(kinds := {piece.values.dtype for piece in pieces}) == 1:
            found.setdefault(kinds.pop(), []).append(at)
    return found


def _room(columns: int, rows: int, dtype: np.dtype[np.generic]) -> Array:
    """Return memory for some columns of some rows, shape `(columns, rows)`."""
    size = columns * rows * dtype.itemsize
    if size < _LONG:
        return np.empty((columns, rows), dtype)
    memory = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):
        memory.madvise(_POPULATE)
    return np.frombuffer(memory, dtype).reshape(columns, rows)


def _bitmaps(pieces: Sequence[Piece], rows: int) -> tuple[Bitmap, ...]:
    if len(pieces) == 1 and not pieces[0].bitmaps:  # as a rule, in wide tables
        return ()
    valid = validity(pieces, 0, rows)
    return () if valid is None else (Bitmap(np.packbits(valid, bitorder="little")),)


@dataclass(frozen=True, slots=True)
class _Around:
    """A window, some of whose columns of numbers are kept."""

    window: Window
    kept: Kept

    @property
    def rows(self) -> int:
        return self.window.rows

    def column(self, name: str) -> pa.ChunkedArray:
        return self.window.column(name)

    def text(self, name: str) -> pa.ChunkedArray:
        return self.window.text(name)


class _KeepingWindow(_Around):
    __slots__ = ()

    def pieces(self, names: Sequence[str]) -> list[list[Piece]]:
        found = self.window.pieces(names)
        return self.kept.put(names, found, self.rows) if self.rows else found


@dataclass(frozen=True, slots=True)
class _KeptWindow(_Around):
    names: frozenset[str]

    def pieces(self, names: Sequence[str]) -> list[list[Piece]]:
        others = [name for name in names if name not in self.names]
        read = iter(self.window.pieces(others) if others else ())
        return [
            self.kept.take(name, self.rows) if name in self.names else next(read) for name in names
        ]


class KeepingColumns:
    """Columns of the first pass that are kept while they are read.

    Args:
        columns: The columns.
        kept: Where they are kept.
    """

    def __init__(self, columns: Columns, kept: Kept) -> None:
        self._columns, self._kept = columns, kept

    def next(self, rows: int, ahead: Ahead = NONE_AHEAD) -> Window:
        """Return the next rows; the window before is gone then."""
        return _KeepingWindow(self._columns.next(rows, ahead), self._kept)

    def close(self) -> None:
        """Let go of all files."""
        self._columns.close()


class KeptColumns:
    """Columns of the second pass, some of which were kept by the first one.

    Args:
        columns: The others.
        kept: Where those are.
        names: Which ones, all rows of them.
    """

    def __init__(self, columns: Columns, kept: Kept, names: frozenset[str]) -> None:
        self._columns, self._kept, self._names = columns, kept, names

    def next(self, rows: int, ahead: Ahead = NONE_AHEAD) -> Window:
        """Return the next rows; the window before is gone then."""
        return _KeptWindow(self._columns.next(rows, ahead), self._kept, self._names)

    def close(self) -> None:
        """Let go of all files, and of what is kept."""
        self._columns.close()
        self._kept.drop(self._names)
