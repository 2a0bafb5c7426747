"""Large tables are shared among processes, and nobody can tell from the result."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support import cli, trees

ROWS, COLUMNS, GROUP = 720_000, 50, 120_000
ALONE, SHARED = ("--threads", 1), ("--threads", 2)


def table(rows: int = ROWS, seed: int = 0) -> pa.Table:
    """Return enough columns of numbers for processes to be worth it, some with nulls, and text."""
    rng = np.random.default_rng(seed)
    numbers = [rng.normal(i, i + 1.0, rows).astype("f4") for i in range(COLUMNS)]
    columns = {f"c{i}": pa.array(x) for i, x in enumerate(numbers)}
    for name in ("c7", f"c{COLUMNS - 1}"):
        columns[name] = pa.array(columns[name].to_numpy(), mask=rng.random(rows) < 0.05)
    columns["text"] = pa.array([f"k{i % 13}" for i in range(rows)])
    return pa.table(columns)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with in.parquet, and usual/ as one process makes it."""
    folder = tmp_path_factory.mktemp("processes")
    pq.write_table(table(), folder / "in.parquet", row_group_size=GROUP, use_dictionary=False)
    cli.run("normalize", "in.parquet", "usual", *ALONE, cwd=folder).expect(0)
    return folder


def planned(folder, *how) -> dict:
    """Return the plan."""
    return cli.run("plan", "in.parquet", *how, "--json", cwd=folder).expect(0).summary


def processes(folder, *how) -> int:
    """Return how many processes are planned."""
    return planned(folder, *how)["processes"]


def children(process) -> list[psutil.Process]:
    with suppress(psutil.NoSuchProcess):
        return psutil.Process(process.pid).children()
    return []


@pytest.mark.parametrize("threads", [2, 3])
def test_processes_change_no_bit(folder, tmp_path, threads):
    assert processes(folder, "--threads", threads) == threads
    cli.run("normalize", folder / "in.parquet", "out", "--threads", threads, cwd=tmp_path).expect(0)
    assert trees.result(tmp_path / "out") == trees.result(folder / "usual")


KEPT = "numbers kept for the second pass"


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_numbers_that_are_kept_change_no_bit(folder, tmp_path, threads):
    how = ("--threads", threads)
    plan = planned(folder, *how, "--memory-limit", "2GB")
    assert plan["bill"][KEPT] >= ROWS * COLUMNS * 4
    least = plan["projected_peak"] - plan["bill"][KEPT] + 1_000_000
    assert KEPT not in planned(folder, *how, "--memory-limit", least)["bill"]

    for name, limit in (("kept", "2GB"), ("read", least)):
        more = ("--memory-limit", limit, "--json")
        said = cli.run("normalize", folder / "in.parquet", name, *how, *more, cwd=tmp_path)
        summary = said.expect(0).summary
        assert summary["measured_peak"] <= summary["projected_peak"]
        assert trees.result(tmp_path / name) == trees.result(folder / "usual")


def test_where_memory_is_scarce_there_is_one_process(folder):
    refused = cli.run("normalize", "in.parquet", "x", "--memory-limit", "1MB", cwd=folder).expect(7)
    least = refused.stderr.split("--memory-limit ")[1].split()[0]
    assert processes(folder, *SHARED, "--memory-limit", least) == 1
    assert processes(folder, *SHARED, "--memory-limit", "2GB") == 2


def test_small_tables_are_not_worth_it(tmp_path):
    pq.write_table(table(1000), tmp_path / "in.parquet")
    assert processes(tmp_path, *SHARED) == 1


def test_the_whole_tree_stays_within_the_limit_and_the_projection(folder, tmp_path):
    """Resident memory of all processes, as a user's monitor adds it up every few milliseconds."""
    peak, over = 0, threading.Event()
    how = (*SHARED, "--memory-limit", "512MB", "--json")
    with cli.started("normalize", folder / "in.parquet", "out", *how, cwd=tmp_path) as process:
        assert process.stdout is not None

        def watch() -> None:
            nonlocal peak
            while not over.wait(0.005):
                with suppress(psutil.NoSuchProcess):
                    tree = [psutil.Process(process.pid), *children(process)]
                    peak = max(peak, sum(one.memory_info().rss for one in tree))

        watcher = threading.Thread(target=watch)
        watcher.start()
        lines = [json.loads(line) for line in process.stdout]
        assert process.wait(cli.DEADLINE) == 0
        over.set()
        watcher.join()
    summary = lines[-1]
    assert peak <= summary["projected_peak"] <= 512_000_000
    assert summary["projected_peak"] <= 1.6 * peak
    assert summary["measured_peak"] <= summary["projected_peak"]


