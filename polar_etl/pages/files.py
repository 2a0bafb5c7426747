"""Pages as a Parquet file of their own, from which PyArrow decodes them.

It puts values between nulls and looks up places in a dictionary in half of the time that NumPy
takes, but takes a file as it is, or row groups as wholes. So pages that somebody else has chosen,
of some rows of some columns, get a footer of their own: behind the memory that they were fetched
into, or copied, if they do not stand there as they do in a file.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import accumulate
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from polar_etl.columns import Piece, bitmaps_of
from polar_etl.pages import thrift
from polar_etl.pages.fetching import Stretch
from polar_etl.pages.headers import UnusualError
from polar_etl.pages.thrift import BINARY, I32, I64, LIST, STRUCT
from polar_etl.scratch import scratch

Bytes = bytes | memoryview

_PHYSICAL = {"|b1": 0, "<i4": 1, "<u4": 1, "<i8": 2, "<u8": 2, "<f4": 4, "<f8": 5, "<f2": 7}
"""Number of Parquet's type, by the dtype of its bytes."""
ZSTD = 6
CODECS = {
    0: "UNCOMPRESSED", 1: "SNAPPY", 2: "GZIP", 4: "BROTLI", 5: "LZ4", ZSTD: "ZSTD", 7: "LZ4_RAW",
}  # fmt: skip
"""By number in a footer: those that PyArrow has, by whose names they go."""
_CODEC_NUMBERS = {name: number for number, name in CODECS.items()}
_ENCODINGS = (0, 3, 8)
"""Numbers of the usual ones; PyArrow goes by what page headers say."""
_NAME = b"\x01x"
_GROUP = (
    b"\x19\x1c"  # of the columns there is one:
    b"\x26%b\x1c"  # the chunk's offset, and its metadata: what is usual,
    b"%b\x16%b\x16%b\x16%b"  # rows, and bytes before compression and after
    b"\x26%b%b\x00\x00"  # where the pages are, and the dictionary
    b"\x16\x00\x16%b\x00"  # the row group's bytes, which nobody asks for, and its rows
)
"""A row group as a footer describes it."""
_FILE = 1 << 19
"""Bytes of several runs of pages in one file, as they are or decoded."""
ROOM_BEFORE = len(thrift.MAGIC)
"""Bytes before the first page: an offset of 0 says that there is none."""
_ROOM, _ROOM_EACH = 128, 128
"""Bytes of a footer, at most, besides those for each run of pages."""


def room_behind(runs: int) -> int:
    """Return the bytes that a footer for so many runs of pages takes at most."""
    return _ROOM + runs * _ROOM_EACH


class RunKind(NamedTuple):
    """What runs of pages that have one file have in common."""

    stored: np.dtype[np.generic]
    """Of the values."""
    nullable: bool
    codec: str
    """Name of the compression, as PyArrow has it."""


class There(NamedTuple):
    """Where a run of pages stands in memory."""

    start: int
    data: int
    """Where the first page behind the dictionary begins; at `start` if there is no dictionary."""
    size: int
    """Bytes of all pages."""


class PageRun(NamedTuple):
    """Neighbouring pages of a column chunk, as they stand in a file, headers included."""

    kind: RunKind
    dictionary: Bytes | Stretch
    """Its page; empty if none of the others refers to one."""
    pages: Sequence[Bytes]

    @property
    def size(self) -> int:
        """Bytes of all pages."""
        return len(self.dictionary) + sum(map(len, self.pages))


def decoded_runs(
    runs: Sequence[PageRun], rows: int, memory: memoryview | None = None
) -> list[Piece]:
    """Return the numbers in some runs of pages, each of so many rows.

    Long ones have a file each, which stays in the processor's cache; of short ones several have
    one, as each takes time to open. They are row groups of one column: columns take time, too.

    Args:
        runs: The pages.
        rows: Of each run.
        memory: What holds most of them, with `ROOM_BEFORE` and `room_behind`.

    Raises:
        UnusualError: PyArrow can't decode one of them.
    """
    found: dict[int, Piece] = {}
    for which in _files(runs, rows):
        array = decoded_array([runs[at] for at in which], rows, memory)
        found |= zip(which, _pieces(array, runs[which[0]].kind.stored, rows), strict=True)
    return [found[at] for at in range(len(runs))]


def _files(runs: Sequence[PageRun], rows: int) -> Iterator[list[int]]:
    """Yield which runs have one file."""
    begun: dict[RunKind, list[int]] = {}
    sizes: dict[RunKind, int] = {}
    for at, run in enumerate(runs):
        kind, size = run.kind, max(run.size, rows * run.kind.stored.itemsize)
        if kind in begun and sizes[kind] + size > _FILE:
            yield begun.pop(kind)
        sizes[kind] = sizes[kind] + size if kind in begun else size
        begun.setdefault(kind, []).append(at)
    yield from begun.values()


def _pieces(array: pa.Array, stored: np.dtype[np.generic], rows: int) -> Iterator[Piece]:
    """Return the numbers of an array, so many at a time."""
    together = numbers_in(array, stored)
    starts = range(0, len(array), rows)
    if len(starts) == 1:
        return iter([together])
    if not together.bitmaps:
        return (Piece(together.values[start : start + rows]) for start in starts)
    are_whole = np.all(together.valid(0, len(array)).reshape(-1, rows), axis=1).tolist()
    pieces = (together.between(start, start + rows) for start in starts)
    return (
        Piece(piece.values) if whole else piece
        for piece, whole in zip(pieces, are_whole, strict=True)
    )


