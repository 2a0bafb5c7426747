"""What do several commands cost, run in turn: time, processor, memory, and size of the output?

The other modules call `race`. By itself it compares commands, each of which writes to `{out}`:

    python -m benchmarks.measure --repeat 3 'cp big.bin {out}' 'zstd -q big.bin -o {out}'

Before each run its folder is emptied and the disk is synced, so that nobody pays for the dirty
pages of the one before. The order is reversed in every other round, and ratios are taken round by
round.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import shlex
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil

from benchmarks.tables import ROOT

_SAMPLE_SECONDS = 0.005
_CHILDREN_SECONDS = 0.1
_LIBRARIES = (
    "polar-etl",
    "polars",
    "pyarrow",
    "numpy",
    "duckdb",
    "scikit-learn",
    "pandas",
    "dask",
    "pyspark",
)


@dataclass(frozen=True, slots=True)
class Contestant:
    """A command that reads the same as the others and writes its own output."""

    name: str
    command: tuple[str, ...]
    folder: Path
    """Is removed before each run; the command may write anything in it."""
    output: Path
    """The file or directory in `folder` whose size counts."""


@dataclass(frozen=True, slots=True)
class Run:
    """One run of a command."""

    exit_code: int
    """Negative: killed by this signal."""
    wall: float
    cpu: float
    """User and system seconds of the process and of all that it waited for; of its process tree, as
    last sampled, if that is more."""
    peak: int
    """Largest resident size of its largest process, as the kernel kept it (`ru_maxrss`)."""
    tree_peak: int
    """Largest sum of resident sizes over its process tree, sampled every 5 ms."""
    output_bytes: int
    stdout: str
    stderr: str
    samples: tuple[tuple[float, int], ...]
    """Seconds since the start, and the sum of resident sizes then."""

    @property
    def ok(self) -> bool:
        """Tell whether the command succeeded."""
        return self.exit_code == 0

    @property
    def reason(self) -> str:
        """The last thing that the command said on stderr; of a JSON line, its message."""
        line = last_line(self.stderr)
        try:
            return str(json.loads(line)["message"])
        except (ValueError, KeyError, TypeError):
            return line or f"exit code {self.exit_code}"


class _TreeSampler:
    """Samples memory and processor of all descendants of a process until it is told to stop."""

    def __init__(self, pid: int) -> None:
        self.samples: list[tuple[float, int]] = []
        self._seconds: dict[int, float] = {}
        self._root = psutil.Process(pid)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread."""
        self._stop.set()
        self._thread.join()

    @property
    def cpu(self) -> float:
        """User and system seconds of all descendants, as last sampled."""
        return sum(self._seconds.values())

    @property
    def peak(self) -> int:
        """The largest sample."""
        return max((size for _, size in self.samples), default=0)

    def _run(self) -> None:
        processes: list[psutil.Process] = []
        looked, started = 0.0, time.monotonic()
        while not self._stop.wait(_SAMPLE_SECONDS):
            now = time.monotonic()
            if not processes or now - looked > _CHILDREN_SECONDS:
                with contextlib.suppress(psutil.Error):
                    processes = self._root.children(recursive=True)
                for process in processes:
                    with contextlib.suppress(psutil.Error):
                        times = process.cpu_times()
                        self._seconds[process.pid] = times.user + times.system
                looked = now
            self.samples.append((now - started, sum(map(_resident, processes))))


def _resident(process: psutil.Process) -> int:
    try:
        return int(process.memory_info().rss)
    except psutil.Error:
        return 0


def run(
    command: Sequence[str],
    output: Path | None = None,
    *,
    cgroup_procs: Path | None = None,
    timeout: float | None = None,
) -> Run:
    """Run a command in the root of the repository and return what it cost.

    Args:
        command: The command; its first word is looked up on the path.
        output: What it writes, a file or a directory, whose size is returned.
        cgroup_procs: The `cgroup.procs` file of a control group that it runs in.
        timeout: Seconds after which it and its children are killed.
    """
    reader, writer = os.pipe()
    spawn = [sys.executable, "-I", "-S", str(Path(__file__).with_name("spawn.py"))]
    words = [*spawn, str(writer), str(cgroup_procs or ""), *command]
    with (
        os.fdopen(reader) as usage,
        tempfile.TemporaryFile("w+", errors="replace") as out,
        tempfile.TemporaryFile("w+", errors="replace") as err,
    ):
        process = subprocess.Popen(
            words,
            cwd=ROOT,
            stdout=out,
            stderr=err,
            pass_fds=[writer],
            start_new_session=True,
            env=_as_installed(os.environ),
        )
        os.close(writer)
        sampler = _TreeSampler(process.pid)
        started = time.monotonic()
        try:
            process.wait(timeout)
        except subprocess.TimeoutExpired:
            pass
        finally:
            with contextlib.suppress(ProcessLookupError):  # also of what it left behind
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            sampler.stop()
        found = {
            "exit_code": -signal.SIGKILL,
            "wall": time.monotonic() - started,
            "cpu": 0.0,
            "peak": sampler.peak,
            **json.loads(usage.read() or "{}"),
        }
        found["cpu"] = max(found["cpu"], sampler.cpu)
        out.seek(0)
        err.seek(0)
        return Run(
            **found,
            tree_peak=max(sampler.peak, found["peak"]),
            output_bytes=size_of(output) if output else 0,
            stdout=out.read(),
            stderr=err.read(),
            samples=tuple(sampler.samples),
        )


