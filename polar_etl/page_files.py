"""Pages as a Parquet file of their own, from which PyArrow decodes them.

It puts values between nulls and looks up places in a dictionary in half of the time that NumPy
takes, but takes a file as it is, or row groups as wholes. So pages that somebody else has chosen,
of some rows of some columns, get a footer of their own: behind the memory that they were fetched
into, or copied, if they do not stand there as they do in a file.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from polar_etl import thrift
from polar_etl.columns import Piece, bitmaps_of
from polar_etl.fetching import Stretch
from polar_etl.headers import UnusualError
from polar_etl.scratch import scratch
from polar_etl.thrift import BINARY, I32, I64, LIST, STRUCT

Bytes = bytes | memoryview

_PHYSICAL = {"|b1": 0, "<i4": 1, "<u4": 1, "<i8": 2, "<u8": 2, "<f4": 4, "<f8": 5, "<f2": 7}
"""Number of Parquet's type, by the dtype of its bytes."""
_CODECS = {"UNCOMPRESSED": 0, "SNAPPY": 1, "ZSTD": 6}
_ENCODINGS = (0, 3, 8)
"""Numbers of the usual ones; PyArrow goes by what page headers say."""
_NAME = b"\x01x"
_CHUNK = (
    b"\x26%(first)b\x1c"  # the chunk's offset, and its metadata: what is usual,
    b"%(usual)b\x16%(rows)b\x16%(size)b\x16%(size)b"  # rows, and bytes before compression and after
    b"\x26%(first)b%(dictionary)b\x00\x00"  # where the pages are, and the dictionary
)
"""A chunk as a footer describes it."""
_FILE = 1 << 19
"""Bytes of the pages of several columns in one file."""
ROOM_BEFORE = len(thrift.MAGIC)
"""Bytes before the first page: an offset of 0 says that there is none."""
_ROOM, _ROOM_EACH = 128, 128
"""Bytes of a footer, at most, besides those for each column."""


def room_behind(columns: int) -> int:
    """Return the bytes that the footer of so many columns takes at most."""
    return _ROOM + columns * _ROOM_EACH


class PageRun(NamedTuple):
    """Neighbouring pages of a column chunk, as they stand in a file, headers included."""

    stored: np.dtype[np.generic]
    """Of the values."""
    nullable: bool
    codec: str
    """Name of the compression, as PyArrow has it."""
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
    one, as each takes time to open.

    Args:
        runs: The pages.
        rows: Of each run.
        memory: What holds most of them, with `ROOM_BEFORE` and `room_behind`.

    Raises:
        UnusualError: PyArrow can't decode one of them.
    """
    pieces: list[Piece] = []
    first = size = 0
    for at, run in enumerate(runs):
        if size and size + run.size > _FILE:
            pieces += _decoded(runs[first:at], rows, memory)
            first, size = at, 0
        size += run.size
    return pieces + _decoded(runs[first:], rows, memory)


def _decoded(runs: Sequence[PageRun], rows: int, memory: memoryview | None) -> list[Piece]:
    """Return the numbers in some runs of pages from one file, see `decoded_runs`.

    Those of short runs are copied out of PyArrow's memory: it does not use what hundreds of them
    have left, side by side, for the next ones (jemalloc takes no part of what is 64 times as
    large), so that its memory would grow with all that is decoded in a second.
    """
    arrays = decoded_arrays(runs, rows, memory)
    pieces = [_piece(array, run.stored) for array, run in zip(arrays, runs, strict=True)]
    return [piece.alone() for piece in pieces] if len(pieces) > 1 else pieces


def decoded_arrays(
    runs: Sequence[PageRun], rows: int, memory: memoryview | None = None
) -> list[pa.Array]:
    """Return the values of some runs of pages, each of so many rows, from one file.

    Args: see `decoded_runs`.

    Raises:
        UnusualError: PyArrow can't decode one of them.
    """
    try:
        source = pa.BufferReader(pa.py_buffer(_file_of(runs, rows, memory)))
        opened = pq.ParquetFile(source, pre_buffer=False, page_checksum_verification=True)
        columns = opened.reader.read_all(use_threads=False).columns
    except (pa.ArrowException, OSError) as error:
        raise UnusualError(str(error)) from None
    if any(len(column) != rows for column in columns):
        raise UnusualError("its pages break off")
    return [
        column.chunk(0) if column.num_chunks == 1 else column.combine_chunks() for column in columns
    ]


def _piece(array: pa.Array, stored: np.dtype[np.generic]) -> Piece:
    place = array.offset * stored.itemsize
    values = np.frombuffer(array.buffers()[1], stored, len(array), place)
    return Piece(values, bitmaps_of(array))


def _file_of(runs: Sequence[PageRun], rows: int, memory: memoryview | None) -> memoryview:
    """Return a Parquet file whose columns are some runs: it is good until the next call."""
    starts = _places_in(memory, runs) if memory else None
    if memory is None or starts is None:
        memory, starts = _copied(runs)
    footer = _footer(runs, starts, rows)
    behind = footer + thrift.footer_end(len(footer))
    place = len(memory) - room_behind(len(runs))
    memory[place : place + len(behind)] = behind
    return memory[: place + len(behind)]


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


def _footer(runs: Sequence[PageRun], starts: Sequence[int], rows: int) -> bytes:
    leaves = [_leaf(_PHYSICAL[run.stored.str], run.stored.itemsize, run.nullable) for run in runs]
    chunks = [_chunk(run, start, rows) for run, start in zip(runs, starts, strict=True)]
    many = thrift.often_number(rows)
    group = [(1, LIST, thrift.as_list(STRUCT, chunks)), (2, I64, b"\0"), (3, I64, many)]
    groups = thrift.as_list(STRUCT, [thrift.as_struct(group)])
    return _schema(*leaves) + thrift.as_struct([(3, I64, many), (4, LIST, groups)], behind=2)


@lru_cache
def _schema(*leaves: bytes) -> bytes:
    """Return the first fields of a footer: its version, and the columns."""
    root = thrift.as_struct([(4, BINARY, _NAME), (5, I32, thrift.as_number(len(leaves)))])
    schema = thrift.as_list(STRUCT, [root, *leaves])
    return thrift.as_struct([(1, I32, thrift.as_number(1)), (2, LIST, schema)])[:-1]


@lru_cache
def _leaf(physical: int, width: int, nullable: bool) -> bytes:
    """Return the schema element of a column."""
    kind, length = thrift.as_number(physical), thrift.as_number(width)
    repetition = thrift.as_number(int(nullable))
    fields = [(1, I32, kind), (2, I32, length), (3, I32, repetition), (4, BINARY, _NAME)]
    return thrift.as_struct(fields)


def _chunk(run: PageRun, start: int, rows: int) -> bytes:
    """Return what a footer says of a run of pages that begins at `start`."""
    dictionary = b"\x26%b" % thrift.as_number(start) if run.dictionary else b""
    return _CHUNK % {
        b"usual": _usual_meta(_PHYSICAL[run.stored.str], _CODECS[run.codec]),
        b"rows": thrift.often_number(rows),
        b"size": thrift.as_number(run.size),
        b"first": thrift.as_number(start + len(run.dictionary)),
        b"dictionary": dictionary,
    }


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
