"""How many digits of the mean and the standard deviation are right, by method and data set?

    python -m benchmarks.accuracy
    python -m benchmarks.accuracy --rows 1000000 --json accuracy.json

A figure is the log relative error, -log10 |found - exact| / |exact|, at most 16: what Float64
holds. "inf" stands for a result that is not finite. Exact is rational arithmetic over the values as
the computer holds them: whole multiples of one power of two, summed as Python's integers. The
deviation is the population's.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from benchmarks.measure import markdown, write_json
from benchmarks.tables import test_data

Values = npt.NDArray[np.floating]
Moments = tuple[float, float]
"""Mean and standard deviation."""

_MOST_DIGITS = 16.0
_BATCH_ROWS = 10_000


def polar_etl(values: Values) -> Moments:
    """`polar_etl.fit`."""
    import polar_etl as pe

    stats = pe.fit(pa.table({"x": values})).stats
    return stats["mean"].item(), stats["std"].item()


def numpy(values: Values) -> Moments:
    """`np.mean` and `np.std`."""
    return float(np.mean(values)), float(np.std(values))


def pandas(values: Values) -> Moments:
    """`Series.mean` and `Series.std`."""
    import pandas as pd

    series = pd.Series(values)
    return float(series.mean()), float(series.std(ddof=0))


def polars_in_memory(values: Values) -> Moments:
    """Polars' expressions on the in-memory engine."""
    return _polars(values, "in-memory")


def polars_streaming(values: Values) -> Moments:
    """Polars' expressions on the streaming engine."""
    return _polars(values, "streaming")


def _polars(values: Values, engine: str) -> Moments:
    import polars as pl

    x = pl.col("x")
    frame = pl.LazyFrame({"x": values}).select(mean=x.mean(), std=x.std(ddof=0))
    mean, std = frame.collect(engine=engine).row(0)  # type: ignore[call-overload]
    return mean, std


def duckdb(values: Values) -> Moments:
    """DuckDB's `avg` and `stddev_pop`."""
    import duckdb as db

    with db.connect() as connection:
        connection.register("t", pa.table({"x": values}))
        try:
            found = connection.execute("SELECT avg(x), stddev_pop(x) FROM t").fetchone()
        except db.OutOfRangeException:
            return math.nan, math.nan
    assert found is not None
    mean, std = found
    return mean, std


def sklearn_fit(values: Values) -> Moments:
    """`StandardScaler.fit`."""
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(values[:, None])
    return float(scaler.mean_[0]), math.sqrt(scaler.var_[0])


def sklearn_partial_fit(values: Values) -> Moments:
    """`StandardScaler.partial_fit` over batches."""
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler()
    for first in range(0, len(values), _BATCH_ROWS):
        scaler.partial_fit(values[first : first + _BATCH_ROWS, None])
    return float(scaler.mean_[0]), math.sqrt(scaler.var_[0])


METHODS: dict[str, Callable[[Values], Moments]] = {
    "polar-etl": polar_etl,
    "NumPy": numpy,
    "pandas": pandas,
    "Polars in-memory": polars_in_memory,
    "Polars streaming": polars_streaming,
    "DuckDB": duckdb,
    "sklearn fit": sklearn_fit,
    "sklearn partial_fit": sklearn_partial_fit,
}


def data_sets(rows: int, seed: int) -> dict[str, Values]:
    """Return the data sets by name."""
    draw = np.random.default_rng(seed)
    normal = draw.standard_normal(rows)
    spike = np.array([1e12])
    signs = draw.choice([-1.0, 1.0], rows)
    return {
        **_nist(test_data() / "nist"),
        "N(0,1)": normal,
        **{f"N(0,1) + 1e{power}": normal + 10.0**power for power in (3, 6, 9, 12, 15)},
        "float32, N(1e6,1)": (normal + 1e6).astype(np.float32),
        "ramp of 0.1": np.arange(rows) * 0.1,
        "±1e8, alternating, + N(0,1)": np.resize([1e8, -1e8], rows) + normal,
        "±1e-300 to 1e300": signs * 10.0 ** draw.uniform(-300, 300, rows),
        "outlier 1e12 first": np.concatenate([spike, normal[1:]]),
        "outlier 1e12 last": np.concatenate([normal[1:], spike]),
    }


