"""Column chunks of one page each as files of their own, from which PyArrow decodes them.

These are chunks with dictionaries, or in another compression than what we write.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from polar_etl.columns import is_valid
from polar_etl.headers import DATA, DICTIONARY, PLACES, PLAIN, UnusualError, plain_header
from polar_etl.page_files import ROOM_BEFORE, There, decoded_there, room_behind
from polar_etl.page_values import largest_page
from polar_etl.sources.single_chunks import Chunks, Decoded, decompressed
from polar_etl.sources.usual_headers import Headers, headers_at

Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]

_FILE = 1 << 20
"""Bytes of values that are decoded from one file."""
_PLACE = 5
"""Bytes of a place in a dictionary, at most: a run for each value."""


def decode_by_arrow(chunks: Chunks) -> Iterator[Decoded]:
    """Yield the values of those chunks that are one page each, besides a dictionary."""
    pages = _Pages.of(chunks)
    packed = pages.packed if chunks.kind.run.codec == "ZSTD" else np.zeros_like(pages.good)
    for which, unpack in ((pages.good & ~packed, False), (pages.good & packed, True)):
        index = np.flatnonzero(which)
        if len(index):
            yield _decoded(pages, index, unpack=unpack)


def _decoded(pages: _Pages, index: Ints, *, unpack: bool) -> Decoded:
    """Return the values of some chunks, those that are damaged aside.

    Of a file for all of them, what PyArrow keeps for each row group would take as much memory.
    """
    rows, stored = pages.chunks.rows, pages.chunks.kind.stored
    many = max(_FILE // (rows * stored.itemsize), 1)
    values, valid = np.empty((len(index), rows), stored), None
    found: list[int] = []
    for first in range(0, len(index), many):
        for which, array in _arrays(pages, index[first : first + many], unpack=unpack):
            here = slice(len(found), len(found) + len(which))
            place = array.offset * stored.itemsize
            decoded = np.frombuffer(array.buffers()[1], stored, len(array), place)
            values[here] = decoded.reshape(-1, rows)
            if array.null_count:
                valid = np.ones(values.shape, np.bool_) if valid is None else valid
                valid[here] = is_valid(array).reshape(-1, rows)
            found += which.tolist()
    done = slice(0, len(found))
    return Decoded(found, values[done], None if valid is None else valid[done])


def _arrays(pages: _Pages, index: Ints, *, unpack: bool) -> Iterator[tuple[Ints, pa.Array]]:
    """Yield which chunks are decoded, and their values: all at one go, or else half of them."""
    memory, kind = pages.chunks.raw.data, pages.chunks.kind.run
    try:
        there = memory, pages.there(index)
        if unpack:
            there, kind = pages.unpacked(index), kind._replace(codec="UNCOMPRESSED")
        yield index, decoded_there(*there, pages.chunks.rows, kind)
    except UnusualError:
        half = len(index) // 2
        if half:
            yield from _arrays(pages, index[:half], unpack=unpack)
            yield from _arrays(pages, index[half:], unpack=unpack)


class _Pages(NamedTuple):
    """The pages of chunks of one page each besides a dictionary."""

    chunks: Chunks
    told: Bools
    """Which chunks have a dictionary."""
    page: Headers
    dictionary: Headers

    @classmethod
    def of(cls, chunks: Chunks) -> _Pages:
        """Return the pages of chunks, as far as their headers are usual."""
        told = chunks.data > chunks.at
        page = headers_at(chunks.raw, np.where(told, chunks.data, chunks.at), DATA)
        return cls(chunks, told, page, headers_at(chunks.raw, chunks.at, DICTIONARY))

    @property
    def begin(self) -> Ints:
        """Where the header of the page behind the dictionary begins."""
        return np.where(self.told, self.chunks.data, self.chunks.at)

    @property
    def stop(self) -> Ints:
        """Where the chunk ends."""
        return self.chunks.at + self.chunks.size

    @property
    def good(self) -> Bools:
        """Which chunks are as they must be, and claim no more than their rows can need.

        A page that has all rows is the only one that PyArrow looks at.
        """
        _, at, data, _, rows, (run, _) = self.chunks
        page, dictionary, width = self.page, self.dictionary, run.stored.itemsize
        places = np.isin(page.encoding, PLACES)
        most = np.where(places, largest_page(rows, _PLACE), largest_page(rows, width))
        good: Bools = page.usual & (page.values == rows) & (places <= self.told)
        good &= (page.size <= most) & (self.begin + page.stored < self.stop)
        fits = dictionary.usual & (dictionary.size <= np.minimum(dictionary.values, rows) * width)
        good &= ~self.told | (fits & (at + dictionary.stored < data))
        if run.codec == "UNCOMPRESSED":
            good &= page.size == page.stored
            good &= ~self.told | (dictionary.size == dictionary.stored)
        return good

    @property
    def packed(self) -> Bools:
        """Which chunks may be decompressed before PyArrow sees them, as it would check nothing."""
        page, dictionary = self.page, self.dictionary
        return ~page.checked & (page.size > 0) & ~(self.told & dictionary.checked)

    def there(self, index: Ints) -> list[There]:
        """Return where some chunks stand."""
        where = np.stack([self.chunks.at, self.begin, self.chunks.size], axis=1)
        return [There(*place) for place in where[index].tolist()]

    def unpacked(self, index: Ints) -> tuple[memoryview, list[There]]:
        """Return some chunks, decompressed, and where they stand: see `decoded_there`.

        PyArrow makes a decompressor anew for each page, which takes longer than short ones do.

        Raises:
            UnusualError: One is damaged.
        """
        page, dictionary = self.page, self.dictionary
        words = index[self.told[index] & (dictionary.size[index] > 0)]
        stops = np.concatenate([self.chunks.data[words], self.stop[index]])
        stored = np.concatenate([dictionary.stored[words], page.stored[index]])
        sizes = np.concatenate([dictionary.size[words], page.size[index]])
        done = decompressed(self.chunks.raw, stops - stored, stops, sizes)
        if done is None:
            raise UnusualError("it can't be decompressed")
        segments = iter(done)
        of_words = dict(zip(words.tolist(), segments, strict=False))
        pieces: list[Any] = [bytes(ROOM_BEFORE)]
        runs, end = [], ROOM_BEFORE
        for at, size, encoding, told, many in zip(
            index.tolist(),
            page.size[index].tolist(),
            page.encoding[index].tolist(),
            self.told[index].tolist(),
            dictionary.values[index].tolist(),
            strict=True,
        ):
            start = end
            if told:
                some = of_words.get(at, b"")
                head = plain_header(DICTIONARY, len(some), many, PLAIN)
                pieces += head, some
                end += len(head) + len(some)
            head = plain_header(DATA, size, self.chunks.rows, encoding)
            pieces += head, next(segments)
            runs.append(There(start, end, end - start + len(head) + size))
            end += len(head) + size
        pieces.append(bytes(room_behind(len(runs))))
        return memoryview(bytearray().join(pieces)), runs
