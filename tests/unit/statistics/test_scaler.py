"""The fitted stat table: what it says, how it is saved, merged and turned into expressions."""

import json
import math

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import polar_etl as pe
from polar_etl.errors import InputError, UsageError
from polar_etl.statistics.moments import Moments
from polar_etl.statistics.scaler import Scaler, output_type
from tests.unit.arrays import applied
from tests.unit.exact import bits, chunked, exact, moments_of, right_digits


def scaler_of(table: pa.Table, **options: object) -> Scaler:
    kinds = tuple(str(column.type) for column in table.schema)
    return Scaler(tuple(table.column_names), kinds, moments_of(*table.columns), **options)


def standardized(scaler: Scaler, table: pa.Table) -> dict[str, pa.Array]:
    found = applied(scaler.standardizer(), [table.column(name) for name in scaler.columns])
    return dict(zip(scaler.columns, found, strict=True))


def by_expressions(scaler: Scaler, table: pa.Table) -> dict[str, pa.Array]:
    frame = scaler.transform(pl.from_arrow(table).lazy()).collect()
    return {name: frame[name].to_arrow() for name in scaler.columns}


def ordinary(rows: int = 5_000) -> pa.Table:
    draw = np.random.default_rng(0)
    normal = draw.standard_normal(rows)
    nulls = draw.random(rows) < 0.1
    return pa.table(
        {
            "f8": normal * 3 + 7,
            "far": normal + 1e9,
            "small": normal * 1e-30,
            "nulls": pa.array(normal, mask=nulls),
            "nan": np.where(nulls, np.nan, normal),
            "f4": normal.astype(np.float32) + np.float32(100),
            "f4 nulls": pa.array(normal.astype(np.float32), mask=nulls),
            "i8": draw.integers(-128, 128, rows).astype(np.int8),
            "i64": draw.integers(-(2**62), 2**62, rows),
            "u64": draw.integers(0, 2**64, rows, np.uint64),
            "constant": np.full(rows, 0.1),
            "empty": pa.nulls(rows, pa.float64()),
        }
    )


class TestStats:
    """A row per column."""

    def test_say_what_was_counted(self):
        table = pa.table(
            {
                "x": pa.array([1.0, 2.0, 3.0, None, math.nan, math.inf], from_pandas=False),
                "c": pa.array([5, 5, 5, 5, 5, None], pa.int16()),
            }
        )

        stats = scaler_of(table, inf="ignore").stats

        assert stats.columns == [
            *("column", "dtype", "count", "null_count", "nan_count", "inf_count"),
            *("mean", "std", "var", "min", "max", "constant"),
        ]
        assert stats.row(0)[:7] == ("x", "double", 3, 1, 1, 1, 2.0)
        assert stats.row(0)[8:] == (pytest.approx(2 / 3, rel=1e-15), 1.0, 3.0, False)
        assert stats.row(1) == ("c", "int16", 5, 1, 0, 0, 5.0, 0.0, 0.0, 5.0, 5.0, True)

    def test_are_null_where_there_are_no_values(self):
        stats = scaler_of(pa.table({"x": pa.nulls(3, pa.float64())})).stats

        assert stats.row(0)[2:] == (0, 3, 0, 0, None, None, None, None, None, False)

    def test_follow_ddof(self):
        table = pa.table({"x": [1.0, 2.0, 4.0]})
        true = exact([1.0, 2.0, 4.0])

        for ddof in (0, 1):
            std = scaler_of(table, ddof=ddof).stats["std"].item()
            assert right_digits(std, true.std(ddof)) >= 15

    def test_of_no_columns(self):
        scaler = Scaler((), (), Moments.empty(0))

        assert scaler.stats.height == 0
        assert scaler.expressions() == []
        assert Scaler.from_json(scaler.to_json()).columns == ()

    def test_call_too_few_values_for_ddof_constant(self):
        assert scaler_of(pa.table({"x": [1.0]}), ddof=1).stats["constant"].item()


