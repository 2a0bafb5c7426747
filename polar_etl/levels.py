"""Definition levels: which rows of a page hold a value.

Levels are small numbers in runs, and so are booleans where a column of them is stored in runs. So
PyArrow reads levels that come in many runs as what they are in this way, too: the pages of a column
of booleans, at a tenth of the time and the memory that it takes to read the values with them.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from polar_etl import thrift
from polar_etl.headers import UnusualError
from polar_etl.thrift import BINARY, I32, I64, LIST, STRUCT

Bools = npt.NDArray[np.bool_]
Bytes = bytes | memoryview

_FEW = 64
"""Bytes of levels that are short: they are read run by run, in Python."""
_ONE_BY_ONE = 64
"""Pages with short levels that take Python less time than PyArrow, which is slow to begin."""
_BOOLEAN = 0
"""Number of Parquet's type."""
_RUNS = 3
"""Number of the encoding in runs."""
_NAME = b"\x05valid"


def split(content: memoryview) -> tuple[memoryview, memoryview]:
    """Return the levels of a page of the first version, without their length, and its values."""
    stop = 4 + int.from_bytes(content[:4], "little")
    return content[4:stop], content[stop:]


def valid_in(pages: Sequence[tuple[Bytes, int]]) -> list[Bools | None]:
    """Return which rows of each page hold a value; None if all do.

    Args:
        pages: Of each, its levels of one bit, without their length, and its rows.

    Raises:
        UnusualError: They are damaged.
    """
    levels, rows = zip(*pages, strict=True) if pages else ((), ())
    many = _in_many_runs(levels)
    stops = np.cumsum([rows[at] for at in many])
    read = np.split(_read_by_arrow([levels[at] for at in many], [rows[at] for at in many]), stops)
    by_arrow = dict(zip(many, read, strict=False))  # behind the last one nothing is left
    found = (
        by_arrow[at] if at in by_arrow else _run_by_run(some, rows[at])
        for at, some in enumerate(levels)
    )
    return [None if valid.all() else valid for valid in found]


def valid_in_each(levels: Sequence[Bytes], rows: int) -> Bools:
    """Return which rows of pages of one length hold a value, shape `(pages, rows)`: see `valid_in`.

    Args:
        levels: Of each page, without their length.
        rows: Of each page.

    Raises:
        UnusualError: They are damaged.
    """
    many = _in_many_runs(levels)
    read = _read_by_arrow([levels[at] for at in many], [rows] * len(many)).reshape(-1, rows)
    if len(many) == len(levels):
        return read
    found = np.empty((len(levels), rows), np.bool_)
    found[many] = read
    for at in {*range(len(levels))} - {*many}:
        found[at] = _run_by_run(levels[at], rows)
    return found


def _in_many_runs(levels: Sequence[Bytes]) -> list[int]:
    """Return which levels PyArrow is to read: those in many runs, and short ones of many pages."""
    short = {at for at, some in enumerate(levels) if len(some) <= _FEW}
    others = [at for at, some in enumerate(levels) if at not in short and not _is_one_run(some)]
    return others if len(short) <= _ONE_BY_ONE else sorted(short.union(others))


def _is_one_run(levels: Bytes) -> bool:
    """Tell whether levels are one run of bits."""
    try:
        head, at = thrift.varint(levels, 0)
    except ValueError:
        raise UnusualError("its levels are damaged") from None
    return bool(head & 1) and at + (head >> 1) == len(levels)


def _run_by_run(levels: Bytes, rows: int) -> Bools:
    found = np.empty(rows, np.bool_)
    at = done = 0
    try:
        while done < rows:
            head, at = thrift.varint(levels, at)
            count = head >> 1
            if head & 1:
                bits = np.frombuffer(levels[at : at + count], np.uint8)
                at += count
                run = np.unpackbits(bits, bitorder="little")[: rows - done].view(np.bool_)
                found[done : done + len(run)] = run
                count = len(run)
            else:
                found[done : done + count] = levels[at]
                at += 1
            if not count:
                raise UnusualError("its levels are damaged")
            done += count
    except (IndexError, ValueError):
        raise UnusualError("its levels are damaged") from None
    return found


def _read_by_arrow(levels: Sequence[Bytes], rows: Sequence[int]) -> Bools:
    """Return which rows of some pages hold a value, those of one page behind those of the other."""
    if not levels:
        return np.empty(0, np.bool_)
    try:
        file = pa.BufferReader(_file_of(levels, rows))
        opened = pq.ParquetFile(file, pre_buffer=False)
        (column,) = opened.reader.read_all(use_threads=False).columns
    except (pa.ArrowException, OSError):
        raise UnusualError("its levels are damaged") from None
    if len(column) != sum(rows):
        raise UnusualError("its levels break off")
    bits = [
        np.unpackbits(
            np.frombuffer(chunk.buffers()[1], np.uint8),
            bitorder="little",
            count=chunk.offset + len(chunk),
        )[chunk.offset :]
        for chunk in column.chunks
    ]
    return (bits[0] if len(bits) == 1 else np.concatenate(bits)).view(np.bool_)


def _file_of(levels: Sequence[Bytes], rows: Sequence[int]) -> bytes:
    """Return a Parquet file with one column of booleans, which are levels."""
    parts: list[Bytes] = [thrift.MAGIC]
    for some, many in zip(levels, rows, strict=True):
        parts += _page_header(len(some) + 4, many), len(some).to_bytes(4, "little"), some
    footer = _footer(sum(rows), sum(map(len, parts)) - len(thrift.MAGIC))
    return b"".join([*parts, footer, thrift.footer_end(len(footer))])


@lru_cache
def _page_header(size: int, rows: int) -> bytes:
    runs = [(place, I32, thrift.as_number(_RUNS)) for place in (2, 3, 4)]
    page = thrift.as_struct([(1, I32, thrift.as_number(rows)), *runs])
    sizes = [(place, I32, thrift.as_number(size)) for place in (2, 3)]
    return thrift.as_struct([(1, I32, thrift.as_number(0)), *sizes, (5, STRUCT, page)])


def _footer(rows: int, size: int) -> bytes:
    boolean = (1, I32, thrift.as_number(_BOOLEAN))
    root = thrift.as_struct([(4, BINARY, _NAME), (5, I32, thrift.as_number(1))])
    leaf = thrift.as_struct([boolean, (3, I32, thrift.as_number(0)), (4, BINARY, _NAME)])
    meta = thrift.as_struct(
        [
            boolean,
            (2, LIST, thrift.as_list(I32, [thrift.as_number(_RUNS)])),
            (3, LIST, thrift.as_list(BINARY, [_NAME])),
            (4, I32, thrift.as_number(0)),
            *((place, I64, thrift.as_number(many)) for place, many in ((5, rows), (6, size))),
            (7, I64, thrift.as_number(size)),
            (9, I64, thrift.as_number(len(thrift.MAGIC))),
        ]
    )
    chunk = thrift.as_struct([(2, I64, thrift.as_number(0)), (3, STRUCT, meta)])
    group = [
        (1, LIST, thrift.as_list(STRUCT, [chunk])),
        (2, I64, thrift.as_number(size)),
        (3, I64, thrift.as_number(rows)),
    ]
    return thrift.as_struct(
        [
            (1, I32, thrift.as_number(1)),
            (2, LIST, thrift.as_list(STRUCT, [root, leaf])),
            (3, I64, thrift.as_number(rows)),
            (4, LIST, thrift.as_list(STRUCT, [thrift.as_struct(group)])),
        ]
    )
