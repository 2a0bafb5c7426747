"""A disk that is really full, read-only, or gone; and as many open files as allowed."""

from __future__ import annotations

import errno
import os
import shlex
import shutil
import subprocess
import sys
from contextlib import contextmanager

import pytest
from support import cli, tables, trees

HOW = ("--rows-per-part", 1000)


@contextmanager
def tmpfs(folder, size: str):
    """Mount a tmpfs of `size` at `folder`, or skip the test where that is not allowed."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if shutil.which("mount") is None or os.geteuid() != 0:
        pytest.skip("mounting needs root")
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"tmpfs can't be mounted here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def remount(folder, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", str(folder)], check=True)


@pytest.fixture(scope="module")
def usual(tmp_path_factory):
    """A folder with in.parquet and its undisturbed result out/ of 0.7 MB."""
    folder = tmp_path_factory.mktemp("usual")
    tables.write(folder / "in.parquet", tables.floats(10_000, 10, "float64"), row_group_size=2000)
    cli.run("normalize", "in.parquet", "out", *HOW, cwd=folder).expect(0)
    return folder


def fill(path) -> None:
    """Write to `path` until the disk is full."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT)
    failed = None
    while failed is None:
        try:
            os.write(descriptor, b"x" * 65536)
        except OSError as error:
            failed = error.errno
    os.close(descriptor)
    assert failed == errno.ENOSPC


def resume_with(outcome: cli.Outcome, folder) -> cli.Outcome:
    """Give the command that the message of a failed run says."""
    (line,) = [line for line in outcome.stderr.splitlines() if line.startswith("To go on: ")]
    words = shlex.split(line.removeprefix("To go on: "))
    assert words[0] == "polar-etl"
    return cli.run(*words[1:], cwd=folder)


@pytest.mark.parametrize("size", ["12k", "64k", "100k", "128k", "200k", "400k", "740k"])
def test_a_full_disk(usual, tmp_path, size):
    parts = trees.parts(usual / "out")
    with tmpfs(tmp_path / "disk", size) as disk:
        failed = cli.run("normalize", usual / "in.parquet", disk / "out", *HOW, cwd=tmp_path)
        failed.expect(1)
        for name, content in trees.tree(disk / "out").items() if (disk / "out").exists() else ():
            assert content == parts[name], f"{name} is not whole"
        assert trees.leftovers(disk / "out") == []
        again = cli.run("normalize", usual / "in.parquet", disk / "out", *HOW, cwd=tmp_path)
        again.expect(1)
        rows = trees.batch_rows(disk / "out")
        remount(disk, "size=32m")
        resume_with(failed, tmp_path).expect(0)
        assert trees.result(disk / "out") == trees.result(usual / "out")
        assert [row for row in rows if row not in trees.batch_rows(disk / "out")] == []
        assert trees.leftovers(disk / "out") == []


def test_a_disk_that_is_filled_by_somebody_else_half_way(usual, tmp_path):
    with tmpfs(tmp_path / "disk", "8m") as disk:
        command = ("normalize", usual / "in.parquet", disk / "out", *HOW, "--threads", 1)
        with cli.started(*command, cwd=tmp_path) as process:
            cli.wait_until((disk / "out" / "part-00001.parquet").exists, process)
            fill(disk / "ballast")
            stopped = cli.outcome_of(process).expect(0, 1)
        assert trees.leftovers(disk / "out") == []
        (disk / "ballast").unlink()
        if stopped.code == 1:
            resume_with(stopped, tmp_path).expect(0)
        assert trees.result(disk / "out") == trees.result(usual / "out")


def test_a_disk_that_has_become_read_only(usual, tmp_path):
    with tmpfs(tmp_path / "disk", "8m") as disk:
        command = ("normalize", usual / "in.parquet", disk / "out", *HOW)
        cli.run(*command, cwd=tmp_path).expect(0)
        (disk / "out" / "part-00003.parquet").unlink()
        before = trees.tree(disk)
        remount(disk, "ro")
        cli.run(*command, cwd=tmp_path).expect(1)
        cli.run("normalize", usual / "in.parquet", disk / "new", cwd=tmp_path).expect(1)
        assert trees.tree(disk) == before
        cli.run("status", disk / "out", cwd=tmp_path).expect(0)
        assert "part-00003" in cli.run("verify", disk / "out", cwd=tmp_path).expect(5).stderr
        remount(disk, "rw")
        cli.run(*command, cwd=tmp_path).expect(0)
        assert trees.result(disk / "out") == trees.result(usual / "out")


