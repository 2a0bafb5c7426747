"""Headers of Parquet pages: what comes next, and how many bytes it takes."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from functools import lru_cache
from typing import Literal, NamedTuple

from polar_etl.pages import thrift
from polar_etl.pages.thrift import I32, STRUCT

Holds = Literal["values", "places", "others", "dictionary"]

DATA, DICTIONARY, _DATA_V2 = 0, 2, 3
"""Types of pages: data of the first version, dictionaries, data of the second version."""
PLAIN, RLE = 0, 3
"""Numbers of the encodings of plain values, and of numbers in runs, as levels are."""
_HOLDS: dict[int, Holds] = {0: "values", 2: "places", 8: "places", 5: "others", 9: "others"}
"""What pages hold, by their encoding: plain values, places in a dictionary, and the encodings
`DELTA_BINARY_PACKED` and `BYTE_STREAM_SPLIT`."""
PLACES = [number for number, holds in _HOLDS.items() if holds == "places"]
"""Numbers of the encodings of places in a dictionary."""
HEADER = 256
"""Bytes that hold a header, as a rule."""
_LONGEST_HEADER = 1 << 16
_SHORT_OF = 100
"""Bytes by which old writers tell too little of a chunk: the dictionary page's header."""
STRUCTS = {DATA: 5, DICTIONARY: 7, _DATA_V2: 8}
"""Fields of `PageHeader` that hold what is said of each kind of page."""
_KINDS = {5: 2, 7: None, 8: 4}
"""Fields of `PageHeader` whose structs begin with the number of values, and where these tell the
encoding: of data pages, version 1, of dictionaries, and of data pages, version 2."""
_LONGEST_VALUE = 1 << 30


class UnusualError(ValueError):
    """A page is of a kind, or damaged in a way, that PyArrow must deal with."""


class LongValueError(UnusualError):
    """A page holds a value so long that no two of them fit into an Arrow array."""


class PageHeader(NamedTuple):
    """What a page header says of a page of numbers."""

    length: int
    """Bytes of the header itself."""
    holds: Holds
    """Plain values, places of values in the chunk's dictionary, values in other encodings, or the
    dictionary, itself plain."""
    rows: int
    """Values of a dictionary."""
    stored: int
    """Bytes of the page in the file."""
    size: int
    """The same, decompressed."""
    checksum: int | None
    levels: int | None
    """Bytes of levels before the compressed values; None: levels are compressed, too."""
    compressed: bool


NUMBER = rb"(?:[\x80-\xff]{0,9}[\x00-\x7f])"
"""A whole number, as a regular expression."""
STATISTICS = (
    rb"(?:[\x18\x28\x38\x48\x58\x68](?:\x00|\x01.|\x02.{2}|\x04.{4}|\x08.{8})"
    rb"|[\x16\x26\x36\x46]%b|[\x11\x12\x21\x22])*\x00" % NUMBER
)
"""`Statistics` of a column of numbers, as a regular expression."""
_V = rb"([\x80-\xff]{0,4}[\x00-\x7f])"
_ENCODING = b"([%b])" % re.escape(b"".join(map(thrift.as_number, _HOLDS)))
_USUAL = re.compile(
    rb"\x15\x00\x15%b\x15%b(?:\x15%b\x1c|\x2c)\x15%b\x15%b\x15\x06\x15."
    rb"(?:\x1c%b)?\x00\x00" % (*((_V,) * 4), _ENCODING, STATISTICS),
    re.DOTALL,
)
"""A header as most writers write it: sizes, checksum, rows, encoding; levels in runs."""
_USUAL_V2 = re.compile(
    rb"\x15\x06\x15%b\x15%b(?:\x15%b\x4c|\x5c)\x15%b\x15%b\x15%b\x15%b\x15%b\x15\x00"
    rb"(?:([\x11\x12])(?:\x1c%b)?)?\x00\x00" % (*((_V,) * 6), _ENCODING, _V, STATISTICS),
    re.DOTALL,
)
"""The same of the second version: sizes, checksum, values, nulls, rows, encoding, bytes of levels,
none of them repetition levels, and whether the rest is compressed."""
_USUAL_DICTIONARY = re.compile(
    rb"\x15\x04\x15%b\x15%b(?:\x15%b\x3c|\x4c)\x15%b\x15[\x00\x04][\x11\x12]?\x00\x00"
    % ((_V,) * 4),
    re.DOTALL,
)
"""The header of a dictionary."""


