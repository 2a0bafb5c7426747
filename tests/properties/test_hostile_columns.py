"""Columns made to hurt, against exact rational arithmetic: moments, and every value that comes out."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from polar_etl.columns import pieces_of
from polar_etl.statistics.blocks import block_rows
from polar_etl.statistics.moments import merge_all
from polar_etl.statistics.scaler import Scaler
from tests.properties.strategies import FINITE, columns, cuts, numbers
from tests.unit.arrays import applied
from tests.unit.exact import SPACING, bits, decimal, exact, moments_of, right_digits

BLOCK = block_rows(1)
LENGTHS = st.sampled_from([1, 2, 3, 100, 1_001, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK + 500])


def offset(draw: np.random.Generator, rows: int) -> np.ndarray:
    return draw.standard_normal(rows) * 10.0 ** draw.integers(-3, 3) + 10.0 ** draw.integers(0, 16)


def ramp(draw: np.random.Generator, rows: int) -> np.ndarray:
    step = draw.choice([0.1, -0.1, 1.0, 1e-20, 1e8])
    return np.arange(rows) * step + draw.choice([0.0, step * 1e15])


def alternating(draw: np.random.Generator, rows: int) -> np.ndarray:
    return np.resize([1e8, -1e8], rows) + draw.standard_normal(rows)


def spanning(draw: np.random.Generator, rows: int) -> np.ndarray:
    return 10.0 ** draw.uniform(-300, 300, rows) * draw.choice([-1.0, 1.0], rows)


def subnormal(draw: np.random.Generator, rows: int) -> np.ndarray:
    return draw.integers(-(2**52), 2**52, rows) * SPACING


def outlier(draw: np.random.Generator, rows: int) -> np.ndarray:
    values = draw.standard_normal(rows)
    values[draw.choice([0, rows // 2, -1])] = draw.choice([1e12, -1e100, 1e300])
    return values


def few_values(draw: np.random.Generator, rows: int) -> np.ndarray:
    return draw.choice([0.1, 0.7, 19.99, -1 / 3][: draw.integers(2, 5)], rows)


def near_the_top(draw: np.random.Generator, rows: int) -> np.ndarray:
    return draw.choice([1.5e308, -1e308, 1.79e308, 3e307], rows)


def large_integers(draw: np.random.Generator, rows: int) -> np.ndarray:
    kind = draw.choice(["i8", "u8"])
    limits = np.iinfo(kind)
    values = draw.integers(limits.min, limits.max, rows, kind, endpoint=True)
    values[0] = limits.max
    return values


def sorted_normal(draw: np.random.Generator, rows: int) -> np.ndarray:
    return np.sort(draw.standard_normal(rows))[:: draw.choice([-1, 1])]


def halves(draw: np.random.Generator, rows: int) -> np.ndarray:
    return draw.choice([65504.0, -65504.0, 6e-8, 1.0], rows).astype(np.float16)


SHAPES = st.sampled_from(
    [
        *(offset, ramp, alternating, spanning, subnormal, outlier, few_values),
        *(near_the_top, large_integers, sorted_normal, halves),
    ]
)
STARTS = st.sampled_from(
    [
        *([math.nan], [math.inf, -math.inf], [None], [1e300], [-1e12, 0.0], [0.0], [5e-324]),
        [math.nan, None, math.inf, 3.0],
    ]
)
SEEDS = st.integers(0, 2**32 - 1)


def made(shape, seed: int, rows: int) -> np.ndarray:
    return shape(np.random.default_rng(seed), rows)


def hold(found, values: np.ndarray) -> None:
    """Hold mean and deviation to 14 digits, or to what Float64 has where they lie below it."""
    true = exact(values.tolist())
    largest = max(abs(Fraction(float(value))) for value in (values.min(), values.max()))
    assert found.count[0] == true.count
    assert (found.min[0], found.max[0]) == (float(values.min()), float(values.max()))
    room = largest / 2**90 + Fraction(SPACING)
    assert abs(Fraction(found.mean()[0]) - true.mean) <= abs(true.mean) / 10**14 + room
    if true.deviations == 0:
        assert found.std()[0] <= float(largest) * 2**-50
    elif true.std() > decimal(Fraction(2) ** -1020):
        assert right_digits(found.std()[0], true.std()) >= 14
    else:
        assert abs(decimal(Fraction(found.std()[0])) - true.std()) <= decimal(Fraction(SPACING))


@given(SHAPES, SEEDS, LENGTHS, st.booleans())
@example(near_the_top, 0, 3, False)
def test_moments_have_14_digits(shape, seed, rows, shuffled):
    values = made(shape, seed, rows)
    if shuffled:
        np.random.default_rng(seed).shuffle(values)

    hold(moments_of(values), values)


@pytest.mark.parametrize("start", [0, -(10**15)])
def test_ten_million_rows(start):
    """A ramp, whose moments are known: the variance of 0 … n - 1 is (n^2 - 1) / 12."""
    rows = 10_000_000

    found = moments_of(np.arange(start, start + rows))

    assert found.mean()[0] == start + (rows - 1) / 2
    assert found.variance()[0] == float(Fraction(rows**2 - 1, 12))
    assert ulps(found.std()[0] ** 2, Fraction(rows**2 - 1, 12)) <= 2


@pytest.mark.slow
@pytest.mark.parametrize("shape", [offset, alternating, spanning, outlier, sorted_normal])
def test_a_million_rows_have_14_digits(shape):
    values = made(shape, 0, 1_000_000)

    hold(moments_of(values), values)


@given(SHAPES, SEEDS, LENGTHS, st.data())
def test_any_cut_into_files_has_14_digits(shape, seed, rows, data):
    values = made(shape, seed, rows)
    edges = [0, *data.draw(cuts(rows)), rows]
    parts = [moments_of(values[a:b]) for a, b in itertools.pairwise(edges) if a < b]

    hold(merge_all(parts, 1), values)


@given(SHAPES, SEEDS, LENGTHS, st.data())
def test_scalers_of_files_merge_to_the_bits_of_a_fit_over_them(shape, seed, rows, data):
    values = made(shape, seed, rows)
    edges = [0, *data.draw(cuts(rows)), rows]
    files = [moments_of(values[a:b]) for a, b in itertools.pairwise(edges)]
    scalers = [Scaler(("x",), ("double",), moments) for moments in files]
    first = data.draw(st.integers(1, len(files)))

    whole = Scaler.merge(scalers)

    assert bits(whole.moments) == bits(merge_all(files, 1))
    assert bits(Scaler.merge([Scaler.merge(scalers[:first]), *scalers[first:]]).moments) == bits(
        whole.moments
    )


@given(SHAPES, SEEDS, STARTS, st.integers(1, BLOCK + 1), st.booleans())
def test_a_hostile_start_or_end_does_no_harm(shape, seed, start, length, last):
    ordinary = made(shape, seed, 1_000)
    hostile = pa.array((start * length)[:length], pa.float64(), from_pandas=False)
    chunks = [pa.array(ordinary.astype(np.float64)), hostile]
    column = pa.chunked_array(chunks if last else chunks[::-1])
    finite = [x for x in hostile.to_pylist() if x is not None and math.isfinite(x)]
    values = np.concatenate([ordinary.astype(np.float64), finite])

    hold(moments_of(column), values)


@given(
    st.lists(st.decimals(-1000, 1000, places=3), min_size=2, max_size=40), st.integers(0, 10**15)
)
@example([0, 1, 2], 10**15)
def test_rounding_the_input_costs_no_more_than_is_said(numbers, offset):
    """The README's bound: no deviation moves by more than the largest rounding of a value."""
    wanted = [Fraction(number) / 10 + offset for number in numbers]
    mean = sum(wanted) / len(wanted)
    variance = sum((x - mean) ** 2 for x in wanted) / len(wanted)
    values = [float(x) for x in wanted]
    rounding = max(abs(Fraction(a) - b) for a, b in zip(values, wanted, strict=True))
    assert rounding <= max(map(abs, wanted)) / 2**53

    found = Fraction(moments_of(values).std()[0])

    # (found -+ rounding)^2 on either side of the variance, without a root; u for its own rounding
    slack = rounding + found / 2**52
    assert max(found - slack, 0) ** 2 <= variance <= (found + slack) ** 2


