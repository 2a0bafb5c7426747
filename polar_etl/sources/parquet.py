"""Parquet files, read as Arrow by PyArrow: untrusted bytes meet no other decoder."""

from __future__ import annotations

import hashlib
import os
import stat
from collections import deque
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from functools import cache, cached_property, partial
from itertools import accumulate, islice, pairwise
from threading import Lock
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from polar_etl.columns import Piece
from polar_etl.errors import InputError, describe
from polar_etl.features import first_length, open_lists, require_lengths
from polar_etl.pages import is_usual
from polar_etl.sources.base import Columns, Reading, SourceFile, Window
from polar_etl.sources.decoding import STREAM_BUFFER, FileColumns, ParquetFile, explained
from polar_etl.sources.layout import Layout, layout_of
from polar_etl.sources.schemas import checked_schema, difference, has_variable_width, leaves
from polar_etl.thrift import fields_of, number

_COLUMNS_SAMPLED = 32
_SAMPLED_AT_A_TIME = 4
_COLUMNS_PEEKED_AT = 256
_ROWS_SAMPLED = 64
_ROWS_LOOKED_AT = 256
_SUSPICIOUS = 64
"""How many times longer than the first rows' the words of a dictionary are, where rows are few that
have none of them."""
_LONG_ROW = 1 << 16
"""Bytes of text in a row from which on one row is sample enough."""


@dataclass(frozen=True, eq=False)
class ParquetSource:
    """Parquet files of one schema, in the given order."""

    schema: pa.Schema
    files: tuple[SourceFile, ...]
    lengths: Mapping[str, int] = field(default_factory=dict)
    """The length that all lists of a column must have."""
    _opened: dict[int, ParquetFile] = field(default_factory=dict, repr=False)
    """The files that were looked at last."""
    _layouts: dict[int, Layout | None] = field(default_factory=dict, repr=False)
    """That of the first file, until it is opened."""
    _lock: Lock = field(default_factory=Lock, repr=False)

    @classmethod
    def open(cls, paths: list[str]) -> ParquetSource:
        """Return the source over the files at `paths`, after reading every footer once.

        Raises:
            InputError: A file is missing, is no Parquet, or its schema differs from the first's.
        """
        found, schema = [], None
        layouts: dict[int, Layout | None] = {}
        for path in paths:
            file, own, layout = _inspect(path)
            if schema is None:
                schema = own
            elif text := difference(schema, own):
                raise InputError(
                    f"{describe(path)} differs in schema from {describe(paths[0])}: {text}. "
                    "All files of an input must have one schema: convert the file or leave it out."
                )
            else:
                schema = _nullable_where_either_is(schema, own)
            found.append(file)
            layouts = layouts or {0: layout}
        if schema is None:
            raise InputError("There is no Parquet file to read.")
        return cls(schema, tuple(found), _layouts=layouts)

    def fingerprint(self, *, full: bool = False) -> dict[str, object]:
        """Return path, size, mtime and footer hash of every file; when `full`, a hash of it all."""
        return {
            "files": [
                {"path": f.path, "size": f.size, "mtime_ns": f.mtime_ns, "footer": f.footer}
                | ({"contents": _hash(f.path)} if full else {})
                for f in self.files
            ]
        }

    def columns(self, names: Sequence[str], first: int, stop: int, how: Reading) -> Columns:
        """Return some columns of a range of rows, see `Source.columns`."""
        return _Columns(self, names, first, stop, how)

    def with_lengths(self, columns: Sequence[str], known: Mapping[str, int]) -> ParquetSource:
        """Return the source with the lists among `columns` of one length: a known or the first's.

        Raises:
            InputError: No list tells the length.
        """
        lists = open_lists(self.schema, columns)
        if not lists:
            return self
        lengths = {
            name: known.get(name) or first_length(self._rows_of(name), name) for name in lists
        }
        files = []
        for file in self.files:
            with _opened(file.path) as opened:
                variable, _ = _measure(file.path, opened, apart_from=lengths)
            files.append(replace(file, variable_bytes=variable))
        return replace(self, lengths=lengths, files=tuple(files))

    def _rows_of(self, column: str) -> Iterator[pa.Table]:
        few = Reading(group_rows=0, stream_rows=_ROWS_LOOKED_AT)
        rows = sum(file.rows for file in self.files)
        with closing(self.columns([column], 0, rows, few)) as columns:
            for first in range(0, rows, _ROWS_LOOKED_AT):
                window = columns.next(min(_ROWS_LOOKED_AT, rows - first))
                yield pa.table({column: window.column(column)})

    def opened(self, index: int) -> ParquetFile:
        """Return the file `index`, after a look at its footer."""
        with self._lock:
            if index not in self._opened:
                for other in set(self._opened) - {index - 1}:
                    del self._opened[other]
                self._opened[index] = self._described(index)
            return self._opened[index]

    def _described(self, index: int) -> ParquetFile:
        path = self.files[index].path
        footer = cache(partial(pq.read_metadata, path))
        if index in self._layouts:
            layout = self._layouts.pop(index)
        else:
            with explained(path):
                layout = layout_of(footer_bytes(path), self.schema)
        return ParquetFile(
            path=path,
            schema=self.schema,
            group_rows=self.files[index].group_rows,
            leaves=self._leaf_ranges,
            from_arrow=self.files[index].from_arrow,
            layout=layout,
            footer=footer,
        )

    def refuse_changes(self, file: int) -> None:
        """Check that a file is still the one that was planned for.

        Raises:
            InputError: It has changed.
        """
        found = self.files[file]
        with explained(found.path):
            now = os.stat(found.path)
        if (now.st_size, now.st_mtime_ns) != (found.size, found.mtime_ns):
            raise InputError(
                f"{describe(found.path)} has changed while it was being read. "
                "Run again with --overwrite when nothing writes to it any more."
            )

    @cached_property
    def _leaf_ranges(self) -> tuple[range, ...]:
        bounds = accumulate((leaves(column.type) for column in self.schema), initial=0)
        return tuple(range(start, stop) for start, stop in pairwise(bounds))


