"""The truth that results are held against: rational arithmetic over the parsed doubles."""

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from decimal import Decimal, localcontext
from fractions import Fraction

import numpy as np
import pyarrow as pa

from polar_etl.columns import pieces_of
from polar_etl.statistics.blocks import observe
from polar_etl.statistics.moments import Moments, merge_all

DIGITS = 80
SPACING = 5e-324
"""The distance of two subnormal doubles: nothing can be nearer to the truth than half of it."""


@dataclass(frozen=True)
class Exact:
    """Mean and variance without any rounding."""

    count: int
    mean: Fraction
    deviations: Fraction
    """The sum of squared deviations from the mean."""

    def std(self, ddof: int = 0) -> Decimal:
        """Return the standard deviation to `DIGITS` digits."""
        return root(self.deviations / (self.count - ddof))


def exact(values: Iterable[float]) -> Exact:
    """Return the exact statistics of finite values, integers or floats."""
    ratios = [float(value).as_integer_ratio() for value in values]
    scale = max((denominator for _, denominator in ratios), default=1)
    whole = [numerator * (scale // denominator) for numerator, denominator in ratios]
    count, total = len(whole), sum(whole)
    squares = sum(value * value for value in whole)
    return Exact(
        count=count,
        mean=Fraction(total, count * scale),
        deviations=Fraction(count * squares - total * total, count * scale * scale),
    )


def decimal(value: Fraction) -> Decimal:
    """Return `value` to `DIGITS` digits."""
    with localcontext(prec=DIGITS, Emax=10**6, Emin=-(10**6)):
        return Decimal(value.numerator) / Decimal(value.denominator)


def root(value: Fraction) -> Decimal:
    """Return the square root of `value` to `DIGITS` digits."""
    with localcontext(prec=DIGITS, Emax=10**6, Emin=-(10**6)):
        return (Decimal(value.numerator) / Decimal(value.denominator)).sqrt()


def right_digits(found: float, true: Decimal | Fraction) -> float:
    """Return the log relative error: to how many decimal digits `found` is right, at most 17."""
    if not math.isfinite(found):
        return 0.0
    expected = decimal(true) if isinstance(true, Fraction) else true
    with localcontext(prec=DIGITS, Emax=10**6, Emin=-(10**6)):
        error = abs(Decimal(float(found)) - expected)
        if error == 0:
            return 17.0
        if expected == 0:
            return 0.0
        return min(float(-(error / abs(expected)).log10()), 17.0)


def ulps_off(found: float, true: Decimal | Fraction) -> float:
    """Return the distance to the truth in units of the last place: 0.5 is the nearest double's."""
    expected = decimal(true) if isinstance(true, Fraction) else true
    with localcontext(prec=DIGITS, Emax=10**6, Emin=-(10**6)):
        return float(abs(Decimal(float(found)) - expected) / Decimal(math.ulp(found)))


def chunked(values: object, cuts: Sequence[int] = ()) -> pa.ChunkedArray:
    """Return `values` as one column, cut into chunks at the rows `cuts`."""
    array = values if isinstance(values, pa.Array) else pa.array(values)
    edges = [0, *sorted(cuts), len(array)]
    chunks = [array.slice(low, high - low) for low, high in itertools.pairwise(edges)]
    return pa.chunked_array(chunks, type=array.type)


def blocks_of(*columns: pa.ChunkedArray, first_row: int = 0) -> list[Moments]:
    """Return the moments of every block of a batch of columns."""
    return observe(
        [[pieces_of(column) for column in columns]], len(columns), len(columns[0]), first_row
    )


def moments_of(*columns: object) -> Moments:
    """Return the moments of columns, given as arrays or anything that becomes one."""
    table = [c if isinstance(c, pa.ChunkedArray) else chunked(c) for c in columns]
    return merge_all(blocks_of(*table), len(table))


def bits(moments: Moments) -> dict[str, bytes]:
    """Return every field as bytes: equal for two moments only if every bit is."""
    return {
        field.name: np.asarray(getattr(moments, field.name)).tobytes() for field in fields(moments)
    }
