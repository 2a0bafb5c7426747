"""What every source can tell and do, and the cutting of its rows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import pyarrow as pa

from polar_etl.columns import Piece, pieces_of
from polar_etl.pages.ahead import NONE_AHEAD, Ahead

_FILE_AS_CHUNKS = 16
"""What is held of a file besides its chunks, in chunks (measured: 13)."""
HELD_CHUNK = 100
"""Bytes that are held of a column chunk of plain numbers: where it stands."""
HELD_PART = 32
"""Where chunks of all files stand is held if that takes no more than such a part of the limit."""


class SourceFile(NamedTuple):
    """One file of a source, as its footer describes it."""

    path: str
    """Absolute path."""
    size: int
    mtime_ns: int
    footer: str
    """Hash of the footer, which holds the place and size of every column chunk."""
    group_rows: tuple[int, ...]
    """Rows of each row group."""
    chunks: int
    """Column chunks: leaf columns times row groups. What a decoded footer costs follows from it."""
    variable_bytes: int
    """Decoded bytes of columns of variable width, as far as samples tell, those aside whose words
    are counted apart."""
    page_bytes: int
    """Uncompressed bytes of the largest page of values among those looked at."""
    lookup_bytes: int = 0
    """Bytes of the largest dictionary among those looked at."""
    nulls: bool = False
    """Whether there are nulls between plain numbers, as far as was looked."""
    number_dictionaries: int = 0
    """Bytes of all dictionaries of numbers in the row group where these are most, except of columns
    that PyArrow must decode."""
    from_arrow: frozenset[int] = frozenset()
    """Places of the columns that PyArrow must decode; the others hold plain numbers."""
    words: frozenset[int] = frozenset()
    """Places of the columns of text that are decoded as words and their places."""
    word_bytes: int = 0
    """Bytes of a row of them, not compressed, in the row group where these are most."""
    dictionary_bytes: int = 0
    """Bytes of their words in a row group, which are held together."""
    whole_vectors: frozenset[int] = frozenset()
    """Places of columns of vectors of which the footer says that all of them are there, and that
    need not be decoded by PyArrow."""
    text_windows: tuple[int, ...] = ()
    """At place k: bytes of other text in 2^(k / 4) neighbouring rows, at most; empty if unknown."""
    text_page: int = 0
    """Bytes of the longest page or dictionary of it."""

    @property
    def rows(self) -> int:
        """Rows of the file."""
        return sum(self.group_rows)

    @property
    def held_chunks(self) -> int:
        """How many column chunks take as much memory as it takes to hold where its chunks stand."""
        return self.chunks + _FILE_AS_CHUNKS


class Reading(NamedTuple):
    """How rows are read: a trade between speed and memory that never changes what is read."""

    group_rows: int
    """Row groups up to this size are decoded whole by PyArrow, small ones together; 0: none is."""
    stream_rows: int
    """Rows that PyArrow decodes at a time from inside larger row groups."""
    keep_pages: bool = True
    """Whether what is left of a page of plain numbers is kept, rather than decoded again."""


class Window(Protocol):
    """Some rows of some columns, decoded column by column; each can be asked for once."""

    @property
    def rows(self) -> int:
        """How many there are."""

    def pieces(self, names: Sequence[str]) -> list[list[Piece]]:
        """Return columns of numbers; a few at a time is fastest.

        Raises:
            InputError: They can't be decoded.
        """

    def column(self, name: str) -> pa.ChunkedArray:
        """Return a column of any type.

        Raises:
            InputError: It can't be decoded.
        """

    def text(self, name: str) -> pa.ChunkedArray:
        """Return a column; one of text perhaps as words and their places, which may be smaller.

        Raises:
            InputError: It can't be decoded.
        """


class Columns(Protocol):
    """Some columns of a range of rows, read in step, in one thread at a time."""

    def next(self, rows: int, ahead: Ahead = NONE_AHEAD) -> Window:
        """Return the next rows; the window before is gone then.

        Args:
            rows: How many.
            ahead: Which ones behind them are held, rather than decoded again, if they are decoded
                with these and not kept.

        Raises:
            InputError: They can't be decoded.
        """

    def close(self) -> None:
        """Let go of all files."""


class Source(Protocol):
    """Where rows come from. Row order is part of a source's identity."""

    @property
    def schema(self) -> pa.Schema:
        """Names and Arrow types of the columns."""

    @property
    def files(self) -> tuple[SourceFile, ...]:
        """The files in row order."""

    @property
    def held_chunks(self) -> int:
        """For how many column chunks it is held where they stand, see `SourceFile.held_chunks`."""

    def fingerprint(self, *, full: bool = False) -> dict[str, object]:
        """Return a small JSON value that changes when the input does.

        Args:
            full: Whether all bytes are looked at, not only where they are and how many.

        Raises:
            InputError: The input can't be read.
        """

    def columns(self, names: Sequence[str], first: int, stop: int, how: Reading) -> Columns:
        """Return some columns of the rows `first` … `stop`, counted over all files.

        Args:
            names: Of the columns.
            first: First row.
            stop: Row behind the last one.
            how: Trade between speed and memory.
        """


@dataclass(frozen=True, slots=True)
class TableWindow:
    """A table as a window."""

    table: pa.Table

    @property
    def rows(self) -> int:
        """How many there are."""
        return int(self.table.num_rows)

    def pieces(self, names: Sequence[str]) -> list[list[Piece]]:
        """Return columns of numbers."""
        return [pieces_of(self.table.column(name)) for name in names]

    def column(self, name: str) -> pa.ChunkedArray:
        """Return a column of any type."""
        return self.table.column(name)

    def text(self, name: str) -> pa.ChunkedArray:
        """Return a column of any type."""
        return self.table.column(name)


class Cutter:
    """Cuts the rows of some tables into other lengths, without copying."""

    def __init__(self, tables: Iterable[pa.Table]) -> None:
        self._incoming = iter(tables)
        self._held: list[pa.Table] = []

    def take(self, rows: int) -> pa.Table | None:
        """Return the next rows, fewer where they end, None where there are none left."""
        there = sum(table.num_rows for table in self._held)
        while there < rows and (table := next(self._incoming, None)) is not None:
            self._held.append(table)
            there += table.num_rows
            del table
        if not there:
            return None
        whole = self._held[0] if len(self._held) == 1 else pa.concat_tables(self._held)
        self._held = [whole.slice(rows)] if there > rows else []
        return whole if there <= rows else whole.slice(0, rows)


def cut(tables: Iterable[pa.Table], lengths: Iterable[int]) -> Iterator[pa.Table]:
    """Yield the rows of `tables` again, cut into tables of the given lengths, without copying.

    The last table is shorter where the rows end before the lengths do.

    Example:
        >>> import pyarrow as pa
        >>> [len(t) for t in cut([pa.table({"x": range(5)})], [2, 2, 2])]
        [2, 2, 1]
    """
    cutter = Cutter(tables)
    for length in lengths:
        if (table := cutter.take(length)) is None:
            return
        yield table
        del table
