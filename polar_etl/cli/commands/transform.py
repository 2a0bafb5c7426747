"""`polar-etl transform`: write with a scaler that is there."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from polar_etl.cli.options import (
    Check,
    CheckInput,
    Form,
    Inputs,
    Json,
    Level,
    Level_,
    LogFormat,
    LogLevel,
    MemoryLimit,
    Out,
    Overwrite,
    PartSize,
    Quiet,
    RowsPerPart,
    StateDir,
    Threads,
    option,
)
from polar_etl.cli.session import options_of, run_shown, session


def transform(
    inputs: Inputs,
    out: Out,
    scaler: Annotated[Path, option("--scaler", "Scaler file that 'polar-etl fit' wrote.")],
    memory_limit: MemoryLimit = None,
    threads: Threads = None,
    rows_per_part: RowsPerPart = None,
    part_size: PartSize = None,
    compression_level: Level = None,
    state_dir: StateDir = None,
    overwrite: Overwrite = False,
    check_input: CheckInput = Check.footer,
    json: Json = False,
    quiet: Quiet = False,
    log_level: Level_ = LogLevel.info,
    log_format: Form = LogFormat.text,
) -> None:
    """Normalize with a scaler that was fitted before. Resumes like 'normalize'."""
    with session(json, quiet, log_level, log_format, resumable=True) as output:
        from polar_etl.statistics.scaler import Scaler

        options = options_of(
            memory_limit=memory_limit,
            threads=threads,
            rows_per_part=rows_per_part,
            part_size=part_size,
            compression_level=compression_level,
            state_dir=state_dir,
            overwrite=overwrite,
            check_input=check_input,
        )
        run_shown(output, inputs, out, options, Scaler.load(scaler, memory_limit))
