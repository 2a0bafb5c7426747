"""How tiles are computed with: working memory that each thread keeps, and NumPy without copies.

Taking memory anew for every few columns costs page faults.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt

TILE_VALUES = 1 << 16
"""Values that arithmetic goes through at a time: few enough for the processor's cache, enough that
what Python does for each tile is small beside it (2^15 and 2^17 were slower in either pass)."""

_BUFFERED = 1 << 9
"""Values of NumPy's own buffers. What is the same for all of a row is repeated there, a value at a
time, if rows are shorter: at 8,192, its default, that takes twice the time of the arithmetic."""


class _Local(threading.local):
    def __init__(self) -> None:
        self.buffers: dict[str, npt.NDArray[np.uint8]] = {}


_local = _Local()


def scratch(use: str, size: int) -> npt.NDArray[np.uint8]:
    """Return `size` bytes of undefined value, this thread's own until it asks again.

    Args:
        use: What for; two uses never share memory.
        size: How many bytes.
    """
    held = _local.buffers.get(use)
    if held is None or len(held) < size:
        held = _local.buffers[use] = np.empty(size, np.uint8)
    return held[:size]


def scratch_floats(use: str, count: int) -> npt.NDArray[np.float64]:
    """Return `count` numbers of undefined value, see `scratch`."""
    return scratch(use, 8 * count).view(np.float64)


@contextmanager
def tile_arithmetic() -> Iterator[None]:
    """Compute with tiles: NaN and infinities are no reason to warn, and short rows are not slow."""
    with np.errstate(all="ignore"):
        before = np.setbufsize(_BUFFERED)
        try:
            yield
        finally:
            np.setbufsize(before)
