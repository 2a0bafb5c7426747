"""Columns of vectors from the command line and from Python: every dimension by itself."""

from __future__ import annotations

import json

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support import cli, tables, trees

import polar_etl as pe

ROWS, SIZE = 9_000, 6
PARTS = ("--rows-per-part", 4_000)


def numbers() -> np.ndarray:
    draw = np.random.default_rng(3)
    values = (draw.normal(5, 2, (ROWS, SIZE)) * [1, 10, 1e-3, 1e6, 1, 1]).astype(np.float32)
    values[:, 5] = 7
    values[::50, 0] = np.nan
    return values


VALUES = numbers()
NO_ROW = np.random.default_rng(4).random(ROWS) < 0.1
NO_NUMBER = (np.random.default_rng(5).random((ROWS, SIZE)) < 0.05) & (np.arange(SIZE) != 3)
FIXED = pa.FixedSizeListArray.from_arrays(
    pa.array(VALUES.reshape(-1), mask=NO_NUMBER.reshape(-1), from_pandas=False),
    SIZE,
    mask=pa.array(NO_ROW),
)
TENSOR = pa.fixed_shape_tensor(pa.float32(), (2, 3), dim_names=["h", "w"])
COLUMNS = {
    "fixed": FIXED,
    "tensor": pa.ExtensionArray.from_storage(TENSOR, FIXED),
    "list": FIXED.cast(pa.list_(pa.float32())),
    "large": FIXED.cast(pa.large_list(pa.float32())),
}


def plain(column: pa.ChunkedArray) -> list[list[float | None] | None]:
    array = column.combine_chunks()
    return (array.storage if isinstance(array, pa.ExtensionArray) else array).to_pylist()


@pytest.fixture(scope="module")
def expected(tmp_path_factory) -> tuple[pa.Table, pl.DataFrame]:
    """What scalar columns become, and their stat table."""
    folder = tmp_path_factory.mktemp("scalars")
    missing = NO_NUMBER | NO_ROW[:, None]
    scalars = {
        f"v[{i}]": pa.array(VALUES[:, i], mask=missing[:, i], from_pandas=False)
        for i in range(SIZE)
    }
    tables.write(folder / "in.parquet", scalars)
    cli.run("normalize", "in.parquet", "out", cwd=folder).expect(0)
    scaler = pe.Scaler.load(folder / "out.polar-etl" / "scaler.json")
    return tables.read(folder / "out"), scaler.stats


@pytest.fixture(params=COLUMNS)
def source(request, tmp_path):
    """A folder with in.parquet: an id, the vectors `v`, and the options that choose `v`."""
    columns = {"id": np.arange(ROWS).astype(str), "v": COLUMNS[request.param]}
    tables.write(tmp_path / "in.parquet", columns, row_group_size=2_500)
    return request.param, ("--columns", "v") if "l" in request.param[:2] else ()


def check(out: pa.ChunkedArray, scalars: pa.Table) -> None:
    rows = plain(out)
    assert [row is None for row in rows] == NO_ROW.tolist()
    for i, name in enumerate(scalars.column_names):
        found = pa.array([None if row is None else row[i] for row in rows], pa.float32())
        column = scalars[name].combine_chunks()
        assert found.is_null().to_pylist() == column.is_null().to_pylist()
        tables.assert_bits(found.drop_null().to_numpy(), column.drop_null().to_numpy())


def test_every_dimension_is_like_a_column_of_its_own(
    run_process, run_cli, tmp_path, source, expected
):
    scalars, stats = expected
    _, how = source
    before = pq.read_schema(tmp_path / "in.parquet")

    run_process("normalize", "in.parquet", "out", *how, *PARTS).expect(0)

    out = tables.read(tmp_path / "out")
    assert out.schema.field("v").type == before.field("v").type
    assert out["id"].to_pylist() == [str(i) for i in range(ROWS)]
    check(out["v"], scalars)
    found = pe.Scaler.load(tmp_path / "out.polar-etl" / "scaler.json").stats
    assert found.drop("dimension").equals(stats)
    assert found["dimension"].to_list() == list(range(SIZE))
    run_cli("verify", "out").expect(0)
    nothing = run_cli("normalize", "in.parquet", "out", *how, *PARTS, "--json").expect(0)
    assert nothing.summary["nothing_to_do"]


