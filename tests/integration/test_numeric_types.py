"""Every numeric type, missing and infinite values, constants, and the options that decide on them."""

from __future__ import annotations

import decimal
import json
import math
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support import tables, trees

INTEGERS = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
FLOATS = ("float16", "float32", "float64")


def of_every_type(rows: int, *, nulls: bool = False) -> pa.Table:
    """Return a column per numeric type, over the whole range of the integers."""
    draw = np.random.default_rng(3)
    mask = draw.random(rows) < 0.2 if nulls else np.zeros(rows, bool)
    columns = {}
    for name in INTEGERS:
        limits = np.iinfo(name)
        values = draw.integers(limits.min, limits.max, rows, name, endpoint=True)
        values[:2] = limits.min, limits.max
        columns[name] = pa.array(values, mask=mask)
    for name in FLOATS:
        columns[name] = pa.array(draw.normal(100, 30, rows).astype(name), mask=mask)
    return pa.table(columns)


def decimals(kind: pa.DataType, rows: int) -> pa.Array:
    """Return decimals that Float64 can't hold, whose digits fit into 2^53."""
    draw = np.random.default_rng(4)
    with decimal.localcontext(prec=80):
        numbers = [Decimal(int(n)).scaleb(-kind.scale) for n in draw.integers(-99999, 99999, rows)]
    return pa.array([None, *numbers], kind)


def as_float64(column: pa.ChunkedArray) -> np.ndarray:
    """Return the column as Float64, NaN where it is null, each value rounded once."""
    return np.array([np.nan if v is None else float(v) for v in column.to_pylist()])


@pytest.mark.parametrize("nulls", [False, True])
@pytest.mark.parametrize("ddof", [0, 1])
def test_every_numeric_type(run_cli, tmp_path, nulls, ddof):
    source = of_every_type(2000, nulls=nulls)
    tables.write(tmp_path / "in.parquet", source, row_group_size=300)
    made = run_cli("normalize", "in.parquet", "out", "--ddof", ddof, "--json").expect(0).summary
    assert made["normalized_columns"] == made["columns"] == 11
    found = tables.read(tmp_path / "out")
    for name in source.column_names:
        small = name in ("float16", "float32")
        assert found.schema.field(name).type == (pa.float32() if small else pa.float64()), name
        assert found[name].is_null().to_pylist() == source[name].is_null().to_pylist(), name
        values = as_float64(source[name])
        mean, std = tables.statistics(tmp_path / "out", name)
        exact = tables.exact_statistics(values[~np.isnan(values)], ddof)
        assert (mean, std) == pytest.approx(exact, rel=1e-15, abs=0), name
        expected = tables.reference(values, mean, std, "float32" if small else "float64")
        tables.assert_bits(as_float64(found[name]).astype(expected.dtype), expected)


@pytest.mark.parametrize(
    "kind",
    [
        pa.decimal128(5, 0),
        pa.decimal128(7, 2),
        pa.decimal128(18, 4),
        pa.decimal128(38, 10),
        pa.decimal256(60, 20),
        pa.decimal256(76, 0),
    ],
    ids=str,
)
def test_decimals_become_the_nearest_float64(run_cli, tmp_path, kind):
    source = pa.table({"d": decimals(kind, 1000)})
    tables.write(tmp_path / "in.parquet", source)
    run_cli("normalize", "in.parquet", "out").expect(0)
    values = as_float64(source["d"])
    mean, std = tables.statistics(tmp_path / "out", "d")
    assert (mean, std) == pytest.approx(tables.exact_statistics(values[1:]), rel=1e-15, abs=0)
    found = tables.read(tmp_path / "out")["d"]
    assert found.null_count == 1
    assert found.type == pa.float64()
    tables.assert_bits(as_float64(found), (values - mean) / std)


@pytest.mark.parametrize(("dtype", "kind"), [("float32", pa.float32()), ("float64", pa.float64())])
def test_dtype_decides_on_all_columns(run_cli, tmp_path, dtype, kind):
    source = of_every_type(500)
    tables.write(tmp_path / "in.parquet", source)
    run_cli("normalize", "in.parquet", "out", "--dtype", dtype).expect(0)
    found = tables.read(tmp_path / "out")
    assert set(found.schema.types) == {kind}
    for name in source.column_names:
        mean, std = tables.statistics(tmp_path / "out", name)
        expected = tables.reference(as_float64(source[name]), mean, std, dtype)
        tables.assert_bits(found[name].to_numpy(), expected)


def test_nulls_and_nans_are_not_counted_and_stay_what_they_are(run_cli, tmp_path):
    source = pa.table({"x": pa.array([1.0, None, float("nan"), 3.0, None])})
    tables.write(tmp_path / "in.parquet", source)
    run_cli("normalize", "in.parquet", "out").expect(0)
    one, null, nan, three, last = tables.read(tmp_path / "out")["x"].to_pylist()
    assert (one, three, null, last) == (-1.0, 1.0, None, None)
    assert math.isnan(nan)
    table = json.loads(trees.scaler_bytes(tmp_path / "out"))["table"]
    counts = [table[f"{kind}count"][0] for kind in ("", "null_", "nan_", "inf_")]
    assert counts == [2, 2, 1, 0]


