"""What may be given as input, and what is refused before anything is written."""

from __future__ import annotations

import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support import cli, tables, trees

ROWS = 3000


@pytest.fixture
def pieces(tmp_path):
    """A folder `data` of a table cut into unlike files, and the whole of it in whole.parquet."""
    whole = tables.mixed(ROWS)
    tables.write(tmp_path / "whole.parquet", whole)
    cuts = [(0, 1), (1, 0), (1, 999), (1000, 0), (1000, 1500), (2500, 500)]
    for number, (start, length) in enumerate(cuts):
        tables.write(
            tmp_path / "data" / f"{number}.parquet",
            whole.slice(start, length),
            row_group_size=[100, 7, 1, 1000, 333, 500][number],
        )
    return tmp_path


@pytest.mark.parametrize(
    "inputs",
    [
        ["data"],
        ["data/"],
        ["data/*.parquet"],
        ["data/[0-5].parquet"],
        ["data/**/*.parquet"],
        [f"data/{number}.parquet" for number in range(6)],
        ["data/0.parquet", "data/[1-3].parquet", "data/4.parquet", "data/5.parquet"],
    ],
    ids=["directory", "slash", "glob", "class", "recursive", "files", "both"],
)
def test_many_files_are_one_table(run_cli, pieces, inputs):
    made = run_cli("normalize", *inputs, "out", "--json").expect(0).summary
    assert made["rows"] == ROWS
    found, source = tables.read(pieces / "out"), pq.read_table(pieces / "whole.parquet")
    for name in ("text", "blob", "list", "category"):
        assert found[name].to_pylist() == source[name].to_pylist()
    mean, std = tables.statistics(pieces / "out", "id")
    expected = tables.reference(np.arange(ROWS), mean, std, "float64")
    tables.assert_bits(found["id"].to_numpy(), expected)
    exact = tables.exact_statistics(np.arange(ROWS))
    assert (mean, std) == pytest.approx(exact, rel=5e-16)


def test_files_are_taken_in_the_given_order(run_cli, tmp_path):
    for name, first in (("a", 0), ("b", 10), ("c", 20)):
        tables.write(tmp_path / "data" / f"{name}.parquet", {"x": range(first, first + 3)})
    run_cli("normalize", "data/c.parquet", "data/a.parquet", "data/b.parquet", "out").expect(0)
    mean, std = tables.statistics(tmp_path / "out", "x")
    expected = (np.array([20, 21, 22, 0, 1, 2, 10, 11, 12], float) - mean) / std
    tables.assert_bits(tables.read(tmp_path / "out")["x"].to_numpy(), expected)


def test_files_in_subfolders_are_found_and_hidden_ones_are_not(run_cli, tmp_path):
    tables.write(tmp_path / "data" / "b" / "1.parquet", {"x": [3.0]})
    tables.write(tmp_path / "data" / "a" / "2.parquet", {"x": [1.0, 2.0]})
    tables.write(tmp_path / "data" / "_temporary" / "3.parquet", {"x": [100.0]})
    tables.write(tmp_path / "data" / ".hidden.parquet", {"x": [100.0]})
    tables.write(tmp_path / "data" / "_metadata.parquet", {"y": [100.0]})
    (tmp_path / "data" / "README.txt").write_text("words")
    made = run_cli("normalize", "data", "out", "--json").expect(0).summary
    assert made["rows"] == 3
    assert np.argsort(tables.read(tmp_path / "out")["x"].to_numpy()).tolist() == [0, 1, 2]


@pytest.mark.parametrize("rows", [0, 1, 2])
def test_tables_of_very_few_rows(run_cli, tmp_path, rows):
    source = tables.mixed(2).slice(0, rows)
    tables.write(tmp_path / "in.parquet", source)
    made = run_cli("normalize", "in.parquet", "out", "--json").expect(0).summary
    assert made["rows"] == rows
    found = tables.read(tmp_path / "out")
    assert found.num_rows == rows
    assert found.column_names == source.column_names
    assert found["text"].to_pylist() == source["text"].to_pylist()
    assert found["id"].to_pylist() == [[], [0.0], [-1.0, 1.0]][rows]
    assert run_cli("normalize", "in.parquet", "out", "--json").expect(0).summary["nothing_to_do"]
    run_cli("verify", "out").expect(0)


