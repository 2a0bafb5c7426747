"""Is anything lost when a run is disturbed, and what does it cost that nothing is?

    python -m benchmarks.durability --steps 12

The census disturbs a small run once per fault, gives the same command again, and compares what it
has written with an undisturbed run. strace injects the faults in system calls: the Nth call of a
kind, for N = 1, 2, 3, 5, 8, ..., up to `--steps` of them, until the run makes no Nth call any more.

The cost is that of waiting for the disk. A second contestant, which nobody should use, runs the
same code with `os.fsync` doing nothing and SQLite told not to wait.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks import measure
from benchmarks.contestants import normalize
from benchmarks.measure import Contestant
from benchmarks.tables import Data, add_arguments, data_of, table_names

_CALLS = ("write", "pwrite64", "fsync", "fdatasync", "rename", "unlink", "mkdir")
_ERRORS = {
    "ENOSPC": ("write", "pwrite64", "fsync", "rename", "mkdir"),
    "EIO": ("write", "pwrite64", "fsync", "fdatasync", "rename"),
}
_DISTURBED = {-signal.SIGKILL, 128 + signal.SIGKILL, 1, 4, 130, 143}

CARELESS = """
import functools, os, sqlite3, sys
class Careless(sqlite3.Connection):
    def execute(self, sql, *more):
        return super().execute(sql.replace("synchronous = EXTRA", "synchronous = OFF"), *more)
