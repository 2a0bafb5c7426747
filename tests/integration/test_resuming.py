"""The same command again: nothing to do, repaired, refused, or begun anew."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from contextlib import closing
from dataclasses import replace
from datetime import datetime

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support import tables, trees

import polar_etl as pe
from polar_etl.events import BatchFinished
from polar_etl.statistics.scaler import Scaler
from polar_etl.storage.manifest import Manifest

HOW = ("--rows-per-part", 500)


@pytest.fixture
def finished(tmp_path):
    """tmp_path with in.parquet and its finished out/ of four parts."""
    source = tables.write(tmp_path / "in.parquet", tables.mixed(2000), row_group_size=300)
    pe.normalize(source, tmp_path / "out", rows_per_part=500)
    return tmp_path


def test_a_finished_run_has_nothing_to_do(run_cli, finished):
    before = trees.tree(finished / "out"), trees.batch_rows(finished / "out")
    stamps = [path.stat().st_mtime_ns for path in sorted((finished / "out").iterdir())]
    said = run_cli("normalize", "in.parquet", "out", *HOW).expect(0)
    assert "nothing to do" in said.stdout.lower()
    summary = run_cli("normalize", "in.parquet", "out", *HOW, "--json").expect(0).summary
    assert summary["nothing_to_do"] is True
    assert summary["resumed_batches"] == summary["batches"] > 0
    assert (trees.tree(finished / "out"), trees.batch_rows(finished / "out")) == before
    assert [p.stat().st_mtime_ns for p in sorted((finished / "out").iterdir())] == stamps


@pytest.mark.parametrize("options", [["--memory-limit", "900MB"], ["--threads", "1"]])
def test_what_changes_no_bit_may_change_between_runs(run_cli, finished, options):
    (finished / "out" / "part-00002.parquet").unlink()
    run_cli("normalize", "in.parquet", "out", *HOW, *options).expect(0)
    run_cli("verify", "out").expect(0)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--rows-per-part", "501"], "--rows-per-part"),
        ([*HOW, "--ddof", "1"], "--ddof"),
        ([*HOW, "--dtype", "float32"], "--dtype"),
        ([*HOW, "--inf", "null"], "--inf"),
        ([*HOW, "--compression-level", "3"], "--compression-level"),
        ([*HOW, "--exclude", "x"], "normalized columns are now without 'x'."),
        ([*HOW, "--columns", "list*", "--columns", "y"], "without 'id', 'x', 'n', with 'list'."),
        ([], "--rows-per-part"),
    ],
    ids=["rows-per-part", "ddof", "dtype", "inf", "level", "columns", "other columns", "left out"],
)
def test_other_settings_are_refused_with_what_changed(run_cli, finished, options, named):
    before = trees.tree(finished)
    refused = run_cli("normalize", "in.parquet", "out", *options).expect(5)
    assert named in refused.stderr
    assert "--overwrite" in refused.stderr
    after = trees.tree(finished)
    for name in before:
        assert name.endswith(("-shm", "-wal", "lock")) or after[name] == before[name], name
    run_cli("normalize", "in.parquet", "out", *HOW).expect(0)


def rewrite_other_values(folder):
    tables.write(folder / "in.parquet", tables.mixed(2000, seed=1), row_group_size=300)


def rewrite_same_size(folder):
    path = folder / "in.parquet"
    stamps = path.stat()
    content = bytearray(path.read_bytes())
    content[1000] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(stamps.st_atime_ns, stamps.st_mtime_ns + 1))


def touch(folder):
    path = folder / "in.parquet"
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))


def rewrite_with_the_old_time(folder):
    stamp = (folder / "in.parquet").stat().st_mtime_ns
    rewrite_other_values(folder)
    os.utime(folder / "in.parquet", ns=(stamp, stamp))


@pytest.mark.parametrize(
    "change", [rewrite_other_values, rewrite_same_size, touch, rewrite_with_the_old_time]
)
def test_changed_input_is_refused(run_cli, finished, change):
    parts = trees.parts(finished / "out")
    change(finished)
    refused = run_cli("normalize", "in.parquet", "out", *HOW).expect(5)
    assert "in.parquet" in refused.stderr
    assert trees.parts(finished / "out") == parts


def change_unseen(folder):
    """Change a value; path, size, time and footer stay as they are."""
    path = folder / "in.parquet"
    stamps = path.stat()
    content = bytearray(path.read_bytes())
    content[1000] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(stamps.st_atime_ns, stamps.st_mtime_ns))


def test_check_input_full_sees_every_byte(run_cli, tmp_path):
    tables.write(tmp_path / "in.parquet", tables.mixed(2000), row_group_size=300)
    command = ("normalize", "in.parquet", "out", *HOW)
    run_cli(*command, "--check-input", "full").expect(0)
    run_cli(*command, "--check-input", "full").expect(0)
    run_cli(*command).expect(0)
    change_unseen(tmp_path)
    run_cli(*command).expect(0)
    refused = run_cli(*command, "--check-input", "full").expect(5)
    assert "in.parquet contents was" in refused.stderr


def test_check_input_full_needs_a_hash_to_compare_with(run_cli, finished):
    refused = run_cli("normalize", "in.parquet", "out", *HOW, "--check-input", "full").expect(5)
    assert "contents was 'not recorded'" in refused.stderr
    run_cli("normalize", "in.parquet", "out", *HOW).expect(0)


def test_more_or_other_files_are_refused(run_cli, finished):
    shutil.copy(finished / "in.parquet", finished / "more.parquet")
    both = ("in.parquet", "more.parquet")
    more = run_cli("normalize", *both, "out", *HOW).expect(5)
    assert f"files are now with '{finished}/more.parquet'." in more.stderr
    other = run_cli("normalize", "more.parquet", "out", *HOW).expect(5)
    assert f"without '{finished}/in.parquet', with '{finished}/more.parquet'." in other.stderr
    twice = run_cli("normalize", "in.parquet", "in.parquet", "out", *HOW).expect(5)
    assert "1 files, now 2." in twice.stderr
    run_cli("normalize", *both, "two").expect(0)
    swapped = run_cli("normalize", *reversed(both), "two").expect(5)
    assert "files are now in another order." in swapped.stderr


def test_what_changed_is_told_in_a_few_words(run_cli, tmp_path):
    for number in range(30):
        tables.write(tmp_path / "data" / f"{number}.parquet", {"x": [1.0, 2.0]})
    run_cli("normalize", "data", "out").expect(0)
    for number in range(30):
        tables.write(tmp_path / "data" / f"{number}.parquet", {"x": [1.0, 2.0, 3.0]})
    refused = run_cli("normalize", "data", "out").expect(5)
    assert "more differences." in refused.stderr
    assert len(refused.stderr) < 2000


def test_other_library_versions_are_refused(run_cli, finished):
    with closing(sqlite3.connect(trees.state_of(finished / "out") / "manifest.db")) as manifest:
        (text,) = manifest.execute("SELECT value FROM facts WHERE name='versions'").fetchone()
        versions = {**json.loads(text), "pyarrow": "0.0.1"}
        manifest.execute(
            "UPDATE facts SET value = ? WHERE name = 'versions'", (json.dumps(versions),)
        )
        manifest.commit()
    refused = run_cli("normalize", "in.parquet", "out", *HOW).expect(5)
    assert "pyarrow" in refused.stderr
    assert "0.0.1" in refused.stderr


def test_parts_of_another_shape_are_refused(run_cli, finished):
    with closing(sqlite3.connect(trees.state_of(finished / "out") / "manifest.db")) as manifest:
        plan = json.dumps({"rows of a part": 500, "rows of a row group": 250})
        manifest.execute("UPDATE facts SET value = ? WHERE name = 'plan'", (plan,))
        manifest.commit()
    refused = run_cli("normalize", "in.parquet", "out", *HOW).expect(5)
    assert "other plan: rows of a row group was '250'" in refused.stderr


def test_moments_that_make_another_scaler_are_refused(run_cli, finished):
    before = trees.parts(finished / "out")
    (finished / "out" / "part-00001.parquet").unlink()
    with Manifest.open(trees.state_of(finished / "out") / "manifest.db") as manifest:
        width = len(Scaler.load(trees.state_of(finished / "out") / "scaler.json").features)
        rows, moments = manifest.moments(width)[0]
        changed = replace(moments, sum=np.nextafter(moments.sum, np.inf))
        manifest.record_moments([], {0: (rows, changed)})
    refused = run_cli("normalize", "in.parquet", "out", *HOW).expect(5)
    assert "another scaler" in refused.stderr
    assert trees.parts(finished / "out").items() < before.items()


def remove(path):
    path.unlink()


def truncate(path):
    os.truncate(path, 100)


def empty(path):
    os.truncate(path, 0)


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x40
    path.write_bytes(content)


def lengthen(path):
    with path.open("ab") as file:
        file.write(b"x")


def replace_by_link(path):
    path.rename(path.parents[1] / "elsewhere.parquet")
    path.symlink_to("../elsewhere.parquet")


def replace_by_neighbour(path):
    shutil.copy(path.with_name("part-00000.parquet"), path)


@pytest.mark.parametrize(
    "damage", [remove, truncate, empty, flip, lengthen, replace_by_link, replace_by_neighbour]
)
def test_a_damaged_part_is_written_again_and_the_user_is_told(run_cli, finished, damage):
    before, rows = trees.result(finished / "out"), trees.batch_rows(finished / "out", "parts")
    damage(finished / "out" / "part-00002.parquet")
    found = run_cli("verify", "out").expect(5)
    assert "part-00002.parquet" in found.stderr
    assert "part-00001.parquet" not in found.stderr
    mended = run_cli("normalize", "in.parquet", "out", *HOW).expect(0)
    assert "part-00002.parquet" in mended.stderr
    assert trees.result(finished / "out") == before
    after = trees.batch_rows(finished / "out", "parts")
    assert [row for row in after if row[1] != 2] == [row for row in rows if row[1] != 2]
    run_cli("verify", "out").expect(0)


def test_all_parts_lost(run_cli, finished):
    before = trees.result(finished / "out")
    shutil.rmtree(finished / "out")
    moments = trees.batch_rows(finished / "out", "moments")
    run_cli("normalize", "in.parquet", "out", *HOW).expect(0)
    assert trees.result(finished / "out") == before
    assert trees.batch_rows(finished / "out", "moments") == moments


def test_a_scaler_that_was_changed_in_the_state_is_refused(run_cli, finished):
    before = trees.result(finished / "out")
    path = trees.state_of(finished / "out") / "scaler.json"
    fields = json.loads(path.read_text())
    fields["table"]["sum"][0] += 1e6
    path.write_text(json.dumps(fields))
    (finished / "out" / "part-00001.parquet").unlink()
    refused = run_cli("normalize", "in.parquet", "out", *HOW).expect(5)
    assert "scaler.json" in refused.stderr
    assert "Remove it" in refused.stderr
    path.unlink()
    run_cli("normalize", "in.parquet", "out", *HOW).expect(0)
    assert trees.result(finished / "out") == before


def test_verify_and_status_report_what_is_missing(run_cli, finished):
    with closing(sqlite3.connect(trees.state_of(finished / "out") / "manifest.db")) as manifest:
        manifest.execute("DELETE FROM batches WHERE pass = 'parts' AND batch = 3")
        manifest.commit()
    status = run_cli("status", "out", "--json").expect(0).summary
    assert status["missing"] == [3]
    run_cli("verify", "out").expect(5)
    run_cli("normalize", "in.parquet", "out", *HOW).expect(0)
    run_cli("verify", "out").expect(0)


def test_a_part_that_no_manifest_knows_is_found_by_verify(run_cli, finished):
    shutil.copy(finished / "out" / "part-00000.parquet", finished / "out" / "part-00009.parquet")
    assert (
        "part-00009.parquet: no manifest row, remove it"
        in run_cli("verify", "out").expect(5).stderr
    )


@pytest.mark.parametrize("command", ["status", "verify"])
def test_where_there_is_no_run(run_cli, tmp_path, command):
    before = trees.tree(tmp_path)
    run_cli(command, "out").expect(5)
    assert trees.tree(tmp_path) == before


@pytest.mark.parametrize("command", ["status", "verify"])
def test_looking_changes_nothing(run_cli, finished, command):
    before = trees.tree(finished / "out")
    manifest = trees.batch_rows(finished / "out")
    run_cli(command, "out").expect(0)
    assert trees.tree(finished / "out") == before
    assert trees.batch_rows(finished / "out") == manifest
    assert trees.leftovers(finished / "out") == []


def test_overwrite_begins_anew(run_cli, finished):
    rewrite_other_values(finished)
    how = ("--rows-per-part", 900)
    run_cli("normalize", "in.parquet", "fresh", *how).expect(0)
    made = run_cli("normalize", "in.parquet", "out", *how, "--overwrite", "--json").expect(0)
    assert made.summary["resumed_batches"] == 0
    assert trees.result(finished / "out") == trees.result(finished / "fresh")
    assert run_cli("normalize", "in.parquet", "out", *how, "--json").summary["nothing_to_do"]


def spoiled_by_an_infinity(folder):
    tables.write(folder / "in.parquet", {"x": [1.0, 2.0, float("inf")]})


def spoiled_in_the_middle(folder):
    tables.write(folder / "in.parquet", tables.floats(5000, 2), compression="none")
    content = bytearray((folder / "in.parquet").read_bytes())
    content[20_000:20_400] = bytes(400)
    (folder / "in.parquet").write_bytes(content)


def spoiled_at_the_end(folder):
    tables.write(folder / "in.parquet", tables.floats(1000, 2))
    (folder / "in.parquet").write_bytes((folder / "in.parquet").read_bytes()[:-100])


def spoiled_in_the_last_text(folder):
    text = pa.array([b"good"] * 999 + [b"\xff\xfe"]).view(pa.string())
    table = tables.floats(1000, 2).append_column("text", text)
    tables.write(folder / "in.parquet", table, row_group_size=300)


def spoiled_in_the_last_page_of_bytes(folder):
    source = folder / "in.parquet"
    blobs = pa.array([bytes([i % 256]) * 40 for i in range(1000)])
    table = tables.floats(1000, 2).append_column("blob", blobs)
    tables.write(source, table, row_group_size=300, use_dictionary=False, compression="none")
    chunk = pq.read_metadata(source).row_group(3).column(2)
    content = bytearray(source.read_bytes())
    content[chunk.data_page_offset : chunk.data_page_offset + 60] = b"\xff" * 60
    source.write_bytes(content)


SPOILED = [
    spoiled_by_an_infinity,
    spoiled_in_the_middle,
    spoiled_at_the_end,
    spoiled_in_the_last_text,
    spoiled_in_the_last_page_of_bytes,
]


def assert_overwriting_changes_nothing(run_cli, folder, *command):
    """Give a command whose input can't be used."""
    before = trees.tree(folder)
    run_cli(*command, "--overwrite").expect(4)
    after = trees.tree(folder)
    unlike = {name for name in before | after if after.get(name) != before.get(name)}
    assert unlike <= {"out.polar-etl/lock"}
    run_cli("verify", "out", "--deep").expect(0)


