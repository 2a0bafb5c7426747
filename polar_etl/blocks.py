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

from polar_etl.columns import Piece, count_nulls, fill
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
_LARGE, _SMALL = 2.0**500, 2.0**-400


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
    for low, high, at in _tiles(len(columns), blocks, length):
        shape = (high - low, at.stop - at.start)
        tile = tiles[0, : shape[0] * shape[1] * length].reshape(shape[0], -1)
        for row, pieces in zip(tile, columns[low:high], strict=True):
            fill(row, pieces, start + at.start * length)
        flat = tile.reshape(-1, length)
        sums.reduce(low * blocks + at.start, flat, tiles[1, : flat.size].reshape(flat.shape))
    table = sums.table()
    for index in sums.irregular():
        column, block = divmod(int(index), blocks)
        begin = start + block * length
        values = tiles[0, :length]
        fill(values, columns[column], begin)
        nulls = count_nulls(columns[column], begin, length)
        for name, value in _irregular(values, nulls, first_row + begin).items():
            table[name][index] = value
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
    """Sums of many blocks of one length, filled in tile by tile."""

    def __init__(self, blocks: int, length: int) -> None:
        self._length = length
        self._min, self._max, self._high, self._low, self._centre, self._squares = np.empty(
            (6, blocks)
        )

    def reduce(self, first: int, values: Floats, scratch: Floats) -> None:
        """Reduce the rows of `values`, shape `(k, length)`, into the places from `first` on.

        The leading bits of a block's values are brought to one exponent, where they add without
        error in any order; the rest is 2^-37 as large, and so is the error of its sum (Rump, Ogita
        and Oishi 2008, "ExtractVector"). Both arrays are overwritten.
        """
        at, n = slice(first, first + len(values)), self._length
        high, low, centre = self._high[at], self._low[at], self._centre[at]
        np.minimum.reduce(values, axis=1, out=self._min[at])
        np.maximum.reduce(values, axis=1, out=self._max[at])
        unit = (self._bound(at) * (4 * n))[:, None]
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

    def _bound(self, at: slice) -> Floats:
        return np.maximum(-self._min[at], self._max[at])

    def irregular(self) -> Ints:
        """Return the blocks that hold NaN (also for nulls), infinities or extreme values."""
        bound = self._bound(slice(None))
        return np.flatnonzero(~((bound < _LARGE) & ((bound > _SMALL) | (bound == 0))))

    def table(self) -> dict[str, npt.NDArray[np.generic]]:
        """Return the fields of `Moments`, one entry per block, right where the block is regular."""
        n, blocks = np.float64(self._length), len(self._high)
        total = add(self._high, self._low)
        about = times(self._centre, n)
        beside = total.minus(about).high / n
        ints = {name: np.zeros(blocks, np.int64) for name in ("null_count", "nan_count")}
        return {
            **ints,
            "inf_count": np.zeros(blocks, np.int64),
            "exponent": np.zeros(blocks, np.int64),
            "count": np.full(blocks, self._length),
            "first_inf": np.full(blocks, NO_ROW),
            "min": self._min,
            "max": self._max,
            "sum": total.high,
            "sum_low": total.low,
            "m2": self._squares - n * beside * beside,
            "m2_low": np.zeros(blocks),
        }


def _irregular(values: Floats, nulls: int, first_row: int) -> dict[str, float]:
    """Return the fields of `Moments` for one block of any values; nulls come as NaN."""
    kept = values[np.isfinite(values)]
    nans = int(np.count_nonzero(np.isnan(values)))
    infinite = len(values) - len(kept) - nans
    bound = float(np.max(np.abs(kept), initial=0.0))
    exponent = 0 if bound == 0 or _SMALL < bound < _LARGE else int(np.frexp(bound)[1])
    fields: dict[str, float] = {"m2": 0.0, "sum": 0.0, "sum_low": 0.0}
    if len(kept):
        sums = _Sums(1, len(kept))
        scaled = np.ldexp(kept, -exponent)[None, :]
        sums.reduce(0, scaled, np.empty_like(scaled))
        table = sums.table()
        fields = {name: table[name][0] for name in fields}
    return {
        **fields,
        "count": len(kept),
        "null_count": nulls,
        "nan_count": nans - nulls,
        "inf_count": infinite,
        "first_inf": first_row + int(np.argmax(np.isinf(values))) if infinite else NO_ROW,
        "min": float(np.min(kept, initial=np.inf)),
        "max": float(np.max(kept, initial=-np.inf)),
        "exponent": exponent,
    }
