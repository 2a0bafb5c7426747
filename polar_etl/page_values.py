"""Pages of numbers, decompressed and decoded: from bytes of a file to values and nulls."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import zstandard
from zlib_ng import zlib_ng

from polar_etl import thrift
from polar_etl.headers import PageHeader, UnusualError
from polar_etl.levels import split, valid_in
from polar_etl.page_buffers import equal_levels
from polar_etl.runs import FEW_RUNS, RUNS_PER_VALUE, Places, places_in

Array = npt.NDArray[np.generic]
Bools = npt.NDArray[np.bool_]

_STORED = {
    kind.id: (physical, np.dtype(dtype))
    for kind, physical, dtype in (
        (pa.int8(), "INT32", "<i4"),
        (pa.int16(), "INT32", "<i4"),
        (pa.int32(), "INT32", "<i4"),
        (pa.int64(), "INT64", "<i8"),
        (pa.uint8(), "INT32", "<i4"),
        (pa.uint16(), "INT32", "<i4"),
        (pa.uint32(), "INT32", "<u4"),
        (pa.uint64(), "INT64", "<u8"),
        (pa.float16(), "FIXED_LEN_BYTE_ARRAY", "<f2"),
        (pa.float32(), "FLOAT", "<f4"),
        (pa.float64(), "DOUBLE", "<f8"),
    )
}
"""By Arrow type: Parquet's physical type, and the dtype of its bytes."""


def stored_dtype(kind: pa.DataType, physical: str) -> np.dtype[np.generic] | None:
    """Return the dtype that plain values have in a file, None if they are no such numbers."""
    expected, dtype = _STORED.get(kind.id, ("", None))
    return dtype if expected == physical else None


class Chunk(NamedTuple):
    """Where one column's values of one row group stand in a file."""

    start: int
    stop: int
    rows: int
    codec: str
    """Name of the compression, as PyArrow has it."""
    nullable: bool
    """Whether levels stand before the values."""
    stored: np.dtype[np.generic]
    data: int = 0
    """Where the first page behind the dictionary stands; not beyond `start` if there is none."""


class Page(NamedTuple):
    """One page, decoded."""

    rows: int
    values: Array
    """What is not null."""
    valid: Bools | None
    """Which rows are not null; None if all are."""


def cut(page: Page, rows: int) -> tuple[Page, Page]:
    """Return the first rows of a page, and the others."""
    values, count, before, behind = page.values, rows, None, None
    if page.valid is not None:
        before, behind = page.valid[:rows], page.valid[rows:]
        count = int(np.count_nonzero(before))
    return Page(rows, values[:count], before), Page(page.rows - rows, values[count:], behind)


def copied(page: Page) -> Page:
    """Return a page in memory of its own."""
    valid = None if page.valid is None else page.valid.copy()
    return Page(page.rows, page.values.copy(), valid)


class Dictionary:
    """The dictionary of a column chunk, decoded or not.

    Args:
        place: Where its page stands.
        header: Of the page.
    """

    def __init__(self, place: int, header: PageHeader) -> None:
        self.place, self.header = place, header
        self.values: Array | None = None
        """What is in it; None while nobody needs it."""

    def keep(self) -> None:
        """Keep what is in it, and not what else was decompressed with it."""
        if self.values is not None and self.values.base is not None:
            self.values = self.values.copy()


class StoredPages(NamedTuple):
    """A page as it stands in the file, or several of one chunk that are alike."""

    chunk: Chunk
    header: PageHeader
    """Of each of them."""
    contents: tuple[memoryview, ...]
    dictionary: Dictionary | None
    """The one that it refers to, or is."""


def decoded_apart(stored: Sequence[list[StoredPages] | None]) -> list[list[Page] | None]:
    """Return the pages of some columns; None for columns with a page that PyArrow must read."""
    try:
        pages = iter(decoded([page for some in stored for page in some or ()]))
        return [
            None if some is None else list(islice(pages, sum(map(_pages_of_rows, some))))
            for some in stored
        ]
    except UnusualError:
        if len(stored) == 1:
            return [None]
        return [found for some in stored for found in decoded_apart([some])]


