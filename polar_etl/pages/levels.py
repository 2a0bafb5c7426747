"""Definition levels: which rows of a page hold a value.

Levels are small numbers in runs, and so are booleans where a column of them is stored in runs. So
PyArrow reads levels as what they are in this way, too: the pages of a column of booleans.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from polar_etl.pages.files import PageRun, RunKind, decoded_array
from polar_etl.pages.headers import DATA, RLE, plain_header
from polar_etl.pages.thrift import as_varint

Bools = npt.NDArray[np.bool_]
Bytes = bytes | memoryview


def split(content: memoryview) -> tuple[memoryview, memoryview]:
    """Return the levels of a page of the first version with their length, and its values."""
    stop = 4 + int.from_bytes(content[:4], "little")
    return content[:stop], content[stop:]


def valid_in_each(levels: Sequence[Bytes], rows: int) -> Bools:
    """Return which rows of pages of one length hold a value, shape `(pages, rows)`.

    Args:
        levels: Of each page, of one bit, with their length.
        rows: Of each page.

    Raises:
        UnusualError: They are damaged.
    """
    pages: list[Bytes] = []
    for some in levels:
        pages += plain_header(DATA, len(some), rows, RLE), some
    run = PageRun(RunKind(np.dtype(np.bool_), False, "UNCOMPRESSED"), b"", pages)
    array = decoded_array([run], rows * len(levels))
    bits = np.frombuffer(array.buffers()[1], np.uint8)
    found = np.unpackbits(bits, bitorder="little", count=array.offset + len(array))
    return found[array.offset :].view(np.bool_).reshape(-1, rows)


@lru_cache
def equal_levels(rows: int, level: bytes) -> bytes:
    """Return the definition levels of a page whose rows are all there, or none of them."""
    run = as_varint(rows << 1) + level
    return len(run).to_bytes(4, "little") + run
