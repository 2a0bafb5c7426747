"""Moments against exact rational arithmetic, and the laws of `merge`."""

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pyarrow as pa
import pytest

from polar_etl.statistics.moments import NO_ROW, Moments, merge_all
from tests.unit.exact import (
    SPACING,
    bits,
    blocks_of,
    chunked,
    decimal,
    exact,
    moments_of,
    right_digits,
)

ROWS = 40_000  # two whole blocks and a part of a third


def noise(seed: int = 0, rows: int = ROWS) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(rows)


def spanning(low: float, high: float) -> np.ndarray:
    draw = np.random.default_rng(5)
    return 10.0 ** draw.uniform(low, high, ROWS) * draw.choice([-1.0, 1.0], ROWS)


def outlier(value: float, row: int) -> np.ndarray:
    values = noise(6)
    values[row] = value
    return values


def cancelling(size: float) -> np.ndarray:
    """Return values that have nothing left in their sum but that of a few small ones."""
    large = noise(8, 5_000) * size
    values = np.concatenate([large, -large, noise(9, 100)])
    return np.random.default_rng(10).permutation(values)


def alternating() -> np.ndarray:
    return np.where(np.arange(ROWS) % 2 == 0, 1e8, -1e8) + noise(4)


HARD = {
    "normal": noise(),
    **{f"normal + 1e{power}": noise() + 10.0**power for power in range(16)},
    **{f"normal - 1e{power}": noise() - 10.0**power for power in (6, 12, 15)},
    "normal * 1e-8 + 1": noise() * 1e-8 + 1,
    "ramp": np.arange(ROWS, dtype=np.float64),
    "ramp from 1e15": np.arange(ROWS) + 1e15,
    "ramp downwards by 0.1": np.arange(ROWS, 0, -1) * 0.1,
    "alternating 1e8": alternating(),
    "spanning 1e-300 to 1e300": spanning(-300, 300),
    "spanning 1e-300 to 1": spanning(-300, 0),
    "of 1e-300": noise() * 1e-300,
    "of 1e-300 with offset": (noise() + 1e6) * 1e-300,
    "of 1e-160": noise() * 1e-160,
    "of 1e150": noise() * 1e150,
    "of 1e300": noise() * 1e300,
    "of 1e300 with offset": noise() * 1e290 + 1e300,
    "blocks of other sizes": np.concatenate(
        [noise(1, 16_384) * 1e-250, noise(2, 16_384), noise(3, 16_384) * 1e250]
    ),
    "zeros, then 1e-200": np.concatenate([np.zeros(16_384), noise(7) * 1e-200]),
    "1e-200, then zeros": np.concatenate([noise(7) * 1e-200, np.zeros(20_000)]),
    "zeros, then 1e300": np.concatenate([np.zeros(16_384), noise(7) * 1e300]),
    "outlier 1e300 first": outlier(1e300, 0),
    "outlier 1e300 last": outlier(1e300, -1),
    "outlier 1e12 first": outlier(1e12, 0),
    "outlier -1e12 last": outlier(-1e12, -1),
    "steps of 1e-20": np.arange(ROWS) % 7 * 1e-20,
    "sum beyond Float64": np.array([1.5e308, 1.5e308, -1e308]),
    "largest": np.array([np.finfo(float).max, -np.finfo(float).max, 0.0]),
    "largest alike": np.array([np.finfo(float).max, np.finfo(float).max * 0.9]),
    "smallest normal": np.array([2.0, 3.0, 5.0, 1e10]) * np.finfo(float).tiny,
    **{f"cancelling 1e{power}": cancelling(10.0**power) for power in (8, 16, 100, 300)},
    "cancelling to two": np.array([1.0, 1e100, 1.0, -1e100]),
    "two rows": np.array([0.1, 0.3]),
    "one off in the last bit": np.array([1.0, np.nextafter(1.0, 2.0), 1.0]),
    "first block constant": np.concatenate([np.full(16_384, 1e9), noise(7)]),
    "last block constant": np.concatenate([noise(7), np.full(20_000, -1e9)]),
    "int64 extremes": np.array([np.iinfo(np.int64).min, np.iinfo(np.int64).max, 0, 1, 2]),
    "int64 beyond 2^53": np.arange(2**53, 2**53 + 1_000),
    "uint64 extremes": np.array([0, 2**64 - 1, 2**63, 2**63 - 1], dtype=np.uint64),
    "int8": np.arange(-128, 128, dtype=np.int8),
    "uint8": np.arange(256, dtype=np.uint8),
    "float32": (noise() + 1e6).astype(np.float32),
    "float32 spanning": (10.0 ** np.random.default_rng(1).uniform(-38, 38, ROWS)).astype("f4"),
    "float16": noise().astype(np.float16),
    "float16 largest": np.full(ROWS, 65504, np.float16) * np.where(noise() > 0, 1, -1).astype("f2"),
}


