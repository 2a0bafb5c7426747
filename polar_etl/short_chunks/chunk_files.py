"""Column chunks of one page each as files of their own, from which PyArrow decodes them.

These are chunks with dictionaries, or in another compression than what we write.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from polar_etl.columns import Piece
from polar_etl.pages.files import ROOM_BEFORE, There, decoded_there, numbers_in, room_behind
from polar_etl.pages.headers import DATA, DICTIONARY, PLACES, PLAIN, UnusualError, plain_header
from polar_etl.pages.values import PLACE, largest_page
from polar_etl.short_chunks.single_chunks import Chunks, Decoded, Segment, decompressed
from polar_etl.short_chunks.usual_headers import Headers, headers_at

Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]

_FILE = 1 << 20
"""Bytes of values that are decoded from one file."""


def decode_by_arrow(chunks: Chunks) -> Iterator[Decoded]:
    """Yield the values of those chunks that are one page each, besides a dictionary."""
    pages = _Pages.of(chunks)
    good, may_be_unpacked = pages.are_good(), pages.may_be_unpacked()
    for which, unpack in ((good & ~may_be_unpacked, False), (good & may_be_unpacked, True)):
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
        for which, piece in _pieces(pages, index[first : first + many], unpack=unpack):
            here = slice(len(found), len(found) + len(which))
            values[here] = piece.values.reshape(-1, rows)
            if piece.bitmaps:
                valid = np.ones(values.shape, np.bool_) if valid is None else valid
                valid[here] = piece.valid(0, len(piece.values)).reshape(-1, rows)
            found += which.tolist()
    done = slice(0, len(found))
    return Decoded(found, values[done], None if valid is None else valid[done])


def _pieces(pages: _Pages, index: Ints, *, unpack: bool) -> Iterator[tuple[Ints, Piece]]:
    """Yield which chunks are decoded, and their values: all at one go, or else half of them."""
    rows, kind = pages.chunks.rows, pages.chunks.kind.run
    try:
        if unpack:
            array = decoded_there(*pages.unpacked(index), rows, kind._replace(codec="UNCOMPRESSED"))
        else:
            array = decoded_there(pages.chunks.raw.data, pages.there(index), rows, kind)
        yield index, numbers_in(array, kind.stored)
    except UnusualError:
        half = len(index) // 2
        if half:
            yield from _pieces(pages, index[:half], unpack=unpack)
            yield from _pieces(pages, index[half:], unpack=unpack)


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
        page = headers_at(chunks.raw, chunks.data, DATA)
        return cls(
            chunks, chunks.data > chunks.at, page, headers_at(chunks.raw, chunks.at, DICTIONARY)
        )

    def are_good(self) -> Bools:
        """Tell which chunks are as they must be, and claim no more than their rows can need.

        A page that has all rows is the only one that PyArrow looks at.
        """
        _, at, data, size, rows, (run, _) = self.chunks
        page, dictionary, width = self.page, self.dictionary, run.stored.itemsize
        places = np.isin(page.encoding, PLACES)
        most = np.where(places, largest_page(rows, PLACE), largest_page(rows, width))
        good: Bools = page.usual & (page.values == rows) & (places <= self.told)
        good &= (page.size <= most) & (data + page.stored < at + size)
        fits = dictionary.usual & (dictionary.size <= np.minimum(dictionary.values, rows) * width)
        good &= ~self.told | (fits & (at + dictionary.stored < data))
        if run.codec == "UNCOMPRESSED":
            good &= page.size == page.stored
            good &= ~self.told | (dictionary.size == dictionary.stored)
        return good

    def may_be_unpacked(self) -> Bools:
        """Tell which chunks may be decompressed before PyArrow sees them.

        Not those with a checksum, which is PyArrow's to hold against what is compressed.
        """
        page, dictionary = self.page, self.dictionary
        words = ~self.told | (~dictionary.checked & (dictionary.size > 0))
        return words & ~page.checked & (page.size > 0) & (self.chunks.kind.run.codec == "ZSTD")

    def there(self, index: Ints) -> list[There]:
        """Return where some chunks stand."""
        chunks = self.chunks
        where = np.stack([chunks.at[index], chunks.data[index], chunks.size[index]], axis=1)
        return [There(*place) for place in where.tolist()]

    def unpacked(self, index: Ints) -> tuple[memoryview, list[There]]:
        """Return some chunks, decompressed, and where they stand: see `decoded_there`.

        PyArrow makes a decompressor anew for each page, which takes longer than short ones do.

        Raises:
            UnusualError: One is damaged.
        """
        dictionaries, contents = self._decompressed(index)
        words = iter(dictionaries)
        pieces: list[Any] = [bytes(ROOM_BEFORE)]
        runs, end = [], ROOM_BEFORE
        for content, encoding, told, many in zip(
            contents,
            self.page.encoding[index].tolist(),
            self.told[index].tolist(),
            self.dictionary.values[index].tolist(),
            strict=True,
        ):
            start = end
            if told:
                some = next(words)
                head = plain_header(DICTIONARY, len(some), many, PLAIN)
                pieces += head, some
                end += len(head) + len(some)
            head = plain_header(DATA, len(content), self.chunks.rows, encoding)
            pieces += head, content
            runs.append(There(start, end, end - start + len(head) + len(content)))
            end += len(head) + len(content)
        pieces.append(bytes(room_behind(len(runs))))
        return memoryview(bytearray().join(pieces)), runs

    def _decompressed(self, index: Ints) -> tuple[list[Segment], list[Segment]]:
        """Return the dictionaries of some chunks, as far as they have any, and their pages.

        Raises:
            UnusualError: One is damaged.
        """
        chunks, page, dictionary = self.chunks, self.page, self.dictionary
        told = index[self.told[index]]
        stops = np.concatenate([chunks.data[told], chunks.at[index] + chunks.size[index]])
        stored = np.concatenate([dictionary.stored[told], page.stored[index]])
        sizes = np.concatenate([dictionary.size[told], page.size[index]])
        found = decompressed(chunks.raw, stops - stored, stops, sizes)
        if found is None:
            raise UnusualError("it can't be decompressed")
        segments = [found[at] for at in range(len(stops))]
        return segments[: len(told)], segments[len(told) :]
