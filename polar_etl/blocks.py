"""Moments of fixed row ranges, computed tile by tile.

A block's boundaries follow from the number of normalized columns and the row index within the file
alone, and what happens inside a block from its values alone. So the bits do not depend on row
groups, batches, threads or the memory limit.

Each block is reduced by the corrected two-pass algorithm (Chan, Golub and LeVeque 1983, eq. 1.7):
the sum is practically exact, c is the mean rounded to Float64, and m2 is the sum of (x - c)^2 less
n (mean - c)^2. The block's own mean is the shift, so nothing cancels however far it lies from zero.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from polar_etl.columns import Piece, fill, present
from polar_etl.double import add, times
from polar_etl.moments import NO_ROW, Moments

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_LONGEST_BLOCK = 1 << 14
_SHORTEST_BLOCK = 1 << 8
_BLOCK_BYTES = 1 << 26
_TILE_VALUES = 1 << 18
"""Values reduced at a time: enough that threads seldom wait for the interpreter, few enough for the
processor's cache. Measured on 2 cores, a second thread gains nothing at 2^15, a third at 2^18."""
_LARGE, _SMALL = 2.0**450, 2.0**-400


def block_rows(columns: int) -> int:
    """Return the rows of a block for a table with so many normalized columns.

    Example:
        >>> block_rows(50), block_rows(10_000)
        (16384, 512)
    """
    rows = _BLOCK_BYTES // (8 * max(columns, 1))
    return 1 << (min(max(rows, _SHORTEST_BLOCK), _LONGEST_BLOCK).bit_length() - 1)


def observe(columns: Sequence[Sequence[Piece]], rows: int, first_row: int) -> list[Moments]:
    """Return the moments of each block of a batch, in row order.

    Args:
        columns: The normalized columns, each as its pieces, `rows` values long.
        rows: Rows of the batch.
        first_row: Index within the file of the batch's first row: a multiple of the block's rows.
    """
    length = block_rows(len(columns))
    whole, tail = divmod(rows, length)
    found = []
    with np.errstate(all="ignore"):
        if whole:
            found += _observe_blocks(columns, 0, whole, length, first_row)
        if tail:
            found += _observe_blocks(columns, whole * length, 1, tail, first_row)
    return found


