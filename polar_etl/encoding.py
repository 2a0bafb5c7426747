"""Column chunks of a row group as bytes: plain numbers by ourselves, everything else by PyArrow.

PyArrow copies plain numbers twice and makes a level of two bytes for each, a quarter of the work.
What it says of a file's schema, and of the chunks that it encodes, is taken over as it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import islice, repeat
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from zlib_ng import zlib_ng

from polar_etl import thrift
from polar_etl.compression import LEVEL, compressed, worthwhile_level
from polar_etl.page_buffers import PAGE_BYTES, Bools, Bytes, Filled, LaidOut, PagedColumns
from polar_etl.thrift import BINARY, I16, I32, I64, LIST, STRUCT, Field

Ints = npt.NDArray[np.int64]

MAGIC = b"PAR1"
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


class Described(NamedTuple):
    """What there is to say of a column chunk, except where in the file it stands."""

    size: int
    """Bytes of it."""
    plain_size: int
    """The same, before compression."""
    entry: tuple[bytes | int, ...]
    """The `ColumnChunk` of the footer; an integer is a place, counted from the chunk's start."""


class Chunk(NamedTuple):
    """One column chunk."""

    content: Sequence[Bytes]
    described: Described


class Encoded(NamedTuple):
    """Neighbouring column chunks of one row group."""

    content: Sequence[Bytes]
    """Their bytes, one behind the other."""
    columns: int
    """How many chunks that are."""
    size: int
    """Bytes of the content."""
    plain_size: int
    """The same, before compression."""
    said: list[bytes]
    """Their entries of the footer, cut where a place in the file has to be said."""
    places: Ints
    """What comes in between, counted from where the content begins."""


def joined(chunks: Sequence[Chunk]) -> Encoded:
    """Return chunks side by side; short pieces of content become one, which is written faster."""
    content = [piece for chunk in chunks for piece in chunk.content]
    if sum(map(len, content)) < _SHORT * len(content):
        content = [memoryview(b"".join(content))]
    start, said, places = 0, [b""], []
    for _, described in chunks:
        for part in described.entry:
            if isinstance(part, int):
                places.append(start + part)
                said.append(b"")
            else:
                said[-1] += part
        start += described.size
    plain_size = sum(chunk.described.plain_size for chunk in chunks)
    return Encoded(content, len(chunks), start, plain_size, said, np.array(places, np.int64))


