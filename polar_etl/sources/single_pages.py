"""Column chunks of one page each: those of many columns are decoded at one go.

Wide tables hold little else, and going through them page by page takes as long as decompressing
them does. What is unusual here, nulls included, is left to those who look at every page.
"""

from __future__ import annotations

import os
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate, chain, pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import zstandard

from polar_etl.columns import Piece
from polar_etl.headers import HEADER, PageHeader, UnusualError, header_of
from polar_etl.page_buffers import equal_levels
from polar_etl.page_values import decompressor, is_intact
from polar_etl.pages import MOSTLY
from polar_etl.scratch import scratch
from polar_etl.sources.alike import gathered
from polar_etl.sources.chunk_table import ZSTD
from polar_etl.sources.layout import Layout
from polar_etl.thrift import as_number

Array = npt.NDArray[np.generic]
Bytes = npt.NDArray[np.uint8]
Ints = npt.NDArray[np.int64]

_MOST_DIGITS = 5
"""Bytes of a 32-bit number in Thrift."""
_SHORT = 1 << 13
"""Rows of a row group from which on what is done for each piece of a column no longer matters."""
_LONGEST = 1 << 20
"""Bytes of a chunk from which on what Python does for a page no longer matters."""


class _Kind(NamedTuple):
    """What columns have in common that are decoded together."""

    stored: np.dtype[np.generic]
    nullable: bool
    """Whether levels stand before the values."""


class _Run(NamedTuple):
    """Rows of a row group, of some columns."""

    places: list[int]
    values: Array | list[Array]
    """Of each column as many; shape `(columns, rows)`."""


class _Asked(NamedTuple):
    """Columns that are asked for together."""

    places: Sequence[int]
    leaves: Ints
    kinds: dict[_Kind, tuple[list[int], list[int]]]
    """Columns of each kind, and their numbers among all of them."""


class _Held(NamedTuple):
    """Values of a column chunk."""

    group: int
    first: int
    """Row of the first one within its row group."""
    values: Array

    def hold(self, window: _Window) -> bool:
        """Tell whether all of these rows are among them."""
        here = self.group == window.group and self.first <= window.low
        return here and window.high <= self.first + len(self.values)

    def between(self, low: int, high: int) -> Array:
        """Return some rows of the row group."""
        return self.values[low - self.first : high - self.first]


class _Window(NamedTuple):
    """Rows of one row group."""

    group: int
    low: int
    high: int