def _observe_blocks(
    columns: Sequence[Sequence[Piece]], start: int, blocks: int, length: int, first_row: int
) -> list[Moments]:
    """Return the moments of `blocks` blocks of `length` rows, from row `start` of the batch on."""
    sums = _Sums(len(columns) * blocks, length)
    tiles = np.empty((2, max(_TILE_VALUES // length, 1) * length))
    gaps = np.array([any(piece.bitmaps for piece in pieces) for pieces in columns])
    for low, high, at in _tiles(len(columns), blocks, length):
        if gaps[low:high].all():
            continue
        shape = (high - low, at.stop - at.start)
        tile = tiles[0, : shape[0] * shape[1] * length].reshape(shape[0], -1)
        for row, pieces in zip(tile, columns[low:high], strict=True):
            fill(row, pieces, start + at.start * length)
        flat = tile.reshape(-1, length)
        sums.reduce(low * blocks + at.start, flat, tiles[1, : flat.size].reshape(flat.shape))
    for index in np.flatnonzero(sums.irregular() | np.repeat(gaps, blocks)).tolist():
        column, block = divmod(index, blocks)
        begin = start + block * length
        values, places = present(columns[column], begin, length)
        sums.reduce_any(index, values, first_row + begin + places, tiles[1, : len(values)])
    table = sums.table()
    by_block = {name: array.reshape(-1, blocks).T for name, array in table.items()}
    return [
        Moments(**{name: array[block].copy() for name, array in by_block.items()})
        for block in range(blocks)
    ]


def _tiles(columns: int, blocks: int, length: int) -> Iterator[tuple[int, int, slice]]:
    """Yield (first column, last column, blocks): one column at a time, or all blocks at a time."""
    room = max(_TILE_VALUES // length, 1)
    if room >= blocks:
        for low in range(0, columns, room // blocks):
            yield low, min(low + room // blocks, columns), slice(0, blocks)
        return
    for column in range(columns):
        for first in range(0, blocks, room):
            yield column, column + 1, slice(first, min(first + room, blocks))


class _Sums:
    """Sums of many blocks of `length` rows, filled in tile by tile."""

    def __init__(self, blocks: int, length: int) -> None:
        self._length = length
        self._min, self._max, self._high, self._low, self._centre, self._squares = np.zeros(
            (6, blocks)
        )
        self._ints = {
            "count": np.full(blocks, length),
            "null_count": np.zeros(blocks, np.int64),
            "nan_count": np.zeros(blocks, np.int64),
            "inf_count": np.zeros(blocks, np.int64),
            "first_inf": np.full(blocks, NO_ROW),
            "exponent": np.zeros(blocks, np.int64),
        }

    def reduce(self, first: int, values: Floats, scratch: Floats) -> None:
        """Reduce the rows of `values`, shape `(k, n)`, into the places from `first` on.

        The leading bits of a block's values are brought to one exponent, where they add without
        error in any order; the rest is 2^-37 as large, and so is the error of its sum (Rump, Ogita
        and Oishi 2008, "ExtractVector"). Both arrays are overwritten.
        """
        at, n = slice(first, first + len(values)), values.shape[1]
        smallest, largest = self._min[at], self._max[at]
        high, low, centre = self._high[at], self._low[at], self._centre[at]
        np.minimum.reduce(values, axis=1, out=smallest)
        np.maximum.reduce(values, axis=1, out=largest)
        unit = (np.maximum(-smallest, largest) * (4 * n))[:, None]
        leading = np.add(values, unit, out=scratch)
        leading -= unit
        np.add.reduce(leading, axis=1, out=high)
        np.subtract(values, leading, out=leading)
        np.add.reduce(leading, axis=1, out=low)
        np.add(high, low, out=centre)
        centre /= n
        values -= centre[:, None]
        np.multiply(values, values, out=values)
        np.add.reduce(values, axis=1, out=self._squares[at])

    def irregular(self) -> npt.NDArray[np.bool_]:
        """Tell which blocks hold NaN, infinities or extreme values."""
        return ~np.asarray(_is_regular(np.maximum(-self._min, self._max)))

    def reduce_any(self, index: int, values: Floats, rows: Ints, scratch: Floats) -> None:
        """Reduce one block of any values into the place `index`.

        Args:
            index: The place.
            values: What is not null; overwritten.
            rows: The row of each value, counted from the start of the file.
            scratch: As long as `values`; overwritten.
        """
        ints, all_values = self._ints, values
        finite = np.isfinite(values)
        if not finite.all():
            values = all_values[finite]
            infinite = np.isinf(all_values)
            ints["inf_count"][index] = np.count_nonzero(infinite)
            ints["nan_count"][index] = len(all_values) - len(values) - ints["inf_count"][index]
            ints["first_inf"][index] = rows[infinite][0] if infinite.any() else NO_ROW
        ints["null_count"][index] = self._length - len(all_values)
        ints["count"][index] = len(values)
        if not len(values):
            for sums in (self._high, self._low, self._centre, self._squares):
                sums[index] = 0.0
            self._min[index], self._max[index] = np.inf, -np.inf
            return
        smallest, largest = values.min(), values.max()
        bound = max(-smallest, largest)
        if not _is_regular(bound):
            ints["exponent"][index] = np.frexp(bound)[1]
            values = np.ldexp(values, -ints["exponent"][index])
        self.reduce(index, values[None, :], scratch[None, : len(values)])
        self._min[index], self._max[index] = smallest, largest

    def table(self) -> dict[str, npt.NDArray[np.generic]]:
        """Return the fields of `Moments`, one entry per block."""
        n = self._ints["count"].astype(np.float64)
        total = add(self._high, self._low)
        beside = total.minus(times(self._centre, n)).high / np.maximum(n, 1.0)
        return {
            **self._ints,
            "min": self._min,
            "max": self._max,
            "sum": total.high,
            "sum_low": total.low,
            "m2": self._squares - n * beside * beside,
            "m2_low": np.zeros(len(n)),
        }


def _is_regular(bound: Floats | float) -> npt.NDArray[np.bool_] | bool:
    """Tell whether values of this largest magnitude have squares that Float64 can hold."""
    return ((bound < _LARGE) & (bound > _SMALL)) | (bound == 0)
