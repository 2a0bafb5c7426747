"""Where the column chunks of a Parquet file stand, and which of them hold plain numbers.

Read from the footer's own bytes: PyArrow ends the process when it is asked about a column that is
encrypted.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from polar_etl.headers import pages_of
from polar_etl.pages import Chunk, stored_dtype
from polar_etl.thrift import (
    Field,
    behind,
    decoded,
    fields_of,
    head_of,
    items_of,
    list_at,
    number,
    often,
    signed,
)

_PHYSICAL = ("BOOLEAN", "INT32", "INT64", "INT96", "FLOAT", "DOUBLE", "BYTE_ARRAY",
             "FIXED_LEN_BYTE_ARRAY")  # fmt: skip
_CODECS = {0: "UNCOMPRESSED", 1: "SNAPPY", 6: "ZSTD"}
"""By number in the footer: those that tell how large their contents are."""
_PLAIN = frozenset((0, 3, 4))
"""Encodings of plain values and of levels."""
_WORDS = frozenset((2, 8))
"""Encodings of places in a dictionary."""
_DATA_PAGES = frozenset((0, 3))

_NUMBER = rb"([\x80-\xff]{0,9}[\x00-\x7f])"
_HEAD = re.compile(
    rb"\x26%b\x1c\x15([\x00-\x0e])\x19(?:\x15(.)|\x25(..)|\x35(...))" % _NUMBER, re.DOTALL
)
"""A chunk as most writers begin it: offset, physical type, encodings; then comes its name."""
_SIZES = re.compile(rb"\x15([\x00-\x0e])\x16%b\x16%b\x16%b\x26%b" % ((_NUMBER,) * 4))
"""And what they put behind the name: codec, values, two sizes, offset of the first data page."""


@dataclass(frozen=True, slots=True)
class Layout:
    """The chunks of one file; the arrays have shape (row groups, leaves of the schema)."""

    rows: tuple[int, ...]
    """Rows of each row group."""
    start: npt.NDArray[np.int64]
    stop: npt.NDArray[np.int64]
    plain_size: npt.NDArray[np.int64]
    """Bytes of the chunks before compression, headers included."""
    codec: npt.NDArray[np.int64]
    """Number of the codec; -1 where a chunk is none of plain numbers."""
    words: npt.NDArray[np.bool_]
    """Whether all that a chunk of text holds are places in its dictionary. Of other pages PyArrow
    makes words as well, but keeps all of them to the end of the row group."""
    leaves: tuple[int, ...]
    """Of each column: its first leaf."""
    nullable: tuple[bool, ...]
    """Of each column: whether levels stand before its values."""
    stored: tuple[np.dtype[np.generic] | None, ...]
    """Of each column: the dtype of its bytes, None if it holds no plain numbers."""

    def plain(self) -> list[int]:
        """Return the columns that hold plain numbers wherever they hold any rows."""
        filled = np.array(self.rows, np.int64) > 0
        codec = self.codec[filled][:, list(self.leaves)]
        return np.flatnonzero((codec >= 0).all(axis=0)).tolist()

    def holds_numbers(self, groups: Sequence[int], column: int) -> bool:
        """Tell whether a column holds plain numbers in all of some row groups."""
        codec = self.codec[groups, self.leaves[column]]
        return self.stored[column] is not None and bool((codec >= 0).all())

    def holds_words(self, column: int) -> bool:
        """Tell whether all that a column of text holds are places in dictionaries."""
        filled = np.array(self.rows, np.int64) > 0
        return bool(filled.any() and self.words[filled, self.leaves[column]].all())

    def require_page_sizes(self, group: int, leaf: int, file: int) -> None:
        """Check that no page of a chunk claims more memory than the whole chunk needs.

        Raises:
            UnusualError: One does.
        """
        for _ in pages_of(file, *self.span(group, leaf)):
            pass

    def span(self, group: int, leaf: int) -> tuple[int, int, int]:
        """Return where a chunk begins and ends, and its bytes before compression."""
        found = (self.start[group, leaf], self.stop[group, leaf], self.plain_size[group, leaf])
        return int(found[0]), int(found[1]), int(found[2])

    def chunk(self, group: int, column: int) -> Chunk | None:
        """Return where a column's plain values stand, None if PyArrow must read them."""
        leaf = self.leaves[column]
        stored, codec = self.stored[column], int(self.codec[group, leaf])
        if codec < 0 or stored is None:
            return None
        return Chunk(
            start=int(self.start[group, leaf]),
            stop=int(self.stop[group, leaf]),
            rows=self.rows[group],
            codec=_CODECS[codec],
            nullable=self.nullable[column],
            stored=stored,
        )


