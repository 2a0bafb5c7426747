"""Column chunks of a row group as bytes: plain numbers by ourselves, everything else by PyArrow.

PyArrow copies plain numbers twice and makes a level of two bytes for each, a quarter of the work.
What it says of a file's schema, and of the chunks that it encodes, is taken over as it is.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import zstandard
from zlib_ng import zlib_ng

from polar_etl import thrift
from polar_etl.scratch import scratch
from polar_etl.thrift import BINARY, I16, I32, I64, LIST, STRUCT, Field

Bools = npt.NDArray[np.bool_]
Bytes = bytes | memoryview
Values = npt.NDArray[np.number]

MAGIC = b"PAR1"
_PAGE_BYTES = 1 << 18
_ROOM = 64
"""Bytes left free before the values of a page, besides a bit for each: a run of levels takes up to
9 besides its bits."""
_ALIGNED = 64
_PHYSICAL = {
    **dict.fromkeys((pa.int8(), pa.int16(), pa.int32()), 1),
    pa.int64(): 2,
    pa.float32(): 4,
    pa.float64(): 5,
    pa.float16(): 7,
}
"""Number of the type that Parquet stores these numbers as."""
_ZSTD = 6
_SHORT = 1 << 14
"""Bytes of a piece of content below which writing it alone takes longer than copying it."""
_SCHEMAS = 1 << 10
"""Answers of Parquet that are kept: every slab asks the same ones again."""
_OFFSETS = (9, 10, 11)
"""Fields of `ColumnMetaData` that hold places in the file."""


class Chunk(NamedTuple):
    """One column chunk, except where in the file it stands."""

    content: Sequence[Bytes]
    size: int
    """Bytes of the content."""
    plain_size: int
    """The same, before compression."""
    described: tuple[bytes | int, ...]
    """The `ColumnChunk` of the footer; an integer is a place, counted from the chunk's start."""


class Encoded(NamedTuple):
    """Neighbouring column chunks of one row group."""

    content: Sequence[Bytes]
    """Their bytes, one behind the other."""
    chunks: tuple[Chunk, ...]
    """Their descriptions, without content."""


def joined(chunks: Sequence[Chunk]) -> Encoded:
    """Return chunks side by side; short pieces of content become one, which is written faster."""
    content = [piece for chunk in chunks for piece in chunk.content]
    if sum(map(len, content)) < _SHORT * len(content):
        content = [memoryview(b"".join(content))]
    return Encoded(content, tuple(chunk._replace(content=()) for chunk in chunks))