class TestExpressions:
    """One per column, agreeing with the arithmetic that writes parts."""

    def test_agree_for_ordinary_columns(self):
        table = ordinary()
        scaler = scaler_of(table)
        expected, found = standardized(scaler, table), by_expressions(scaler, table)

        for name in scaler.columns:
            assert found[name].type == expected[name].type
            assert found[name].is_null().equals(expected[name].is_null())
            a, b = (
                x.drop_null().to_numpy(zero_copy_only=False) for x in (found[name], expected[name])
            )
            if a.dtype == np.float32:
                np.testing.assert_array_equal(a, b)
            else:
                _within_two_ulps(a, b)

    @pytest.mark.parametrize(
        "values",
        [
            [1.5e308, 1.5e308, -1e308],
            [1.79e308, -1.79e308, 0.0],
            [1e-300, 2e-300, 5e-300],
            [1e-310, 2e-310, 5e-310],
            [5e-324, 1e-323, 0.0],
            [5e-324, 1e-323],
            [1e300, 1.0, -1e300],
            [1e160, 2e160, -7e160],
        ],
        ids=str,
    )
    @pytest.mark.parametrize("dtype", ["float32", "float64"])
    def test_agree_for_extreme_magnitudes(self, values, dtype):
        table = pa.table({"x": values})
        scaler = scaler_of(table, dtype=dtype)
        found, expected = by_expressions(scaler, table)["x"], standardized(scaler, table)["x"]

        assert np.isfinite(expected.to_numpy()).all()
        if dtype == "float32":
            assert found.equals(expected)
        else:
            _within_two_ulps(found.to_numpy(), expected.to_numpy())

    def test_make_constant_columns_zero(self):
        table = pa.table({"x": pa.array([0.1, None, math.nan, 0.1], from_pandas=False)})
        found = by_expressions(scaler_of(table), table)["x"].to_pylist()

        assert found[0] == found[3] == 0.0
        assert found[1] is None
        assert math.isnan(found[2])

    @pytest.mark.parametrize("policy", ["error", "ignore", "null"])
    @pytest.mark.parametrize("values", [[1.0, 3.0, math.inf, -math.inf], [2.0, 2.0, math.inf]])
    def test_treat_infinities_like_the_standardizer(self, policy, values):
        table = pa.table({"x": values})
        scaler = scaler_of(table, inf=policy)

        assert by_expressions(scaler, table)["x"].equals(standardized(scaler, table)["x"])

    def test_leave_other_columns_alone(self):
        frame = pl.LazyFrame({"a": ["p", "q"], "x": [1.0, 3.0], "b": [1, 2]})
        scaler = scaler_of(pa.table({"x": [1.0, 3.0]}))

        assert scaler.transform(frame).collect().rows() == [("p", -1.0, 1), ("q", 1.0, 2)]

    def test_are_lazy(self):
        scaler = scaler_of(pa.table({"x": [1.0, 3.0]}))

        assert isinstance(scaler.transform(pl.LazyFrame({"x": [1.0]})), pl.LazyFrame)

    @pytest.mark.parametrize("name", ["*", "^x$", "a.b", "", "ünïcödé", "x y"])
    def test_take_names_literally(self, name):
        scaler = scaler_of(pa.table({name: [1.0, 3.0]}))

        frame = scaler.transform(pl.LazyFrame({name: [1.0, 3.0], "x": [5.0, 6.0]})).collect()

        assert frame.columns == [name, "x"]
        assert frame.rows() == [(-1.0, 5.0), (1.0, 6.0)]