def test_empty_row_groups(run_cli, tmp_path):
    schema = pa.schema([("x", pa.float64()), ("s", pa.string())])
    with pq.ParquetWriter(tmp_path / "in.parquet", schema) as writer:
        for values in ([], [1.0, 2.0], [], [], [3.0], []):
            rows = {"x": values, "s": [str(v) for v in values]}
            writer.write_table(pa.table(rows, schema=schema))
    assert pq.read_metadata(tmp_path / "in.parquet").num_row_groups >= 4
    run_cli("normalize", "in.parquet", "out").expect(0)
    found = tables.read(tmp_path / "out").to_pydict()
    assert found["s"] == ["1.0", "2.0", "3.0"]
    assert found["x"] == pytest.approx([-(1.5**0.5), 0, 1.5**0.5])


def test_no_row_groups_at_all(run_cli, tmp_path):
    schema = pa.schema([("x", pa.int8()), ("s", pa.string())])
    with pq.ParquetWriter(tmp_path / "in.parquet", schema):
        pass
    assert pq.read_metadata(tmp_path / "in.parquet").num_row_groups == 0
    run_cli("normalize", "in.parquet", "out").expect(0)
    found = tables.read(tmp_path / "out")
    assert found.schema.types == [pa.float64(), pa.string()]
    assert found.num_rows == 0


@pytest.mark.parametrize(
    ("other", "named"),
    [
        ({"x": [1.0], "z": ["a"]}, ["'y'", "'z'"]),
        ({"x": [1.0], "y": [1]}, ["'y'", "string", "int64"]),
        ({"x": [1.0]}, ["'y'"]),
        ({"x": [1.0], "y": ["a"], "more": [1]}, ["'more'"]),
        ({"y": ["a"], "x": [1.0]}, ["order"]),
    ],
    ids=["renamed", "type", "missing", "new", "order"],
)
def test_schemas_that_differ_are_refused_with_the_difference(run_cli, tmp_path, other, named):
    tables.write(tmp_path / "data" / "1.parquet", {"x": [1.0], "y": ["a"]})
    tables.write(tmp_path / "data" / "2.parquet", other)
    before = trees.tree(tmp_path)
    refused = run_cli("normalize", "data", "out").expect(4)
    for text in ("2.parquet", *named):
        assert text in refused.stderr
    assert trees.tree(tmp_path) == before


@pytest.mark.parametrize(
    ("inputs", "code", "named"),
    [
        (["nowhere.parquet"], 4, "nowhere.parquet"),
        (["good.parquet", "nowhere.parquet"], 4, "nowhere.parquet"),
        (["nowhere/*.parquet"], 4, "nowhere"),
        (["hollow"], 4, "hollow"),
        (["words.parquet"], 4, "words.parquet"),
        (["void.parquet"], 4, "void.parquet"),
        (["good.parquet", "words.parquet"], 4, "words.parquet"),
        (["columnless.parquet"], 4, "columnless.parquet"),
    ],
)
def test_unreadable_input_is_refused_and_leaves_nothing(run_cli, tmp_path, inputs, code, named):
    tables.write(tmp_path / "good.parquet", {"x": [1.0]})
    (tmp_path / "hollow").mkdir()
    (tmp_path / "hollow" / "notes.txt").write_text("words")
    (tmp_path / "words.parquet").write_text("these are words, no columns" * 10)
    (tmp_path / "void.parquet").write_bytes(b"")
    pq.write_table(pa.table({}), tmp_path / "columnless.parquet")
    before = trees.tree(tmp_path)
    for command in (("normalize", *inputs, "out"), ("plan", *inputs), ("fit", *inputs, "s.json")):
        refused = run_cli(*command).expect(code)
        assert named in refused.stderr
        assert len(refused.stderr.strip().splitlines()) == 1
        assert trees.tree(tmp_path) == before


def test_truncated_file_is_refused(run_cli, tmp_path):
    path = tables.write(tmp_path / "in.parquet", tables.floats(1000, 3))
    path.write_bytes(path.read_bytes()[:-100])
    before = trees.tree(tmp_path)
    assert "in.parquet" in run_cli("normalize", "in.parquet", "out").expect(4).stderr
    assert trees.tree(tmp_path) == before