@dataclass(frozen=True, eq=False)
class PartFormat:
    """How parts are encoded; the same for all parts of an output."""

    schema: pa.Schema
    plain: tuple[str, ...]
    """Names of the normalized columns: no dictionary, no statistics, nobody looks values up."""
    level: int | None
    """Level of zstd, see `compressed`."""

    @cached_property
    def _described(self) -> dict[str, tuple[bytes, bool]]:
        """By scalar column: its entry up to the sizes, and whether it has levels."""
        found = {}
        around = {kind.id: _around_path(number) for kind, number in _PHYSICAL.items()}
        for name in self.plain:
            column = self.schema.field(name)
            if ends := around.get(column.type.id):
                path = name.encode()
                entry = b"".join((ends[0], thrift.as_varint(len(path)), path, ends[1]))
                found[name] = entry, column.nullable
        return found

    def scalars(self, names: Sequence[str], filled: Iterable[Filled]) -> list[Chunk]:
        """Return scalar columns of plain numbers as chunks.

        Args:
            names: Of the columns.
            filled: All of them, as Parquet stores their types.
        """
        found: dict[int, Chunk] = {}
        for places, columns, valid in filled:
            for which, laid_out in self._laid_out([names[i] for i in places], columns, valid):
                chunks = self._chunks([names[places[at]] for at in which], columns.rows, laid_out)
                found |= zip((places[at] for at in which), chunks, strict=True)
        return [found[place] for place in range(len(names))]

    def _laid_out(
        self, names: Sequence[str], columns: PagedColumns, valid: Mapping[int, Bools]
    ) -> Iterator[tuple[list[int], LaidOut]]:
        """Yield numbers of columns, and their pages: those that are one page each at one go."""
        nullable = [self._described[name][1] for name in names]
        alone = [at for at in range(len(names)) if columns.are_single and at not in valid]
        others = sorted({*range(len(names))} - {*alone})
        if alone:
            which = np.array(alone)
            yield alone, columns.single_pages(which, np.array(nullable)[which])
        if others:
            yield others, columns.plain_pages(others, valid, nullable)

    def _chunks(self, names: Sequence[str], rows: int, laid_out: LaidOut) -> Iterator[Chunk]:
        """Yield columns of so many rows as chunks, from their pages."""
        bodies = compressed(laid_out.pages, self.level)
        stored = np.fromiter(map(len, bodies), np.int64, len(bodies))
        sums = np.fromiter(map(zlib_ng.crc32, bodies), np.uint32, len(bodies)).view(np.int32)
        numbers = map(_numbers, (laid_out.sizes, stored, sums.astype(np.int64), laid_out.rows))
        headers = [_PAGE_HEADER % some for some in zip(*numbers, strict=True)]
        more = np.fromiter(map(len, headers), np.int64, len(headers))
        stops = np.cumsum(laid_out.counts)
        sizes, plain_sizes = (
            np.diff(np.concatenate([[0], np.cumsum(size)])[[0, *stops]], axis=0)
            for size in (stored + more, laid_out.sizes + more)
        )
        said = zip(repeat(thrift.often_number(rows)), _numbers(plain_sizes), _numbers(sizes))
        pages = zip(headers, bodies, strict=True)
        for name, count, size, plain_size, some in zip(
            names, laid_out.counts, sizes.tolist(), plain_sizes.tolist(), said, strict=True
        ):
            entry = (self._described[name][0] + _SIZES % some, 0, b"\0\0")
            content = [piece for page in islice(pages, count) for piece in page]
            yield Chunk(content, Described(size, plain_size, entry))

    def others(self, columns: Mapping[str, pa.Array | pa.ChunkedArray]) -> dict[str, list[Chunk]]:
        """Return columns of any type as chunks, one for each leaf, as PyArrow encodes them.

        Those in pieces get no dictionary.
        """
        if not columns:
            return {}
        schema = pa.schema(
            [self.schema.field(name).with_type(column.type) for name, column in columns.items()]
        )
        sink = pa.BufferOutputStream()
        others = [column for column in schema if column.name not in self._plain]
        looked_up = leaf_paths(pa.schema(others))
        worded = leaf_paths(pa.schema([c for c in others if not _in_pieces(columns[c.name])]))
        with pq.ParquetWriter(
            sink,
            schema,
            compression="zstd",
            compression_level=self._levels(schema, columns),
            use_dictionary=worded or False,
            write_statistics=looked_up or False,
            data_page_size=PAGE_BYTES,
            max_rows_per_page=1 << 20,
            write_batch_size=1 << 16,
            write_page_checksum=True,
            store_schema=False,
        ) as writer:
            table = pa.Table.from_arrays(list(columns.values()), schema=schema)
            writer.write_table(table, row_group_size=max(table.num_rows, 1))
        found = _chunks_of(_bytes_of(sink))
        return {name: [next(found) for _ in range(_leaves(schema.field(name)))] for name in columns}

    def _levels(
        self, schema: pa.Schema, columns: Mapping[str, pa.Array | pa.ChunkedArray]
    ) -> int | dict[str, int]:
        """Return the level of zstd of each leaf: of vectors, what they are worth."""
        if self.level is not None:
            return self.level
        worth = {
            name: _level_of_vectors(column) if name in self._plain else LEVEL
            for name, column in columns.items()
        }
        return {path: worth[one.name] for one in schema for path in leaf_paths(pa.schema([one]))}

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


