"""Faults from outside: strace kills a process at, or has it fail in, the Nth call of a kind."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from support import cli

CHANGING = (
    "write",
    "pwrite64",
    "fsync",
    "fdatasync",
    "rename",
    "renameat2",
    "link",
    "unlink",
    "unlinkat",
    "rmdir",
    "mkdir",
    "ftruncate",
    "fallocate",
    "chmod",
)
"""The calls that change what is on disk, or bring it there."""

_LINE = re.compile(r"(\d+) +(\w+)\((.*)")
_RESUMED = re.compile(r"\d+ +<\.\.\. ")


@cache
def why_not() -> str:
    """Return why processes can't be traced here; "" if they can."""
    if shutil.which("strace") is None:
        return "strace is not installed"
    command = ["strace", "-f", "-qq", "-e", "trace=getpid", "-e", "inject=getpid:error=EIO"]
    done = subprocess.run(
        [*command, sys.executable, "-c", ""], capture_output=True, text=True, check=False
    )
    reason = (done.stderr.strip() or "it failed").splitlines()[-1]
    return "" if done.returncode == 0 else f"strace does not work here: {reason}"


def require() -> None:
    """Skip the test where processes can't be traced."""
    if reason := why_not():
        pytest.skip(reason)


@dataclass(frozen=True, slots=True)
class Call:
    """A system call of a run."""

    thread: int
    """0 for the first thread that made one, and so on."""
    name: str
    nth: int
    """How many calls of this name the thread has made, this one included."""
    text: str
    """Arguments and result as strace shows them."""


def _strace(names: Sequence[str], log: Path) -> list[str]:
    listed = ",".join(f"?{name}" for name in names)
    return ["strace", "-f", "-y", "-qq", "-o", str(log), "-e", f"trace={listed}"]


def census(cwd: Path, *args: object, names: Sequence[str] = CHANGING) -> list[Call]:
    """Run `polar-etl ARGS` undisturbed and return its calls in the order of their beginning."""
    log = cwd / "census.log"
    cli.run(*args, cwd=cwd, before=_strace(names, log)).expect(0)
    counts: Counter[tuple[int, str]] = Counter()
    threads: dict[str, int] = {}
    found = []
    for line in log.read_text(errors="replace").splitlines():
        match = _LINE.match(line)
        if match is None or _RESUMED.match(line):
            continue
        thread = threads.setdefault(match.group(1), len(threads))
        counts[thread, match.group(2)] += 1
        nth = counts[thread, match.group(2)]
        found.append(Call(thread, match.group(2), nth, match.group(3)))
    log.unlink()
    return found


def disturbed(
    cwd: Path, name: str, when: str, fault: str, *args: object, **more: Any
) -> tuple[cli.Outcome, str]:
    """Run `polar-etl ARGS` with a fault injected; return its outcome and the calls it fell on.

    Args:
        cwd: Where it runs.
        name: The system call.
        when: Such as `3`, the third of each thread, or `3+`, that one and all later ones.
        fault: Such as `signal=SIGKILL` or `error=ENOSPC`.
        *args: Arguments of the command line.
        **more: Passed on to `subprocess.run`.
    """
    log = cwd / "fault.log"
    before = [*_strace([name], log), "-e", f"inject={name}:{fault}:when={when}"]
    outcome = cli.run(*args, cwd=cwd, before=before, **more)
    lines = _whole(log.read_text(errors="replace").splitlines())
    log.unlink()
    hit = [line for line in lines if "INJECTED" in line]
    return outcome, "\n".join(hit or lines[-2:])


def _whole(lines: Sequence[str]) -> list[str]:
    """Return the lines of a log, the ends of calls that others came between with their beginnings.

    Only a beginning tells which file a call is on.
    """
    begun: dict[str, str] = {}
    found = []
    for line in lines:
        thread = line.split(" ", 1)[0]
        if line.endswith("<unfinished ...>"):
            begun[thread] = line
        elif _RESUMED.match(line) and thread in begun:
            found.append(f"{begun.pop(thread)} {line}")
        else:
            found.append(line)
    return [*found, *begun.values()]