os.fsync = lambda descriptor: None
sqlite3.connect = functools.partial(sqlite3.connect, factory=Careless)
from polar_etl.cli import main
main()
"""


@dataclass(slots=True)
class Tally:
    """What became of the faults of one kind."""

    kind: str
    injected: int = 0
    """Runs that ended by the fault."""
    resumed: int = 0
    """Those that the same command has finished."""
    lost_rows: int = 0
    other_bytes: int = 0
    """Results that differ from the undisturbed one in a byte."""
    again: int = 0
    """Finished batches that were computed again although nothing had happened to them."""


class Scene:
    """A small table, its undisturbed result, and an output that is disturbed again and again."""

    def __init__(self, folder: Path) -> None:
        from polar_etl.generate import Recipe, generate

        self.folder, self.out = folder, folder / "out"
        recipe = Recipe(
            chunks=4,
            rows=5_000,
            columns=12,
            dtype="float64",
            seed=0,
            null_fraction=0.05,
            row_group_rows=2_500,
        )
        self.rows = generate(folder / "in.parquet", recipe)
        self.run()
        self.expected = self.result()
        self.clean()

    @property
    def command(self) -> list[str]:
        """The command that is disturbed, and given again."""
        words = (sys.executable, "-m", "polar_etl", "normalize", "in.parquet", "out")
        return [*words, "--rows-per-part", "2000", "--threads", "1", "--json"]

    def run(self, *before: str) -> int:
        """Run the command to its end, behind the words of a tracer; return its exit code."""
        done = subprocess.run(
            [*before, *self.command], cwd=self.folder, capture_output=True, check=False
        )
        return done.returncode

    def signalled(self, number: int, lines: int) -> int:
        """Run the command, send a signal after so many batches, and return its exit code."""
        with subprocess.Popen(
            self.command, cwd=self.folder, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        ) as process:
            assert process.stdout is not None
            for _ in range(lines):
                process.stdout.readline()
            process.send_signal(number)
            process.communicate()
        return process.returncode

    def result(self) -> dict[str, bytes]:
        """Return all parts and the scaler."""
        paths = [*self.out.glob("*"), self.folder / "out.polar-etl" / "scaler.json"]
        return {path.name: path.read_bytes() for path in paths if path.is_file()}

    def recorded(self) -> int:
        """Return how many batches an undamaged manifest tells of; 0 if there is none."""
        from polar_etl.errors import PolarEtlError
        from polar_etl.storage.manifest import Manifest
        from polar_etl.storage.workspace import Workspace

        try:
            with Manifest.open(Workspace.at(self.out, None).manifest, read_only=True) as manifest:
                return sum(len(manifest.batches(name)) for name in ("moments", "parts"))
        except PolarEtlError:
            return 0

    def clean(self) -> None:
        """Begin anew."""
        shutil.rmtree(self.out, ignore_errors=True)
        shutil.rmtree(self.folder / "out.polar-etl", ignore_errors=True)

    def resume(self, tally: Tally, damaged: int = 0) -> None:
        """Give the command again and write down what comes out."""
        import pyarrow.parquet as pq

        tally.injected += 1
        recorded = self.recorded() - damaged
        done = subprocess.run(self.command, cwd=self.folder, capture_output=True, check=False)
        found = self.result()
        if done.returncode == 0:
            tally.resumed += 1
            summary = json.loads(done.stdout.splitlines()[-1])
            tally.again += max(recorded - summary["resumed_batches"], 0)
        rows = sum(pq.read_metadata(path).num_rows for path in self.out.glob("*.parquet"))
        tally.lost_rows += self.rows - rows
        tally.other_bytes += found != self.expected
        self.clean()


def _numbers(steps: int) -> Iterator[int]:
    one, two = 1, 2
    for _ in range(steps):
        yield one
        one, two = two, one + two


def in_calls(scene: Scene, kind: str, calls: tuple[str, ...], fault: str, steps: int) -> Tally:
    """Have a fault happen in the Nth of these system calls."""
    tally = Tally(kind)
    for call in calls:
        for number in _numbers(steps):
            inject = f"inject={call}:{fault}:when={number}"
            words = ("strace", "-f", "-qq", "-o", os.devnull, "-e", f"trace={call}", "-e", inject)
            if scene.run(*words) not in _DISTURBED:
                scene.clean()
                break
            scene.resume(tally)
    return tally


def by_signal(scene: Scene, number: signal.Signals, steps: int) -> Tally:
    """Send a signal after the Nth batch."""
    tally = Tally(f"{number.name} after a batch")
    for lines in range(1, steps + 1):
        if scene.signalled(number, lines) not in _DISTURBED:
            scene.clean()
            break
        scene.resume(tally)
    return tally


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def _cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def by_damage(scene: Scene, kind: str, damage: Callable[[Path], None], steps: int) -> Tally:
    """Damage a part of a finished run."""
    tally = Tally(kind)
    for name in sorted(scene.expected)[:steps]:
        if name.startswith("part-"):
            scene.run()
            damage(scene.out / name)
            scene.resume(tally, damaged=1)
    return tally


def census(folder: Path, steps: int) -> list[Tally]:
    """Return what became of faults of every kind that can be injected here."""
    scene = Scene(folder)
    tallies = [by_signal(scene, n, steps) for n in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)]
    tallies += [
        by_damage(scene, "part deleted", Path.unlink, steps),
        by_damage(scene, "part cut short", _cut, steps),
        by_damage(scene, "bit flipped in a part", _flip, steps),
    ]
    if shutil.which("strace") is None:
        print("strace is not installed: no faults in system calls", file=sys.stderr)
        return tallies
    tallies.append(in_calls(scene, "SIGKILL in a system call", _CALLS, "signal=SIGKILL", steps))
    for error, calls in _ERRORS.items():
        tallies.append(in_calls(scene, f"{error} in a system call", calls, f"error={error}", steps))
    return tallies


def _row(tally: Tally) -> dict[str, str]:
    return {
        "fault": tally.kind,
        "injected": str(tally.injected),
        "resumed": str(tally.resumed),
        "lost rows": str(tally.lost_rows),
        "results with other bytes": str(tally.other_bytes),
        "batches computed again": str(tally.again),
    }


def cost(name: str, data: Data, limit: str, repeat: int) -> dict[str, list[measure.Run]]:
    """Return the runs with and without waiting for the disk."""
    source, scratch = data.path(name), data.scratch(name)
    measure.warm(source)
    folders = {"durable": scratch / "durable", "without fsync": scratch / "careless"}
    durable = normalize(source, folders["durable"] / "out", limit)
    careless = normalize(source, folders["without fsync"] / "out", limit)
    start = careless.index("normalize")
    commands = {
        "durable": durable,
        "without fsync": (sys.executable, "-c", CARELESS, *careless[start:]),
    }
    contestants = [
        Contestant(who, command, folders[who], folders[who] / "out")
        for who, command in commands.items()
    ]
    try:
        return measure.race(contestants, repeat)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def main() -> None:
    """Print the census of faults, and what durability costs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=8, help="faults of each kind, at most")
    parser.add_argument("--tables", type=table_names, default=["narrow", "wide"], metavar="A,B")
    parser.add_argument("--limit", default="512MB")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--json", type=Path, metavar="FILE")
    add_arguments(parser)
    parser.set_defaults(scale=0.25)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="polar-etl-durability-") as folder:
        rows = [_row(tally) for tally in census(Path(folder), arguments.steps)]
    print(f"### Faults, each followed by the same command\n\n{measure.markdown(rows)}")
    data, kept = data_of(arguments), {}
    for name in arguments.tables:
        runs = cost(name, data, arguments.limit, arguments.repeat)
        kept[name] = measure.runs_as_json(runs)
        shown = [measure.row(who, of) for who, of in runs.items()]
        ratio = measure.ratio(runs["durable"], runs["without fsync"])
        print(f"\n### {name}, scale {data.scale:g}, {arguments.limit}\n\n{measure.markdown(shown)}")
        print(f"\ndurable / without fsync, wall: {ratio}")
    measure.write_json(arguments.json, {"census": rows, "cost": kept, "scale": data.scale})


if __name__ == "__main__":
    main()
