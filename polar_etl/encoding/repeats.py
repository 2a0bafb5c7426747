"""Columns of few different values: each value once, and which of them stands where.

Codes, counts and categories are whole numbers that lie close together, whatever type they have.
They are found by counting, which takes a fifth of the time that compressing them as numbers of
eight bytes takes, and what is left to compress is an eighth.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from polar_etl.columns import Bools, Piece, validity

Array = npt.NDArray[np.generic]
Places = npt.NDArray[np.unsignedinteger[Any]]

_FEWEST = 1 << 13
"""Values of a column below which looking at them takes as long as it saves."""
_SPAN = 1 << 16
"""Whole numbers that values may lie among, at most."""
_REPEATED = 4
"""How often each value must occur, on average."""
_LOOKED_AT = 1 << 10
"""Rows among which a value is looked for that tells whether they may be whole numbers."""


class Repeats(NamedTuple):
    """What is not null of a column, in terms of its different values."""

    values: Array
    """Each of them once, in ascending order."""
    places: Places
    """Which of them stands in each row that is not null."""
    valid: Bools | None
    """Which rows are not null; None if all are."""


def repeats_in(pieces: Sequence[Piece], rows: int) -> Repeats | None:
    """Return the values of a column of numbers, None if they are many or no whole numbers.

    Only the values decide, not how they are stored or cut into pieces.

    Args:
        pieces: The column.
        rows: How long it is.

    Example:
        >>> found = repeats_in([Piece(np.arange(20_000.0) % 3 - 1)], 20_000)
        >>> found.values, found.places[:5], found.places.dtype
        (array([-1.,  0.,  1.]), array([0, 1, 2, 0, 1], dtype=uint8), dtype('uint8'))
        >>> repeats_in([Piece(np.arange(20_000.0) / 3)], 20_000)
    """
    if rows < _FEWEST or not _may_be_whole(pieces, rows):
        return None
    valid = validity(pieces, 0, rows)
    if valid is not None and valid.all():
        valid = None
    values = _present(pieces, valid)
    if len(values) < _FEWEST:
        return None
    least, most = values.min(), values.max()
    if not most.item() - least.item() < _SPAN:  # nor if one is NaN
        return None
    steps = _steps_above(values, least)
    if steps is None:
        return None
    there = np.zeros(int(most.item() - least.item()) + 1, np.bool_)
    there[steps] = True
    which = np.flatnonzero(there)
    if not 1 < len(which) <= len(values) // _REPEATED:
        return None
    numbers: Places = np.zeros(len(there), np.uint8 if len(which) <= 1 << 8 else np.uint16)
    numbers[which] = np.arange(len(which))
    return Repeats(which.astype(values.dtype) + least, numbers.take(steps), valid)


def _may_be_whole(pieces: Sequence[Piece], rows: int) -> bool:
    """Tell whether the first value that is there is a whole number."""
    first = pieces[0]
    if len(first.values) and not first.bitmaps and first.values.dtype.kind == "f":
        return float(first.values.item(0)).is_integer()  # as a rule, and of many short columns
    if all(piece.values.dtype.kind in "iu" for piece in pieces):
        return True
    some = min(rows, _LOOKED_AT)
    valid = validity(pieces, 0, some)
    if valid is not None and not valid.any():
        return True
    place = 0 if valid is None else int(valid.argmax())
    for piece in pieces:
        if place < len(piece.values):
            return float(piece.values.item(place)).is_integer()
        place -= len(piece.values)
    return False


def _present(pieces: Sequence[Piece], valid: Bools | None) -> Array:
    """Return what is not null of a column."""
    values = pieces[0].values if len(pieces) == 1 else np.concatenate([p.values for p in pieces])
    return values if valid is None else values[valid]


def _steps_above(values: Array, least: np.generic) -> npt.NDArray[np.intp] | None:
    """Return how far above the least of them values lie, None if that is no whole number for all.

    It is less than 2^16, which integers may lose their upper bits for.
    """
    if values.dtype == np.int64:
        return np.subtract(values, np.int64(least.item()))
    if values.dtype.kind in "iu":
        lowest = np.uint16(least.item() & 0xFFFF)
        return np.subtract(values.astype(np.uint16), lowest).astype(np.intp)
    if values.dtype.itemsize < 4:  # differences may overflow
        return None
    low = values.dtype.type(least.item())
    steps = np.subtract(values, low).astype(np.intp)
    if not np.array_equal(np.add(steps, low, dtype=values.dtype), values):
        return None
    if least.item() <= 0 and np.signbit(values[values == 0]).any():  # -0.0 is not the same as 0.0
        return None
    return steps
