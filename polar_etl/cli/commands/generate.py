"""`polar-etl generate`: a synthetic table."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

from polar_etl.cli.options import (
    Form,
    Json,
    Level_,
    LogFormat,
    LogLevel,
    Quiet,
    argument,
    option,
)
from polar_etl.cli.session import session
from polar_etl.cli.signals import signals
from polar_etl.memory import format_size


def generate(
    out: Annotated[Path, argument("Parquet file to write.")],
    chunks: Annotated[int, option("--chunks", "Number of chunks.")] = 1,
    rows: Annotated[int, option("--rows", "Rows of each chunk.")] = 100_000,
    cols: Annotated[int, option("--cols", "Number of columns.")] = 50,
    dtype: Annotated[str, option("--dtype", "Type of all columns.")] = "float32",
    seed: Annotated[int, option("--seed", "The same seed gives the same table.")] = 0,
    null_fraction: Annotated[float, option("--null-fraction", "Share of nulls.")] = 0.0,
    row_group_size: Annotated[
        Optional[int],  # noqa: UP045
        option("--row-group-size", "Rows of a row group; default: a chunk, at most 1,048,576."),
    ] = None,
    truth: Annotated[
        Optional[Path],  # noqa: UP045
        option("--truth", "Parquet file for mean and scale of every column."),
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
    log_level: Level_ = LogLevel.info,
    log_format: Form = LogFormat.text,
) -> None:
    """Write a synthetic table, in memory that does not grow with the chunks."""
    with session(json, quiet, log_level, log_format) as output:
        from polar_etl.generate import Recipe
        from polar_etl.generate import generate as write
        from polar_etl.stop import Stop

        recipe = Recipe(
            chunks=chunks,
            rows=rows,
            columns=cols,
            dtype=dtype,
            seed=seed,
            null_fraction=null_fraction,
            row_group_rows=row_group_size,
        )
        stop = Stop()
        with signals.stopping(stop):
            written = write(out, recipe, truth, stop)
        size = out.stat().st_size
        output.result(
            {"rows": written, "columns": cols, "bytes_out": size, "output": str(out)},
            [f"{written:,} rows, {cols:,} columns, {format_size(size)}: {out}"],
        )
