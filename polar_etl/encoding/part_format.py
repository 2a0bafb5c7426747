"""Column chunks of a row group as bytes: numbers, words and flags by ourselves, others by PyArrow.

PyArrow copies plain numbers twice and makes a level of two bytes for each, a quarter of the work,
and looks words up anew that come with their places.
What it says of a file's schema, and of the chunks that it encodes, is taken over as it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import islice, repeat

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from zlib_ng import zlib_ng

from polar_etl.columns import plain_width
from polar_etl.encoding.chunks import (
    CHUNK_HEAD,
    PHYSICAL,
    SIZES,
    Chunk,
    Described,
    entry_of,
    numbers_of,
)
from polar_etl.encoding.compression import LEVEL, compressed, worthwhile_level
from polar_etl.encoding.dictionaries import LookedUp, looked_up_chunks, looked_up_text
from polar_etl.encoding.flags import BOOLEAN, laid_out_flags
from polar_etl.encoding.page_buffers import (
    PAGE_BYTES,
    Bools,
    Filled,
    LaidOut,
    PagedColumns,
    PagedVectors,
)
from polar_etl.encoding.uniqueness import are_unique
from polar_etl.pages import thrift
from polar_etl.pages.thrift import I64, LIST, STRUCT, Field

Ints = npt.NDArray[np.int64]

_SCHEMAS = 1 << 10
"""Answers of Parquet that are kept: every slab asks the same ones again."""
_PAGE_HEADER = b"\x15\x00\x15%b\x15%b\x15%b\x1c\x15%b\x15\x00\x15\x06\x15\x06\x00\x00"
"""A data page with checksum: plain values, levels in runs."""
_PLAIN = (0, 3)
"""Encodings of a chunk: plain values, and levels in runs."""
_BEHIND_PLACE = b"\x3c"
"""Statistics come next in an entry, behind the place of the first page."""
_IN_LISTS = ("list", "element")
"""How a leaf of lists goes on behind the name of its column."""
_FLOATS = {"FLOAT": 4, "DOUBLE": 5}
"""Numbers of Parquet's types, by the names that PyArrow has for them."""
_OFFSETS = (9, 10, 11)
"""Fields of `ColumnMetaData` that hold places in the file."""