@pytest.mark.parametrize("name", HARD)
def test_mean_and_std_are_right_to_14_digits(name):
    values = HARD[name]
    found, true = moments_of(values), exact(values.tolist())

    assert found.count[0] == true.count
    assert right_digits(found.mean()[0], true.mean) >= 14
    assert right_digits(found.std()[0], true.std()) >= 14
    assert right_digits(found.std(1)[0], true.std(1)) >= 14
    assert (found.min[0], found.max[0]) == (float(values.min()), float(values.max()))


@pytest.mark.parametrize("name", ["normal + 1e15", "ramp", "float32", "of 1e-160", "of 1e150"])
def test_variance_is_right_as_far_as_float64_reaches(name):
    values = HARD[name]
    true = exact(values.tolist())
    expected = true.deviations / true.count

    variance = moments_of(values).variance()[0]

    # 1e-320 is subnormal: three digits are all that there are
    assert abs(Fraction(variance) - expected) <= expected / 10**14 + Fraction(SPACING)


def test_variance_beyond_float64_is_inf_and_the_deviation_is_right():
    values = np.array([1.5e308, 1.5e308, -1e308])
    found = moments_of(values)

    assert found.variance()[0] == np.inf
    assert right_digits(found.std()[0], exact(values).std()) >= 14


def test_a_sample_deviation_beyond_float64_is_inf():
    assert moments_of([1.79e308, -1.79e308]).std(1)[0] == np.inf


@pytest.mark.parametrize("offset", [0, 7, 1_000_000])
def test_subnormals_are_right_to_what_float64_can_hold(offset):
    values = (np.random.default_rng(3).integers(0, 1_000, 5_000) + offset) * SPACING
    found, true = moments_of(values), exact(values.tolist())

    assert abs(Fraction(found.mean()[0]) - true.mean) <= Fraction(SPACING)
    assert abs(decimal(Fraction(found.std()[0])) - true.std()) <= decimal(Fraction(SPACING))


@pytest.mark.parametrize("rows", [1, 2, 3, 7, 100, 16_384, 16_385, ROWS])
@pytest.mark.parametrize("value", [0.1, -0.1, 1 / 3, 1e8 + 0.1, 1e15 + 0.3, 1e300, 1e-300, 0.0])
def test_constants_have_their_value_as_mean_and_no_deviation(rows, value):
    found = moments_of(np.full(rows, value))

    assert found.mean()[0] == value
    assert found.std()[0] == pytest.approx(0, abs=1e-15 * abs(value))
    assert found.is_constant()[0]


def test_means_that_cancel_are_right():
    half = noise() + 1e9
    values = np.concatenate([half, -half, [1.0]])

    assert right_digits(moments_of(values).mean()[0], Fraction(1, len(values))) >= 14


