"""What scikit-learn asks of its StandardScaler, asked of ours; where they differ, it is meant."""

from __future__ import annotations

import math

import numpy as np
import polars as pl
import pyarrow as pa
import pytest

import polar_etl as pe

EPS = np.finfo(np.float64).eps


def table_of(values: np.ndarray) -> pa.Table:
    """Return a matrix, or one column, as a table with columns 0, 1, …"""
    matrix = values[:, None] if values.ndim == 1 else values
    return pa.table({str(i): column for i, column in enumerate(matrix.T)})


def fitted(values: np.ndarray) -> pe.Scaler:
    return pe.fit(table_of(values))


def scaled(values: np.ndarray) -> np.ndarray:
    """Fit on a matrix and return it standardized."""
    frame = pl.from_arrow(table_of(values)).lazy()
    found = fitted(values).transform(frame).collect().to_numpy()
    return found[:, 0] if values.ndim == 1 else found


def statistics(values: np.ndarray, name: str) -> np.ndarray:
    return fitted(values).stats[name].to_numpy()


class TestShapes:
    """Rows, columns, integers, dtypes."""

    def test_columns_get_mean_0_and_deviation_1(self):
        matrix = np.random.default_rng(0).standard_normal((40, 5)) * 7 - 3
        matrix[:, 0] = 0.0

        found = scaled(matrix)

        np.testing.assert_allclose(found.mean(axis=0), 0, atol=1e-15)
        np.testing.assert_allclose(found.std(axis=0), [0, 1, 1, 1, 1], atol=1e-15)

    def test_a_single_row_becomes_zeros(self):
        row = np.array([[3.0, -1e300, 0.1]])

        assert scaled(row).tolist() == [[0.0, 0.0, 0.0]]
        assert statistics(row, "mean").tolist() == row[0].tolist()
        assert statistics(row, "constant").all()

    def test_integers_become_floats(self):
        matrix = np.random.default_rng(42).integers(0, 20, (4, 5))
        matrix[:, 0] = 0

        found = scaled(matrix)

        assert found.dtype == np.float64
        expected = (matrix - matrix.mean(axis=0)) / np.where(
            matrix.std(axis=0), matrix.std(axis=0), 1
        )
        np.testing.assert_allclose(found, expected, rtol=1e-14, atol=1e-16)

    @pytest.mark.parametrize(
        ("given", "expected"),
        # scikit-learn keeps float16, which has no digits to spare; here it becomes float32
        [(np.float64, np.float64), (np.float32, np.float32), (np.float16, np.float32)],
    )
    def test_dtypes(self, given, expected):
        matrix = np.random.default_rng(1).standard_normal((10, 3)).astype(given)

        assert scaled(matrix).dtype == expected
        assert statistics(matrix, "mean").dtype == statistics(matrix, "std").dtype == np.float64

    def test_float16_does_not_overflow(self):
        values = np.random.default_rng(0).uniform(5, 10, 200_000).astype(np.float16)

        found = scaled(values)

        assert np.isfinite(found).all()
        assert np.array_equal(found, scaled(values.astype(np.float64)).astype(np.float32))


