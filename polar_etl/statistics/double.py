"""Numbers as unevaluated sums of two doubles: about 106 bits, elementwise on arrays.

Sources of the formulas: T. J. Dekker, "A floating-point technique for extending the available
precision", Numerische Mathematik 18 (1971), 224-242 (split, product); D. E. Knuth, TAOCP 2, 4.2.2
(sum).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
_SPLITTER = float(2**27 + 1)


class Double(NamedTuple):
    """The exact value `high + low`, where `high` is that value rounded to Float64."""

    high: Floats
    low: Floats

    def plus(self, other: Double) -> Double:
        """Return the sum, right to about 2^-104 of the larger term."""
        total = add(self.high, other.high)
        tail = add(self.low, other.low)
        total = _renormalized(total.high, total.low + tail.high)
        return _renormalized(total.high, total.low + tail.low)

    def minus(self, other: Double) -> Double:
        """Return the difference."""
        return self.plus(Double(-other.high, -other.low))

    def over(self, divisor: Floats | np.float64) -> Double:
        """Return the quotient by a whole number below 2^53."""
        quotient = self.high / divisor
        product = times(quotient, divisor)
        rest = ((self.high - product.high) - product.low) + self.low
        return _renormalized(quotient, rest / divisor)

    def times(self, other: Double) -> Double:
        """Return the product, for leading doubles below 2^996."""
        product = times(self.high, other.high)
        return _renormalized(
            product.high, product.low + (self.high * other.low + self.low * other.high)
        )

    def root(self) -> Double:
        """Return the square root of a number that is not negative."""
        root = np.sqrt(self.high)
        square = times(root, root)
        rest = ((self.high - square.high) - square.low) + self.low
        return _renormalized(root, rest / np.where(root > 0, 2 * root, 1.0))


def add(a: Floats, b: Floats) -> Double:
    """Return the exact sum of two doubles."""
    high = a + b
    other = high - a
    return Double(high, (a - (high - other)) + (b - other))


def times(a: Floats, b: Floats | np.float64) -> Double:
    """Return the exact product of two doubles below 2^996."""
    high = a * b
    a1, b1 = _leading(a), _leading(b)
    a2, b2 = a - a1, b - b1
    return Double(high, ((a1 * b1 - high) + a1 * b2 + a2 * b1) + a2 * b2)


def _leading(a: Floats | np.float64) -> Floats | np.float64:
    scaled = _SPLITTER * a
    return scaled - (scaled - a)


def _renormalized(high: Floats, low: Floats) -> Double:
    total = high + low
    return Double(total, low - (total - high))
