"""Columns of one Parquet file that PyArrow decodes, as tables.

It could share its work among threads itself, column by column. That takes half as long again where
column chunks are short (measured), so whoever wants several threads gives each columns of its own.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import chain

import pyarrow as pa
import pyarrow.parquet as pq

from polar_etl.footers.layout import Layout
from polar_etl.sources.base import Reading

STREAM_BUFFER = 1 << 16
"""Bytes of a file that are read at a time where columns are not read whole."""
_COLUMNS_AT_A_TIME = 128
_BYTES_AT_A_TIME = 1 << 22


def columns_at_a_time(rows: int) -> int:
    """Return how many columns of so many rows PyArrow reads at a time.

    It keeps a decompressor (0.1 MB) for each of them, and what it has read of all of them.
    """
    return min(max(_BYTES_AT_A_TIME // (8 * max(rows, 1)), 1), _COLUMNS_AT_A_TIME)


@dataclass(frozen=True, slots=True, weakref_slot=True, eq=False)
class ParquetFile:
    """One file, as its footer describes it."""

    path: str
    schema: pa.Schema
    group_rows: tuple[int, ...]
    leaves: tuple[range, ...]
    """Indices of the Parquet columns that each column consists of."""
    from_arrow: frozenset[int]
    """Places of the columns that PyArrow must decode."""
    layout: Layout | None
    """Where plain numbers stand; None where nobody knows."""
    words: frozenset[int]
    """Places of the columns of text that are decoded as words and their places: what a row group
    repeats is decoded once."""
    vectors: Mapping[int, int]
    """By the places of columns of vectors: how many numbers each of them has."""
    footer: Callable[[], pq.FileMetaData]
    """Returns the footer as PyArrow has it, which takes time and memory."""

    def leaves_of(self, places: Iterable[int]) -> list[int]:
        """Return the indices of the Parquet columns that some columns consist of."""
        return list(chain.from_iterable(self.leaves[place] for place in places))


class ArrowColumns:
    """Some columns of one file, decoded by PyArrow in one thread.

    Args:
        file: The file.
        groups: Its row groups that are read, in order.
        how: Trade between speed and memory.
    """

    def __init__(self, file: ParquetFile, groups: Sequence[int], how: Reading) -> None:
        self._file, self._groups, self._how = file, groups, how
        self._whole_groups: pq.ParquetFile | None = None

    def from_row(self, row: int, places: Sequence[int]) -> Iterator[pa.Table]:
        """Yield the rows of some columns from `row` on, counted from the start of the first group.

        Args:
            row: The first row that is wanted.
            places: Of the columns.
        """
        return _behind(row, self._tables(places))

    def _tables(self, places: Sequence[int]) -> Iterator[pa.Table]:
        rows = self._file.group_rows
        for groups in _stretches(self._groups, rows, self._how.group_rows):
            if rows[groups[0]] > self._how.group_rows:
                yield from self._inside(groups[0], places)
            else:
                yield self._whole(groups, places)

    def _whole(self, groups: list[int], places: Sequence[int]) -> pa.Table:
        """Return some columns of some row groups, a few of them decoded at a time."""
        many = columns_at_a_time(sum(self._file.group_rows[group] for group in groups))
        found: list[pa.ChunkedArray] = []
        self._whole_groups = self._whole_groups or self._opened(buffer_size=0)
        for low in range(0, len(places), many):
            table = self._whole_groups.reader.read_row_groups(
                groups,
                column_indices=self._file.leaves_of(places[low : low + many]),
                use_threads=False,
            )
            found += table.columns
        return pa.Table.from_arrays(found, names=[str(place) for place in places])

    def _inside(self, group: int, places: Sequence[int]) -> Iterator[pa.Table]:
        """Yield some columns of one row group, a few rows at a time."""
        with closing(self._opened(buffer_size=STREAM_BUFFER)) as opened:
            batches = opened.reader.iter_batches(
                self._how.stream_rows,
                row_groups=[group],
                column_indices=self._file.leaves_of(places),
                use_threads=False,
            )
            earlier = None
            for batch in batches:
                earlier = _with_words_of(pa.Table.from_batches([batch]), earlier)
                yield earlier

    def _opened(self, *, buffer_size: int) -> pq.ParquetFile:
        return pq.ParquetFile(
            for_arrow(self._file.path),
            metadata=self._file.footer(),
            pre_buffer=False,
            buffer_size=buffer_size,
            page_checksum_verification=True,
            read_dictionary=self._file.leaves_of(sorted(self._file.words)),
        )

    def close(self) -> None:
        """Let go of the file."""
        if self._whole_groups:
            self._whole_groups.close(force=True)
            self._whole_groups = None


def _with_words_of(table: pa.Table, earlier: pa.Table | None) -> pa.Table:
    """Return `table` with the dictionaries of an earlier one where they are equal.

    PyArrow gives each batch a copy of all words of its row group.
    """
    if earlier is None:
        return table
    columns = []
    for column, before in zip(table.columns, earlier.columns, strict=True):
        if pa.types.is_dictionary(column.type) and column.num_chunks == before.num_chunks == 1:
            (here,), words = column.chunks, before.chunk(0).dictionary
            if here.dictionary.equals(words):
                here = pa.DictionaryArray.from_arrays(
                    here.indices, words, ordered=here.type.ordered
                )
                column = pa.chunked_array([here])
        columns.append(column)
    return pa.Table.from_arrays(columns, names=table.column_names)


def _stretches(groups: Sequence[int], rows: Sequence[int], most: int) -> Iterator[list[int]]:
    """Yield the row groups that are decoded together: neighbours of up to `most` rows, or one."""
    held: list[int] = []
    held_rows = 0
    for group in groups:
        if held and held_rows + rows[group] > most:
            yield held
            held, held_rows = [], 0
        held.append(group)
        held_rows += rows[group]
    if held:
        yield held


def _behind(skip: int, tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Yield `tables` without their first `skip` rows."""
    for table in tables:
        if skip < table.num_rows:
            yield table.slice(skip)
        skip = max(skip - table.num_rows, 0)
        del table


def for_arrow(path: str) -> str | pa.NativeFile:
    """Return a file's path, or the file where its path is not UTF-8, which is all PyArrow takes."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return pa.OSFile(os.fsencode(path))
    return path
