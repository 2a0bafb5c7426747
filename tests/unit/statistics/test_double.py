"""Pairs of doubles against rational arithmetic."""

from fractions import Fraction

import numpy as np
import pytest

from polar_etl.statistics.double import Double, add, times


def numbers(seed: int, low: float = -100, high: float = 100) -> np.ndarray:
    draw = np.random.default_rng(seed)
    return draw.choice([-1, 1], 2_000) * 10.0 ** draw.uniform(low, high, 2_000)


def exactly(pair: Double) -> list[Fraction]:
    return [
        Fraction(high) + Fraction(low)
        for high, low in zip(pair.high.tolist(), pair.low.tolist(), strict=True)
    ]


def pairs(seed: int) -> Double:
    high = numbers(seed, -5, 5)
    return add(high, high * 2.0**-54 * np.random.default_rng(seed).uniform(-1, 1, len(high)))


@pytest.mark.parametrize(("low", "high"), [(-100, 100), (-3, 3), (-300, 300), (0, 0.001)])
def test_the_sum_of_two_doubles_is_exact(low, high):
    a, b = numbers(1, low, high), numbers(2, low, high)

    total = add(a, b)

    assert exactly(total) == [Fraction(x) + Fraction(y) for x, y in zip(a, b, strict=True)]
    assert (total.high == a + b).all()


@pytest.mark.parametrize(("low", "high"), [(-100, 100), (-3, 3), (0, 0.001)])
def test_the_product_of_two_doubles_is_exact(low, high):
    a, b = numbers(3, low, high), numbers(4, low, high)

    product = times(a, b)

    assert exactly(product) == [Fraction(x) * Fraction(y) for x, y in zip(a, b, strict=True)]
    assert (product.high == a * b).all()


def test_sums_of_pairs_are_right_to_100_bits_of_the_larger():
    a, b = pairs(5), pairs(6)

    for found, x, y in zip(exactly(a.plus(b)), exactly(a), exactly(b), strict=True):
        assert abs(found - (x + y)) <= max(abs(x), abs(y)) * Fraction(2) ** -102


def test_differences_of_nearly_equal_pairs_keep_their_digits():
    a = pairs(7)
    b = a.plus(Double(a.high * 2.0**-60, np.zeros(2_000)))

    for found, x, y in zip(exactly(a.minus(b)), exactly(a), exactly(b), strict=True):
        assert abs(found - (x - y)) <= abs(x) * Fraction(2) ** -102


@pytest.mark.parametrize("divisor", [1.0, 2.0, 3.0, 10.0, 12_345_678.0, 2.0**53 - 1])
def test_quotients_are_right_to_100_bits(divisor):
    a = pairs(8)

    for found, x in zip(exactly(a.over(np.float64(divisor))), exactly(a), strict=True):
        true = x / Fraction(divisor)
        assert abs(found - true) <= abs(true) * Fraction(2) ** -100


def test_products_are_right_to_100_bits():
    a, b = pairs(12), pairs(13)

    for found, x, y in zip(exactly(a.times(b)), exactly(a), exactly(b), strict=True):
        assert abs(found - x * y) <= abs(x * y) * Fraction(2) ** -100


def test_roots_are_right_to_100_bits():
    a = pairs(14)
    a = Double(abs(a.high), np.copysign(a.low, a.high * a.low))

    for found, x in zip(exactly(a.root()), exactly(a), strict=True):
        assert abs(found**2 - x) <= x * Fraction(2) ** -100


def test_the_root_of_zero_is_zero():
    zero = np.zeros(1)

    assert exactly(Double(zero, zero).root()) == [0]


@pytest.mark.parametrize("operation", ["plus", "minus", "times"])
def test_the_leading_double_is_the_rounded_value(operation):
    result = getattr(pairs(9), operation)(pairs(10))

    assert (result.high + result.low == result.high).all()


def test_zero_changes_no_bit():
    a, zero = pairs(11), np.zeros(2_000)

    for total in (a.plus(Double(zero, zero)), Double(zero, zero).plus(a)):
        assert total.high.tobytes() == a.high.tobytes()
        assert total.low.tobytes() == a.low.tobytes()