def _pages_of_rows(stored: StoredPages) -> int:
    return 0 if stored.header.holds == "dictionary" else len(stored.contents)


def decoded(pages: Sequence[StoredPages]) -> list[Page]:
    """Return some pages, decompressed at one go; dictionaries among them are only decoded.

    Raises:
        UnusualError: PyArrow must read one of them.
    """
    opened = _opened(pages)
    return [
        Page(page.header.rows, values, valid)
        for (page, valid, _, _), values in zip(opened, _looked_up(opened), strict=True)
        if page.header.holds != "dictionary"
    ]


def require_few_runs(pages: Sequence[StoredPages]) -> None:
    """Check that pages of places can be decoded here, in so few runs that it is worth it.

    Raises:
        UnusualError: PyArrow must read one of them, or there is none.
    """
    places = [page for page in pages if page.header.holds == "places"]
    if not places:
        raise UnusualError("there are no places")
    for _ in _places_of(_opened(places), FEW_RUNS):
        pass


def largest_page(rows: int, width: int) -> int:
    """Return the bytes that no page of so many values is larger than, each of so many bytes.

    A run of levels for each of them would take 2 bytes.
    """
    return rows * (width + 2) + 64


def is_intact(header: PageHeader, content: memoryview) -> bool:
    """Tell whether the bytes of a page have the checksum that its header tells of, if it does."""
    return header.checksum is None or zlib_ng.crc32(content) == header.checksum & 0xFFFFFFFF


def _opened(pages: Sequence[StoredPages]) -> list[_Opened]:
    """Return some pages, decompressed at one go."""
    packed: list[tuple[str, memoryview, int]] = []
    for chunk, header, contents, _ in pages:
        content = contents[0]
        if not is_intact(header, content):
            raise UnusualError("its checksum is wrong")
        # A run of places for each value would take 5 bytes.
        width = chunk.stored.itemsize if header.holds == "values" else 5
        most = largest_page(header.rows, width)
        if header.holds == "dictionary":
            most = min(header.rows, chunk.rows) * chunk.stored.itemsize
        apart = header.levels or 0
        if not 0 <= apart <= header.size <= most or apart > len(content):
            raise UnusualError("its size is impossible")
        codec = chunk.codec if header.compressed else "UNCOMPRESSED"
        packed.append((codec, content[apart:], header.size - apart))
        packed += [(codec, more, header.size) for more in contents[1:]]
    done = iter(_decompressed(packed))
    parts = [
        part for page in pages for part in _apart(page, list(islice(done, len(page.contents))))
    ]
    levels = [(part.levels, part.page.header.rows) for part in parts if part.levels is not None]
    valid = iter(valid_in(levels))
    return [_opened_with(part, None if part.levels is None else next(valid)) for part in parts]


class _Part(NamedTuple):
    """One page, decompressed."""

    page: StoredPages
    levels: memoryview | None
    """None if all of its rows are there."""
    content: memoryview
    """What is not null."""


class _Opened(NamedTuple):
    """One page, decompressed."""

    page: StoredPages
    valid: Bools | None
    """Which rows are not null; None if all are."""
    content: memoryview
    """What is not null."""
    filled: int
    """How many values that are."""


def _apart(page: StoredPages, contents: Sequence[memoryview]) -> list[_Part]:
    """Return pages that are alike, decompressed; those without nulls at a glance."""
    if len(contents) > 1:
        rows = page.header.rows
        levels = equal_levels(rows, b"\x01") if page.chunk.nullable else b""
        start, size = len(levels), len(levels) + rows * page.chunk.stored.itemsize
        if all(len(content) == size and content[:start] == levels for content in contents):
            return [_Part(page, None, content[start:]) for content in contents]
    return [_without_levels(page, content) for content in contents]


def _without_levels(page: StoredPages, content: memoryview) -> _Part:
    chunk, header, stored, _ = page
    if header.holds == "dictionary" or not chunk.nullable:
        return _Part(page, None, content)
    if header.levels is not None:
        return _Part(page, memoryview(bytes(stored[0][: header.levels])), content)
    full = equal_levels(header.rows, b"\x01")
    if content[: len(full)] == full:
        return _Part(page, None, content[len(full) :])
    return _Part(page, *split(content))


