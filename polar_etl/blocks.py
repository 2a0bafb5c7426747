"""Moments of fixed row ranges, computed tile by tile.

A block's boundaries follow from the number of normalized columns and the row index within the file
alone, and what happens inside a block from its values alone. So the bits do not depend on row
groups, batches, threads or the memory limit.

Each block is reduced by the corrected two-pass algorithm (Chan, Golub and LeVeque 1983, eq. 1.7):
the sum is practically exact, c is about the mean, and m2 is the sum of (x - c)^2 less n (mean -
c)^2. The shift is of the block itself, so nothing cancels however far it lies from zero.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from polar_etl.columns import Piece, fill, places, present, validities
from polar_etl.double import add, times
from polar_etl.moments import NO_ROW, Moments
from polar_etl.scratch import TILE_VALUES, scratch_floats, tile_arithmetic
from polar_etl.slabs import slab_rows

Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Columns = Sequence[Sequence[Piece]]
"""Columns of numbers, each as its pieces."""

_LONGEST_BLOCK = 1 << 14
_SHORTEST_BLOCK = 1 << 8
_BLOCK_BYTES, _LEAST_OF_WIDE = 192 << 20, 1 << 10
"""Float32 in a block, in bytes, at most, unless it has so few rows."""
_PARTIAL = 1 << 9
"""Squares added in the usual way before their sums are added without error: the last additions of
a sum err most, because they are the largest."""
_CANCELLED = 2.0**-16
"""Share of the largest value below which a sum is taken anew: it is what values that cancel leave,
and few of its digits may be right."""
_LARGE, _SMALL = 2.0**450, 2.0**-400
_FAR = 2.0**1000
"""Farther from zero than any value that these sums are taken of."""


def block_rows(columns: int) -> int:
    """Return the rows of a block for a table with so many normalized columns.

    No more than a row group of the output has, if they are float32, as batches are as long. Each
    row of a tile costs something, however short: 10,000 columns take 0.93 of the time that they
    take with blocks of 512 rows, but no less with 8,192 (measured); of a stream whole blocks are
    held.

    Example:
        >>> block_rows(50), block_rows(10_000)
        (16384, 4096)
    """
    most = max(_BLOCK_BYTES // max(4 * columns, 1), _LEAST_OF_WIDE)
    rows = min(slab_rows(4 * columns), most)
    return 1 << (min(max(rows, _SHORTEST_BLOCK), _LONGEST_BLOCK).bit_length() - 1)


def observe(
    columns: Iterable[Columns], features: int, rows: int, first_row: int, width: int | None = None
) -> list[Moments]:
    """Return the moments of each block of a batch, in row order.

    Args:
        columns: Normalized columns, a few at a time, each as its pieces, `rows` values long.
        features: How many there are of them.
        rows: Rows of the batch.
        first_row: Index within the file of the batch's first row: a multiple of the block's rows.
        width: How many normalized columns the table has, which decides how long a block is; None
            if these are all.
    """
    length = block_rows(features if width is None else width)
    whole, tail = divmod(rows, length)
    stretches = [_Stretch(features, 0, whole, length)] if whole else []
    stretches += [_Stretch(features, whole * length, 1, tail, short=True)] if tail else []
    done = 0
    for few in columns:
        with tile_arithmetic():
            for stretch in stretches:
                stretch.reduce(done, few, first_row)
        done += len(few)
        del few  # the next ones are decoded when these are gone
    return [moments for stretch in stretches for moments in stretch.moments()]


class _Stretch:
    """Neighbouring blocks of a batch, reduced a few columns at a time.

    Args:
        features: How many columns there are.
        start: First row of the batch that belongs to them.
        blocks: How many there are of each column.
        length: Rows of each.
        short: They are the rest of a file: few values, whose roundings don't average out.
    """

    def __init__(
        self, features: int, start: int, blocks: int, length: int, *, short: bool = False
    ) -> None:
        self._start, self._blocks, self._length = start, blocks, length
        self._sums = _Sums(features * blocks, length, short=short)

    def reduce(self, done: int, columns: Columns, first_row: int) -> None:
        """Reduce some columns.

        Args:
            done: How many were reduced before them.
            columns: Each as its pieces, from the batch's first row on.
            first_row: Index of that row within its file.
        """
        blocks, length, sums = self._blocks, self._length, self._sums
        tiles = scratch_floats("moments", 2 * TILE_VALUES).reshape(2, -1)
        at = slice(done * blocks, (done + len(columns)) * blocks)
        squares = sums.squares(at)
        for low, high, those in _tiles(len(columns), blocks, length):
            some, first = columns[low:high], self._start + those.start * length
            rows = (those.stop - those.start) * length
            tile, rest = tiles[:, : len(some) * rows].reshape(2, -1, length)
            fill(tile.reshape(-1, rows), some, first)
            there = validities(some, first, rows)
            if there is not None:
                there = there.reshape(tile.shape)
            place = low * blocks + those.start
            sums.reduce(at.start + place, tile, rest, squares[place : place + len(tile)], there)
        for place in np.flatnonzero(sums.irregular(at)).tolist():
            column, block = divmod(place, blocks)
            begin, index = self._start + block * length, at.start + place
            values = present(columns[column], begin, length)
            infinite = sums.reduce_any(index, values, tiles[1, : len(values)], squares[place])
            if infinite is not None:
                row = places(columns[column], begin, length)[infinite]
                sums.infinite(index, first_row + begin + int(row))
        sums.add_squares(at, squares)

    def moments(self) -> Iterator[Moments]:
        """Yield the moments of each block, once all columns are reduced."""
        with tile_arithmetic():
            table = self._sums.table()
        by_block = {
            name: np.ascontiguousarray(array.reshape(-1, self._blocks).T)
            for name, array in table.items()
        }
        for block in range(self._blocks):
            yield Moments(**{name: array[block] for name, array in by_block.items()})


def _tiles(columns: int, blocks: int, length: int) -> Iterator[tuple[int, int, slice]]:
    """Yield (first column, last column, blocks): one column at a time, or all blocks at a time."""
    room = TILE_VALUES // length
    if room >= blocks:
        for low in range(0, columns, room // blocks):
            yield low, min(low + room // blocks, columns), slice(0, blocks)
        return
    for column in range(columns):
        for first in range(0, blocks, room):
            yield column, column + 1, slice(first, min(first + room, blocks))


class _Sums:
    """Sums of many blocks of `length` rows, filled in tile by tile.

    Args:
        blocks: How many there are.
        length: Rows of each.
        short: The blocks are the rest of a file: few values, whose roundings don't average out.
    """

    def __init__(self, blocks: int, length: int, *, short: bool) -> None:
        self._length = length
        self._short = short
        self._min, self._max, self._high, self._low, self._centre = np.zeros((5, blocks))
        self._squares_high, self._squares_low = np.zeros((2, blocks))
        self._starts = np.arange(0, length, _PARTIAL)
        self._ints = {
            "count": np.full(blocks, length),
            "null_count": np.zeros(blocks, np.int64),
            "nan_count": np.zeros(blocks, np.int64),
            "inf_count": np.zeros(blocks, np.int64),
            "first_inf": np.full(blocks, NO_ROW),
            "exponent": np.zeros(blocks, np.int64),
        }

    def squares(self, at: slice) -> Floats:
        """Return room for the partial sums of squares of some places, a row for each of them."""
        return np.zeros((at.stop - at.start, max(len(self._starts), 2)))

    def reduce(
        self,
        first: int,
        values: Floats,
        scratch: Floats,
        squares: Floats,
        there: Bools | None = None,
    ) -> None:
        """Reduce the rows of `values`, shape `(k, n)`, into the places from `first` on.

        Args:
            first: The first place.
            values: Overwritten.
            scratch: Shaped like `values`; overwritten.
            squares: Where the partial sums of their squares go, see `squares`.
            there: Which are values, and not nulls; None if all are. A row of values has the same
                bits either way.
        """
        at = slice(first, first + len(values))
        smallest, largest = self._min[at], self._max[at]
        high, low, centre = self._high[at], self._low[at], self._centre[at]
        n: Floats | float = float(values.shape[1])
        if there is not None:
            n = self._count(at, there)
            values *= there
        np.minimum.reduce(values, axis=1, out=smallest)
        np.maximum.reduce(values, axis=1, out=largest)
        if there is not None:
            nothing = self._ints["count"][at] == 0
            _leave_nulls_out(values, there, scratch, smallest, largest)
            smallest[nothing] = largest[nothing] = 0.0
        bound, spread = np.maximum(-smallest, largest), largest - smallest
        _sum(values, bound, scratch, high, low)
        np.add(high, low, out=centre)
        for row in np.flatnonzero(np.abs(centre) < bound * _CANCELLED).tolist():
            high[row], low[row] = _sum_anew(values[row])
            centre[row] = high[row]
        centre /= n
        # Distances of integers, and of Float32 of one size, to so short a centre are exact.
        unit = np.maximum(spread * 2.0**35, 4 * bound)
        centre += unit
        centre -= unit
        if self._short:
            _square_exactly(values, self._centre[at], scratch, unit, there, squares)
        else:
            self._square(at, values, there, squares)
        if there is not None:
            smallest[nothing], largest[nothing] = np.inf, -np.inf

    def _count(self, at: slice, there: Bools) -> Floats:
        """Note how many values and nulls there are; return how many values, and 1 for none."""
        count = np.count_nonzero(there, axis=1)
        self._ints["null_count"][at] = there.shape[1] - count
        self._ints["count"][at] = count
        return np.asarray(np.maximum(self._ints["count"][at], 1), np.float64)

    def _square(self, at: slice, values: Floats, there: Bools | None, squares: Floats) -> None:
        """Add up the squared distances from the centre: roundings average out over many rows."""
        values -= self._centre[at, None]
        if there is not None:
            values *= there
        np.square(values, out=values)
        starts = self._starts[: -(-values.shape[1] // _PARTIAL)]
        np.add.reduceat(values, starts, axis=1, out=squares[:, : len(starts)])

    def add_squares(self, at: slice, squares: Floats) -> None:
        """Add up the partial sums of squares of some places."""
        bound = squares.max(axis=1, initial=0.0)
        scratch = np.empty_like(squares)
        _sum(squares, bound, scratch, self._squares_high[at], self._squares_low[at])

    def irregular(self, at: slice) -> npt.NDArray[np.bool_]:
        """Tell which of some blocks hold NaN, infinities or extreme values."""
        regular = np.asarray(_is_regular(np.maximum(-self._min[at], self._max[at])))
        return ~regular & (self._ints["count"][at] > 0)

    def infinite(self, index: int, row: int) -> None:
        """Note the row of the first infinity in the place `index`."""
        self._ints["first_inf"][index] = row

    def reduce_any(
        self, index: int, values: Floats, scratch: Floats, squares: Floats
    ) -> int | None:
        """Reduce one block of any values into the place `index`.

        Args:
            index: The place.
            values: What is not null; overwritten.
            scratch: As long as `values`; overwritten.
            squares: Where the partial sums of their squares go.

        Returns:
            Which of the values is the first infinity, None if there is none.
        """
        ints = self._ints
        ints["null_count"][index] = self._length - len(values)
        first = None
        smallest, largest = values.min(initial=np.inf), values.max(initial=-np.inf)
        if not (smallest > -np.inf and largest < np.inf):  # NaN is neither
            finite, infinite = np.isfinite(values), np.isinf(values)
            ints["inf_count"][index] = np.count_nonzero(infinite)
            ints["nan_count"][index] = np.count_nonzero(~finite) - ints["inf_count"][index]
            first = int(np.argmax(infinite)) if infinite.any() else None
            values = values[finite]
            smallest, largest = values.min(initial=np.inf), values.max(initial=-np.inf)
        ints["count"][index] = len(values)
        squares[:] = 0.0
        if len(values):
            bound = max(-smallest, largest)
            if not _is_regular(bound):
                ints["exponent"][index] = np.frexp(bound)[1]
                values = np.ldexp(values, -ints["exponent"][index])
            self.reduce(index, values[None, :], scratch[None, : len(values)], squares[None, :])
        else:
            self._high[index] = self._low[index] = self._centre[index] = 0.0
        self._min[index], self._max[index] = smallest, largest
        return first

    def table(self) -> dict[str, npt.NDArray[np.generic]]:
        """Return the fields of `Moments`, one entry per block."""
        n = self._ints["count"].astype(np.float64)
        total = add(self._high, self._low)
        beside = total.minus(times(self._centre, n))
        squares = add(self._squares_high, self._squares_low)
        m2 = squares.minus(beside.times(beside).over(np.maximum(n, 1.0)))
        return {
            **self._ints,
            "min": self._min + 0.0,  # of two zeros the processor may take either: no sign then
            "max": self._max + 0.0,
            "sum": total.high,
            "sum_low": total.low,
            "m2": m2.high,
            "m2_low": m2.low,
        }


def _square_exactly(
    values: Floats,
    centre: Floats,
    scratch: Floats,
    unit: Floats,
    there: Bools | None,
    squares: Floats,
) -> None:
    """Add up the squared distances to about 2^-60, for rows too few to average roundings out.

    A distance is a + b, where a is a whole multiple of `unit`'s last place with 19 bits, so that
    the squares of a add without error; what is left is b (2 a + b).
    """
    leading = np.add(values, unit[:, None], out=scratch)
    leading -= unit[:, None]
    values -= leading
    leading -= centre[:, None]
    if there is not None:
        leading *= there
    np.einsum("ij,ij->i", leading, leading, out=squares[:, 0])
    leading += leading
    leading += values
    leading *= values
    np.add.reduce(leading, axis=1, out=squares[:, 1])


def _leave_nulls_out(
    values: Floats, there: Bools, scratch: Floats, smallest: Floats, largest: Floats
) -> None:
    """Correct what was found to be the least and the greatest of each row that has any values.

    A mask that stops at each null takes several times as long as arithmetic on all values.

    Args:
        values: Shape `(k, n)`; 0 where a null is, unless what stood there was no number: then it is
            made 0.
        there: Which are values, and not nulls.
        scratch: Shaped like `values`; overwritten.
        smallest: Shape `(k,)`; corrected.
        largest: Shape `(k,)`; corrected.
    """
    for row in np.flatnonzero(~np.isfinite(largest - smallest)).tolist():
        np.putmask(values[row], ~there[row], 0.0)
        smallest[row], largest[row] = values[row].min(), values[row].max()
    positive, negative = (smallest >= 0).any(), (largest <= 0).any()
    if not positive and not negative:  # a 0 of a null is neither the least nor the greatest
        return
    nulls = ~there
    if positive:
        np.multiply(nulls, _FAR, out=scratch)
        np.add(values, scratch, out=scratch)
        np.minimum.reduce(scratch, axis=1, out=smallest)
    if negative:
        np.multiply(nulls, -_FAR, out=scratch)
        np.add(values, scratch, out=scratch)
        np.maximum.reduce(scratch, axis=1, out=largest)


def _sum(values: Floats, bound: Floats, scratch: Floats, high: Floats, low: Floats) -> None:
    """Write the sum of each row of `values` as `high + low`, not normalized.

    The leading bits of a row's values are brought to one exponent, where they add without error in
    any order; the rest is 2^-37 as large, and so is the error of its sum (Rump, Ogita and Oishi
    2008, "ExtractVector").

    Args:
        values: Shape `(k, n)`.
        bound: No value of a row is farther from zero; shape `(k,)`.
        scratch: Shaped like `values`; overwritten.
        high: Where the leading part goes; shape `(k,)`.
        low: Where the trailing part goes; shape `(k,)`.
    """
    unit = (bound * (4 * values.shape[1]))[:, None]
    leading = np.add(values, unit, out=scratch)
    leading -= unit
    np.add.reduce(leading, axis=1, out=high)
    np.subtract(values, leading, out=leading)
    np.add.reduce(leading, axis=1, out=low)


def _sum_anew(values: Floats) -> tuple[float, float]:
    """Return the sum of values that cancel, as the nearest double and what is left of it.

    What `_sum` does once is done again with the rest, until it is small beside the sum.
    """
    sums: list[float] = []
    while bound := float(np.abs(values).max()):
        unit = bound * (4 * len(values))
        leading = (values + unit) - unit
        values = values - leading
        sums.append(float(leading.sum()))
        if abs(math.fsum(sums)) >= bound * _CANCELLED:
            break
    sums.append(float(values.sum()))
    total = math.fsum(sums)
    return total, math.fsum([*sums, -total])


def _is_regular(bound: Floats | float) -> npt.NDArray[np.bool_] | bool:
    """Tell whether values of this largest magnitude have squares that Float64 can hold."""
    return ((bound < _LARGE) & (bound > _SMALL)) | (bound == 0)