def numbers_in(array: pa.Array, stored: np.dtype[np.generic]) -> Piece:
    """Return the numbers of an array that was decoded from a page file.

    Args:
        array: The array.
        stored: Dtype of the values in the file.
    """
    place = array.offset * stored.itemsize
    return Piece(np.frombuffer(array.buffers()[1], stored, len(array), place), bitmaps_of(array))


def decoded_array(runs: Sequence[PageRun], rows: int, memory: memoryview | None = None) -> pa.Array:
    """Return the values of some runs of pages of one kind, one behind the other.

    Args:
        runs: The pages.
        rows: Of each run.
        memory: See `decoded_runs`.

    Raises:
        UnusualError: PyArrow can't decode one of them.
    """
    starts = _places_in(memory, runs) if memory else None
    if memory is None or starts is None:
        memory, starts = _copied(runs)
    there = [
        There(start, start + len(run.dictionary), run.size)
        for start, run in zip(starts, runs, strict=True)
    ]
    return decoded_there(memory, there, rows, runs[0].kind)


def decoded_there(memory: memoryview, runs: Sequence[There], rows: int, kind: RunKind) -> pa.Array:
    """Return the values of some runs of pages of one kind, one behind the other.

    Args:
        memory: What holds them, with `ROOM_BEFORE` and `room_behind`.
        runs: Where they stand in it.
        rows: Of each run.
        kind: Of all of them.

    Raises:
        UnusualError: PyArrow can't decode one of them.
    """
    footer = _footer(runs, rows, kind)
    behind = footer + thrift.footer_end(len(footer))
    place = len(memory) - room_behind(len(runs))
    memory[place : place + len(behind)] = behind
    try:
        source = pa.BufferReader(pa.py_buffer(memory[: place + len(behind)]))
        opened = pq.ParquetFile(source, pre_buffer=False, page_checksum_verification=True)
        column = opened.reader.read_all(use_threads=False).column(0)
    except (pa.ArrowException, OSError) as error:
        raise UnusualError(str(error)) from None
    if len(column) != rows * len(runs):
        raise UnusualError("its pages break off")
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def _places_in(memory: memoryview, runs: Sequence[PageRun]) -> list[int] | None:
    """Return where some runs begin in memory, None if one does not stand there as a whole."""
    first = pa.py_buffer(memory).address
    last = first + len(memory) - room_behind(len(runs))
    starts = []
    for run in runs:
        start = at = -1
        for piece in (run.dictionary, *run.pages):
            if isinstance(piece, Stretch):
                return None
            if len(piece):
                address = pa.py_buffer(piece).address
                if start < 0:
                    start = at = address
                if at != address:
                    return None
                at += len(piece)
        if not first < start <= at <= last:
            return None
        starts.append(start - first)
    return starts


def _copied(runs: Sequence[PageRun]) -> tuple[memoryview, list[int]]:
    """Return memory that runs are copied to, with room for a footer, and where each begins."""
    *starts, end = accumulate((run.size for run in runs), initial=ROOM_BEFORE)
    memory = scratch("page file", end + room_behind(len(runs))).data
    done = ROOM_BEFORE
    for run in runs:
        for piece in (run.dictionary, *run.pages):
            stop = done + len(piece)
            if not isinstance(piece, Stretch):
                memory[done:stop] = piece
            elif not piece.read_into(memory[done:stop]):
                raise UnusualError("the file breaks off")
            done = stop
    return memory, starts


def _footer(runs: Sequence[There], rows: int, kind: RunKind) -> bytes:
    """Return a footer of which each row group is a run."""
    usual = _usual_meta(_PHYSICAL[kind.stored.str], _CODEC_NUMBERS[kind.codec])
    many = thrift.often_number(rows)
    groups = []
    for start, data, size in runs:
        first, stored = thrift.as_number(data), thrift.often_number(size)
        dictionary = b"\x26%b" % thrift.as_number(start) if data > start else b""
        groups.append(_GROUP % (first, usual, many, stored, stored, first, dictionary, many))
    all_rows = thrift.as_number(rows * len(runs))
    fields = [(3, I64, all_rows), (4, LIST, thrift.as_list(STRUCT, groups))]
    return _schema(kind) + thrift.as_struct(fields, behind=2)


@lru_cache
def _schema(kind: RunKind) -> bytes:
    """Return the first fields of a footer: its version, and the column."""
    physical, width = _PHYSICAL[kind.stored.str], kind.stored.itemsize
    repetition = thrift.as_number(int(kind.nullable))
    fields = [(1, I32, thrift.as_number(physical)), (2, I32, thrift.as_number(width))]
    leaf = thrift.as_struct([*fields, (3, I32, repetition), (4, BINARY, _NAME)])
    root = thrift.as_struct([(4, BINARY, _NAME), (5, I32, thrift.as_number(1))])
    schema = thrift.as_list(STRUCT, [root, leaf])
    return thrift.as_struct([(1, I32, thrift.as_number(1)), (2, LIST, schema)])[:-1]


@lru_cache
def _usual_meta(physical: int, codec: int) -> bytes:
    """Return the first fields of what a footer says of a chunk."""
    encodings = [thrift.as_number(encoding) for encoding in _ENCODINGS]
    fields = [
        (1, I32, thrift.as_number(physical)),
        (2, LIST, thrift.as_list(I32, encodings)),
        (3, LIST, thrift.as_list(BINARY, [_NAME])),
        (4, I32, thrift.as_number(codec)),
    ]
    return thrift.as_struct(fields)[:-1]
