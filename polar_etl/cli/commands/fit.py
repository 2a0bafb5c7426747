"""`polar-etl fit`: statistics into a scaler file."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from polar_etl.cli.options import (
    Columns,
    DDof,
    DTypeOption,
    Exclude,
    Form,
    Inf,
    InfOption,
    Inputs,
    Json,
    Level_,
    LogFormat,
    LogLevel,
    MemoryLimit,
    Quiet,
    Threads,
    argument,
)
from polar_etl.cli.output import Output
from polar_etl.cli.session import controlled, options_of, session
from polar_etl.errors import UsageError, describe

if TYPE_CHECKING:
    from polar_etl.api import Prepared


def fit(
    inputs: Inputs,
    scaler: Annotated[Path, argument("File that the scaler is written to.")],
    columns: Columns = None,
    exclude: Exclude = None,
    ddof: DDof = 0,
    inf: InfOption = Inf.error,
    dtype: DTypeOption = None,
    memory_limit: MemoryLimit = None,
    threads: Threads = None,
    json: Json = False,
    quiet: Quiet = False,
    log_level: Level_ = LogLevel.info,
    log_format: Form = LogFormat.text,
) -> None:
    """Collect the statistics of every numeric column into a scaler file."""
    with session(json, quiet, log_level, log_format) as output:
        from polar_etl import pipeline
        from polar_etl.api import prepare
        from polar_etl.durable import require_place, sweep

        options = options_of(
            columns=columns,
            exclude=exclude,
            ddof=ddof,
            inf=inf,
            dtype=dtype,
            memory_limit=memory_limit,
            threads=threads,
        )
        started = time.perf_counter()
        _refuse_foreign_target(scaler)
        ready = prepare(inputs, options, only_fits=True)
        require_place(scaler, [Path(file.path) for file in ready.source.files])
        with controlled(output, ready.plan.limit) as control:
            fitted = pipeline.fit(ready.source, ready.settings, ready.plan, control)
            sweep(scaler.parent, scaler.name.__eq__)
            fitted.save(scaler)
            _show_fit(output, ready, scaler, len(fitted.columns), started)


def _show_fit(
    output: Output, ready: Prepared, scaler: Path, normalized: int, started: float
) -> None:
    from polar_etl.cli.plans import moment_batches
    from polar_etl.memory import peak_of_process

    source, plan = ready.source, ready.plan
    rows = sum(file.rows for file in source.files)
    fields = {
        "rows": rows,
        "columns": len(source.schema),
        "normalized_columns": normalized,
        "batches": moment_batches(ready),
        "resumed_batches": 0,
        "parts": 0,
        "bytes_in": sum(file.size for file in source.files),
        "bytes_out": scaler.stat().st_size,
        "seconds": time.perf_counter() - started,
        "memory_limit": plan.limit,
        "projected_peak": plan.projected,
        "measured_peak": peak_of_process(),
        "scaler": str(scaler),
    }
    columns = f"{normalized:,} of {len(source.schema):,} columns"
    output.result(fields, [f"{rows:,} rows, {columns}: {scaler}"])


def _refuse_foreign_target(path: Path) -> None:
    """Keep what a forgotten argument names: the last input would become the scaler file.

    Raises:
        UsageError: Something else than a scaler stands at `path`, or its directory is missing.
    """
    from polar_etl.statistics.scaler_file import is_scaler_file

    if not path.parent.is_dir():
        raise UsageError(
            f"There is no directory {describe(str(path.parent))} for the scaler file: create it."
        )
    if os.path.lexists(path) and not is_scaler_file(path):
        raise UsageError(
            f"{describe(str(path))} exists and is no scaler file: it is left as it is. The last "
            "argument is the file that the scaler is written to; name a new one."
        )
