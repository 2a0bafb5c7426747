"""Columns of flags as pages: PyArrow takes 10 ns to encode one, of which eight are a byte."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from polar_etl.columns import Bools, is_valid
from polar_etl.encoding.page_buffers import Bytes, LaidOut, levels_of
from polar_etl.pages import thrift
from polar_etl.pages.thrift import BINARY, I64, TRUE

BOOLEAN = 0
"""Number of the type that Parquet stores flags as."""
_PAGE = 1 << 20
"""Flags of a page."""


def pages_of_flags(column: pa.Array, *, nullable: bool) -> LaidOut:
    """Return a column of flags as pages of plain values.

    Args:
        column: The flags.
        nullable: Whether levels stand before them.
    """
    flags, valid = _flags(column), is_valid(column) if column.null_count else None
    pages: list[Bytes] = []
    rows = []
    for first in range(0, len(flags), _PAGE):
        some = flags[first : first + _PAGE]
        rows.append(len(some))
        there = None if valid is None else valid[first : first + _PAGE]
        filled = some if there is None else some[there]
        levels = levels_of(len(some), there, len(filled)) if nullable else b""
        pages.append(levels + np.packbits(filled, bitorder="little").tobytes())
    sizes = np.array([len(page) for page in pages], np.int64)
    return LaidOut(pages, sizes, np.array(rows, np.int64), [len(pages)])


def statistics_of_flags(column: pa.Array) -> bytes:
    """Return `Statistics` of flags: nulls, the greatest and the least one, if there is any."""
    said = [(3, I64, thrift.as_number(column.null_count))]
    flags = _flags(column)
    there = flags[is_valid(column)] if column.null_count else flags
    if len(there):
        for place, flag in ((5, there.any()), (6, there.all())):
            said.append((place, BINARY, thrift.as_varint(1) + bytes((int(flag),))))
        said += (7, TRUE, b""), (8, TRUE, b"")
    return thrift.as_struct(said)


def _flags(column: pa.Array) -> Bools:
    """Return the flags; anything where a null is."""
    first, stop = column.offset, column.offset + len(column)
    raw = np.frombuffer(column.buffers()[1], np.uint8)[first // 8 : -(-stop // 8)]
    bits = np.unpackbits(raw, bitorder="little", count=first % 8 + len(column))
    return bits[first % 8 :].view(np.bool_)
