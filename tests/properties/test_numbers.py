"""Moments and standardization, for any values whatever."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pyarrow as pa
from hypothesis import assume, example, given
from hypothesis import strategies as st

from polar_etl.statistics.moments import NO_ROW, Moments, merge_all
from polar_etl.statistics.scaler import Scaler
from polar_etl.statistics.standardize import Standardizer
from tests.properties.strategies import FINITE, columns, cuts, pieces
from tests.unit.arrays import applied
from tests.unit.exact import SPACING, bits, decimal, exact, moments_of, right_digits, ulps_off

NEAREST = 0.5 + 2**-6
"""Units of the last place: the rounding to Float64, and next to nothing before it."""
POLICIES = st.sampled_from(["error", "ignore", "null"])
DTYPES = st.sampled_from([None, "float32", "float64"])


def close(found: Moments, values: list[float]) -> None:
    """Hold mean and deviation against the truth, as far as Float64 can tell."""
    true = exact(values)
    largest = max(abs(Fraction(float(value))) for value in values)
    # the sum is right to 2^-95 of the largest value, then rounded once
    mean_error = abs(Fraction(found.mean()[0]) - true.mean)
    assert mean_error <= abs(true.mean) / 2**52 + largest / 2**90 + Fraction(SPACING)
    std, found_std = true.std(), float(found.std()[0])
    assert found_std >= 0
    # a deviation that is 2^-50 of the values is lost in the rounding of each x - mean
    room = decimal(largest / 2**52 * len(values) + 2 * Fraction(SPACING))
    assert right_digits(found_std, std) >= 13 or abs(decimal(Fraction(found_std)) - std) <= room


@given(st.lists(FINITE, min_size=1, max_size=60), st.data())
@example([1.5e308, 1.5e308, -1e308], None)
@example([0.0, 1e-200], None)
@example([5e-324, 1e-323], None)
@example([1e-320] * 3, None)
@example([1e154, -1e154], None)
@example([2.0**500, 2.0**500 * (1 + 2**-52)], None)
@example([2.0**-400, 2.0**-401], None)
def test_merging_any_split_is_right(values, data):
    places = data.draw(cuts(len(values))) if data else [1]
    edges = [0, *places, len(values)]
    parts = [moments_of(pa.array(values[a:b], pa.float64())) for a, b in itertools.pairwise(edges)]

    found = merge_all(parts, 1)

    assert found.count[0] == len(values)
    assert (found.min[0], found.max[0]) == (min(values), max(values))
    close(found, values)


@given(
    st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=60),
    st.floats(-1e12, 1e12),
    st.integers(-1000, 950),
    st.data(),
)
def test_offset_and_size_cost_no_digits(values, offset, exponent, data):
    values = [math.ldexp(value + offset, exponent) for value in values]
    true = exact(values)
    assume(true.deviations > 0)
    assume(true.std() > decimal(Fraction(2) ** -970))
    largest = max(map(abs, values))
    assume(true.std() > decimal(Fraction(largest)) / 10**15)
    places = data.draw(cuts(len(values)))
    edges = [0, *places, len(values)]

    found = merge_all([moments_of(values[a:b]) for a, b in itertools.pairwise(edges) if a < b], 1)

    for ddof in (0, 1):
        assert ulps_off(found.std(ddof)[0], true.std(ddof)) <= NEAREST


@given(st.lists(FINITE, min_size=1, max_size=60))
@example([0.1, 0.1, 0.3])
@example([1.1, 1.3, 1.2] * 20)
@example([1e12] + [0.1, 0.7] * 20)
@example([1.0] * 39 + [math.nextafter(1.0, 2.0)])
@example([1e16, 1.1, -1e16])
def test_moments_of_few_rows_are_the_nearest_there_are(values):
    true = exact(values)
    found = moments_of(values)

    mean, std, var = found.mean()[0], found.std()[0], found.variance()[0]

    if abs(true.mean) > max(map(abs, values)) * 2**-36:
        assert ulps_off(mean, true.mean) <= NEAREST
    if std > 2.0**-960:
        assert ulps_off(std, true.std()) <= NEAREST
    if 2.0**-960 < var < math.inf:
        assert ulps_off(var, true.deviations / true.count) <= NEAREST


@given(columns(), st.data())
def test_chunks_change_no_bit(column, data):
    again = pieces(column.combine_chunks(), data.draw(cuts(len(column))))

    assert bits(moments_of(column)) == bits(moments_of(again))


@given(columns())
def test_counts_and_extremes_are_exact(column):
    values = column.to_pylist()
    known = [float(value) for value in values if value is not None]
    finite = [value for value in known if math.isfinite(value)]

    found = moments_of(column)

    assert found.count[0] == len(finite)
    assert found.null_count[0] == values.count(None)
    assert found.nan_count[0] == sum(map(math.isnan, known))
    assert found.inf_count[0] == sum(map(math.isinf, known))
    first = next((i for i, x in enumerate(values) if x is not None and math.isinf(x)), NO_ROW)
    assert found.first_inf[0] == first
    assert found.min[0] == min(finite, default=math.inf)
    assert found.max[0] == max(finite, default=-math.inf)
    if finite:
        close(found, finite)


@given(columns())
def test_empty_is_the_identity_of_merge(column):
    found, empty = moments_of(column), Moments.empty(1)

    assert bits(empty.merge(found)) == bits(found.merge(empty)) == bits(found)


@given(st.lists(columns(max_size=8), min_size=1, max_size=4), st.randoms())
def test_columns_are_kept_apart(table, random):
    rows = min(len(column) for column in table)
    table = [column.slice(0, rows) for column in table]
    order = list(range(len(table)))
    random.shuffle(order)

    together = moments_of(*[table[i] for i in order])

    for place, i in enumerate(order):
        assert bits(together.select(np.array([place]))) == bits(moments_of(table[i]))


@given(columns(), st.floats(-1e6, 1e6), st.floats(1e-6, 1e6), st.booleans(), st.data())
def test_standardizing_is_the_formula_bit_for_bit(column, mean, std, single, data):
    how = Standardizer(
        mean=np.array([mean]),
        std=np.array([std]),
        constant=np.array([False]),
        exponent=np.array([0]),
        single=np.array([single]),
        inf_to_null=np.array([False]),
    )
    again = pieces(column.combine_chunks(), data.draw(cuts(len(column))))

    (found,) = applied(how, [again])

    found.validate(full=True)
    out = np.float32 if single else np.float64
    assert found.is_null().to_pylist() == column.is_null().to_pylist()
    known = np.array([float(value) for value in column.to_pylist() if value is not None])
    with np.errstate(all="ignore"):
        expected = ((known - mean) / std).astype(out)
    assert np.array_equal(found.drop_null().to_numpy(), expected, equal_nan=True)
    assert not np.any(np.signbit(found.drop_null().to_numpy()) ^ np.signbit(expected))


@given(columns(), POLICIES, DTYPES, st.integers(0, 1))
def test_standardizing_what_was_fitted_gives_values_of_moderate_size(column, inf, dtype, ddof):
    scaler = Scaler(("x",), (str(column.type),), moments_of(column), ddof, inf, dtype)

    (found,) = applied(scaler.standardizer(), [column])

    found.validate(full=True)
    count = int(scaler.moments.count[0])
    for before, after in zip(column.to_pylist(), found.to_pylist(), strict=True):
        if before is None or (inf == "null" and math.isinf(before)):
            assert after is None
        elif math.isnan(before):
            assert math.isnan(after)
        elif math.isinf(before):
            assert after == before
        elif scaler.is_constant()[0]:
            assert after == 0
        else:  # no value is farther from the mean than sqrt(n - 1) deviations
            assert abs(after) <= math.sqrt(count) * 1.001


@given(st.lists(FINITE, min_size=2, max_size=40), st.integers(0, 1))
@example([1.79e308, -1.79e308], 1)
def test_standardized_values_have_mean_0_and_deviation_1(values, ddof):
    scaler = Scaler(("x",), ("double",), moments_of(values), ddof)
    std = float(scaler.moments.std(ddof)[0])
    # where each rounding of x - mean is small beside the deviation
    assume(std > max(map(abs, values)) * 1e-6)
    assume(std > 1e-300)

    (found,) = applied(scaler.standardizer(), [pa.chunked_array([values])])

    true = exact(found.to_pylist())
    assert abs(true.mean) < 1e-9
    assert abs(float(true.std(ddof)) - 1) < 1e-9
