"""What the bytes of a footer say of the column chunks of a file; no schema is needed for it.

PyArrow takes a microsecond and a kilobyte to read what is said of a chunk, and ends the process
when it is asked about a column that is encrypted.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from itertools import takewhile
from operator import attrgetter
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from polar_etl.footers.alike import alike, signed_of
from polar_etl.footers.schema import PHYSICAL, FooterColumn, columns_at
from polar_etl.pages.files import CODECS
from polar_etl.pages.headers import NUMBER, STATISTICS
from polar_etl.pages.thrift import (
    MAGIC,
    STRUCT,
    as_number,
    behind,
    decoded,
    fields_of,
    footer_end,
    head_of,
    items_of,
    list_at,
    list_head,
    number,
    signed,
)

Ints = npt.NDArray[np.int64]

_BYTES = PHYSICAL.index("BYTE_ARRAY")
_NUMBERS = frozenset((0, 2, 3, 4, 5, 8, 9))
"""Encodings of numbers, and of levels."""
WORDS = frozenset((2, 8))
"""Encodings of places in a dictionary."""
_DATA_PAGES = frozenset((0, 3))

_CHUNK = re.compile(
    rb"\x26%(n)b\x1c"  # the chunk's offset, and its metadata:
    rb"(\x15[\x00-\x0e]\x19(?:\x15.|\x25..|\x35...|\x45....))"  # physical type, encodings
    rb"(\x19\x18.+?)"  # name
    rb"\x15([\x00-\x0e])"  # codec
    rb"(\x16%(n)b\x16%(n)b\x16%(n)b"  # values, two sizes
    rb"\x26%(n)b(?:\x26%(n)b)?)"  # offsets of the first data page and of the dictionary
    rb"(?:[\x1c\x3c]%(s)b)?"  # statistics
    rb"(?:[\x19\x29\x49](.(?:\x15.\x15.\x15%(n)b\x00)*))?"  # pages by encoding
    rb"(?:[\x3c\x4c\x5c\x7c](?:\x16%(n)b)?"  # sizes of text, levels by height
    rb"(?:[\x19\x29\x39](?:\x06|\x16%(n)b|\x26%(n)b%(n)b))*\x00)?"
    rb"\x00(?:[\x16\x36]%(n)b\x15%(n)b)*\x00" % {b"n": NUMBER, b"s": STATISTICS},
    re.DOTALL,
)
"""A chunk of a scalar column, as writers describe it."""
_TOGETHER = 1 << 12
"""Chunks that are taken from a footer at one go."""
_WORTHWHILE = 1 << 7
"""So many chunks that are alike are read faster at one go than one by one (measured)."""


class ChunkTable(NamedTuple):
    """What a footer says of chunks; the arrays have shape (row groups, leaves)."""

    columns: tuple[FooterColumn, ...]
    rows: tuple[int, ...]
    """Rows of each row group."""
    start: Ints
    data: Ints
    """Where the first page behind the dictionary stands: at `start` if there is no dictionary."""
    stop: Ints
    """Not behind `start` where the footer does not tell where a chunk stands: it is encrypted."""
    codec: Ints
    """Number of the codec; -1 where a chunk has other encodings than numbers have, or another type
    than the schema says."""
    values: Ints
    plain_size: Ints
    """Bytes of the chunks before compression, headers included."""
    words: npt.NDArray[np.bool_]
    """Whether all that a chunk of bytes holds are places in its dictionary."""
    all_rows: tuple[int, int]
    """From where to where the footer tells the number of all rows."""
    groups: tuple[int, int]
    """From where to where in the footer row groups are described."""

    @property
    def is_all_scalar(self) -> bool:
        """Whether all columns are scalars, none of them encrypted."""
        told = (self.stop > self.start)[np.array(self.rows, np.int64) > 0]
        return all(column.is_scalar for column in self.columns) and bool(told.all())


def chunk_table(footer: bytes) -> ChunkTable | None:
    """Return what a footer says of its chunks, None if it is too unusual to tell.

    Args:
        footer: Bytes of the Thrift struct `FileMetaData`.
    """
    try:
        return _chunk_table(footer)
    except (ValueError, KeyError, IndexError, OverflowError, RecursionError):
        return None


def schema_alone(footer: bytes, table: ChunkTable) -> bytes | None:
    """Return a file of the same schema without rows, for PyArrow to tell what the columns are.

    Files that differ in nothing but rows have the same one.

    Args:
        footer: With its length and the magic bytes behind it.
        table: What it says of chunks.

    Returns:
        The file; None if not all columns are scalars that are not encrypted.
    """
    is_whole = int.from_bytes(footer[-8:-4], "little") == len(footer) - 8
    if not (is_whole and footer[-4:] == MAGIC and table.is_all_scalar):
        return None
    (rows, behind_rows), (groups, behind_groups) = table.all_rows, table.groups
    before, between, after = footer[:rows], footer[behind_rows:groups], footer[behind_groups:-8]
    rest = b"".join((before, as_number(0), between, list_head(STRUCT, 0), after))
    return b"".join((MAGIC, rest, footer_end(len(rest))))


def _chunk_table(footer: bytes) -> ChunkTable:
    columns: tuple[FooterColumn, ...] = ()
    rows: tuple[int, int] | None = None
    at = last = 0
    while footer[at]:
        last, kind, at = head_of(footer, at, last)
        if last == 2:
            columns, at = columns_at(footer, at)
            continue
        if last == 4 and rows:
            return _of_groups(footer, at, columns, rows)
        stop = behind(footer, at, kind)
        if last == 3:
            rows = at, stop
        at = stop
    raise ValueError("there are no row groups")


def _of_groups(
    footer: bytes, first: int, columns: tuple[FooterColumn, ...], all_rows: tuple[int, int]
) -> ChunkTable:
    """Return what the list of row groups at `first` says."""
    groups, at = list_at(footer, first)
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
    return ChunkTable(
        columns=columns,
        rows=tuple(rows),
        start=start,
        data=np.clip(data, start, start + size),
        stop=start + size,
        codec=codec,
        values=values,
        plain_size=plain_size,
        words=words > 0,
        all_rows=all_rows,
        groups=(first, at),
    )


def _read(footer: bytes, at: int, columns: Sequence[FooterColumn], into: Ints) -> int:
    """Write what is kept of some neighbouring chunks into `into`, and return where they end."""
    done, apart = 0, _WORTHWHILE
    while done < len(columns):
        stop = min(done + apart, len(columns))
        start, at = _read_apart(footer, at, columns[done:stop], into[done:stop])
        many, at = _read_alike(footer, start, at, columns[stop - 1 :], into[stop - 1 :])
        done = stop + many
        apart = 1 if many >= _WORTHWHILE else min(2 * apart, _TOGETHER)
    return at


def _read_apart(
    footer: bytes, at: int, columns: Sequence[FooterColumn], into: Ints
) -> tuple[int, int]:
    """Write what is kept of some chunks, and return where the last one begins and ends."""
    start, done = at, 0
    while done < len(columns):
        usual = _usual_chunks(footer, at, columns, done)
        if usual:
            some = slice(done, done + len(usual))
            _keep(usual, columns[some], into[some])
            done, (start, at) = some.stop, usual[-1].span()
        else:
            start = at
            into[done], at = _read_any(footer, at, columns[done])
            done += 1
    return start, at


def _read_alike(
    footer: bytes, start: int, at: int, columns: Sequence[FooterColumn], into: Ints
) -> tuple[int, int]:
    """Write what is kept of chunks that are described like the one before them.

    Args:
        footer: The footer.
        start: Where the one before them begins.
        at: Where it ends.
        columns: Of that one, and of those behind it.
        into: What is kept of that one, and where that of the others goes.

    Returns:
        How many they are, and where the last one ends.
    """
    codec, words = into[0, [2, 5]].tolist()
    done, most = 1, _WORTHWHILE
    while codec >= 0 and done < len(columns):
        asked = list(takewhile(attrgetter("path"), columns[done : done + most]))
        found = alike(footer, start, at, [column.path for column in asked])
        stop, at = done + found.many, found.stop
        physical = np.array([column.physical for column in columns[done:stop]], np.int64)
        data, dictionary = found.numbers[9], found.numbers.get(11, 0)
        into[done:stop, 0] = _starts(data, dictionary)
        into[done:stop, 1] = found.numbers[7]
        into[done:stop, 2] = np.where(physical == columns[0].physical, codec, -1)
        into[done:stop, 3], into[done:stop, 4] = found.numbers[5], found.numbers[6]
        into[done:stop, 5] = np.where(physical == _BYTES, words, 0)
        into[done:stop, 6] = data
        done, most = stop, 16 * most
        if found.many < len(asked) or not asked:
            break
    return done - 1, at


def _usual_chunks(
    footer: bytes, at: int, columns: Sequence[FooterColumn], first: int
) -> list[re.Match[bytes]]:
    """Return the chunks of the columns from `first` on as long as they are described as usual."""
    found: list[re.Match[bytes]] = []
    for column in columns[first:]:
        chunk = _CHUNK.match(footer, at)
        if chunk is None or chunk[2] != column.path:
            break
        found.append(chunk)
        at = chunk.end()
    return found


def _keep(found: Sequence[re.Match[bytes]], columns: Sequence[FooterColumn], into: Ints) -> None:
    """Write what is kept of usual chunks."""
    kinds, codecs, numbers = ([chunk[group] for chunk in found] for group in (1, 3, 4))
    physical = [column.physical for column in columns]
    values, plain_size, size, data, dictionary = _numbers(numbers)
    into[:, 0] = _starts(data, dictionary)
    into[:, 1] = size
    into[:, 2] = list(map(_codec, kinds, codecs, physical))
    into[:, 3], into[:, 4], into[:, 5] = values, plain_size, 0
    for at, kind in enumerate(physical):
        if kind == _BYTES:
            into[at, 5] = _hold_places(found[at][5] or b"\0")
    into[:, 6] = data


def _starts(data: Ints, dictionary: Ints | int) -> Ints:
    """Return where chunks begin, from where pages and dictionaries do; 0 if there is none."""
    return np.where((dictionary > 0) & (dictionary < data), dictionary, data)


def _numbers(raws: Sequence[bytes]) -> Ints:
    """Return the values of five fields each, shape (5, chunks); the last is 0 where it is missing.

    What stands before each value can be read as one, too: it is a byte below 128.
    """
    data = np.frombuffer(b"".join(raws), np.uint8)
    stops = np.flatnonzero(data < 128) + 1
    starts = np.concatenate([[0], stops])
    behind = np.searchsorted(stops, np.cumsum(np.fromiter(map(len, raws), np.int64, len(raws)))) + 1
    first = np.concatenate([[0], behind[:-1]])
    places = first + np.array([[1], [3], [5], [7], [9]])
    places[-1] = np.where(places[-1] < behind, places[-1], 0)  # that is no value, but one byte
    start, lengths = starts[places], stops[places] - starts[places]
    found = np.zeros(places.shape, np.uint64)
    for place in range(int(lengths.max(initial=0))):
        bits = (data[np.minimum(start + place, len(data) - 1)] & 127).astype(np.uint64)
        found |= np.where(lengths > place, bits << np.uint64(7 * place), np.uint64(0))
    found[-1, places[-1] == 0] = 0
    return signed_of(found)


@lru_cache
def _codec(kind: bytes, codec: bytes, physical: int) -> int:
    """Return the number of the codec, -1 where the column does not hold plain numbers."""
    encodings = {decoded(kind[place : place + 1]) for place in range(4, len(kind))}
    plain = decoded(kind[1:2]) == physical and encodings <= _NUMBERS
    return decoded(codec) if plain and decoded(codec) in CODECS else -1


_NONE = (0, 0, -1, 0, 0, 0, 0)


def _read_any(footer: bytes, at: int, column: FooterColumn) -> tuple[tuple[int, ...], int]:
    """Return what is kept of one chunk, and where it ends."""
    chunk, stop = fields_of(footer, at)
    if 3 not in chunk or 8 in chunk or 9 in chunk or 1 in chunk:
        return _NONE, stop  # encrypted, or in another file
    meta, _ = fields_of(footer, chunk[3].start)
    encodings = {number(footer, item) for item in items_of(footer, meta[2].start)[0]}
    codec = number(footer, meta[4])
    plain = column.is_scalar and number(footer, meta[1]) == column.physical
    plain = plain and encodings <= _NUMBERS and codec in CODECS
    data = max(number(footer, meta[9]), 0)
    dictionary = number(footer, meta[11]) if 11 in meta else 0
    start = dictionary if 0 < dictionary < data else data
    size, values, plain_size = (number(footer, meta[place]) for place in (7, 5, 6))
    words = column.physical == _BYTES and 13 in meta
    words = words and _hold_places(footer[meta[13].start : meta[13].stop])
    return (start, size, codec if plain else -1, values, plain_size, words, data), stop


@lru_cache
def _hold_places(pages: bytes) -> bool:
    """Tell whether a list of `PageEncodingStats` has data pages of places in a dictionary only."""
    found = [fields_of(pages, item.start)[0] for item in items_of(pages, 0)[0]]
    data = [page for page in found if number(pages, page[1]) in _DATA_PAGES]
    return bool(data) and all(number(pages, page[2]) in WORDS for page in data)