class _Columns:
    """Some columns of a range of rows, over as many files as it takes."""

    def __init__(
        self,
        source: ParquetSource,
        names: Sequence[str],
        first: int,
        stop: int,
        how: Reading,
    ) -> None:
        wanted = set(names)
        self._source, self._how = source, how
        self._places = {
            name: place for place, name in enumerate(source.schema.names) if name in wanted
        }
        offsets = accumulate((file.rows for file in source.files), initial=0)
        self._ahead = deque(
            (index, max(first - start, 0), min(stop, end) - start)
            for index, (start, end) in enumerate(pairwise(offsets))
            if max(first, start) < min(stop, end)
        )
        self._open: list[tuple[int, FileColumns]] = []
        """Files that the present window reaches into."""
        self._left = 0
        """Rows that the last of them still has."""

    def next(self, rows: int) -> Window:
        """Return the next rows; the window before is gone then."""
        for index, columns in self._open[: None if self._left == 0 else -1]:
            columns.close()
            self._source.refuse_changes(index)
        self._open = self._open[-1:] if self._left else []
        taken = 0
        while taken < rows:
            if not self._left:
                self._open_next()
            some = min(rows - taken, self._left)
            self._open[-1][1].advance(some)
            self._left -= some
            taken += some
        return _Window(rows, self._places, [columns for _, columns in self._open], self._source)

    def _open_next(self) -> None:
        index, low, high = self._ahead.popleft()
        self._source.refuse_changes(index)
        file = self._source.opened(index)
        groups, start = _groups_of(file.group_rows, low, high)
        places = list(self._places.values())
        self._open.append((index, FileColumns(file, places, groups, low - start, self._how)))
        self._left = high - low

    def close(self) -> None:
        """Let go of all files."""
        for _, columns in self._open:
            columns.close()
        self._open, self._left = [], 0
        self._ahead.clear()


