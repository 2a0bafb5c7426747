"""generate -> normalize -> status -> verify, and the result in the eyes of every reader."""

from __future__ import annotations

import json
from pathlib import Path

import duckdb
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from support import tables, trees


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with in.parquet of all kinds of columns and its finished out/ of several parts."""
    from support import cli

    folder = tmp_path_factory.mktemp("finished")
    tables.write(folder / "in.parquet", tables.mixed(5000), row_group_size=700)
    cli.run("normalize", "in.parquet", "out", "--rows-per-part", 1100, cwd=folder).expect(0)
    return folder


def test_the_whole_way_of_a_table(run_process, tmp_path):
    run_process(
        *("generate", "demo.parquet", "--chunks", 3, "--rows", 4000, "--cols", 7),
        *("--dtype", "float64", "--null-fraction", 0.1, "--truth", "truth.parquet"),
    ).expect(0)
    made = run_process("normalize", "demo.parquet", "out/", "--json").expect(0).summary
    assert (made["rows"], made["columns"], made["normalized_columns"]) == (12000, 7, 7)

    status = run_process("status", "out", "--json").expect(0).summary
    assert status["finished"] is True
    assert (
        status["parts_done"]
        == status["parts"]
        == made["parts"]
        == len(trees.parts(tmp_path / "out"))
    )
    assert status["missing"] == []
    assert (status["rows"], status["fitted_rows"]) == (12000, 12000)
    assert status["bytes_out"] == made["bytes_out"]
    assert "finished" in run_process("status", "out").expect(0).stdout
    assert run_process("verify", "out", "--json").expect(0).summary["problems"] == []

    truth = pq.read_table(tmp_path / "truth.parquet").to_pydict()
    source = pq.read_table(tmp_path / "demo.parquet")
    assert truth["column"] == source.column_names
    for name, mean, scale in zip(*truth.values(), strict=True):
        found = np.array([v for v in source[name].to_pylist() if v is not None])
        assert abs(found.mean() - mean) < 6 * scale / len(found) ** 0.5
        assert abs(found.std() / scale - 1) < 0.1
        z = np.array([v for v in tables.read(tmp_path / "out")[name].to_pylist() if v is not None])
        assert len(z) == len(found)
        assert abs(z.mean()) < 1e-9
        assert abs(z.std() - 1) < 1e-9


def test_generate_is_deterministic_and_refuses_to_overwrite(run_cli, tmp_path):
    for name in ("a", "b"):
        run_cli("generate", f"{name}.parquet", "--rows", 300, "--cols", 3, "--seed", 7).expect(0)
    run_cli("generate", "c.parquet", "--rows", 300, "--cols", 3, "--seed", 8).expect(0)
    one, same, other = (tmp_path / f"{name}.parquet" for name in "abc")
    assert one.read_bytes() == same.read_bytes() != other.read_bytes()
    before = trees.tree(tmp_path)
    run_cli("generate", "a.parquet", "--rows", 10).expect(2)
    assert trees.tree(tmp_path) == before


@pytest.mark.parametrize(
    "reader",
    [
        lambda out: pl.scan_parquet(f"{out}/").collect().to_arrow(),
        lambda out: ds.dataset(out).to_table(),
        lambda out: pq.read_table(f"{out}/"),
        lambda out: duckdb.sql(f"SELECT * FROM '{out}/*.parquet'").to_arrow_table(),
    ],
    ids=["polars", "pyarrow.dataset", "pyarrow.parquet", "duckdb"],
)
def test_readers_need_no_options(finished, reader):
    source = pq.read_table(finished / "in.parquet")
    found = reader(finished / "out")
    assert found.column_names == source.column_names
    assert found.num_rows == source.num_rows
    for name in ("text", "flag", "fixed"):
        assert found[name].to_pylist() == source[name].to_pylist()
    for name in tables.NORMALIZED_OF_MIXED:
        mean, std = tables.statistics(finished / "out", name)
        single = source.schema.field(name).type == pa.float32()
        values = np.array([np.nan if v is None else v for v in source[name].to_pylist()])
        expected = tables.reference(values, mean, std, "float32" if single else "float64")
        got = np.array([np.nan if v is None else v for v in found[name].to_pylist()])
        tables.assert_bits(got.astype(expected.dtype), expected)


def plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return a column without its dictionary, which may be ordered otherwise."""
    is_dictionary = pa.types.is_dictionary(column.type)
    return column.cast(column.type.value_type) if is_dictionary else column


def test_columns_that_are_not_numeric_pass_through_identically(finished):
    source, found = pq.read_table(finished / "in.parquet"), tables.read(finished / "out")
    passed = [name for name in source.column_names if name not in tables.NORMALIZED_OF_MIXED]
    assert len(passed) == 13
    for name in passed:
        assert found.schema.field(name).equals(source.schema.field(name)), name
        assert plain(found[name]).equals(plain(source[name])), name
        assert found[name].null_count == source[name].null_count, name


def test_metadata_of_schema_and_fields_is_kept(run_cli, tmp_path):
    schema = pa.schema(
        [
            pa.field("x", pa.float64(), nullable=False, metadata={"unit": "m"}),
            pa.field("s", pa.string(), metadata={"note": "a"}),
        ],
        metadata={"origin": "test"},
    )
    table = pa.Table.from_arrays([pa.array([1.0, 2.0]), pa.array(["a", "b"])], schema=schema)
    tables.write(tmp_path / "in.parquet", table)
    run_cli("normalize", "in.parquet", "out").expect(0)
    found = pq.read_schema(tmp_path / "out" / "part-00000.parquet")
    assert found.metadata[b"origin"] == b"test"
    assert found.field("s").metadata[b"note"] == b"a"
    assert not found.field("x").nullable


