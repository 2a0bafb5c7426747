"""Tables to normalize, and what must come out."""

from __future__ import annotations

import json
import math
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq


def write(path: Path, columns: dict[str, Any] | pa.Table, **how: Any) -> Path:
    """Write `columns` as Parquet to `path`, creating its folder, and return `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table = columns if isinstance(columns, pa.Table) else pa.table(columns)
    pq.write_table(table, path, **how)
    return path


def floats(rows: int, columns: int, dtype: str = "float32", seed: int = 0) -> pa.Table:
    """Return normally distributed columns `c0`, `c1`, … of several means and scales."""
    draw = np.random.default_rng(seed)
    return pa.table(
        {
            f"c{i}": (draw.standard_normal(rows) * 3.0 ** (i % 12) + 10 * i).astype(dtype)
            for i in range(columns)
        }
    )


def mixed(rows: int, seed: int = 0) -> pa.Table:
    """Return one column of about every kind that there is, with nulls."""
    draw = np.random.default_rng(seed)
    nulls = draw.random(rows) < 0.1
    words = np.array(["", "a", "grün", "日本", "🦆" * 5, "x\ny"], dtype=object)
    return pa.table(
        {
            "id": pa.array(range(rows), pa.int64()),
            "x": pa.array(draw.normal(5, 2, rows), mask=nulls),
            "text": pa.array(words[draw.integers(0, 6, rows)].tolist(), mask=nulls),
            "flag": pa.array(draw.random(rows) < 0.5, mask=nulls),
            "y": pa.array(draw.normal(-1e6, 10, rows).astype(np.float32)),
            "day": pa.array(draw.integers(0, 20000, rows).astype("M8[D]")),
            "moment": pa.array(draw.integers(0, 10**15, rows).astype("M8[us]"), mask=nulls),
            "zoned": pa.array(
                draw.integers(0, 10**15, rows), pa.timestamp("ns", tz="Europe/Berlin")
            ),
            "clock": pa.array(draw.integers(0, 10**9, rows), pa.time64("us")),
            "blob": pa.array([bytes([i % 256]) * (i % 7) for i in range(rows)], mask=nulls),
            "fixed": pa.array([i.to_bytes(4, "big") for i in range(rows)], pa.binary(4)),
            "list": pa.array([list(range(i % 4)) if i % 5 else None for i in range(rows)]),
            "struct": pa.array([{"a": i, "b": str(i % 3)} for i in range(rows)]),
            "map": pa.array(
                [[("k", i)] * (i % 3) for i in range(rows)], pa.map_(pa.string(), pa.int32())
            ),
            "category": pa.array(words[draw.integers(0, 5, rows)].tolist()).dictionary_encode(),
            "nothing": pa.nulls(rows),
            "n": pa.array(draw.integers(-100, 100, rows), pa.int16()),
        }
    )


NORMALIZED_OF_MIXED = ("id", "x", "y", "n")


def read(out: Path) -> pa.Table:
    """Return the rows of a finished output."""
    return ds.dataset(out).to_table()


def statistics(out: Path, name: str) -> tuple[float, float]:
    """Return mean and standard deviation of a column, as the run's scaler has them."""
    path = out.with_name(f"{out.name}.polar-etl") / "scaler.json"
    table = json.loads(path.read_text())["table"]
    index = table["column"].index(name)
    return table["mean"][index], table["std"][index]


def exact_statistics(values: np.ndarray, ddof: int = 0) -> tuple[float, float]:
    """Return mean and standard deviation by rational arithmetic, each rounded once."""
    numbers = [Fraction(float(value)) for value in values]
    mean = sum(numbers, Fraction(0)) / len(numbers)
    variance = sum(((n - mean) ** 2 for n in numbers), Fraction(0)) / (len(numbers) - ddof)
    return float(mean), math.sqrt(variance)


def reference(values: np.ndarray, mean: float, std: float, dtype: str) -> np.ndarray:
    """Return (x - mean) / std in Float64, rounded once to `dtype`."""
    return ((values.astype(np.float64) - mean) / std).astype(dtype)


def assert_bits(found: np.ndarray, expected: np.ndarray) -> None:
    """Compare two float arrays bit by bit; every NaN is like every other."""
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    unlike = ~((found == expected) | (np.isnan(found) & np.isnan(expected)))
    where = np.flatnonzero(unlike)[:5]
    assert not unlike.any(), (
        f"{unlike.sum()} of {len(found)} differ: {where}, {found[where]}, {expected[where]}"
    )
