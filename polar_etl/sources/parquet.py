"""Parquet files, read as Arrow by PyArrow: untrusted bytes meet no other decoder."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import pyarrow as pa
import pyarrow.parquet as pq

from polar_etl.errors import InputError, PolarEtlError, RunFailedError, describe
from polar_etl.features import first_length, of_equal_lengths
from polar_etl.sources.base import Reading, SourceFile
from polar_etl.sources.schemas import checked_schema, difference, has_variable_width, leaves

_COLUMNS_AT_A_TIME = 512
"""PyArrow keeps a decompressor (0.1 MB) for every column it reads at a time …"""
_BYTES_AT_A_TIME = 1 << 24
"""… and, on one thread, what it has read of all of them."""
_STREAM_BUFFER = 1 << 16
_TRANSIENT = {errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ESTALE, errno.EINTR}
"""Errors of the system that say nothing about the file."""
_COLUMNS_SAMPLED = 32


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

    def fingerprint(self) -> dict[str, object]:
        """Return path, size, mtime and footer hash of every file."""
        return {
            "files": [
                {"path": f.path, "size": f.size, "mtime_ns": f.mtime_ns, "footer": f.footer}
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

    def with_lengths(self, columns: list[str], known: Mapping[str, int]) -> ParquetSource:
        """Return the source with lists in `columns` of one length: a known one, or the first's.

        Raises:
            InputError: No list tells the length.
        """
        lengths = {
            name: known.get(name) or first_length(self._rows_of(name), name) for name in columns
        }
        files = []
        for index, file in enumerate(self.files):
            with self._opened(index, buffer_size=_STREAM_BUFFER) as opened:
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
        groups = self.files[file].group_rows
        start = 0
        pending: list[int] = []
        pending_from = 0
        for index, rows in enumerate((*groups, None)):
            wanted = rows is not None and rows > 0 and start < stop and start + rows > first
            whole = wanted and rows is not None and rows <= how.group_rows
            held = sum(groups[i] for i in pending)
            if pending and not (whole and rows is not None and held + rows <= how.group_rows):
                yield from self._window(
                    self._whole(file, pending, columns, how), pending_from, first, stop
                )
                pending = []
            if rows is None:
                return
            if whole:
                pending_from = pending_from if pending else start
                pending.append(index)
            elif wanted:
                stream = self._stream(file, index, columns, how)
                yield from self._window(stream, start, first, stop)
            start += rows

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

    def _whole(
        self, file: int, groups: list[int], columns: list[str] | None, how: Reading
    ) -> Iterator[pa.Table]:
        names = self.schema.names if columns is None else columns
        chunks: list[pa.ChunkedArray] = []
        rows = sum(self.files[file].group_rows[i] for i in groups)
        many = min(max(_BYTES_AT_A_TIME // (8 * rows), 4), _COLUMNS_AT_A_TIME)
        with self._opened(file, buffer_size=0) as opened:
            for low in range(0, len(names), many):
                indices = self._leaves_of(names[low : low + many])
                table = opened.reader.read_row_groups(
                    groups, column_indices=indices, use_threads=how.threads > 1
                )
                chunks += table.columns
        yield self._table(names, chunks)

    def _stream(
        self, file: int, group: int, columns: list[str] | None, how: Reading
    ) -> Iterator[pa.Table]:
        names = self.schema.names if columns is None else columns
        with self._opened(file, buffer_size=_STREAM_BUFFER) as opened:
            batches = opened.reader.iter_batches(
                how.stream_rows,
                row_groups=[group],
                column_indices=self._leaves_of(names),
                use_threads=how.threads > 1,
            )
            for batch in batches:
                yield self._table(names, pa.Table.from_batches([batch]).columns)
                del batch

    def _table(self, names: list[str], columns: list[pa.ChunkedArray]) -> pa.Table:
        """Return the columns as a table, after checking that they are what the footer promised."""
        schema = pa.schema([self.schema.field(name) for name in names])
        for expected, column in zip(schema, columns, strict=True):
            if not column.type.equals(expected.type):
                raise pa.ArrowInvalid(
                    f"column {describe(expected.name)} decodes to {column.type}, "
                    f"not to {expected.type}"
                )
        return pa.Table.from_arrays(columns, schema=schema)

    def _opened(self, file: int, *, buffer_size: int) -> _Opened:
        return _Opened(self.files[file], self._footers, file, buffer_size)

    @cached_property
    def _leaf_ranges(self) -> dict[str, range]:
        ranges, start = {}, 0
        for column in self.schema:
            count = leaves(column.type)
            ranges[column.name] = range(start, start + count)
            start += count
        return ranges

    def _leaves_of(self, names: list[str]) -> list[int]:
        return [leaf for name in names for leaf in self._leaf_ranges[name]]


class _Opened:
    """An open Parquet file; decoding errors inside the `with` block become `InputError`."""

    def __init__(
        self, file: SourceFile, footers: dict[int, pq.FileMetaData], index: int, buffer_size: int
    ) -> None:
        self._file = file
        self._footers = footers
        self._index = index
        self._buffer_size = buffer_size
        self._open: pq.ParquetFile | None = None

    def __enter__(self) -> pq.ParquetFile:
        try:
            now = os.stat(self._file.path)
            if (now.st_size, now.st_mtime_ns) != (self._file.size, self._file.mtime_ns):
                raise InputError(
                    f"{describe(self._file.path)} has changed while it was being read. "
                    "Run again with --overwrite when nothing writes to it any more."
                )
            self._open = pq.ParquetFile(
                self._file.path,
                metadata=self._footers.get(self._index),
                pre_buffer=False,
                buffer_size=self._buffer_size,
                page_checksum_verification=True,
            )
        except Exception as error:
            raise _unreadable(self._file.path, error) from None
        if self._index not in self._footers:
            self._footers.clear()
            self._footers[self._index] = self._open.metadata
        return self._open

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if self._open is not None:
            self._open.close()
        if isinstance(error, Exception) and not isinstance(error, MemoryError):
            raise _unreadable(self._file.path, error) from None


def _inspect(path: str) -> tuple[pq.FileMetaData, SourceFile, pa.Schema]:
    try:
        before = os.stat(path)
        if not stat.S_ISREG(before.st_mode):
            raise InputError(f"{describe(path)} is not a regular file.")
        with pq.ParquetFile(path, pre_buffer=False, buffer_size=_STREAM_BUFFER) as opened:
            metadata, schema = opened.metadata, opened.schema_arrow
            variable, page_bytes = _measure(path, opened)
        footer = _footer_hash(path)
    except Exception as error:
        raise _unreadable(path, error) from None
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


def _measure(path: str, opened: pq.ParquetFile, apart_from: Container[str] = ()) -> tuple[int, int]:
    """Return the bytes of columns of variable width, and of the largest page, from samples.

    The footer does not tell how large pages are, their headers do: a Thrift struct that begins with
    type and size. One value of each sampled column is read first: that raises an error where a
    column is encrypted or damaged, while asking its footer would abort the process (PyArrow 26).
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
    asked = sorted({*texts, *pages})
    next(opened.reader.iter_batches(1, row_groups=[largest], column_indices=asked), None)
    found = 0
    with open(path, "rb") as file:
        for index in pages:
            chunk = groups[largest].column(index)
            file.seek(max(chunk.data_page_offset, 0))
            found = max(found, _page_size(file.read(16), chunk.total_uncompressed_size))
    bytes_of_texts = sum(
        max(groups[i].column(index).total_uncompressed_size, 0) for i in filled for index in texts
    )
    return bytes_of_texts * len(variable) // max(len(texts), 1), found


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


def _unreadable(path: str, error: BaseException) -> Exception:
    if isinstance(error, (PolarEtlError, MemoryError)):
        return error
    if isinstance(error, OSError) and error.errno in _TRANSIENT:
        return RunFailedError(f"{describe(path)} can't be read just now: {error.strerror}.")
    reason = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, FileNotFoundError):
        reason = "there is no such file"
    return InputError(
        f"{describe(path)} can't be read as Parquet: {describe(reason, 300)[1:-1]}. "
        "Check that the file is complete and not damaged or encrypted."
    )
