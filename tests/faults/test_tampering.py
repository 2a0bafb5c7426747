"""State that somebody changed: it is data, not code, and answered with a documented exit code."""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import sqlite3
from contextlib import closing

import numpy as np
import pytest
from support import cli, tables, trees

import polar_etl as pe

HOW = ("--rows-per-part", 500)
COMMAND = ("normalize", "in.parquet", "out", *HOW)


@pytest.fixture
def finished(tmp_path):
    """tmp_path with in.parquet and its finished out/ of four parts."""
    tables.write(tmp_path / "in.parquet", tables.mixed(2000), row_group_size=300)
    pe.normalize(tmp_path / "in.parquet", tmp_path / "out", rows_per_part=500)
    return tmp_path


@pytest.fixture
def manifest(finished):
    return trees.state_of(finished / "out") / "manifest.db"


def execute(manifest, statement, *values):
    with closing(sqlite3.connect(manifest)) as connection:
        connection.execute(statement, values)
        connection.commit()


def assert_survives(run_cli, folder) -> None:
    """Check every command on a tampered run, and that the run can be had again."""
    expected = trees.parts(folder / "out")
    outside = {n: c for n, c in trees.tree(folder).items() if not n.startswith("out")}
    for command in ("status", "verify"):
        run_cli(command, "out").expect(0, 5)
    again = run_cli(*COMMAND).expect(0, 5)
    assert trees.parts(folder / "out") == expected
    if again.code == 5:
        assert "--overwrite" in again.stderr
        run_cli(*COMMAND, "--overwrite").expect(0)
        assert trees.parts(folder / "out") == expected
    run_cli("verify", "out").expect(0)
    assert {n: c for n, c in trees.tree(folder).items() if not n.startswith("out")} == outside


CONTENTS = {
    "empty": b"",
    "one byte": b"x",
    "words": b"this is not a database " * 500,
    "header only": b"SQLite format 3\0",
    "header and garbage": b"SQLite format 3\0" + bytes(range(256)) * 64,
    "zeros": bytes(8192),
}


@pytest.mark.parametrize("content", CONTENTS.values(), ids=CONTENTS)
def test_a_manifest_that_is_something_else(run_cli, finished, manifest, content):
    for suffix in ("-wal", "-shm"):
        manifest.with_name(manifest.name + suffix).unlink(missing_ok=True)
    manifest.write_bytes(content)
    assert_survives(run_cli, finished)


@pytest.mark.parametrize("at", [0, 16, 18, 28, 44, 100, 105, 1000, 4096, 4100, 8200, 12300, 16390])
def test_a_manifest_with_a_damaged_byte(run_cli, finished, manifest, at):
    content = bytearray(manifest.read_bytes())
    content[at % len(content)] ^= 0xFF
    manifest.write_bytes(content)
    assert_survives(run_cli, finished)


@pytest.mark.parametrize("size", [50, 4096, 9000])
def test_a_truncated_manifest(run_cli, finished, manifest, size):
    os.truncate(manifest, size)
    assert_survives(run_cli, finished)


def test_a_write_ahead_log_of_garbage(run_cli, finished, manifest):
    manifest.with_name("manifest.db-wal").write_bytes(os.urandom(5000))
    assert_survives(run_cli, finished)


def test_another_database(run_cli, finished, manifest):
    manifest.unlink()
    execute(manifest, "CREATE TABLE facts (name, value)")
    execute(manifest, "CREATE TABLE other (a, b)")
    assert_survives(run_cli, finished)


def test_a_database_whose_tables_are_views_that_never_end(run_cli, finished, manifest):
    execute(manifest, "DROP TABLE moments")
    execute(
        manifest,
        "CREATE VIEW moments AS WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n "
        "LIMIT 100000) SELECT i AS file, i AS rows, x'00' AS state FROM n",
    )
    assert_survives(run_cli, finished)


def test_a_manifest_that_is_a_link_is_not_followed(run_cli, finished, manifest):
    elsewhere = finished / "elsewhere.db"
    shutil.copy(manifest, elsewhere)
    manifest.unlink()
    manifest.symlink_to(elsewhere)
    assert_survives(run_cli, finished)