def layout_of(footer: bytes, schema: pa.Schema) -> Layout | None:
    """Return the layout of a file, None if its footer is too unusual to tell.

    Args:
        footer: Bytes of the Thrift struct `FileMetaData`.
        schema: The columns that PyArrow sees.
    """
    try:
        return _layout_of(footer, schema)
    except (ValueError, KeyError, IndexError, OverflowError, RecursionError):
        return None


def _layout_of(footer: bytes, schema: pa.Schema) -> Layout:
    columns: list[_Column] = []
    at = last = 0
    while footer[at]:
        last, kind, at = head_of(footer, at, last)
        if last == 2:
            columns = _columns(footer, at, schema)
        if last == 4:
            return _of_groups(footer, at, columns)
        at = behind(footer, at, kind)
    raise ValueError("there are no row groups")


@dataclass(frozen=True, slots=True)
class _Column:
    """A column of the schema, as the footer describes it."""

    leaves: int
    path: bytes
    """How its chunks are named; empty if it has several leaves."""
    physical: int
    nullable: bool
    stored: np.dtype[np.generic] | None
    """Dtype of its values, None if they are no plain numbers."""


def _columns(footer: bytes, at: int, schema: pa.Schema) -> list[_Column]:
    elements, _ = items_of(footer, at)
    nodes = [fields_of(footer, element.start)[0] for element in elements]
    children = [number(footer, node[5]) if 5 in node else 0 for node in nodes]
    found: list[_Column] = []
    place = 1
    for field in schema:
        first, place = place, _behind_subtree(children, place)
        leaves = sum(not count for count in children[first:place])
        found.append(_column(footer, nodes[first], field.type, leaves))
    if place != len(nodes) or children[0] != len(schema):
        raise ValueError("its columns are not those of the schema")
    return found


def _behind_subtree(children: list[int], place: int) -> int:
    left = 1
    while left:
        left += children[place] - 1
        place += 1
    return place


def _column(footer: bytes, node: dict[int, Field], kind: pa.DataType, leaves: int) -> _Column:
    if leaves != 1 or 1 not in node or 3 not in node:
        return _Column(leaves, b"", 0, True, None)
    name = footer[node[4].start : node[4].stop]
    physical, repetition = number(footer, node[1]), number(footer, node[3])
    stored = stored_dtype(kind, _PHYSICAL[physical]) if repetition < _REPEATED else None
    return _Column(1, b"\x19\x18" + name, physical, repetition == _OPTIONAL, stored)


_OPTIONAL, _REPEATED = 1, 2


