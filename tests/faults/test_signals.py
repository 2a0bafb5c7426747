"""Ctrl-C, kill, a terminal that closes: the run stops between two batches and can go on."""

from __future__ import annotations

import fcntl
import json
import os
import shlex
import shutil
import signal
import subprocess
import termios
from pathlib import Path

import pytest
from support import cli, tables, tracing, trees

FILES = 30
HOW = ("--rows-per-part", 200, "--threads", 1)
COMMAND = ("normalize", "data", "out", *HOW)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with many files, and the undisturbed result in usual/."""
    folder = tmp_path_factory.mktemp("signals")
    for number in range(FILES):
        table = tables.floats(1000, 12, "float64", seed=number)
        tables.write(folder / "data" / f"{number:02d}.parquet", table, row_group_size=300)
    cli.run("normalize", "data", "usual", *HOW, cwd=folder).expect(0)
    return folder


@pytest.fixture
def here(folder, tmp_path):
    (tmp_path / "data").symlink_to(folder / "data")
    return tmp_path


def hear_all() -> None:
    """Undo what nohup or a shell in the background has set."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(
            number, signal.SIG_DFL if number != signal.SIGINT else signal.default_int_handler
        )


def read_until(process: subprocess.Popen[str], wanted: str) -> None:
    """Read status lines until one of the pass `wanted` comes."""
    assert process.stdout is not None
    for line in process.stdout:
        if json.loads(line).get("pass") == wanted:
            return
    raise AssertionError("it ended before it could be stopped")


@pytest.mark.parametrize("wanted", ["moments", "parts"])
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 143)]
)
def test_a_signal_stops_the_run_and_the_message_says_how_to_go_on(
    folder, here, number, code, wanted
):
    with cli.started(*COMMAND, "--json", cwd=here, preexec_fn=hear_all) as process:
        read_until(process, wanted)
        process.send_signal(number)
        stopped = cli.outcome_of(process).expect(code)
    message = json.loads(stopped.stderr.splitlines()[-1])
    assert message["code"] == code
    before = trees.batch_rows(here / "out")
    assert before
    assert trees.leftovers(here / "out") == []
    words = shlex.split(message["resume"])
    assert words[0] == "polar-etl"
    done = cli.run(*words[1:], cwd=here).expect(0).summary
    assert done["resumed_batches"] == len(before)
    assert trees.result(here / "out") == trees.result(folder / "usual")
    assert [row for row in before if row not in trees.batch_rows(here / "out")] == []


def test_the_message_as_text(folder, here):
    with cli.started(*COMMAND, cwd=here) as process:
        cli.wait_until((here / "out" / "part-00000.parquet").exists, process)
        process.send_signal(signal.SIGINT)
        stopped = cli.outcome_of(process).expect(130)
    assert stopped.stdout == ""
    (line,) = [line for line in stopped.stderr.splitlines() if "polar-etl normalize" in line]
    words = shlex.split(line[line.index("polar-etl ") :])
    cli.run(*words[1:], cwd=here).expect(0)
    assert trees.result(here / "out") == trees.result(folder / "usual")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_more_signals_leave_at_once_and_nothing_is_lost(folder, here, number):
    with cli.started(*COMMAND, "--json", cwd=here) as process:
        read_until(process, "parts")

        def hit() -> bool:
            process.send_signal(number)
            return process.poll() is not None

        cli.wait_until(hit)
        assert process.returncode == 128 + number
    parts = trees.result(folder / "usual")[0]
    for name, content in trees.tree(here / "out").items():
        assert content == parts[name]
    before = trees.batch_rows(here / "out")
    cli.run(*COMMAND, cwd=here).expect(0)
    assert trees.result(here / "out") == trees.result(folder / "usual")
    assert [row for row in before if row not in trees.batch_rows(here / "out")] == []
    assert trees.leftovers(here / "out") == []


@pytest.mark.parametrize("library", ["libarrow.so", "_multiarray_umath", "libparquet.so"])
def test_an_interrupt_while_libraries_are_loaded(here, library):
    with cli.started(*COMMAND, cwd=here) as process:
        maps = f"/proc/{process.pid}/maps"

        def loaded() -> bool:
            try:
                with open(maps) as file:
                    return library in file.read()
            except OSError:
                return False

        if not cli.wait_until(loaded, process):
            pytest.skip(f"{library} is not a library of its own here")
        process.send_signal(signal.SIGINT)
        stopped = cli.outcome_of(process)
    assert stopped.code == 130, stopped
    assert "Traceback" not in stopped.stderr, stopped
    cli.run(*COMMAND, cwd=here).expect(0)


