"""Do two outputs hold the same numbers? The check behind `against_polars` and `compare`:

    python -m benchmarks.agreement OURS THEIRS SCALER

OURS and THEIRS are Parquet files or directories, SCALER is the scaler that made OURS. A value may
differ by what the arithmetic of its type is worth: the unit in the last place of Float32, times the
digits that subtracting the mean cancels. Constant columns are left out: ours are 0, where a peer
divides 0 by 0. Memory holds a group of columns at a time.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import polars as pl

_GROUP_BYTES = 1 << 28
_UNITS = {"float32": 2.0**-21, "float64": 1e-9}


@dataclass(frozen=True, slots=True)
class Agreement:
    """How far two outputs lie apart."""

    largest: float
    """Largest difference of any standardized value."""
    in_tolerances: float
    """Largest difference of any value in tolerances of its column; 1 or less agrees."""
    problem: str | None = None
    """What else differs: shape, names, missing values, or columns that pass through."""

    @property
    def ok(self) -> bool:
        """Tell whether the outputs agree."""
        return self.problem is None and self.in_tolerances <= 1

    def __str__(self) -> str:
        return self.problem or f"{self.largest:.1e}{'' if self.ok else ' DIFFERS'}"


def agreement(ours: Path, theirs: Path, scaler: Path) -> Agreement:
    """Compare two normalized tables value by value."""
    from polar_etl.statistics.scaler import Scaler

    fitted = Scaler.load(scaler)
    how = fitted.standardizer()
    cancelled = dict(zip(fitted.columns, np.abs(how.mean) / how.std, strict=True))
    constant = {name for name, found in zip(fitted.columns, how.constant, strict=True) if found}
    left, right = _scan(ours), _scan(theirs)
    names = left.collect_schema().names()
    if right.collect_schema().names() != names:
        return Agreement(np.inf, np.inf, "columns DIFFER")
    rows = _height(left)
    if _height(right) != rows:
        return Agreement(np.inf, np.inf, "number of rows DIFFERS")
    largest = worst = 0.0
    names = [name for name in names if name not in constant]
    many = max(_GROUP_BYTES // (8 * max(rows, 1)), 1)
    for first in range(0, len(names), many):
        group = names[first : first + many]
        a, b = left.select(group).collect(), right.select(group).collect()
        for name in group:
            if name not in cancelled:
                if not a[name].equals(b[name], check_dtypes=False):
                    return Agreement(largest, worst, f"{name} was not passed on")
                continue
            kind = "float32" if a[name].dtype.is_(_float32()) else "float64"
            x, y = _values(a[name]), _values(b[name])
            if not np.array_equal(np.isnan(x), np.isnan(y)):
                return Agreement(largest, worst, f"missing values of {name} DIFFER")
            apart = float(np.nanmax(np.abs(x - y), initial=0.0))
            reach = float(np.nanmax(np.abs(x), initial=1.0))
            largest = max(largest, apart)
            worst = max(worst, apart / (_UNITS[kind] * (float(cancelled[name]) + reach)))
    return Agreement(largest, worst)


def _scan(path: Path) -> pl.LazyFrame:
    import polars as pl

    return pl.scan_parquet(path / "*.parquet" if path.is_dir() else path)


def _height(frame: pl.LazyFrame) -> int:
    import polars as pl

    return int(frame.select(pl.len()).collect().item())


def _float32() -> type[pl.Float32]:
    import polars as pl

    return pl.Float32


def _values(series: pl.Series) -> npt.NDArray[np.float64]:
    """Return the values, NaN where one is missing."""
    import polars as pl

    return series.cast(pl.Float64).fill_null(float("nan")).to_numpy()


if __name__ == "__main__":
    print(agreement(*map(Path, sys.argv[1:4])))