class TestConstants:
    """Columns without a spread, or with one that rounding could have made."""

    @pytest.mark.parametrize("dtype", [np.float32, np.float64])
    @pytest.mark.parametrize("constant", [0, 1.0, 100.0, -0.1])
    def test_become_zero_unscaled(self, dtype, constant):
        values = np.full(100, constant, dtype)

        assert statistics(values, "std").tolist() == [0.0]
        assert statistics(values, "constant").all()
        assert not scaled(values).any()

    @pytest.mark.parametrize("rows", [8, 10, 1_000, 100_000])
    @pytest.mark.parametrize("constant", [math.log(1e-5), 1e-100, 1e100, 1e-310, 1e308])
    def test_hard_to_average_become_zero_without_a_warning(self, rows, constant):
        values = np.full(rows, constant)

        assert statistics(values, "mean").tolist() == [constant]
        assert statistics(values, "std").tolist() == [0.0]
        assert not scaled(values).any()

    @pytest.mark.parametrize("rows", [10, 100, 10_000])
    @pytest.mark.parametrize("average", [1e-10, 1, 1e10])
    @pytest.mark.parametrize("dtype", [np.float32, np.float64])
    def test_near_constants_are_those_within_the_bound(self, rows, average, dtype):
        scales = np.array([10.0**power for power in range(-30, 20)], dtype)
        matrix = np.empty((rows, len(scales)), dtype)
        matrix[: rows // 2] = average + scales
        matrix[rows // 2 :] = average - scales

        wide = scales.astype(np.float64)
        within = wide**2 <= rows * EPS * wide**2 + (rows * average * EPS) ** 2
        apart = matrix[0] != matrix[-1]
        var, constant = (statistics(matrix, name) for name in ("var", "constant"))

        assert within.any()
        assert constant[within].all()
        assert (var[~apart] == 0).all()
        assert constant[~apart].all()
        assert not constant[apart & ~within].any()
        found = scaled(matrix)
        # the mean of values a few last places apart is itself rounded to one of these
        slack = 1e-6 + EPS * average / wide
        assert (abs(found[0] - 1) <= slack)[apart & ~within].all()
        assert not found[:, constant].any()

    @pytest.mark.parametrize("rows", [10, 1_000])
    @pytest.mark.parametrize("average", [1e-10, 1.0, 1e10])
    def test_near_constants_are_scikit_learns(self, rows, average):
        preprocessing = pytest.importorskip("sklearn.preprocessing", reason="needs scikit-learn")
        steps = 2.0 ** np.arange(-100, 40, 3)
        matrix = average + np.outer(np.arange(rows) % 2 * 2 - 1, steps)
        theirs = preprocessing.StandardScaler().fit(matrix)

        # no step is 1, so neither is a deviation that is divided by
        assert (statistics(matrix, "constant") == (theirs.scale_ == 1)).all()

    def test_whose_squares_vanish_are_scaled_here_and_constant_there(self):
        preprocessing = pytest.importorskip("sklearn.preprocessing", reason="needs scikit-learn")
        values = np.array([1e-200, 2e-200, 3e-200])

        assert preprocessing.StandardScaler().fit(values[:, None]).scale_ == 1
        assert scaled(values) == pytest.approx([-math.sqrt(1.5), 0, math.sqrt(1.5)], rel=1e-15)


class TestMissing:
    """NaN is passed on and not counted; infinities are refused."""

    MATRIX = np.array([[0, 1, 3], [np.nan, 6, 10], [5, 4, np.nan], [8, 0, np.nan]])

    def test_nan_is_not_counted(self):
        assert statistics(self.MATRIX, "count").tolist() == [3, 4, 2]
        assert statistics(self.MATRIX, "nan_count").tolist() == [1, 0, 2]

    def test_nan_stays(self):
        found = scaled(self.MATRIX)

        assert (np.isnan(found) == np.isnan(self.MATRIX)).all()
        np.testing.assert_allclose(np.nanmean(found, axis=0), 0, atol=1e-15)
        np.testing.assert_allclose(np.nanstd(found, axis=0), 1, rtol=1e-15)

    @pytest.mark.parametrize("value", [np.inf, -np.inf])
    def test_infinities_are_refused(self, value):
        with pytest.raises(pe.InputError, match="infinite"):
            fitted(np.array([1.0, value, 2.0]))


class TestBatches:
    """`partial_fit` there is `Scaler.merge` here."""

    def test_one_row_at_a_time_loses_nothing(self):
        draw = np.random.default_rng(0)
        scales = draw.uniform(1e3, 1e6, 2)
        matrix = draw.standard_normal((100, 2)) * scales + draw.uniform(-1e15, 1e15, 2)

        merged = pe.Scaler.merge([fitted(row[None, :]) for row in matrix]).stats

        whole = fitted(matrix).stats
        for name in ("mean", "std", "var"):
            np.testing.assert_allclose(merged[name], whole[name], rtol=2 * EPS)

    def test_large_magnitudes_lose_nothing(self):
        matrix = np.random.default_rng(0).integers(0, 2, (100, 3)) * 1e20

        merged = pe.Scaler.merge([fitted(row[None, :]) for row in matrix]).stats

        for name in ("mean", "std"):
            np.testing.assert_allclose(merged[name], fitted(matrix).stats[name], rtol=2 * EPS)

    @pytest.mark.parametrize("size", [1, 2, 50, 1_000, 1_042])
    def test_of_any_size_give_the_same(self, size):
        matrix = np.random.default_rng(3).standard_normal((1_000, 3)) + 5
        batches = [matrix[first : first + size] for first in range(0, 1_000, size)]

        merged = pe.Scaler.merge([fitted(batch) for batch in batches[:200]]).stats

        whole = fitted(matrix[: 200 * size]).stats
        assert merged["count"].to_list() == whole["count"].to_list()
        np.testing.assert_allclose(merged["mean"], whole["mean"], rtol=2 * EPS)
        np.testing.assert_allclose(merged["std"], whole["std"], rtol=2 * EPS)


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.int32])
@pytest.mark.parametrize("shift", [0, 1e6])
def test_results_are_those_of_scikit_learn(dtype, shift):
    preprocessing = pytest.importorskip("sklearn.preprocessing", reason="needs scikit-learn")
    matrix = (np.random.default_rng(5).standard_normal((500, 8)) * 30 + shift).astype(dtype)

    theirs = preprocessing.StandardScaler().fit(matrix.astype(np.float64))

    np.testing.assert_allclose(statistics(matrix, "mean"), theirs.mean_, rtol=1e-13)
    np.testing.assert_allclose(statistics(matrix, "var"), theirs.var_, rtol=1e-14)
    expected = theirs.transform(matrix.astype(np.float64))
    kind = np.float32 if dtype == np.float32 else np.float64
    np.testing.assert_allclose(
        scaled(matrix), expected.astype(kind), rtol=np.finfo(kind).eps * 4, atol=1e-9
    )