def header_of(raw: memoryview) -> PageHeader:
    """Return the header of a page of numbers, which `raw` begins with.

    Raises:
        UnusualError: It is none.
    """
    usual = _USUAL.match(raw)
    holds: Holds = "dictionary"
    if usual is None:
        usual = _USUAL_DICTIONARY.match(raw)
    else:
        holds = _HOLDS[thrift.often(usual[5])]
    if usual is None:
        if v2 := _USUAL_V2.match(raw):
            return _header_v2(v2)
        try:
            return _unusual_header(raw)
        except (ValueError, KeyError, IndexError) as error:
            raise UnusualError(str(error)) from None
    size, stored, checksum, rows = usual.groups()[:4]
    return PageHeader(
        usual.end(),
        holds,
        thrift.often(rows),
        thrift.decoded(stored),
        thrift.often(size),
        thrift.decoded(checksum) if checksum else None,
        None,
        True,
    )


def _header_v2(usual: re.Match[bytes]) -> PageHeader:
    size, stored, checksum, values, encoding, levels, compressed = usual.group(1, 2, 3, 4, 7, 8, 9)
    return PageHeader(
        usual.end(),
        _HOLDS[thrift.often(encoding)],
        thrift.often(values),
        thrift.decoded(stored),
        thrift.often(size),
        thrift.decoded(checksum) if checksum else None,
        thrift.often(levels),
        compressed != b"\x12",
    )


def pages_like(header: PageHeader, raw: memoryview, at: int) -> Iterator[tuple[int, int]]:
    """Yield where the contents of pages begin and end of which headers say the same as `header`.

    Args:
        header: That of a page of plain values, levels included, without checksum.
        raw: Bytes of a column chunk.
        at: Where in them the first of the pages begins. They stand one behind the other; one that
            is not there as a whole ends it.
    """
    alike = thrift.often_number(header.size), None, thrift.often_number(header.rows), b"\0"
    while (usual := _USUAL.match(raw, at)) and usual.group(1, 3, 4, 5) == alike:
        begin, at = usual.end(), usual.end() + thrift.decoded(usual[2])
        if not begin <= at <= len(raw):
            return
        yield begin, at


def _unusual_header(raw: memoryview) -> PageHeader:
    outer, length = thrift.fields_of(raw)
    found = {place: thrift.number(raw, outer[place]) for place in (1, 2, 3, 4) if place in outer}
    kind = found.get(1)
    if kind not in STRUCTS or STRUCTS[kind] not in outer:
        raise UnusualError("it is no page of numbers")
    inner, _ = thrift.fields_of(raw, outer[STRUCTS[kind]].start)
    levels, compressed = None, True
    if kind == _DATA_V2:
        if thrift.number(raw, inner[6]):
            raise UnusualError("it has repetition levels")
        levels = thrift.number(raw, inner[5])
        compressed = 7 not in inner or inner[7].kind == thrift.TRUE
    elif kind == DATA and thrift.number(raw, inner[3]) != RLE:
        raise UnusualError("its levels are encoded in another way")
    encoding = thrift.number(raw, inner[4 if kind == _DATA_V2 else 2])
    if encoding not in _HOLDS:
        raise UnusualError("its values are encoded in another way")
    return PageHeader(
        length=length,
        holds="dictionary" if kind == DICTIONARY else _HOLDS[encoding],
        rows=thrift.number(raw, inner[1]),
        stored=found.get(3, -1),
        size=found.get(2, -1),
        checksum=found.get(4),
        levels=levels,
        compressed=compressed,
    )


