"""Sums of the values of many blocks, tile by tile: of each, of its squares, its least and greatest.

Each block is reduced by the corrected two-pass algorithm (Chan, Golub and LeVeque 1983, eq. 1.7):
the sum is practically exact, c is about the mean, and m2 is the sum of (x - c)^2 less n (mean -
c)^2. The shift is of the block itself, so nothing cancels however far it lies from zero.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from polar_etl.statistics.double import add, times
from polar_etl.statistics.moments import NO_ROW

Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]

_PARTIAL = 1 << 9
"""Squares added in the usual way before their sums are added without error: the last additions of
a sum err most, because they are the largest."""
_CANCELLED = 2.0**-16
"""Share of the largest value below which a sum is taken anew: it is what values that cancel leave,
and few of its digits may be right."""
_LARGE, _SMALL = 2.0**450, 2.0**-400
_FAR = 2.0**1000
"""Farther from zero than any value that these sums are taken of."""


class Sums:
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
