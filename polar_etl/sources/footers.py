"""A first look at a Parquet file: its footer, its schema, and samples of what is in it."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import BinaryIO, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from polar_etl.columns import asked_once, by_column, listed, word_type
from polar_etl.errors import InputError, MemoryLimitError, describe
from polar_etl.headers import pages_of
from polar_etl.memory import format_size
from polar_etl.pages import is_usual
from polar_etl.sources.base import SourceFile
from polar_etl.sources.decoding import STREAM_BUFFER, explained, for_arrow
from polar_etl.sources.layout import Layout, layout_of
from polar_etl.sources.schemas import checked_schema, has_variable_width, leaf_ranges, leaves
from polar_etl.sources.texts import Texts, texts_in
from polar_etl.thrift import fields_of, number

_COLUMNS_SAMPLED = 32
_SAMPLED_AT_A_TIME = 4
_HOPELESS = 3
"""Limits up to so many times what the process has before a run are too small for any plan."""
_LOOK_COPIES = 5
"""How often a page is held while it is looked at (measured: 2 to 5)."""
_COLUMNS_PEEKED_AT = 128
_CHUNKS_LOOKED_THROUGH = 1 << 12
"""Chunks whose page headers are read in the time that a small run takes to start."""
_WIDTHS = {"INT32": 4, "FLOAT": 4, "INT64": 8, "DOUBLE": 8}
"""Bytes of a number, by its type in Parquet."""
_ROWS_SAMPLED = 64
_SUSPICIOUS = 64
"""How many times longer than the first rows' the words of a dictionary are, where rows are few that
have none of them."""
_LONG_ROW = 1 << 16
"""Bytes of text in a row from which on one row is sample enough."""


@contextmanager
def _opened(path: str) -> Iterator[pq.ParquetFile]:
    """Open a file for a look at it; what goes wrong with it becomes an `InputError`."""
    with (
        explained(path),
        pq.ParquetFile(for_arrow(path), pre_buffer=False, buffer_size=STREAM_BUFFER) as opened,
    ):
        yield opened


class Inspected(NamedTuple):
    """What a first look at a file shows."""

    file: SourceFile
    schema: pa.Schema
    layout: Layout | None


class Room(NamedTuple):
    """What a first look may take."""

    limit: int = 1 << 62
    """The memory limit, in bytes."""
    base: int = 0
    """Bytes that the process uses already."""

    def require(self, path: str, page: int) -> None:
        """Check that a page of so many bytes can be looked at.

        Where the limit is too small for any plan, a look is taken all the same, so that the refusal
        can say what would do.

        Raises:
            MemoryLimitError: It can't.
        """
        needed = self.base + _LOOK_COPIES * page
        if needed > max(self.limit, _HOPELESS * self.base):
            raise MemoryLimitError(
                f"The memory limit of {format_size(self.limit)} is too small: {describe(path)} "
                f"holds a page of {format_size(page)}, and decoding one takes {_LOOK_COPIES} times "
                "as much. Nothing was read or written. Use --memory-limit "
                f"{-(-needed // 10**6)}MB or more."
            )


UNLIMITED = Room()


def inspect(path: str, room: Room = UNLIMITED) -> Inspected:
    """Return what a first look at a file shows.

    Raises:
        InputError: It is missing, or no Parquet that can be handled.
    """
    with explained(path):
        before = os.stat(path)
        if not stat.S_ISREG(before.st_mode):
            raise InputError(f"{describe(path)} is not a regular file.")
    with explained(path), open(path, "rb") as raw:
        with _opened(path) as opened:
            metadata = opened.metadata
            schema = checked_schema(path, opened.schema_arrow)
            footer = footer_of(raw)
            layout = layout_of(footer, schema)
            words = _words_in(raw, layout, schema)
            apart = set(_names_of(schema, words))
            varying = _varying_leaves(schema)
            if layout:
                _require_room(raw, layout, varying, room)
            texts = _texts(raw, layout, schema, apart)
            unknown = [leaf for leaf, name in varying.items() if name not in apart]
            variable, page_bytes, lookup_bytes = _measure(raw, opened, layout, unknown, texts)
            dictionaries = _dictionary_bytes(raw, opened, layout, words) if layout else 0
        if sum(asked_once(leaves, listed(schema)[1])) != metadata.num_columns:
            raise InputError(
                f"{describe(path)} has {metadata.num_columns} columns in its footer and another "
                "number in its Arrow schema: write it again without the stored schema."
            )
        groups = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
        if min(groups, default=0) < 0 or sum(groups) != metadata.num_rows:
            raise InputError(
                f"{describe(path)} is damaged: its footer tells of {metadata.num_rows} rows, "
                f"and of {sum(groups)} in its row groups."
            )
        chunks = metadata.num_columns * len(groups)
        del metadata, opened  # a gigabyte, where there are 600,000 column chunks
        from_arrow = _from_arrow(raw, layout, len(schema))
        ours = [place for place in range(len(schema)) if place not in from_arrow]
        number_dictionaries = _number_dictionaries(raw, layout, ours) if layout else 0
    return Inspected(
        SourceFile(
            path=os.path.abspath(path),
            size=before.st_size,
            mtime_ns=before.st_mtime_ns,
            footer=hashlib.blake2b(footer, digest_size=16).hexdigest(),
            group_rows=tuple(groups),
            chunks=chunks,
            variable_bytes=variable,
            text_windows=texts.windows,
            text_page=texts.longest,
            page_bytes=page_bytes,
            lookup_bytes=lookup_bytes,
            number_dictionaries=number_dictionaries,
            from_arrow=from_arrow,
            words=words,
            word_bytes=_word_bytes(layout, words) if layout else 0,
            dictionary_bytes=dictionaries,
        ),
        schema,
        layout,
    )


def _require_room(file: BinaryIO, layout: Layout, varying: Iterable[int], room: Room) -> None:
    """Check that there is room to look at the leaves that are looked at: see `_measure`.

    Raises:
        MemoryLimitError: There is not.
        UnusualError: A page claims more than its chunk has.
    """
    if not any(layout.rows):
        return
    largest = max(range(len(layout.rows)), key=layout.rows.__getitem__)
    variable = list(varying)
    for leaf in variable[:: len(variable) // _COLUMNS_SAMPLED + 1]:
        pages = pages_of(file.fileno(), *layout.span(largest, leaf))
        room.require(file.name, max((page.size for page in pages), default=0))


def _words_in(file: BinaryIO, layout: Layout | None, schema: pa.Schema) -> frozenset[int]:
    """Return the places of columns of text that are decoded as words and their places.

    Some writers don't say in the footer that a chunk holds nothing but places; the page headers of
    as many chunks are asked as take no time.
    """
    if layout is None:
        return frozenset()
    kinds = asked_once(word_type, listed(schema)[1])
    text = [place for place, kind in enumerate(kinds) if kind]
    few = len(text) * len(layout.rows) <= _CHUNKS_LOOKED_THROUGH
    asked = file.fileno() if few else None
    return frozenset(place for place in text if layout.holds_words(place, asked))


def _names_of(schema: pa.Schema, places: Iterable[int]) -> list[str]:
    names, _ = listed(schema)
    return [names[place] for place in places]


def _texts(
    file: BinaryIO, layout: Layout | None, schema: pa.Schema, apart_from: Collection[str]
) -> Texts:
    """Return how much text a file holds; nothing where its pages don't tell."""
    wide = by_column(has_variable_width, schema).items()
    places = [at for at, (name, varies) in enumerate(wide) if varies and name not in apart_from]
    if layout is None or not places or any(_is_nested(schema.field(p).type) for p in places):
        return Texts()
    sampled = places[:: len(places) // _COLUMNS_SAMPLED + 1]
    windows, longest = texts_in(file, layout, [layout.leaves[place] for place in sampled])
    return Texts(tuple(size * len(places) // len(sampled) for size in windows), longest)


def _is_nested(kind: pa.DataType) -> bool:
    """Tell whether values of variable width are more than text that is decoded as it stands."""
    return word_type(kind) is None or pa.types.is_dictionary(kind)


def _word_bytes(layout: Layout, words: Iterable[int]) -> int:
    """Return the bytes of a row of some columns in the row group where these are most."""
    leaves = [layout.leaves[place] for place in words]
    rows = np.maximum(np.array(layout.rows, np.int64), 1)
    return int((layout.plain_size[:, leaves].sum(axis=1) / rows).max(initial=0))


def _dictionary_bytes(
    file: BinaryIO, opened: pq.ParquetFile, layout: Layout, words: Iterable[int]
) -> int:
    """Return the bytes of the dictionaries of some columns in the largest row group."""
    if not any(layout.rows):
        return 0
    largest = max(range(len(layout.rows)), key=layout.rows.__getitem__)
    group, found = opened.metadata.row_group(largest), 0
    for leaf in (layout.leaves[place] for place in words):
        chunk = group.column(leaf)
        if chunk.has_dictionary_page:
            size = _page_header(file, chunk.dictionary_page_offset or 0).get(2, 0)
            found += min(size, int(layout.plain_size[largest, leaf]))
    return found


def _from_arrow(file: BinaryIO, layout: Layout | None, columns: int) -> frozenset[int]:
    """Return the columns that PyArrow must decode, as far as footer and first pages tell."""
    everything = frozenset(range(columns))
    if layout is None:
        return everything
    plain = layout.plain()
    if plain and any(layout.rows):
        most = max(layout.rows)
        large = [group for group, rows in enumerate(layout.rows) if rows == most]
        groups = sorted({large[0], large[len(large) // 2]})  # what is rare at first may be common

        def usual(column: int) -> bool:
            chunks = (layout.chunk(group, column) for group in groups)
            return all(chunk is not None and is_usual(chunk, file.fileno()) for chunk in chunks)

        if not all(map(usual, plain[:: len(plain) // _COLUMNS_PEEKED_AT + 1])):
            plain = list(filter(usual, plain))
    return everything - frozenset(plain)


def _number_dictionaries(file: BinaryIO, layout: Layout, columns: Iterable[int]) -> int:
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
    for place in filled[:: len(filled) // _COLUMNS_SAMPLED + 1]:
        header = _page_header(file, int(layout.start[most, leaves[place]]))
        larger = max(larger, header.get(2, 0) / stored[most, place])
    sizes = np.minimum(stored * larger, layout.plain_size[:, leaves])
    return int(sizes.sum(axis=1).max())


def _varying_leaves(schema: pa.Schema) -> dict[int, str]:
    """Return the leaves of columns of variable width, with the names of these."""
    varying = by_column(has_variable_width, schema).items()
    return {
        leaf: name
        for (name, varies), some in zip(varying, leaf_ranges(schema), strict=True)
        if varies
        for leaf in some
    }


def footer_of(file: BinaryIO) -> bytes:
    """Return the footer of a Parquet file, its length and the magic bytes behind it included."""
    end = file.seek(0, os.SEEK_END)
    file.seek(max(end - 8, 0))
    length = int.from_bytes(file.read(4), "little")
    file.seek(max(end - 8 - length, 0))
    return file.read(length + 8)


def texts_of(path: str, apart_from: Collection[str]) -> tuple[int, Texts]:
    """Return the decoded bytes of columns of variable width, by samples and by page headers.

    Raises:
        InputError: The file can't be read.
    """
    with explained(path), _opened(path) as opened, open(path, "rb") as raw:
        schema = opened.schema_arrow
        layout = layout_of(footer_of(raw), schema)
        apart = {*apart_from, *_names_of(schema, _words_in(raw, layout, schema))}
        texts = _texts(raw, layout, schema, apart)
        unknown = [leaf for leaf, name in _varying_leaves(schema).items() if name not in apart]
        return _measure(raw, opened, layout, unknown, texts)[0], texts


def _measure(
    file: BinaryIO,
    opened: pq.ParquetFile,
    layout: Layout | None,
    variable: Sequence[int],
    known: Texts,
) -> tuple[int, int, int]:
    """Return the bytes of leaves of variable width, of the largest page, and of a dictionary.

    Pages of text are left out where all is known of them.

    Of text the footer tells the encoded bytes; a dictionary can make a thousand times as many, so
    some rows are decoded, too. Where the words of a dictionary are far longer than these rows, the
    later rows are taken to hold them. How large pages are the footer does not tell, but their own
    headers do. Where the layout does not tell where a sampled column stands, a value of it is read
    first: that raises an error where it is encrypted, while asking its footer would abort the
    process (PyArrow 26). So other row groups are not asked, but taken to be alike.
    """
    metadata = opened.metadata
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    filled = [i for i, group in enumerate(groups) if group.num_rows > 0]
    if not filled:
        return 0, 0, 0
    texts = variable[:: len(variable) // _COLUMNS_SAMPLED + 1]
    pages = range(0, metadata.num_columns, metadata.num_columns // _COLUMNS_SAMPLED + 1)
    largest = max(filled, key=lambda i: groups[i].num_rows)
    sampled = sorted({*pages, *texts})
    if layout:
        for leaf in sampled:
            layout.require_page_sizes(largest, leaf, file.fileno())
    unknown = [leaf for leaf in sampled if layout is None or not layout.tells_of(largest, leaf)]
    for batch in _first_rows(opened, largest, unknown, 1):
        del batch
    found = lookup = values = 0
    rows = metadata.num_rows
    for index in sorted(set(pages).difference(variable if known.windows else ())):
        chunk = groups[largest].column(index)
        found = max(found, _page_size(file, chunk, chunk.data_page_offset))
        found = max(found, _looked_up_bytes(file, chunk))
        if chunk.has_dictionary_page:
            lookup = max(lookup, _page_size(file, chunk, chunk.dictionary_page_offset or 0))
    for index in texts:
        values += int(_value_length(file, groups[largest].column(index)) * rows)
    alone = sum(max(groups[largest].column(i).total_uncompressed_size, 0) for i in texts)
    size_of_largest = max(groups[largest].total_byte_size, 1)
    encoded = sum(alone * max(groups[i].total_byte_size, 0) // size_of_largest for i in filled)
    few = 1 if encoded > _LONG_ROW * rows else _ROWS_SAMPLED
    decoded = sum(
        sum(_decoded_bytes(column, rows) for column in batch.columns)
        for batch in _first_rows(opened, largest, texts, few)
    )
    size = max(encoded, decoded)
    if values > _SUSPICIOUS * size:
        size = values
    return size * len(variable) // max(len(texts), 1), found, lookup


def _page_size(file: BinaryIO, chunk: pq.ColumnChunkMetaData, place: int) -> int:
    """Return the size of a page of a chunk, or a usual size where its header says none."""
    most = max(chunk.total_uncompressed_size, 0)
    found = _page_header(file, place).get(2, -1)
    return found if 0 <= found <= most else min(most, 1 << 20)


def _looked_up_bytes(file: BinaryIO, chunk: pq.ColumnChunkMetaData) -> int:
    """Return the bytes of the first page of a chunk when its numbers are looked up."""
    width = _WIDTHS.get(chunk.physical_type, 0) if chunk.has_dictionary_page else 0
    values = _page_header(file, chunk.data_page_offset).get(51, 0)
    return width * min(values, int(chunk.num_values))


def _value_length(file: BinaryIO, chunk: pq.ColumnChunkMetaData) -> float:
    """Return the bytes of a value of a chunk's dictionary on average, 0 where there is none."""
    if not chunk.has_dictionary_page:
        return 0.0
    header = _page_header(file, chunk.dictionary_page_offset or 0)
    return header.get(2, 0) / max(header.get(71, 1), 1)


def _page_header(file: BinaryIO, place: int) -> dict[int, int]:
    """Return sizes of a page: field 2 of its header, decompressed; its values, 51 or 71.

    The latter are those of a dictionary.
    Raises nothing: a header that can't be read says nothing.
    """
    file.seek(max(place, 0))
    raw = file.read(512)
    try:
        outer, _ = fields_of(raw)
        found = {2: number(raw, outer[2])}
        for kind in (5, 7):
            if kind in outer:
                found[10 * kind + 1] = number(raw, fields_of(raw, outer[kind].start)[0][1])
    except (ValueError, KeyError, IndexError):
        return {}
    return found


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