@dataclass(frozen=True, eq=False)
class PartFormat:
    """How parts are encoded; the same for all parts of an output."""

    schema: pa.Schema
    plain: tuple[str, ...]
    """Names of the normalized columns: no dictionary, no statistics, nobody looks values up."""
    level: int
    """Level of zstd."""

    @cached_property
    def _described(self) -> dict[str, tuple[bytes, bool]]:
        """By scalar column: its description up to the sizes, and whether it has levels."""
        found = {}
        for name in self.plain:
            column = self.schema.field(name)
            if column.type in _PHYSICAL:
                path = name.encode()
                head = [
                    (1, I32, thrift.as_number(_PHYSICAL[column.type])),
                    (2, LIST, thrift.as_list(I32, [thrift.as_number(0), thrift.as_number(3)])),
                    (3, LIST, thrift.as_list(BINARY, [thrift.as_varint(len(path)) + path])),
                    (4, I32, thrift.as_number(_ZSTD)),
                ]
                found[name] = thrift.as_struct(head)[:-1], column.nullable
        return found

    def scalars(
        self, names: Sequence[str], columns: Iterable[tuple[PagedColumn, Bools | None]]
    ) -> list[Chunk]:
        """Return scalar columns of plain numbers as chunks.

        Args:
            names: Of the columns.
            columns: Of each, its values as Parquet stores the column's type, and which of them
                are not null; None if all are.
        """
        pages: list[tuple[int, Bytes]] = []
        counts = []
        for name, (column, valid) in zip(names, columns, strict=True):
            nullable = self._described[name][1]
            found = [(page.rows, _plain(page, valid, nullable=nullable)) for page in column.pages]
            pages += found
            counts.append((column.rows, len(found)))
        bodies = self._compressed([page for _, page in pages])
        done = iter(zip(pages, bodies, strict=True))
        return [
            self._chunk(name, rows, [next(done) for _ in range(count)])
            for name, (rows, count) in zip(names, counts, strict=True)
        ]

    def _compressed(self, pages: Sequence[Bytes]) -> Iterable[Bytes]:
        """Return pages compressed, many at one go: each call waits for the interpreter once."""
        compressor = _compressor(self.level)
        if len(pages) < 2:
            return map(compressor.compress, pages)
        together = compressor.multi_compress_to_buffer(list(pages))
        return (memoryview(together[i]) for i in range(len(pages)))  # type: ignore[arg-type]

    def _chunk(
        self, name: str, rows: int, pages: Iterable[tuple[tuple[int, Bytes], Bytes]]
    ) -> Chunk:
        content: list[Bytes] = []
        size = plain_size = 0
        for (count, plain), body in pages:
            checksum = zlib_ng.crc32(body)
            header = _PAGE_HEADER % (
                thrift.often_number(len(plain)),
                thrift.as_number(len(body)),
                thrift.as_number(checksum - ((checksum & 1 << 31) << 1)),
                thrift.often_number(count),
            )
            content += [header, body]
            size += len(header) + len(body)
            plain_size += len(header) + len(plain)
        sizes = b"\x16%b\x16%b\x16%b\x26" % (
            thrift.often_number(rows),
            thrift.often_number(plain_size),
            thrift.as_number(size),
        )
        described = _CHUNK_HEAD + self._described[name][0] + sizes
        return Chunk(content, size, plain_size, (described, 0, b"\x00\x00"))

    def others(self, columns: Mapping[str, pa.Array | pa.ChunkedArray]) -> dict[str, list[Chunk]]:
        """Return columns of any type as chunks, one for each leaf, as PyArrow encodes them."""
        if not columns:
            return {}
        schema = pa.schema(
            [self.schema.field(name).with_type(column.type) for name, column in columns.items()]
        )
        sink = pa.BufferOutputStream()
        others = [column for column in schema if column.name not in self._plain]
        looked_up = leaf_paths(pa.schema(others))
        worded = leaf_paths(pa.schema([c for c in others if not _is_wordy(columns[c.name])]))
        with pq.ParquetWriter(
            sink,
            schema,
            compression="zstd",
            compression_level=self.level,
            use_dictionary=worded or False,
            write_statistics=looked_up or False,
            data_page_size=_PAGE_BYTES,
            max_rows_per_page=1 << 20,
            write_batch_size=1 << 16,
            write_page_checksum=True,
            store_schema=False,
        ) as writer:
            table = pa.Table.from_arrays(list(columns.values()), schema=schema)
            writer.write_table(table, row_group_size=max(table.num_rows, 1))
        found = _chunks_of(_bytes_of(sink))
        return {name: [next(found) for _ in range(_leaves(schema.field(name)))] for name in columns}

    @cached_property
    def _plain(self) -> frozenset[str]:
        return frozenset(self.plain)

    @cached_property
    def _footer(self) -> tuple[memoryview, dict[int, Field]]:
        """The footer of a file without rows, as PyArrow writes it for this schema."""
        sink = pa.BufferOutputStream()
        with pq.ParquetWriter(sink, self.schema):
            pass
        footer = footer_of(_bytes_of(sink))
        return footer, thrift.fields_of(footer)[0]

    def footer(self, rows: int, groups: list[bytes]) -> bytes:
        """Return the footer of a file with these row groups, up to and with the closing magic."""
        before, after = self.around_groups(rows, len(groups))
        found = b"".join((before, *groups, after))
        return found + footer_end(len(found))

    def around_groups(self, rows: int, groups: int) -> tuple[bytes, bytes]:
        """Return what stands before and behind the descriptions of so many row groups."""
        model, fields = self._footer
        values = {
            place: (field.kind, bytes(model[field.start : field.stop]))
            for place, field in fields.items()
        }
        values[3] = I64, thrift.as_number(rows)
        values[4] = LIST, thrift.list_head(STRUCT, groups)
        places = sorted(values)
        before = [(place, *values[place]) for place in places if place <= 4]
        after = [(place, *values[place]) for place in places if place > 4]
        return thrift.as_struct(before)[:-1], thrift.as_struct(after, behind=4)