@pytest.mark.parametrize("wanted", ["moments", "parts"])
def test_killed_with_its_children_and_resumed(folder, tmp_path, wanted):
    command = ("normalize", folder / "in.parquet", "out", *SHARED)
    with cli.started(*command, "--json", cwd=tmp_path) as process:
        assert process.stdout is not None
        for line in process.stdout:
            message = json.loads(line)
            if message["message_type"] == "status" and message["pass"] == wanted:
                break
        left = children(process)
        process.kill()
        process.wait(cli.DEADLINE)
    _, alive = psutil.wait_procs(left, cli.DEADLINE)
    assert not alive
    cli.run(*command, cwd=tmp_path).expect(0)
    assert trees.result(tmp_path / "out") == trees.result(folder / "usual")


def test_a_child_that_is_killed_ends_the_run_which_can_be_resumed(folder, tmp_path):
    """As the system does when memory runs out."""
    command = ("normalize", folder / "in.parquet", "out", *SHARED)
    with cli.started(*command, cwd=tmp_path, stderr=-1) as process:
        assert cli.wait_until(lambda: bool(children(process)), process), "no child was seen"
        with suppress(psutil.NoSuchProcess):
            children(process)[0].send_signal(signal.SIGKILL)
        _, said = process.communicate(timeout=cli.DEADLINE)
        assert process.returncode == 1
    assert "worker process was killed" in said
    assert "To go on: polar-etl normalize" in said
    assert not os.listdir(tmp_path / "out.polar-etl" / "tmp")
    cli.run(*command, cwd=tmp_path).expect(0)
    assert trees.result(tmp_path / "out") == trees.result(folder / "usual")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_whole_group_is_one_to_the_run(folder, tmp_path, number):
    """Ctrl-C reaches the children, too."""
    command = ("normalize", folder / "in.parquet", "out", *SHARED)
    with cli.started(*command, cwd=tmp_path, stderr=-1, start_new_session=True) as process:
        assert cli.wait_until(lambda: bool(children(process)), process), "no child was seen"
        os.killpg(process.pid, number)
        _, said = process.communicate(timeout=cli.DEADLINE)
        assert process.returncode == 128 + number, said
    assert "To go on" in said
    cli.run(*command, cwd=tmp_path).expect(0)
    assert trees.result(tmp_path / "out") == trees.result(folder / "usual")


@pytest.mark.parametrize("column", [0, COLUMNS - 1])
def test_errors_of_a_child_are_those_of_the_run(tmp_path, column):
    data = table()
    values = data.column(column).to_numpy(zero_copy_only=False).copy()
    values[500_000] = np.inf
    data = data.set_column(column, data.schema.field(column), pa.array(values))
    pq.write_table(data, tmp_path / "in.parquet", row_group_size=GROUP, use_dictionary=False)
    said = cli.run("normalize", "in.parquet", "out", *SHARED, cwd=tmp_path).expect(4)
    assert f"'c{column}'" in said.stderr
    assert "row 500000" in said.stderr
    assert not (tmp_path / "out").exists()


def test_damage_that_a_child_meets_is_told_as_ever(tmp_path):
    path = tmp_path / "in.parquet"
    pq.write_table(table(), path, row_group_size=GROUP, use_dictionary=False)
    found = pq.read_metadata(path).row_group(4).column(COLUMNS - 2)
    with open(path, "r+b") as file:
        file.seek(found.data_page_offset + found.total_compressed_size // 2)
        file.write(bytes(1000))
    said = cli.run("normalize", "in.parquet", "out", *SHARED, cwd=tmp_path).expect(4)
    assert "can't be read as Parquet" in said.stderr
    assert not (tmp_path / "out").exists()


IN_PYTHON = """
import sys, threading
import psutil
import polar_etl as pe

end, seen, how = threading.Event(), set(), eval(sys.argv[1])
if sys.argv[2] == "beside another thread":
    threading.Thread(target=end.wait).start()

def listen(event):
    seen.update(child.pid for child in psutil.Process().children())

try:
    pe.normalize("in.parquet", sys.argv[3], threads=2, memory_limit="2GB", listener=listen, **how)
finally:
    end.set()
print(len(seen))
"""


@pytest.mark.parametrize(
    ("how", "where", "children"),
    [
        ({}, "alone", 1),
        ({}, "beside another thread", 0),
        ({"processes": True}, "beside another thread", 1),
        ({"processes": False}, "alone", 0),
    ],
    ids=str,
)
def test_python_forks_where_no_other_thread_could_hold_a_lock(
    folder, tmp_path, how, where, children
):
    done = subprocess.run(
        [sys.executable, "-c", IN_PYTHON, repr(how), where, tmp_path / "out"],
        cwd=folder,
        env=cli.environment(),
        stdout=subprocess.PIPE,
        text=True,
        timeout=cli.DEADLINE,
        check=True,
    )
    assert int(done.stdout) == children
    assert trees.result(tmp_path / "out") == trees.result(folder / "usual")