def _around_path(physical: int) -> tuple[bytes, bytes]:
    """Return what stands before and behind the name of a column in its entry, up to the sizes."""
    head = [
        (1, I32, thrift.as_number(physical)),
        (2, LIST, thrift.as_list(I32, [thrift.as_number(0), thrift.as_number(3)])),
        (3, LIST, thrift.list_head(BINARY, 1)),
    ]
    codec = [(4, I32, thrift.as_number(_ZSTD))]
    return _CHUNK_HEAD + thrift.as_struct(head)[:-1], thrift.as_struct(codec, behind=3)[:-1]


def footer_end(length: int) -> bytes:
    """Return what stands behind a footer of so many bytes: its length, and the magic."""
    return length.to_bytes(4, "little") + MAGIC


_CHUNK_HEAD = b"\x26\x00\x1c"
"""A `ColumnChunk` begins with its deprecated offset, 0, and `ColumnMetaData` comes next."""
_PAGE_HEADER = b"\x15\x00\x15%b\x15%b\x15%b\x1c\x15%b\x15\x00\x15\x06\x15\x06\x00\x00"
"""A data page with checksum: plain values, levels in runs."""
_SIZES = b"\x16%b\x16%b\x16%b\x26"
"""Of a chunk in the footer: rows, bytes before and after compression; its place comes next."""


class Placed(NamedTuple):
    """Neighbouring column chunks that have their place in a file."""

    place: int
    columns: int
    size: int
    plain_size: int
    entries: bytes
    """Their `ColumnChunk`s in the footer."""


def placed(encoded: Encoded, place: int) -> Placed:
    """Return the chunks of `encoded`, written to a file from `place` on."""
    numbers = _numbers(encoded.places + place)
    entries = [b""] * (len(encoded.said) + len(numbers))
    entries[::2], entries[1::2] = encoded.said, numbers
    return Placed(place, encoded.columns, encoded.size, encoded.plain_size, b"".join(entries))


def _numbers(values: Ints) -> list[bytes]:
    """Return signed numbers as `thrift.as_number` does, all at one go."""
    rest = (values << 1 ^ values >> 63).view(np.uint64)
    digits = np.zeros((len(values), 10), np.uint8)
    lengths = np.ones(len(values), np.int64)
    for place in range(10):
        digits[:, place] = rest & np.uint64(127)
        rest = rest >> np.uint64(7)
        if not rest.any():
            break
        digits[:, place] |= (rest > 0).astype(np.uint8) << 7
        lengths += rest > 0
    raw = digits.tobytes()
    return [
        raw[at : at + n] for at, n in zip(range(0, len(raw), 10), lengths.tolist(), strict=True)
    ]


def row_group(rows: int, number: int, chunks: Sequence[Placed]) -> bytes:
    """Return the description of a row group for the footer.

    Args:
        rows: Of the row group.
        number: How many row groups stand before it.
        chunks: Its chunks, in order.
    """
    head = thrift.list_head(STRUCT, sum(some.columns for some in chunks))
    return thrift.as_struct(
        [
            (1, LIST, b"".join((head, *(some.entries for some in chunks)))),
            (2, I64, thrift.as_number(sum(some.plain_size for some in chunks))),
            (3, I64, thrift.as_number(rows)),
            (5, I64, thrift.as_number(chunks[0].place)),
            (6, I64, thrift.as_number(sum(some.size for some in chunks))),
            (7, I16, thrift.as_number(number)),
        ]
    )


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
        entry = (*described, b"\x00\x00")
        yield Chunk(
            (file[start : start + size],),
            Described(size, thrift.number(footer, meta[6]), entry),
        )


def _level_of_vectors(column: pa.ChunkedArray) -> int:
    """Return the level that vectors are worth; nothing that stands in place of a null decides."""
    valid, *_, numbers_valid, numbers = column.chunk(column.num_chunks // 2).buffers()
    return LEVEL if valid or numbers_valid else worthwhile_level(memoryview(numbers).cast("B"))


def _in_pieces(column: pa.Array | pa.ChunkedArray) -> bool:
    """Tell whether a column is in pieces, because its words are too many for a dictionary."""
    return isinstance(column, pa.ChunkedArray)


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
