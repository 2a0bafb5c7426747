"""Columns of vectors that are all there, read page by page as the numbers that they consist of.

PyArrow makes two levels of two bytes for each number and looks at each of them, which takes four
times as long as decoding it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np

from polar_etl.columns import Array, Piece
from polar_etl.pages.fetching import Stretch, fetched
from polar_etl.pages.files import PageRun, RunKind, decoded_runs
from polar_etl.pages.headers import (
    DATA,
    DICTIONARY,
    PLACES,
    PLAIN,
    PageHeader,
    UnusualError,
    header_of,
    plain_header,
)
from polar_etl.pages.levels import equal_levels, split, valid_in_each
from polar_etl.pages.readers import ColumnReader
from polar_etl.pages.values import (
    UNPACKED_HERE,
    Chunk,
    StoredPages,
    decompressed,
    is_intact,
    require_possible,
)

AT_A_TIME = 1 << 20
"""Numbers that are fetched and decompressed at one go."""
USUAL_PAGE = 1 << 22
"""Bytes of a page, decompressed, at most, as writers make them."""
_LARGEST_PAGE = 1 << 25
"""Bytes of a page, decompressed, from which on it is PyArrow's, which decodes some at a time."""


class VectorReader(ColumnReader):
    """Reads the numbers of one column of vectors in order, see `ColumnReader`.

    Its rows are numbers. `UnusualError` says that a vector is null, has a null, or is of another
    length, besides all that is unusual.
    """

    __slots__ = ()

    def vectors(self, rows: int) -> Iterator[Array]:
        """Yield the numbers of the next vectors, those of some at a time.

        Raises:
            UnusualError: PyArrow must read them.
        """
        size = self._chunk.size
        step = max(AT_A_TIME // size, 1)
        for done in range(0, rows, step):
            numbers = min(step, rows - done) * size
            missing = self.missing(numbers)
            raw = fetched([self.spans(missing)], self._file).spans[0]
            pieces = self._decoded(self.pages(missing, raw))
            for piece in self.take(numbers, pieces):
                yield piece.values

    def _decoded(self, stored: list[StoredPages]) -> list[Piece]:
        """Return the numbers of pages."""
        pages = [page for some in stored for page in _pages_in(some)]
        bodies = list(map(_behind_levels, pages, _contents(pages)))
        if all(header.holds == "values" for _, header, _ in pages):
            return list(map(_plain_numbers, pages, bodies))
        return _looked_up(stored, pages, bodies)


_Page = tuple[Chunk, PageHeader, memoryview]
"""A page as it stands in the file, without its header."""


def _pages_in(stored: StoredPages) -> Iterator[_Page]:
    for piece in stored.whole:
        at = 0
        while at < len(piece):
            header = header_of(piece[at:])
            begin, at = at + header.length, at + header.length + header.stored
            yield stored.chunk, header, piece[begin:at]


def _contents(pages: Sequence[_Page]) -> list[memoryview]:
    """Return the contents of pages, decompressed.

    Raises:
        UnusualError: One is damaged, or of a rare kind.
    """
    for chunk, header, content in pages:
        require_possible(chunk, header)
        if chunk.codec not in UNPACKED_HERE or header.levels is not None:
            raise UnusualError("it is of a rare kind")
        if header.size > _LARGEST_PAGE:
            raise UnusualError("it is too long to be decompressed as a whole")
        if not is_intact(header, content):
            raise UnusualError("its checksum is wrong")
    return decompressed([(chunk.codec, content, header.size) for chunk, header, content in pages])


def _behind_levels(page: _Page, content: memoryview) -> memoryview:
    """Return what stands behind the levels of a page of vectors.

    Raises:
        UnusualError: Not all of them are there as a whole, and of one length.
    """
    chunk, header, _ = page
    repeated, rest = split(content)
    defined, values = split(rest)
    if header.rows % chunk.size or defined != equal_levels(header.rows, bytes((chunk.level,))):
        raise UnusualError("there are nulls")
    if not _are_of_one_length(bytes(repeated), header.rows, chunk.size):
        raise UnusualError("its vectors differ in length")
    return values


@lru_cache(4)
def _are_of_one_length(repeated: bytes, numbers: int, size: int) -> bool:
    """Tell whether repetition levels, with their length, are those of vectors of one length."""
    (again,) = valid_in_each([repeated], numbers)
    return bool((again.reshape(-1, size) == (np.arange(size) > 0)).all())


def _plain_numbers(page: _Page, body: memoryview) -> Piece:
    chunk, header, _ = page
    if len(body) != header.rows * chunk.stored.itemsize:
        raise UnusualError("its size is impossible")
    return Piece(np.frombuffer(body, chunk.stored))


def _looked_up(
    stored: Sequence[StoredPages], pages: Sequence[_Page], bodies: Sequence[memoryview]
) -> list[Piece]:
    """Return the numbers of pages, some of which hold places in their chunk's dictionary."""
    found = []
    behind = iter(zip(pages, bodies, strict=True))
    for some in stored:
        alone: list[bytes | memoryview] = []
        done = 0
        while done < some.rows:
            (_, header, _), body = next(behind)
            if header.holds not in ("values", "places"):
                raise UnusualError("its values are encoded in another way")
            encoding = PLAIN if header.holds == "values" else PLACES[-1]
            alone += plain_header(DATA, len(body), header.rows, encoding), body
            done += header.rows
        kind = RunKind(some.chunk.stored, nullable=False, codec="UNCOMPRESSED")
        found += decoded_runs([PageRun(kind, _dictionary(some), alone)], some.rows)
    return found


def _dictionary(stored: StoredPages) -> bytes:
    """Return the dictionary that pages refer to, not compressed; empty if they do to none."""
    raw = stored.dictionary
    if raw is None:
        return b""
    if isinstance(raw, Stretch):
        room = memoryview(bytearray(len(raw)))
        if not raw.read_into(room):
            raise UnusualError("the file breaks off")
        raw = room
    header = header_of(raw)
    (content,) = _contents([(stored.chunk, header, raw[header.length :])])
    return plain_header(DICTIONARY, len(content), header.rows, PLAIN) + bytes(content)


def is_usual_chunk(chunk: Chunk, file: int) -> bool:
    """Tell whether a column chunk can be read here, as far as its first page tells."""
    try:
        header = VectorReader([chunk], file).peek()
    except UnusualError:
        return False
    usual = chunk.codec in UNPACKED_HERE and header.levels is None
    return usual and header.holds != "others" and header.size <= USUAL_PAGE
