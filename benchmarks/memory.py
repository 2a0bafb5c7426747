"""Does every run stay below its limit, and what do the five lines of Polars need?

    python -m benchmarks.memory --scale 1 --plot memory.svg
    python -m benchmarks.memory --shapes narrow,lying --limits least --scale 0.02  # a quick look

Each input of `benchmarks.shapes` is run with its limits, or with `--limits`; "least" is the
smallest one that is not refused. As root, both programs run inside a control group of exactly the
limit, in which the kernel kills what needs more. "kernel MB" is the high-water mark that the kernel
kept of the process, "tree MB" the largest sum over the process tree, sampled every 5 ms; "group MB"
counts what the kernel keeps of the files, too, which it takes back when the limit is near. The five
lines pass vectors and texts on; where there is no number beside, they fail.

The picture is of the first run of bigrg (or of the first shape), with the five lines once more
without a limit. The exit code is 1 if polar-etl was killed, went beyond a limit, or failed in
another way than a documented one, and at full size if a projection is more than 1.6 times the peak.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import signal
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from benchmarks import measure, plots
from benchmarks.cgroup import limited
from benchmarks.contestants import normalize, peer
from benchmarks.measure import Run
from benchmarks.shapes import SHAPES, path_of, shape_names
from benchmarks.tables import add_arguments, data_of

_OURS, _LINES = "polar-etl", "the five lines"
_TIMEOUT = 3600.0
_DONE, _INVALID, _REFUSED = 0, 4, 7
_POINTS = 400
"""Points of a curve, about."""
_COLORS = (plots.COLORS[3], plots.COLORS[6], plots.COLORS[4])
_GENEROUS = 1.6
"""How many times the peak the projection may be."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one program on one input under one limit."""

    shape: str
    who: str
    limit: int
    projected: int | None
    """What the plan said; None for other programs."""
    exit_code: int
    wall: float
    peak: int
    """Largest resident size of its largest process, as the kernel kept it; 0 if it was refused."""
    tree_peak: int
    """Largest sum of resident sizes over its process tree, sampled."""
    group_peak: int | None
    """Largest use of the control group, page cache included; None where there was none."""
    kills: int | None
    """Processes that the kernel killed; None where there was no control group."""
    message: str
    """The last thing it said, if it did not succeed."""

    @property
    def killed(self) -> bool:
        """Tell whether the kernel has killed it."""
        return bool(self.kills) or self.exit_code in (-signal.SIGKILL, 128 + signal.SIGKILL)

    def complaint(self, *, full_size: bool) -> str:
        """Return what the contract says against it; "" if nothing."""
        if self.killed:
            return "killed"
        if max(self.peak, self.tree_peak) > self.limit:
            return "beyond the limit"
        if self.exit_code not in (_DONE, _INVALID, _REFUSED):
            return f"failed with {self.exit_code}"
        peak = max(self.peak, self.tree_peak)
        if full_size and self.projected and self.projected > peak * _GENEROUS:
            return f"projected {self.projected / peak:.2f} times the peak"
        return ""


@dataclass(frozen=True, slots=True)
class _Bill:
    """What `polar-etl plan` says."""

    limit: int
    projected: int | None
    refused: str
    """Why; "" if it is not."""


def _plan(source: Path, limit: str) -> Run:
    cli = (sys.executable, "-m", "polar_etl", "plan")
    return measure.run((*cli, str(source), "--memory-limit", limit, "--json"))


def bill(source: Path, limit: str) -> _Bill:
    """Return what a run is projected to need under a limit."""
    from polar_etl.memory import parse_size

    planned = _plan(source, limit)
    if not planned.ok:
        return _Bill(parse_size(limit), None, planned.reason)
    summary = json.loads(measure.last_line(planned.stdout))
    return _Bill(summary["memory_limit"], summary["projected_peak"], "")


def least(source: Path) -> str:
    """Return the smallest limit that will do, as the refusal of a smaller one says it."""
    found = re.search(r"--memory-limit (\d+MB)", _plan(source, "1MB").stderr)
    if found is None:
        sys.exit(f"{source} is not refused with a limit that would do.")
    return found.group(1)


def run_limited(
    shape: str, who: str, command: tuple[str, ...], scratch: Path, bill: _Bill
) -> tuple[Outcome, Run]:
    """Run a command, inside a control group where one can be made."""
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    with limited(bill.limit) as group:
        run = measure.run(command, cgroup_procs=group and group.procs, timeout=_TIMEOUT)
        outcome = Outcome(
            shape=shape,
            who=who,
            limit=bill.limit,
            projected=bill.projected if who == _OURS else None,
            exit_code=run.exit_code,
            wall=run.wall,
            peak=run.peak,
            tree_peak=run.tree_peak,
            group_peak=group and group.peak(),
            kills=group and group.kills(),
            message="" if run.ok else run.reason,
        )
    shutil.rmtree(scratch)
    return outcome, run


def _refusal(shape: str, bill: _Bill) -> Outcome:
    return Outcome(
        shape=shape,
        who=_OURS,
        limit=bill.limit,
        projected=None,
        exit_code=_REFUSED,
        wall=0.0,
        peak=0,
        tree_peak=0,
        group_peak=None,
        kills=0,
        message=bill.refused,
    )


def _megabytes(size: int | None) -> str:
    return f"{size / 1e6:,.0f}" if size else ""


