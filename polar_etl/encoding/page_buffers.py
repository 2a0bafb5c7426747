"""Columns laid out as pages: values are written where they are compressed from."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from polar_etl.pages import thrift
from polar_etl.pages.levels import equal_levels
from polar_etl.scratch import scratch

Bools = npt.NDArray[np.bool_]
Bytes = bytes | memoryview
Ints = npt.NDArray[np.int64]
Values = npt.NDArray[np.number]

PAGE_BYTES = 1 << 18
"""Bytes of values in a page."""
_ROOM = 64
"""Bytes left free before the values of a page, besides a bit for each: a run of levels takes up to
9 besides its bits."""
_ALIGNED = 64
_SHORT_VECTOR = 40
"""Numbers of a vector from which on runs of levels take less than a bit for each of them."""


class Page(NamedTuple):
    """Values of one page of one column, with room for levels before them."""

    first: int
    """Its first row."""
    rows: int
    dtype: np.dtype[Any]
    memory: memoryview
    """Room for levels, and the values."""

    @property
    def room(self) -> int:
        """Bytes before the values."""
        return len(self.memory) - self.rows * self.dtype.itemsize

    @property
    def values(self) -> Values:
        """The values themselves; what is written to them stands in the page."""
        return np.frombuffer(self.memory, self.dtype, self.rows, self.room)


class PagedColumns:
    """Columns of one dtype, laid out as pages: values are written where they are compressed from.

    They are this thread's scratch: good until the next ones are made.

    Args:
        columns: How many there are.
        rows: Of each.
        dtype: Of the values.
    """

    def __init__(self, columns: int, rows: int, dtype: np.dtype[Any]) -> None:
        self.rows = rows
        """Of each."""
        self.dtype = dtype
        """Of the values."""
        self._length = PAGE_BYTES // dtype.itemsize
        self._room = _ROOM + _aligned(min(rows, self._length) // 8)
        self._stride = _aligned(rows * dtype.itemsize) + -(-rows // self._length) * self._room
        self._memory = scratch(f"pages {dtype}", columns * self._stride).data

    def put(self, column: int, first: int, values: Values) -> None:
        """Write some rows of some neighbouring columns, rounding them to the dtype.

        Args:
            column: The first of them.
            first: The first row.
            values: Shape `(columns, rows)`.
        """
        done = 0
        while done < values.shape[1]:
            page, row = divmod(first + done, self._length)
            some = values[:, done : done + self._length - row]
            there: Values = np.ndarray(
                some.shape,
                self.dtype,
                self._memory,
                self._place(column, page) + self._room + row * self.dtype.itemsize,
                (self._stride, self.dtype.itemsize),
            )
            there[...] = some
            done += some.shape[1]

    def _place(self, column: int, page: int) -> int:
        return column * self._stride + page * (self._length * self.dtype.itemsize + self._room)

    def pages(self, column: int) -> list[Page]:
        """Return the pages of one column."""
        found = []
        for page, first in enumerate(range(0, self.rows, self._length)):
            start = self._place(column, page)
            rows = min(self._length, self.rows - first)
            stop = start + self._room + rows * self.dtype.itemsize
            found.append(Page(first, rows, self.dtype, self._memory[start:stop]))
        return found

    @property
    def are_single(self) -> bool:
        """Whether each column is one page."""
        return 0 < self.rows <= self._length

    def single_pages(self, columns: Ints, nullable: Bools) -> LaidOut:
        """Return columns without nulls, each of which is one page.

        Args:
            columns: Which ones.
            nullable: Which of them have levels.
        """
        levels = np.frombuffer(equal_levels(self.rows, b"\x01"), np.uint8)
        room = np.where(nullable, len(levels), 0)
        if nullable.any():
            memory = np.frombuffer(self._memory, np.uint8).reshape(-1, self._stride)
            memory[columns[nullable], self._room - len(levels) : self._room] = levels
        start = columns * self._stride + self._room - room
        sizes = room + self.rows * self.dtype.itemsize
        bounds = zip(start.tolist(), (start + sizes).tolist(), strict=True)
        pages: list[Bytes] = [self._memory[first:stop] for first, stop in bounds]
        return LaidOut(pages, sizes, np.full(len(columns), self.rows), [1] * len(columns))

    def plain_pages(
        self, columns: Iterable[int], valid: Mapping[int, Bools], nullable: Sequence[bool]
    ) -> LaidOut:
        """Return any columns.

        Args:
            columns: Which ones.
            valid: Of those with nulls: which rows are not null.
            nullable: Of all columns: whether they have levels.
        """
        by_column = [(at, self.pages(at)) for at in columns]
        pages = [
            _plain(page, valid.get(at), nullable=nullable[at])
            for at, found in by_column
            for page in found
        ]
        return LaidOut(
            pages,
            np.array([len(page) for page in pages], np.int64),
            np.array([page.rows for _, found in by_column for page in found], np.int64),
            [len(found) for _, found in by_column],
        )


class PagedVectors:
    """A column of vectors, all of them there, laid out as pages of whole ones.

    They are this thread's scratch: good until the next ones are made.

    Args:
        rows: How many there are.
        size: Numbers in each.
        dtype: Of the numbers.
    """

    def __init__(self, rows: int, size: int, dtype: np.dtype[Any]) -> None:
        self.numbers = rows * size
        """Of all of them."""
        self._rows, self._size, self._dtype = rows, size, dtype
        self._length = max(PAGE_BYTES // (size * dtype.itemsize), 1)
        self._room = _aligned(len(_vector_levels(min(self._length, rows), size, 0)))
        self._stride = self._room + _aligned(self._length * size * dtype.itemsize)
        pages = -(-rows // self._length)
        self._memory = scratch(f"vectors {dtype}", pages * self._stride).data

    def tables(self) -> Iterator[Values]:
        """Yield the vectors of each page, shape `(rows, size)`, which are to be put there."""
        for place, first in enumerate(range(0, self._rows, self._length)):
            shape = min(self._length, self._rows - first), self._size
            at = place * self._stride + self._room
            yield np.ndarray(shape, self._dtype, self._memory, at)

    def laid_out(self, level: int) -> LaidOut:
        """Return the pages.

        Args:
            level: The definition level of a number that is there.
        """
        pages: list[Bytes] = []
        tables = list(self.tables())
        for place, table in enumerate(tables):
            levels = _vector_levels(len(table), self._size, level)
            stop = place * self._stride + self._room
            self._memory[stop - len(levels) : stop] = levels
            pages.append(self._memory[stop - len(levels) : stop + table.nbytes])
        sizes = np.array([len(page) for page in pages], np.int64)
        numbers = np.array([table.size for table in tables], np.int64)
        return LaidOut(pages, sizes, numbers, [len(pages)])


class LaidOut(NamedTuple):
    """Pages of some columns, not yet compressed, one column behind the other."""

    pages: list[Bytes]
    sizes: Ints
    """Bytes of each page."""
    rows: Ints
    """Of each page."""
    counts: Sequence[int]
    """Pages of each column."""


class Filled(NamedTuple):
    """Columns of one dtype whose values were all put in; they are this thread's scratch."""

    places: Sequence[int]
    """Which of some columns they are."""
    columns: PagedColumns
    valid: Mapping[int, Bools]
    """Of those with nulls, by number within `columns`: which rows are not null."""


