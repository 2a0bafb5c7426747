"""How do time and memory grow with rows, columns, files, row groups, threads, and the limit?

    python -m benchmarks.scaling --axes rows,columns --repeat 3 --plot scaling.svg
    python -m benchmarks.scaling --scale 0.01 --repeat 1     # a quick look

One axis is changed at a time, from a table of 4,000,000 x 50 float32; columns are changed at the
same number of cells. All tables of an axis lie side by side while it is measured, so that its runs
alternate: the axis of rows takes 20 GB of disk at full size. The cost per cell is without the
start, that is without what a table of one row takes. The slopes are those of straight lines through
the points in a log-log plot, start included: 1 means proportional, 0 that it does not matter.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks import measure, plots
from benchmarks.contestants import normalize
from benchmarks.measure import Contestant, Run
from benchmarks.tables import Data, Table, add_arguments, data_of, make, scaled

_CELLS = 200_000_000
_GROUP_CELLS = 1 << 24
_FEW_CELLS = 10_000_000
"""Below them the start decides, and cost per cell is not compared."""


@dataclass(frozen=True, slots=True)
class Case:
    """What is measured at one point of an axis."""

    table: Table
    limit: str
    threads: int


def cases_of(axis: str, base: Case) -> dict[str, Case]:
    """Return the points of an axis, by what is written beside them."""
    table = base.table
    if axis == "threads":
        cores = len(os.sched_getaffinity(0))
        counts = [n for n in (1, 2, 4, 8, 16, 32, 64) if n <= cores]
        return {str(n): replace(base, threads=n) for n in counts}
    if axis == "limit":
        sizes = ("300MB", "512MB", "1GB", "2GB", "4GB")
        return {size: replace(base, limit=size) for size in sizes}
    tables = {
        "rows": [replace(table, rows=n) for n in (200_000, 800_000, 4_000_000, 40_000_000)],
        "columns": [
            replace(table, rows=_CELLS // n, columns=n, group_rows=_GROUP_CELLS // n)
            for n in (50, 200, 1_000, 3_000, 10_000)
        ],
        "files": [replace(table, files=n) for n in (1, 5, 20, 100, 400)],
        "group_rows": [
            replace(table, group_rows=n) for n in (4_096, 16_384, 131_072, 1_048_576, 4_000_000)
        ],
    }[axis]
    return {f"{getattr(one, axis):,}": replace(base, table=one) for one in tables}


AXES = ("rows", "columns", "files", "group_rows", "threads", "limit")


@dataclass(frozen=True, slots=True)
class Point:
    """What was measured at one point of an axis."""

    label: str
    x: float
    """Where it lies on the axis."""
    cells: int
    runs: tuple[Run, ...]
    start: tuple[Run, ...]
    """The runs on a table of one row."""

    @property
    def wall(self) -> float:
        """Median seconds."""
        return statistics.median(run.wall for run in self.runs)

    @property
    def cpu(self) -> float:
        """Median seconds of all threads."""
        return statistics.median(run.cpu for run in self.runs)

    @property
    def peak(self) -> int:
        """Most bytes in memory in any run, all processes together."""
        return max(run.tree_peak for run in self.runs)

    def per_cell(self, what: str) -> float:
        """Return nanoseconds of "wall" or "cpu" per cell without the start."""
        start = statistics.median(getattr(run, what) for run in self.start)
        return (getattr(self, what) - start) / self.cells * 1e9


def measure_axis(axis: str, base: Case, data: Data, repeat: int) -> tuple[list[Point], list[str]]:
    """Measure one axis; return its points, and the labels of those that were refused or failed."""
    scratch = data.scratch(axis)
    cases = {"start": replace(base, table=replace(base.table, rows=1))}
    for label, case in cases_of(axis, base).items():
        cases[label] = replace(case, table=scaled(case.table, data.scale))
    scratch.mkdir(parents=True)
    try:
        made: dict[Table, Path] = {}
        for case in cases.values():
            if case.table not in made:
                made[case.table] = scratch / f"table-{len(made)}.parquet"
                make(case.table, data.seed, made[case.table])
                measure.warm(made[case.table])
        contestants = []
        for label, case in cases.items():
            folder = scratch / f"run-{label}"
            command = normalize(made[case.table], folder / "out", case.limit)
            words = (*command, "--threads", str(case.threads))
            contestants.append(Contestant(label, words, folder, folder / "out"))
        runs = measure.race(contestants, repeat, keep=False)
    finally:
        shutil.rmtree(scratch)
    start = tuple(runs.pop("start"))
    points = [
        Point(label, _x(axis, cases[label]), _cells(cases[label].table), tuple(done), start)
        for label, done in runs.items()
        if done[-1].ok
    ]
    return points, [label for label, done in runs.items() if not done[-1].ok]


def _x(axis: str, case: Case) -> float:
    from polar_etl.memory import parse_size

    if axis == "limit":
        return parse_size(case.limit)
    return case.threads if axis == "threads" else getattr(case.table, axis)


def _cells(table: Table) -> int:
    return table.rows // table.files * table.files * table.columns


def laws(points: Sequence[Point]) -> dict[str, plots.PowerLaw | None]:
    """Return how wall, cpu and peak grow along an axis."""
    x = [point.x for point in points]
    return {
        name: plots.PowerLaw.of(x, [getattr(point, name) for point in points])
        for name in ("wall", "cpu", "peak")
    }


def spread_per_cell(points: Sequence[Point], what: str) -> float | None:
    """Return the largest cost per cell over the least, among points of many cells."""
    costs = [point.per_cell(what) for point in points if point.cells >= _FEW_CELLS]
    return max(costs) / min(costs) if len(costs) > 1 and min(costs) > 0 else None


def row(axis: str, point: Point) -> dict[str, str]:
    """Return a row of the table."""
    shown = measure.row(point.label, point.runs)
    return {
        axis: f"{point.x:,.0f}" if axis != "limit" else point.label,
        "cells": f"{point.cells:,}",
        **{name: shown[name] for name in ("wall s", "cpu s", "tree MB", "out MB")},
        "ns per cell": f"{point.per_cell('wall'):.2f}",
        "cpu ns per cell": f"{point.per_cell('cpu'):.2f}",
    }


def conclusion(points: Sequence[Point]) -> str:
    """Return the slopes and the spread of the cost per cell as a sentence."""
    slopes = [f"{name} {law.slope:.2f}" for name, law in laws(points).items() if law]
    spreads = {what: spread_per_cell(points, what) for what in ("wall", "cpu")}
    apart = [f"{what} {spread:.2f}" for what, spread in spreads.items() if spread]
    more = f" Dearest cell over cheapest, from 10 million cells: {', '.join(apart)}."
    return f"Slopes: {', '.join(slopes) or 'none'}.{more if apart else ''}"


def draw(path: Path, axes: dict[str, list[Point]]) -> None:
    """Draw time and peak of every axis, with the fitted slopes."""
    with plots.drawing(path, 2 * len(axes), across=2) as panels:
        for (axis, points), left, right in zip(
            axes.items(), panels[::2], panels[1::2], strict=True
        ):
            x = [point.x for point in points]
            times = {name: [getattr(point, name) for point in points] for name in ("wall", "cpu")}
            plots.log_log(left, x, times)
            plots.log_log(right, x, {"peak": [point.peak / 1e6 for point in points]})
            for panel, what in ((left, "seconds"), (right, "MB")):
                panel.set_xlabel("bytes of limit" if axis == "limit" else axis.replace("_", " "))
                panel.set_ylabel(what)


def _axes(text: str) -> list[str]:
    names = text.split(",")
    unknown = sorted(set(names) - set(AXES))
    if unknown:
        raise argparse.ArgumentTypeError(f"no {', '.join(unknown)} among {', '.join(AXES)}")
    return names


def main() -> None:
    """Measure the axes that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--axes", type=_axes, default=list(AXES), metavar="A,B")
    parser.add_argument("--limit", default="512MB", help="memory limit but for the axis of limits")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--json", type=Path, metavar="FILE")
    plots.add_argument(parser)
    add_arguments(parser)
    arguments = parser.parse_args()
    data = data_of(arguments)
    base = Case(Table(4_000_000, 50, 131_072), arguments.limit, len(os.sched_getaffinity(0)))
    measured: dict[str, list[Point]] = {}
    kept = {}
    for axis in arguments.axes:
        print(f"{axis}:", file=sys.stderr)
        points, failed = measure_axis(axis, base, data, arguments.repeat)
        rows = measure.markdown([row(axis, point) for point in points])
        print(f"\n### {axis}, scale {data.scale:g}\n\n{rows}\n\n{conclusion(points)}", flush=True)
        if failed:
            print(f"Refused or failed: {', '.join(failed)}.")
        if points:
            measured[axis] = points
        kept[axis] = {
            "points": {
                point.label: {
                    "x": point.x,
                    "cells": point.cells,
                    "nanoseconds_per_cell": {w: point.per_cell(w) for w in ("wall", "cpu")},
                    **measure.runs_as_json({"runs": point.runs, "start": point.start}),
                }
                for point in points
            },
            "failed": failed,
            "slopes": {name: law and law.slope for name, law in laws(points).items()},
            "spread_per_cell": {w: spread_per_cell(points, w) for w in ("wall", "cpu")},
        }
    measure.write_json(arguments.json, {"scale": data.scale, "seed": data.seed, "axes": kept})
    if arguments.plot and measured:
        draw(arguments.plot, measured)


if __name__ == "__main__":
    main()