class TestCounts:
    """Nulls, NaN and infinities are counted, and never enter the statistics."""

    def columns(self):
        draw = np.random.default_rng(8)
        values = noise(9) * 3 + 1e6
        kind = draw.choice(5, ROWS, p=[0.6, 0.1, 0.1, 0.1, 0.1])
        values[kind == 1] = np.nan
        values[kind == 2] = np.inf
        values[kind == 3] = -np.inf
        return values, kind

    def test_are_exact(self):
        values, kind = self.columns()
        column = pa.array(values, mask=kind == 4)

        found = moments_of(column)

        assert found.count[0] == np.sum(kind == 0)
        assert found.nan_count[0] == np.sum(kind == 1)
        assert found.inf_count[0] == np.sum((kind == 2) | (kind == 3))
        assert found.null_count[0] == np.sum(kind == 4)
        assert found.first_inf[0] == np.flatnonzero((kind == 2) | (kind == 3))[0]

    def test_leave_the_statistics_to_the_finite_values(self):
        values, kind = self.columns()
        kept = values[kind == 0]
        found, true = moments_of(pa.array(values, mask=kind == 4)), exact(kept)

        assert right_digits(found.mean()[0], true.mean) >= 14
        assert right_digits(found.std()[0], true.std()) >= 14
        assert (found.min[0], found.max[0]) == (kept.min(), kept.max())

    def test_what_stands_where_a_null_is_does_not_count(self):
        mask = np.array([False, True, False, True])
        values = np.array([1.0, np.inf, 3.0, np.nan])

        found = moments_of(pa.array(values, mask=mask, from_pandas=False))

        counts = (found.count, found.null_count, found.nan_count, found.inf_count)
        assert [int(count[0]) for count in counts] == [2, 2, 0, 0]
        assert (found.mean()[0], found.first_inf[0]) == (2.0, NO_ROW)

    @pytest.mark.parametrize("row", [0, 1, 16_383, 16_384, 39_999])
    @pytest.mark.parametrize("sign", [1, -1])
    def test_the_first_infinity_is_found_in_every_block(self, row, sign):
        values = noise()
        values[row] = sign * np.inf
        values[-1] = np.inf

        assert moments_of(values).first_inf[0] == row

    def test_the_first_infinity_is_counted_from_the_start_of_the_file(self):
        blocks = blocks_of(chunked(np.array([1.0, np.inf])), first_row=3 * 16_384)

        assert merge_all(blocks, 1).first_inf[0] == 3 * 16_384 + 1

    def test_of_integers_with_nulls(self):
        found = moments_of(pa.array([1, None, 3, None, None], pa.int32()))

        assert (found.count[0], found.null_count[0], found.mean()[0]) == (2, 3, 2.0)

    def test_of_a_column_of_nulls(self):
        found = moments_of(pa.nulls(ROWS, pa.float64()))

        assert (found.count[0], found.null_count[0]) == (0, ROWS)
        assert (found.min[0], found.max[0]) == (np.inf, -np.inf)
        assert np.isnan([found.mean()[0], found.std()[0], found.variance()[0]]).all()
        assert not found.is_constant()[0]


