"""`polar-etl normalize`: fit and write."""

from __future__ import annotations

from typing import Annotated

from polar_etl.cli.commands.plan import show_plan
from polar_etl.cli.options import (
    Check,
    CheckInput,
    Columns,
    DDof,
    DTypeOption,
    Exclude,
    Form,
    Inf,
    InfOption,
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


def normalize(
    inputs: Inputs,
    out: Out,
    columns: Columns = None,
    exclude: Exclude = None,
    ddof: DDof = 0,
    inf: InfOption = Inf.error,
    dtype: DTypeOption = None,
    memory_limit: MemoryLimit = None,
    threads: Threads = None,
    rows_per_part: RowsPerPart = None,
    part_size: PartSize = None,
    compression_level: Level = None,
    state_dir: StateDir = None,
    overwrite: Overwrite = False,
    check_input: CheckInput = Check.footer,
    dry_run: Annotated[bool, option("--dry-run", "Show the plan; read and write no data.")] = False,
    json: Json = False,
    quiet: Quiet = False,
    log_level: Level_ = LogLevel.info,
    log_format: Form = LogFormat.text,
) -> None:
    """Standardize every numeric column: mean 0, standard deviation 1.

    The same command again resumes a run that was killed.
    """
    with session(json, quiet, log_level, log_format, resumable=True) as output:
        options = options_of(
            columns=columns,
            exclude=exclude,
            ddof=ddof,
            inf=inf,
            dtype=dtype,
            memory_limit=memory_limit,
            threads=threads,
            rows_per_part=rows_per_part,
            part_size=part_size,
            compression_level=compression_level,
            state_dir=state_dir,
            overwrite=overwrite,
            check_input=check_input,
        )
        if dry_run:
            show_plan(output, inputs, options, out)
        else:
            run_shown(output, inputs, out, options)