@given(
    st.sampled_from([(9, 2), (18, 0), (38, 0), (38, 37), (76, 0), (76, 40)]),
    st.lists(st.integers(-(10**76), 10**76), min_size=1, max_size=20),
)
def test_decimals_of_any_width_are_the_nearest_floats(kind, integers):
    precision, scale = kind
    width = pa.decimal128 if precision <= 38 else pa.decimal256
    with_scale = [decimal(Fraction(n % 10**precision, 10**scale)) for n in integers]
    column = pa.chunked_array([pa.array(with_scale, width(precision, scale))])

    (piece,) = pieces_of(column)

    assert piece.values.tolist() == [float(x) for x in column.to_pylist()]
    hold(moments_of(column), piece.values)


def ulps(found: float, true: Fraction) -> Fraction:
    return abs(Fraction(found) - true) / Fraction(math.ulp(found))


@given(
    columns() | st.lists(FINITE, min_size=1, max_size=40).map(lambda x: pa.chunked_array([x])),
    st.sampled_from([0, 1]),
)
@example(pa.chunked_array([[5e-324, 1e-323]]), 0)
@example(pa.chunked_array([[0.0, -0.0, 1.0]]), 0)
@example(pa.chunked_array([[1.79e308, -1.79e308]]), 1)
@example(pa.chunked_array([[1e-300, -1e-300, 1e10]]), 0)
def test_every_value_is_within_2_ulp_of_the_quotient(column, ddof):
    fitted = Scaler(("x",), ("double",), moments_of(column), ddof, "ignore")
    how = fitted.standardizer()
    unit = Fraction(2) ** int(how.exponent[0])
    mean, std = Fraction(how.mean[0]) * unit, Fraction(how.std[0]) * unit

    (double,) = applied(how, [column])
    single = Scaler(("x",), ("double",), fitted.moments, ddof, "ignore", "float32")
    (float32,) = applied(single.standardizer(), [column])

    doubles = double.drop_null().to_numpy()
    rounded = float32.drop_null().to_numpy()
    assert np.array_equal(rounded, doubles.astype(np.float32), equal_nan=True)
    assert np.array_equal(np.signbit(rounded), np.signbit(doubles))
    for before, after in zip(column.to_pylist(), double.to_pylist(), strict=True):
        if before is None or not math.isfinite(float(before)):
            continue
        if how.constant[0]:
            assert after == 0
            assert math.copysign(1, after) == 1
        else:
            assert ulps(after, (Fraction(float(before)) - mean) / std) <= 2


def test_subnormals_are_standardized_though_float64_cannot_hold_their_mean():
    column = pa.chunked_array([[5e-324, 1e-323]])
    fitted = Scaler(("x",), ("double",), moments_of(column))

    (found,) = applied(fitted.standardizer(), [column])

    assert found.to_pylist() == [-1.0, 1.0]


@given(st.lists(st.sampled_from([0.0, -0.0]), min_size=1, max_size=80))
def test_the_sign_of_zero_changes_no_bit(values):
    assert bits(moments_of(values)) == bits(moments_of([0.0] * len(values)))


@given(st.lists(numbers(pa.int64()), min_size=1, max_size=30))
@example([-(2**63)] * 3 + [2**63 - 1] * 3)
def test_integers_never_wrap(values):
    found = moments_of(pa.array(values, pa.int64()))

    true = exact(values)
    assert abs(Fraction(found.mean()[0]) - true.mean) <= abs(true.mean) / 2**52 + Fraction(1, 2**20)
