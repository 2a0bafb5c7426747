"""What a footer does not tell: how large pages, dictionaries and texts are. Samples tell it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import islice
from typing import BinaryIO, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from polar_etl.footers.chunk_table import ChunkTable
from polar_etl.footers.layout import Layout
from polar_etl.footers.schema import PHYSICAL
from polar_etl.pages.headers import PageSizes, page_at, pages_of

COLUMNS_SAMPLED = 32
"""Columns that are looked at, about."""
_SAMPLED_AT_A_TIME = 4
_WIDTHS = {"INT32": 4, "FLOAT": 4, "INT64": 8, "DOUBLE": 8}
"""Bytes of a number, by its type in Parquet."""
_EQUAL_LEVELS = 16
"""Bytes of levels before the values of a page, at most, if none of them is null."""
_ROWS_SAMPLED = 64
_SUSPICIOUS = 64
"""How many times longer than the first rows' the words of a dictionary are, where rows are few that
have none of them."""
_LONG_ROW = 1 << 16
"""Bytes of text in a row from which on one row is sample enough."""


def every(many: int, most: int = COLUMNS_SAMPLED) -> int:
    """Return which of so many columns are looked at: every so many-th one, about `most` of them."""
    return many // most + 1


class LargestPages(NamedTuple):
    """Bytes of the largest pages, and what they tell of nulls."""

    page: int = 0
    """Of values, or of places in a dictionary once they are looked up."""
    lookup: int = 0
    """Of a dictionary that is looked up."""
    nulls: bool = False
    """Whether there are pages of plain numbers that are not as long as their rows."""


class _Sampled(NamedTuple):
    """What is said of a chunk."""

    first: PageSizes | None
    """Its first page behind the dictionary; None if its header can't be read."""
    has_dictionary: bool
    dictionary: PageSizes | None
    """The same of this."""
    plain_size: int
    """Bytes before compression."""
    width: int
    """Bytes of a number; 0 if it holds none."""
    values: int


def page_sizes(
    file: BinaryIO,
    layout: Layout,
    table: ChunkTable,
    known: Collection[int] = (),
    most: int = COLUMNS_SAMPLED,
) -> LargestPages:
    """Return the sizes of pages of a file whose columns are scalars.

    Args:
        file: The file.
        layout: Of the file.
        table: What it is made of.
        known: Leaves of whose pages all is known: of them it is only asked what they claim.
        most: How many leaves are looked at, about.

    Raises:
        UnusualError: A page claims more than its chunk has.
    """
    if not any(table.rows):
        return LargestPages()
    largest, found = layout.largest, []
    for leaf in range(0, len(table.columns), every(len(table.columns), most)):
        start, stop, plain_size = layout.span(largest, leaf)
        pages = pages_of(file.fileno(), start, stop, plain_size)
        has_dictionary = start < table.data.item(largest, leaf)
        dictionary = next(pages, None) if has_dictionary else None
        first = next(pages, None)
        for _ in pages:  # none of them may claim too much
            pass
        width = _WIDTHS.get(PHYSICAL[table.columns[leaf].physical], 0)
        values = table.values.item(largest, leaf)
        if leaf not in known:
            found.append(_Sampled(first, has_dictionary, dictionary, plain_size, width, values))
    return _largest(found)


def sizes_by_arrow(file: BinaryIO, opened: pq.ParquetFile, layout: Layout | None) -> LargestPages:
    """Return the sizes of pages of any file.

    The footer does not tell them, but the pages' own headers do.

    Args:
        file: The file.
        opened: The same.
        layout: Of the file.
    """
    metadata = opened.metadata
    sampled = range(0, metadata.num_columns, every(metadata.num_columns))
    group = _largest_group(file, opened, layout, sampled)
    if group is None:
        return LargestPages()
    chunks = metadata.row_group(group)
    return _largest(_said_by_arrow(file, chunks.column(leaf)) for leaf in sampled)


def text_by_arrow(
    file: BinaryIO, opened: pq.ParquetFile, layout: Layout | None, leaves: Sequence[int]
) -> int:
    """Return the decoded bytes of leaves of variable width of any file, as far as samples tell.

    The footer tells the encoded bytes; a dictionary can make a thousand times as many, so some rows
    are decoded, too. Where the words of a dictionary are far longer than these rows, the later rows
    are taken to hold them.

    Args:
        file: The file.
        opened: The same.
        layout: Of the file.
        leaves: Which they are.
    """
    metadata, sampled = opened.metadata, leaves[:: every(len(leaves))]
    largest = _largest_group(file, opened, layout, sampled)
    if largest is None or not sampled:
        return 0
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    rows, chunks = metadata.num_rows, [groups[largest].column(leaf) for leaf in sampled]
    values = sum(int(_value_length(file, chunk) * rows) for chunk in chunks)
    alone = sum(max(chunk.total_uncompressed_size, 0) for chunk in chunks)
    size_of_largest = max(groups[largest].total_byte_size, 1)
    encoded = sum(
        alone * max(group.total_byte_size, 0) // size_of_largest
        for group in groups
        if group.num_rows > 0
    )
    few = 1 if encoded > _LONG_ROW * rows else _ROWS_SAMPLED
    decoded = sum(
        sum(_decoded_bytes(column, rows) for column in batch.columns)
        for batch in _first_rows(opened, largest, sampled, few)
    )
    size: int = max(encoded, decoded)
    if values > _SUSPICIOUS * size:
        size = values
    return size * len(leaves) // len(sampled)


