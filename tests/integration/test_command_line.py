"""The manners of the command line: streams, formats, environment, colours, help."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
import threading
from decimal import Decimal

import pyarrow as pa
import pytest
from support import cli, tables, trees

SUMMARY = {
    "rows",
    "columns",
    "normalized_columns",
    "batches",
    "resumed_batches",
    "parts",
    "bytes_in",
    "bytes_out",
    "seconds",
    "memory_limit",
    "projected_peak",
    "measured_peak",
}
COMMANDS = ("normalize", "fit", "transform", "plan", "status", "verify", "generate")


@pytest.fixture
def folder(tmp_path):
    """tmp_path with an in.parquet that has something to warn of: a constant column."""
    table = tables.mixed(2000).append_column("flat", [[1.0] * 2000])
    tables.write(tmp_path / "in.parquet", table, row_group_size=600)
    return tmp_path


def test_version(run_process):
    from importlib.metadata import version

    said = run_process("--version").expect(0)
    assert said.stdout == f"polar-etl {version('polar-etl')}\n"
    assert said.stderr == ""


@pytest.mark.parametrize("command", [(), *((name,) for name in COMMANDS)], ids=" ".join)
def test_help_documents_exit_codes_and_environment(run_process, command):
    said = run_process(*command, "--help").expect(0)
    text = " ".join(said.stdout.split())
    for code in ("0 done", "1 failed", "2 usage", "3 done", "4 input", "5 state", "6 output"):
        assert code in text
    for code in ("7 memory", "130 interrupted", "143 terminated"):
        assert code in text
    options = set(re.findall(r"(?<=\s)--[a-z][a-z-]+", said.stdout)) - {"--version", "--help"}
    if command:
        for option in options:
            assert f"POLAR_ETL_{option[2:].upper().replace('-', '_')}" in text, option
    assert run_process(*command, "-h").stdout == said.stdout


@pytest.mark.parametrize("flags", [["--version"], ["--help"], ["normalize", "--help"]])
def test_help_and_version_import_no_polars(tmp_path, flags):
    code = (
        "import sys; from polar_etl.cli import main\n"
        f"sys.argv = ['polar-etl', *{flags!r}]\n"
        "try: main()\n"
        "except SystemExit as end: code = end.code\n"
        "sys.exit(code or int(bool({'polars', 'pyarrow', 'numpy'} & set(sys.modules))))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=cli.environment(),
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done


def test_no_arguments_and_wrong_ones(run_process):
    assert "normalize" in (run_process().stdout + run_process().stderr)
    for args in (["nonsense"], ["normalize"], ["normalize", "in.parquet"], ["--nonsense"]):
        run_process(*args).expect(2)


@pytest.mark.parametrize("command", ["plan", "normalize --dry-run"])
def test_plan_reads_footers_only_and_writes_nothing(run_process, folder, command):
    before = trees.tree(folder)
    out = ["out"] if "normalize" in command else []
    said = run_process(*command.split(), "in.parquet", *out, "--json").expect(0).summary
    assert said["rows"] == 2000
    assert (said["columns"], said["normalized_columns"], said["row_groups"]) == (18, 5, 4)
    assert said["parts"] == 1
    assert said["batches"] == 2
    assert 0 < said["projected_peak"] <= said["memory_limit"]
    assert set(said["passed_columns"]) > {"text", "flag"}
    assert all(said["passed_columns"].values())
    text = run_process(*command.split(), "in.parquet", *out, "--exclude", "n").expect(0).stdout
    for word in ("2,000", "18", "string is not numeric", "not selected", "peak"):
        assert word in text
    assert trees.tree(folder) == before


def test_plan_tells_what_normalize_does(run_process, folder):
    how = ("--rows-per-part", 300)
    plan = run_process("plan", "in.parquet", *how, "--json").expect(0).summary
    made = run_process("normalize", "in.parquet", "out", *how, "--json").expect(0).summary
    for name in ("rows", "columns", "normalized_columns", "batches", "parts", "bytes_in"):
        assert plan[name] == made[name], name


def test_plan_and_run_count_alike_where_nothing_is_normalized(run_process, folder):
    how = ("in.parquet", "--exclude", "*", "--json")
    plan = run_process("plan", *how).expect(0).summary
    made = run_process("normalize", "in.parquet", "out", *how[1:]).expect(0).summary
    assert (plan["batches"], plan["normalized_columns"]) == (made["batches"], 0)


def test_json_lines_end_with_the_summary(run_process, folder):
    said = run_process("normalize", "in.parquet", "out", "--rows-per-part", 300, "--json").expect(0)
    assert set(said.summary) >= SUMMARY
    assert [m["message_type"] for m in said.messages].count("summary") == 1
    status = [m for m in said.messages if m["message_type"] == "status"]
    assert {m["pass"] for m in status} == {"moments", "parts"}
    assert [m["part"] for m in status if m["part"]] == sorted(os.listdir(folder / "out"))
    summary = said.summary
    assert summary["bytes_in"] == (folder / "in.parquet").stat().st_size
    assert summary["bytes_out"] == sum(map(len, trees.parts(folder / "out").values()))
    assert summary["batches"] == len(trees.batch_rows(folder / "out")) == len(status)
    assert summary["resumed_batches"] == 0
    assert summary["measured_peak"] <= summary["memory_limit"]
    quiet = run_process(
        "normalize", "in.parquet", "out", "--rows-per-part", 300, "--json", "--quiet"
    )
    assert len(quiet.expect(0).messages) == 1
    assert set(quiet.summary) >= SUMMARY


def test_the_summary_of_a_fit_has_the_same_fields(run_process, folder):
    summary = run_process("fit", "in.parquet", "scaler.json", "--json").expect(0).summary
    made = run_process("normalize", "in.parquet", "out", "--json").expect(0).summary
    assert set(summary) >= SUMMARY
    for name in ("rows", "columns", "normalized_columns", "bytes_in", "memory_limit"):
        assert summary[name] == made[name], name
    assert summary["batches"] == made["batches"] - made["parts"]
    assert summary["bytes_out"] == (folder / "scaler.json").stat().st_size
    assert summary["measured_peak"] <= summary["projected_peak"]


def test_errors_as_json(run_process, folder):
    failed = run_process("normalize", "nowhere.parquet", "out", "--json").expect(4)
    assert failed.stdout == ""
    fields = json.loads(failed.stderr)
    assert (fields["message_type"], fields["code"]) == ("error", 4)
    assert "nowhere.parquet" in fields["message"]


def test_results_go_to_stdout_and_messages_to_stderr(run_process, folder):
    said = run_process("normalize", "in.parquet", "out").expect(0)
    assert "2,000 rows" in said.stdout
    assert "'flat'" in said.stderr
    assert "'flat'" not in said.stdout
    failed = run_process("normalize", "in.parquet", "out", "--ddof", 1).expect(5)
    assert failed.stdout == ""


def test_quiet_and_log_level(run_process, folder):
    how = ("normalize", "in.parquet", "out", "--overwrite")
    assert run_process(*how, "--quiet").expect(0).stderr == ""
    assert run_process(*how, "--log-level", "error").expect(0).stderr == ""
    assert "'flat'" in run_process(*how, "--log-level", "warning").expect(0).stderr
    noisy = run_process(*how, "--log-level", "debug").expect(0)
    assert len(noisy.stderr.splitlines()) > 1


def test_log_format_json(run_process, folder):
    how = ("--log-format", "json", "--log-level", "debug")
    said = run_process("normalize", "in.parquet", "out", *how).expect(0)
    lines = [json.loads(line) for line in said.stderr.splitlines()]
    assert {"level", "message"} <= set(lines[0])
    assert any("'flat'" in line["message"] for line in lines)
    failed = run_process("normalize", "in.parquet", "out", "--ddof", 1, *how).expect(5)
    assert json.loads(failed.stderr)["code"] == 5


def test_every_option_has_an_environment_variable(run_process, folder):
    variables = {
        "POLAR_ETL_ROWS_PER_PART": "400",
        "POLAR_ETL_DDOF": "1",
        "POLAR_ETL_COLUMNS": "x y",
        "POLAR_ETL_DTYPE": "float32",
        "POLAR_ETL_MEMORY_LIMIT": "700MB",
        "POLAR_ETL_THREADS": "1",
        "POLAR_ETL_COMPRESSION_LEVEL": "4",
        "POLAR_ETL_STATE_DIR": "state",
        "POLAR_ETL_JSON": "1",
        "POLAR_ETL_QUIET": "1",
    }
    made = run_process("normalize", "in.parquet", "out", env=variables).expect(0).summary
    assert (made["parts"], made["normalized_columns"]) == (5, 2)
    assert made["memory_limit"] == 700_000_000
    flags = [
        "--rows-per-part",
        "400",
        "--ddof",
        "1",
        "--columns",
        "x",
        "--columns",
        "y",
        "--dtype",
        "float32",
    ]
    more = [
        "--memory-limit",
        "700MB",
        "--threads",
        "1",
        "--compression-level",
        "4",
        "--state-dir",
        "state",
        "--json",
    ]
    assert run_process("normalize", "in.parquet", "out", *flags, *more).summary["nothing_to_do"]
    plan = run_process("plan", "in.parquet", env={"POLAR_ETL_EXCLUDE": "x", "POLAR_ETL_JSON": "1"})
    assert "x" in plan.expect(0).summary["passed_columns"]
    dry = {"POLAR_ETL_DRY_RUN": "1", "POLAR_ETL_PART_SIZE": "10kB"}
    run_process("normalize", "in.parquet", "other", env=dry).expect(0)
    assert not (folder / "other").exists()


def test_a_flag_goes_before_the_environment(run_process, folder):
    plan = run_process(
        "plan",
        "in.parquet",
        "--memory-limit",
        "600MB",
        "--json",
        env={"POLAR_ETL_MEMORY_LIMIT": "1GB"},
    )
    assert plan.expect(0).summary["memory_limit"] == 600_000_000


def test_a_wrong_environment_variable_is_a_usage_error(run_process, folder):
    run_process("plan", "in.parquet", env={"POLAR_ETL_MEMORY_LIMIT": "much"}).expect(2)
    run_process("plan", "in.parquet", env={"POLAR_ETL_THREADS": "few"}).expect(2)


@pytest.mark.parametrize("reader_takes", [0, 1])
@pytest.mark.parametrize("as_json", [True, False])
def test_a_reader_of_stdout_that_goes_away_does_no_harm(folder, reader_takes, as_json):
    flags = ["--json"] if as_json else []
    cli.run("normalize", "in.parquet", "usual", "--rows-per-part", 100, cwd=folder).expect(0)
    args = ("normalize", "in.parquet", "out", "--rows-per-part", 100, *flags)
    with cli.started(*args, cwd=folder, stderr=subprocess.PIPE) as process:
        if reader_takes and as_json:
            assert json.loads(process.stdout.readline())["message_type"] == "status"
        process.stdout.close()
        process.stdout = None
        ended = cli.outcome_of(process).expect(0)
    assert "rror" not in ended.stderr
    assert trees.result(folder / "out") == trees.result(folder / "usual")
    cli.run("verify", "out", cwd=folder).expect(0)


def test_closed_standard_streams_do_no_harm(folder):
    command = [*cli.CLI, "normalize", "in.parquet", "out"]
    shell = " ".join(command) + " >&- 2>&- <&-"
    done = subprocess.run(
        ["sh", "-c", shell], cwd=folder, env=cli.environment(), timeout=60, check=False
    )
    assert done.returncode == 0
    cli.run("verify", "out", cwd=folder).expect(0)


def test_what_the_encoding_of_stdout_lacks_is_escaped(run_process, folder):
    ascii_only = {"PYTHONIOENCODING": "ascii"}
    made = run_process("normalize", "in.parquet", "größe", env=ascii_only).expect(0)
    assert "gr\\xf6\\xdfe" in made.stdout
    assert "2,000 rows" in made.stdout


def with_full_stdout(folder, *args: str) -> subprocess.CompletedProcess[str]:
    with open("/dev/full", "w") as full:
        return subprocess.run(
            [*cli.CLI, *args],
            cwd=folder,
            env=cli.environment(),
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
            check=False,
        )


def test_a_full_stdout_does_no_harm(folder):
    done = with_full_stdout(folder, "normalize", "in.parquet", "out", "--json")
    assert done.returncode in (0, 1), done
    assert "Traceback" not in done.stderr
    cli.run("verify", "out", cwd=folder).expect(0)


@pytest.mark.parametrize(
    "args", [("plan", "in.parquet"), ("status", "out"), ("verify", "out", "--json"), ("--help",)]
)
def test_an_answer_that_a_full_stdout_does_not_take_is_an_error(folder, args):
    cli.run("normalize", "in.parquet", "out", cwd=folder).expect(0)
    done = with_full_stdout(folder, *args)
    assert done.returncode == 1, done
    assert "Nothing could be shown on stdout: No space left on device." in done.stderr
    assert "Traceback" not in done.stderr


def on_a_terminal(folder, *args, **env) -> tuple[int, str, str]:
    """Run with a terminal as stderr; return exit code, stdout, and what the terminal was sent."""
    master, slave = pty.openpty()
    sent = bytearray()

    def read() -> None:
        while True:
            try:
                chunk = os.read(master, 65536)
            except OSError:
                return
            if not chunk:
                return
            sent.extend(chunk)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        done = subprocess.run(
            [*cli.CLI, *map(str, args)],
            cwd=folder,
            env=cli.environment(TERM="xterm-256color", **env),
            stdin=slave,
            stdout=subprocess.PIPE,
            stderr=slave,
            text=True,
            timeout=60,
            check=False,
        )
    finally:
        os.close(slave)
        reader.join()
        os.close(master)
    return done.returncode, done.stdout, sent.decode()


def test_a_terminal_shows_bars_and_memory(folder):
    how = ("normalize", "in.parquet", "out", "--rows-per-part", 100, "--memory-limit", "800MB")
    code, stdout, shown = on_a_terminal(folder, *how)
    assert code == 0
    assert "\x1b" not in stdout
    assert "\x1b[" in shown
    for word in ("100%", "rows/s", "B/s", "800 MB"):  # kB/s on a machine that is busy
        assert word in shown


def test_bars_are_whole_on_80_columns(folder):
    how = ("normalize", "in.parquet", "out", "--rows-per-part", 100, "--memory-limit", "800MB")
    _, _, shown = on_a_terminal(folder, *how, COLUMNS="80", NO_COLOR="1")
    assert "…" not in shown
    assert re.search(r"rows/s, [\d.]+ [kM]B/s +\d\d:\d\d [\d.]+ MB of 800 MB", shown)


@pytest.mark.parametrize(
    "how", [("--log-format", "json"), ("--log-level", "warning"), ("--quiet",)]
)
def test_no_bars_for_those_who_want_none(folder, how):
    code, _, shown = on_a_terminal(folder, "normalize", "in.parquet", "out", *how)
    assert code == 0
    assert "\x1b" not in shown
    lines = shown.splitlines()
    assert len(lines) == (0 if how == ("--quiet",) else 1)
    if "json" in how:
        assert "'flat'" in json.loads(lines[0])["message"]


def test_no_color(folder):
    code, _, shown = on_a_terminal(
        folder, "normalize", "in.parquet", "out", "--rows-per-part", 100, NO_COLOR="1"
    )
    assert code == 0
    codes = {code for found in re.findall(r"\x1b\[([\d;]*)m", shown) for code in found.split(";")}
    assert not {c for c in codes if c and 30 <= int(c) <= 107}


def test_no_escape_codes_off_a_terminal(run_process, folder):
    for env in ({}, {"NO_COLOR": "1"}, {"FORCE_COLOR": "1"}, {"TERM": "dumb"}):
        said = run_process("normalize", "in.parquet", "out", "--overwrite", env=env).expect(0)
        assert "\x1b" not in said.stdout + said.stderr


def test_the_umask_decides_on_parts_and_state_is_private(folder):
    shell = f"umask 027 && exec {' '.join(cli.CLI)} normalize in.parquet out"
    done = subprocess.run(
        ["sh", "-c", shell], cwd=folder, env=cli.environment(), capture_output=True, check=False
    )
    assert done.returncode == 0, done
    for path in (folder / "out").iterdir():
        assert path.stat().st_mode & 0o777 == 0o640
    state = trees.state_of(folder / "out")
    assert state.stat().st_mode & 0o777 == 0o700
    for name in ("manifest.db", "lock"):
        assert (state / name).stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_outside_of_batches_is_answered_as_documented(tmp_path, number, code):
    how = ("generate", "out.parquet", "--chunks", 10_000, "--rows", 10_000)
    with cli.started(*how, cwd=tmp_path) as process:
        assert cli.wait_until(lambda: bool(os.listdir(tmp_path)), process)
        process.send_signal(number)
        stopped = cli.outcome_of(process).expect(code)
    assert "what is finished is safe" in stopped.stderr
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shells_complete_commands_options_and_values(tmp_path, shell):
    def proposed(*words):
        env = {
            "_POLAR_ETL_COMPLETE": f"complete_{shell}",
            "COMP_WORDS": " ".join(words),
            "COMP_CWORD": str(len(words) - 1),
            "_TYPER_COMPLETE_ARGS": " ".join(words),
            "_TYPER_COMPLETE_FISH_ACTION": "get-args",
        }
        code = "import sys; sys.argv = ['polar-etl']; from polar_etl.cli import main; main()"
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=tmp_path,
            env=cli.environment(**env),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done
        return set(re.findall(r"[\w-]+", done.stdout))

    assert {"normalize", "generate"} <= proposed("polar-etl", "")
    assert "--memory-limit" in proposed("polar-etl", "normalize", "--mem")
    assert {"error", "ignore", "null"} <= proposed("polar-etl", "fit", "--inf", "")


def test_it_runs_from_the_console_script_and_as_a_module(folder):
    from importlib.metadata import entry_points

    (script,) = entry_points(group="console_scripts", name="polar-etl")
    assert callable(script.load())
    assert cli.run("plan", "in.parquet", cwd=folder).expect(0).stdout


def test_a_run_imports_nothing_that_it_does_not_need(tmp_path):
    """PyArrow imports pandas, where there is one, for many a call: half a second and 60 MB."""
    columns = {
        "x": pa.array([1.0, None, 3.0]),
        "d": pa.array([Decimal("1.5"), None, Decimal("2.25")]),
        "v": pa.array([[1.0, 2.0], None, [3.0, None]], pa.list_(pa.float32(), 2)),
        "l": pa.array([[1.0, 2.0], None, [3.0, 5.0]]),
        "s": pa.array(["a", None, "b"]).dictionary_encode(),
        "t": pa.array(["a", None, "b"]),
    }
    tables.write(tmp_path / "in.parquet", columns)
    code = (
        "import sys; from polar_etl.cli import main\n"
        "try: main()\n"
        "except SystemExit as stop: assert not stop.code, stop.code\n"
        "sys.exit(str({'pandas', 'polars'} & set(sys.modules)) if "
        "{'pandas', 'polars'} & set(sys.modules) else 0)"
    )
    command = [sys.executable, "-c", code, "normalize", "in.parquet", "out", "--columns", "*"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_what_is_written_never_takes_the_place_of_what_is_read(run_cli, tmp_path):
    tables.write(tmp_path / "in.parquet", {"x": [1.0, 2.0]})
    (tmp_path / "link.parquet").symlink_to("in.parquet")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    before = trees.tree(tmp_path)
    for target in ("in.parquet", "./in.parquet", "link.parquet", "folder", "pipe", "none/x", "."):
        run_cli("fit", "in.parquet", target).expect(2)
        run_cli("generate", "new.parquet", "--rows", 5, "--truth", target).expect(2)
        assert trees.tree(tmp_path) == before
    run_cli("generate", "new.parquet", "--rows", 5, "--truth", "./new.parquet").expect(2)
    run_cli("generate", "none/new.parquet", "--rows", 5).expect(2)
    run_cli("normalize", "in.parquet", "/").expect(2)
    assert trees.tree(tmp_path) == before
