"""Pictures of measurements, for the modules that take `--plot FILE`.

Matplotlib is imported when something is drawn. The suffix of the file decides what it is: SVG,
PNG or PDF. The same figures give the same bytes.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.measure import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_STYLE = {
    "svg.hashsalt": "polar-etl",
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.sans-serif": ["Helvetica", "Arial", "DejaVu Sans"],
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "0.9",
    "legend.frameon": False,
}

COLORS = (
    "#4e79a7",
    "#a0cbe8",
    "#9c755f",
    "#59a14f",
    "#f28e2b",
    "#edc948",
    "#e15759",
    "#b07aa1",
    "#ff9da7",
    "#76b7b2",
    "#d37295",
    "#79706e",
    "#d4a6c8",
    "#bab0ac",
)
"""Colours that are told apart side by side."""


def add_argument(parser: argparse.ArgumentParser) -> None:
    """Add `--plot`."""
    parser.add_argument("--plot", type=_picture, metavar="FILE", help="draws an SVG, PNG or PDF")


def _picture(text: str) -> Path:
    path = Path(text)
    if path.suffix not in (".svg", ".png", ".pdf"):
        raise argparse.ArgumentTypeError(f"{text} should end with .svg, .png or .pdf")
    return path


@contextmanager
def drawing(
    path: Path, panels: int = 1, *, across: int = 3, size: tuple[float, float] = (4.0, 3.0)
) -> Iterator[list[Axes]]:
    """Give panels to draw on, `across` in a row and of `size` inches each; write the file then."""
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with mpl.rc_context(_STYLE):
        columns = min(panels, across)
        rows = -(-panels // columns)
        figure = Figure((size[0] * columns, size[1] * rows), layout="constrained")
        FigureCanvasAgg(figure)
        axes = list(np.ravel(figure.subplots(rows, columns, squeeze=False)))
        for empty in axes[panels:]:
            empty.remove()
        yield axes[:panels]
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


@dataclass(frozen=True, slots=True)
class PowerLaw:
    """y = factor * x ** slope, fitted to logarithms."""

    slope: float
    factor: float

    @classmethod
    def of(cls, x: Sequence[float], y: Sequence[float]) -> PowerLaw | None:
        """Return the law that fits best; None where fewer than two points are there."""
        if len(set(x)) < 2:
            return None
        slope, height = np.polyfit(np.log(x), np.log(y), 1)
        return cls(float(slope), float(np.exp(height)))

    def at(self, x: Sequence[float]) -> list[float]:
        """Return the law's values."""
        return [self.factor * value**self.slope for value in x]


def log_log(axes: Axes, x: Sequence[float], lines: Mapping[str, Sequence[float]]) -> None:
    """Draw points and the power laws through them, with their slopes in the legend."""
    from matplotlib.ticker import LogLocator

    axes.set_xscale("log")
    axes.set_yscale("log")
    for number, (label, y) in enumerate(lines.items()):
        law, color = PowerLaw.of(x, y), f"C{number}"
        text = f"{label}, slope {law.slope:.2f}" if law else label
        axes.plot(x, y, "o", color=color, markersize=4, label=text)
        if law:
            axes.plot(x, law.at(x), "-", color=color, linewidth=1, alpha=0.6)
    values = [value for y in lines.values() for value in y]
    axes.set_ylim(min(values) / 3, max(values) * 3)
    axes.set_xticks(x, [short(value) for value in x])
    axes.xaxis.minorticks_off()
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(lambda value, _: short(value))
    axes.yaxis.minorticks_off()
    axes.legend(loc="upper left")


def races(
    path: Path,
    tables: Mapping[str, Mapping[str, Sequence[Run]]],
    startup: Callable[[Run], float] = lambda _: 0.0,
) -> None:
    """Draw wall time and the peak of the process tree of contestants, two panels for a table.

    Of wall time the median is drawn, with the extremes, and in grey how much of it is start-up.
    """
    finished = {
        title: {name: [run for run in several if run.ok] for name, several in runs.items()}
        for title, runs in tables.items()
    }
    most = max(map(len, finished.values()))
    with drawing(path, 2 * len(tables), across=2, size=(4.2, 0.8 + 0.32 * most)) as panels:
        for (title, runs), left, right in zip(
            finished.items(), panels[::2], panels[1::2], strict=True
        ):
            good = {name: several for name, several in runs.items() if several}
            names, walls = list(good), [[run.wall for run in several] for several in good.values()]
            medians = list(map(median, walls))
            starts = [median(map(startup, several)) for several in good.values()]
            work = [wall - start for wall, start in zip(medians, starts, strict=True)]
            apart = (
                [wall - min(several) for wall, several in zip(medians, walls, strict=True)],
                [max(several) - wall for wall, several in zip(medians, walls, strict=True)],
            )
            left.barh(names, starts, color="0.75", label="start-up of a cluster")
            left.barh(names, work, left=starts, xerr=apart, color="C0", error_kw={"lw": 0.8})
            left.set_xlabel("seconds")
            left.set_title(title)
            if any(starts):
                left.legend(loc="best")
            peaks = [max(run.tree_peak for run in several) / 1e6 for several in good.values()]
            right.barh(names, peaks, color="C2")
            right.set_xlabel("peak MB of the process tree")
            for panel in (left, right):
                panel.invert_yaxis()
                panel.grid(visible=False, axis="y")


def short(value: float) -> str:
    """Return a number as it stands on an axis: 200k, 4M, 0.5."""
    for letter, unit in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= unit:
            return f"{value / unit:.3g}{letter}"
    return f"{value:.3g}"