def _of_groups(footer: bytes, at: int, columns: list[_Column]) -> Layout:
    """Return the layout of the list of row groups at `at`."""
    chunks = _ChunkReader(footer)
    groups, at = list_at(footer, at)
    rows: list[int] = []
    leaves = sum(column.leaves for column in columns)
    if groups * leaves > len(footer):
        raise ValueError("it has not the bytes for so many row groups")
    table = np.empty((groups, leaves, 6), np.int64)
    filled = set()
    for group in range(groups):
        last = 0
        while footer[at]:
            last, kind, at = head_of(footer, at, last)
            if last == 1:
                count, at = list_at(footer, at)
                if count != leaves:
                    raise ValueError("a row group lacks columns")
                found = []
                for column in columns:
                    for _ in range(column.leaves):
                        chunk, at = chunks.read(at, column)
                        found.append(chunk)
                table[group] = found
                filled.add(group)
            else:
                if last == 3:
                    rows.append(signed(footer, at)[0])
                at = behind(footer, at, kind)
        at += 1
    if len(rows) != groups or len(filled) != groups:
        raise ValueError("a row group lacks fields")
    start, size, codec, values, plain_size, words = table.transpose(2, 0, 1)
    return Layout(
        rows=tuple(rows),
        start=start,
        stop=start + size,
        plain_size=plain_size,
        words=words > 0,
        codec=np.where(values == np.array(rows, np.int64)[:, None], codec, -1),
        leaves=tuple(accumulate((column.leaves for column in columns[:-1]), initial=0)),
        nullable=tuple(column.nullable for column in columns),
        stored=tuple(column.stored for column in columns),
    )


_NONE = (0, 0, -1, 0, 0, 0)


@lru_cache
def _are_plain(*encodings: bytes) -> bool:
    return set(b"".join(encodings)) <= _PLAIN_BYTES


class _ChunkReader:
    """Reads `ColumnChunk` structs.

    What stands behind the sizes is mostly the same from column to column: it is looked at once.
    """

    def __init__(self, footer: bytes) -> None:
        self._footer = footer
        self._rest = b"\xff"
        """What stood behind the sizes of an earlier chunk, to its end."""

    def read(self, at: int, column: _Column) -> tuple[tuple[int, ...], int]:
        """Return what is kept of a chunk, see `Layout`, and where it ends."""
        footer = self._footer
        head = _HEAD.match(footer, at)
        if head is None or column.stored is None or not footer.startswith(column.path, head.end()):
            return self._slowly(at, column)
        sizes = _SIZES.match(footer, head.end() + len(column.path))
        if sizes is None:
            return self._slowly(at, column)
        if not footer.startswith(self._rest, sizes.end()):
            found = self._slowly(at, column)
            if found[0][2] >= 0:
                self._rest = footer[sizes.end() : found[1]]
            return found
        _, physical, *encodings = head.groups(b"")
        codec, values, plain_size, size, start = sizes.groups()
        plain = _are_plain(*encodings) and physical[0] >> 1 == column.physical
        codec_number = codec[0] >> 1
        return (
            decoded(start),
            decoded(size),
            codec_number if plain and codec_number in _CODECS else -1,
            often(values),
            often(plain_size),
            0,
        ), sizes.end() + len(self._rest)

    def _slowly(self, at: int, column: _Column) -> tuple[tuple[int, ...], int]:
        footer = self._footer
        chunk, stop = fields_of(footer, at)
        if 3 not in chunk or 8 in chunk or 9 in chunk or 1 in chunk:
            return _NONE, stop  # encrypted, or in another file
        meta, _ = fields_of(footer, chunk[3].start)
        encodings = {number(footer, item) for item in items_of(footer, meta[2].start)[0]}
        codec = number(footer, meta[4])
        plain = column.stored is not None and number(footer, meta[1]) == column.physical
        plain = plain and 11 not in meta and encodings <= _PLAIN and codec in _CODECS
        start = min(number(footer, meta[place]) for place in (9, 11) if place in meta)
        size, values, plain_size = (number(footer, meta[place]) for place in (7, 5, 6))
        words = 13 in meta and _holds_places(footer, meta[13].start)
        return (max(start, 0), size, codec if plain else -1, values, plain_size, words), stop


def _holds_places(footer: bytes, at: int) -> bool:
    """Tell whether a list of `PageEncodingStats` has data pages of places in a dictionary only."""
    pages = [fields_of(footer, item.start)[0] for item in items_of(footer, at)[0]]
    found = [page for page in pages if number(footer, page[1]) in _DATA_PAGES]
    return bool(found) and all(number(footer, page[2]) in _WORDS for page in found)


_PLAIN_BYTES = frozenset(2 * encoding for encoding in _PLAIN)