@pytest.mark.parametrize("spoil", SPOILED)
def test_overwrite_with_input_that_can_not_be_used_leaves_the_output_as_it_was(
    run_cli, finished, spoil
):
    (finished / "in.parquet").rename(finished / "good.parquet")
    spoil(finished)
    assert_overwriting_changes_nothing(run_cli, finished, "normalize", "in.parquet", "out")


@pytest.mark.parametrize("spoil", SPOILED[1:])  # infinities pass
@pytest.mark.parametrize("earlier", [pe.normalize, pe.transform])
def test_transform_too_leaves_the_output_as_it_was(run_cli, tmp_path, spoil, earlier):
    good = tables.write(tmp_path / "good.parquet", tables.floats(2000, 2))
    scaler = pe.fit(good)
    scaler.save(tmp_path / "scaler.json")
    how = {"scaler": scaler} if earlier is pe.transform else {}
    earlier(good, tmp_path / "out", rows_per_part=500, **how)
    spoil(tmp_path)
    command = ("transform", "in.parquet", "out", "--scaler", "scaler.json", "--rows-per-part", 200)
    assert_overwriting_changes_nothing(run_cli, tmp_path, *command)


def test_transform_overwrites_with_the_bytes_of_a_fresh_run(run_cli, finished):
    run_cli("fit", "in.parquet", "scaler.json").expect(0)
    rewrite_other_values(finished)
    how = ("--scaler", "scaler.json", "--rows-per-part", 300)
    run_cli("transform", "in.parquet", "fresh", *how).expect(0)
    run_cli("transform", "in.parquet", "out", *how, "--overwrite").expect(0)
    assert trees.result(finished / "out") == trees.result(finished / "fresh")
    assert trees.leftovers(finished / "out") == []