def _opened_with(part: _Part, valid: Bools | None) -> _Opened:
    """Return a page whose levels are known, if it holds as many values as they say."""
    page, _, content = part
    chunk, header, _, _ = page
    filled = header.rows if valid is None else int(np.count_nonzero(valid))
    if header.holds != "places" and len(content) != chunk.stored.itemsize * filled:
        raise UnusualError("it holds another number of values")
    return _Opened(page, valid, content, filled)


def _looked_up(pages: Sequence[_Opened]) -> list[Array]:
    """Return the values of pages, with those of places looked up in their dictionaries."""
    found: list[Array] = [np.empty(0)] * len(pages)
    for at, (page, _, content, _) in enumerate(pages):
        if page.header.holds != "places":
            values = found[at] = np.frombuffer(content, page.chunk.stored)
            if page.dictionary:
                page.dictionary.values = values
    for at, places in _places_of(pages, RUNS_PER_VALUE):
        found[at] = _values_at(places, pages[at].page.dictionary)
    return found


def _places_of(pages: Sequence[_Opened], runs_per_value: float) -> Iterator[tuple[int, Places]]:
    """Yield the places in those pages that do not hold values, with their numbers."""
    numbers = [at for at, one in enumerate(pages) if one.page.header.holds == "places"]
    stored = [(pages[at].content, pages[at].filled) for at in numbers]
    for number, places in places_in(stored, runs_per_value):
        yield numbers[number], places


def _values_at(places: Places, dictionary: Dictionary | None) -> Array:
    if dictionary is None or dictionary.values is None:
        raise UnusualError("it refers to a dictionary that is not there")
    try:
        return dictionary.values.take(places)
    except IndexError:
        raise UnusualError("its dictionary holds fewer values") from None


class _Local(threading.local):
    """What each thread has for itself."""

    def __init__(self) -> None:
        self.zstd = zstandard.ZstdDecompressor()


_local = _Local()


def decompressor() -> zstandard.ZstdDecompressor:
    """Return this thread's decompressor."""
    return _local.zstd


def _decompressed(packed: Sequence[tuple[str, memoryview, int]]) -> list[memoryview]:
    """Return what each of (codec, bytes, decompressed size) holds.

    Raises:
        UnusualError: One can't be decompressed to that size.
    """
    zstd = [item for item in packed if item[0] == "ZSTD" and item[2]]
    at_once: Iterator[bytes | zstandard.BufferSegment] = iter(())
    try:
        if len(zstd) == 1:
            ((_, stored, size),) = zstd
            if zstandard.frame_content_size(stored) not in (-1, size):
                raise UnusualError("it decompresses to another size")
            at_once = iter([decompressor().decompress(stored, max_output_size=size)])
        elif zstd:
            sizes = np.array([size for _, _, size in zstd], np.uint64).tobytes()
            together = decompressor().multi_decompress_to_buffer(
                [stored for _, stored, _ in zstd], decompressed_sizes=sizes
            )
            at_once = (together[i] for i in range(len(zstd)))
    except zstandard.ZstdError as error:
        raise UnusualError(str(error)) from None
    found = []
    for codec, stored, size in packed:
        packed_alone = codec != "ZSTD" or not size
        content = _unpacked(codec, stored, size) if packed_alone else next(at_once)
        if len(content) != size:
            raise UnusualError("it decompresses to another size")
        found.append(memoryview(content))  # type: ignore[arg-type]  # it has the buffer protocol
    return found


def _unpacked(codec: str, stored: memoryview, size: int) -> bytes:
    if codec == "UNCOMPRESSED" or not size:
        return bytes(stored[:size])
    try:
        if thrift.varint(stored, 0)[0] != size:  # Snappy begins with it
            raise UnusualError("it decompresses to another size")
        return bytes(pa.decompress(stored, size, codec=codec.lower(), asbytes=True))
    except (pa.ArrowException, OSError, ValueError, IndexError) as error:
        raise UnusualError(str(error)) from None
