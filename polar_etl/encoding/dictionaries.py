"""Columns as places in a dictionary of their own: chunks that repeat few different values."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain, islice
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from zlib_ng import zlib_ng

from polar_etl.columns import Bools, is_valid, piece_of
from polar_etl.encoding.chunks import PHYSICAL, SIZES, Chunk, Described, entry_of, statistics_of
from polar_etl.encoding.compression import compressed
from polar_etl.encoding.page_buffers import PAGE_BYTES, Bytes, filled_pages, page_lengths
from polar_etl.encoding.repeats import Repeats
from polar_etl.encoding.words import letters_of
from polar_etl.pages import thrift

Ints = npt.NDArray[np.int64]
Places = npt.NDArray[np.unsignedinteger[Any]]

_BYTE_ARRAY = 6
_TEXT_ROWS = PAGE_BYTES // 4
"""Rows of a page of text."""
_FEW_WORDS, _LETTERS_TRIED = 1 << 6, 1 << 5
"""So few words are compared as they are; of more, so many letters are looked at before."""
_ENCODINGS = (0, 3, 8)
"""Of a chunk: the plain values of the dictionary, levels in runs, places."""
_PLACES = b"\x15\x00\x15%b\x15%b\x15%b\x1c\x15%b\x15\x10\x15\x06\x15\x06\x00\x00"
"""Header of a data page with checksum: places in a dictionary, levels in runs."""
_DICTIONARY = b"\x15\x04\x15%b\x15%b\x15%b\x3c\x15%b\x15\x00\x00\x00"
"""Header of a dictionary with checksum: plain values."""
_PAGES = b"\x2c\x15\x04\x15\x00\x15\x02\x00\x15\x00\x15\x10\x15%b\x00"
"""Pages of a chunk by encoding: one dictionary, and so many pages of places in it."""


class LookedUp(NamedTuple):
    """A column as places in a dictionary."""

    physical: int
    """Number of the type that Parquet stores its values as."""
    words: Bytes
    """The values of the dictionary, as plain Parquet."""
    many: int
    """How many they are."""
    places: Places
    """Which of them stands in each row that is not null."""
    valid: Bools | None
    """Which rows are not null; None if all are."""
    rows: int
    length: int
    """Rows of a page, the last one excepted."""
    statistics: bytes = b""
    """What the footer says of the values, as `Statistics`; empty if nothing."""

    def page_rows(self) -> list[int]:
        """Return the rows of each page."""
        return page_lengths(self.rows, self.length)

    def pages(self, *, nullable: bool) -> Iterator[Bytes]:
        """Yield the pages of places, with levels where a column may have nulls."""
        lengths = self.page_rows()
        return filled_pages(self.places, self.valid, lengths, _run_of, nullable=nullable)


def looked_up_numbers(values: npt.NDArray[np.floating], repeats: Repeats, rows: int) -> LookedUp:
    """Return a column of numbers.

    Args:
        values: What becomes of each of its different values.
        repeats: Which of them stands where.
        rows: How long the column is.
    """
    physical = PHYSICAL[pa.from_numpy_dtype(values.dtype)]
    words, length = values.view(np.uint8).data, PAGE_BYTES // values.itemsize
    return LookedUp(physical, words, len(values), repeats.places, repeats.valid, rows, length)


def looked_up_text(text: pa.DictionaryArray) -> LookedUp:
    """Return a column of text, from its words and their places."""
    valid = is_valid(text) if text.null_count else None
    places = piece_of(text.indices).values
    places = places if valid is None else places[valid]
    many = len(text.dictionary)
    width = np.uint8 if many <= 1 << 8 else np.uint16 if many <= 1 << 16 else np.uint32
    return LookedUp(
        _BYTE_ARRAY,
        _plain_text(text.dictionary),
        many,
        places.astype(width),
        valid,
        len(text),
        _TEXT_ROWS,
        statistics_of(text.null_count, *_extremes(text.dictionary)),
    )


def _plain_text(words: pa.Array) -> bytes:
    """Return texts as Parquet has them: behind its length each."""
    ends, letters = letters_of(words)
    lengths = np.diff(ends)
    heads = ends[:-1] - ends[0] + 4 * np.arange(len(words))
    found = np.empty(int(ends[-1] - ends[0]) + 4 * len(words), np.uint8)
    is_letter = np.ones(len(found), np.bool_)
    for byte in range(4):
        found[heads + byte] = (lengths >> (8 * byte)) & 255
        is_letter[heads + byte] = False
    found[is_letter] = letters[ends[0] : ends[-1]]
    return found.tobytes()


def _extremes(words: pa.Array) -> tuple[bytes, bytes]:
    """Return the least and the greatest word; there is one at least, and no null.

    Of many words those are left out, letter by letter, that are neither, so that a few are left
    that are compared as they are.
    """
    ends, letters = letters_of(words)
    first, stop = ends[:-1].astype(np.int64), ends[1:].astype(np.int64)
    shared = _shared(first, stop, letters)
    found = []
    for of_letters, of_words in ((np.min, min), (np.max, max)):
        low, high = first, stop
        for at in range(shared, shared + _LETTERS_TRIED):
            if len(low) <= _FEW_WORDS:
                break
            there = low + at < high
            some = np.where(there, letters[np.where(there, low + at, 0)].astype(np.int16), -1)
            left = some == of_letters(some)
            low, high = low[left], high[left]
        bounds = zip(low.tolist(), high.tolist(), strict=True)
        found.append(of_words(bytes(letters[start:end]) for start, end in bounds))
    return found[0], found[1]


def _shared(first: Ints, stop: Ints, letters: npt.NDArray[np.uint8]) -> int:
    """Return how many letters all of some words begin with, as far as it is looked for."""
    most = min(int((stop - first).min()), _LETTERS_TRIED)
    for at in range(most):
        letter = letters[first + at]
        if (letter != letter[0]).any():
            return at
    return most


def _run_of(places: Places) -> bytes:
    """Return places as one run of bits, behind the byte that tells how many each has.

    Whole bytes are taken, more than some would need: what is too much compresses well.
    """
    width = bytes((8 * places.itemsize,))
    if not len(places):
        return width
    groups = -(-len(places) // 8)
    more = bytes((8 * groups - len(places)) * places.itemsize)
    return b"".join((width, thrift.as_varint(groups << 1 | 1), places.tobytes(), more))


def looked_up_chunks(
    columns: Sequence[tuple[pa.Field, LookedUp]], level: int | None
) -> list[Chunk]:
    """Return columns as chunks; all of their pages are compressed at one go.

    Args:
        columns: Scalar columns, each with what it is called and whether it may have nulls.
        level: Of zstd, see `compressed`.
    """
    pages = [[column.words, *column.pages(nullable=field.nullable)] for field, column in columns]
    bodies = iter(compressed(list(chain.from_iterable(pages)), level))
    return [
        _chunk(field.name, column, some, list(islice(bodies, len(some))))
        for (field, column), some in zip(columns, pages, strict=True)
    ]


def _chunk(
    path: str, column: LookedUp, pages: Sequence[Bytes], bodies: Sequence[memoryview]
) -> Chunk:
    """Return a column as a chunk, from its pages and what they are compressed to."""
    content: list[Bytes] = []
    heads = [_DICTIONARY] + [_PLACES] * (len(pages) - 1)
    rows = column.many, *column.page_rows()
    for head, page, body, many in zip(heads, pages, bodies, rows, strict=True):
        checksum = zlib_ng.crc32(body)
        said = len(page), len(body), checksum - (checksum >> 31 << 32), many
        content += head % tuple(map(thrift.as_number, said)), body
    size = sum(map(len, content))
    plain_size = size + sum(map(len, pages)) - sum(map(len, bodies))
    first = len(content[0]) + len(content[1])
    entry = _entry(path, column, size, plain_size, first)
    return Chunk(content, Described(size, plain_size, entry))


def _entry(
    path: str, column: LookedUp, size: int, plain_size: int, first: int
) -> tuple[bytes | int, ...]:
    """Return the `ColumnChunk` of the footer.

    Args:
        path: Name of the column.
        column: The column.
        size: Bytes of the chunk.
        plain_size: The same, before compression.
        first: Where its first data page stands.
    """
    sizes = SIZES % tuple(map(thrift.as_number, (column.rows, plain_size, size)))
    said = entry_of(path, column.physical, _ENCODINGS) + sizes
    pages = _PAGES % thrift.as_number(len(column.page_rows()))
    more = b"\x1c" + column.statistics + b"\x19" if column.statistics else b"\x29"
    return said, first, b"\x26", 0, b"".join((more, pages, b"\0\0"))