def test_the_input_is_checked_only_where_there_is_something_to_lose(finished):
    def passes(out, **how):
        told = []
        pe.normalize(finished / "in.parquet", out, listener=told.append, overwrite=True, **how)
        rows = Counter()
        for event in told:
            rows[event.pass_name] += event.rows if isinstance(event, BatchFinished) else 0
        assert set(rows.values()) == {2000}
        return list(rows)

    assert passes(finished / "fresh") == ["moments", "parts"]
    assert passes(finished / "out", ddof=1, rows_per_part=300) == ["moments", "check", "parts"]


def test_overwrite_where_there_is_nothing(run_cli, tmp_path):
    tables.write(tmp_path / "in.parquet", {"x": [1.0, 2.0]})
    run_cli("normalize", "in.parquet", "out", "--overwrite").expect(0)
    run_cli("verify", "out").expect(0)


@pytest.mark.parametrize(
    ("name", "overwrite"),
    [
        ("mine.txt", False),
        ("mine.txt", True),
        (".hidden", True),
        ("part-1.parquet", True),
        ("part-00000.parquet", False),
        ("part-00000.parquet.bak", True),
        ("_SUCCESS", True),
    ],
)
def test_foreign_files_in_the_output_are_refused_and_untouched(run_cli, tmp_path, name, overwrite):
    tables.write(tmp_path / "in.parquet", {"x": [1.0, 2.0]})
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_text("mine")
    before = trees.tree(tmp_path)
    flag = ["--overwrite"] if overwrite else []
    refused = run_cli("normalize", "in.parquet", "out", *flag).expect(5)
    assert name in refused.stderr
    assert trees.tree(tmp_path) == before