def _largest_group(
    file: BinaryIO, opened: pq.ParquetFile, layout: Layout | None, leaves: Sequence[int]
) -> int | None:
    """Return the row group that has most rows, None if there are no rows.

    Where the layout does not tell where one of some leaves stands, a value of it is read: that
    raises an error where it is encrypted, while asking its footer would abort the process (PyArrow
    26). So other row groups are not asked, but taken to be alike.

    Raises:
        UnusualError: A page of one of these leaves claims more than its chunk has.
    """
    metadata = opened.metadata
    rows = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
    if not any(many > 0 for many in rows):
        return None
    largest = rows.index(max(rows))
    if layout:
        for leaf in leaves:
            layout.require_page_sizes(largest, leaf, file.fileno())
    unknown = [leaf for leaf in leaves if layout is None or not layout.tells_of(largest, leaf)]
    for batch in _first_rows(opened, largest, unknown, 1):
        del batch
    return largest


def _said_by_arrow(file: BinaryIO, chunk: pq.ColumnChunkMetaData) -> _Sampled:
    has_dictionary = chunk.has_dictionary_page
    dictionary = (
        page_at(file.fileno(), chunk.dictionary_page_offset or 0) if has_dictionary else None
    )
    return _Sampled(
        first=page_at(file.fileno(), chunk.data_page_offset),
        has_dictionary=has_dictionary,
        dictionary=dictionary,
        plain_size=max(chunk.total_uncompressed_size, 0),
        width=_WIDTHS.get(chunk.physical_type, 0),
        values=int(chunk.num_values),
    )


def _largest(chunks: Iterable[_Sampled]) -> LargestPages:
    """Return the largest sizes of first pages, and of dictionaries, of some chunks."""
    page, lookup, nulls = 0, 0, False
    for chunk in chunks:
        first = chunk.first
        decoded = chunk.width * min(first.values, chunk.values) if first else 0
        page = max(page, _page_size(first, chunk.plain_size), decoded)
        if chunk.has_dictionary:
            lookup = max(lookup, _page_size(chunk.dictionary, chunk.plain_size))
        else:
            nulls |= first is not None and _has_nulls(first, chunk.width)
    return LargestPages(page, lookup, nulls)


def _has_nulls(page: PageSizes, width: int) -> bool:
    """Tell whether there are nulls in a page, from its header and the bytes of a number."""
    if page.nulls is not None:
        return page.nulls > 0
    return width > 0 and not 0 <= page.size - width * page.values <= _EQUAL_LEVELS


def _page_size(page: PageSizes | None, most: int) -> int:
    """Return the size of a page of a chunk, or a usual size where its header says none."""
    return page.size if page and 0 <= page.size <= most else min(most, 1 << 20)


def _value_length(file: BinaryIO, chunk: pq.ColumnChunkMetaData) -> float:
    """Return the bytes of a value of a chunk's dictionary on average, 0 where there is none."""
    if not chunk.has_dictionary_page:
        return 0.0
    page = page_at(file.fileno(), chunk.dictionary_page_offset or 0)
    return page.size / max(page.values, 1) if page else 0.0


def _decoded_bytes(sample: pa.Array, rows: int) -> int:
    """Return the bytes of so many rows that are like `sample`, which has one dictionary for all."""
    if pa.types.is_dictionary(sample.type):
        return int(sample.indices.nbytes * rows // len(sample) + sample.dictionary.nbytes)
    return int(sample.nbytes * rows // len(sample))


def _first_rows(
    opened: pq.ParquetFile, group: int, columns: Sequence[int], rows: int
) -> Iterator[pa.RecordBatch]:
    """Yield the first rows of a row group, a few of its columns at a time."""
    for low in range(0, len(columns), _SAMPLED_AT_A_TIME):
        few = list(columns[low : low + _SAMPLED_AT_A_TIME])
        batches = opened.reader.iter_batches(
            rows, row_groups=[group], column_indices=few, use_threads=False
        )
        yield from (batch for batch in islice(batches, 1) if batch.num_rows)


def word_dictionaries(file: BinaryIO, layout: Layout, words: Iterable[int]) -> int:
    """Return the bytes of the dictionaries of some columns of text in the largest row group."""
    if not any(layout.rows):
        return 0
    largest, found = layout.largest, 0
    for leaf in (layout.leaves[place] for place in words):
        start, size = int(layout.start[largest, leaf]), int(layout.plain_size[largest, leaf])
        if start < layout.data[largest, leaf]:
            page = page_at(file.fileno(), start)
            found += min(page.size, size) if page else 0
    return found


def number_dictionaries(file: BinaryIO, layout: Layout, columns: Iterable[int]) -> int:
    """Return the bytes of the dictionaries of some columns in the row group where they are most.

    The footer tells what they take in the file, and a few headers how much larger they are.
    """
    leaves = [layout.leaves[column] for column in columns]
    stored = (layout.data - layout.start)[:, leaves]
    if not stored.any():
        return 0
    most = int(stored.sum(axis=1).argmax())
    filled = np.flatnonzero(stored[most]).tolist()
    larger = 1.0
    for place in filled[:: every(len(filled))]:
        page = page_at(file.fileno(), int(layout.start[most, leaves[place]]))
        larger = max(larger, page.size / stored[most, place] if page else 0)
    sizes = np.minimum(stored * larger, layout.plain_size[:, leaves])
    return int(sizes.sum(axis=1).max())
