"""Names that were made to do harm: of columns, of files, of directories."""

from __future__ import annotations

import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support import cli, tables, trees

COLUMNS = (
    "../x",
    "../../../../etc/passwd",
    "/etc/passwd",
    "a\nb",
    "\r\noverwritten",
    "\x1b[31mred\x1b[2J",
    "\x9b31m",
    "\x07bell",
    "tab\there",
    "'single'",
    '"double"',
    "`back`",
    "$(reboot)",
    "; DROP TABLE batches; --",
    "{0}",
    "%s%n",
    "[red]markup[/red]",
    "🦆",
    "日本語",
    "e\u0301",
    "\u202eright to left",
    "*",
    "^.*$",
    "a.b",
    " ",
    "a\\",
    "x" * 65536,
    "NaN",
    "__index_level_0__",
    "part-00000.parquet",
)


def hostile_table(values) -> pa.Table:
    return pa.Table.from_arrays([pa.array(values)] * len(COLUMNS), names=list(COLUMNS))


def test_hostile_column_names_are_names_like_others(run_cli, tmp_path):
    tables.write(tmp_path / "in.parquet", hostile_table([1.0, 2.0, 3.0]))
    made = run_cli("normalize", "in.parquet", "out", "--json").expect(0).summary
    assert made["normalized_columns"] == len(COLUMNS)
    found = pq.read_table(tmp_path / "out" / "part-00000.parquet")
    assert tuple(found.column_names) == COLUMNS
    for column in found.columns:
        assert column.to_pylist() == pytest.approx([-(1.5**0.5), 0, 1.5**0.5])
    assert trees.names(tmp_path) >= {"in.parquet", "out/part-00000.parquet"}
    assert trees.leftovers(tmp_path / "out") == []
    run_cli("verify", "out").expect(0)
    run_cli("status", "out").expect(0)
    assert run_cli("normalize", "in.parquet", "out", "--json").summary["nothing_to_do"] is True
    run_cli("fit", "in.parquet", "scaler.json").expect(0)
    run_cli("transform", "in.parquet", "twin", "--scaler", "scaler.json").expect(0)
    assert trees.parts(tmp_path / "twin") == trees.parts(tmp_path / "out")


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_hostile_names_in_messages(run_cli, tmp_path, log_format):
    """Warnings about constants, refused infinities, plans, and what is not numeric."""
    how = ("--log-format", log_format)
    tables.write(tmp_path / "flat.parquet", hostile_table([1.0, 1.0]))
    run_cli("normalize", "flat.parquet", "flat", *how).expect(0)
    tables.write(tmp_path / "inf.parquet", hostile_table([1.0, np.inf]))
    run_cli("normalize", "inf.parquet", "inf", *how).expect(4)
    for number, name in enumerate(COLUMNS):
        single = {name: [np.inf], "other": ["text"]}
        tables.write(tmp_path / "one" / f"{number:02d}.parquet", single)
    run_cli("normalize", "one", "one-out", *how).expect(4)
    tables.write(tmp_path / "text.parquet", hostile_table(["a", "b"]))
    run_cli("plan", "text.parquet", *how).expect(0)
    run_cli("plan", "text.parquet", "--json", *how).expect(0)


@pytest.mark.parametrize("name", COLUMNS, ids=lambda name: ascii(name)[:30])
def test_one_hostile_column_that_is_refused(run_cli, tmp_path, name):
    tables.write(tmp_path / "in.parquet", {name: [np.inf, 1.0]})
    refused = run_cli("normalize", "in.parquet", "out").expect(4)
    assert len(refused.stderr.strip().splitlines()) == 1
    assert len(refused.stderr) < 5000
    assert trees.names(tmp_path) == {"in.parquet"}


def test_hostile_names_in_arguments(run_cli, tmp_path):
    tables.write(tmp_path / "in.parquet", {"x": [1.0, 2.0]})
    for name in COLUMNS:
        if len(name) < 1000 and name not in ("*", "^.*$"):
            run_cli("normalize", "in.parquet", "out", "--columns", name).expect(2)
            assert trees.names(tmp_path) == {"in.parquet"}


def test_a_column_with_an_empty_name(run_cli, tmp_path):
    tables.write(tmp_path / "in.parquet", pa.Table.from_arrays([pa.array([1.0, 3.0])], names=[""]))
    run_cli("normalize", "in.parquet", "out").expect(0)
    found = pq.read_table(tmp_path / "out" / "part-00000.parquet")
    assert found.column_names == [""]
    assert found.column(0).to_pylist() == [-1.0, 1.0]


@pytest.mark.parametrize("name", ["x", "", "\x1b[31m", "a\nb"])
def test_duplicate_names_are_refused(run_cli, tmp_path, name):
    columns = [pa.array([1.0]), pa.array(["a"])]
    tables.write(tmp_path / "in.parquet", pa.Table.from_arrays(columns, names=[name, name]))
    refused = run_cli("normalize", "in.parquet", "out").expect(4)
    assert "two columns" in refused.stderr
    assert trees.names(tmp_path) == {"in.parquet"}


