"""Column chunks of one page each, dictionaries aside: those of many columns are decoded at one go.

Wide tables hold little else, and going through them page by page takes as long as decompressing
them does. What is unusual here is left to those who look at every page.
"""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Collection, Iterator, Sequence
from itertools import accumulate, pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from polar_etl.columns import Piece
from polar_etl.footers.layout import Layout
from polar_etl.pages.ahead import NONE_AHEAD, Ahead
from polar_etl.pages.files import CODECS, ROOM_BEFORE, ZSTD, RunKind, room_behind
from polar_etl.pages.headers import HEADER, UnusualError, header_of
from polar_etl.scratch import scratch
from polar_etl.short_chunks.chunk_files import decode_by_arrow
from polar_etl.short_chunks.column_blocks import Block, blocks_of, in_pieces, joined
from polar_etl.short_chunks.page_batches import decode
from polar_etl.short_chunks.short_pieces import SHORT
from polar_etl.short_chunks.single_chunks import Chunks, Kind

Bytes = npt.NDArray[np.uint8]
Ints = npt.NDArray[np.int64]

_MOST_CHUNKS = 1 << 12
"""Chunks that are decoded at one go: their headers take memory, too, however short they are."""
_LONGEST = 1 << 20
"""Bytes of a chunk from which on what Python does for a page no longer matters."""
_FILED = 1 << 13
"""Rows of a row group from which on it does not, either, where PyArrow decodes the page."""


class _Asked(NamedTuple):
    """Columns that are asked for together."""

    places: Sequence[int]
    leaves: Ints
    kinds: dict[Kind, tuple[list[int], list[int]]]
    """Columns of each kind, and their numbers among all of them."""


class _Window(NamedTuple):
    """Rows of neighbouring row groups, all of one length."""

    group: int
    """Number of the first of them, of those that are read."""
    many: int
    length: int
    """Rows of each of them."""
    low: int
    """First row, counted from the start of the first row group."""
    high: int
    """Behind the last row; it is one of the last row group."""

    @property
    def rows(self) -> int:
        """Rows of all of the row groups."""
        return self.many * self.length