def test_python_gives_the_bits_of_the_command_line(run_cli, tmp_path, source, expected):
    """Scaler.transform and the namespace on LazyFrames, fit and transform on streams and files."""
    name, how = source
    run_cli("fit", "in.parquet", "scaler.json", *how).expect(0)
    run_cli("transform", "in.parquet", "out", "--scaler", "scaler.json", *PARTS).expect(0)
    check(tables.read(tmp_path / "out")["v"], expected[0])
    scaler = pe.Scaler.load(tmp_path / "scaler.json")
    parts = pl.read_parquet(tmp_path / "out")
    path, options = tmp_path / "in.parquet", {"columns": ["v"]} if how else {}
    frame, table = pl.scan_parquet(path), pq.read_table(path)

    lazy = scaler.transform(frame)
    assert lazy.collect_schema() == parts.schema
    for engine in ("in-memory", "streaming"):
        assert lazy.collect(engine=engine).equals(parts)
    assert frame.polar_etl.normalize(**options).collect().equals(parts)
    assert pe.fit(frame, **options).to_json() == scaler.to_json()
    assert pe.fit(table, **options).to_json() == scaler.to_json()
    for number, data in enumerate((frame, table, path)):
        again = pe.transform(data, tmp_path / f"out{number}", scaler=scaler, rows_per_part=4_000)
        assert again.collect().equals(parts)
    if name == "fixed":
        assert frame.with_columns(scaler.expressions()).collect().equals(parts)


@pytest.mark.parametrize("kind", ["int8", "uint16", "int64", "float16", "float32", "float64"])
@pytest.mark.parametrize("dtype", [None, "float32", "float64"])
def test_types_of_numbers(run_cli, tmp_path, kind, dtype):
    values = np.arange(60).reshape(20, 3).astype(kind)
    column = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), 3)
    tables.write(tmp_path / "in.parquet", {"v": column})

    how = ("--dtype", dtype) if dtype else ()
    run_cli("normalize", "in.parquet", "out", *how).expect(0)

    out = dtype or ("float32" if kind in ("float16", "float32") else "float64")
    found = tables.read(tmp_path / "out")["v"]
    assert str(found.type.value_type) == {"float32": "float", "float64": "double"}[out]
    for i in range(3):
        want = tables.reference(values[:, i], *tables.exact_statistics(values[:, i]), out)
        assert [row[i] for row in found.to_pylist()] == pytest.approx(want.tolist(), rel=1e-6)


def test_decimals(run_cli, tmp_path):
    column = pa.array([["1.5", "2"], ["2.5", None]]).cast(pa.list_(pa.decimal128(9, 2), 2))
    tables.write(tmp_path / "in.parquet", {"v": column})
    run_cli("normalize", "in.parquet", "out").expect(0)
    assert tables.read(tmp_path / "out")["v"].to_pylist() == [[-1.0, 0.0], [1.0, None]]


def lists(*rows: object) -> dict[str, pa.Array]:
    return {"x": np.arange(len(rows)), "v": pa.array(rows, pa.list_(pa.float64()))}


def test_lists_pass_through_unless_they_are_named(run_cli, tmp_path):
    tables.write(tmp_path / "in.parquet", lists([1, 2], [3], None))
    plan = run_cli("plan", "in.parquet").expect(0)
    assert "--columns takes it" in plan.stdout
    run_cli("normalize", "in.parquet", "out").expect(0)
    assert tables.read(tmp_path / "out")["v"].to_pylist() == [[1, 2], [3], None]


@pytest.mark.parametrize("pattern", ["v", "*", "^v$"])
def test_lists_of_unequal_lengths_are_refused_with_file_and_row(
    run_process, run_cli, tmp_path, pattern
):
    for name, rows in {"a": [None, [1, 2], [3, 4]], "b": [[5, 6], None, [7, 8, 9]]}.items():
        tables.write(tmp_path / f"in/{name}.parquet", lists(*rows), row_group_size=2)
    before = trees.tree(tmp_path)
    for run, *command in (
        (run_process, "normalize", "in", "out"),
        (run_cli, "fit", "in", "x.json"),
    ):
        refused = run(*command, "--columns", pattern).expect(4)
        assert "'v' holds 3 numbers in row 2 " in refused.stderr
        assert "b.parquet" in refused.stderr
        assert "2 were expected" in refused.stderr
    assert trees.tree(tmp_path) == before