def test_a_name_with_a_nul(run_cli, tmp_path):
    tables.write(tmp_path / "in.parquet", pa.table({"a\0b": [1.0, 3.0], "a": [1.0, np.inf]}))
    done = run_cli("normalize", "in.parquet", "out", "--inf", "ignore").expect(0, 4)
    if done.code == 0:
        assert pq.read_table(tmp_path / "out" / "part-00000.parquet").column_names == ["a\0b", "a"]
    run_cli("normalize", "in.parquet", "other").expect(4)


FILES = (
    b"a\nb.parquet",
    b"\x1b[31mred.parquet",
    b"bell\x07.parquet",
    b"'quoted'\".parquet",
    b"sp ace.parquet",
    b"$(reboot).parquet",
    b"[ab]*?.parquet",
    b"{x}.parquet",
    b"%s.parquet",
    b"[red]x.parquet",
    b"\xff\xfe.parquet",
    "日本🦆.parquet".encode(),
    "\u202etxt.parquet".encode(),
    b"-rf.parquet",
    b"--overwrite.parquet",
    b"x" * 200 + b".parquet",
    b"#?&=file:.parquet",
)


@pytest.mark.parametrize("name", FILES, ids=lambda name: ascii(name)[2:30])
def test_hostile_file_names(shell, tmp_path, name):
    name = os.fsdecode(name)
    here = tmp_path / "here"
    here.mkdir()
    path = tables.write(here / "plain.parquet", {"x": [1.0, 2.0], "c": [1.0, 1.0]})
    path.rename(here / name)
    source = f"./{name}"
    done = cli.run("normalize", source, f"./{name}.out", cwd=here)
    if b"\xff" in os.fsencode(name) and done.code == 4:  # Arrow takes no path that is not Unicode
        done.mannered()
        assert set(os.listdir(here)) == {name}
        return
    done.expect(0)
    assert "'c'" in done.stderr
    assert set(os.listdir(here)) == {name, f"{name}.out", f"{name}.out.polar-etl"}
    for command in ("status", "verify"):
        shell.run(command, f"./{name}.out", cwd=here).expect(0)
        shell.run(command, f"./{name}.out", "--json", cwd=here).expect(0)
    assert shell.run("normalize", source, f"./{name}.out", "--json", cwd=here).summary[
        "nothing_to_do"
    ]
    os.utime(here / name, ns=(1, 1))
    refused = shell.run("normalize", source, f"./{name}.out", cwd=here).expect(5)
    assert len(refused.stderr.strip().splitlines()) == 1
    shell.run("fit", source, f"./{name}.json", cwd=here).expect(0)
    (here / name).write_bytes(b"junk")
    for flags in ([], ["--json"]):
        shell.run("normalize", source, f"./{name}.new", *flags, cwd=here).expect(4)
        shell.run("normalize", source, f"./{name}.out", *flags, cwd=here).expect(4)
        shell.run("status", f"./{name}.new", *flags, cwd=here).expect(5)


@pytest.mark.parametrize("name", FILES[:3], ids=lambda name: ascii(name)[2:30])
def test_the_command_to_go_on_is_safe_to_show(tmp_path, name):
    """A run that fails tells its own command, whose words are the file names."""
    name = os.fsdecode(name)
    tables.write(tmp_path / "in.parquet", {"x": [1.0, 2.0]})
    (tmp_path / "in.parquet").rename(tmp_path / name)
    (tmp_path / "blocked").write_text("a file, where the parent of the output should be")
    failed = cli.run("normalize", f"./{name}", "blocked/out", cwd=tmp_path).expect(1, 2)
    assert trees.names(tmp_path) == {name, "blocked"}
    assert failed.stderr


def test_a_directory_of_hostile_names(run_cli, tmp_path):
    for number, name in enumerate(sorted(n for n in FILES if b"\xff" not in n)):
        tables.write(tmp_path / "plain.parquet", {"x": [float(number)]})
        (tmp_path / "data").mkdir(exist_ok=True)
        (tmp_path / "plain.parquet").rename(tmp_path / "data" / os.fsdecode(name))
    made = run_cli("normalize", "data", "out", "--json").expect(0).summary
    assert made["rows"] == len(FILES) - 1
    assert (np.diff(tables.read(tmp_path / "out")["x"].to_numpy()) > 0).all()


def test_hostile_values_pass_through(run_cli, tmp_path):
    values = ["\x1b[31m", "a\0b", "'; DROP TABLE", "", "\u202e", "x" * 100_000, None]
    source = pa.table({"s": values, "b": [v and v.encode() for v in values], "x": range(7)})
    tables.write(tmp_path / "in.parquet", source)
    run_cli("normalize", "in.parquet", "out").expect(0)
    assert tables.read(tmp_path / "out").drop(["x"]).equals(source.drop(["x"]))
