"""Definition levels: which rows of a page hold a value.

Levels are small numbers in runs, and so are booleans where a column of them is stored in runs. So
PyArrow reads levels that come in many runs as what they are in this way, too: the pages of a column
of booleans, at a tenth of the time and the memory that it takes to read the values with them.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise

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
"""Bytes of levels up to which they are read run by run, in Python."""
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
    many = [at for at, (levels, _) in enumerate(pages) if not _is_short(levels)]
    read = dict(zip(many, _read_by_arrow([pages[at] for at in many]), strict=True))
    found = (
        read[at] if at in read else _run_by_run(levels, rows)
        for at, (levels, rows) in enumerate(pages)
    )
    return [None if valid.all() else valid for valid in found]


def _is_short(levels: Bytes) -> bool:
    """Tell whether levels are few runs, or one run of bits."""
    if len(levels) <= _FEW:
        return True
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


def _read_by_arrow(pages: Sequence[tuple[Bytes, int]]) -> list[Bools]:
    if not pages:
        return []
    stops = np.cumsum([0, *(rows for _, rows in pages)]).tolist()
    try:
        opened = pq.ParquetFile(pa.BufferReader(_file_of(pages)), pre_buffer=False)
        (column,) = opened.reader.read_all(use_threads=False).columns
    except (pa.ArrowException, OSError):
        raise UnusualError("its levels are damaged") from None
    if len(column) != stops[-1]:
        raise UnusualError("its levels break off")
    bits = [
        np.unpackbits(
            np.frombuffer(chunk.buffers()[1], np.uint8),
            bitorder="little",
            count=chunk.offset + len(chunk),
        )[chunk.offset :]
        for chunk in column.chunks
    ]
    valid = (bits[0] if len(bits) == 1 else np.concatenate(bits)).view(np.bool_)
    return [valid[first:stop] for first, stop in pairwise(stops)]


def _file_of(pages: Sequence[tuple[Bytes, int]]) -> bytes:
    """Return a Parquet file with one column of booleans, which are levels."""
    parts: list[Bytes] = [thrift.MAGIC]
    for levels, rows in pages:
        parts += [_page_header(len(levels) + 4, rows), len(levels).to_bytes(4, "little"), levels]
    footer = _footer(sum(rows for _, rows in pages), sum(map(len, parts)) - len(thrift.MAGIC))
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
