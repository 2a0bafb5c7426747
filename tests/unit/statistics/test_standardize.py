"""The arithmetic: (x - mean) / std in Float64, rounded once at the end."""

import math
import threading
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal, localcontext

import numpy as np
import pyarrow as pa
import pytest

from polar_etl.columns import pieces_of
from polar_etl.statistics.scaler import Scaler
from tests.unit.arrays import applied, values_of
from tests.unit.exact import chunked, decimal, exact, moments_of


def standardized(*columns: pa.ChunkedArray, **options: object) -> list[pa.Array]:
    """Fit on the columns and return them standardized."""
    names = tuple(f"c{i}" for i in range(len(columns)))
    kinds = tuple(str(column.type) for column in columns)
    scaler = Scaler(names, kinds, moments_of(*columns), **options)
    return applied(scaler.standardizer(), columns)


def one(values: object, **options: object) -> pa.Array:
    return standardized(chunked(values), **options)[0]


@pytest.mark.parametrize("kind", ["f2", "f4", "f8", "i1", "i4", "i8", "u8"])
@pytest.mark.parametrize("dtype", [None, "float32", "float64"])
def test_bits_are_those_of_the_formula(kind, dtype):
    values = (np.random.default_rng(0).standard_normal(70_000) * 20 + 50).astype(kind)
    moments = moments_of(values)
    single = dtype == "float32" or (dtype is None and kind in ("f2", "f4"))

    found = one(values, dtype=dtype)

    formula = (values.astype(np.float64) - moments.mean()[0]) / moments.std()[0]
    assert found.type == (pa.float32() if single else pa.float64())
    assert found.to_numpy().tobytes() == formula.astype(np.float32 if single else "f8").tobytes()


def test_float32_is_the_nearest_to_the_truth():
    values = np.random.default_rng(1).standard_normal(1_000).astype(np.float32) + np.float32(1e6)
    true, found = exact(values.tolist()), one(values).to_numpy()

    with localcontext(prec=60):
        for x, z in zip(values.tolist(), found, strict=True):
            error = abs(Decimal(float(z)) - (Decimal(x) - decimal(true.mean)) / true.std())
            # half a unit in the last place, and what the rounding of the mean to Float64 adds
            assert error <= Decimal(float(np.spacing(abs(z)))) / 2 + Decimal("1.3e-10")


@pytest.mark.parametrize("kind", [pa.float64(), pa.float32(), pa.int32()], ids=str)
@pytest.mark.parametrize("cuts", [[], [1], [3, 3, 50], list(range(1, 100))])
def test_nulls_stay_where_they_were(kind, cuts):
    column = chunked(pa.array([None if i % 7 == 3 else i for i in range(100)], kind), cuts)

    found = standardized(column)[0]

    found.validate(full=True)
    assert found.is_null().to_pylist() == column.is_null().to_pylist()


def test_nan_stays_nan_and_is_no_null():
    found = one(pa.array([1.0, math.nan, None, 3.0], from_pandas=False))

    assert found.null_count == 1
    assert found.to_pylist()[0] == -1
    assert math.isnan(found.to_pylist()[1])


def test_infinities_pass_on_or_become_null():
    values = pa.array([1.0, math.inf, 3.0, -math.inf, None, math.nan], from_pandas=False)

    kept = one(values, inf="ignore").to_pylist()
    nulled = one(values, inf="null").to_pylist()

    assert kept[:4] == [-1, math.inf, 1, -math.inf]
    assert nulled[:5] == [-1, None, 1, None, None]
    assert kept[4] is None
    assert math.isnan(kept[5])
    assert math.isnan(nulled[5])


@pytest.mark.parametrize("value", [0.0, 0.1, -5.5, 1e300, 1e-300, 5e-324, 1.7e308])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_constant_columns_become_zero(value, dtype):
    column = pa.array([value, None, value, math.nan, value], from_pandas=False)

    found = one(column, dtype=dtype).to_pylist()

    assert [found[0], found[1], found[2], found[4]] == [0.0, None, 0.0, 0.0]
    assert math.isnan(found[3])


def test_infinities_in_constant_columns_stay():
    assert one([2.0, math.inf, 2.0], inf="ignore").to_pylist() == [0.0, math.inf, 0.0]
    assert one([2.0, -math.inf, 2.0], inf="null").to_pylist() == [0.0, None, 0.0]