def test_transform_refuses_lists_of_another_length(run_cli, tmp_path):
    tables.write(tmp_path / "train.parquet", lists([1, 2], [3, 5]))
    tables.write(tmp_path / "test.parquet", lists([1, 2, 3]))
    tables.write(
        tmp_path / "array.parquet", {"v": pa.array([[1.0] * 3], pa.list_(pa.float64(), 3))}
    )
    run_cli("fit", "train.parquet", "scaler.json", "--columns", "v").expect(0)
    for name, words in {"test": "row 0", "array": "vectors of 2 numbers"}.items():
        refused = run_cli("transform", f"{name}.parquet", "out", "--scaler", "scaler.json").expect(
            4
        )
        assert words in refused.stderr
    scaler = pe.Scaler.load(tmp_path / "scaler.json")
    with pytest.raises(pe.InputError, match="vectors of 2 numbers"):
        scaler.transform(pl.scan_parquet(tmp_path / "array.parquet"))
    with pytest.raises(pe.InputError, match="row 0"):
        scaler.transform(pl.scan_parquet(tmp_path / "test.parquet")).collect()


def test_a_scaler_of_arrays_fits_lists_of_that_length(run_cli, tmp_path):
    rows = [[1.0, 2.0], None, [3.0, 5.0]]
    tables.write(tmp_path / "fixed.parquet", {"v": pa.array(rows, pa.list_(pa.float64(), 2))})
    tables.write(tmp_path / "lists.parquet", {"v": pa.array(rows)})
    run_cli("fit", "fixed.parquet", "scaler.json").expect(0)
    run_cli("transform", "lists.parquet", "out", "--scaler", "scaler.json").expect(0)
    assert tables.read(tmp_path / "out")["v"].to_pylist() == [[-1, -1], None, [1, 1]]


@pytest.mark.parametrize("rows", [[None, None], [[], []], []])
def test_lists_that_tell_no_length_are_refused(run_cli, tmp_path, rows):
    tables.write(tmp_path / "in.parquet", lists(*rows))
    refused = run_cli("normalize", "in.parquet", "out", "--columns", "v").expect(4)
    assert "how many dimensions" in refused.stderr


def test_empty_tables_and_columns_of_nulls(run_cli, tmp_path):
    kind = pa.list_(pa.float32(), 3)
    for number, rows in enumerate(([], [None, None])):
        tables.write(tmp_path / f"{number}.parquet", {"v": pa.array(rows, kind)})
        run_cli("normalize", f"{number}.parquet", f"out{number}").expect(0)
        found = tables.read(tmp_path / f"out{number}")["v"]
        assert found.type == kind
        assert found.to_pylist() == rows


def test_infinities_are_named_with_dimension_and_row(run_cli, tmp_path):
    rows = [[1.0, 2.0], [3.0, np.inf], [5.0, 6.0]]
    strict = pa.list_(pa.field("element", pa.float64(), nullable=False), 2)
    tables.write(tmp_path / "in.parquet", {"v": pa.array(rows, strict)})
    refused = run_cli("normalize", "in.parquet", "out").expect(4)
    assert "'v[1]' (1)" in refused.stderr
    assert "row 1" in refused.stderr
    run_cli("normalize", "in.parquet", "passed", "--inf", "ignore").expect(0)
    assert tables.read(tmp_path / "passed")["v"].to_pylist()[1][1] == np.inf
    run_cli("normalize", "in.parquet", "made", "--inf", "null").expect(0)
    made = tables.read(tmp_path / "made")["v"].to_pylist()
    assert [row[1] for row in made] == [-1, None, 1]
    assert made[1][0] == 0


def test_plan_and_selection(run_cli, tmp_path):
    columns = {"x": np.arange(ROWS), "v": FIXED, "w": FIXED}
    tables.write(tmp_path / "in.parquet", columns)
    text = run_cli("plan", "in.parquet", "--exclude", "w").expect(0).stdout
    assert "'v' of 6 dimensions" in text
    fields = run_cli("plan", "in.parquet", "--json", "--columns", "w").expect(0).summary
    assert fields["vectors"] == {"w": 6}
    assert fields["passed_columns"] == {"x": "not selected", "v": "not selected"}


