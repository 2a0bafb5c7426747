"""Rows of many columns of one kind as one array: what is done for each column alone costs more."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from polar_etl.columns import Bitmap, Piece
from polar_etl.pages.ahead import MOSTLY
from polar_etl.short_chunks.single_chunks import Decoded

Array = npt.NDArray[np.generic]
Bools = npt.NDArray[np.bool_]


class Block(NamedTuple):
    """Neighbouring rows of some columns of one kind."""

    places: list[int]
    values: Array
    """Shape `(columns, rows)`."""
    valid: Bools | None
    """Which values are there, in the same shape; None if all are."""

    @property
    def rows(self) -> int:
        """How many rows there are."""
        return int(self.values.shape[1])

    def between(self, low: int, high: int) -> Block:
        """Return some rows."""
        valid = None if self.valid is None else self.valid[:, low:high]
        return self._replace(values=self.values[:, low:high], valid=valid)

    def alone(self, low: int, high: int) -> Block:
        """Return some rows, in memory of their own if many others would be held for them."""
        found = self.between(low, high)
        if MOSTLY * (high - low) >= self.rows:
            return found
        return found._replace(values=found.values.copy())

    def only(self, places: Collection[int]) -> Block:
        """Return some of the columns."""
        which = [at for at, place in enumerate(self.places) if place in places]
        valid = None if self.valid is None else self.valid[which]
        return Block([self.places[at] for at in which], self.values[which], valid)

    def pieces(self) -> Iterator[tuple[int, Piece]]:
        """Yield the columns, and their rows."""
        if self.valid is None or self.valid.all():
            return zip(self.places, map(Piece, self.values), strict=True)
        bits = np.packbits(self.valid, axis=1, bitorder="little")
        are_whole = np.all(self.valid, axis=1).tolist()
        bitmaps = [
            () if whole else (Bitmap(some),) for some, whole in zip(bits, are_whole, strict=True)
        ]
        return zip(self.places, map(Piece, self.values, bitmaps), strict=True)


def blocks_of(places: list[int], decoded: Sequence[Decoded], many: int) -> Iterator[Block]:
    """Yield those columns of which all chunks were decoded.

    Args:
        places: The columns.
        decoded: Their chunks: all row groups of the first column, then those of the next.
        many: How many row groups there are, all of one length.
    """
    if len(decoded) == 1 and len(decoded[0].which) == len(places) * many:  # in order, then
        yield _rows_of(places, decoded[0].values, decoded[0].valid)
    elif many == 1:
        for which, values, valid in decoded:
            yield Block([places[number] for number in which], values, valid)
    elif decoded:
        block = _put_together(places, decoded, many)
        if block.places:
            yield block


def _rows_of(places: list[int], values: Array, valid: Bools | None) -> Block:
    """Return columns whose row groups are one row each, one behind the other."""
    shape = len(places), -1
    return Block(places, values.reshape(shape), None if valid is None else valid.reshape(shape))


def _put_together(places: list[int], decoded: Sequence[Decoded], many: int) -> Block:
    """Return those columns of which all chunks were decoded, in any order: see `blocks_of`."""
    values = np.empty((len(places) * many, decoded[0].values.shape[1]), decoded[0].values.dtype)
    valid = None
    if any(some.valid is not None for some in decoded):
        valid = np.ones(values.shape, np.bool_)
    missing = np.ones(len(values), np.bool_)
    for which, some, there in decoded:
        values[which], missing[which] = some, False
        if valid is not None and there is not None:
            valid[which] = there
    block = _rows_of(places, values, valid)
    if not missing.any():
        return block
    lacking = missing.reshape(-1, many).any(axis=1)
    return block.only({places[at] for at in np.flatnonzero(~lacking).tolist()})


def joined(
    windows: Iterable[Sequence[Block]], kinds: Mapping[int, np.dtype[np.generic]], rows: int
) -> dict[int, list[Piece]]:
    """Return those columns that are there in all of some windows, each as one piece.

    What there is to do for each piece would take longer than its values, if these were few.

    Args:
        windows: Neighbouring rows.
        kinds: Dtype of each column.
        rows: In all windows.
    """
    whole = {kind: _Whole(kind, some, rows) for kind, some in _by_kind(kinds).items()}
    lacking: set[int] = set()
    first = 0
    for blocks in windows:
        lacking.update(kinds.keys() - {*chain(*(block.places for block in blocks))})
        for block in blocks:
            whole[block.values.dtype].put(first, block)
        first += blocks[0].rows if blocks else 0
    pieces = chain.from_iterable(some.block().pieces() for some in whole.values())
    return {place: [piece] for place, piece in pieces if place not in lacking}


def _by_kind(kinds: Mapping[int, np.dtype[np.generic]]) -> dict[np.dtype[np.generic], list[int]]:
    found: dict[np.dtype[np.generic], list[int]] = {}
    for place, kind in kinds.items():
        found.setdefault(kind, []).append(place)
    return found


class _Whole:
    """Columns of one dtype that are put together.

    Args:
        kind: The dtype.
        places: The columns.
        rows: Of each.
    """

    def __init__(self, kind: np.dtype[np.generic], places: list[int], rows: int) -> None:
        self._places = places
        self._number = {place: at for at, place in enumerate(places)}
        self._values = np.empty((len(places), rows), kind)
        self._valid: Bools | None = None
        """None as long as all are there."""

    def put(self, first: int, block: Block) -> None:
        """Put rows of some of the columns to row `first` and behind."""
        rows = slice(first, first + block.values.shape[1])
        which: slice | list[int] = slice(None)
        if block.places != self._places:
            which = [self._number[place] for place in block.places]
        self._values[which, rows] = block.values
        if block.valid is not None:
            self._there()[which, rows] = block.valid

    def _there(self) -> Bools:
        if self._valid is None:
            self._valid = np.ones(self._values.shape, np.bool_)
        return self._valid

    def block(self) -> Block:
        """Return what was put here."""
        return Block(self._places, self._values, self._valid)


def in_pieces(windows: Sequence[Sequence[Block]]) -> dict[int, list[Piece]]:
    """Return those columns that are there in all of some windows, in as many pieces."""
    found: dict[int, list[Piece]] = {}
    for blocks in windows:
        for place, piece in chain.from_iterable(block.pieces() for block in blocks):
            found.setdefault(place, []).append(piece)
    return {place: pieces for place, pieces in found.items() if len(pieces) == len(windows)}
