"""`verify --deep`: every page is decoded, rows are counted, moments held against the scaler."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from support import tables, trees

from polar_etl.storage.parts import digest_of

DRAW = np.random.default_rng(7)
NORMAL = DRAW.standard_normal(3000)
GAPS = DRAW.random(3000) < 0.2

TABLES = {
    "of every kind": tables.mixed(3000),
    "narrow floats": tables.floats(3000, 5),
    "far from zero": pa.table({f"c{e}": NORMAL + 10.0**e for e in range(0, 16, 3)}),
    "large and small": pa.table({f"c{e}": NORMAL * 10.0**e for e in (-320, -300, -40, 40, 307)}),
    "nulls and NaN": pa.table(
        {"x": pa.array(np.where(GAPS, np.nan, NORMAL), mask=DRAW.random(3000) < 0.1)}
    ),
    "constant": pa.table({"c": [2.5] * 50, "z": [0] * 50, "n": pa.nulls(50, pa.float64())}),
    "one row": pa.table({"x": [1.0], "i": [7]}),
    "no rows": pa.table({"x": pa.array([], pa.float32())}),
    "nothing numeric": pa.table({"s": ["a", "b"]}),
    "integers": pa.table({"i": [2**62 + i * 10**9 for i in range(500)], "b": [-1, 1] * 250}),
    "decimals": pa.table({"d": [Decimal(i) / 7 for i in range(300)]}),
    "one far out": pa.table({"x": [1e12, *NORMAL.tolist()]}),
}


@pytest.mark.parametrize("options", [[], ["--ddof", "1", "--dtype", "float32"]], ids=str)
@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
def test_what_we_write_passes(run_cli, tmp_path, table, options):
    tables.write(tmp_path / "in.parquet", table, row_group_size=700)
    run_cli("normalize", "in.parquet", "out", "--rows-per-part", 900, *options).expect(0)
    before = trees.tree(tmp_path)
    run_cli("verify", "out", "--deep").expect(0)
    run_cli("verify", "out", "--deep", "--json", "--threads", 1).expect(0)
    assert trees.tree(tmp_path) == before


@pytest.mark.parametrize("policy", ["ignore", "null"])
def test_infinities_are_counted_as_they_were_treated(run_cli, tmp_path, policy):
    values = [np.inf, 1.0, None, -np.inf, np.nan, 3.0]
    tables.write(tmp_path / "in.parquet", pa.table({"x": values, "flat": [1.0, np.inf] * 3}))
    run_cli("normalize", "in.parquet", "out", "--inf", policy).expect(0)
    run_cli("verify", "out", "--deep").expect(0)


def test_what_a_given_scaler_makes_of_other_rows_passes(run_cli, tmp_path):
    tables.write(tmp_path / "train.parquet", {"x": [1.0, 2.0], "s": ["a", "b"]})
    tables.write(tmp_path / "test.parquet", {"x": [7.0, None, 9.0], "s": ["a", "b", "c"]})
    run_cli("fit", "train.parquet", "scaler.json").expect(0)
    run_cli("transform", "test.parquet", "out", "--scaler", "scaler.json").expect(0)
    run_cli("verify", "out", "--deep").expect(0)


@pytest.fixture
def finished(run_cli, tmp_path):
    """tmp_path with a finished out/ of three parts of x (float64), y (float32) and s (text)."""
    table = pa.table(
        {
            "x": pa.array(NORMAL * 3 + 5, mask=GAPS),
            "y": NORMAL.astype(np.float32),
            "s": pa.array(["some text", "more"] * 1500),
        }
    )
    tables.write(tmp_path / "in.parquet", table)
    run_cli("normalize", "in.parquet", "out", "--rows-per-part", 1000).expect(0)
    return tmp_path


def forge(folder, content: bytes, part: str = "part-00001.parquet") -> None:
    """Replace a part, and have the manifest say that this is the one."""
    path = folder / "out" / part
    path.write_bytes(content)
    with closing(sqlite3.connect(trees.state_of(folder / "out") / "manifest.db")) as manifest:
        manifest.execute(
            "UPDATE batches SET digest = ?, bytes_out = ? WHERE part = ?",
            (digest_of(path), len(content), part),
        )
        manifest.commit()


def rewritten(folder, change, part: str = "part-00001.parquet") -> bytes:
    table = change(pq.ParquetFile(folder / "out" / part).read())
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    return sink.getvalue().to_pybytes()


def with_column(name, change):
    def changed(table):
        return table.set_column(table.column_names.index(name), name, change(table.column(name)))

    return changed


def first_becomes(value):
    return lambda column: pa.chunked_array(
        [pa.array([value], column.type), *column.slice(1).chunks]
    )


CHANGES = {
    "a row less": (lambda table: table.slice(1), "999 rows instead of 1000"),
    "a null more": (with_column("y", first_becomes(None)), "'y': 1 nulls instead of 0"),
    "a NaN more": (with_column("y", first_becomes(np.nan)), "'y': 1 NaN instead of 0"),
    "another value": (with_column("y", first_becomes(100.0)), "'y' has another mean"),
    "scaled": (
        with_column("x", lambda x: pc.multiply(x, pa.scalar(1 + 1e-9))),
        "'x' has another deviation",
    ),
    "moved": (with_column("x", lambda x: pc.add(x, pa.scalar(1e-9))), "'x' has another mean"),
    "another type": (with_column("x", lambda x: x.cast(pa.float32())), "differs in schema"),
    "a column less": (lambda table: table.drop(["y"]), "column"),
}


@pytest.mark.parametrize(("change", "said"), CHANGES.values(), ids=CHANGES)
def test_a_part_with_other_values_is_found(run_cli, finished, change, said):
    forge(finished, rewritten(finished, change))
    run_cli("verify", "out").expect(0)
    assert said in run_cli("verify", "out", "--deep").expect(5).stderr


def test_parts_that_all_lack_a_column_are_found(run_cli, finished):
    for number in range(3):
        name = f"part-{number:05d}.parquet"
        forge(finished, rewritten(finished, lambda table: table.drop(["y"]), name), name)
    assert "no column 'y'" in run_cli("verify", "out", "--deep").expect(5).stderr


@pytest.mark.parametrize("column", ["x", "y", "s"])
def test_a_flipped_bit_in_any_column_is_found(run_cli, finished, column):
    """The forged manifest knows the hash of the damaged file: the checksum of the page is left."""
    content = bytearray((finished / "out" / "part-00001.parquet").read_bytes())
    metadata = pq.read_metadata(finished / "out" / "part-00001.parquet")
    chunk = metadata.row_group(0).column(metadata.schema.names.index(column))
    content[chunk.data_page_offset + chunk.total_compressed_size // 2] ^= 1
    forge(finished, bytes(content))
    run_cli("verify", "out").expect(0)
    assert "part-00001" in run_cli("verify", "out", "--deep").expect(5).stderr


def test_a_part_that_is_missing_or_damaged_is_found_before(run_cli, finished):
    (finished / "out" / "part-00002.parquet").unlink()
    assert "part-00002.parquet: missing" in run_cli("verify", "out", "--deep").expect(5).stderr
    run_cli("normalize", "in.parquet", "out", "--rows-per-part", 1000).expect(0)
    run_cli("verify", "out", "--deep").expect(0)


def edited(text):
    fields = json.loads(text)
    fields["table"]["sum"][0] *= 1 + 1e-15
    return json.dumps(fields)


SCALERS = {
    "gone": None,
    "empty": lambda _: "",
    "another object": lambda _: "{}",
    "a space more": lambda text: text + " ",
    "edited": edited,
}


@pytest.mark.parametrize("deep", [[], ["--deep"]], ids=["", "deep"])
@pytest.mark.parametrize("change", SCALERS.values(), ids=SCALERS)
def test_a_scaler_that_is_gone_or_damaged_is_found_and_mended(run_cli, finished, change, deep):
    path = trees.state_of(finished / "out") / "scaler.json"
    before = path.read_text()
    path.unlink()
    if change is not None:
        path.write_text(change(before))
    assert "scaler.json" in run_cli("verify", "out", *deep).expect(5).stderr
    again = ("normalize", "in.parquet", "out", "--rows-per-part", 1000)
    if change is not None:
        assert "Remove it" in run_cli(*again).expect(5).stderr
        path.unlink()
    run_cli(*again).expect(0)
    assert path.read_text() == before
    run_cli("verify", "out", *deep).expect(0)


def test_too_little_memory_is_said(run_cli, finished):
    run_cli("verify", "out", "--deep", "--memory-limit", "20MB").expect(7)