def directory(path, target):
    path.mkdir()
    shutil.copy(target, path)


def pipe(path, target):
    os.mkfifo(path)


def link(path, target):
    path.symlink_to(target)


def link_to_nothing(path, target):
    path.symlink_to(target.with_name("nothing"))


def endless_link(path, target):
    path.symlink_to("/dev/zero")


STATE_FILES = (
    *("lock", "scaler.json", "tmp", "manifest.db"),
    *("manifest.db-wal", "manifest.db-shm", "manifest.db-journal"),
)


@pytest.mark.parametrize("make", [directory, pipe, link, link_to_nothing, endless_link])
@pytest.mark.parametrize("name", STATE_FILES)
def test_something_else_where_a_file_of_the_state_belongs(run_cli, finished, name, make):
    """Refused with what is in the way, or replaced; never followed, and never waited for."""
    precious = finished / "precious"
    precious.write_text("precious")
    expected = trees.result(finished / "out")
    path = trees.state_of(finished / "out") / name
    if path.is_dir():
        path.rmdir()
    path.unlink(missing_ok=True)
    make(path, precious)
    for command in (("status", "out"), ("verify", "out"), ("verify", "out", "--deep")):
        run_cli(*command, deadline=30).expect(0, 5)
    for command in (COMMAND, (*COMMAND, "--overwrite")):
        done = run_cli(*command, deadline=30).expect(0, 5)
    if make is directory:
        assert (path / "precious").read_text() == "precious", "what is in it is not ours"
        (path / "precious").unlink()
    if done.code == 5:
        assert "remove it" in done.stderr
        path.rmdir() if make is directory else path.unlink()
        run_cli(*COMMAND, "--overwrite").expect(0)
    assert trees.result(finished / "out") == expected
    run_cli("verify", "out", "--deep").expect(0)
    assert precious.read_text() == "precious"
    assert trees.names(finished) == {
        *("in.parquet", "precious", "out", *(f"out/{name}" for name in expected[0])),
        *("out.polar-etl", *(f"out.polar-etl/{n}" for n in STATE_FILES[:4])),
    }


@pytest.mark.parametrize("name", ["lock", "scaler.json", "tmp"])
def test_links_in_the_state_directory_are_not_followed(run_cli, finished, name):
    target = finished / "precious"
    target.mkdir()
    (target / "file").write_text("precious")
    path = trees.state_of(finished / "out") / name
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    path.symlink_to(target if name == "tmp" else target / "file")
    (finished / "out" / "part-00001.parquet").unlink()
    done = run_cli(*COMMAND).expect(0, 1, 5)
    assert (target / "file").read_text() == "precious"
    assert trees.names(target) == {"file"}
    if done.code == 0:
        run_cli("verify", "out").expect(0)


@pytest.mark.parametrize("when", ["before the first run", "between two runs"])
@pytest.mark.parametrize("name", ["out", "out.polar-etl"])
def test_directories_that_are_links_are_not_written_through(run_cli, tmp_path, name, when):
    tables.write(tmp_path / "in.parquet", tables.mixed(2000), row_group_size=300)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "part-00003.parquet").write_text("precious")
    if when == "between two runs":
        run_cli(*COMMAND).expect(0)
        shutil.rmtree(tmp_path / name)
    (tmp_path / name).symlink_to("elsewhere")
    for more in ([], ["--overwrite"]):
        run_cli(*COMMAND, *more).expect(1, 2, 5)
        assert trees.tree(tmp_path / "elsewhere") == {"part-00003.parquet": b"precious"}


@pytest.mark.parametrize("target", ["elsewhere", "nowhere"])
def test_a_state_directory_that_is_a_link_is_named(run_cli, tmp_path, target):
    tables.write(tmp_path / "in.parquet", tables.floats(10, 2))
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "mine").symlink_to(target)
    before = trees.tree(tmp_path)
    refused = run_cli(*COMMAND, "--state-dir", "mine").expect(5)
    assert "mine' is a symbolic link: remove it" in refused.stderr
    assert trees.tree(tmp_path) == before