def test_page_whose_checksum_is_wrong_is_refused(run_cli, tmp_path):
    path = tmp_path / "in.parquet"
    tables.write(path, tables.floats(5000, 3), write_page_checksum=True, compression="none")
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    path.write_bytes(damaged)
    before = trees.tree(tmp_path)
    assert "in.parquet" in run_cli("normalize", "in.parquet", "out").expect(4).stderr
    assert trees.tree(tmp_path) == before


def test_output_inside_the_input_directory_never_reads_its_own_parts(run_cli, tmp_path):
    tables.write(tmp_path / "data" / "1.parquet", {"x": [1.0, 2.0]})
    before = trees.tree(tmp_path)
    first = run_cli("normalize", "data", "data/out")
    if first.code == 0:
        again = run_cli("normalize", "data", "data/out", "--json").expect(0)
        assert again.summary["nothing_to_do"] is True
        assert tables.read(tmp_path / "data" / "out").num_rows == 2
    else:
        first.expect(2)
        assert trees.tree(tmp_path) == before


def test_a_dry_run_counts_what_the_run_would_read(run_cli, tmp_path):
    tables.write(tmp_path / "data" / "1.parquet", {"x": [1.0, 2.0]})
    run_cli("normalize", "data", "data/out").expect(0)
    plan = run_cli("normalize", "data", "data/out", "--dry-run", "--json").expect(0).summary
    assert (plan["files"], plan["rows"]) == (1, 2)
    run_cli("normalize", "data/out", "data/out", "--dry-run").expect(2)


def test_input_inside_the_output_is_refused(run_cli, tmp_path):
    tables.write(tmp_path / "out" / "1.parquet", {"x": [1.0, 2.0]})
    before = trees.tree(tmp_path)
    for out in ("out", "./out/", tmp_path / "out"):
        run_cli("normalize", "out/1.parquet", out).expect(2)
        run_cli("normalize", "out", out, "--overwrite").expect(2, 4)
    assert trees.tree(tmp_path) == before


def test_output_that_links_to_the_folder_of_the_input_is_refused(run_cli, tmp_path):
    tables.write(tmp_path / "data" / "part-00000.parquet", {"x": [1.0, 2.0]})
    (tmp_path / "out").symlink_to("data")
    before = trees.tree(tmp_path)
    run_cli("normalize", "data/part-00000.parquet", "out", "--overwrite").expect(1, 2, 5)
    assert trees.tree(tmp_path)["data/part-00000.parquet"] == before["data/part-00000.parquet"]


def test_output_that_is_a_file_is_refused(run_cli, tmp_path):
    tables.write(tmp_path / "in.parquet", {"x": [1.0, 2.0]})
    (tmp_path / "out").write_text("mine")
    before = trees.tree(tmp_path)
    run_cli("normalize", "in.parquet", "out").expect(2)
    run_cli("normalize", "in.parquet", "out", "--overwrite").expect(2)
    assert trees.tree(tmp_path) == before


def test_input_through_a_symbolic_link(run_cli, tmp_path):
    tables.write(tmp_path / "real.parquet", {"x": [1.0, 2.0]})
    (tmp_path / "link.parquet").symlink_to("real.parquet")
    run_cli("normalize", "link.parquet", "out").expect(0)
    assert tables.read(tmp_path / "out")["x"].to_pylist() == [-1.0, 1.0]


def test_a_path_that_is_not_utf8(tmp_path):
    """PyArrow takes none; file systems do."""
    tables.write(tmp_path / "in.parquet", {"x": [1.0, 2.0], "t": ["a", "b"]})
    path, out = (os.fsdecode(name) for name in (b"caf\xe9.parquet", b"out\xe9"))
    (tmp_path / "in.parquet").rename(tmp_path / path)
    for _ in range(2):
        cli.run("normalize", path, out, cwd=tmp_path).expect(0)
    cli.run("verify", "--deep", out, cwd=tmp_path).expect(0)
    (part,) = (tmp_path / out).iterdir()
    with part.open("rb") as file:
        assert pq.read_table(file)["x"].to_pylist() == [-1.0, 1.0]


def test_special_files_are_refused_at_once(run_cli, tmp_path):
    os.mkfifo(tmp_path / "pipe.parquet")
    for path in ("/dev/null", "/dev/zero", "pipe.parquet"):
        run_cli("normalize", path, "out", deadline=20).expect(4)
    assert trees.names(tmp_path) == {"pipe.parquet"}