def _as_installed(variables: Mapping[str, str]) -> dict[str, str]:
    """Return the variables with which Python keeps byte code, as pip leaves it with packages."""
    return {name: v for name, v in variables.items() if name != "PYTHONDONTWRITEBYTECODE"}


def size_of(path: Path) -> int:
    """Return the bytes of a file, or of all files in a directory; 0 if there is none."""
    if path.is_dir():
        return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    return path.stat().st_size if path.exists() else 0


def race(
    contestants: Sequence[Contestant],
    repeat: int,
    *,
    keep: bool = True,
    say: Callable[[str], None] = lambda line: print(line, file=sys.stderr),
) -> dict[str, list[Run]]:
    """Run all contestants `repeat` times, in turn; return the runs of each, in order.

    One that fails is not run again. The outputs of the last runs are left in their folders, unless
    `keep` is false.
    """
    runs: dict[str, list[Run]] = {contestant.name: [] for contestant in contestants}
    for number in range(repeat):
        for contestant in contestants[:: -1 if number % 2 else 1]:
            done = runs[contestant.name]
            if done and not done[-1].ok:
                continue
            shutil.rmtree(contestant.folder, ignore_errors=True)
            contestant.folder.mkdir(parents=True)
            os.sync()
            found = run(contestant.command, contestant.output)
            done.append(found)
            if not keep:
                shutil.rmtree(contestant.folder)
            say(f"  {number + 1}/{repeat} {contestant.name:24} {found.wall:7.2f} s")
            if not found.ok:
                say(f"  {contestant.name} failed with {found.exit_code}: {found.reason}")
    return runs


def last_line(text: str) -> str:
    """Return the last line of what a command said; nothing if it said nothing."""
    return (text.strip().splitlines() or [""])[-1]


def warm(path: Path) -> None:
    """Read a file, or all files in a directory, so that all find them in the page cache."""
    for one in path.iterdir() if path.is_dir() else [path]:
        with one.open("rb") as file:
            while file.read(1 << 24):
                pass


@dataclass(frozen=True, slots=True)
class Ratio:
    """Wall time of one contestant over that of another, taken round by round."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f}-{self.high:.2f})"


def ratio(of: Sequence[Run], to: Sequence[Run]) -> Ratio | None:
    """Return the ratio of wall times over the rounds that both finished; None if there is none."""
    both = zip(of, to, strict=False)
    ratios = [a.wall / b.wall for a, b in both if a.ok and b.ok]
    if not ratios:
        return None
    return Ratio(statistics.median(ratios), min(ratios), max(ratios))


def row(name: str, runs: Sequence[Run]) -> dict[str, str]:
    """Return a row for `markdown`: medians, the spread of the wall time, and the largest peaks."""
    good = [run for run in runs if run.ok]
    if not good:
        return {"": name, "wall s": f"failed with {runs[-1].exit_code}"}
    walls = [run.wall for run in good]
    return {
        "": name,
        "wall s": f"{statistics.median(walls):.2f} ({min(walls):.2f}-{max(walls):.2f})",
        "cpu s": f"{statistics.median(run.cpu for run in good):.2f}",
        "peak MB": f"{max(run.peak for run in good) / 1e6:.0f}",
        "tree MB": f"{max(run.tree_peak for run in good) / 1e6:.0f}",
        "out MB": f"{good[-1].output_bytes / 1e6:.1f}",
    }


def markdown(rows: Sequence[Mapping[str, str]]) -> str:
    """Return rows as an aligned Markdown table; a cell that is missing stays empty."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    cells = [names, *([row.get(name, "") for name in names] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join(_aligned([cells[0], rule, *cells[1:]], widths))


def _aligned(cells: Sequence[Sequence[str]], widths: Sequence[int]) -> Iterator[str]:
    for first, *others in cells:
        words = [first.ljust(widths[0])]
        words += [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        yield f"| {' | '.join(words)} |"


def environment() -> dict[str, object]:
    """Return what the figures depend on: processor, memory and versions."""
    return {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory": psutil.virtual_memory().total,
        "versions": {name: found for name in _LIBRARIES if (found := _version(name))},
    }


def _version(library: str) -> str | None:
    try:
        return version(library)
    except PackageNotFoundError:
        return None


def runs_as_json(runs: Mapping[str, Sequence[Run]]) -> dict[str, list[dict[str, object]]]:
    """Return all runs as JSON objects, without what the commands said and single samples."""
    left_out = ("stdout", "stderr", "samples")
    return {
        name: [{k: v for k, v in asdict(run).items() if k not in left_out} for run in several]
        for name, several in runs.items()
    }


def write_json(path: Path | None, results: object) -> None:
    """Write results and environment to a JSON file, if one is asked for."""
    if path is not None:
        text = json.dumps({"environment": environment(), "results": results}, indent=1)
        path.write_text(text + "\n", encoding="utf-8")


def main() -> None:
    """Compare commands given on the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("commands", nargs="+", metavar="COMMAND", help="writes to '{out}'")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        contestants = []
        for number, command in enumerate(arguments.commands):
            folder = Path(scratch, str(number))
            words = shlex.split(command.replace("{out}", str(folder / "out")))
            contestants.append(Contestant(command, tuple(words), folder, folder / "out"))
        runs = race(contestants, arguments.repeat)
    first = runs[arguments.commands[0]]
    print(
        markdown(
            [{**row(name, r), "to the first": str(ratio(r, first))} for name, r in runs.items()]
        )
    )
    write_json(arguments.json, runs_as_json(runs))


if __name__ == "__main__":
    main()
