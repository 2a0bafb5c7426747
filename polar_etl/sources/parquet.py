"""Parquet files, read as Arrow by PyArrow: untrusted bytes meet no other decoder."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import islice

import pyarrow as pa
import pyarrow.parquet as pq

from polar_etl.errors import InputError, describe
from polar_etl.features import first_length, of_equal_lengths, open_lists
from polar_etl.sources.base import Reading, SourceFile
from polar_etl.sources.decoding import STREAM_BUFFER, Decoder, explained
from polar_etl.sources.schemas import checked_schema, difference, has_variable_width, leaves

_COLUMNS_SAMPLED = 32
_SAMPLED_AT_A_TIME = 4
_ROWS_SAMPLED = 64
_LONG_ROW = 1 << 16
"""Bytes of text in a row from which on one row is sample enough."""


@dataclass(frozen=True, eq=False)
class ParquetSource:
    """Parquet files of one schema, in the given order."""

    schema: pa.Schema
    files: tuple[SourceFile, ...]
    lengths: Mapping[str, int] = field(default_factory=dict)
    """The length that all lists of a column must have."""
    _footers: dict[int, pq.FileMetaData] = field(default_factory=dict, repr=False)

    @classmethod
    def open(cls, paths: list[str]) -> ParquetSource:
        """Return the source over the files at `paths`, after reading every footer once.

        Raises:
            InputError: A file is missing, is no Parquet, or its schema differs from the first's.
        """
        found, schema = [], None
        footers: dict[int, pq.FileMetaData] = {}
        for index, path in enumerate(paths):
            metadata, file, own = _inspect(path)
            if schema is None:
                schema = own
            elif text := difference(schema, own):
                raise InputError(
                    f"{describe(path)} differs in schema from {describe(paths[0])}: {text}. "
                    "All files of an input must have one schema: convert the file or leave it out."
                )
            found.append(file)
            footers = {index: metadata}
        if schema is None:
            raise InputError("There is no Parquet file to read.")
        return cls(schema, tuple(found), _footers=footers)

    def fingerprint(self, *, full: bool = False) -> dict[str, object]:
        """Return path, size, mtime and footer hash of every file; when `full`, a hash of it all."""
        return {
            "files": [
                {"path": f.path, "size": f.size, "mtime_ns": f.mtime_ns, "footer": f.footer}
                | ({"contents": _hash(f.path)} if full else {})
                for f in self.files
            ]
        }

    def read(
        self, file: int, first: int, stop: int, columns: list[str] | None, how: Reading
    ) -> Iterator[pa.Table]:
        """Yield the rows `first` … `stop` of a file, see `Source.read`."""
        tables = self._read(file, first, stop, columns, how)
        if self.lengths:
            tables = of_equal_lengths(tables, self.lengths, self.files[file].path, first)
        return tables

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
        few = Reading(threads=1, group_rows=0, stream_rows=256)
        for index, file in enumerate(self.files):
            yield from self._read(index, 0, file.rows, [column], few)

    def _read(
        self, file: int, first: int, stop: int, columns: list[str] | None, how: Reading
    ) -> Iterator[pa.Table]:
        self._refuse_changes(file)
        rows = self.files[file].group_rows
        decoder = self._decoder(file, columns, how)
        for start, groups in _stretches(rows, first, stop, how.group_rows):
            alone = rows[groups[0]] > how.group_rows
            tables = decoder.inside(groups[0]) if alone else decoder.whole(groups)
            yield from self._window(tables, start, first, stop)
        self._refuse_changes(file)

    def _window(
        self, tables: Iterator[pa.Table], start: int, first: int, stop: int
    ) -> Iterator[pa.Table]:
        for table in tables:
            low, high = max(first - start, 0), min(stop - start, table.num_rows)
            start += table.num_rows
            if low < high:
                yield table if high - low == table.num_rows else table.slice(low, high - low)
            del table
            if start >= stop:
                return

    def _decoder(self, file: int, columns: list[str] | None, how: Reading) -> Decoder:
        path = self.files[file].path
        if file not in self._footers:
            self._footers.clear()
            with explained(path):
                self._footers[file] = pq.read_metadata(path)
        wanted = set(self.schema.names if columns is None else columns)
        schema = pa.schema([column for column in self.schema if column.name in wanted])
        ranges = tuple(self._leaf_ranges[name] for name in schema.names)
        return Decoder(path, self._footers[file], schema, ranges, how)

    def _refuse_changes(self, file: int) -> None:
        found = self.files[file]
        with explained(found.path):
            now = os.stat(found.path)
        if (now.st_size, now.st_mtime_ns) != (found.size, found.mtime_ns):
            raise InputError(
                f"{describe(found.path)} has changed while it was being read. "
                "Run again with --overwrite when nothing writes to it any more."
            )

    @cached_property
    def _leaf_ranges(self) -> dict[str, range]:
        ranges, start = {}, 0
        for column in self.schema:
            count = leaves(column.type)
            ranges[column.name] = range(start, start + count)
            start += count
        return ranges


def _stretches(
    rows: Sequence[int], first: int, stop: int, most: int
) -> Iterator[tuple[int, list[int]]]:
    """Yield (first row, row groups) of what is decoded together to get the rows `first` … `stop`.

    Neighbours go together up to `most` rows; a row group of more rows goes alone.
    """
    held: list[int] = []
    start = held_from = held_rows = 0
    for index, length in enumerate(rows):
        if length and start < stop and start + length > first:
            if held and held_rows + length > most:
                yield held_from, held
                held, held_rows = [], 0
            held_from = held_from if held else start
            held.append(index)
            held_rows += length
        start += length
    if held:
        yield held_from, held


@contextmanager
def _opened(path: str) -> Iterator[pq.ParquetFile]:
    """Open a file for a look at it; what goes wrong with it becomes an `InputError`."""
    with (
        explained(path),
        pq.ParquetFile(path, pre_buffer=False, buffer_size=STREAM_BUFFER) as opened,
    ):
        yield opened


def _inspect(path: str) -> tuple[pq.FileMetaData, SourceFile, pa.Schema]:
    with explained(path):
        before = os.stat(path)
        if not stat.S_ISREG(before.st_mode):
            raise InputError(f"{describe(path)} is not a regular file.")
        with _opened(path) as opened:
            metadata, schema = opened.metadata, opened.schema_arrow
            variable, page_bytes = _measure(path, opened)
        footer = _footer_hash(path)
    schema = checked_schema(path, schema)
    if sum(leaves(column.type) for column in schema) != metadata.num_columns:
        raise InputError(
            f"{describe(path)} has {metadata.num_columns} columns in its footer and another "
            "number in its Arrow schema: write it again without the stored schema."
        )
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    return (
        metadata,
        SourceFile(
            path=os.path.abspath(path),
            size=before.st_size,
            mtime_ns=before.st_mtime_ns,
            footer=footer,
            group_rows=tuple(group.num_rows for group in groups),
            chunks=metadata.num_columns * len(groups),
            variable_bytes=variable,
            page_bytes=page_bytes,
        ),
        schema,
    )


def _variable_leaves(schema: pa.Schema, apart_from: Container[str]) -> list[bool]:
    return [
        has_variable_width(column.type) and column.name not in apart_from
        for column in schema
        for _ in range(leaves(column.type))
    ]


def _footer_hash(path: str) -> str:
    with open(path, "rb") as file:
        end = file.seek(0, os.SEEK_END)
        file.seek(max(end - 8, 0))
        length = int.from_bytes(file.read(4), "little")
        file.seek(max(end - 8 - length, 0))
        return hashlib.blake2b(file.read(length + 8), digest_size=16).hexdigest()


def _hash(path: str) -> str:
    with explained(path), open(path, "rb") as file:
        return hashlib.file_digest(file, hashlib.blake2b).hexdigest()


def _measure(path: str, opened: pq.ParquetFile, apart_from: Container[str] = ()) -> tuple[int, int]:
    """Return the bytes of columns of variable width, and of the largest page, from samples.

    Of text the footer tells the encoded bytes; a dictionary can make a thousand times as many, so
    some rows are decoded, too. How large pages are it does not tell, but their headers do: a Thrift
    struct that begins with type and size. One value of each sampled column is read first: that
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
    found = 0
    with open(path, "rb") as file:
        for index in pages:
            chunk = groups[largest].column(index)
            file.seek(max(chunk.data_page_offset, 0))
            found = max(found, _page_size(file.read(16), chunk.total_uncompressed_size))
    encoded = sum(
        max(groups[i].column(index).total_uncompressed_size, 0) for i in filled for index in texts
    )
    few = 1 if encoded > _LONG_ROW * metadata.num_rows else _ROWS_SAMPLED
    decoded = sum(
        batch.nbytes * metadata.num_rows // batch.num_rows
        for batch in _first_rows(opened, largest, texts, few)
    )
    return max(encoded, decoded) * len(variable) // max(len(texts), 1), found


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


def _page_size(header: bytes, chunk: int) -> int:
    """Return field 2 of a Thrift compact `PageHeader`, or a usual size where there is none."""
    numbers: list[int] = []
    value, shift = 0, 0
    for byte in header:
        if len(numbers) % 2 == 0:
            numbers.append(byte)
            continue
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            numbers.append(value >> 1)
            value, shift = 0, 0
    if len(numbers) >= 4 and numbers[0] == numbers[2] == 0x15 and numbers[3] <= max(chunk, 0):
        return numbers[3]
    return min(max(chunk, 0), 1 << 20)