@pytest.fixture
def infinite(tmp_path):
    """Two files, the first infinity in row 7 of the second."""
    good = np.arange(20, dtype=float)
    bad = np.arange(20, dtype=float)
    bad[[7, 9]] = np.inf, -np.inf
    tables.write(tmp_path / "data" / "a.parquet", {"ok": good, "odd": good, "s": ["x"] * 20})
    tables.write(tmp_path / "data" / "b.parquet", {"ok": good, "odd": bad, "s": ["x"] * 20})
    return np.concatenate([good, bad])


def test_infinities_are_refused_with_column_count_file_and_row(run_cli, tmp_path, infinite):
    before = trees.tree(tmp_path)
    refused = run_cli("normalize", "data", "out").expect(4)
    for text in ("'odd'", "2", "b.parquet", "row 7", "--inf"):
        assert text in refused.stderr
    assert "'ok'" not in refused.stderr
    assert trees.tree(tmp_path) == before


def test_refused_infinities_leave_an_empty_directory_as_it_was(run_cli, tmp_path, infinite):
    (tmp_path / "out").mkdir()
    before = trees.tree(tmp_path)
    run_cli("normalize", "data", "out").expect(4)
    assert trees.tree(tmp_path) == before


@pytest.mark.parametrize("policy", ["ignore", "null"])
def test_infinities_are_not_counted(run_cli, tmp_path, infinite, policy):
    run_cli("normalize", "data", "out", "--inf", policy).expect(0)
    mean, std = tables.statistics(tmp_path / "out", "odd")
    finite = infinite[np.isfinite(infinite)]
    assert (mean, std) == pytest.approx(tables.exact_statistics(finite), rel=1e-15)
    found = tables.read(tmp_path / "out")["odd"].to_pylist()
    kept = [None, None] if policy == "null" else [np.inf, -np.inf]
    assert [found[27], found[29]] == kept
    rest = np.array([v for i, v in enumerate(found) if i not in (27, 29)])
    tables.assert_bits(rest, (finite - mean) / std)


def test_infinities_in_columns_that_pass_through_are_nobodys_business(run_cli, tmp_path, infinite):
    run_cli("normalize", "data", "out", "--exclude", "odd").expect(0)
    tables.assert_bits(tables.read(tmp_path / "out")["odd"].to_numpy(), infinite)


