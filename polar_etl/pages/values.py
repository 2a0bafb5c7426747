"""Pages of numbers, decompressed and decoded: from bytes of a file to values and nulls."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain, groupby, islice
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import zstandard
from zlib_ng import zlib_ng

from polar_etl.columns import Piece
from polar_etl.pages import thrift
from polar_etl.pages.fetching import Stretch
from polar_etl.pages.files import PageRun, RunKind, decoded_runs
from polar_etl.pages.headers import PageHeader, UnusualError
from polar_etl.pages.levels import equal_levels

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
    size: int = 0
    """Numbers in each vector, if these are what it holds: each of them counts as a row."""
    level: int = 1
    """The definition level of a number that is there."""


class StoredPages(NamedTuple):
    """A page as it stands in the file, or several of one chunk.

    Those that are plain are alike. If the first one is not, PyArrow decodes all of them.
    """

    chunk: Chunk
    header: PageHeader
    """Of the first one."""
    contents: tuple[memoryview, ...]
    """Without headers; of those that PyArrow decodes, the first one."""
    whole: tuple[memoryview, ...]
    """All bytes, headers included, in as many pieces as they come in."""
    rows: int
    """Of all of them."""
    dictionary: memoryview | Stretch | None
    """The page that they refer to, header included."""


PLACE = 5
"""Bytes of a place in a dictionary, at most: a run for each value."""
_LENGTH = 4
"""Bytes of the length of levels that are compressed with the values."""
_DEFLATED = 47
"""zlib's window bits that stand for the format of gzip, or its own, whichever it is."""
Run = list[StoredPages]
"""Neighbouring pages of one chunk."""


def decoded_apart(
    stored: Sequence[Run | None], memory: memoryview | None = None
) -> list[list[Piece] | None]:
    """Return the values of pages of some columns; None for those that PyArrow must read.

    What is plain is decompressed at one go, and the values stand there. What has nulls, or refers
    to a dictionary, PyArrow decodes from a file of its own.

    Args:
        stored: The pages of each column.
        memory: What holds most of them, see `page_files.decoded_runs`.
    """
    runs = [
        (column, list(run))
        for column, pages in enumerate(stored)
        for _, run in groupby(pages or (), key=lambda page: page.chunk.start)
    ]
    found = _decoded([run for _, run in runs], memory)
    columns: list[list[Piece] | None] = [None if pages is None else [] for pages in stored]
    for (column, _), pieces in zip(runs, found, strict=True):
        before = columns[column]
        columns[column] = None if before is None or pieces is None else before + pieces
    return columns


def _decoded(runs: Sequence[Run], memory: memoryview | None) -> list[list[Piece] | None]:
    """Return the values of some runs, None for those that PyArrow must read."""
    plain = [at for at, run in enumerate(runs) if all(is_plain(p.chunk, p.header) for p in run)]
    done = _possible(_plain_values, [runs[at] for at in plain])
    found = {at: pieces for at, pieces in zip(plain, done, strict=True) if pieces}
    by_rows: dict[int, list[int]] = {}
    for at, run in enumerate(runs):
        if at not in found:
            by_rows.setdefault(sum(page.rows for page in run), []).append(at)
    by_arrow = partial(_decoded_by_arrow, memory=memory)
    for these in by_rows.values():
        done = _possible(by_arrow, [runs[at] for at in these])
        found |= {at: pieces for at, pieces in zip(these, done, strict=True) if pieces}
    return [found.get(at) for at in range(len(runs))]


def _possible(
    decode: Callable[[Sequence[Run]], list[list[Piece]]], runs: Sequence[Run]
) -> list[list[Piece] | None]:
    """Return what is decoded of some runs, all at one go if that is possible; None for others."""
    if not runs:
        return []
    try:
        return [*decode(runs)]
    except UnusualError:
        if len(runs) == 1:
            return [None]
        return [found for run in runs for found in _possible(decode, [run])]


def is_plain(chunk: Chunk, header: PageHeader) -> bool:
    """Tell whether a page holds a value for each row and nothing else, as far as its size tells."""
    if chunk.size:
        return False
    values = header.rows * chunk.stored.itemsize
    size = len(_no_nulls(chunk, header)) + values
    return header.holds == "values" and header.size == size and chunk.codec in UNPACKED_HERE


def _no_nulls(chunk: Chunk, header: PageHeader) -> bytes:
    """Return the levels before the values if none of these is null."""
    if not chunk.nullable:
        return b""
    levels = equal_levels(header.rows, b"\x01")
    return levels if header.levels is None else levels[_LENGTH:]


def _plain_values(runs: Sequence[Run]) -> list[list[Piece]]:
    """Return the values of pages that are plain.

    Raises:
        UnusualError: One of them is not, or damaged.
    """
    packed = [item for run in runs for page in run for item in _packed(page)]
    done = iter(decompressed(packed))
    return [[piece for page in run for piece in _values(page, done)] for run in runs]


