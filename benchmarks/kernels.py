"""Why do both passes run NumPy over Arrow's buffers, and not one Polars expression per column?

    python -m benchmarks.kernels
    python -m benchmarks.kernels --widths 50,1000 --repeat 9

The arithmetic alone, on one decoded batch of Float32 in memory, in nanoseconds per value: the
moments of its blocks, and the normalized columns. Ours is done as in a run: NumPy tiles, as many
batches at a time as there are processors. Polars gets the same batches, one lazy query after the
other, on its own threads, from expressions that are built once and not timed. The least wall and
the least cpu time of the repetitions are shown.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from benchmarks.measure import markdown, write_json

if TYPE_CHECKING:
    import polars as pl

    from polar_etl.columns import Piece
    from polar_etl.statistics.standardize import Standardizer

_ROWS = {50: 131_072, 1_000: 16_384, 10_000: 4_096}
_CORES = len(os.sched_getaffinity(0))
Job = Callable[[], object]


@dataclass(frozen=True, slots=True)
class Cost:
    """What a kernel takes for one value, in nanoseconds."""

    wall: float
    cpu: float

    def __str__(self) -> str:
        return f"{self.wall:.2f} / {self.cpu:.2f}"


def cost(jobs: list[Job], values: int, repeat: int, threads: int) -> Cost:
    """Return the least time of all `jobs` together, per value, over the repetitions."""
    walls, cpus = [], []
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(repeat):
            wall, cpu = time.perf_counter(), time.process_time()
            if threads == 1:
                for job in jobs:
                    job()
            else:
                for done in [pool.submit(job) for job in jobs]:
                    done.result()
            walls.append(time.perf_counter() - wall)
            cpus.append(time.process_time() - cpu)
    return Cost(min(walls) / values * 1e9, min(cpus) / values * 1e9)


def batch(rows: int, columns: int, seed: int) -> pa.Table:
    """Return decoded columns, each a buffer of its own."""
    draw = np.random.default_rng(seed)
    mean, scale = draw.normal(0, 10, columns), np.exp(draw.normal(0, 1, columns))
    arrays = [
        pa.array((draw.standard_normal(rows) * s + m).astype(np.float32))
        for m, s in zip(mean, scale, strict=True)
    ]
    return pa.table(arrays, names=[f"c{i}" for i in range(columns)])


def our_columns(table: pa.Table) -> list[list[Piece]]:
    """Return the batch as our kernels take it."""
    from polar_etl.columns import pieces_of

    return [pieces_of(column) for column in table.columns]


def standardizer(table: pa.Table) -> Standardizer:
    """Return the arithmetic that a scaler fitted on the batch would give."""
    from polar_etl.statistics.standardize import Standardizer

    width = table.num_columns
    values = [column.to_numpy().astype(np.float64) for column in table.columns]
    no = np.zeros(width, np.bool_)
    return Standardizer(
        mean=np.array([x.mean() for x in values]),
        std=np.array([x.std() for x in values]),
        constant=no,
        exponent=np.zeros(width, np.int64),
        single=~no,
        inf_to_null=no,
    )


def polars_moments(frame: pl.DataFrame, shift: np.ndarray) -> pl.LazyFrame:
    """Return the query for sum, sum of squares, min and max relative to a shift."""
    import polars as pl

    expressions = []
    for name, k in zip(frame.columns, shift.tolist(), strict=True):
        x = pl.col(name).cast(pl.Float64) - k
        expressions += [
            x.sum().alias(f"{name}:sum"),
            (x * x).sum().alias(f"{name}:squares"),
            pl.col(name).min().alias(f"{name}:min"),
            pl.col(name).max().alias(f"{name}:max"),
        ]
    return frame.lazy().select(expressions)


def polars_scaled(frame: pl.DataFrame, how: Standardizer) -> pl.LazyFrame:
    """Return the query for the normalized columns."""
    import polars as pl

    moments = zip(frame.columns, how.mean.tolist(), how.std.tolist(), strict=True)
    return frame.lazy().select(
        [
            ((pl.col(name).cast(pl.Float64) - mean) / std).cast(pl.Float32)
            for name, mean, std in moments
        ]
    )


def measure(columns: int, rows: int, repeat: int, seed: int) -> dict[str, Cost]:
    """Return the cost of each kernel on batches of one shape, after a look at the results."""
    import polars as pl

    from polar_etl.statistics.blocks import observe

    table = batch(rows, columns, seed)
    pieces, how = our_columns(table), standardizer(table)
    frame = pl.DataFrame(table)
    moments, scaled = polars_moments(frame, how.mean), polars_scaled(frame, how)

    pages = how.apply(pieces, rows)[0].columns.pages(0)
    ours = np.concatenate([page.values for page in pages])
    np.testing.assert_allclose(ours, scaled.collect().to_series(0).to_numpy(), rtol=1e-6)
    total = sum(float(block.sum[0]) for block in observe([pieces], columns, rows, 0)) / rows
    np.testing.assert_allclose(
        total, moments.collect().item(0, 0) / rows + how.mean[0], rtol=1e-9, atol=1e-9
    )

    values = rows * columns * _CORES

    def several(job: Job, threads: int) -> Cost:
        return cost([job] * _CORES, values, repeat, threads)

    return {
        "moments, NumPy tiles": several(lambda: observe([pieces], columns, rows, 0), _CORES),
        "moments, Polars": several(moments.collect, 1),
        "scaled, NumPy tiles": several(lambda: how.apply(pieces, rows), _CORES),
        "scaled, Polars": several(scaled.collect, 1),
    }


def main() -> None:
    """Print the nanoseconds of every kernel for every width."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--widths", default=",".join(map(str, _ROWS)), help="numbers of columns")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    table, kept = [], {}
    for width in map(int, arguments.widths.split(",")):
        rows = _ROWS.get(width, max((1 << 24) // width, 1))
        found = measure(width, rows, arguments.repeat, arguments.seed)
        shown = {kernel: str(cost) for kernel, cost in found.items()}
        table.append({"ns per value, wall / cpu": f"{width:,} columns, {rows:,} rows", **shown})
        kept[width] = {"rows": rows, **{kernel: asdict(cost) for kernel, cost in found.items()}}
    print(markdown(table))
    write_json(arguments.json, kept)


if __name__ == "__main__":
    main()
