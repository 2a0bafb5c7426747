"""Pages of many column chunks, one each, decompressed and decoded at one go."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import zstandard

from polar_etl.headers import PageHeader, UnusualError, header_of
from polar_etl.levels import split, valid_in
from polar_etl.page_buffers import equal_levels
from polar_etl.page_values import decompressor, is_intact, largest_page
from polar_etl.sources.alike import gathered
from polar_etl.thrift import as_number

Array = npt.NDArray[np.generic]
Bools = npt.NDArray[np.bool_]
Bytes = npt.NDArray[np.uint8]
Ints = npt.NDArray[np.int64]

_JOINED = 1 << 18
"""Values that are copied so that they can be put between nulls at one go."""
_MOST_DIGITS = 5
"""Bytes of a 32-bit number in Thrift."""


class Kind(NamedTuple):
    """What columns have in common that are decoded together."""

    stored: np.dtype[np.generic]
    nullable: bool
    """Whether levels stand before the values."""


class Chunks(NamedTuple):
    """Column chunks of one kind, as they stand in a row group."""

    raw: Bytes
    """Bytes that hold them."""
    at: Ints
    """Where in these each begins."""
    size: Ints
    """Bytes of each."""
    rows: int
    """Of each."""
    kind: Kind


class Decoded(NamedTuple):
    """Values of some chunks; both arrays have shape `(chunks, rows)`."""

    which: list[int]
    """Which of them."""
    values: Array
    """0 where a null is."""
    valid: Bools | None
    """Which values are there; None if all are."""


def decode(chunks: Chunks) -> Iterator[Decoded]:
    """Yield those of some chunks that are usual pages: some of them at a time, in order."""
    raw, at, size, rows, kind = chunks
    levels = equal_levels(rows, b"\x01") if kind.nullable else b""
    most = len(levels) + rows * kind.stored.itemsize
    begin, sizes = _contents(chunks, most)
    index = np.flatnonzero(sizes == most)
    holed, contents = [], []
    for pages in _alike(raw, begin[index], (at + size)[index], most):
        these, index = index[: len(pages)], index[len(pages) :]
        usual = (pages[:, : len(levels)] == np.frombuffer(levels, np.uint8)).all(axis=1)
        values = pages[:, len(levels) :].view(kind.stored)
        yield Decoded(these[usual].tolist(), values if usual.all() else values[usual], None)
        holed += these[~usual].tolist()
        contents += [page.data for page in pages[~usual]]
    index = np.flatnonzero((begin > 0) & (sizes != most))
    contents += _unlike(raw, begin[index], (at + size)[index], sizes[index])
    holed += index[: len(contents) - len(holed)].tolist()
    if kind.nullable and holed:
        order = np.argsort(holed).tolist()
        contents = [contents[at] for at in order]
        yield from _with_nulls(sorted(holed), contents, rows, kind.stored)


def _with_nulls(
    which: Sequence[int], contents: Sequence[memoryview], rows: int, stored: np.dtype[np.generic]
) -> Iterator[Decoded]:
    """Yield the values of pages with nulls, unless a page is damaged.

    Args:
        which: Numbers of the pages.
        contents: What they hold: levels and what is not null.
        rows: Of each.
        stored: Dtype of the values.
    """
    levels, there = zip(*map(split, contents), strict=True)
    try:
        found = valid_in([(some, rows) for some in levels])
    except UnusualError:
        return
    valid = np.ones((len(contents), rows), np.bool_)
    for row, some in zip(valid, found, strict=True):
        if some is not None:
            row[:] = some
    filled = np.count_nonzero(valid, axis=1).tolist()
    if [len(some) for some in there] != [many * stored.itemsize for many in filled]:
        return  # another number of values, or levels that reach beyond the page
    values = np.zeros(valid.shape, stored)
    many = max(_JOINED // rows, 1)
    for low in range(0, len(there), many):
        few = slice(low, low + many)
        values[few][valid[few]] = np.concatenate([np.frombuffer(p, stored) for p in there[few]])
    yield Decoded(list(which), values, valid)


def _contents(chunks: Chunks, most: int) -> tuple[Ints, Ints]:
    """Return where the contents of chunks begin, and their bytes once decompressed.

    Both are 0 where a chunk is not one usual page.

    Args:
        chunks: The chunks.
        most: Bytes of a decompressed page without nulls.
    """
    begin, sizes = np.zeros((2, len(chunks.at)), np.int64)
    first = _header(chunks, 0)
    if first and first.checksum is None and first.size == most:
        begin = _like_the_first(chunks, first)
        sizes[begin > 0] = most
    for index in np.flatnonzero(begin == 0).tolist():
        if header := _header(chunks, index):
            begin[index], sizes[index] = chunks.at[index] + header.length, header.size
    return begin, sizes


def _like_the_first(chunks: Chunks, header: PageHeader) -> Ints:
    """Return where contents begin behind headers that differ in nothing but the bytes stored."""
    raw, at, size, _, _ = chunks
    first = bytes(raw[at[0] : at[0] + header.length])
    head = b"\x15\x00\x15" + as_number(header.size) + b"\x15"
    tail = first[len(head) + len(as_number(header.stored)) :]
    begin = np.zeros(len(at), np.int64)
    shortest = max(int(size.min()) - header.length - _MOST_DIGITS, 0)
    for digits in range(len(as_number(shortest)), len(as_number(int(size.max()))) + 1):
        length = len(head) + digits + len(tail)
        number = 2 * (size - length)  # Thrift writes signed numbers so
        fits = np.flatnonzero((number >> (7 * digits) == 0) & (number >> (7 * digits - 7) > 0))
        expected = np.empty((len(fits), length), np.uint8)
        expected[:, : len(head)] = np.frombuffer(head, np.uint8)
        for digit in range(digits):
            more = 128 if digit < digits - 1 else 0
            expected[:, len(head) + digit] = (number[fits] >> (7 * digit)) & 127 | more
        expected[:, length - len(tail) :] = np.frombuffer(tail, np.uint8)
        found = gathered(raw, at[fits], length)
        same = fits[(found == expected).all(axis=1)]
        begin[same] = at[same] + length
    return begin


def _header(chunks: Chunks, index: int) -> PageHeader | None:
    """Return the header of a chunk if it is one usual page."""
    rows, (stored, nullable) = chunks.rows, chunks.kind
    at, size = int(chunks.at[index]), int(chunks.size[index])
    chunk = chunks.raw[at : at + size].data
    try:
        header = header_of(chunk)
    except UnusualError:
        return None
    expected = ("values", rows, size - header.length, None, True)
    if (header.holds, header.rows, header.stored, header.levels, header.compressed) != expected:
        return None
    least = most = rows * stored.itemsize
    if nullable:
        least, most = 4, largest_page(rows, stored.itemsize)
    if not least <= header.size <= most:
        return None
    return header if is_intact(header, chunk[header.length :]) else None


def _alike(raw: Bytes, begin: Ints, end: Ints, size: int) -> Iterator[Bytes]:
    """Yield pages of one size, shape `(pages, size)`; none if one is damaged."""
    found = _decompressed(raw, begin, end, np.full(len(begin), size))
    first = 0
    while found and first < len(begin):
        start = _bytes_of(found, first)
        place = _address(start)
        # zstd may need several pieces of memory: in each, one page stands behind the other.
        behind = bisect_left(
            range(first, len(begin)),
            True,
            key=lambda i: _address(_bytes_of(found, i)) - place != (i - first) * size,
        )
        yield np.lib.stride_tricks.as_strided(start, (behind, size), (size, 1))
        first += behind


def _unlike(raw: Bytes, begin: Ints, end: Ints, sizes: Ints) -> list[memoryview]:
    """Return pages of any size; none if one is damaged."""
    found = _decompressed(raw, begin, end, sizes)
    return [_bytes_of(found, at).data for at in range(len(begin))] if found else []


def _decompressed(
    raw: Bytes, begin: Ints, end: Ints, sizes: Ints
) -> zstandard.BufferWithSegmentsCollection | None:
    """Return the pages between `begin` and `end`; None if there is none, or one is damaged."""
    if not len(begin):
        return None
    segments = np.stack([begin, end - begin], axis=1).astype(np.uint64).tobytes()
    try:
        return decompressor().multi_decompress_to_buffer(
            zstandard.BufferWithSegments(raw.data, segments),
            decompressed_sizes=sizes.astype(np.uint64).tobytes(),
        )
    except zstandard.ZstdError:
        return None


def _bytes_of(found: zstandard.BufferWithSegmentsCollection, index: int) -> Bytes:
    return np.frombuffer(memoryview(found[index]), np.uint8)  # type: ignore[arg-type]  # it is one


def _address(array: Bytes) -> int:
    return int(array.__array_interface__["data"][0])