def _within_two_ulps(found: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_array_equal(np.isnan(found), np.isnan(expected))
    known = ~np.isnan(expected)
    np.testing.assert_array_max_ulp(found[known], expected[known], maxulp=2)


@pytest.mark.parametrize(
    ("kind", "asked", "expected"),
    [
        ("float", None, "float32"),
        ("halffloat", None, "float32"),
        ("double", None, "float64"),
        ("int8", None, "float64"),
        ("decimal128(5, 2)", None, "float64"),
        ("double", "float32", "float32"),
        ("float", "float64", "float64"),
    ],
)
def test_output_type(kind, asked, expected):
    assert output_type(kind, asked) == expected


class TestText:
    """`to_json` and `from_json` restore every bit."""

    def test_round_trip_is_exact(self):
        scaler = scaler_of(ordinary(), ddof=1, inf="null", dtype="float32")

        again = Scaler.from_json(scaler.to_json())

        for field in ("columns", "dtypes", "ddof", "inf", "dtype"):
            assert getattr(again, field) == getattr(scaler, field)
        assert bits(again.moments) == bits(scaler.moments)
        assert again.to_json() == scaler.to_json()
        assert again.digest() == scaler.digest()

    def test_is_strict_json(self):
        table = pa.table({"huge": [1.5e308, -1.5e308], "empty": pa.nulls(2, pa.float32())})

        def refuse(constant: str) -> None:
            raise AssertionError(constant)

        fields = json.loads(scaler_of(table).to_json(), parse_constant=refuse)
        assert fields["table"]["column"] == ["huge", "empty"]

    def test_digest_tells_settings_and_values_apart(self):
        table = pa.table({"x": [1.0, 2.0]})
        variants = [
            scaler_of(table),
            scaler_of(table, ddof=1),
            scaler_of(table, inf="null"),
            scaler_of(table, dtype="float32"),
            scaler_of(pa.table({"y": [1.0, 2.0]})),
            scaler_of(pa.table({"x": [1.0, np.nextafter(2.0, 3.0)]})),
        ]

        assert len({scaler.digest() for scaler in variants}) == len(variants)

    def test_save_and_load(self, tmp_path):
        scaler = scaler_of(ordinary())

        scaler.save(tmp_path / "scaler.json")

        assert Scaler.load(str(tmp_path / "scaler.json")).digest() == scaler.digest()
        assert [path.name for path in tmp_path.iterdir()] == ["scaler.json"]

    def test_loading_nothing_is_an_input_error(self, tmp_path):
        for path in (tmp_path / "absent.json", tmp_path):
            with pytest.raises(InputError, match="can't be read"):
                Scaler.load(path)

    def test_loading_bytes_is_an_input_error(self, tmp_path):
        (tmp_path / "x").write_bytes(b"\xff\xfe\x00")

        with pytest.raises(InputError):
            Scaler.load(tmp_path / "x")

    @pytest.mark.parametrize(
        "text",
        [
            *("", "null", "[]", "{}", "1", '"scaler"', "{", "[" * 100_000, "1" * 5_000),
            '{"format": "polar-etl scaler 2"}',
            '{"format": "polar-etl scaler 1"}',
            '{"format": "polar-etl scaler 1", "table": []}',
        ],
        ids=range(12),
    )
    def test_other_text_is_an_input_error(self, text):
        with pytest.raises(InputError, match="not a scaler"):
            Scaler.from_json(text)

    @pytest.mark.parametrize(
        ("key", "value"),
        [
            ("ddof", 2),
            ("ddof", "0"),
            ("inf", "drop"),
            ("dtype", "int8"),
            ("table/count", [-1]),
            ("table/count", [1.5]),
            ("table/count", [True]),
            ("table/count", [1, 2]),
            ("table/count", [2**70]),
            ("table/mean", [2.5]),
            ("table/mean", [1.5, 1.5]),
            ("table/mean", 1.5),
            ("table/std", [0.5 + 1e-9]),
            ("table/std", ["0.5"]),
            ("table/sum", None),
            ("table/sum", ...),
            ("table/sum", ["1.0"]),
            ("table/sum", [float("nan")]),
            ("table/m2", [10**400]),
            ("table/m2", None),
            ("table/column", ["x", "x"]),
            ("table/column", [7]),
            ("table/column", 7),
            ("table/column", "x"),
            ("table/dtype", []),
            ("table/sum", [float("inf")]),
            ("table/m2", [float("inf")]),
            ("table/m2", [-1.0]),
            ("table/min", [3.0]),
            ("table/exponent", [10**18]),
            ("table/exponent", [-(10**18)]),
        ],
    )
    def test_changed_fields_are_an_input_error(self, key, value):
        fields = json.loads(scaler_of(pa.table({"x": [1.0, 2.0]})).to_json())
        *path, last = key.split("/")
        target = fields[path[0]] if path else fields
        if value is ...:
            del target[last]
        else:
            target[last] = value

        with pytest.raises(InputError, match="not a scaler"):
            Scaler.from_json(json.dumps(fields))


class TestMerge:
    """Scalers of parts of the rows make the scaler of all rows."""

    def test_of_files_in_order_has_the_bits_of_one_scan(self, tmp_path):
        draw = np.random.default_rng(3)
        for index, rows in enumerate((20_000, 1, 16_384, 333)):
            frame = pl.DataFrame({"x": draw.standard_normal(rows) + 1e6, "i": range(rows)})
            frame.write_parquet(tmp_path / f"{index}.parquet")
        paths = sorted(tmp_path.iterdir())

        merged = Scaler.merge([pe.fit(path) for path in paths])

        assert bits(merged.moments) == bits(pe.fit(paths).moments)
        assert merged.to_json() == pe.fit(tmp_path).to_json()

    def files(self, folder, lengths=(20_000, 1, 16_384, 333)):
        draw = np.random.default_rng(4)
        paths = []
        for index, rows in enumerate(lengths):
            normal = pa.array(draw.standard_normal(rows) - 1e9, mask=draw.random(rows) < 0.1)
            table = pa.table({"x": normal, "i": pa.array(range(rows), pa.int32())})
            paths.append(folder / f"{index}.parquet")
            pq.write_table(table, paths[-1])
        return paths

    def test_the_first_may_cover_several_files(self, tmp_path):
        paths = self.files(tmp_path)

        merged = Scaler.merge([pe.fit(paths[:2]), pe.fit(paths[2]), pe.fit(paths[3])])

        assert merged.to_json() == pe.fit(paths).to_json()

    @pytest.mark.parametrize("place", [0, 1, 4])
    def test_with_one_of_no_rows_changes_no_bit(self, tmp_path, place):
        fits = [pe.fit(path) for path in self.files(tmp_path)]
        empty = pe.fit(self.files(tmp_path, (0,)))

        assert empty.moments.count.tolist() == [0, 0]
        mixed = Scaler.merge([*fits[:place], empty, *fits[place:]])
        assert mixed.to_json() == Scaler.merge(fits).to_json()

    def test_in_any_order_and_grouping_agrees_to_2_ulp(self, tmp_path):
        a, b, c, d = (pe.fit(path) for path in self.files(tmp_path))
        whole = Scaler.merge([a, b, c, d])
        rows = pa.concat_tables([pq.read_table(path) for path in self.files(tmp_path)])

        for other in (
            Scaler.merge([d, b, a, c]),
            Scaler.merge([a, Scaler.merge([b, c, d])]),
            pe.fit(rows),
        ):
            for name in ("mean", "std", "var"):
                _within_two_ulps(other.stats[name].to_numpy(), whole.stats[name].to_numpy())
            for name in ("count", "null_count", "min", "max"):
                assert other.stats[name].equals(whole.stats[name])

    def test_of_one_is_the_same(self):
        scaler = scaler_of(ordinary())

        assert Scaler.merge([scaler]).to_json() == scaler.to_json()

    def test_of_none_is_refused(self):
        with pytest.raises(UsageError, match="at least one"):
            Scaler.merge([])

    @pytest.mark.parametrize(
        "other",
        [
            scaler_of(pa.table({"y": [1.0]})),
            scaler_of(pa.table({"x": [1]})),
            scaler_of(pa.table({"x": [1.0]}), ddof=1),
            scaler_of(pa.table({"x": [1.0]}), inf="null"),
            scaler_of(pa.table({"x": [1.0]}), dtype="float32"),
        ],
        ids=["columns", "dtypes", "ddof", "inf", "dtype"],
    )
    def test_of_unlike_scalers_is_refused(self, other):
        with pytest.raises(UsageError, match="differ"):
            Scaler.merge([scaler_of(pa.table({"x": [1.0]})), other])


class TestRequire:
    """A scaler fits a source or says why not."""

    def test_other_columns_and_another_order_do_no_harm(self):
        scaler = scaler_of(pa.table({"x": [1.0], "i": [1]}))

        scaler.require(pa.schema({"i": pa.int64(), "name": pa.string(), "x": pa.float64()}))

    @pytest.mark.parametrize(
        ("schema", "message"),
        [
            ({"i": pa.int64()}, "needs column 'x'"),
            ({"x": pa.float32(), "i": pa.int64()}, "as double, found float"),
            ({"x": pa.string(), "i": pa.int64()}, "as double, found string"),
        ],
    )
    def test_what_does_not_fit_is_named(self, schema, message):
        scaler = scaler_of(pa.table({"x": [1.0], "i": [1]}))

        with pytest.raises(InputError, match=message):
            scaler.require(pa.schema(schema))


def test_transforming_other_rows_uses_the_fitted_statistics():
    scaler = scaler_of(pa.table({"x": [1.0, 3.0]}))

    (found,) = applied(scaler.standardizer(), [chunked([5.0, 2.0])])

    assert found.to_pylist() == [3.0, 0.0]