def test_one_row_is_a_constant_column():
    assert one([7.0]).to_pylist() == [0.0]
    assert one([7.0], ddof=1).to_pylist() == [0.0]


def test_columns_without_values_pass():
    assert one(pa.nulls(3, pa.float64())).to_pylist() == [None] * 3
    assert np.isnan(one(np.full(3, np.nan)).to_numpy()).all()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_no_rows_make_no_values(dtype):
    found = one(pa.array([], pa.float64()), dtype=dtype)

    assert len(found) == 0
    assert str(found.type) == {"float32": "float", "float64": "double"}[dtype]


@pytest.mark.parametrize(
    "values",
    [
        [1.5e308, 1.5e308, -1e308],
        [np.finfo(float).max, -np.finfo(float).max, 0.0],
        [1.7e308, 1.69e308, 1.6e308],
        [1e-300, 2e-300, 5e-300],
        [3e-308, 4e-308, 9e-308],
        [1e-310, 2e-310, 5e-310],
        [1e300, 1.0, -1e300],
        [1e154, 3e154, 1e155],
        [1 + 1e-15, 1.0, 1 - 1e-15],
    ],
    ids=str,
)
def test_extreme_magnitudes_are_right(values):
    true = exact(values)
    with localcontext(prec=60):
        expected = [float((Decimal(x) - decimal(true.mean)) / true.std()) for x in values]

    # mean and deviation are rounded to Float64 once each, and so are difference and quotient
    mean, std = float(abs(true.mean)), float(true.std())
    largest = max(abs(z) for z in expected)
    relative = 2 * np.finfo(float).eps + np.spacing(std) / std
    tolerance = np.spacing(mean) / std + largest * relative
    np.testing.assert_allclose(one(values).to_numpy(), expected, rtol=0, atol=tolerance)


def test_a_sample_deviation_beyond_float64_divides_all_the_same():
    found = one([1.79e308, -1.79e308], ddof=1).to_pylist()

    assert found == pytest.approx([0.5**0.5, -(0.5**0.5)], rel=1e-15)


def test_many_columns_of_both_types_come_back_in_order():
    draw = np.random.default_rng(4)
    kinds = [np.float32, np.float64, np.int16]
    table = [(draw.standard_normal(300) * 9 + i).astype(kinds[i % 3]) for i in range(900)]

    found = standardized(*[chunked(column) for column in table])

    for column, array in zip(table[::97], found[::97], strict=True):
        assert array.equals(one(column))


def test_pieces_change_no_bit():
    values = np.random.default_rng(5).standard_normal(300_000)
    cuts = [1, 7, 16_384, 262_144, 262_145]

    assert standardized(chunked(values, cuts))[0].equals(one(values))


@pytest.mark.parametrize("kind", ["f4", "f8", "i4"])
def test_the_input_is_left_alone(kind):
    values = np.arange(50).astype(kind)
    how = Scaler(("x",), (str(pa.array(values).type),), moments_of(values)).standardizer()

    (found,) = applied(how, [chunked(values)])

    assert found.to_pylist() != list(range(50))
    assert (values == np.arange(50)).all()


@pytest.mark.parametrize("kind", ["float32", "float64", "int64"])
@pytest.mark.parametrize("values", [[1.0, 2.0, 7.0], [5.0, 5.0], [2.0**900, -(2.0**1000), 0.0]])
def test_single_values_become_what_those_of_a_column_do(kind, values):
    if max(values) > 100 and kind != "float64":
        pytest.skip("such values need Float64")
    values = np.array(values).astype(kind)
    how = Scaler(("x",), (str(pa.array(values).type),), moments_of(values)).standardizer()

    (column,) = applied(how, [chunked(values)])

    assert how.apply_to_values(0, values).tobytes() == column.to_numpy().tobytes()


def test_results_are_scratch_of_each_thread():
    """What one thread yields stays while others work."""
    columns = [chunked(np.arange(1000.0) * (i + 1)) for i in range(4)]
    how = Scaler(("x",), ("double",), moments_of(columns[0])).standardizer()
    expected = [applied(how, [column])[0] for column in columns]
    together = threading.Barrier(len(columns), timeout=60)

    def task(column: pa.ChunkedArray) -> list[float]:
        (filled,) = how.apply([pieces_of(column)], 1000)
        together.wait()
        assert not filled.valid
        return values_of(filled).tolist()

    with ThreadPoolExecutor(len(columns)) as pool:
        found = list(pool.map(task, columns))

    assert found == [array.to_pylist() for array in expected]