def footer_end(length: int) -> bytes:
    """Return what stands behind a footer of so many bytes: its length, and the magic."""
    return length.to_bytes(4, "little") + MAGIC


_CHUNK_HEAD = b"\x26\x00\x1c"
"""A `ColumnChunk` begins with its deprecated offset, 0, and `ColumnMetaData` comes next."""
_PAGE_HEADER = b"\x15\x00\x15%b\x15%b\x15%b\x1c\x15%b\x15\x00\x15\x06\x15\x06\x00\x00"
"""A data page with checksum: plain values, levels in runs."""


class Placed(NamedTuple):
    """One column chunk that has its place in a file."""

    place: int
    size: int
    plain_size: int
    described: bytes
    """Its `ColumnChunk` in the footer."""


def placed(encoded: Encoded, place: int) -> Iterator[Placed]:
    """Yield the chunks of `encoded`, written to a file from `place` on."""
    for chunk in encoded.chunks:
        described = b"".join(
            thrift.as_number(place + part) if isinstance(part, int) else part
            for part in chunk.described
        )
        yield Placed(place, chunk.size, chunk.plain_size, described)
        place += chunk.size


def row_group(rows: int, number: int, chunks: Sequence[Placed]) -> bytes:
    """Return the description of a row group for the footer.

    Args:
        rows: Of the row group.
        number: How many row groups stand before it.
        chunks: Its chunks, in order.
    """
    return thrift.as_struct(
        [
            (1, LIST, thrift.as_list(STRUCT, [chunk.described for chunk in chunks])),
            (2, I64, thrift.as_number(sum(chunk.plain_size for chunk in chunks))),
            (3, I64, thrift.as_number(rows)),
            (5, I64, thrift.as_number(chunks[0].place)),
            (6, I64, thrift.as_number(sum(chunk.size for chunk in chunks))),
            (7, I16, thrift.as_number(number)),
        ]
    )


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


class PagedColumn(NamedTuple):
    """One column, cut into pages."""

    rows: int
    pages: Sequence[Page]


class PagedColumns:
    """Columns of one dtype, laid out as pages: values are written where they are compressed from.

    They are this thread's scratch: good until the next ones are made.

    Args:
        columns: How many there are.
        rows: Of each.
        dtype: Of the values.
    """

    def __init__(self, columns: int, rows: int, dtype: np.dtype[Any]) -> None:
        self._rows, self._dtype = rows, dtype
        self._length = _PAGE_BYTES // dtype.itemsize
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
                self._dtype,
                self._memory,
                self._place(column, page) + self._room + row * self._dtype.itemsize,
                (self._stride, self._dtype.itemsize),
            )
            there[...] = some
            done += some.shape[1]

    def _place(self, column: int, page: int) -> int:
        return column * self._stride + page * (self._length * self._dtype.itemsize + self._room)

    def column(self, index: int) -> PagedColumn:
        """Return one column."""
        return PagedColumn(self._rows, list(self._pages(index)))

    def _pages(self, column: int) -> Iterator[Page]:
        for page, first in enumerate(range(0, self._rows, self._length)):
            start = self._place(column, page)
            rows = min(self._length, self._rows - first)
            stop = start + self._room + rows * self._dtype.itemsize
            yield Page(first, rows, self._dtype, self._memory[start:stop])