def test_a_foreign_folder_in_the_output_is_refused(run_cli, tmp_path):
    tables.write(tmp_path / "in.parquet", {"x": [1.0, 2.0]})
    tables.write(tmp_path / "out" / "sub" / "part-00000.parquet", {"x": [5.0]})
    before = trees.tree(tmp_path)
    run_cli("normalize", "in.parquet", "out", "--overwrite").expect(5)
    assert trees.tree(tmp_path) == before


def test_a_foreign_state_directory_is_not_emptied(run_cli, tmp_path):
    tables.write(tmp_path / "in.parquet", {"x": [1.0, float("inf")]})
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letters.txt").write_text("dear diary")
    run_cli("normalize", "in.parquet", "out", "--state-dir", "mine").expect(4, 5)
    run_cli("normalize", "in.parquet", "out", "--state-dir", "mine", "--overwrite").expect(4, 5)
    assert (tmp_path / "mine" / "letters.txt").read_text() == "dear diary"


def test_a_state_directory_with_files_of_somebody_else(run_cli, tmp_path):
    tables.write(tmp_path / "in.parquet", {"x": [1.0, 2.0], "y": [1.0, float("inf")]})
    (tmp_path / "mine" / "tmp").mkdir(parents=True)
    (tmp_path / "mine" / "tmp" / "letter").write_text("precious")
    run_cli("normalize", "in.parquet", "out", "--state-dir", "mine").expect(4)
    assert trees.names(tmp_path) == {"in.parquet", "mine", "mine/tmp", "mine/tmp/letter"}
    run_cli("fit", "in.parquet", "mine/scaler.json", "--exclude", "y").expect(0)
    before = trees.tree(tmp_path)
    refused = run_cli("normalize", "in.parquet", "out", "--state-dir", "mine").expect(5)
    assert "scaler.json" in refused.stderr
    after = trees.tree(tmp_path)
    assert {name: after[name] for name in before} == before


