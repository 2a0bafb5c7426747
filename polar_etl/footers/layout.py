"""Where the column chunks of a Parquet file stand, and which of them hold plain numbers."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from polar_etl.columns import listed
from polar_etl.footers.chunk_table import WORDS, ChunkTable, chunk_table
from polar_etl.footers.schema import PHYSICAL, FooterColumn
from polar_etl.pages.files import CODECS
from polar_etl.pages.headers import pages_of
from polar_etl.pages.values import Chunk, stored_dtype

Ints = npt.NDArray[np.int64]

_MOST_KEPT = 1 << 12
"""Columns, at most, of which it is kept what they are, in case that the next file has the same."""


class Layout(NamedTuple):
    """The chunks of one file; the arrays have shape (row groups, leaves of the schema)."""

    rows: tuple[int, ...]
    """Rows of each row group."""
    start: Ints
    data: Ints
    """Where the first page behind the dictionary stands: at `start` if there is no dictionary."""
    stop: Ints
    plain_size: Ints
    """Bytes of the chunks before compression, headers included."""
    codec: Ints
    """Number of the codec; -1 where a chunk holds no numbers, or these in a rare encoding."""
    words: npt.NDArray[np.bool_]
    """Whether all that a chunk of no numbers holds are places in its dictionary. Of other pages
    PyArrow makes words as well, but keeps all of them to the end of the row group."""
    leaves: Sequence[int]
    """Of each column: its first leaf."""
    nullable: tuple[bool, ...]
    """Of each column: whether levels stand before its values."""
    stored: tuple[np.dtype[np.generic] | None, ...]
    """Of each column: the dtype of its bytes, None if it holds no numbers."""

    @property
    def largest(self) -> int:
        """The row group that has most rows; there must be one."""
        return max(range(len(self.rows)), key=self.rows.__getitem__)

    def plain(self) -> list[int]:
        """Return the columns that hold plain numbers wherever they hold any rows."""
        filled = np.array(self.rows, np.int64) > 0
        codec = self.codec[filled][:, list(self.leaves)]
        return np.flatnonzero((codec >= 0).all(axis=0)).tolist()

    def holds_numbers(self, groups: Sequence[int], column: int) -> bool:
        """Tell whether a column holds plain numbers in all of some row groups."""
        codec = self.codec[groups, self.leaves[column]]
        return self.stored[column] is not None and bool((codec >= 0).all())

    def holds_words(self, column: int, file: int | None = None) -> bool:
        """Tell whether all that a column of text holds are places in dictionaries.

        Args:
            column: The column.
            file: Descriptor of the file; its page headers are asked where the footer does not tell.

        Raises:
            UnusualError: A page header is damaged.
        """
        leaf = self.leaves[column]
        filled = [group for group, rows in enumerate(self.rows) if rows]
        return bool(filled) and all(
            bool(self.words[group, leaf])
            or (file is not None and self._has_places_only(file, group, leaf))
            for group in filled
        )

    def _has_places_only(self, file: int, group: int, leaf: int) -> bool:
        if self.data[group, leaf] <= self.start[group, leaf]:
            return False
        pages = pages_of(file, *self.span(group, leaf))
        return all(page.encoding is None or page.encoding in WORDS for page in pages)

    def require_page_sizes(self, group: int, leaf: int, file: int) -> None:
        """Check that no page of a chunk claims more memory than the whole chunk needs.

        Raises:
            UnusualError: One does.
        """
        for _ in pages_of(file, *self.span(group, leaf)):
            pass

    def tells_of(self, group: int, leaf: int) -> bool:
        """Tell whether it is known where a chunk stands: not if it is encrypted."""
        return bool(self.stop[group, leaf] > self.start[group, leaf])

    def span(self, group: int, leaf: int) -> tuple[int, int, int]:
        """Return where a chunk begins and ends, and its bytes before compression."""
        found = (self.start[group, leaf], self.stop[group, leaf], self.plain_size[group, leaf])
        return int(found[0]), int(found[1]), int(found[2])

    def chunk(self, group: int, column: int) -> Chunk | None:
        """Return where a column's plain values stand, None if PyArrow must read them."""
        leaf = self.leaves[column]
        stored, codec = self.stored[column], self.codec.item(group, leaf)
        if codec < 0 or stored is None:
            return None
        return Chunk(
            start=self.start.item(group, leaf),
            stop=self.stop.item(group, leaf),
            rows=self.rows[group],
            codec=CODECS[codec],
            nullable=self.nullable[column],
            stored=stored,
            data=self.data.item(group, leaf),
        )


def layout_of(footer: bytes, schema: pa.Schema) -> Layout | None:
    """Return the layout of a file, None if its footer is too unusual to tell.

    Args:
        footer: Bytes of the Thrift struct `FileMetaData`.
        schema: The columns that PyArrow sees.
    """
    table = chunk_table(footer)
    return table and laid_out(table, schema)


def laid_out(table: ChunkTable, schema: pa.Schema) -> Layout | None:
    """Return the layout of chunks of these columns, None if the schema has others."""
    if len(table.columns) != len(schema):
        return None
    forms = _forms(table.columns, schema)
    whole = table.values == np.array(table.rows, np.int64)[:, None]
    return Layout(
        rows=table.rows,
        start=table.start,
        data=table.data,
        stop=table.stop,
        plain_size=table.plain_size,
        words=table.words,
        codec=np.where(whole & forms.numbers, table.codec, -1),
        leaves=forms.leaves,
        nullable=forms.nullable,
        stored=forms.stored,
    )


class _Forms(NamedTuple):
    """What the same columns have in common in all files."""

    columns: tuple[FooterColumn, ...]
    schema: pa.Schema
    leaves: Sequence[int]
    nullable: tuple[bool, ...]
    stored: tuple[np.dtype[np.generic] | None, ...]
    numbers: npt.NDArray[np.bool_]
    """Of each leaf: whether its column holds numbers."""


_recent: list[_Forms] = []
"""Those of the last file, unless they are many."""


def _forms(columns: tuple[FooterColumn, ...], schema: pa.Schema) -> _Forms:
    for known in _recent:
        if known.columns is columns and known.schema is schema:
            return known
    stored = tuple(
        stored_dtype(kind, PHYSICAL[column.physical]) if column.is_scalar else None
        for column, kind in zip(columns, listed(schema)[1], strict=True)
    )
    numbers = [s is not None for s, c in zip(stored, columns, strict=True) for _ in range(c.leaves)]
    first = accumulate((column.leaves for column in columns[:-1]), initial=0)
    alone = all(column.leaves == 1 for column in columns)
    found = _Forms(
        columns=columns,
        schema=schema,
        leaves=range(len(columns)) if alone else tuple(first),  # a tuple takes as much as all else
        nullable=tuple(column.nullable for column in columns),
        stored=stored,
        numbers=np.array(numbers, np.bool_),
    )
    _recent[:] = [found][: len(columns) <= _MOST_KEPT]
    return found