@lru_cache
def _vector_levels(rows: int, size: int, level: int) -> bytes:
    """Return the levels of a page of vectors: where each begins, and that all numbers are there."""
    if size < _SHORT_VECTOR:
        bits = np.packbits(np.tile(np.arange(size) > 0, rows), bitorder="little")
        begins = thrift.as_varint(len(bits) << 1 | 1) + bits.tobytes()
    else:  # a run of one level 0, and one of the others
        begins = (b"\x02\x00" + thrift.as_varint((size - 1) << 1) + b"\x01") * rows
    return len(begins).to_bytes(4, "little") + begins + equal_levels(rows * size, bytes((level,)))


def page_lengths(rows: int, length: int) -> list[int]:
    """Return the rows of each page, if all but the last one are of one length."""
    return [min(length, rows - first) for first in range(0, rows, length)]


def filled_pages(
    values: npt.NDArray[Any],
    valid: Bools | None,
    lengths: Iterable[int],
    encode: Callable[[npt.NDArray[Any]], bytes],
    *,
    nullable: bool,
) -> Iterator[Bytes]:
    """Yield a column page by page, levels before the values where it may have nulls.

    Args:
        values: What is not null.
        valid: Which rows are not null; None if all are.
        lengths: Rows of each page.
        encode: Returns values as they stand in a page.
        nullable: Whether it may have nulls.
    """
    done = first = 0
    for rows in lengths:
        there = None if valid is None else valid[first : first + rows]
        filled = rows if there is None else int(np.count_nonzero(there))
        levels = levels_of(rows, there, filled) if nullable else b""
        yield levels + encode(values[done : done + filled])
        first, done = first + rows, done + filled


def levels_of(rows: int, valid: Bools | None, filled: int) -> bytes:
    """Return the definition levels of a page of which so many rows are filled."""
    if valid is None or filled == rows:
        return equal_levels(rows, b"\x01")
    return _levels(valid) if filled else equal_levels(rows, b"\x00")


def _plain(page: Page, valid: Bools | None, *, nullable: bool) -> Bytes:
    """Return the bytes of a page, not yet compressed; what is not null takes the place of all."""
    rows, room = page.rows, page.room
    if not nullable:
        return page.memory[room:]
    there = None if valid is None else valid[page.first : page.first + rows]
    filled = rows if there is None else int(np.count_nonzero(there))
    if there is not None and filled < rows:
        values = page.values
        # The places take one time however the nulls lie; a mask stops at each of them.
        values[:filled] = values.take(np.flatnonzero(there))
    levels = levels_of(rows, there, filled)
    start = room - len(levels)
    page.memory[start:room] = levels
    return page.memory[start : room + filled * page.dtype.itemsize]


def _levels(valid: Bools) -> bytes:
    """Return the definition levels of a page as one run of bits."""
    bits = np.packbits(valid, bitorder="little")
    run = thrift.as_varint(len(bits) << 1 | 1) + bits.tobytes()
    return len(run).to_bytes(4, "little") + run


def _aligned(size: int) -> int:
    """Return so many bytes, or a few more: processors take them faster from there on."""
    return -(-size // _ALIGNED) * _ALIGNED