def test_constant_and_empty_columns(run_cli, tmp_path):
    rows = 1000
    near = np.full(rows, 1e6)
    near[0] = np.nextafter(1e6, 2e6)
    source = pa.table(
        {
            "zero": np.zeros(rows),
            "third": np.full(rows, 1 / 3),
            "big": np.full(rows, 2**53, np.int64),
            "near": near,
            "holes": pa.array([None, 7.5] * (rows // 2)),
            "nulls": pa.nulls(rows, pa.float64()),
            "nullints": pa.nulls(rows, pa.int32()),
            "nans": np.full(rows, np.nan),
        }
    )
    tables.write(tmp_path / "in.parquet", source)
    run_cli("normalize", "in.parquet", "out").expect(0)
    found = tables.read(tmp_path / "out")
    for name in ("zero", "third", "big", "near"):
        assert set(found[name].to_pylist()) == {0.0}, name
    assert found["holes"].to_pylist() == [None, 0.0] * (rows // 2)
    assert found["nulls"].null_count == found["nullints"].null_count == rows
    assert found["nullints"].type == pa.float64()
    assert np.isnan(found["nans"].to_numpy()).all()
    assert found["nans"].null_count == 0


def test_values_at_the_ends_of_float64(run_cli, tmp_path):
    huge, tiny = np.array([1.5e308, -1.5e308, 1e308]), np.array([3e-300, -1e-300, 1e-305])
    tables.write(tmp_path / "in.parquet", {"huge": huge, "tiny": tiny})
    run_cli("normalize", "in.parquet", "out").expect(0)
    for name in ("huge", "tiny"):
        z = tables.read(tmp_path / "out")[name].to_numpy()
        assert np.isfinite(z).all(), name
        assert abs(z.mean()) < 1e-9, name
        assert abs(z.std() - 1) < 1e-9, name


def test_choice_of_columns(run_cli, tmp_path):
    names = ("x1", "x2", "y1", "label", "w.a")
    columns = {name: [1.0, 2.0] for name in names if name != "label"}
    tables.write(tmp_path / "in.parquet", {**columns, "label": ["p", "q"]})

    def normalized(*options: str) -> set[str]:
        plan = run_cli("plan", "in.parquet", *options, "--json").expect(0).summary
        return set(names) - set(plan["passed_columns"])

    assert normalized() == {"x1", "x2", "y1", "w.a"}
    assert normalized("--columns", "x1") == {"x1"}
    assert normalized("--columns", "x*", "--columns", "y1") == {"x1", "x2", "y1"}
    assert normalized("--columns", "^.1$") == {"x1", "y1"}
    assert normalized("--exclude", "x?") == {"y1", "w.a"}
    assert normalized("--columns", "*", "--exclude", "w.a") == {"x1", "x2", "y1"}


@pytest.mark.parametrize("option", ["--columns", "--exclude"])
def test_a_column_that_does_not_exist_is_an_error_with_the_nearest(run_cli, tmp_path, option):
    tables.write(tmp_path / "in.parquet", {"distance": [1.0], "altitude": [2.0]})
    before = trees.tree(tmp_path)
    for command in (("normalize", "in.parquet", "out"), ("plan", "in.parquet")):
        refused = run_cli(*command, option, "distence").expect(2)
        assert "'distence'" in refused.stderr
        assert "'distance'" in refused.stderr
    assert trees.tree(tmp_path) == before
    run_cli("normalize", "in.parquet", "out", option, "zz*").expect(2)
    run_cli("normalize", "in.parquet", "out", option, "^($").expect(2)
    assert trees.tree(tmp_path) == before


def test_naming_a_column_that_is_not_numeric_is_an_error(run_cli, tmp_path):
    tables.write(tmp_path / "in.parquet", {"x": [1.0], "s": ["a"]})
    assert "string" in run_cli("normalize", "in.parquet", "out", "--columns", "s").expect(2).stderr


def test_columns_that_are_not_chosen_keep_type_and_values(run_cli, tmp_path):
    source = of_every_type(100, nulls=True)
    tables.write(tmp_path / "in.parquet", source)
    run_cli("normalize", "in.parquet", "out", "--columns", "float32").expect(0)
    assert tables.read(tmp_path / "out").drop(["float32"]).equals(source.drop(["float32"]))


@pytest.mark.parametrize(
    ("options", "lengths"),
    [
        (["--rows-per-part", "1000"], [1000, 1000, 500]),
        (["--rows-per-part", "2500"], [2500]),
        (["--rows-per-part", "999999999"], [2500]),
        (["--rows-per-part", "2499"], [2499, 1]),
        (["--part-size", "24kB"], [1000, 1000, 500]),
        (["--part-size", "1GB"], [2500]),
    ],
)
def test_size_of_parts(run_cli, tmp_path, options, lengths):
    source = tables.floats(2500, 3, "float64")
    tables.write(tmp_path / "in.parquet", source, row_group_size=700)
    run_cli("normalize", "in.parquet", "out", *options).expect(0)
    found = sorted((tmp_path / "out").iterdir())
    assert [pq.read_metadata(path).num_rows for path in found] == lengths
    assert [path.name for path in found] == [f"part-{i:05d}.parquet" for i in range(len(lengths))]
    mean, std = tables.statistics(tmp_path / "out", "c1")
    expected = tables.reference(source["c1"].to_numpy(), mean, std, "float64")
    tables.assert_bits(tables.read(tmp_path / "out")["c1"].to_numpy(), expected)


def test_more_parts_than_names_can_sort_are_refused(run_cli, tmp_path):
    tables.write(tmp_path / "in.parquet", {"x": np.arange(200_001.0)})
    refused = run_cli("normalize", "in.parquet", "out", "--rows-per-part", 2).expect(2)
    assert "--rows-per-part 3 or more" in refused.stderr
    assert not (tmp_path / "out").exists()


def test_parts_may_hold_several_row_groups(run_cli, tmp_path):
    source = tables.floats(60_000, 90, "float64")
    tables.write(tmp_path / "in.parquet", source, row_group_size=9_000)
    run_cli("normalize", "in.parquet", "out", "--part-size", "100MiB").expect(0)
    one = pq.read_metadata(tmp_path / "out" / "part-00000.parquet")
    assert one.num_row_groups >= 2
    groups = [one.row_group(i).num_rows for i in range(one.num_row_groups)]
    assert len(set(groups[:-1])) <= 1
    found = tables.read(tmp_path / "out")
    for name in ("c0", "c89"):
        mean, std = tables.statistics(tmp_path / "out", name)
        expected = tables.reference(source[name].to_numpy(), mean, std, "float64")
        tables.assert_bits(found[name].to_numpy(), expected)


@pytest.mark.parametrize(
    "options",
    [
        ["--ddof", "2"],
        ["--ddof", "x"],
        ["--inf", "maybe"],
        ["--dtype", "int8"],
        ["--memory-limit", "plenty"],
        ["--memory-limit", "0"],
        ["--memory-limit", "-1GB"],
        ["--threads", "0"],
        ["--rows-per-part", "0"],
        ["--rows-per-part", "5", "--part-size", "1MB"],
        ["--part-size", "0B"],
        ["--part-size", "10%"],
        ["--compression-level", "99"],
        ["--no-such-option"],
        ["--state-dir", "out"],
        ["--state-dir", "out/state"],
    ],
    ids=" ".join,
)
def test_options_that_make_no_sense_are_usage_errors(run_cli, tmp_path, options):
    tables.write(tmp_path / "in.parquet", {"x": [1.0, 2.0]})
    before = trees.tree(tmp_path)
    run_cli("normalize", "in.parquet", "out", *options).expect(2)
    assert trees.tree(tmp_path) == before
