"""Column chunks of one page each: those of many columns are decoded at one go.

Wide tables hold little else, and going through them page by page takes as long as decompressing
them does. What is unusual here is left to those who look at every page.
"""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate, chain, pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from polar_etl.columns import Bitmap, Piece
from polar_etl.headers import HEADER, UnusualError, header_of
from polar_etl.pages import MOSTLY
from polar_etl.scratch import scratch
from polar_etl.sources.chunk_table import ZSTD
from polar_etl.sources.layout import Layout
from polar_etl.sources.page_batches import Chunks, Kind, decode

Array = npt.NDArray[np.generic]
Bools = npt.NDArray[np.bool_]
Bytes = npt.NDArray[np.uint8]
Ints = npt.NDArray[np.int64]

_SHORT = 1 << 13
"""Rows of a row group from which on what is done for each piece of a column no longer matters."""
_LONGEST = 1 << 20
"""Bytes of a chunk from which on what Python does for a page no longer matters."""


class _Block(NamedTuple):
    """Rows of a row group, of some columns of one kind."""

    places: list[int]
    values: Array
    """Shape `(columns, rows)`."""
    valid: Bools | None
    """Which values are there, in the same shape; None if all are."""

    def between(self, low: int, high: int) -> _Block:
        """Return some rows."""
        valid = None if self.valid is None else self.valid[:, low:high]
        return self._replace(values=self.values[:, low:high], valid=valid)

    def alone(self, low: int, high: int) -> _Block:
        """Return some rows, in memory of their own if many others would be held for them."""
        found = self.between(low, high)
        if MOSTLY * (high - low) >= self.values.shape[1]:
            return found
        return found._replace(values=found.values.copy())

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


class _Asked(NamedTuple):
    """Columns that are asked for together."""

    places: Sequence[int]
    leaves: Ints
    kinds: dict[Kind, tuple[list[int], list[int]]]
    """Columns of each kind, and their numbers among all of them."""


class _Held(NamedTuple):
    """Rows of a column chunk."""

    group: int
    first: int
    """The first one within its row group."""
    piece: Piece

    def hold(self, window: _Window) -> bool:
        """Tell whether all of these rows are among them."""
        here = self.group == window.group and self.first <= window.low
        return here and window.high <= self.first + len(self.piece.values)

    def between(self, low: int, high: int) -> Piece:
        """Return some rows of the row group."""
        found = self.piece.between(low - self.first, len(self.piece.values))
        return found._replace(values=found.values[: high - low])


class _Rows(NamedTuple):
    """Rows of a row group, of some columns."""

    held: dict[int, Piece]
    """Those that were decoded before."""
    blocks: list[_Block]


class _Window(NamedTuple):
    """Rows of one row group."""

    group: int
    low: int
    high: int


