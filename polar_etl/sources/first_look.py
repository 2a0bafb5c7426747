"""A first look at a Parquet file: its footer, its schema, and samples of what is in it."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import BinaryIO, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from polar_etl.columns import asked_once, by_column, listed, word_type
from polar_etl.errors import InputError, MemoryLimitError, describe
from polar_etl.footers.chunk_table import ChunkTable, chunk_table, schema_alone
from polar_etl.footers.layout import Layout, laid_out, layout_of
from polar_etl.footers.samples import (
    COLUMNS_SAMPLED,
    LargestPages,
    every,
    number_dictionaries,
    page_sizes,
    sizes_by_arrow,
    text_by_arrow,
    word_dictionaries,
)
from polar_etl.footers.texts import Texts, texts_in
from polar_etl.memory import format_size
from polar_etl.pages.headers import pages_of
from polar_etl.pages.readers import is_usual
from polar_etl.pages.thrift import signed
from polar_etl.sources.base import HELD_CHUNK, HELD_PART, SourceFile
from polar_etl.sources.by_arrow import STREAM_BUFFER, for_arrow
from polar_etl.sources.explained import explained
from polar_etl.sources.schemas import checked_schema, has_variable_width, leaf_ranges, leaves

_HOPELESS = 3
"""Limits up to so many times what the process has before a run are too small for any plan."""
_LOOK_COPIES = 5
"""How often a page is held while it is looked at (measured: 2 to 5)."""
_COLUMNS_PEEKED_AT, _PEEKED_AT_AGAIN = 128, 16
"""Columns whose first pages are looked at; the fewer of a file with the same columns as another."""
_FEW_CHUNKS = 1 << 15
"""It may be held where so many chunks stand, whatever the limit."""
_CHUNKS_LOOKED_THROUGH = 1 << 12
"""Chunks whose page headers are read in the time that a small run takes to start."""


@contextmanager
def _opened(path: str, alone: bytes | None = None) -> Iterator[pq.ParquetFile]:
    """Open a file for a look at it; what goes wrong with it becomes an `InputError`.

    Args:
        path: Of the file.
        alone: A file that has its schema and no rows, if nothing else is looked at.
    """
    source = for_arrow(path) if alone is None else pa.BufferReader(alone)
    with (
        explained(path),
        pq.ParquetFile(source, pre_buffer=False, buffer_size=STREAM_BUFFER) as opened,
    ):
        yield opened


class Told(NamedTuple):
    """What a footer tells of columns."""

    schema: pa.Schema
    varying: Mapping[int, str]
    """The leaves of columns of variable width, with the names of these."""
    alone: bytes | None
    """A file of this schema without rows, if that is all that PyArrow was asked for."""


class Inspected(NamedTuple):
    """What a first look at a file shows."""

    file: SourceFile
    told: Told
    layout: Layout | None


class Room(NamedTuple):
    """What a first look may take."""

    limit: int = 1 << 62
    """The memory limit, in bytes."""
    base: int = 0
    """Bytes that the process uses already."""

    @property
    def chunks(self) -> int:
        """For how many column chunks, those of all files, it may be held where they stand."""
        known = self.limit if self.limit < UNLIMITED.limit else 0
        return max(known // (HELD_PART * HELD_CHUNK), _FEW_CHUNKS)

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
                f"holds a page of {format_size(page)} that is decoded before there is a plan, and "
                f"that takes {_LOOK_COPIES} times as much. Nothing was read or written. Use "
                f"--memory-limit {-(-needed // 10**6)}MB or more: the plan then says what it needs."
            )


UNLIMITED = Room()


def inspect(path: str, room: Room = UNLIMITED, like: Told | None = None) -> Inspected:
    """Return what a first look at a file shows.

    Args:
        path: Of the file.
        room: What the look may take.
        like: What is known of the columns of another file. Those of an input are alike, and
            PyArrow takes most of the time that a look at a small file takes.

    Raises:
        InputError: It is missing, or no Parquet that can be handled.
    """
    with explained(path):
        before = os.stat(path)
        if not stat.S_ISREG(before.st_mode):
            raise InputError(f"{describe(path)} is not a regular file.")
    with explained(path), open(path, "rb") as raw:
        footer = footer_of(raw)
        found = _looked_at(raw, footer, room, like)  # what PyArrow knows of chunks is gone then
        layout, schema = found.layout, found.told.schema
        peeked_at = _PEEKED_AT_AGAIN if found.told is like else _COLUMNS_PEEKED_AT
        from_arrow = _from_arrow(raw, layout, len(schema), peeked_at)
        ours = [place for place in range(len(schema)) if place not in from_arrow]
        file = SourceFile(
            path=os.path.abspath(path),
            size=before.st_size,
            mtime_ns=before.st_mtime_ns,
            footer=hashlib.blake2b(footer, digest_size=16).hexdigest(),
            group_rows=found.group_rows,
            chunks=sum(asked_once(leaves, listed(schema)[1])) * len(found.group_rows),
            variable_bytes=found.variable_bytes,
            text_windows=found.texts.windows,
            text_page=found.texts.longest,
            page_bytes=found.sizes.page,
            lookup_bytes=found.sizes.lookup,
            nulls=found.sizes.nulls,
            number_dictionaries=number_dictionaries(raw, layout, ours) if layout else 0,
            from_arrow=from_arrow,
            words=found.words,
            word_bytes=_word_bytes(layout, found.words) if layout else 0,
            dictionary_bytes=word_dictionaries(raw, layout, found.words) if layout else 0,
        )
    return Inspected(file, found.told, layout)


class _Look(NamedTuple):
    """What there is to know of the schema, the rows, and how large things are."""

    told: Told
    layout: Layout | None
    group_rows: tuple[int, ...]
    words: frozenset[int]
    texts: Texts
    variable_bytes: int
    sizes: LargestPages


def _looked_at(raw: BinaryIO, footer: bytes, room: Room, like: Told | None) -> _Look:
    """Return what there is to know of a file, from its footer and samples of it."""
    table = chunk_table(footer)
    told = _told_alone(raw.name, footer, table, like) if table else None
    layout = laid_out(table, told.schema) if table and told else None
    if not (table and told and layout):
        return _looked_at_any(raw, table, room)
    _require_rows(raw.name, table.rows, signed(footer, table.all_rows[0])[0])
    words = _words_in(raw, layout, told.schema)
    apart = _names_of(told.schema, words)
    variable, texts = _text(raw, layout, told, apart, room)
    known = _varying_apart_from(told, apart) if texts.windows else ()
    most = _PEEKED_AT_AGAIN if told is like else COLUMNS_SAMPLED
    sizes = page_sizes(raw, layout, table, known, most)
    return _Look(told, layout, table.rows, words, texts, variable, sizes)


def _told_alone(path: str, footer: bytes, table: ChunkTable, like: Told | None) -> Told | None:
    """Return what a footer tells of columns, None if PyArrow is needed for more than that."""
    alone = schema_alone(footer, table)
    if alone is None:
        return None
    if like and like.alone == alone:
        return like
    with _opened(path, alone) as opened:
        return _told(path, opened, alone)


def _told(path: str, opened: pq.ParquetFile, alone: bytes | None = None) -> Told:
    """Return what PyArrow tells of columns.

    Raises:
        InputError: They can't be told apart, or what is said of them contradicts itself.
    """
    metadata, schema = opened.metadata, checked_schema(path, opened.schema_arrow)
    if sum(asked_once(leaves, listed(schema)[1])) != metadata.num_columns:
        raise InputError(
            f"{describe(path)} has {metadata.num_columns} columns in its footer and another "
            "number in its Arrow schema: write it again without the stored schema."
        )
    return Told(schema, _varying_leaves(schema), alone)


def _looked_at_any(raw: BinaryIO, table: ChunkTable | None, room: Room) -> _Look:
    """Return what there is to know of any file."""
    with _opened(raw.name) as opened:
        metadata, told = opened.metadata, _told(raw.name, opened)
        layout = laid_out(table, told.schema) if table else None
        words = _words_in(raw, layout, told.schema)
        apart = _names_of(told.schema, words)
        variable, texts = _text(raw, layout, told, apart, room, opened)
        sizes = sizes_by_arrow(raw, opened, layout)
        groups = tuple(metadata.row_group(i).num_rows for i in range(metadata.num_row_groups))
        _require_rows(raw.name, groups, metadata.num_rows)
        return _Look(told, layout, groups, words, texts, variable, sizes)


def _require_rows(path: str, groups: Sequence[int], rows: int) -> None:
    """Check that row groups have as many rows as there are in all.

    Raises:
        InputError: They have not.
    """
    if min(groups, default=0) < 0 or sum(groups) != rows:
        raise InputError(
            f"{describe(path)} is damaged: its footer tells of {rows} rows, "
            f"and of {sum(groups)} in its row groups."
        )


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


def _text(
    file: BinaryIO,
    layout: Layout | None,
    told: Told,
    apart_from: Collection[str],
    room: Room,
    opened: pq.ParquetFile | None = None,
) -> tuple[int, Texts]:
    """Return the bytes of columns of variable width, and what is known of text.

    Of text only what its pages don't tell is decoded, and the file opened for that if it is not.

    Raises:
        MemoryLimitError: There is no room for that.
        UnusualError: A page claims more than its chunk has.
    """
    leaves = _varying_apart_from(told, apart_from)
    texts = _texts(file, layout, told.schema, apart_from, room)
    if texts.windows or not leaves:
        return texts.windows[-1] if texts.windows else 0, texts
    if layout and any(layout.rows):
        for leaf in leaves[:: every(len(leaves))]:
            pages = pages_of(file.fileno(), *layout.span(layout.largest, leaf))
            room.require(file.name, max((page.size for page in pages), default=0))
    with nullcontext(opened) if opened else _opened(file.name) as there:
        return text_by_arrow(file, there, layout, leaves), texts


def _varying_apart_from(told: Told, names: Collection[str]) -> list[int]:
    """Return the leaves of columns of variable width but for some columns."""
    return [leaf for leaf, name in told.varying.items() if name not in names]


def _texts(
    file: BinaryIO,
    layout: Layout | None,
    schema: pa.Schema,
    apart_from: Collection[str],
    room: Room,
) -> Texts:
    """Return how much text a file holds; nothing where its pages don't tell."""
    wide = by_column(has_variable_width, schema).items()
    places = [at for at, (name, varies) in enumerate(wide) if varies and name not in apart_from]
    if layout is None or not places or any(_is_nested(schema.field(p).type) for p in places):
        return Texts()
    sampled = [layout.leaves[place] for place in places[:: every(len(places))]]
    windows, longest = texts_in(file, layout, sampled, partial(room.require, file.name))
    return Texts(tuple(size * len(places) // len(sampled) for size in windows), longest)


def _is_nested(kind: pa.DataType) -> bool:
    """Tell whether values of variable width are more than text that is decoded as it stands."""
    return word_type(kind) is None or pa.types.is_dictionary(kind)


def _word_bytes(layout: Layout, words: Iterable[int]) -> int:
    """Return the bytes of a row of some columns in the row group where these are most."""
    leaves = [layout.leaves[place] for place in words]
    rows = np.maximum(np.array(layout.rows, np.int64), 1)
    return int((layout.plain_size[:, leaves].sum(axis=1) / rows).max(initial=0))


def _from_arrow(
    file: BinaryIO, layout: Layout | None, columns: int, peeked_at: int
) -> frozenset[int]:
    """Return the columns that PyArrow must decode, as far as footer and first pages tell.

    Args:
        file: The file.
        layout: Of the file.
        columns: How many there are.
        peeked_at: How many are asked first, about; if one of them is unusual, all are.
    """
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

        if not all(map(usual, plain[:: len(plain) // peeked_at + 1])):
            plain = list(filter(usual, plain))
    return everything - frozenset(plain)


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
        told = _told(path, opened)
        layout = layout_of(footer_of(raw), told.schema)
        apart = {*apart_from, *_names_of(told.schema, _words_in(raw, layout, told.schema))}
        return _text(raw, layout, told, apart, UNLIMITED, opened)