class _Held(NamedTuple):
    """Rows of a row group that are still to be asked for."""

    group: int
    first: int
    """The first one within the row group."""
    values: Block
    """Without telling which of them are there."""
    bits: Bytes | None
    """Which are, eight in a byte; None if all are."""

    @classmethod
    def of(cls, group: int, first: int, block: Block) -> _Held:
        """Return some rows to hold."""
        bits = None if block.valid is None else np.packbits(block.valid, axis=1)
        return cls(group, first, block._replace(valid=None), bits)

    def hold(self, window: _Window) -> bool:
        """Tell whether all of these rows are among them."""
        here = window.many == 1 and self.group == window.group and self.first <= window.low
        return here and window.high <= self.first + self.values.rows

    def only(self, places: Collection[int]) -> _Held:
        """Return some of the columns."""
        return self.of(self.group, self.first, self.block.only(places))

    @property
    def block(self) -> Block:
        """The rows."""
        if self.bits is None:
            return self.values
        valid = np.unpackbits(self.bits, axis=1, count=self.values.rows)
        return self.values._replace(valid=valid.view(np.bool_))


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
        """By the first column of each: what is still to be asked for."""
        self.kinds = self._likely(places)
        """The columns that are read here, with their kinds."""

    def _likely(self, places: Sequence[int]) -> dict[int, Kind]:
        """Return the columns that are likely to be as they must be, as far as one page tells."""
        layout, groups = self._layout, self._groups
        if not groups:
            return {}
        cells = np.array(groups, np.int64)[:, None], self._leaves(places)
        starts, codec = layout.start[cells], layout.codec[cells]
        apart = layout.data[cells] > starts
        good = (layout.stop[cells] - starts <= _LONGEST).all(axis=0)
        plain = good & ((codec == ZSTD) & ~apart).all(axis=0)
        filed = good & ~plain & (codec >= 0).all(axis=0) & (codec == codec[0]).all(axis=0)
        filed &= max(layout.rows[group] for group in groups) < _FILED
        found: dict[int, Kind] = {}
        for likely, by_arrow in ((plain, False), (filed, True)):
            which = np.flatnonzero(likely).tolist()
            if not which or not self._is_single(places[which[0]]):
                continue
            known: dict[tuple[object, bool], Kind] = {}  # one of each, as there are many columns
            for at in which:
                place, stored = places[at], layout.stored[places[at]]
                if stored is not None:
                    form = stored, layout.nullable[place]
                    if form not in known:
                        known[form] = Kind(RunKind(*form, CODECS[int(codec[0, at])]), by_arrow)
                    found[place] = known[form]
        return found

    def _is_single(self, place: int) -> bool:
        """Tell whether the first chunk of a column is one page besides a dictionary."""
        layout, group, leaf = self._layout, self._groups[0], self._layout.leaves[place]
        start = layout.data.item(group, leaf)
        try:
            header = header_of(memoryview(os.pread(self._file, HEADER, start)))
        except UnusualError:
            return False
        return header.length + header.stored == layout.stop.item(group, leaf) - start

    def _leaves(self, places: Sequence[int]) -> Ints:
        return np.array([self._layout.leaves[place] for place in places], np.int64)

    def pieces(
        self, places: Sequence[int], first: int, rows: int, ahead: Ahead = NONE_AHEAD
    ) -> dict[int, list[Piece]]:
        """Return some rows of some columns; those that must be read in another way are left out.

        Args:
            places: The columns, of those that are read here.
            first: The first row, counted from the start of the first row group.
            rows: How many there are. They stand behind those that were asked for before.
            ahead: Which ones behind them are held, if they are decoded with them.
        """
        windows = list(self._windows(first, first + rows))
        held = self._held_of(places, windows[0])
        stretches = self._stretches(windows, _MOST_CHUNKS // max(len(places), 1), apart=bool(held))
        there = (
            self._there(places, window, held if window is stretches[0] else [], ahead)
            for window in stretches
        )
        if len(stretches) > 1 and rows < SHORT * len(windows):
            found = joined(there, {place: self.kinds[place].stored for place in places}, rows)
        else:
            found = in_pieces(list(there))
        for place in places:
            if place not in found:
                del self.kinds[place]
        return found

    def _windows(self, first: int, stop: int) -> Iterator[_Window]:
        """Yield the rows of each row group that are among some rows of all."""
        index = bisect_right(self._starts, first) - 1
        while (start := self._starts[index]) < stop:
            length = self._layout.rows[self._groups[index]]
            yield _Window(index, 1, length, max(first - start, 0), min(stop - start, length))
            index += 1

    @staticmethod
    def _stretches(windows: Sequence[_Window], most: int, *, apart: bool) -> list[_Window]:
        """Return windows, those of short row groups of one length as one.

        Args:
            windows: One for each row group.
            most: So many row groups at most are decoded at one go.
            apart: Whether the first one is left as it is.
        """
        found = list(windows[:1])
        for window in windows[1:]:
            last = found[-1]
            one = last.length == window.length < SHORT and last.many < most
            if one and not (apart and len(found) == 1):
                high = last.rows + window.high
                found[-1] = last._replace(many=last.many + 1, high=high)
            else:
                found.append(window)
        return found

    def _there(
        self, places: Sequence[int], window: _Window, held: Sequence[_Held], ahead: Ahead
    ) -> list[Block]:
        """Return some rows of some columns, as far as they are read here.

        Args:
            places: The columns.
            window: The rows.
            held: What holds these rows of some of the columns.
            ahead: Rows behind these that are held, if not all are.
        """
        later = window.rows - window.high
        if not self._keep:
            later = min(later, ahead.rows)
        last = window.rows - window.length  # what is held is of the last row group alone
        found = []
        for some in held:
            low, high = window.low - some.first, window.high - some.first
            block = some.block
            found.append(block.between(low, high))
            if later and (self._keep or ahead.soon):
                self._hold(some)
            elif later:
                left = block.alone(high, high + later)
                self._hold(_Held.of(some.group, window.high, left))
        known = {place for some in held for place in some.values.places}
        missing = [place for place in places if place not in known] if known else places
        for block in self._decoded(missing, window):
            wanted = block.alone(window.low, window.high + later)
            found.append(wanted.between(0, window.high - window.low))
            if later:
                soon = ahead.soon and not self._keep  # so that nothing is copied meanwhile
                first = max(window.low, last) if soon else window.high
                left = wanted.alone(first - window.low, wanted.rows)
                self._hold(_Held.of(window.group + window.many - 1, first - last, left))
        return found

    def _hold(self, held: _Held) -> None:
        self._held[held.values.places[0]] = held

    def _held_of(self, places: Sequence[int], window: _Window) -> list[_Held]:
        """Take what is held of some columns, where it holds all of these rows."""
        if not self._held:
            return []
        held = (self._held.pop(place, None) for place in places)
        wanted, found = set(places), []
        for some in [some for some in held if some and some.hold(window)]:
            if wanted.issuperset(some.values.places):
                found.append(some)
            else:  # the columns were asked for in other company before
                found.append(some.only(wanted))
                self._hold(some.only({*some.values.places} - wanted))
        return found

    def _decoded(self, places: Sequence[int], window: _Window) -> Iterator[Block]:
        """Yield whole row groups of some columns, as far as they are read here."""
        if not places:
            return
        layout, asked = self._layout, self._asked_for(places)
        groups = self._groups[window.group : window.group + window.many]
        cells = np.array(groups, np.int64)[:, None], asked.leaves
        start = layout.start[cells]
        size = layout.stop[cells] - start
        raw = self._fetched(start.reshape(-1), size.reshape(-1))
        if raw is None:
            return
        at = ROOM_BEFORE + (np.cumsum(size) - size.reshape(-1)).reshape(size.shape)
        data = at + layout.data[cells] - start
        for kind, (these, some) in asked.kinds.items():
            # The row groups of a column come one behind the other, as its rows do then.
            begin, first, sizes = (array[:, some].T.reshape(-1) for array in (at, data, size))
            chunks = Chunks(raw, begin, first, sizes, window.length, kind)
            found = decode_by_arrow(chunks) if kind.filed else decode(chunks)
            decoded = [some for some in found if some.which]
            yield from blocks_of(these, decoded, window.many)

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

        They are good until the next call, and have the room that page files need.
        """
        raw = scratch("fetched", ROOM_BEFORE + int(size.sum()) + room_behind(len(size)))
        gaps = np.flatnonzero(start[1:] != start[:-1] + size[:-1]) + 1
        ends = ROOM_BEFORE + np.cumsum(size)
        done = ROOM_BEFORE
        for low, high in pairwise([0, *map(int, gaps), len(start)]):
            room = raw[done : int(ends[high - 1])].data
            if os.preadv(self._file, [room], int(start[low])) != len(room):
                return None
            done += len(room)
        return raw