def test_null_masks_and_order_are_kept(finished):
    source, found = pq.read_table(finished / "in.parquet"), tables.read(finished / "out")
    for name in tables.NORMALIZED_OF_MIXED:
        assert found[name].is_null().to_pylist() == source[name].is_null().to_pylist()
    z = found["id"].to_numpy()
    assert (np.diff(z) > 0).all()


def test_statistics_are_right_to_the_last_digits(finished):
    source = pq.read_table(finished / "in.parquet")
    for name in tables.NORMALIZED_OF_MIXED:
        values = pc.cast(source[name].drop_null(), pa.float64()).to_numpy()
        mean, std = tables.exact_statistics(values)
        found = tables.statistics(finished / "out", name)
        assert found[0] == pytest.approx(mean, rel=5e-16, abs=0)
        assert found[1] == pytest.approx(std, rel=1e-15, abs=0)


def test_output_is_centred_and_scaled(finished):
    found = tables.read(finished / "out")
    for name in ("id", "x", "n"):
        z = found[name].drop_null().to_numpy()
        assert abs(z.mean()) < 1e-9, name
        assert abs(z.std() - 1) < 1e-9, name


def test_parts_have_checksums_and_zstd(finished):
    for path in sorted((finished / "out").iterdir()):
        metadata = pq.read_metadata(path)
        kinds = {
            metadata.row_group(g).column(c).compression
            for g in range(metadata.num_row_groups)
            for c in range(metadata.num_columns)
        }
        assert kinds == {"ZSTD"}
        pq.read_table(path, page_checksum_verification=True).validate(full=True)


def test_all_columns_pass_through_when_none_is_numeric(run_cli, tmp_path):
    source = pa.table({"s": ["b", None, "a"], "f": [True, False, None]})
    tables.write(tmp_path / "in.parquet", source)
    made = run_cli("normalize", "in.parquet", "out", "--json").expect(0).summary
    assert made["normalized_columns"] == 0
    assert tables.read(tmp_path / "out").equals(source)
    assert run_cli("normalize", "in.parquet", "out", "--json").expect(0).summary["nothing_to_do"]


def test_fit_then_transform_gives_the_same_parts_as_normalize(run_cli, tmp_path, finished):
    source = finished / "in.parquet"
    run_cli("fit", source, "scaler.json").expect(0)
    how = ("--scaler", "scaler.json", "--rows-per-part", 1100)
    run_cli("transform", source, "twin", *how).expect(0)
    assert trees.parts(tmp_path / "twin") == trees.parts(finished / "out")
    assert (tmp_path / "scaler.json").read_bytes() == trees.scaler_bytes(finished / "out")
    again = run_cli("transform", source, "twin", *how, "--json").expect(0).summary
    assert again["nothing_to_do"] is True


def test_fit_never_writes_over_its_input(run_cli, tmp_path):
    for name in ("a.parquet", "b.parquet"):
        tables.write(tmp_path / name, {"x": [1.0, 2.0, 3.0]})
    (tmp_path / "folder").mkdir()
    (tmp_path / "link.json").symlink_to("b.parquet")
    before = (tmp_path / "b.parquet").read_bytes()
    for forgotten in ("b.parquet", "folder", "link.json", "/dev/null"):
        refused = run_cli("fit", "a.parquet", forgotten).expect(2)
        assert forgotten in refused.stderr
    assert "create it" in run_cli("fit", "a.parquet", "absent/scaler.json").expect(2).stderr
    assert (tmp_path / "b.parquet").read_bytes() == before
    run_cli("fit", "a.parquet", "scaler.json").expect(0)
    run_cli("fit", "b.parquet", "scaler.json", "--ddof", 1).expect(0)
    assert json.loads((tmp_path / "scaler.json").read_text())["ddof"] == 1


def test_transform_of_other_rows_uses_the_statistics_that_were_fitted(run_cli, tmp_path):
    tables.write(tmp_path / "old.parquet", {"x": [1.0, 2.0, 3.0], "s": ["a", "b", "c"]})
    tables.write(tmp_path / "new.parquet", {"x": [10.0, None], "s": ["d", "e"]})
    run_cli("fit", "old.parquet", "scaler.json", "--ddof", 1).expect(0)
    run_cli("transform", "new.parquet", "out", "--scaler", "scaler.json").expect(0)
    assert tables.read(tmp_path / "out").to_pydict() == {"x": [8.0, None], "s": ["d", "e"]}


def test_transform_refuses_what_the_scaler_does_not_fit(run_cli, tmp_path):
    tables.write(tmp_path / "old.parquet", {"x": [1.0, 2.0, 3.0]})
    tables.write(tmp_path / "lacks.parquet", {"y": [1.0]})
    tables.write(tmp_path / "type.parquet", {"x": [1, 2]})
    run_cli("fit", "old.parquet", "scaler.json").expect(0)
    before = trees.names(tmp_path)
    for name in ("lacks", "type"):
        refused = run_cli("transform", f"{name}.parquet", "out", "--scaler", "scaler.json").expect(
            4
        )
        assert "'x'" in refused.stderr
    assert run_cli("transform", "old.parquet", "out", "--scaler", "none.json").expect(2, 4)
    assert trees.names(tmp_path) == before


def test_scaler_file_is_plain_json(finished):
    fields = json.loads(trees.scaler_bytes(finished / "out"))
    assert fields["table"]["column"] == list(tables.NORMALIZED_OF_MIXED)
    assert fields["table"]["null_count"][1] > 0
