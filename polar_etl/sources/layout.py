"""Where the column chunks of a Parquet file stand, and which of them hold plain numbers.

Read from the footer's own bytes: PyArrow ends the process when it is asked about a column that is
encrypted.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from polar_etl.columns import listed
from polar_etl.headers import NUMBER, STATISTICS, pages_of
from polar_etl.page_values import Chunk, stored_dtype
from polar_etl.thrift import (
    behind,
    decoded,
    fields_of,
    head_of,
    items_of,
    list_at,
    number,
    signed,
    varint,
)

Ints = npt.NDArray[np.int64]

_PHYSICAL = ("BOOLEAN", "INT32", "INT64", "INT96", "FLOAT", "DOUBLE", "BYTE_ARRAY",
             "FIXED_LEN_BYTE_ARRAY")  # fmt: skip
ZSTD = 6
_CODECS = {0: "UNCOMPRESSED", 1: "SNAPPY", ZSTD: "ZSTD"}
"""By number in the footer: those that tell how large their contents are."""
_NUMBERS = frozenset((0, 2, 3, 4, 8))
"""Encodings of plain values, of places in a dictionary of such, and of levels."""
_WORDS = frozenset((2, 8))
"""Encodings of places in a dictionary."""
_DATA_PAGES = frozenset((0, 3))

_CHUNK = re.compile(
    rb"\x26%(n)b\x1c"  # the chunk's offset, and its metadata:
    rb"(\x15[\x00-\x0e]\x19(?:\x15.|\x25..|\x35...|\x45....))"  # physical type, encodings
    rb"(\x19\x18.+?)"  # name
    rb"\x15([\x00-\x0e])\x16(%(n)b)\x16(%(n)b)\x16(%(n)b)"  # codec, values, two sizes
    rb"\x26(%(n)b)(?:\x26(%(n)b))?"  # offsets of the first data page and of the dictionary
    rb"(?:[\x1c\x3c]%(s)b)?"  # statistics
    rb"(?:[\x19\x29\x49](.(?:\x15.\x15.\x15%(n)b\x00)*))?"  # pages by encoding
    rb"(?:[\x3c\x4c\x5c\x7c](?:\x16%(n)b)?"  # sizes of text, levels by height
    rb"(?:[\x19\x29\x39](?:\x06|\x16%(n)b|\x26%(n)b%(n)b))*\x00)?"
    rb"\x00(?:[\x16\x36]%(n)b\x15%(n)b)*\x00" % {b"n": NUMBER, b"s": STATISTICS},
    re.DOTALL,
)
"""A chunk of a scalar column, as writers describe it."""
_SCALAR = re.compile(rb"\x15([\x00-\x0e])\x25([\x00\x02])\x18")
"""A schema element of a scalar without logical type, up to its name."""
_TOGETHER = 1 << 12
"""Chunks that are taken from a footer at one go."""


class Layout(NamedTuple):
    """The chunks of one file; the arrays have shape (row groups, leaves of the schema)."""

    rows: tuple[int, ...]
    """Rows of each row group."""
    start: Ints
    data: Ints
    """Where the first page behind the dictionary stands: at `start` if there is no dictionary."""
    stop: Ints
    plain_size: Ints
    """Bytes of the chunks before compression, headers included."""
    codec: Ints
    """Number of the codec; -1 where a chunk holds no numbers that are plain or looked up."""
    words: npt.NDArray[np.bool_]
    """Whether all that a chunk of no numbers holds are places in its dictionary. Of other pages
    PyArrow makes words as well, but keeps all of them to the end of the row group."""
    leaves: tuple[int, ...]
    """Of each column: its first leaf."""
    nullable: tuple[bool, ...]
    """Of each column: whether levels stand before its values."""
    stored: tuple[np.dtype[np.generic] | None, ...]
    """Of each column: the dtype of its bytes, None if it holds no numbers."""

    def plain(self) -> list[int]:
        """Return the columns that hold plain numbers wherever they hold any rows."""
        filled = np.array(self.rows, np.int64) > 0
        codec = self.codec[filled][:, list(self.leaves)]
        return np.flatnonzero((codec >= 0).all(axis=0)).tolist()

    def holds_numbers(self, groups: Sequence[int], column: int) -> bool:
        """Tell whether a column holds plain numbers in all of some row groups."""
        codec = self.codec[groups, self.leaves[column]]
        return self.stored[column] is not None and bool((codec >= 0).all())

    def holds_words(self, column: int, file: int | None = None) -> bool:
        """Tell whether all that a column of text holds are places in dictionaries.

        Args:
            column: The column.
            file: Descriptor of the file; its page headers are asked where the footer does not tell.

        Raises:
            UnusualError: A page header is damaged.
        """
        leaf = self.leaves[column]
        filled = [group for group, rows in enumerate(self.rows) if rows]
        return bool(filled) and all(
            bool(self.words[group, leaf])
            or (file is not None and self._has_places_only(file, group, leaf))
            for group in filled
        )

    def _has_places_only(self, file: int, group: int, leaf: int) -> bool:
        if self.data[group, leaf] <= self.start[group, leaf]:
            return False
        pages = pages_of(file, *self.span(group, leaf))
        return all(page.encoding is None or page.encoding in _WORDS for page in pages)

    def require_page_sizes(self, group: int, leaf: int, file: int) -> None:
        """Check that no page of a chunk claims more memory than the whole chunk needs.

        Raises:
            UnusualError: One does.
        """
        for _ in pages_of(file, *self.span(group, leaf)):
            pass

    def tells_of(self, group: int, leaf: int) -> bool:
        """Tell whether it is known where a chunk stands: not if it is encrypted."""
        return bool(self.stop[group, leaf] > self.start[group, leaf])

    def span(self, group: int, leaf: int) -> tuple[int, int, int]:
        """Return where a chunk begins and ends, and its bytes before compression."""
        found = (self.start[group, leaf], self.stop[group, leaf], self.plain_size[group, leaf])
        return int(found[0]), int(found[1]), int(found[2])

    def chunk(self, group: int, column: int) -> Chunk | None:
        """Return where a column's plain values stand, None if PyArrow must read them."""
        leaf = self.leaves[column]
        stored, codec = self.stored[column], self.codec.item(group, leaf)
        if codec < 0 or stored is None:
            return None
        return Chunk(
            start=self.start.item(group, leaf),
            stop=self.stop.item(group, leaf),
            rows=self.rows[group],
            codec=_CODECS[codec],
            nullable=self.nullable[column],
            stored=stored,
            data=self.data.item(group, leaf),
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
            nodes, at = _nodes(footer, at)
            columns = _columns(nodes, schema)
            continue
        if last == 4:
            return _of_groups(footer, at, columns)
        at = behind(footer, at, kind)
    raise ValueError("there are no row groups")


class _Node(NamedTuple):
    """A `SchemaElement`."""

    physical: int | None
    """Number of the type that it is stored as; None if others are beneath it."""
    repetition: int | None
    name: bytes
    """With its length before it."""
    children: int


def _nodes(footer: bytes, at: int) -> tuple[list[_Node], int]:
    """Return the list of schema elements at `at`, depth first, and where it ends."""
    count, at = list_at(footer, at)
    if count > len(footer) - at:
        raise ValueError("it has not the bytes for so many columns")
    found = []
    for _ in range(count):
        node, at = _node(footer, at)
        found.append(node)
    return found, at


def _node(footer: bytes, at: int) -> tuple[_Node, int]:
    usual = _SCALAR.match(footer, at)
    if usual:
        length, start = varint(footer, usual.end())
        stop = start + length
        if not footer[stop]:
            kind, repeated = usual.groups()
            return _Node(decoded(kind), decoded(repeated), footer[usual.end() : stop], 0), stop + 1
    fields, stop = fields_of(footer, at)
    physical, repetition, children = (
        number(footer, fields[place]) if place in fields else None for place in (1, 3, 5)
    )
    name = fields[4]
    return _Node(physical, repetition, footer[name.start : name.stop], children or 0), stop


class _Column(NamedTuple):
    """A column of the schema, as the footer describes it."""

    leaves: int
    path: bytes
    """How its chunks are named; empty if it has several leaves."""
    physical: int
    nullable: bool
    stored: np.dtype[np.generic] | None
    """Dtype of its values, None if they are no plain numbers."""


def _columns(nodes: list[_Node], schema: pa.Schema) -> list[_Column]:
    children = [node.children for node in nodes]
    found: list[_Column] = []
    place = 1
    for kind in listed(schema)[1]:
        first, place, leaves = place, place + 1, 1
        if children[first]:
            place = _behind_subtree(children, first)
            leaves = sum(not count for count in children[first:place])
        found.append(_column(nodes[first], kind, leaves))
    if place != len(nodes) or children[0] != len(schema):
        raise ValueError("its columns are not those of the schema")
    return found


def _behind_subtree(children: list[int], place: int) -> int:
    left = 1
    while left:
        left += children[place] - 1
        place += 1
    return place


def _column(node: _Node, kind: pa.DataType, leaves: int) -> _Column:
    if leaves != 1 or node.physical is None or node.repetition is None:
        return _Column(leaves, b"", 0, True, None)
    stored = stored_dtype(kind, _PHYSICAL[node.physical]) if node.repetition < _REPEATED else None
    path = b"\x19\x18" + node.name
    return _Column(1, path, node.physical, node.repetition == _OPTIONAL, stored)


_OPTIONAL, _REPEATED = 1, 2


def _of_groups(footer: bytes, at: int, columns: list[_Column]) -> Layout:
    """Return the layout of the list of row groups at `at`."""
    groups, at = list_at(footer, at)
    rows: list[int] = []
    leaves = [column for column in columns for _ in range(column.leaves)]
    if groups * len(leaves) > len(footer):
        raise ValueError("it has not the bytes for so many row groups")
    table = np.empty((groups, len(leaves), 7), np.int64)
    filled = set()
    for group in range(groups):
        last = 0
        while footer[at]:
            last, kind, at = head_of(footer, at, last)
            if last == 1:
                count, at = list_at(footer, at)
                if count != len(leaves):
                    raise ValueError("a row group lacks columns")
                for low in range(0, count, _TOGETHER):
                    some = slice(low, low + _TOGETHER)
                    at = _read(footer, at, leaves[some], table[group, some])
                filled.add(group)
            else:
                if last == 3:
                    rows.append(signed(footer, at)[0])
                at = behind(footer, at, kind)
        at += 1
    if len(rows) != groups or len(filled) != groups:
        raise ValueError("a row group lacks fields")
    start, size, codec, values, plain_size, words, data = table.transpose(2, 0, 1)
    return Layout(
        rows=tuple(rows),
        start=start,
        data=np.clip(data, start, start + size),
        stop=start + size,
        plain_size=plain_size,
        words=words > 0,
        codec=np.where(values == np.array(rows, np.int64)[:, None], codec, -1),
        leaves=tuple(accumulate((column.leaves for column in columns[:-1]), initial=0)),
        nullable=tuple(column.nullable for column in columns),
        stored=tuple(column.stored for column in columns),
    )


def _read(footer: bytes, at: int, columns: Sequence[_Column], into: Ints) -> int:
    """Write what is kept of some neighbouring chunks into `into`, and return where they end."""
    done = 0
    while done < len(columns):
        usual = _usual_chunks(footer, at, columns, done)
        if usual:
            some = slice(done, done + len(usual))
            _keep(usual, columns[some], into[some])
            done, at = some.stop, usual[-1].end()
        else:
            into[done], at = _read_any(footer, at, columns[done])
            done += 1
    return at


def _usual_chunks(
    footer: bytes, at: int, columns: Sequence[_Column], first: int
) -> list[re.Match[bytes]]:
    """Return the chunks of the columns from `first` on as long as they are described as usual."""
    found: list[re.Match[bytes]] = []
    for place in range(first, len(columns)):
        chunk = _CHUNK.match(footer, at)
        if chunk is None or chunk[2] != columns[place].path:
            break
        found.append(chunk)
        at = chunk.end()
    return found


def _keep(found: Sequence[re.Match[bytes]], columns: Sequence[_Column], into: Ints) -> None:
    """Write what is kept of usual chunks."""
    kinds, _, codecs, *numbers, pages = zip(*(m.groups(b"\0") for m in found), strict=True)
    values, plain_size, size, data, dictionary = map(_decoded, numbers)
    into[:, 0] = np.where((dictionary > 0) & (dictionary < data), dictionary, data)
    into[:, 1] = size
    into[:, 2] = [
        -1 if column.stored is None else _codec(kind, codec, column.physical)
        for column, kind, codec in zip(columns, kinds, codecs, strict=True)
    ]
    into[:, 3], into[:, 4] = values, plain_size
    into[:, 5] = [
        column.stored is None and _hold_places(some)
        for column, some in zip(columns, pages, strict=True)
    ]
    into[:, 6] = data


def _decoded(raws: Sequence[bytes]) -> Ints:
    """Return signed numbers, each of which is the whole of its bytes."""
    data = np.frombuffer(b"".join(raws), np.uint8)
    lengths = np.fromiter(map(len, raws), np.int64, len(raws))
    starts = np.cumsum(lengths) - lengths
    found = np.zeros(len(raws), np.uint64)
    for place in range(int(lengths.max(initial=0))):
        there = lengths > place
        bits = (data[starts[there] + place] & 127).astype(np.uint64)
        found[there] |= bits << np.uint64(7 * place)
    return (found >> np.uint64(1)).astype(np.int64) ^ -(found & np.uint64(1)).astype(np.int64)


@lru_cache
def _codec(kind: bytes, codec: bytes, physical: int) -> int:
    """Return the number of the codec, -1 where the column does not hold plain numbers."""
    encodings = {decoded(kind[place : place + 1]) for place in range(4, len(kind))}
    plain = decoded(kind[1:2]) == physical and encodings <= _NUMBERS
    return decoded(codec) if plain and decoded(codec) in _CODECS else -1


_NONE = (0, 0, -1, 0, 0, 0, 0)


def _read_any(footer: bytes, at: int, column: _Column) -> tuple[tuple[int, ...], int]:
    """Return what is kept of one chunk, and where it ends."""
    chunk, stop = fields_of(footer, at)
    if 3 not in chunk or 8 in chunk or 9 in chunk or 1 in chunk:
        return _NONE, stop  # encrypted, or in another file
    meta, _ = fields_of(footer, chunk[3].start)
    encodings = {number(footer, item) for item in items_of(footer, meta[2].start)[0]}
    codec = number(footer, meta[4])
    plain = column.stored is not None and number(footer, meta[1]) == column.physical
    plain = plain and encodings <= _NUMBERS and codec in _CODECS
    data = max(number(footer, meta[9]), 0)
    dictionary = number(footer, meta[11]) if 11 in meta else 0
    start = dictionary if 0 < dictionary < data else data
    size, values, plain_size = (number(footer, meta[place]) for place in (7, 5, 6))
    words = column.stored is None and 13 in meta
    words = words and _hold_places(footer[meta[13].start : meta[13].stop])
    return (start, size, codec if plain else -1, values, plain_size, words, data), stop


@lru_cache
def _hold_places(pages: bytes) -> bool:
    """Tell whether a list of `PageEncodingStats` has data pages of places in a dictionary only."""
    found = [fields_of(pages, item.start)[0] for item in items_of(pages, 0)[0]]
    data = [page for page in found if number(pages, page[1]) in _DATA_PAGES]
    return bool(data) and all(number(pages, page[2]) in _WORDS for page in data)