def test_files_must_agree_on_the_dimensions(run_cli, tmp_path):
    for name, size in {"a": 2, "b": 3}.items():
        column = pa.array([[1.0] * size], pa.list_(pa.float64(), size))
        tables.write(tmp_path / f"in/{name}.parquet", {"v": column})
    refused = run_cli("normalize", "in", "out").expect(4)
    assert "'v'" in refused.stderr
    assert "[2], found" in refused.stderr


def test_a_column_may_be_called_like_a_dimension(run_cli, tmp_path):
    columns = {"v[0]": [1.0, 3.0], "v": pa.array([[5.0], [9.0]], pa.list_(pa.float64(), 1))}
    tables.write(tmp_path / "in.parquet", columns)
    run_cli("normalize", "in.parquet", "out").expect(0)
    found = tables.read(tmp_path / "out")
    assert found["v[0]"].to_pylist() == [-1, 1]
    assert found["v"].to_pylist() == [[-1], [1]]
    scaler = pe.Scaler.load(tmp_path / "out.polar-etl" / "scaler.json")
    assert scaler.stats["column"].to_list() == ["v[0]", "v[0]"]
    assert scaler.stats["dimension"].to_list() == [None, 0]
    assert scaler.stats["mean"].to_list() == [2, 7]


def test_scalers_of_vectors_merge(run_cli, tmp_path):
    for name, rows in {"a": slice(0, 4000), "b": slice(4000, ROWS)}.items():
        tables.write(tmp_path / f"in/{name}.parquet", {"v": FIXED[rows]})
        run_cli("fit", f"in/{name}.parquet", f"{name}.json").expect(0)
    run_cli("fit", "in", "both.json").expect(0)
    merged = pe.Scaler.merge([pe.Scaler.load(tmp_path / f"{name}.json") for name in "ab"])
    assert merged.to_json() == (tmp_path / "both.json").read_text()
    other = pe.fit(pl.LazyFrame({"v": [1.0]}))
    with pytest.raises(pe.UsageError, match="vectors differ"):
        pe.Scaler.merge([merged, other])


@pytest.mark.parametrize(
    ("how", "threads"),
    [
        ({"row_group_size": 317}, 1),
        ({"row_group_size": 100_000}, 3),
        ({"row_group_size": 2_000, "compression": "none", "data_page_size": 1000}, 2),
    ],
    ids=["tiny groups", "one group", "tiny pages"],
)
def test_the_same_bytes_however_rows_are_cut(run_process, run_cli, tmp_path, how, threads):
    size, rows = 200, 21_000
    draw = np.random.default_rng(0)
    flat = pa.array(draw.normal(3, 2, rows * size).astype(np.float32))
    missing = pa.array(draw.random(rows) < 0.05)
    table = pa.table({"v": pa.FixedSizeListArray.from_arrays(flat, size, mask=missing)})
    tables.write(tmp_path / "usual.parquet", table, row_group_size=7_000)
    tables.write(tmp_path / "in.parquet", table, **how)
    run_cli("normalize", "usual.parquet", "usual", *PARTS).expect(0)
    small = run_process("normalize", "in.parquet", "out", *PARTS, "--memory-limit", "1MB").expect(7)
    limit = small.stderr.split("--memory-limit ")[1].split()[0]
    options = ("--memory-limit", limit, "--threads", threads)
    run_process("normalize", "in.parquet", "out", *PARTS, *options).expect(0)
    assert trees.result(tmp_path / "out") == trees.result(tmp_path / "usual")


def test_a_run_that_lost_a_part_and_its_end_is_resumed_to_the_same_bytes(run_process, tmp_path):
    tables.write(tmp_path / "in.parquet", {"v": COLUMNS["list"]})
    command = ("normalize", "in.parquet", "out", "--columns", "v", *PARTS)
    run_process(*command).expect(0)
    before = trees.result(tmp_path / "out")
    (tmp_path / "out" / "part-00001.parquet").unlink()
    run_process(*command).expect(0)
    assert trees.result(tmp_path / "out") == before


def test_the_scaler_file_has_a_row_per_dimension(run_cli, tmp_path):
    tables.write(tmp_path / "in.parquet", {"x": np.arange(ROWS), "v": FIXED})
    run_cli("fit", "in.parquet", "scaler.json").expect(0)
    table = json.loads((tmp_path / "scaler.json").read_text())["table"]
    assert table["column"] == ["x", *(f"v[{i}]" for i in range(SIZE))]
    assert table["dimension"] == [None, *range(SIZE)]
    assert {len(values) for values in table.values()} == {SIZE + 1}
