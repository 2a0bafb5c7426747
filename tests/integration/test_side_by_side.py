"""Pages that are as long as many parts, in little memory: parts are written side by side.

Each page is then decoded once for all of them, and nobody can tell from the result.
"""

from __future__ import annotations

import json
import signal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support import cli, trees

from tests.integration.test_work_counts import work

ROWS, COLUMNS = 72_000, 480
PARTS = ("--rows-per-part", 6_000)
LIMITS = {1: "230MB", 2: "390MB"}
"""By threads: limits that are too small to keep pages, with room for some parts at a time."""


def table() -> pa.Table:
    """Return numbers, as many as processes are worth, some with nulls, and text."""
    draw = np.random.default_rng(0)
    numbers = draw.normal(3.0, 2.0, (COLUMNS, ROWS)).astype("f4")
    columns = {f"c{i}": pa.array(values) for i, values in enumerate(numbers)}
    columns["c7"] = pa.array(numbers[7], mask=draw.random(ROWS) < 0.05)
    columns["few"] = pa.array(draw.integers(0, 99, ROWS))
    columns["text"] = pa.array([f"k{i % 13}" for i in range(ROWS)])
    return pa.table(columns)


WRITINGS = {
    "one page for each column": {"use_dictionary": False, "data_page_size": 1 << 20},
    "dictionaries": {"compression": "snappy", "dictionary_pagesize_limit": 1 << 19},
    "groups that end within parts": {"use_dictionary": ["few", "text"], "row_group_size": 25_000},
}


@pytest.fixture(scope="module", params=WRITINGS)
def folder(request, tmp_path_factory):
    """A folder with in.parquet, and usual/ as it comes out with much memory."""
    folder = tmp_path_factory.mktemp("side-by-side")
    pq.write_table(table(), folder / "in.parquet", **WRITINGS[request.param])
    cli.run("normalize", "in.parquet", "usual", *PARTS, cwd=folder).expect(0)
    return folder


def command(folder, threads: int) -> tuple[object, ...]:
    how = ("--threads", threads, "--memory-limit", LIMITS[threads], "--json")
    return "normalize", folder / "in.parquet", "out", *PARTS, *how


def planned(folder, *how) -> dict:
    return cli.run("plan", "in.parquet", *PARTS, *how, "--json", cwd=folder).expect(0).summary


@pytest.mark.parametrize("threads", [1, 2])
def test_the_bytes_are_the_same_and_memory_is_what_was_projected(folder, tmp_path, threads):
    plan = planned(folder, "--threads", threads, "--memory-limit", LIMITS[threads])
    assert plan["parts_at_a_time"] > 1
    assert plan["processes"] == threads

    summary = cli.run(*command(folder, threads), cwd=tmp_path).expect(0).summary
    assert summary["measured_peak"] <= summary["projected_peak"]
    assert trees.result(tmp_path / "out") == trees.result(folder / "usual")


def test_a_long_page_is_read_once_for_parts_that_go_side_by_side(tmp_path):
    """Counted from outside, as for all work that must not be done twice."""
    (tmp_path / "data").mkdir()
    pq.write_table(table(), tmp_path / "data" / "0.parquet", **WRITINGS["one page for each column"])
    done = work(tmp_path, tmp_path / "data", *PARTS, "--threads", 1, "--memory-limit", LIMITS[1])
    assert done.read <= 3.5 * done.bytes_in, "once, and once for each eight of twelve parts"


def test_where_there_is_room_parts_are_written_one_by_one(folder):
    assert planned(folder, "--memory-limit", "4GB")["parts_at_a_time"] == 1


def test_rows_of_one_part_are_written_in_order(folder, tmp_path):
    """A part of several row groups can't be written beside another one."""
    limit = ("--memory-limit", LIMITS[1], "--threads", 1)
    whole = ("--rows-per-part", ROWS)
    for name, how in (("out", limit), ("usual", ())):
        cli.run("normalize", folder / "in.parquet", name, *whole, *how, cwd=tmp_path).expect(0)
    assert trees.result(tmp_path / "out") == trees.result(tmp_path / "usual")


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("wanted", [signal.SIGKILL, signal.SIGINT])
def test_a_run_that_is_ended_between_parts_is_resumed(folder, tmp_path, threads, wanted):
    with cli.started(*command(folder, threads), cwd=tmp_path) as process:
        assert process.stdout is not None
        for line in process.stdout:
            message = json.loads(line)
            if message["message_type"] == "status" and message["pass"] == "parts":
                process.send_signal(wanted)
                break
        process.stdout.read()
        ended = process.wait(cli.DEADLINE)
    assert ended in (0, 130 if wanted == signal.SIGINT else -signal.SIGKILL)
    done = cli.run("status", "out", "--json", cwd=tmp_path).expect(0, 1).summary["parts_done"]

    resumed = cli.run(*command(folder, threads), cwd=tmp_path).expect(0)
    written = [message for message in resumed.messages if message.get("part")]
    assert done > 0
    assert len(written) == resumed.summary["parts"] - done, "what is finished is not done again"
    assert trees.result(tmp_path / "out") == trees.result(folder / "usual")
