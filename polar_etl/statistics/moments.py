"""Count, sum and sum of squared deviations of every column: a monoid under `merge`.

Sums are kept as unevaluated pairs of doubles (`sum` and `sum_low`), about 106 bits, so that the
difference of two means is right however far both lie from zero. Two sets of moments are merged with
the pairwise formula of Chan, Golub and LeVeque, "Algorithms for computing the sample variance",
The American Statistician 37 (1983), 242-247.

Values beyond 2^450, or all below 2^-400, are held times 2^-exponent, so that squares neither
overflow nor vanish.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import reduce
from typing import Any

import numpy as np
import numpy.typing as npt

from polar_etl.statistics.double import Double, times

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

NO_ROW = np.iinfo(np.int64).max
"""Stands in `first_inf` for "there is none"."""


@dataclass(frozen=True, eq=False)
class Moments:
    """Moments of `width` columns over some rows; every field has shape `(width,)`."""

    count: Ints
    """Finite values: neither null nor NaN nor infinite."""
    null_count: Ints
    nan_count: Ints
    inf_count: Ints
    first_inf: Ints
    """Row of the first infinite value, counted from the start of its file; `NO_ROW` if none."""
    min: Floats
    """Smallest finite value, +inf where there is none."""
    max: Floats
    """Largest finite value, -inf where there is none."""
    sum: Floats
    """Sum of the finite values, times 2^-exponent: the leading double."""
    sum_low: Floats
    """What `sum` lacks to the exact sum: the trailing double."""
    m2: Floats
    """Sum of squared deviations from the mean, times 4^-exponent: the leading double."""
    m2_low: Floats
    """The trailing double of `m2`."""
    exponent: Ints
    """Binary exponent that `sum` and `m2` are scaled by; 0 for values of ordinary size."""

    @classmethod
    def empty(cls, width: int) -> Moments:
        """Return the moments of no rows: the identity of `merge`."""
        zero, none = np.zeros(width), np.zeros(width, np.int64)
        return cls(
            count=none,
            null_count=none,
            nan_count=none,
            inf_count=none,
            first_inf=np.full(width, NO_ROW),
            min=np.full(width, np.inf),
            max=np.full(width, -np.inf),
            sum=zero,
            sum_low=zero,
            m2=zero,
            m2_low=zero,
            exponent=none,
        )

    @classmethod
    def beside(cls, moments: Sequence[Moments], order: Ints | None = None) -> Moments:
        """Return the moments of the columns of all `moments`.

        Args:
            moments: Which cover the same rows.
            order: Where to find each column of the result among theirs; None if they are in order.
        """
        if len(moments) == 1:
            return moments[0]
        at = slice(None) if order is None else order
        return cls(
            **{
                f.name: np.concatenate([getattr(some, f.name) for some in moments])[at]
                for f in fields(cls)
            }
        )

    @property
    def width(self) -> int:
        """Number of columns."""
        return len(self.count)

    def merge(self, later: Moments) -> Moments:
        """Return the moments of these rows followed by those of `later`.

        Merging with `empty` changes no bit. Otherwise the merge is associative up to rounding of
        the trailing doubles, about 2^-100 of the sum and of m2; a fixed order gives fixed bits.
        """
        exponent = _common_exponent(self, later)
        a, b = self._scaled_to(exponent), later._scaled_to(exponent)
        count = a.count + b.count
        total = Double(a.sum, a.sum_low).plus(Double(b.sum, b.sum_low))
        m2 = Double(a.m2, a.m2_low).plus(Double(b.m2, b.m2_low)).plus(_between(a, b))
        return Moments(
            count=count,
            null_count=a.null_count + b.null_count,
            nan_count=a.nan_count + b.nan_count,
            inf_count=a.inf_count + b.inf_count,
            first_inf=np.minimum(a.first_inf, b.first_inf),
            min=np.minimum(a.min, b.min),
            max=np.maximum(a.max, b.max),
            sum=total.high,
            sum_low=total.low,
            m2=m2.high,
            m2_low=m2.low,
            exponent=exponent,
        )

    def mean(self, exponent: Ints | int = 0) -> Floats:
        """Return the mean of each column times 2^-exponent, NaN where there are no values."""
        with np.errstate(under="ignore"):
            mean = np.ldexp(_mean(self).high, self.exponent - exponent)
        return np.where(self.count > 0, mean, np.nan)

    def variance(self, ddof: int = 0) -> Floats:
        """Return the variance of each column: NaN without values, inf where Float64 ends."""
        with np.errstate(over="ignore", under="ignore"):
            return np.ldexp(self._scaled_variance(ddof).high, 2 * self.exponent)

    def std(self, ddof: int = 0, exponent: Ints | int = 0) -> Floats:
        """Return the standard deviation of each column times 2^-exponent, NaN if not defined."""
        with np.errstate(over="ignore", under="ignore"):
            scaled = self._scaled_variance(ddof).root()
            return np.asarray(np.ldexp(scaled.high, self.exponent - exponent))

    def is_constant(self) -> npt.NDArray[np.bool_]:
        """Tell which columns cannot be told from a constant in Float64.

        The bound is scikit-learn's `_is_constant_feature`: a variance that rounding errors alone
        could have made, `var <= n eps var + (n mean eps)^2`.
        """
        eps = np.finfo(np.float64).eps
        n, var = self.count.astype(np.float64), self._scaled_variance(0).high
        bound = n * eps * var + (n * _mean(self).high * eps) ** 2
        return (self.count > 0) & (var <= bound)

    def _scaled_variance(self, ddof: int) -> Double:
        free = (self.count - ddof).astype(np.float64)
        return Double(self.m2, self.m2_low).over(np.where(free > 0, free, np.nan))

    def _scaled_to(self, exponent: Ints) -> Moments:
        if np.array_equal(self.exponent, exponent):
            return self
        by = np.where(self.count > 0, self.exponent - exponent, 0)
        values: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(self)}
        with np.errstate(under="ignore"):
            values["sum"] = np.ldexp(self.sum, by)
            values["sum_low"] = np.ldexp(self.sum_low, by)
            values["m2"] = np.ldexp(self.m2, 2 * by)
            values["m2_low"] = np.ldexp(self.m2_low, 2 * by)
        return Moments(**{**values, "exponent": exponent})

    def select(self, index: Ints) -> Moments:
        """Return the moments of the columns at the positions `index`, in that order."""
        return Moments(**{f.name: getattr(self, f.name)[index] for f in fields(self)})


def merge_all(parts: list[Moments], width: int) -> Moments:
    """Return the moments of all `parts`, merged from left to right."""
    return reduce(Moments.merge, parts, Moments.empty(width))


def _mean(moments: Moments) -> Double:
    count = np.maximum(moments.count, 1).astype(np.float64)
    return Double(moments.sum, moments.sum_low).over(count)


def _between(a: Moments, b: Moments) -> Double:
    """Return what the distance of the means adds to m2: (mean_b - mean_a)^2 n_a n_b / (n_a + n_b).

    Of columns without values on either side this is zero.
    """
    n_a, n_b = a.count.astype(np.float64), b.count.astype(np.float64)
    delta = _mean(b).minus(_mean(a))
    return delta.times(delta).times(times(n_a, n_b).over(np.maximum(n_a + n_b, 1.0)))


def _common_exponent(a: Moments, b: Moments) -> Ints:
    larger = np.maximum(a.exponent, b.exponent)
    return np.where(_is_zero(a), b.exponent, np.where(_is_zero(b), a.exponent, larger))


def _is_zero(moments: Moments) -> npt.NDArray[np.bool_]:
    """Tell which columns hold nothing but zeros, or nothing: any exponent is right for them."""
    return np.asarray((moments.sum == 0) & (moments.m2 == 0))