FACTS = ("input", "settings", "versions", "parts", "rows", "format", "projected_peak", "finished")


@pytest.mark.parametrize(
    "value", ["{", '"\\u001b[31m"', "[1, 2]", "-5", "null", '{"files": 3}', "1e999"]
)
def test_facts_of_another_kind(run_cli, finished, manifest, value):
    original = manifest.read_bytes()
    for name in FACTS:
        manifest.write_bytes(original)
        execute(manifest, "UPDATE facts SET value = ? WHERE name = ?", value, name)
        for command in (("status", "out"), ("verify", "out"), COMMAND):
            run_cli(*command).expect(0, 5)
    manifest.write_bytes(original)
    run_cli(*COMMAND).expect(0)


ROWS = [
    ("part", "../precious"),
    ("part", "/etc/passwd"),
    ("part", "part-00001.parquet\0"),
    ("part", "\x1b[31mpart"),
    ("part", None),
    ("part", 7),
    ("part", "part-00000.parquet"),
    ("digest", "0" * 32),
    ("digest", None),
    ("digest", b"\xff\xfe"),
    ("batch", 77),
    ("batch", -1),
    ("batch", 2**62),
    ("rows", -5),
    ("rows", "many"),
    ("rows", 2**62),
    ("rows", 1.5),
    ("first_row", b"x"),
    ("file", 99),
    ("bytes_out", -1),
    ("bytes_out", "\x1b[2J"),
    ("peak", "high"),
    ("rss", b"\xff"),
    ("seconds", "long"),
    ("pass", "moments"),
    ("pass", "other"),
]


@pytest.mark.parametrize(("column", "value"), ROWS, ids=[f"{c}={v!r}"[:40] for c, v in ROWS])
def test_rows_of_another_kind(run_cli, finished, manifest, column, value):
    (finished / "precious").write_text("precious")
    statement = f"UPDATE batches SET {column} = ? WHERE pass = 'parts' AND batch = 2"
    execute(manifest, statement, value)
    assert_survives(run_cli, finished)
    assert (finished / "precious").read_text() == "precious"


class Exploit:
    def __reduce__(self):
        return os.mkdir, ("exploited",)


def packed(**arrays) -> bytes:
    sink = io.BytesIO()
    np.savez(sink, **arrays)
    return sink.getvalue()


BLOBS = {
    "empty": b"",
    "garbage": b"garbage" * 100,
    "pickle": pickle.dumps(Exploit()),
    "pickle in npz": packed(count=np.array([Exploit()], dtype=object)),
    "no arrays": packed(),
    "other arrays": packed(a=np.zeros(3)),
    "text": "text",
    "number": 5,
}


@pytest.mark.parametrize("blob", BLOBS.values(), ids=BLOBS)
def test_moments_of_another_kind(run_cli, finished, manifest, blob):
    execute(manifest, "UPDATE moments SET state = ?", blob)
    (finished / "out" / "part-00001.parquet").unlink()
    expected = trees.parts(finished / "out")
    refused = run_cli(*COMMAND).expect(0, 5)
    assert not (finished / "exploited").exists()
    assert trees.parts(finished / "out").items() >= expected.items()
    if refused.code == 5:
        run_cli(*COMMAND, "--overwrite").expect(0)
    assert trees.parts(finished / "out").items() >= expected.items()


@pytest.mark.parametrize(
    ("column", "value"), [("file", 5), ("rows", 1234), ("rows", -1), ("rows", "x")]
)
def test_moments_of_other_rows(run_cli, finished, manifest, column, value):
    execute(manifest, f"UPDATE moments SET {column} = ?", value)
    assert_survives(run_cli, finished)