def _packed(page: StoredPages) -> Iterator[tuple[str, memoryview, int]]:
    """Yield (codec, bytes, decompressed size) of what is compressed of each page."""
    chunk, header, contents = page[:3]
    require_possible(chunk, header)
    if not is_intact(header, contents[0]):
        raise UnusualError("its checksum is wrong")
    apart = header.levels or 0
    if apart and contents[0][:apart] != _no_nulls(chunk, header):
        raise UnusualError("there are nulls")
    codec = chunk.codec if header.compressed else "UNCOMPRESSED"
    for content in contents:
        yield codec, content[apart:], header.size - apart


def _values(page: StoredPages, done: Iterator[memoryview]) -> Iterator[Piece]:
    """Yield the values of pages, decompressed."""
    levels = b"" if page.header.levels else _no_nulls(page.chunk, page.header)
    for content in islice(done, len(page.contents)):
        if content[: len(levels)] != levels:
            raise UnusualError("there are nulls")
        yield Piece(np.frombuffer(content, page.chunk.stored, page.header.rows, len(levels)))


def _decoded_by_arrow(runs: Sequence[Run], memory: memoryview | None) -> list[list[Piece]]:
    """Return the values of runs of as many rows each, with gaps where nulls are.

    Raises:
        UnusualError: One of them is damaged.
    """
    for page in chain.from_iterable(runs):
        require_possible(page.chunk, page.header)
    files = [_page_run(run) for run in runs]
    return [[piece] for piece in decoded_runs(files, sum(page.rows for page in runs[0]), memory)]


def _page_run(run: Run) -> PageRun:
    chunk = run[0].chunk
    dictionary = next((page.dictionary for page in run if page.dictionary is not None), b"")
    pages = [piece for page in run for piece in page.whole]
    kind = RunKind(chunk.stored, chunk.nullable, chunk.codec)
    return PageRun(kind, dictionary, pages)


def require_possible(chunk: Chunk, header: PageHeader) -> None:
    """Check that a page claims no more memory than it can need.

    Raises:
        UnusualError: It does.
    """
    width = PLACE if header.holds == "places" else chunk.stored.itemsize
    apart = header.levels or 0
    if not 0 <= apart <= header.size <= largest_page(header.rows, width) or apart > header.stored:
        raise UnusualError("its size is impossible")
    if chunk.codec == "UNCOMPRESSED" and header.size != header.stored:
        raise UnusualError("its size is impossible")


def largest_page(rows: int, width: int) -> int:
    """Return the bytes that no page of so many values is larger than, each of so many bytes.

    A run of levels for each of them would take 2 bytes.
    """
    return rows * (width + 2) + 64


def is_intact(header: PageHeader, content: memoryview) -> bool:
    """Tell whether the bytes of a page have the checksum that its header tells of, if it does."""
    return header.checksum is None or zlib_ng.crc32(content) == header.checksum & 0xFFFFFFFF


class _Local(threading.local):
    """What each thread has for itself."""

    def __init__(self) -> None:
        self.zstd = zstandard.ZstdDecompressor()


_local = _Local()


def decompressor() -> zstandard.ZstdDecompressor:
    """Return this thread's decompressor."""
    return _local.zstd


def decompressed(packed: Sequence[tuple[str, memoryview, int]]) -> list[memoryview]:
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
        return _UNPACK[codec](stored, size)
    except (pa.ArrowException, OSError, ValueError, IndexError) as error:
        raise UnusualError(str(error)) from None


def _inflated(stored: memoryview, size: int) -> bytes:
    inflater = zlib_ng.decompressobj(wbits=_DEFLATED)
    try:
        content = inflater.decompress(stored, size + 1)
    except zlib_ng.error as error:  # type: ignore[misc]  # it is a type
        raise UnusualError(str(error)) from None
    if not inflater.eof or inflater.unused_data:  # several in a row, as some write, PyArrow reads
        raise UnusualError("it decompresses to another size")
    return content


def _unsnapped(stored: memoryview, size: int) -> bytes:
    if thrift.varint(stored, 0)[0] != size:  # it begins with it
        raise UnusualError("it decompresses to another size")
    return bytes(pa.decompress(stored, size, codec="snappy", asbytes=True))


_UNPACK: Mapping[str, Callable[[memoryview, int], bytes]] = {
    "GZIP": _inflated,
    "SNAPPY": _unsnapped,
}
"""What is unpacked here besides Zstandard. Of other codecs nobody but PyArrow's own reader tells
whether contents are as long as they should be."""
UNPACKED_HERE = frozenset(("UNCOMPRESSED", "ZSTD", *_UNPACK))
