"""Runs the command line as its users do: as a process of its own."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CLI = (sys.executable, "-m", "polar_etl")
DOCUMENTED = frozenset({0, 1, 2, 3, 4, 5, 6, 7, 130, 143})
"""The exit codes that `--help` documents."""
DEADLINE = 120.0
"""Seconds after which a process is taken to hang."""

_TROUBLE = re.compile(
    r"Traceback \(most recent call last\)|panicked at|terminate called|core dumped"
)
_CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a process."""

    args: tuple[str, ...]
    code: int
    stdout: str
    stderr: str

    def __str__(self) -> str:
        shown = " ".join(repr(word)[:200] for word in self.args)
        return f"{shown}\nexit {self.code}\n--- stdout\n{self.stdout}\n--- stderr\n{self.stderr}"

    def expect(self, *codes: int) -> Outcome:
        """Return self if the exit code is one of these and the process kept its manners."""
        assert self.code in codes, f"expected exit code {codes}: {self}"
        return self.mannered()

    def mannered(self) -> Outcome:
        """Return self if there is no traceback, no signal, no raw control character."""
        assert self.code in DOCUMENTED, f"exit code is not documented: {self}"
        trouble = _TROUBLE.search(self.stdout + self.stderr)
        assert not trouble, f"{trouble}: {self}"
        found = _CONTROL.search(self.stdout) or _CONTROL.search(self.stderr)
        assert not found, f"raw control character {found.group()!r}: {self}"
        if self.code not in (0, 3):
            assert self.stderr.strip(), f"failed without a word: {self}"
        return self

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The JSON lines of stdout."""
        return [json.loads(line) for line in self.stdout.splitlines()]

    @property
    def summary(self) -> dict[str, Any]:
        """The last JSON line of stdout, which must be the summary."""
        last = self.messages[-1]
        assert last["message_type"] == "summary", last
        return last


def environment(**extra: str) -> dict[str, str]:
    """Return the environment without anything that changes how polar-etl behaves."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("POLAR_ETL_", "PYTEST_", "POLARS_"))
        and name not in ("NO_COLOR", "FORCE_COLOR", "CLICOLOR_FORCE", "COLUMNS", "LINES")
    }
    return {**kept, "PYTHONWARNINGS": "", **extra}


def run(
    *args: object,
    cwd: Path,
    env: dict[str, str] | None = None,
    before: Sequence[str] = (),
    deadline: float = DEADLINE,
    **more: Any,
) -> Outcome:
    """Run `polar-etl ARGS` to its end.

    Args:
        *args: Arguments of the command line.
        cwd: Where it runs.
        env: Environment variables to add.
        before: Words before the command, such as those of a tracer.
        deadline: Seconds after which the process is taken to hang, and killed.
        **more: Passed on to `subprocess.run`.
    """
    command = (*before, *CLI, *(os.fspath(a) if isinstance(a, Path) else str(a) for a in args))
    done = subprocess.run(
        command,
        cwd=cwd,
        env=environment(**(env or {})),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=deadline,
        check=False,
        **more,
    )
    return Outcome(
        command,
        done.returncode,
        done.stdout.decode("utf-8", "surrogateescape"),
        done.stderr.decode("utf-8", "surrogateescape"),
    )


@contextmanager
def started(*args: object, cwd: Path, **more: Any) -> Iterator[subprocess.Popen[str]]:
    """Start `polar-etl ARGS`; the process is killed and its pipes are closed at the end."""
    options: dict[str, Any] = {
        "stdout": subprocess.PIPE,
        "stderr": subprocess.PIPE,
        "stdin": subprocess.DEVNULL,
        "env": environment(),
        **more,
    }
    process = subprocess.Popen((*CLI, *map(str, args)), cwd=cwd, text=True, **options)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def outcome_of(process: subprocess.Popen[str]) -> Outcome:
    """Wait for the end of a process that was `started`."""
    stdout, stderr = process.communicate(timeout=DEADLINE)
    args = process.args
    assert isinstance(args, tuple)
    return Outcome(args, process.returncode, stdout or "", stderr or "")


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[str] | None = None) -> bool:
    """Poll until `condition` holds; return False if `process` ended before it did."""
    deadline = time.monotonic() + DEADLINE
    while not condition():
        if process is not None and process.poll() is not None:
            return condition()
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.001)
    return True