def _plain(page: Page, valid: Bools | None, *, nullable: bool) -> Bytes:
    """Return the bytes of a page, not yet compressed; what is not null takes the place of all."""
    rows, room = page.rows, page.room
    if not nullable:
        return page.memory[room:]
    levels, filled = equal_levels(rows, b"\x01"), rows
    if valid is not None:
        there = valid[page.first : page.first + rows]
        filled = int(np.count_nonzero(there))
        if filled < rows:
            values = page.values
            values[:filled] = values[there]
            levels = _levels(there) if filled else equal_levels(rows, b"\x00")
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


@lru_cache
def equal_levels(rows: int, level: bytes) -> bytes:
    """Return the definition levels of a page whose rows are all there, or none of them."""
    run = thrift.as_varint(rows << 1) + level
    return len(run).to_bytes(4, "little") + run


class _Local(threading.local):
    """What each thread has for itself."""

    def __init__(self) -> None:
        self.compressors: dict[int, zstandard.ZstdCompressor] = {}


_local = _Local()


def _compressor(level: int) -> zstandard.ZstdCompressor:
    found = _local.compressors.get(level)
    if found is None:
        found = _local.compressors[level] = zstandard.ZstdCompressor(level=level)
    return found


def _bytes_of(sink: pa.BufferOutputStream) -> memoryview:
    return memoryview(sink.getvalue()).cast("B")  # PyArrow's bytes are signed ones


def footer_of(file: memoryview) -> memoryview:
    """Return the footer of a whole Parquet file, without length and magic."""
    length = int.from_bytes(file[-8:-4], "little")
    return file[len(file) - 8 - length : -8]


def _chunks_of(file: memoryview) -> Iterator[Chunk]:
    """Yield the column chunks of a Parquet file with one row group."""
    footer = footer_of(file)
    groups, _ = thrift.items_of(footer, thrift.fields_of(footer)[0][4].start)
    group, _ = thrift.fields_of(footer, groups[0].start)
    for item in thrift.items_of(footer, group[1].start)[0]:
        meta, _ = thrift.fields_of(footer, thrift.fields_of(footer, item.start)[0][3].start)
        places = {place: thrift.number(footer, meta[place]) for place in _OFFSETS if place in meta}
        start = min(places.values())
        size = thrift.number(footer, meta[7])
        described: list[bytes | int] = [_CHUNK_HEAD]
        last = 0
        for place, field in meta.items():
            described.append(thrift.head(place, last, field.kind))
            value = bytes(footer[field.start : field.stop])
            described.append(places[place] - start if place in places else value)
            last = place
        yield Chunk(
            (file[start : start + size],),
            size,
            thrift.number(footer, meta[6]),
            (*described, b"\x00\x00"),
        )


def _is_wordy(column: pa.Array | pa.ChunkedArray) -> bool:
    """Tell whether a column has too many words for one dictionary: its pieces have their own."""
    return isinstance(column, pa.ChunkedArray) and pa.types.is_dictionary(column.type)


@lru_cache(_SCHEMAS)
def _leaves(column: pa.Field) -> int:
    return len(leaf_paths(pa.schema([column])))


@lru_cache(_SCHEMAS)
def leaf_paths(schema: pa.Schema) -> list[str]:
    """Return the Parquet paths of the leaves of a schema, in order.

    Only Parquet knows how it names the leaves of nested columns, so an empty file is asked.
    """
    if not schema.names:
        return []
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(sink, schema):
        pass
    found = pq.read_metadata(pa.BufferReader(sink.getvalue())).schema
    return [found.column(i).path for i in range(len(found))]