@lru_cache
def plain_header(kind: int, size: int, values: int, encoding: int) -> bytes:
    """Return the header of a page that is not compressed and has no checksum.

    Args:
        kind: `DATA` or `DICTIONARY`.
        size: Bytes of the page.
        values: How many it holds.
        encoding: Number of their encoding.
    """
    told = [(1, I32, thrift.as_number(values)), (2, I32, thrift.as_number(encoding))]
    levels = [(place, I32, thrift.as_number(RLE)) for place in (3, 4)] if kind == DATA else []
    sizes = [(place, I32, thrift.as_number(size)) for place in (2, 3)]
    page = (STRUCTS[kind], STRUCT, thrift.as_struct([*told, *levels]))
    return thrift.as_struct([(1, I32, thrift.as_number(kind)), *sizes, page])


class PageSizes(NamedTuple):
    """What a page header says of a page of any kind."""

    size: int
    """Bytes of the page, decompressed."""
    values: int
    encoding: int | None
    """Number of the encoding of its values; None for a dictionary."""
    nulls: int | None = None
    """How many of its values are null; None where the header does not tell."""


def pages_of(file: int, start: int, stop: int, most: int) -> Iterator[PageSizes]:
    """Yield the sizes of all pages of a column chunk, none of which claims more than the chunk has.

    PyArrow takes as much memory as a header asks for before it looks at the page.

    Args:
        file: Descriptor of the file.
        start: Where the chunk begins.
        stop: Where it ends.
        most: Bytes of the chunk before compression.

    Raises:
        LongValueError: A page's values are 1 GiB long or longer: PyArrow can't decode two of them.
        UnusualError: A page claims more, or a header can't be read.
    """
    while start < stop:
        found = _sized(file, start)
        if found is None:
            raise UnusualError("a page header can't be read")
        length, stored, page = found
        size, values = page.size, max(page.values, 1)
        if not 0 <= size <= most or not 0 <= stored <= stop + _SHORT_OF - start - length:
            raise UnusualError(f"a page claims {max(size, stored):,} bytes of {most:,}")
        if size >= _LONGEST_VALUE * values:
            raise LongValueError(f"it has a value of {size // values:,} bytes")
        yield page
        start += length + stored


def page_at(file: int, start: int) -> PageSizes | None:
    """Return the sizes of the page whose header stands at `start`, None if it can't be read."""
    found = _sized(file, max(start, 0))
    return found and found[2]


def _sized(file: int, start: int) -> tuple[int, int, PageSizes] | None:
    """Return the bytes of a header, those of its page in the file, and what it says besides."""
    found = _sizes(os.pread(file, HEADER, start))
    return found or _sizes(os.pread(file, _LONGEST_HEADER, start))  # statistics may be long


def _sizes(raw: bytes) -> tuple[int, int, PageSizes] | None:
    if usual := _USUAL.match(raw):
        size, stored, values, encoding = map(thrift.decoded, usual.group(1, 2, 4, 5))
        return usual.end(), stored, PageSizes(size, values, encoding)
    if usual := _USUAL_V2.match(raw):
        size, stored, values, nulls, encoding = map(thrift.decoded, usual.group(1, 2, 4, 5, 7))
        return usual.end(), stored, PageSizes(size, values, encoding, nulls)
    if usual := _USUAL_DICTIONARY.match(raw):
        size, stored, values = map(thrift.decoded, usual.group(1, 2, 4))
        return usual.end(), stored, PageSizes(size, values, None)
    try:
        return _unusual_sizes(raw)
    except (ValueError, KeyError, IndexError):
        return None


def _unusual_sizes(raw: bytes) -> tuple[int, int, PageSizes]:
    fields, length = thrift.fields_of(raw)
    values, encoding, nulls = 0, None, None
    for place, encoded in _KINDS.items():
        if place in fields:
            inner, _ = thrift.fields_of(raw, fields[place].start)
            values += thrift.number(raw, inner[1])
            encoding = thrift.number(raw, inner[encoded]) if encoded else encoding
            nulls = thrift.number(raw, inner[2]) if place == STRUCTS[_DATA_V2] else nulls
    size, stored = thrift.number(raw, fields[2]), thrift.number(raw, fields[3])
    return length, stored, PageSizes(size, values, encoding, nulls)