@dataclass(frozen=True, eq=False)
class PartFormat:
    """How parts are encoded; the same for all parts of an output."""

    schema: pa.Schema
    plain: tuple[str, ...]
    """Names of the normalized columns: no statistics, nobody looks values up."""
    level: int | None
    """Level of zstd, see `compressed`."""

    @cached_property
    def _described(self) -> dict[str, tuple[bytes, bool]]:
        """By scalar column: its entry up to the sizes, and whether it has levels."""
        found = {}
        physical = {kind.id: number for kind, number in PHYSICAL.items()}
        for name in self.plain:
            column = self.schema.field(name)
            if number := physical.get(column.type.id):
                found[name] = entry_of(name, number, _PLAIN), column.nullable
            elif name in self._in_lists:
                physical_type = _FLOATS[self._in_lists[name].physical_type]
                found[name] = entry_of(name, physical_type, _PLAIN, _IN_LISTS), False
        return found

    @cached_property
    def _in_lists(self) -> dict[str, pq.ColumnSchema]:
        """By column of vectors that Parquet has as lists: what it says of their numbers."""
        columns = [self.schema.field(name) for name in self.plain]
        leaves = {
            column.name: _parquet_schema(pa.schema([column])).column(0)
            for column in columns
            if not plain_width(column.type)
        }
        return {
            name: leaf
            for name, leaf in leaves.items()
            if leaf.path == ".".join((name, *_IN_LISTS)) and leaf.physical_type in _FLOATS
        }

    def scalars(self, names: Sequence[str], filled: Iterable[Filled]) -> list[Chunk]:
        """Return scalar columns of plain numbers as chunks.

        Args:
            names: Of the columns.
            filled: All of them, as Parquet stores their types.
        """
        found: dict[int, Chunk] = {}
        for places, columns, valid in filled:
            for which, laid_out in self._laid_out([names[i] for i in places], columns, valid):
                entries = [self._described[names[places[at]]][0] for at in which]
                chunks = self._chunks(entries, columns.rows, laid_out)
                found |= zip((places[at] for at in which), chunks, strict=True)
        return [found[place] for place in range(len(names))]

    def vectors(self, name: str, paged: PagedVectors) -> Chunk | None:
        """Return a column of vectors as a chunk, None if PyArrow must encode it."""
        leaf = self._in_lists.get(name)
        if leaf is None or not paged.numbers:
            return None
        laid_out = paged.laid_out(leaf.max_definition_level)
        (chunk,) = self._chunks([self._described[name][0]], paged.numbers, laid_out)
        return chunk

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

    def _chunks(
        self, entries: Sequence[bytes], rows: int, laid_out: LaidOut, behind: bytes = b""
    ) -> Iterator[Chunk]:
        """Yield columns of so many rows as chunks, from their pages.

        Args:
            entries: What the footer says of each, up to the sizes.
            rows: How long they are.
            laid_out: Their pages.
            behind: What it says of all behind the place of the first page.
        """
        bodies = compressed(laid_out.pages, self.level)
        stored = np.fromiter(map(len, bodies), np.int64, len(bodies))
        sums = np.fromiter(map(zlib_ng.crc32, bodies), np.uint32, len(bodies)).view(np.int32)
        numbers = map(numbers_of, (laid_out.sizes, stored, sums.astype(np.int64), laid_out.rows))
        headers = [_PAGE_HEADER % some for some in zip(*numbers, strict=True)]
        more = np.fromiter(map(len, headers), np.int64, len(headers))
        stops = np.cumsum(laid_out.counts)
        sizes, plain_sizes = (
            np.diff(np.concatenate([[0], np.cumsum(size)])[[0, *stops]], axis=0)
            for size in (stored + more, laid_out.sizes + more)
        )
        said = zip(repeat(thrift.often_number(rows)), numbers_of(plain_sizes), numbers_of(sizes))
        pages = zip(headers, bodies, strict=True)
        for entry, count, size, plain_size, some in zip(
            entries, laid_out.counts, sizes.tolist(), plain_sizes.tolist(), said, strict=True
        ):
            content = [piece for page in islice(pages, count) for piece in page]
            whole = (entry + SIZES % some, 0, behind + b"\0\0")
            yield Chunk(content, Described(size, plain_size, whole))

    def looked_up(self, columns: Mapping[str, LookedUp]) -> list[Chunk]:
        """Return scalar columns of few different values as chunks."""
        fields = [(self.schema.field(name), column) for name, column in columns.items()]
        return looked_up_chunks(fields, self.level)

    def text(self, name: str, column: pa.Array | pa.ChunkedArray) -> list[Chunk]:
        """Return a column of text as a chunk; in words and their places, if it comes so."""
        if _in_pieces(column) or not len(column) or column.null_count == len(column):
            return self.others({name: column})[name]
        return self.looked_up({name: looked_up_text(column)})

    def others(self, columns: Mapping[str, pa.Array | pa.ChunkedArray]) -> dict[str, list[Chunk]]:
        """Return columns of any type as chunks, one for each leaf."""
        found = {
            name: [self._flags(name, column)]
            for name, column in columns.items()
            if pa.types.is_boolean(column.type)
        }
        left = {name: column for name, column in columns.items() if name not in found}
        return found | self._by_arrow(left)

    def _flags(self, name: str, column: pa.Array) -> Chunk:
        pages, statistics = laid_out_flags(column, nullable=self.schema.field(name).nullable)
        entry = entry_of(name, BOOLEAN, _PLAIN)
        (chunk,) = self._chunks([entry], len(column), pages, _BEHIND_PLACE + statistics)
        return chunk

    def _by_arrow(
        self, columns: Mapping[str, pa.Array | pa.ChunkedArray]
    ) -> dict[str, list[Chunk]]:
        """Return columns of any type as chunks, one for each leaf, as PyArrow encodes them.

        Those in pieces, and numbers that hardly repeat, get no dictionary.
        """
        if not columns:
            return {}
        schema = pa.schema(
            [self.schema.field(name).with_type(column.type) for name, column in columns.items()]
        )
        sink = pa.BufferOutputStream()
        others = [column for column in schema if column.name not in self._plain]
        looked_up = leaf_paths(pa.schema(others))
        worded = leaf_paths(pa.schema([c for c in others if _may_repeat(columns[c.name])]))
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
        return found + thrift.footer_end(len(found))

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


def _bytes_of(sink: pa.BufferOutputStream) -> memoryview:
    return memoryview(sink.getvalue()).cast("B")  # PyArrow's bytes are signed ones


def footer_of(file: memoryview) -> memoryview:
    """Return the footer of a whole Parquet file, without length and magic."""
    length = int.from_bytes(file[-8:-4], "little")
    return file[len(file) - 8 - length : -8]


def _chunks_of(file: memoryview) -> Iterator[Chunk]:
    """Yield the column chunks of a Parquet file with one row group."""
    footer = footer_of(file)
    group = (
        thrift.field_at(footer, 0, 4) + 1
    )  # where the first group begins, behind the list's head
    chunks, at = thrift.list_at(footer, thrift.field_at(footer, group, 1))
    for _ in range(chunks):
        meta, stop = thrift.fields_of(footer, thrift.field_at(footer, at, 3))
        places = {place: thrift.number(footer, meta[place]) for place in _OFFSETS if place in meta}
        start = min(places.values())
        size = thrift.number(footer, meta[7])
        described: list[bytes | int] = [CHUNK_HEAD]
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
        at = thrift.end_of(footer, stop, 3)


def _level_of_vectors(column: pa.ChunkedArray) -> int:
    """Return the level that vectors are worth; nothing that stands in place of a null decides."""
    valid, *_, numbers_valid, numbers = column.chunk(column.num_chunks // 2).buffers()
    return LEVEL if valid or numbers_valid else worthwhile_level(memoryview(numbers).cast("B"))


def _in_pieces(column: pa.Array | pa.ChunkedArray) -> bool:
    """Tell whether a column is in pieces, because its words are too many for a dictionary."""
    return isinstance(column, pa.ChunkedArray)


def _may_repeat(column: pa.Array | pa.ChunkedArray) -> bool:
    return not (_in_pieces(column) or are_unique(column))


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
    found = _parquet_schema(schema)
    return [found.column(i).path for i in range(len(found))]


def _parquet_schema(schema: pa.Schema) -> pq.ParquetSchema:
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(sink, schema):
        pass
    return pq.read_metadata(pa.BufferReader(sink.getvalue())).schema