def test_cut_moments(run_cli, finished, manifest):
    with closing(sqlite3.connect(manifest)) as connection:
        (state,) = connection.execute("SELECT state FROM moments").fetchone()
    for length in (1, 100, len(state) // 2, len(state) - 1):
        execute(manifest, "UPDATE moments SET state = ?", state[:length])
        run_cli(*COMMAND).expect(0, 5)
    for at in range(50, len(state), len(state) // 10):
        damaged = bytearray(state)
        damaged[at] ^= 0xFF
        execute(manifest, "UPDATE moments SET state = ?", bytes(damaged))
        (finished / "out" / "part-00001.parquet").unlink(missing_ok=True)
        expected = trees.parts(finished / "out")
        done = run_cli(*COMMAND).expect(0, 5)
        assert trees.parts(finished / "out").items() >= expected.items(), done


SCALERS = {
    "empty": "",
    "words": "words",
    "list": "[]",
    "number": "5",
    "no table": '{"format": "polar-etl scaler 1"}',
    "deep": "[" * 100_000,
    "escape": '"\\u001b[31m"',
}


@pytest.mark.parametrize("text", SCALERS.values(), ids=SCALERS)
def test_scaler_files_of_another_kind(run_cli, finished, text):
    (finished / "scaler.json").write_text(text)
    before = trees.names(finished)
    run_cli("transform", "in.parquet", "new", "--scaler", "scaler.json").expect(4)
    assert trees.names(finished) == before
    run_cli(*COMMAND).expect(0)


@pytest.mark.parametrize("make", [directory, pipe, link_to_nothing, endless_link])
def test_a_scaler_that_is_no_file(run_cli, finished, make):
    make(finished / "scaler.json", finished / "in.parquet")
    before = trees.names(finished)
    command = ("transform", "in.parquet", "new", "--scaler", "scaler.json")
    run_cli(*command, deadline=30).expect(4)
    assert trees.names(finished) == before


def test_a_scaler_too_large_for_the_memory_limit(run_process, finished):
    (finished / "scaler.json").touch()
    os.truncate(finished / "scaler.json", 10**12)
    command = ("transform", "in.parquet", "new", "--scaler", "scaler.json")
    run_process(*command, "--memory-limit", "512MB").expect(7)
    assert not (finished / "new").exists()


@pytest.mark.parametrize("name", ["parts", "rows"])
def test_counts_of_another_size_are_put_right(run_cli, finished, manifest, name):
    execute(manifest, "UPDATE facts SET value = ? WHERE name = ?", str(10**15), name)
    run_cli("status", "out", deadline=30).expect(0)
    run_cli("verify", "out", deadline=30).expect(0, 5)
    run_cli(*COMMAND).expect(0)
    run_cli("verify", "out", "--deep").expect(0)
    assert run_cli("status", "out", "--json").expect(0).summary["rows"] == 2000


def values_of(fields: dict) -> list[tuple[str, object]]:
    changes: list[tuple[str, object]] = [("ddof", 7), ("inf", "x"), ("dtype", "x"), ("format", "x")]
    for name in fields["table"]:
        for value in ("x", None, [], -1, True, 10**400, 1e308, float("inf"), float("nan"), {}):
            changes.append((name, value))
    return changes


def test_scalers_with_other_values(finished):
    """One process for all of them, because they are many."""
    import subprocess
    import sys

    original = json.loads(trees.scaler_bytes(finished / "out"))
    (finished / "cases").mkdir()
    for number, (name, value) in enumerate(values_of(original)):
        fields = json.loads(json.dumps(original))
        if name in fields["table"]:
            fields["table"][name][0] = value
        else:
            fields[name] = value
        (finished / "cases" / f"{number:04d}.json").write_text(json.dumps(fields))
    code = (
        "import pathlib, polar_etl as pe\n"
        "for path in sorted(pathlib.Path('cases').iterdir()):\n"
        "    try: found = pe.Scaler.load(path); found.stats; found.standardizer()\n"
        "    except pe.PolarEtlError as error:\n"
        "        assert error.exit_code == 4 and str(error).isprintable(), error\n"
        "    except Exception as error: print(path.read_text()[:5000], repr(error))\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=finished,
        env=cli.environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
