"""Columns of flags as pages: PyArrow takes 10 ns to encode one, of which eight are a byte."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from polar_etl.columns import Bitmap, Bools, is_valid
from polar_etl.encoding.chunks import statistics_of
from polar_etl.encoding.page_buffers import LaidOut, filled_pages, page_lengths

BOOLEAN = 0
"""Number of the type that Parquet stores flags as."""
_PAGE = 1 << 20
"""Flags of a page."""


def laid_out_flags(column: pa.Array, *, nullable: bool) -> tuple[LaidOut, bytes]:
    """Return a column of flags as pages of plain values, and their `Statistics`.

    Args:
        column: The flags.
        nullable: Whether levels stand before them.
    """
    bits = Bitmap(np.frombuffer(column.buffers()[1], np.uint8), column.offset)
    flags = bits.valid(0, len(column))
    valid = is_valid(column) if column.null_count else None
    there = flags if valid is None else flags[valid]
    rows = page_lengths(len(column), _PAGE)
    pages = list(filled_pages(there, valid, rows, _plain, nullable=nullable))
    sizes = np.array([len(page) for page in pages], np.int64)
    bounds = [bytes([int(bound)]) for bound in (there.min(), there.max())] if len(there) else []
    said = statistics_of(column.null_count, *bounds)
    return LaidOut(pages, sizes, np.array(rows, np.int64), [len(pages)]), said


def _plain(flags: Bools) -> bytes:
    return np.packbits(flags, bitorder="little").tobytes()