def test_state_and_output_on_different_disks(usual, tmp_path):
    with tmpfs(tmp_path / "disk", "300k") as disk:
        how = (*HOW, "--state-dir", tmp_path / "state")
        failed = cli.run("normalize", usual / "in.parquet", disk / "out", *how, cwd=tmp_path)
        failed.expect(1)
        assert set(trees.parts(disk / "out")) < set(trees.parts(usual / "out"))
        remount(disk, "size=8m")
        resume_with(failed, tmp_path).expect(0)
        assert trees.parts(disk / "out") == trees.parts(usual / "out")


def test_generate_on_a_full_disk_leaves_nothing(tmp_path):
    with tmpfs(tmp_path / "disk", "100k") as disk:
        cli.run("generate", disk / "in.parquet", "--rows", 50_000, cwd=tmp_path).expect(1)
        assert trees.tree(disk) == {}


def test_fit_on_a_full_disk_leaves_nothing(usual, tmp_path):
    with tmpfs(tmp_path / "disk", "4k") as disk:
        (disk / "ballast").write_bytes(b"x" * 4096)
        cli.run("fit", usual / "in.parquet", disk / "scaler.json", cwd=tmp_path).expect(1)
        assert trees.names(disk) == {"ballast"}


def test_an_output_that_vanishes_half_way(usual, tmp_path):
    source = usual / "in.parquet"
    command = ("normalize", source, "out", "--rows-per-part", 50, "--threads", 1)
    cli.run(*command[:2], "whole", *command[3:], cwd=tmp_path).expect(0)
    with cli.started(*command, cwd=tmp_path) as process:
        begun = cli.wait_until((tmp_path / "out" / "part-00001.parquet").exists, process)
        assert begun, cli.outcome_of(process)
        (tmp_path / "out").rename(tmp_path / "gone")
        stopped = cli.outcome_of(process).expect(0, 1)
    if stopped.code == 1:
        resume_with(stopped, tmp_path).expect(0)
    else:
        cli.run(*command, cwd=tmp_path).expect(0)
    assert trees.result(tmp_path / "out") == trees.result(tmp_path / "whole")


LIMITED = """
import resource, sys
from polar_etl.cli import main

limit, usual = int(sys.argv.pop(1)), sys.argv[3]
sys.argv[3] = "warm"  # all modules are loaded by a run without a limit
try:
    main()
except SystemExit as end:
    assert not end.code
sys.argv[3] = usual
resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
main()
"""


def test_every_possible_limit_of_open_files(usual, tmp_path):
    args = ["normalize", str(usual / "in.parquet"), "out", *map(str, HOW)]
    for limit in range(3, 40):
        command = (sys.executable, "-c", LIMITED, str(limit), *args, "--quiet")
        done = subprocess.run(
            command,
            cwd=tmp_path,
            env=cli.environment(),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        outcome = cli.Outcome(command, done.returncode, done.stdout, done.stderr).expect(0, 1, 4)
        assert trees.leftovers(tmp_path / "out") == [], outcome
        if outcome.code == 0:
            break
        assert "open files" in outcome.stderr, outcome
    assert outcome.code == 0
    assert limit > 8
    assert trees.result(tmp_path / "out") == trees.result(usual / "out")


@pytest.mark.parametrize("limit", [5, 6, 8, 12])
def test_too_few_open_files_to_load_libraries(usual, tmp_path, limit):
    """Nothing is loaded yet, so a library is what can't be opened."""
    few = ("sh", "-c", f'ulimit -n {limit}; exec "$@"', "sh")
    command = ("normalize", usual / "in.parquet", "out", *HOW)
    failed = cli.run(*command, cwd=tmp_path, before=few).expect(0, 1, 4)
    assert trees.leftovers(tmp_path / "out") == []
    cli.run(*command, cwd=tmp_path).expect(0)
    assert trees.result(tmp_path / "out") == trees.result(usual / "out"), failed


def test_an_input_that_changes_while_it_is_read(usual, tmp_path):
    for number in range(40):
        shutil.copy(
            usual / "in.parquet",
            tables.write(tmp_path / "data" / f"{number:02d}.parquet", {"x": [1]}),
        )
    command = ("normalize", "data", "out", *HOW, "--threads", 1, "--json")
    with cli.started(*command, cwd=tmp_path) as process:
        assert process.stdout is not None
        process.stdout.readline()
        os.truncate(tmp_path / "data" / "39.parquet", 5000)
        ended = cli.outcome_of(process).expect(4)
    assert "39.parquet" in ended.stderr
    assert trees.names(tmp_path) == {"data", *(f"data/{n:02d}.parquet" for n in range(40))}
