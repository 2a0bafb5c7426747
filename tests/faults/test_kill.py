"""kill -9 at ten moments of both passes, and the same command again each time."""

from __future__ import annotations

import json
import signal

import pytest
from support import cli, tables, trees

FILES, ROWS = 30, 1000
COMMAND = ("normalize", "data", "out", "--rows-per-part", 400, "--json")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with many files, and the undisturbed result in usual/."""
    folder = tmp_path_factory.mktemp("kill")
    for number in range(FILES):
        table = tables.floats(ROWS, 12, "float64", seed=number)
        tables.write(folder / "data" / f"{number:03d}.parquet", table, row_group_size=300)
    cli.run("normalize", "data", "usual", *COMMAND[3:], cwd=folder).expect(0)
    return folder


def kill_in(folder, wanted: str, lines: int, command=COMMAND) -> bool:
    """Start the command, kill it after so many status lines of a pass; tell whether it died."""
    seen = 0
    with cli.started(*command, cwd=folder) as process:
        assert process.stdout is not None
        for line in process.stdout:
            message = json.loads(line)
            seen += message["message_type"] == "status" and message["pass"] == wanted
            if seen == lines:
                process.kill()
                break
        return process.wait(cli.DEADLINE) == -signal.SIGKILL


def key(row):
    return row[trees.COLUMNS.index("pass")], row[trees.COLUMNS.index("batch")]


def test_killed_ten_times(folder):
    expected = trees.result(folder / "usual")
    kills = [("moments", lines) for lines in (1, 2, 3, 1, 2)]
    kills += [("parts", lines) for lines in (1, 3, 2, 5, 1)]
    before: list[tuple[object, ...]] = []
    for number, (wanted, lines) in enumerate(kills):
        assert kill_in(folder, wanted, lines), f"kill {number} came too late"
        now = trees.batch_rows(folder / "out")
        assert now[: len(before)] != [] or not before
        lost = [row for row in before if row not in now]
        assert not lost, f"computed again after kill {number}: {lost}"
        assert len(now) >= len(before) + lines, "finished batches were not recorded"
        passes = {key(row)[0] for row in now}
        assert passes == ({"moments"} if wanted == "moments" else {"moments", "parts"})
        before = now
        for name, content in trees.tree(folder / "out").items():
            assert content == expected[0].get(name), f"{name} is not a whole part"
    done = cli.run(*COMMAND, cwd=folder).expect(0).summary
    assert trees.result(folder / "out") == expected
    assert trees.leftovers(folder / "out") == []
    assert done["resumed_batches"] == len(before)
    after = trees.batch_rows(folder / "out")
    assert [row for row in before if row not in after] == []
    undisturbed = trees.batch_rows(folder / "usual", "parts")
    digest = trees.COLUMNS.index("digest")
    found = trees.batch_rows(folder / "out", "parts")
    assert [row[digest] for row in found] == [row[digest] for row in undisturbed]
    assert cli.run(*COMMAND, cwd=folder).expect(0).summary["nothing_to_do"] is True


def test_status_and_verify_of_a_killed_run(folder, tmp_path):
    (tmp_path / "data").symlink_to(folder / "data")
    assert kill_in(tmp_path, "parts", 2)
    status = cli.run("status", "out", "--json", cwd=tmp_path).expect(0).summary
    assert status["finished"] is False
    assert status["fitted_rows"] == status["rows"] == FILES * ROWS
    assert status["parts_done"] + len(status["missing"]) == status["parts"]
    assert 2 <= status["parts_done"] < status["parts"]
    assert "not written" in cli.run("verify", "out", cwd=tmp_path).expect(5).stderr
    cli.run(*COMMAND, cwd=tmp_path).expect(0)
    cli.run("verify", "out", cwd=tmp_path).expect(0)
    assert trees.result(tmp_path / "out") == trees.result(folder / "usual")


def test_a_killed_transform_resumes(folder, tmp_path):
    (tmp_path / "data").symlink_to(folder / "data")
    cli.run("fit", "data", "scaler.json", cwd=tmp_path).expect(0)
    command = ("transform", *COMMAND[1:], "--scaler", "scaler.json")
    with cli.started(*command, cwd=tmp_path) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.kill()
        assert process.wait(cli.DEADLINE) == -signal.SIGKILL
    before = trees.batch_rows(tmp_path / "out")
    assert before
    done = cli.run(*command, cwd=tmp_path).expect(0).summary
    assert done["resumed_batches"] == len(before)
    assert trees.parts(tmp_path / "out") == trees.parts(folder / "usual")


def test_a_killed_overwrite_goes_on_with_the_same_command(folder, tmp_path):
    """The earlier output stays until the input is read; afterwards what is finished is kept."""
    (tmp_path / "data").symlink_to(folder / "data")
    cli.run("normalize", "data", "out", "--rows-per-part", 10_000, cwd=tmp_path).expect(0)
    earlier = trees.parts(tmp_path / "out")
    command = (*COMMAND, "--overwrite")
    for wanted in ("moments", "moments", "parts", "parts"):
        assert kill_in(tmp_path, wanted, 2, command)
        if wanted == "moments":
            assert trees.parts(tmp_path / "out") == earlier
            cli.run("verify", "out", cwd=tmp_path).expect(0)
    before = trees.batch_rows(tmp_path / "out")
    assert len(before) >= 4
    done = cli.run(*command, cwd=tmp_path).expect(0).summary
    assert done["resumed_batches"] == len(before)
    assert trees.result(tmp_path / "out") == trees.result(folder / "usual")
    assert trees.leftovers(tmp_path / "out") == []
    again = cli.run(*command, cwd=tmp_path).expect(0).summary
    assert again["resumed_batches"] == 0


def test_a_killed_fit_leaves_no_scaler(folder, tmp_path):
    (tmp_path / "data").symlink_to(folder / "data")
    with cli.started("fit", "data", "scaler.json", cwd=tmp_path) as process:
        cli.wait_until(lambda: "libarrow" in maps_of(process.pid), process)
        process.kill()
        process.wait(cli.DEADLINE)
    assert trees.names(tmp_path) - {"data"} <= {"scaler.json"}
    cli.run("fit", "data", "scaler.json", cwd=tmp_path).expect(0)
    assert (tmp_path / "scaler.json").read_bytes() == trees.scaler_bytes(folder / "usual")


def maps_of(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/maps") as file:
            return file.read()
    except OSError:
        return ""


def test_another_process_reads_while_we_write(folder, tmp_path):
    import pyarrow.parquet as pq

    (tmp_path / "data").symlink_to(folder / "data")
    read = 0
    with cli.started(*COMMAND, cwd=tmp_path, stdout=None) as process:
        while process.poll() is None:
            for path in (tmp_path / "out").glob("part-*.parquet"):
                assert pq.read_table(path).num_rows == 400, "a part was there before it was whole"
                read += 1
    assert process.returncode == 0
    assert read