BLOCK = 16_384
HOSTILE = {
    "NaN": np.full(BLOCK, np.nan),
    "inf": np.full(BLOCK, np.inf),
    "-inf and inf": np.tile([-np.inf, np.inf], BLOCK // 2),
    "null": pa.nulls(BLOCK, pa.float64()),
    "constant": np.full(BLOCK, 1e12),
    "zero": np.zeros(BLOCK),
    "outlier": np.concatenate([[1e200], np.zeros(BLOCK - 1)]),
    "subnormal": np.full(BLOCK, SPACING),
    "huge": np.full(BLOCK, 1e300),
}


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("last", [False, True])
def test_a_hostile_block_first_or_last_spoils_nothing(name, last):
    hostile = HOSTILE[name]
    hostile = hostile if isinstance(hostile, pa.Array) else pa.array(hostile)
    ordinary = noise(10) + 1e5
    ordinary = ordinary[: 2 * BLOCK]
    order = [pa.array(ordinary), hostile] if last else [hostile, pa.array(ordinary)]
    values = [x for chunk in order for x in chunk.to_pylist() if x is not None]
    true = exact(x for x in values if np.isfinite(x))

    found = moments_of(pa.chunked_array(order))

    assert found.count[0] == true.count
    assert right_digits(found.mean()[0], true.mean) >= 14
    assert right_digits(found.std()[0], true.std()) >= 14


class TestMerge:
    """Count, sum and deviations are a monoid."""

    VARIED = (
        "normal",
        "normal + 1e15",
        "spanning 1e-300 to 1e300",
        "of 1e-300",
        "of 1e300",
        "sum beyond Float64",
        "two rows",
        "int64 extremes",
    )

    @pytest.mark.parametrize("name", VARIED)
    def test_with_empty_changes_no_bit(self, name):
        found, empty = moments_of(HARD[name]), Moments.empty(1)

        assert bits(empty.merge(found)) == bits(found)
        assert bits(found.merge(empty)) == bits(found)

    def test_with_empty_changes_no_bit_of_odd_columns(self):
        odd = [[-0.0, -0.0], [np.nan, np.inf], [None, 1.0], [SPACING, 0.0], [1e-310, -1e-310]]
        found = moments_of(*[pa.array(values, pa.float64(), from_pandas=False) for values in odd])
        empty = Moments.empty(len(odd))

        assert bits(empty.merge(found)) == bits(found)
        assert bits(found.merge(empty)) == bits(found)

    def test_of_empty_and_empty_is_empty(self):
        empty = Moments.empty(3)

        assert bits(empty.merge(empty)) == bits(empty)
        assert bits(merge_all([], 3)) == bits(empty)

    @pytest.mark.parametrize("name", VARIED)
    def test_in_any_grouping_is_right(self, name):
        values = HARD[name]
        pieces = [moments_of(part) for part in np.array_split(values, min(len(values), 9))]
        true = exact(values.tolist())

        left = merge_all(pieces, 1)
        right = pieces[-1]
        for piece in reversed(pieces[:-1]):
            right = piece.merge(right)

        for found in (left, right):
            assert right_digits(found.mean()[0], true.mean) >= 14
            assert right_digits(found.std()[0], true.std()) >= 14

    def test_keeps_columns_apart(self):
        a, b = noise(1), noise(2) * 1e300
        both = moments_of(a[:100], b[:100]).merge(moments_of(a[100:], b[100:]))

        for column, values in enumerate((a, b)):
            alone = moments_of(values[:100]).merge(moments_of(values[100:]))
            assert bits(both.select(np.array([column]))) == bits(alone)

    def test_of_many_pieces_loses_nothing(self):
        values = noise(11, 4_000) + 1e12
        found = merge_all([moments_of(values[i : i + 2]) for i in range(0, 4_000, 2)], 1)

        assert right_digits(found.std()[0], exact(values).std()) >= 14

    @pytest.mark.parametrize("size", [1e-300, 1e-150, 1e-110, 1.0, 1e110, 3.2e150, 4e150, 1e300])
    def test_of_more_rows_than_a_disk_holds_is_right(self, size):
        values = [size, -size, 0.5 * size, 0.25 * size]
        found, true = moments_of(np.array(values)), exact(values)

        for _ in range(40):
            found = found.merge(found)

        assert found.count[0] == 4 * 2**40
        assert right_digits(found.mean()[0], true.mean) >= 14
        assert right_digits(found.std()[0], true.std()) >= 14

    def test_adds_counts_and_takes_the_first_infinity(self):
        a = moments_of([1.0, np.inf, np.nan])
        b = replace(moments_of(pa.array([None, -np.inf, 5.0])), first_inf=np.array([4]))

        both = a.merge(b)

        counts = (both.count, both.null_count, both.nan_count, both.inf_count)
        assert [int(count[0]) for count in counts] == [2, 1, 1, 2]
        assert both.first_inf[0] == 1


class TestDegreesOfFreedom:
    """What is not defined is NaN, and raises no warning."""

    def test_one_value_has_no_sample_deviation(self):
        found = moments_of([3.0])

        assert found.std(0)[0] == 0
        assert np.isnan(found.std(1)[0])
        assert np.isnan(found.variance(1)[0])

    def test_no_values_have_no_statistics(self):
        found = Moments.empty(2)

        assert np.isnan([found.mean(), found.std(), found.std(1), found.variance()]).all()


class TestConstant:
    """The bound of `is_constant` is scikit-learn's."""

    CASES = (
        [1.0, 1.0, 1.0],
        [0.0, 0.0],
        [0.1] * 1_000,
        [1.0, np.nextafter(1.0, 2.0)],
        [1e16, 1e16 + 2],
        [1e8, 1e8 + 1e-8],
        [1e8, 1e8 + 1e-7, 1e8 + 2e-7],
        [1e-20, 2e-20],
        [1e300, 1e300],
        [1e300, 1.0000000001e300],
        [1e-300, 1e-300, 1.1e-300],
        [-5.0] * 7 + [-5.000000000000002],
        list(1e9 + np.arange(100) * 1.2e-7),
        list(1e9 + np.arange(20_000) % 2 * 1.2e-7),
        [0.0, SPACING],
    )

    @pytest.mark.parametrize("values", CASES, ids=range(len(CASES)))
    def test_bound(self, values):
        data = pytest.importorskip("sklearn.preprocessing._data", reason="needs scikit-learn")
        # times a power of two, which the bound does not see, so that squares stay within Float64
        scale = -int(np.frexp(np.max(np.abs(values)))[1])
        scaled = np.ldexp(np.array(values), scale)
        true = exact(scaled)
        expected = data._is_constant_feature(
            float(true.deviations / true.count), float(true.mean), true.count
        )

        assert moments_of(values).is_constant()[0] == expected

    @pytest.mark.parametrize("step", [2.0**-power for power in range(30, 53)])
    @pytest.mark.parametrize("rows", [2, 50, 1_000])
    def test_bound_is_crossed_at_the_same_step(self, step, rows):
        data = pytest.importorskip("sklearn.preprocessing._data", reason="needs scikit-learn")
        values = 1 + np.arange(rows) % 2 * step
        true = exact(values)
        var, mean = float(true.deviations / true.count), float(true.mean)

        found = moments_of(values).is_constant()[0]

        assert found == data._is_constant_feature(var, mean, rows)


CERTIFIED = {  # digits of the sample deviation that binary64 data allow
    "Lew": 14,
    "Lottery": 14,
    "Mavro": 13.1,
    "Michelso": 13.8,
    "NumAcc1": 14,
    "NumAcc2": 14,
    "NumAcc3": 9.4,
    "NumAcc4": 8.2,
}


@pytest.mark.parametrize("name", CERTIFIED)
def test_reference_data_of_nist(name, test_data):
    path = test_data / "nist" / f"{name}.dat"
    if not path.is_file():
        pytest.skip(f"no {name}.dat: set POLAR_ETL_TEST_DATA to a folder with nist/{name}.dat")
    lines = path.read_text().splitlines()
    mean, std = (
        Fraction(next(line for line in lines if start in line).split(":")[1].split()[0])
        for start in ("Sample Mean", "Sample Standard Deviation")
    )
    rules = [number for number, line in enumerate(lines) if set(line.strip()) == {"-"}]
    values = [float(line) for line in lines[rules[-1] + 1 :] if line.strip()]
    count = next(line for line in lines if "Number of Observations" in line)
    assert len(values) == int(count.split(":")[1])

    found, true = moments_of(np.array(values)), exact(values)

    assert right_digits(found.mean()[0], true.mean) >= 15
    assert right_digits(found.std(1)[0], true.std(1)) >= 14.5
    assert right_digits(found.mean()[0], mean) >= 14
    assert right_digits(found.std(1)[0], std) >= CERTIFIED[name]