def _nist(folder: Path) -> dict[str, Values]:
    """Return the univariate sets of NIST's Statistical Reference Datasets, where they are there."""
    found = {}
    for path in sorted(folder.glob("*.dat")):
        data = path.read_text().split("\nData: Y")[-1].splitlines()
        found[f"NIST {path.stem}"] = np.array([float(line) for line in data[2:] if line.strip()])
    return found


@dataclass(frozen=True, slots=True)
class Exact:
    """The moments of some values, as rational numbers."""

    mean: Fraction
    variance: Fraction

    @classmethod
    def of(cls, values: Values) -> Exact:
        """Compute both without any rounding."""
        mantissas, exponents = np.frexp(values.astype(np.float64))
        whole = np.ldexp(mantissas, 53).astype(np.int64).tolist()
        lowest = int(exponents.min())
        shifts = (exponents - lowest).tolist()
        units = [x << shift for x, shift in zip(whole, shifts, strict=True)]
        n, unit = len(units), Fraction(2) ** (lowest - 53)
        total, squares = sum(units), sum(x * x for x in units)
        return cls(Fraction(total, n) * unit, Fraction(n * squares - total**2, n * n) * unit**2)

    def digits(self, found: Moments) -> tuple[float, float]:
        """Return the correct digits of mean and deviation; NaN where `found` is not finite."""
        mean, std = found
        return (
            _digits(Fraction(mean) / self.mean - 1) if math.isfinite(mean) else math.nan,
            _digits(_root(Fraction(std) ** 2 / self.variance - 1))
            if math.isfinite(std)
            else math.nan,
        )


def _root(excess: Fraction) -> float:
    """Return sqrt(1 + excess) - 1, right also for the smallest excess."""
    return float(excess) / (1 + math.sqrt(1 + float(excess)))


def _digits(error: Fraction | float) -> float:
    size = abs(float(error))
    return _MOST_DIGITS if size == 0 else min(max(-math.log10(size), 0.0), _MOST_DIGITS)


def measure(sets: Mapping[str, Values]) -> dict[str, dict[str, tuple[float, float]]]:
    """Return the digits of mean and deviation by data set and method."""
    found: dict[str, dict[str, tuple[float, float]]] = {}
    with np.errstate(all="ignore"):
        for name, values in sets.items():
            exact = Exact.of(values)
            found[name] = {
                method: exact.digits(compute(values)) for method, compute in METHODS.items()
            }
    return found


def _shown(digits: tuple[float, float]) -> str:
    return " / ".join("inf" if math.isnan(found) else f"{found:.1f}" for found in digits)


def _beaten(found: Mapping[str, Mapping[str, tuple[float, float]]]) -> list[str]:
    """Return the data sets and moments in which another method shows more digits than ours."""
    lost = []
    for name, row in found.items():
        for which, moment in enumerate(("mean", "std")):
            shown = {m: round(digits[which], 1) for m, digits in row.items()}
            best = max(shown, key=lambda method: (shown[method], method == "polar-etl"))
            if best != "polar-etl":
                lost.append(f"{moment} of {name} ({best}: {shown[best]})")
    return lost


def main() -> None:
    """Print the table, and where polar-etl is not the best or equal."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=100_000, help="rows of each made data set")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    found = measure(data_sets(arguments.rows, arguments.seed))
    rows = [
        {"mean / std": name, **{method: _shown(digits) for method, digits in row.items()}}
        for name, row in found.items()
    ]
    print(markdown(rows))
    lost = _beaten(found)
    total = 2 * len(found)
    print(f"\npolar-etl is best or equal in {total - len(lost)} of {total}.", *lost, sep="\n- ")
    kept = {
        name: {
            method: {
                moment: None if math.isnan(value) else value
                for moment, value in zip(("mean", "std"), digits, strict=True)
            }
            for method, digits in row.items()
        }
        for name, row in found.items()
    }
    write_json(arguments.json, {"rows": arguments.rows, "seed": arguments.seed, "digits": kept})


if __name__ == "__main__":
    main()