def test_state_dir_elsewhere(run_cli, tmp_path):
    tables.write(tmp_path / "in.parquet", tables.floats(1000, 3))
    how = ("--state-dir", "far/state")
    run_cli("normalize", "in.parquet", "out", *how).expect(0)
    assert not trees.state_of(tmp_path / "out").exists()
    assert (tmp_path / "far" / "state" / "manifest.db").is_file()
    again = run_cli("normalize", "in.parquet", "out", *how, "--json").expect(0).summary
    assert again["nothing_to_do"] is True
    assert run_cli("status", "out", *how, "--json").expect(0).summary["finished"] is True
    run_cli("verify", "out", *how).expect(0)
    run_cli("verify", "out").expect(5)


def test_one_run_at_a_time(run_cli, tmp_path):
    tables.write(tmp_path / "in.parquet", {"x": [1.0, 2.0]})
    run_cli("normalize", "in.parquet", "out").expect(0)
    lock = trees.state_of(tmp_path / "out") / "lock"
    before = trees.tree(tmp_path)
    holder = {"pid": 4242, "host": "elsewhere", "since": "2020-01-01T00:00:00+00:00"}
    with lock.open("r+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write(json.dumps(holder))
        file.truncate()
        file.flush()
        for more in ([], ["--overwrite"]):
            refused = run_cli("normalize", "in.parquet", "out", *more).expect(6)
            for text in ("4242", "elsewhere", "2020-01-01"):
                assert text in refused.stderr
    after = trees.tree(tmp_path)
    changed = {name for name in before if after.get(name) != before[name]}
    assert changed <= {"out.polar-etl/lock"}
    run_cli("normalize", "in.parquet", "out").expect(0)


def test_one_run_at_a_time_wherever_the_state_is(run_cli, tmp_path):
    """The holder's lock file can't be found; the kernel knows who holds the directory itself."""
    tables.write(tmp_path / "in.parquet", {"x": [1.0, 2.0]})
    run_cli("normalize", "in.parquet", "out").expect(0)
    before = trees.tree(tmp_path)
    hold = "import fcntl, os; fcntl.flock(os.open('out', 0), 2); print('held', flush=True); input()"
    how = {"cwd": tmp_path, "stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    began = time.time()
    with subprocess.Popen([sys.executable, "-c", hold], **how) as holder:
        assert holder.stdout.readline() == "held\n"
        for more in (["--state-dir", "elsewhere"], ["--state-dir", "elsewhere", "--overwrite"]):
            refused = run_cli("normalize", "in.parquet", "out", *more).expect(6)
            assert f"pid {holder.pid} on {os.uname().nodename}, since " in refused.stderr
            since = datetime.fromisoformat(refused.stderr.split("since ")[1].split(", ")[0])
            assert -2 <= since.timestamp() - began <= time.time() - began + 2
            assert trees.tree(tmp_path) == before
        holder.communicate("\n")
    run_cli("normalize", "in.parquet", "out", *more).expect(0)


def test_a_lock_file_of_a_dead_process_does_not_block(run_cli, tmp_path):
    tables.write(tmp_path / "in.parquet", {"x": [1.0, 2.0]})
    trees.state_of(tmp_path / "out").mkdir()
    (trees.state_of(tmp_path / "out") / "lock").write_text('{"pid": 1, "host": "x", "since": "y"}')
    run_cli("normalize", "in.parquet", "out").expect(0)


@pytest.mark.parametrize("text", ["", "garbage", "[]", '{"pid": "\\u001b[31m"}', "\udcff\x00"])
def test_a_holder_that_says_nothing_sensible(run_cli, tmp_path, text):
    tables.write(tmp_path / "in.parquet", {"x": [1.0, 2.0]})
    trees.state_of(tmp_path / "out").mkdir()
    with (trees.state_of(tmp_path / "out") / "lock").open("wb") as file:
        file.write(text.encode("utf-8", "surrogateescape"))
        file.flush()
        fcntl.flock(file, fcntl.LOCK_EX)
        run_cli("normalize", "in.parquet", "out").expect(6)
