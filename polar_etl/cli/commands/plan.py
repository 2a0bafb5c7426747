"""`polar-etl plan`: what a run would do."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from polar_etl.cli.options import (
    Columns,
    DTypeOption,
    Exclude,
    Form,
    Inputs,
    Json,
    Level_,
    LogFormat,
    LogLevel,
    MemoryLimit,
    PartSize,
    Quiet,
    RowsPerPart,
    Threads,
)
from polar_etl.cli.output import Output
from polar_etl.cli.session import options_of, session

if TYPE_CHECKING:
    from polar_etl.api import Options


def plan(
    inputs: Inputs,
    columns: Columns = None,
    exclude: Exclude = None,
    dtype: DTypeOption = None,
    memory_limit: MemoryLimit = None,
    threads: Threads = None,
    rows_per_part: RowsPerPart = None,
    part_size: PartSize = None,
    json: Json = False,
    quiet: Quiet = False,
    log_level: Level_ = LogLevel.info,
    log_format: Form = LogFormat.text,
) -> None:
    """Show what 'normalize' would do and how much memory it would take."""
    with session(json, quiet, log_level, log_format) as output:
        options = options_of(
            columns=columns,
            exclude=exclude,
            dtype=dtype,
            memory_limit=memory_limit,
            threads=threads,
            rows_per_part=rows_per_part,
            part_size=part_size,
        )
        show_plan(output, inputs, options)


def show_plan(output: Output, inputs: list[str], options: Options, out: Path | None = None) -> None:
    """Show the plan of a run, whose output would be `out` if it had one."""
    from polar_etl.api import prepare
    from polar_etl.cli.plans import plan_fields, plan_lines
    from polar_etl.storage.workspace import Workspace

    workspace = None if out is None else Workspace.at(out, options.state_dir)
    ready = prepare(inputs, options, workspace=workspace)
    output.answer(plan_fields(ready), plan_lines(ready))
