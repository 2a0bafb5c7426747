"""Plain pages of many column chunks, one each, decompressed and decoded at one go."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from polar_etl.columns import put_where
from polar_etl.footers.alike import fit, gathered, must_be_same, values_of
from polar_etl.pages.files import PageRun, decoded_runs
from polar_etl.pages.headers import PageHeader, UnusualError, header_of
from polar_etl.pages.levels import equal_levels, split, valid_in_each
from polar_etl.pages.thrift import fields_of
from polar_etl.pages.values import is_intact, largest_page
from polar_etl.short_chunks.single_chunks import Chunks, Decoded, bytes_of, decompressed

Bytes = npt.NDArray[np.uint8]
Ints = npt.NDArray[np.int64]

_LONG = 1 << 12
"""Rows of a page from which on PyArrow takes less time for nulls than NumPy does (measured)."""
_JOINED = 1 << 18
"""Values that are copied so that they can be put between nulls at one go."""
_MODELS = 8
"""So many headers at most are each compared with all that are left: others are read one by one."""
_SIZE, _STORED, _PAGE, _STATISTICS = 2, 3, 5, 5
"""Fields of `PageHeader`, and of its `DataPageHeader`."""


def decode(chunks: Chunks) -> Iterator[Decoded]:
    """Yield those of some chunks that are usual pages: some of them at a time, in order."""
    raw, at, _, size, rows, kind = chunks
    levels = equal_levels(rows, b"\x01") if kind.nullable else b""
    most = len(levels) + rows * kind.stored.itemsize
    begin, sizes = _contents(chunks)
    index, others = np.flatnonzero(sizes == most), np.flatnonzero((begin > 0) & (sizes != most))
    if rows >= _LONG:
        yield from _by_arrow(chunks, others)
        others = others[:0]
    holed: dict[int, memoryview] = {}
    for pages in _alike(raw, begin[index], (at + size)[index], most):
        these, index = index[: len(pages)], index[len(pages) :]
        usual = (pages[:, : len(levels)] == np.frombuffer(levels, np.uint8)).all(axis=1)
        values = pages[:, len(levels) :].view(kind.stored)
        yield Decoded(these[usual].tolist(), values if usual.all() else values[usual], None)
        holed |= zip(these[~usual].tolist(), (page.data for page in pages[~usual]), strict=True)
    if contents := _unlike(raw, begin[others], (at + size)[others], sizes[others]):
        holed |= zip(others.tolist(), contents, strict=True)
    if kind.nullable and holed:
        which = sorted(holed)
        yield from _with_nulls(which, [holed[at] for at in which], rows, kind.stored)


def _by_arrow(chunks: Chunks, which: Ints) -> Iterator[Decoded]:
    """Yield the values of long pages with nulls, as those of one column, unless one is damaged."""
    raw, at, _, size, rows, kind = chunks
    if not len(which):
        return
    spans = zip(at[which].tolist(), (at + size)[which].tolist(), strict=True)
    pages = [raw[start:stop].data for start, stop in spans]
    run = PageRun(kind.run, b"", pages)
    try:
        (piece,) = decoded_runs([run], rows * len(pages))
    except UnusualError:
        return
    valid = piece.valid(0, len(piece.values)).reshape(-1, rows)
    yield Decoded(which.tolist(), piece.values.reshape(-1, rows), valid)


def _with_nulls(
    which: list[int], contents: Sequence[memoryview], rows: int, stored: np.dtype[np.generic]
) -> Iterator[Decoded]:
    """Yield the values of short pages with nulls, unless one is damaged.

    Args:
        which: Numbers of the pages.
        contents: What they hold: levels and what is not null.
        rows: Of each.
        stored: Dtype of the values.
    """
    levels, there = zip(*map(split, contents), strict=True)
    try:
        valid = valid_in_each(levels, rows)
    except UnusualError:
        return
    filled = np.count_nonzero(valid, axis=1).tolist()
    if [len(some) for some in there] != [many * stored.itemsize for many in filled]:
        return  # another number of values, or levels that reach beyond the page
    values = np.zeros(valid.shape, stored)
    many = max(_JOINED // rows, 1)
    for low in range(0, len(there), many):
        few = slice(low, low + many)
        filled_in = np.concatenate([np.frombuffer(page, stored) for page in there[few]])
        put_where(values[few], valid[few], filled_in)
    yield Decoded(which, values, valid)


def _contents(chunks: Chunks) -> tuple[Ints, Ints]:
    """Return where the contents of chunks begin, and their bytes once decompressed.

    Both are 0 where a chunk is not one usual page.
    """
    begin, sizes = np.zeros((2, len(chunks.at)), np.int64)
    left = np.arange(len(chunks.at))
    models = 0
    while len(left):
        index, left = int(left[0]), left[1:]
        header = _header(chunks, index)
        if header is None:
            continue
        begin[index], sizes[index] = chunks.at[index] + header.length, header.size
        if header.checksum is None and len(left) and models < _MODELS:
            models += 1
            size = _size_like(chunks, index, header.length, left)
            begin[left] = np.where(size, chunks.at[left] + header.length, 0)
            sizes[left], left = size, left[size == 0]
    return begin, sizes


def _size_like(chunks: Chunks, model: int, length: int, index: Ints) -> Ints:
    """Return the bytes of the decompressed pages with headers like another one; 0 for the others.

    Args:
        chunks: The chunks.
        model: Which of them is the other one.
        length: Bytes of its header. It may differ in sizes and statistics.
        index: Which chunks are looked at.
    """
    at = int(chunks.at[model])
    header = chunks.raw[at : at + length]
    raw = header.tobytes()
    fields, _ = fields_of(raw, 0)
    page, _ = fields_of(raw, fields[_PAGE].start)
    others = [fields[_SIZE], fields[_STORED]]
    if _STATISTICS in page:
        others += fields_of(raw, page[_STATISTICS].start)[0].values()
    found = gathered(chunks.raw, np.minimum(chunks.at[index], len(chunks.raw) - length), length)
    size, stored = (values_of(found[:, field.start : field.stop]) for field in others[:2])
    same = fit(found, header, must_be_same(raw, 0, length, others))
    same &= (stored >= 0) & (stored == chunks.size[index] - length)
    least, most = _sizes_of_pages(chunks)
    return np.where(same & (least <= size) & (size <= most), size, 0)


def _sizes_of_pages(chunks: Chunks) -> tuple[int, int]:
    """Return the least and the most bytes of a decompressed page."""
    rows, width = chunks.rows, chunks.kind.stored.itemsize
    return (4, largest_page(rows, width)) if chunks.kind.nullable else (rows * width, rows * width)


def _header(chunks: Chunks, index: int) -> PageHeader | None:
    """Return the header of a chunk if it is one usual page."""
    at, size = int(chunks.at[index]), int(chunks.size[index])
    chunk = chunks.raw[at : at + size].data
    try:
        header = header_of(chunk)
    except UnusualError:
        return None
    expected = ("values", chunks.rows, size - header.length, None, True)
    if (header.holds, header.rows, header.stored, header.levels, header.compressed) != expected:
        return None
    least, most = _sizes_of_pages(chunks)
    if not least <= header.size <= most:
        return None
    return header if is_intact(header, chunk[header.length :]) else None


def _alike(raw: Bytes, begin: Ints, end: Ints, size: int) -> Iterator[Bytes]:
    """Yield pages of one size, shape `(pages, size)`; none if one is damaged."""
    found = decompressed(raw, begin, end, np.full(len(begin), size))
    first = 0
    while found and first < len(begin):
        start = bytes_of(found, first)
        place = _address(start)
        # zstd may need several pieces of memory: in each, one page stands behind the other.
        behind = bisect_left(
            range(first, len(begin)),
            True,
            key=lambda i: _address(bytes_of(found, i)) - place != (i - first) * size,
        )
        yield np.lib.stride_tricks.as_strided(start, (behind, size), (size, 1))
        first += behind


def _unlike(raw: Bytes, begin: Ints, end: Ints, sizes: Ints) -> list[memoryview]:
    """Return pages of any size; none if one is damaged."""
    found = decompressed(raw, begin, end, sizes)
    return [bytes_of(found, at).data for at in range(len(begin))] if found else []


def _address(array: Bytes) -> int:
    return int(array.__array_interface__["data"][0])
