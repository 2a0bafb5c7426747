"""Where does the time of one run go?

    python -m benchmarks.profile --tables narrow,wide,bigrg --limits 4GB,512MB
    python -m benchmarks.profile --tables narrow --scale 0.05 --stacks 5    # and what is in "other"

Runs `polar-etl normalize` in a process that samples its own threads (`benchmarks/sampling.py`), and
sorts the samples with `RULES`, so it depends on names only there. "cpu s" is time on a processor.
"blocked s" is time in which a thread was in the midst of this and not on a processor: it waited for
the disk, for the interpreter's lock, or for a processor. Forked processes are not sampled: they do
the same work on other columns, and their processor time is told as a whole. Idle is what the run
did not use of the cores, for want of work or because others used them: cores times wall time, less
all cpu time. "Not seen" are threads that Python does not know, and the last milliseconds of threads
that ended.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import statistics
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks import measure, plots
from benchmarks.contestants import normalize
from benchmarks.tables import add_arguments, data_of, limits_of, table_names

_WAITING = "queues, locks"
RULES = (
    ("imports", r"^importlib|^<frozen|^zipimport|:<module>:"),
    (_WAITING, r"^(threading|queue|concurrent|selectors|asyncio)\b"),
    ("fsync", r"sync\(|^polar_etl\.durable:sync"),
    ("hash", r"hash|digest|xxh|blake2"),
    (
        "write",
        r"_raw\.write|os\.p?writev?\(|\.write\(rest"
        r"|^polar_etl\.(durable|storage\.direct|encoding\.contents):",
    ),
    ("manifest", r"^polar_etl\.storage\.(manifest|lock|workspace)|^sqlite3"),
    (
        "footers, plan",
        r"^polar_etl\.(planning|footers\.(?!alike)|sources\.first_look|pipeline:plan)"
        r"|metadata|reader\.open\(",
    ),
    ("keep", r"^polar_etl\.passes\.kept:"),
    ("moments", r"^polar_etl\.(statistics\.(blocks|sums|moments|double)|passes\.fitting)"),
    ("normalize", r"^polar_etl\.statistics\.(standardize|scaler)|:_standardized:"),
    (
        "encode",
        r"^polar_etl\.(encoding|storage\.parts|passes\.writing)|:(_?write|_?encode)",
    ),
    ("decode", r"^polar_etl\.(sources|short_chunks|pages)\b"),
)
"""What a stack is counted as: the first rule that matches its innermost frame, else that of the
next one outwards, and so on. A frame reads `module:function: line of code`."""

ORDER = (
    "Python's start",
    "imports",
    "footers, plan",
    "decode",
    "keep",
    "moments",
    "normalize",
    "encode",
    "hash",
    "write",
    "fsync",
    "manifest",
    _WAITING,
    "other",
    "not seen",
)


@dataclass(frozen=True, slots=True)
class Share:
    """What one kind of work took, in seconds."""

    on: float
    """On a processor, all threads together."""
    off: float
    """Not on a processor."""


@dataclass(frozen=True, slots=True)
class Profile:
    """Where the time of a run went."""

    wall: float
    """From the start of the process to the end of the command line."""
    cpu: float
    """All threads, without sampling and without forked processes."""
    forked: float
    """All processes that it forked."""
    sampling: float
    """Seconds on a processor that sampling took, which is not counted elsewhere."""
    user: float
    system: float
    shares: dict[str, Share]
    """By kind of work."""
    unsorted: dict[str, float]
    """Innermost frames that no rule knows, and their seconds on a processor."""
    read: int
    """Bytes read with system calls, bytecode included."""
    written: int

    @property
    def idle(self) -> float:
        """Processor seconds that were not used."""
        return max(_cores() * self.wall - self.cpu - self.forked - self.sampling, 0.0)


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def kind_of(frames: Sequence[str]) -> str:
    """Return what a stack is counted as; "other" where no rule knows it.

    Example:
        >>> kind_of(["polar_etl.storage.parts:sync: os.fsync(self._raw.fileno())"])
        'fsync'
    """
    for frame in frames:
        for kind, pattern in RULES:
            if re.search(pattern, frame):
                return kind
    return "other"


def _of_the_run(frames: Sequence[str]) -> list[str]:
    """Return the frames without those that sample and start the run."""
    return [f for f in frames if not f.startswith(("benchmarks.sampling", "__main__", "runpy"))]


def profile(source: Path, scratch: Path, limit: str) -> Profile:
    """Run polar-etl once and return where its time went."""
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    os.sync()
    report = scratch / "report.json"
    arguments = normalize(source, scratch / "out", limit)[3:]
    sampled = (sys.executable, "-m", "benchmarks.sampling", str(report))
    run = measure.run((*sampled, str(time.monotonic()), *arguments))
    if not run.ok:
        sys.exit(f"polar-etl fails: {run.reason}")
    return _sorted(json.loads(report.read_text()))


def _sorted(found: dict[str, object]) -> Profile:
    """Return the samples of a report, sorted by `RULES`."""
    on, off = Counter[str](), Counter[str]()
    unsorted: dict[str, float] = defaultdict(float)
    on["Python's start"] = found["start"]["cpu"]
    off["Python's start"] = max(found["start"]["wall"] - found["start"]["cpu"], 0.0)
    for stack in found["stacks"]:
        frames = _of_the_run(stack["frames"])
        kind = kind_of(frames)
        on[kind] += stack["on"]
        off[kind] += stack["off"]
        if kind == "other":
            unsorted[frames[0] if frames else "the process itself"] += stack["on"]
    cpu = found["cpu"] - found["sampling"]
    on["not seen"] = max(cpu - on.total(), 0.0)
    return Profile(
        wall=found["wall"],
        cpu=cpu,
        forked=found["forked"],
        sampling=found["sampling"],
        user=found["user"],
        system=found["system"],
        shares={kind: Share(on[kind], off[kind]) for kind in ORDER},
        unsorted=dict(unsorted),
        read=found["io"]["rchar"],
        written=found["io"]["wchar"],
    )


def rows_of(profiles: Sequence[Profile]) -> Iterator[dict[str, str]]:
    """Yield the rows of a table: the mean of some runs."""
    cpu = statistics.fmean(p.cpu for p in profiles)
    for kind in ORDER:
        on = statistics.fmean(p.shares[kind].on for p in profiles)
        off = statistics.fmean(p.shares[kind].off for p in profiles)
        yield {
            "": kind,
            "cpu s": f"{on:.3f}",
            "of cpu": f"{on / cpu:.0%}",
            "blocked s": f"{off:.3f}" if kind != _WAITING else "",
        }
    for kind in ("forked", "idle"):
        yield {"": kind, "cpu s": f"{statistics.fmean(getattr(p, kind) for p in profiles):.3f}"}


def summary(profiles: Sequence[Profile]) -> str:
    """Return what a run took as a sentence."""

    def mean(name: str) -> float:
        return statistics.fmean(getattr(p, name) for p in profiles)

    return (
        f"Wall {mean('wall'):.2f} s, cpu {mean('cpu'):.2f} s on {_cores()} cores (user "
        f"{mean('user'):.2f}, system {mean('system'):.2f}, sampling included), sampling "
        f"{mean('sampling'):.2f} s; {mean('read') / 1e6:,.0f} MB read, "
        f"{mean('written') / 1e6:,.0f} MB written."
    )


def draw(path: Path, measured: dict[str, list[Profile]]) -> None:
    """Draw a bar for each run, its processor time by kind of work, as shares of cores x wall."""
    kinds = [*ORDER, "forked", "idle"]
    with plots.drawing(path, size=(8.0, 1.8 + 0.4 * len(measured))) as (panel,):
        left = [0.0] * len(measured)
        for number, kind in enumerate(kinds):
            widths = [
                statistics.fmean(
                    (p.shares[kind].on if kind in p.shares else getattr(p, kind))
                    / (_cores() * p.wall)
                    * 100
                    for p in several
                )
                for several in measured.values()
            ]
            color = {"idle": "0.9", "forked": "0.6"}.get(kind) or plots.COLORS[number]
            panel.barh(list(measured), widths, left=left, label=kind, color=color)
            left = [a + b for a, b in zip(left, widths, strict=True)]
        panel.invert_yaxis()
        panel.set_xlim(0, 100)
        panel.set_xlabel("% of cores x wall time")
        panel.figure.legend(*panel.get_legend_handles_labels(), loc="outside lower center", ncols=5)


def main() -> None:
    """Profile the tables that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tables", type=table_names, default=["narrow", "wide"], metavar="A,B")
    parser.add_argument("--limits", help="such as 4GB,512MB; default: those of each table")
    parser.add_argument("--repeat", type=int, default=3, help="runs that are averaged")
    parser.add_argument("--stacks", type=int, default=0, metavar="N", help='shows N of "other"')
    parser.add_argument("--json", type=Path, metavar="FILE")
    plots.add_argument(parser)
    add_arguments(parser)
    arguments = parser.parse_args()
    data = data_of(arguments)
    measured: dict[str, list[Profile]] = {}
    for name in arguments.tables:
        source, scratch = data.path(name), data.scratch(name)
        measure.warm(source)
        for limit in arguments.limits.split(",") if arguments.limits else limits_of(name):
            title = f"{name}, {limit}"
            print(title, file=sys.stderr)
            try:
                profiles = [profile(source, scratch, limit) for _ in range(arguments.repeat)]
            finally:
                shutil.rmtree(scratch, ignore_errors=True)
            measured[title] = profiles
            print(f"\n### {title}, scale {data.scale:g}\n")
            print(f"{measure.markdown(list(rows_of(profiles)))}\n\n{summary(profiles)}", flush=True)
            others = sum((Counter(p.unsorted) for p in profiles), Counter[str]())
            for frame, seconds in others.most_common(arguments.stacks):
                print(f"    {seconds / len(profiles):7.3f} s  {frame}")
    kept = {title: [asdict(p) for p in profiles] for title, profiles in measured.items()}
    measure.write_json(arguments.json, {"scale": data.scale, "seed": data.seed, "runs": kept})
    if arguments.plot:
        draw(arguments.plot, measured)


if __name__ == "__main__":
    main()
