"""Column chunks of one page each: those of many columns are decoded at one go.

Wide tables hold little else, and going through them page by page takes as long as decompressing
them does. What is unusual here, nulls included, is left to those who look at every page.
"""

from __future__ import annotations

import os
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise
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
from polar_etl.sources.chunk_table import ZSTD
from polar_etl.sources.layout import Layout
from polar_etl.thrift import as_number

Array = npt.NDArray[np.generic]
Bytes = npt.NDArray[np.uint8]
Ints = npt.NDArray[np.int64]

_LONGEST = 1 << 20
"""Bytes of a chunk from which on what Python does for a page no longer matters."""


class _Kind(NamedTuple):
    """What columns have in common that are decoded together."""

    stored: np.dtype[np.generic]
    nullable: bool
    """Whether levels stand before the values."""


class _Held(NamedTuple):
    """Values of a column chunk."""

    group: int
    first: int
    """Row of the first one within its row group."""
    values: Array

    def hold(self, group: int, low: int, high: int) -> bool:
        """Tell whether all of these rows of a row group are among them."""
        return self.group == group and self.first <= low and high <= self.first + len(self.values)


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
        found: dict[int, list[Piece]] = {place: [] for place in places}
        for group, low, high in self._windows(first, first + rows):
            later = self._layout.rows[group] - high
            if not self._keep:
                later = min(later, more)
            there = self._there(group, low, high, later, list(found))
            for place, held in there.items():
                found[place].append(Piece(held.values[low - held.first : high - held.first]))
                if later:
                    self._held[place] = held
            found = {place: found[place] for place in there}
        for place in places:
            if place not in found:
                del self.kinds[place]
        return found

    def _windows(self, first: int, stop: int) -> Iterator[tuple[int, int, int]]:
        """Yield (row group, first row, row behind the last) for rows of all row groups."""
        index = bisect_right(self._starts, first) - 1
        while (start := self._starts[index]) < stop:
            group = self._groups[index]
            yield group, max(first - start, 0), min(stop - start, self._layout.rows[group])
            index += 1

    def _there(
        self, group: int, low: int, high: int, later: int, places: Sequence[int]
    ) -> dict[int, _Held]:
        """Return values of a row group with these rows among them, as far as they are read here.

        Args:
            group: The row group.
            low: First row.
            high: Row behind the last one.
            later: Rows behind these that are wanted, too.
            places: The columns.
        """
        held = {place: self._held.pop(place) for place in places if place in self._held}
        found = {place: some for place, some in held.items() if some.hold(group, low, high)}
        wanted = [place for place in places if place not in found]
        if wanted:
            decoded = self._decoded(group, wanted)
            if MOSTLY * (high - low + later) < self._layout.rows[group]:
                decoded = {
                    place: values[low : high + later].copy() for place, values in decoded.items()
                }
            else:
                low = 0
            found |= {place: _Held(group, low, values) for place, values in decoded.items()}
        return found

    def _decoded(self, group: int, places: Sequence[int]) -> dict[int, Array]:
        layout, leaves = self._layout, self._leaves(places)
        start = layout.start[group, leaves]
        size = layout.stop[group, leaves] - start
        raw = self._fetched(start, size)
        if raw is None:
            return {}
        at = np.cumsum(size) - size
        kinds: dict[_Kind, list[int]] = {}
        for number, place in enumerate(places):
            kinds.setdefault(self.kinds[place], []).append(number)
        found: dict[int, Array] = {}
        for kind, some in kinds.items():
            decoded = _decoded(raw, at[some], size[some], layout.rows[group], kind)
            found |= ((places[some[index]], values) for index, values in decoded)
        return found

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


def _decoded(
    raw: Bytes, at: Ints, size: Ints, rows: int, kind: _Kind
) -> Iterator[tuple[int, Array]]:
    """Yield the index and the values of those of some chunks that can be decoded here.

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
        yield from zip(these[usual].tolist(), values if usual.all() else values[usual], strict=True)


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
    for digits in range(1, 6):
        length = len(head) + digits + len(tail)
        number = 2 * (size - length)  # Thrift writes signed numbers so
        fits = np.flatnonzero((number >> (7 * digits) == 0) & (number >> (7 * digits - 7) > 0))
        expected = np.empty((len(fits), length), np.uint8)
        expected[:, : len(head)] = np.frombuffer(head, np.uint8)
        for digit in range(digits):
            more = 128 if digit < digits - 1 else 0
            expected[:, len(head) + digit] = (number[fits] >> (7 * digit)) & 127 | more
        expected[:, length - len(tail) :] = np.frombuffer(tail, np.uint8)
        found = raw[at[fits, None] + np.arange(length)]
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