@dataclass(frozen=True, slots=True)
class _Window:
    """The present rows of some columns of one or several files."""

    rows: int
    places: Mapping[str, int]
    parts: Sequence[FileColumns]
    source: ParquetSource

    def pieces(self, names: Sequence[str]) -> list[list[Piece]]:
        """Return columns of numbers."""
        places = [self.places[name] for name in names]
        if len(self.parts) == 1:
            return self.parts[0].pieces(places)
        by_part = [part.pieces(places) for part in self.parts]
        return [
            [piece for pieces in some for piece in pieces] for some in zip(*by_part, strict=True)
        ]

    def column(self, name: str) -> pa.ChunkedArray:
        """Return a column of any type."""
        place, lengths = self.places[name], self.source.lengths
        found = [part.column(place) for part in self.parts]
        if name in lengths:
            for part, column in zip(self.parts, found, strict=True):
                require_lengths(name, column, lengths[name], part.path, part.row)
        chunks = [chunk for column in found for chunk in column.iterchunks()]
        return pa.chunked_array(chunks, self.source.schema.field(place).type)


def _nullable_where_either_is(schema: pa.Schema, other: pa.Schema) -> pa.Schema:
    pairs = zip(schema, other, strict=True)
    columns = [column.with_nullable(column.nullable or also.nullable) for column, also in pairs]
    return pa.schema(columns, metadata=schema.metadata)


def _groups_of(rows: Sequence[int], first: int, stop: int) -> tuple[list[int], int]:
    """Return the row groups that hold the rows `first` … `stop`, and the first row of the first."""
    starts = list(accumulate(rows, initial=0))
    found = [i for i, n in enumerate(rows) if n and starts[i] < stop and starts[i] + n > first]
    return found, starts[found[0]] if found else 0


@contextmanager
def _opened(path: str) -> Iterator[pq.ParquetFile]:
    """Open a file for a look at it; what goes wrong with it becomes an `InputError`."""
    with (
        explained(path),
        pq.ParquetFile(path, pre_buffer=False, buffer_size=STREAM_BUFFER) as opened,
    ):
        yield opened


def _inspect(path: str) -> tuple[SourceFile, pa.Schema, Layout | None]:
    with explained(path):
        before = os.stat(path)
        if not stat.S_ISREG(before.st_mode):
            raise InputError(f"{describe(path)} is not a regular file.")
        with _opened(path) as opened:
            metadata, schema = opened.metadata, opened.schema_arrow
            variable, page_bytes = _measure(path, opened)
        footer = footer_bytes(path)
    schema = checked_schema(path, schema)
    if sum(leaves(column.type) for column in schema) != metadata.num_columns:
        raise InputError(
            f"{describe(path)} has {metadata.num_columns} columns in its footer and another "
            "number in its Arrow schema: write it again without the stored schema."
        )
    groups = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
    chunks = metadata.num_columns * len(groups)
    del metadata, opened  # a gigabyte, where there are 600,000 column chunks
    layout = layout_of(footer, schema)
    return (
        SourceFile(
            path=os.path.abspath(path),
            size=before.st_size,
            mtime_ns=before.st_mtime_ns,
            footer=hashlib.blake2b(footer, digest_size=16).hexdigest(),
            group_rows=tuple(groups),
            chunks=chunks,
            variable_bytes=variable,
            page_bytes=page_bytes,
            from_arrow=_from_arrow(path, layout, len(schema)),
        ),
        schema,
        layout,
    )


