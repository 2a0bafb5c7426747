"""Column chunks of a row group as bytes, and what the footer of their file says of them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from polar_etl.encoding.contents import Content, Readable
from polar_etl.encoding.page_buffers import Bytes
from polar_etl.pages import thrift
from polar_etl.pages.files import ZSTD
from polar_etl.pages.thrift import BINARY, I16, I32, I64, LIST, STRUCT, TRUE

Ints = npt.NDArray[np.int64]

PHYSICAL = {
    **dict.fromkeys((pa.int8(), pa.int16(), pa.int32()), 1),
    pa.int64(): 2,
    pa.float32(): 4,
    pa.float64(): 5,
    pa.float16(): 7,
}
"""Number of the type that Parquet stores these numbers as."""
_SHORT = 1 << 14
"""Bytes of a piece of content below which writing it alone takes longer than copying it."""
_LONGEST_SAID = 1 << 12
"""Bytes of a value that is not too long to be the least or the greatest in a footer."""
_MANY = 64
"""Numbers that take longer one by one."""
CHUNK_HEAD = b"\x26\x00\x1c"
"""A `ColumnChunk` begins with its deprecated offset, 0, and `ColumnMetaData` comes next."""
SIZES = b"\x16%b\x16%b\x16%b\x26"
"""Of a chunk in the footer: rows, bytes before and after compression; its place comes next."""


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

    content: Readable
    """Their bytes, one behind the other."""
    columns: int
    """How many chunks that are."""
    plain_size: int
    """Bytes of the content, before compression."""
    said: list[bytes]
    """Their entries of the footer, cut where a place in the file has to be said."""
    places: Ints
    """What comes in between, counted from where the content begins."""

    @property
    def size(self) -> int:
        """Bytes of the content."""
        return len(self.content)


def joined(chunks: Sequence[Chunk]) -> Encoded:
    """Return chunks side by side; short pieces of content become one, which is written faster."""
    pieces = [piece for chunk in chunks for piece in chunk.content]
    content = Content(pieces)
    if len(content) < _SHORT * len(pieces):
        content = Content([b"".join(pieces)])
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
    return Encoded(content, len(chunks), plain_size, said, np.array(places, np.int64))


def entry_of(
    name: str, physical: int, encodings: tuple[int, ...], inside: tuple[str, ...] = ()
) -> bytes:
    """Return the entry of a column that has one leaf, up to the sizes.

    Args:
        name: Of the column.
        physical: Number of the type that Parquet stores its values as.
        encodings: Numbers of those of its pages.
        inside: The rest of the leaf's path, if it is no scalar.
    """
    before, behind = _around_path(physical, encodings, 1 + len(inside))
    path = [part.encode() for part in (name, *inside)]
    return b"".join((before, *(thrift.as_varint(len(p)) + p for p in path), behind))


@lru_cache
def _around_path(physical: int, encodings: tuple[int, ...], parts: int) -> tuple[bytes, bytes]:
    """Return what stands before and behind the name of a column in its entry, up to the sizes."""
    head = [
        (1, I32, thrift.as_number(physical)),
        (2, LIST, thrift.as_list(I32, [thrift.as_number(number) for number in encodings])),
        (3, LIST, thrift.list_head(BINARY, parts)),
    ]
    codec = [(4, I32, thrift.as_number(ZSTD))]
    return CHUNK_HEAD + thrift.as_struct(head)[:-1], thrift.as_struct(codec, behind=3)[:-1]


def statistics_of(nulls: int, least: bytes | None = None, greatest: bytes | None = None) -> bytes:
    """Return `Statistics` of a column: how many nulls, and its bounds, as far as they are short.

    Args:
        nulls: How many there are.
        least: The least value as plain Parquet, without its length; None if nothing is there.
        greatest: The greatest one.
    """
    said = [(3, I64, thrift.as_number(nulls))]
    exact = []
    for place, bound in ((5, greatest), (6, least)):
        if bound is not None and len(bound) <= _LONGEST_SAID:
            said.append((place, BINARY, thrift.as_varint(len(bound)) + bound))
            exact.append((place + 2, TRUE, b""))
    return thrift.as_struct([*said, *exact])


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
    numbers = numbers_of(encoded.places + place)
    entries = [b""] * (len(encoded.said) + len(numbers))
    entries[::2], entries[1::2] = encoded.said, numbers
    return Placed(place, encoded.columns, encoded.size, encoded.plain_size, b"".join(entries))


def numbers_of(values: Ints) -> list[bytes]:
    """Return signed numbers as `thrift.as_number` does, many of them at one go."""
    if len(values) < _MANY:
        return list(map(thrift.as_number, values.tolist()))
    if (values == values[0]).all():  # as pages of one table are, as a rule
        return [thrift.as_number(int(values[0]))] * len(values)
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