class SinglePages:
    """Reads some columns of one file as long as their chunks are usual pages without nulls.

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

    def _likely(self, places: Sequence[int]) -> dict[int, _Kind]:
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
            place: _Kind(stored, layout.nullable[place])
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
        runs = (self._there(places, window, more) for window in windows)
        if len(windows) > 1 and rows < _SHORT * len(windows):
            found = _joined(runs, {place: self.kinds[place].stored for place in places}, rows)
        else:
            found = _in_pieces(list(runs))
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

    def _there(self, places: Sequence[int], window: _Window, more: int) -> list[_Run]:
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
        runs = []
        missing = places
        if held:
            runs.append(_Run(list(held), [some.between(low, high) for some in held.values()]))
            missing = [place for place in places if place not in held]
        for these, values in self._decoded(missing, group):
            wanted = _between(values, low, high + later)
            runs.append(_Run(these, wanted[:, : high - low]))
            if later:
                first = high if self._keep else low
                left = _between(wanted, first - low, wanted.shape[1])
                held |= zip(these, (_Held(group, first, some) for some in left), strict=True)
        if later:
            self._held |= held
        return [run for run in runs if run.places]

    def _held_of(self, places: Sequence[int], window: _Window) -> dict[int, _Held]:
        """Take what is held of some columns, where it holds all of these rows."""
        if not self._held:
            return {}
        held = ((place, self._held.pop(place, None)) for place in places)
        return {place: some for place, some in held if some and some.hold(window)}

    def _decoded(self, places: Sequence[int], group: int) -> Iterator[tuple[list[int], Array]]:
        """Yield columns, and their values in a row group, as far as they are read here."""
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
            for index, values in _decoded(raw, at[some], size[some], layout.rows[group], kind):
                all_of_them = len(index) == len(these)
                yield these if all_of_them else [these[number] for number in index], values

    def _asked_for(self, places: Sequence[int]) -> _Asked:
        """Return what is the same for all row groups that these columns are asked for."""
        if self._asked is None or self._asked.places != places:
            kinds: dict[_Kind, tuple[list[int], list[int]]] = {}
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


def _between(values: Array, low: int, high: int) -> Array:
    """Return some rows of values, in memory of their own if many others would be held for them."""
    found = values[:, low:high]
    return found if MOSTLY * (high - low) >= values.shape[1] else found.copy()


def _joined(
    windows: Iterable[list[_Run]], kinds: Mapping[int, np.dtype[np.generic]], rows: int
) -> dict[int, list[Piece]]:
    """Return those columns that are there in all of some windows, each as one piece.

    What there is to do for each piece would take longer than its values, if these were few.

    Args:
        windows: Rows of neighbouring row groups.
        kinds: Dtype of each column.
        rows: In all windows.
    """
    many = Counter(kinds.values())
    whole = {kind: np.empty((count, rows), kind) for kind, count in many.items()}
    unused = {kind: iter(values) for kind, values in whole.items()}
    found = {place: next(unused[kind]) for place, kind in kinds.items()}
    lacking: set[int] = set()
    first = stop = 0
    for runs in windows:
        lacking.update(found.keys() - chain.from_iterable(run.places for run in runs))
        for places, values in runs:
            stop = first + len(values[0])
            if isinstance(values, np.ndarray) and len(places) == many[values.dtype]:
                whole[values.dtype][:, first:stop] = values  # as a rule, and faster
                continue
            for place, row in zip(places, values, strict=True):
                found[place][first:stop] = row
        first = stop
    return {place: [Piece(row)] for place, row in found.items() if place not in lacking}


def _in_pieces(windows: Sequence[list[_Run]]) -> dict[int, list[Piece]]:
    """Return those columns that are there in all of some windows, in as many pieces."""
    found: dict[int, list[Piece]] = {}
    for places, values in chain.from_iterable(windows):
        for place, row in zip(places, values, strict=True):
            found.setdefault(place, []).append(Piece(row))
    return {place: pieces for place, pieces in found.items() if len(pieces) == len(windows)}


def _decoded(
    raw: Bytes, at: Ints, size: Ints, rows: int, kind: _Kind
) -> Iterator[tuple[list[int], Array]]:
    """Yield numbers and values of those of some chunks that can be decoded here.

    Args:
        raw: Bytes that hold the chunks.
        at: Where in them each begins.
        size: Bytes of each.
        rows: Of each.
        kind: What they hold.
    """
    levels = equal_levels(rows, b"\x01") if kind.nullable else b""
    most = len(levels) + rows * kind.stored.itemsize
    begin = _contents(raw, at, size, rows, most)
    index = np.flatnonzero(begin)
    for pages in _decompressed(raw, begin[index], (at + size)[index], most):
        these, index = index[: len(pages)], index[len(pages) :]
        usual = (pages[:, : len(levels)] == np.frombuffer(levels, np.uint8)).all(axis=1)
        values = pages[:, len(levels) :].view(kind.stored)
        yield these[usual].tolist(), values if usual.all() else values[usual]


def _contents(raw: Bytes, at: Ints, size: Ints, rows: int, most: int) -> Ints:
    """Return where the contents of chunks begin; 0 where a chunk is not the page that is expected.

    Args:
        raw: Bytes that hold the chunks.
        at: Where in them each begins.
        size: Bytes of each.
        rows: Of each.
        most: Bytes of the decompressed page of each.
    """
    begin = np.zeros(len(at), np.int64)
    header = _header(raw, int(at[0]), int(size[0]), rows, most)
    if header and header.checksum is None:
        begin = _like_the_first(raw, at, size, header)
    for index in np.flatnonzero(begin == 0).tolist():
        place, length = int(at[index]), int(size[index])
        if header := _header(raw, place, length, rows, most):
            begin[index] = place + header.length
    return begin


def _like_the_first(raw: Bytes, at: Ints, size: Ints, header: PageHeader) -> Ints:
    """Return where contents begin behind headers that differ in nothing but the bytes stored."""
    first = bytes(raw[at[0] : at[0] + header.length])
    head = b"\x15\x00\x15" + as_number(header.size) + b"\x15"
    tail = first[len(head) + len(as_number(header.stored)) :]
    begin = np.zeros(len(at), np.int64)
    shortest = max(int(size.min()) - header.length - _MOST_DIGITS, 0)
    for digits in range(len(as_number(shortest)), len(as_number(int(size.max()))) + 1):
        length = len(head) + digits + len(tail)
        number = 2 * (size - length)  # Thrift writes signed numbers so
        fits = np.flatnonzero((number >> (7 * digits) == 0) & (number >> (7 * digits - 7) > 0))
        expected = np.empty((len(fits), length), np.uint8)
        expected[:, : len(head)] = np.frombuffer(head, np.uint8)
        for digit in range(digits):
            more = 128 if digit < digits - 1 else 0
            expected[:, len(head) + digit] = (number[fits] >> (7 * digit)) & 127 | more
        expected[:, length - len(tail) :] = np.frombuffer(tail, np.uint8)
        found = gathered(raw, at[fits], length)
        same = fits[(found == expected).all(axis=1)]
        begin[same] = at[same] + length
    return begin


def _header(raw: Bytes, at: int, size: int, rows: int, most: int) -> PageHeader | None:
    """Return the header of a chunk if it is the page that is expected."""
    chunk = raw[at : at + size].data
    try:
        header = header_of(chunk)
    except UnusualError:
        return None
    expected = ("values", rows, size - header.length, most, None)
    if (header.holds, header.rows, header.stored, header.size, header.levels) != expected:
        return None
    return header if is_intact(header, chunk[header.length :]) else None


def _decompressed(raw: Bytes, begin: Ints, end: Ints, size: int) -> Iterator[Bytes]:
    """Yield the pages between `begin` and `end`, shape `(pages, size)`; none if one is damaged."""
    if not len(begin):
        return
    segments = np.stack([begin, end - begin], axis=1).astype(np.uint64).tobytes()
    sizes = np.full(len(begin), size, np.uint64).tobytes()
    try:
        found = decompressor().multi_decompress_to_buffer(
            zstandard.BufferWithSegments(raw.data, segments), decompressed_sizes=sizes
        )
    except zstandard.ZstdError:
        return
    first = 0
    while first < len(begin):
        start = _bytes_of(found, first)
        place = _address(start)
        # zstd may need several pieces of memory: in each, one page stands behind the other.
        behind = bisect_left(
            range(first, len(begin)),
            True,
            key=lambda i: _address(_bytes_of(found, i)) - place != (i - first) * size,
        )
        yield np.lib.stride_tricks.as_strided(start, (behind, size), (size, 1))
        first += behind


def _bytes_of(found: zstandard.BufferWithSegmentsCollection, index: int) -> Bytes:
    return np.frombuffer(memoryview(found[index]), np.uint8)  # type: ignore[arg-type]  # it is one


def _address(array: Bytes) -> int:
    return int(array.__array_interface__["data"][0])