def test_a_fit_is_interrupted(here):
    with cli.started("fit", "data", "scaler.json", "--log-level", "debug", cwd=here) as process:
        assert process.stderr is not None
        process.stderr.readline()
        process.send_signal(signal.SIGINT)
        stopped = cli.outcome_of(process)
    assert stopped.code in (0, 130), stopped
    assert "Traceback" not in stopped.stderr
    assert trees.names(here) - {"data"} == ({"scaler.json"} if stopped.code == 0 else set())


COMMANDS = {
    "normalize": COMMAND,
    "generate": ("generate", "new.parquet", "--rows", 300_000, "--cols", 20),
    "fit": ("fit", "data", "scaler.json"),
    "plan": ("plan", "data"),
    "status": ("status", "usual"),
    "verify": ("verify", "usual", "--deep"),
}


@pytest.mark.parametrize(("number", "code"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 143)])
@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_a_signal_at_any_time_ends_with_its_code(folder, here, command, number, code):
    """From the first line of ours to the last, in every command; strace sends it at the Nth call."""
    tracing.require()
    command = [folder / word if word == "usual" else word for word in command]
    calls = [c for c in tracing.census(here, *command, names=["openat"]) if c.thread == 0]
    begun = next(
        c.nth for c in calls if "/ctypes/" in c.text
    )  # the first we load once signals are heeded
    clean(here)
    before = trees.names(here)
    reached = 0
    for nth in [*range(begun, len(calls), (len(calls) - begun) // 5), len(calls)]:
        outcome, where = tracing.disturbed(
            here, "openat", str(nth), f"signal={number}", *command, preexec_fn=hear_all
        )
        outcome.expect(0, code)
        if outcome.code == code:
            reached += 1
            assert "command again" in outcome.stderr or "To go on" in outcome.stderr, where
        if command[0] in ("generate", "fit"):
            kept = {str(command[1]), "scaler.json"} if outcome.code == 0 else set()
            assert trees.names(here) - before <= kept, where
        clean(here)
    assert reached


def clean(here):
    """Remove what commands have written."""
    for name in ("new.parquet", "scaler.json"):
        (here / name).unlink(missing_ok=True)
    for name in ("out", "out.polar-etl"):
        shutil.rmtree(here / name, ignore_errors=True)


def test_nohup_is_respected(folder, here):
    def ignore() -> None:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    with cli.started(*COMMAND, "--json", cwd=here, preexec_fn=ignore) as process:
        read_until(process, "parts")
        process.send_signal(signal.SIGHUP)
        cli.outcome_of(process).expect(0)
    assert trees.result(here / "out") == trees.result(folder / "usual")


def test_a_stopped_and_continued_process_goes_on(folder, here):
    with cli.started(*COMMAND, "--json", cwd=here) as process:
        read_until(process, "moments")
        process.send_signal(signal.SIGSTOP)
        state = f"/proc/{process.pid}/stat"
        cli.wait_until(lambda: Path(state).read_text().rsplit(")", 1)[1].split()[0] == "T")
        second = cli.run(*COMMAND, cwd=here).expect(6)
        assert str(process.pid) in second.stderr
        assert os.uname().nodename in second.stderr
        process.send_signal(signal.SIGCONT)
        cli.outcome_of(process).expect(0)
    assert trees.result(here / "out") == trees.result(folder / "usual")


@pytest.mark.parametrize("heard", [True, False], ids=["it hears of it", "it is kept running"])
def test_a_terminal_that_is_closed_does_no_harm(folder, here, heard):
    """Without its terminal the process can't draw bars any more, with or without SIGHUP."""
    master, terminal = os.openpty()

    def prepare() -> None:
        os.setsid()
        fcntl.ioctl(terminal, termios.TIOCSCTTY, 0)
        signal.signal(signal.SIGHUP, signal.SIG_DFL if heard else signal.SIG_IGN)

    streams = {"stdout": terminal, "stderr": terminal, "stdin": terminal}
    with cli.started(*COMMAND, cwd=here, preexec_fn=prepare, **streams) as process:
        os.close(terminal)
        cli.wait_until((here / "out" / "part-00001.parquet").exists, process)
        os.close(master)
        process.wait(cli.DEADLINE)
    assert process.returncode in ((0, 143) if heard else (0,))
    assert trees.leftovers(here / "out") == []
    cli.run(*COMMAND, cwd=here).expect(0)
    assert trees.result(here / "out") == trees.result(folder / "usual")