def row(outcome: Outcome) -> dict[str, str]:
    """Return a row of the table."""
    refused = outcome.exit_code == _REFUSED
    ended = {_DONE: "done", _REFUSED: "refused"}.get(outcome.exit_code, f"{outcome.exit_code}")
    return {
        "input": SHAPES[outcome.shape].title,
        "limit MB": _megabytes(outcome.limit),
        "": outcome.who,
        "projected MB": _megabytes(outcome.projected),
        "kernel MB": _megabytes(outcome.peak),
        "tree MB": _megabytes(outcome.tree_peak),
        "group MB": _megabytes(outcome.group_peak),
        "peak / limit": "" if refused else f"{outcome.peak / outcome.limit:.2f}",
        "exit": "killed" if outcome.killed else ended,
        "wall s": "" if refused else f"{outcome.wall:.1f}",
    }


def _thinned(samples: Sequence[tuple[float, int]]) -> tuple[list[float], list[float]]:
    """Return seconds and gigabytes of a few hundred stretches: of each, its largest sample."""
    length = max(len(samples) // _POINTS, 1)
    there = [sample for sample in samples if sample[1]]
    stretches = (there[first : first + length] for first in range(0, len(there), length))
    highest = [max(stretch, key=lambda sample: sample[1]) for stretch in stretches]
    return [second for second, _ in highest], [size / 1e9 for _, size in highest]


def draw(path: Path, title: str, limit: int, curves: dict[str, Run]) -> None:
    """Draw resident memory over time; a cross where a run was killed."""
    with plots.drawing(path, size=(7.0, 2.8)) as (panel,):
        for color, (who, run) in zip(_COLORS, curves.items(), strict=False):
            seconds, resident = _thinned(run.samples)
            killed = run.exit_code in (-signal.SIGKILL, 128 + signal.SIGKILL)
            label = f"{who}, killed" if killed else who
            panel.plot(seconds, resident, color=color, linewidth=1.4, label=label)
            if killed and seconds:
                panel.plot(seconds[-1], resident[-1], "x", color=color, markersize=9, mew=2)
        panel.axhline(limit / 1e9, color="0.4", linestyle="--", linewidth=1)
        panel.annotate(
            f"limit {limit / 1e6:,.0f} MB",
            (1, limit / 1e9),
            xycoords=("axes fraction", "data"),
            xytext=(0, 3),
            textcoords="offset points",
            ha="right",
            color="0.4",
        )
        panel.set(xlabel="seconds", ylabel="resident GB", title=title)
        panel.set_xlim(left=0)
        panel.set_ylim(bottom=0)
        panel.legend(loc="upper right")


def main() -> None:
    """Run every shape with its limits, beside the five lines."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", type=shape_names, default=list(SHAPES), metavar="A,B")
    parser.add_argument("--limits", help="such as 300MB,1GB or least; default: those of each shape")
    parser.add_argument("--json", type=Path, metavar="FILE")
    plots.add_argument(parser)
    add_arguments(parser)
    parser.set_defaults(scale=0.1)
    arguments = parser.parse_args()
    data = data_of(arguments)
    pictured = "bigrg" if "bigrg" in arguments.shapes else arguments.shapes[0]
    outcomes: list[Outcome] = []
    for name in arguments.shapes:
        source, scratch = path_of(name, data), data.scratch(name)
        measure.warm(source)
        lines = (*peer("polars", source, scratch).command[:-1], str(scratch / "out.parquet"))
        for limit in arguments.limits.split(",") if arguments.limits else SHAPES[name].limits:
            limit = least(source) if limit == "least" else limit
            print(f"{name} {limit}", file=sys.stderr)
            planned = bill(source, limit)
            commands = {_OURS: normalize(source, scratch / "out", limit), _LINES: lines}
            if planned.refused:
                outcomes.append(_refusal(name, planned))
                del commands[_OURS]
            curves = {}
            for who, command in commands.items():
                outcome, curves[who] = run_limited(name, who, command, scratch, planned)
                outcomes.append(outcome)
            if arguments.plot and name == pictured and not planned.refused:
                free = replace(planned, limit=1 << 60)
                _, alone = run_limited(name, _LINES, lines, scratch, free)
                curves[f"{_LINES}, no limit"] = alone
                draw(arguments.plot, SHAPES[name].title, planned.limit, curves)
                pictured = ""
    print(f"\n### Scale {data.scale:g}\n\n{measure.markdown([row(one) for one in outcomes])}\n")
    measure.write_json(
        arguments.json,
        {
            "scale": data.scale,
            "seed": data.seed,
            "runs": [{**asdict(one), "killed": one.killed} for one in outcomes],
        },
    )
    for one in outcomes:
        if one.message:
            print(f"{one.shape}, {one.who}, {_megabytes(one.limit)} MB: {one.message}")
    if all(one.kills is None for one in outcomes):
        print("No control group could be made: run as root to see what the kernel kills.")
    complaints = {
        one: found
        for one in outcomes
        if one.who == _OURS and (found := one.complaint(full_size=data.scale >= 1))
    }
    for one, found in complaints.items():
        print(f"NOT KEPT: {one.shape}, {_megabytes(one.limit)} MB: {found}.")
    sys.exit(bool(complaints))


if __name__ == "__main__":
    main()