def _from_arrow(path: str, layout: Layout | None, columns: int) -> frozenset[int]:
    """Return the columns that PyArrow must decode, as far as footer and first pages tell."""
    if layout is None:
        return frozenset(range(columns))
    plain = layout.plain()
    if not plain or not any(layout.rows):
        return frozenset(range(columns)) - frozenset(plain)
    with explained(path), open(path, "rb", buffering=0) as file:

        def usual(column: int) -> bool:
            chunk = layout.chunk(largest, column)
            return chunk is not None and is_usual(chunk, file.fileno())

        largest = max(range(len(layout.rows)), key=layout.rows.__getitem__)
        sampled = plain[:: len(plain) // _COLUMNS_PEEKED_AT + 1]
        if not all(map(usual, sampled)):
            plain = list(filter(usual, plain))
    return frozenset(range(columns)) - frozenset(plain)


def _variable_leaves(schema: pa.Schema, apart_from: Container[str]) -> list[bool]:
    return [
        has_variable_width(column.type) and column.name not in apart_from
        for column in schema
        for _ in range(leaves(column.type))
    ]


def footer_bytes(path: str) -> bytes:
    """Return the footer of a Parquet file, its length and the magic bytes behind it included."""
    with open(path, "rb") as file:
        end = file.seek(0, os.SEEK_END)
        file.seek(max(end - 8, 0))
        length = int.from_bytes(file.read(4), "little")
        file.seek(max(end - 8 - length, 0))
        return file.read(length + 8)


def _hash(path: str) -> str:
    with explained(path), open(path, "rb") as file:
        return hashlib.file_digest(file, hashlib.blake2b).hexdigest()


def _measure(path: str, opened: pq.ParquetFile, apart_from: Container[str] = ()) -> tuple[int, int]:
    """Return the bytes of columns of variable width, and of the largest page, from samples.

    Of text the footer tells the encoded bytes; a dictionary can make a thousand times as many, so
    some rows are decoded, too. Where the words of a dictionary are far longer than these rows, the
    later rows are taken to hold them. How large pages are the footer does not tell, but their own
    headers do. One value of each sampled column is read first: that
    raises an error where a column is encrypted or damaged, while asking its footer would abort the
    process (PyArrow 26).
    """
    metadata = opened.metadata
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    filled = [i for i, group in enumerate(groups) if group.num_rows > 0]
    if not filled:
        return 0, 0
    variable = [
        i for i, wide in enumerate(_variable_leaves(opened.schema_arrow, apart_from)) if wide
    ]
    texts = variable[:: len(variable) // _COLUMNS_SAMPLED + 1]
    pages = range(0, metadata.num_columns, metadata.num_columns // _COLUMNS_SAMPLED + 1)
    largest = max(filled, key=lambda i: groups[i].num_rows)
    for batch in _first_rows(opened, largest, pages, 1):
        del batch
    found = values = 0
    rows = metadata.num_rows
    with open(path, "rb") as file:
        for index in pages:
            chunk = groups[largest].column(index)
            found = max(found, _page_size(file, chunk))
        for index in texts:
            values += int(_value_length(file, groups[largest].column(index)) * rows)
    encoded = sum(
        max(groups[i].column(index).total_uncompressed_size, 0) for i in filled for index in texts
    )
    few = 1 if encoded > _LONG_ROW * rows else _ROWS_SAMPLED
    decoded = sum(
        sum(_decoded_bytes(column, rows) for column in batch.columns)
        for batch in _first_rows(opened, largest, texts, few)
    )
    size = max(encoded, decoded)
    if values > _SUSPICIOUS * size:
        size = values
    return size * len(variable) // max(len(texts), 1), found


def _page_size(file: BinaryIO, chunk: pq.ColumnChunkMetaData) -> int:
    """Return the size of a chunk's first data page, or a usual size where its header says none."""
    most = max(chunk.total_uncompressed_size, 0)
    found = _page_header(file, chunk.data_page_offset).get(2, -1)
    return found if 0 <= found <= most else min(most, 1 << 20)


def _value_length(file: BinaryIO, chunk: pq.ColumnChunkMetaData) -> float:
    """Return the bytes of a value of a chunk's dictionary on average, 0 where there is none."""
    if not chunk.has_dictionary_page:
        return 0.0
    header = _page_header(file, chunk.dictionary_page_offset or 0)
    return header.get(2, 0) / max(header.get(71, 1), 1)


def _page_header(file: BinaryIO, place: int) -> dict[int, int]:
    """Return sizes of a page: field 2 of its header, decompressed, and 71, values in a dictionary.

    Raises nothing: a header that can't be read says nothing.
    """
    file.seek(max(place, 0))
    raw = file.read(512)
    try:
        outer, _ = fields_of(raw)
        found = {2: number(raw, outer[2])}
        if 7 in outer:
            found[71] = number(raw, fields_of(raw, outer[7].start)[0][1])
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