class SinglePages:
    """Reads some columns of one file as long as their chunks are usual pages.

    Args:
        layout: Where the chunks stand.
        places: Which columns are wanted.
        groups: The row groups that are read, in order.
        file: Descriptor of the file.
        keep: Whether what is left of a row group is kept; otherwise it is decoded again when it is
            needed, which takes time instead of memory.
    """

    def __init__(
        self,
        layout: Layout,
        places: Sequence[int],
        groups: Sequence[int],
        file: int,
        *,
        keep: bool,
    ) -> None:
        self._layout, self._file, self._keep = layout, file, keep
        self._groups = [group for group in groups if layout.rows[group]]
        self._starts = list(accumulate((layout.rows[g] for g in self._groups), initial=0))
        """First row of each, counted from that of the first one."""
        self._asked: _Asked | None = None
        """What was asked for last."""
        self._held: dict[int, _Held] = {}
        """By column: what is still to be asked for."""
        self.kinds = self._likely(places)
        """The columns that are read here, with their kinds."""

    def _likely(self, places: Sequence[int]) -> dict[int, Kind]:
        """Return the columns that are likely to be as they must be, as far as one page tells."""
        layout, wanted = self._layout, np.array(places, np.int64)
        cells = np.array(self._groups, np.int64)[:, None], self._leaves(places)
        starts, size = layout.start[cells], layout.stop[cells] - layout.start[cells]
        good = (layout.codec[cells] == ZSTD) & (layout.data[cells] <= starts) & (size <= _LONGEST)
        likely = wanted[good.all(axis=0)].tolist()
        if not likely or not self._groups:
            return {}
        start, stop, _ = layout.span(self._groups[0], layout.leaves[likely[0]])
        try:
            header = header_of(memoryview(os.pread(self._file, HEADER, start)))
        except UnusualError:
            return {}
        if header.length + header.stored != stop - start:
            return {}
        return {
            place: Kind(stored, layout.nullable[place])
            for place in likely
            if (stored := layout.stored[place]) is not None
        }

    def _leaves(self, places: Sequence[int]) -> Ints:
        return np.array([self._layout.leaves[place] for place in places], np.int64)

    def pieces(
        self, places: Sequence[int], first: int, rows: int, more: int = 0
    ) -> dict[int, list[Piece]]:
        """Return some rows of some columns; those that must be read in another way are left out.

        Args:
            places: The columns, of those that are read here.
            first: The first row, counted from the start of the first row group.
            rows: How many there are. They stand behind those that were asked for before.
            more: How many will be asked for soon after: these are held.
        """
        windows = list(self._windows(first, first + rows))
        there = (self._there(places, window, more) for window in windows)
        if len(windows) > 1 and rows < _SHORT * len(windows):
            found = _joined(there, {place: self.kinds[place].stored for place in places}, rows)
        else:
            found = _in_pieces(list(there))
        for place in places:
            if place not in found:
                del self.kinds[place]
        return found

    def _windows(self, first: int, stop: int) -> Iterator[_Window]:
        """Yield the rows of each row group that are among some rows of all."""
        index = bisect_right(self._starts, first) - 1
        while (start := self._starts[index]) < stop:
            group = self._groups[index]
            yield _Window(group, max(first - start, 0), min(stop - start, self._layout.rows[group]))
            index += 1

    def _there(self, places: Sequence[int], window: _Window, more: int) -> _Rows:
        """Return some rows of some columns, as far as they are read here.

        Args:
            places: The columns.
            window: The rows.
            more: Rows behind these that are wanted soon.
        """
        group, low, high = window
        later = self._layout.rows[group] - high
        if not self._keep:
            later = min(later, more)
        held = self._held_of(places, window)
        missing = [place for place in places if place not in held] if held else places
        found = _Rows({place: some.between(low, high) for place, some in held.items()}, [])
        for block in self._decoded(missing, group):
            wanted = block.alone(low, high + later)
            found.blocks.append(wanted.between(0, high - low))
            if later:
                first = high if self._keep else low
                left = wanted.alone(first - low, wanted.values.shape[1])
                held |= ((place, _Held(group, first, piece)) for place, piece in left.pieces())
        if later:
            self._held |= held
        return found

    def _held_of(self, places: Sequence[int], window: _Window) -> dict[int, _Held]:
        """Take what is held of some columns, where it holds all of these rows."""
        if not self._held:
            return {}
        held = ((place, self._held.pop(place, None)) for place in places)
        return {place: some for place, some in held if some and some.hold(window)}

    def _decoded(self, places: Sequence[int], group: int) -> Iterator[_Block]:
        """Yield a row group of some columns, as far as they are read here."""
        if not places:
            return
        layout, asked = self._layout, self._asked_for(places)
        start = layout.start[group, asked.leaves]
        size = layout.stop[group, asked.leaves] - start
        raw = self._fetched(start, size)
        if raw is None:
            return
        at = np.cumsum(size) - size
        for kind, (these, some) in asked.kinds.items():
            chunks = Chunks(raw, at[some], size[some], layout.rows[group], kind)
            for which, values, valid in decode(chunks):
                all_of_them = len(which) == len(these) and valid is None  # in order, then
                places = these if all_of_them else [these[number] for number in which]
                yield _Block(places, values, valid)

    def _asked_for(self, places: Sequence[int]) -> _Asked:
        """Return what is the same for all row groups that these columns are asked for."""
        if self._asked is None or self._asked.places != places:
            kinds: dict[Kind, tuple[list[int], list[int]]] = {}
            for number, place in enumerate(places):
                these, numbers = kinds.setdefault(self.kinds[place], ([], []))
                these.append(place)
                numbers.append(number)
            self._asked = _Asked(places, self._leaves(places), kinds)
        return self._asked

    def _fetched(self, start: Ints, size: Ints) -> Bytes | None:
        """Return the bytes of some chunks, one behind the other; None where the file breaks off.

        They are good until the next call.
        """
        raw = scratch("fetched", int(size.sum()))
        gaps = np.flatnonzero(start[1:] != start[:-1] + size[:-1]) + 1
        ends = np.cumsum(size)
        done = 0
        for low, high in pairwise([0, *map(int, gaps), len(start)]):
            room = raw[done : int(ends[high - 1])].data
            if os.preadv(self._file, [room], int(start[low])) != len(room):
                return None
            done += len(room)
        return raw


def _joined(
    windows: Iterable[_Rows], kinds: Mapping[int, np.dtype[np.generic]], rows: int
) -> dict[int, list[Piece]]:
    """Return those columns that are there in all of some windows, each as one piece.

    What there is to do for each piece would take longer than its values, if these were few.

    Args:
        windows: Rows of neighbouring row groups.
        kinds: Dtype of each column.
        rows: In all windows.
    """
    whole = {kind: _Whole(kind, some, rows) for kind, some in _by_kind(kinds).items()}
    lacking: set[int] = set()
    first = 0
    for held, blocks in windows:
        lacking.update(kinds.keys() - held.keys() - {*chain(*(block.places for block in blocks))})
        stop = first
        for place, piece in held.items():
            stop = first + len(piece.values)
            whole[kinds[place]].put_piece(place, first, piece)
        for block in blocks:
            stop = first + block.values.shape[1]
            whole[block.values.dtype].put(first, block)
        first = stop
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

    def put(self, first: int, block: _Block) -> None:
        """Put rows of some of the columns to row `first` and behind."""
        rows = slice(first, first + block.values.shape[1])
        which: slice | list[int] = slice(None)
        if block.places != self._places:
            which = [self._number[place] for place in block.places]
        self._values[which, rows] = block.values
        if block.valid is not None:
            self._there()[which, rows] = block.valid

    def put_piece(self, place: int, first: int, piece: Piece) -> None:
        """Put rows of one of the columns to row `first` and behind."""
        at, stop = self._number[place], first + len(piece.values)
        self._values[at, first:stop] = piece.values
        if piece.bitmaps:
            self._there()[at, first:stop] = piece.valid(0, stop - first)

    def _there(self) -> Bools:
        if self._valid is None:
            self._valid = np.ones(self._values.shape, np.bool_)
        return self._valid

    def block(self) -> _Block:
        """Return what was put here."""
        return _Block(self._places, self._values, self._valid)


def _in_pieces(windows: Sequence[_Rows]) -> dict[int, list[Piece]]:
    """Return those columns that are there in all of some windows, in as many pieces."""
    found: dict[int, list[Piece]] = {}
    for held, blocks in windows:
        for place, piece in chain(held.items(), *(block.pieces() for block in blocks)):
            found.setdefault(place, []).append(piece)
    return {place: pieces for place, pieces in found.items() if len(pieces) == len(windows)}
