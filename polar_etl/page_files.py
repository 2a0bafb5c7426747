"""Pages as a Parquet file of their own, from which PyArrow decodes them.

It puts values between nulls and looks up places in a dictionary in half of the time that NumPy
takes, but takes a file as it is, or row groups as wholes. So pages that somebody else has chosen,
of some rows of some columns, are copied into memory as they stand, with a footer behind them.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
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
_FILE = 1 << 20
"""Bytes of the pages of several columns in one file."""


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


def decoded_runs(runs: Sequence[PageRun], rows: int) -> list[Piece]:
    """Return the numbers in some runs of pages, each of so many rows.

    Long ones have a file each, which stays in the processor's cache; of short ones several have
    one, as each takes time to open.

    Raises:
        UnusualError: PyArrow can't decode one of them.
    """
    pieces: list[Piece] = []
    first = size = 0
    for at, run in enumerate(runs):
        if size and size + run.size > _FILE:
            pieces += _decoded(runs[first:at], rows)
            first, size = at, 0
        size += run.size
    return pieces + _decoded(runs[first:], rows)


def _decoded(runs: Sequence[PageRun], rows: int) -> list[Piece]:
    """Return the numbers in some runs of pages from one file, see `decoded_runs`.

    Those of short runs are copied out of PyArrow's memory: it does not use what hundreds of them
    have left, side by side, for the next ones (jemalloc takes no part of what is 64 times as
    large), so that its memory would grow with all that is decoded in a second.
    """
    arrays = decoded_arrays(runs, rows)
    pieces = [_piece(array, run.stored) for array, run in zip(arrays, runs, strict=True)]
    return [piece.alone() for piece in pieces] if len(pieces) > 1 else pieces


def decoded_arrays(runs: Sequence[PageRun], rows: int) -> list[pa.Array]:
    """Return the values of some runs of pages, each of so many rows, from one file.

    Raises:
        UnusualError: PyArrow can't decode one of them.
    """
    try:
        source = pa.BufferReader(pa.py_buffer(_file_of(runs, rows)))
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


def _file_of(runs: Sequence[PageRun], rows: int) -> npt.NDArray[np.uint8]:
    """Return a Parquet file whose columns are some runs: it is good until the next call."""
    starts = list(accumulate((run.size for run in runs[:-1]), initial=len(thrift.MAGIC)))
    footer = _footer(runs, starts, rows)
    parts: list[Bytes | Stretch] = [thrift.MAGIC]
    for run in runs:
        parts += run.dictionary, *run.pages
    parts += footer, thrift.footer_end(len(footer))
    file = scratch("page file", sum(map(len, parts)))
    room, done = file.data, 0
    for part in parts:
        stop = done + len(part)
        if not isinstance(part, Stretch):
            room[done:stop] = part
        elif not part.read_into(room[done:stop]):
            raise UnusualError("the file breaks off")
        done = stop
    return file


def _footer(runs: Sequence[PageRun], starts: Sequence[int], rows: int) -> bytes:
    root = thrift.as_struct([(4, BINARY, _NAME), (5, I32, thrift.as_number(len(runs)))])
    leaves = [_leaf(_PHYSICAL[run.stored.str], run.stored.itemsize, run.nullable) for run in runs]
    chunks = [_chunk(run, start, rows) for run, start in zip(runs, starts, strict=True)]
    many = thrift.as_number(rows)
    group = [(1, LIST, thrift.as_list(STRUCT, chunks)), (2, I64, b"\0"), (3, I64, many)]
    return thrift.as_struct(
        [
            (1, I32, thrift.as_number(1)),
            (2, LIST, thrift.as_list(STRUCT, [root, *leaves])),
            (3, I64, many),
            (4, LIST, thrift.as_list(STRUCT, [thrift.as_struct(group)])),
        ]
    )


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
