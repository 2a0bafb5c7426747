"""The commands. Each parses its arguments, calls the library, and renders what comes back."""

from __future__ import annotations

import errno
import gc
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from polar_etl import __version__
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
from polar_etl.cli.output import (
    Output,
    configure_logging,
    forget_stdout,
    outlive_stderr,
    progress,
    unshown,
)
from polar_etl.cli.signals import signals
from polar_etl.cli.startup import collect_garbage_again, open_standard_streams, start_fast
from polar_etl.errors import (
    PolarEtlError,
    RunFailedError,
    StateMismatchError,
    UsageError,
    describe,
)
from polar_etl.memory import format_size

if TYPE_CHECKING:
    from polar_etl.api import Prepared
    from polar_etl.inspection import Verdict
    from polar_etl.pipeline import Report
    from polar_etl.workspace import Workspace

_EPILOG = (
    "Exit codes: 0 done; 1 failed, can be resumed (the command is printed); 2 usage; "
    "3 done, with rows or files set aside; 4 input unreadable or invalid; 5 state does not match "
    "(input, settings or manifest changed or damaged); 6 output locked by another run; 7 memory "
    "limit too small; 130 interrupted; 143 terminated. Every option can be set by an environment "
    "variable POLAR_ETL_<OPTION>, such as POLAR_ETL_MEMORY_LIMIT."
)

app = typer.Typer(
    name="polar-etl",
    help="Standardize every numeric column of Parquet files larger than memory.",
    epilog=_EPILOG,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode=None,
)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"polar-etl {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


@contextmanager
def _session(
    as_json: bool, quiet: bool, level: LogLevel, form: LogFormat, *, resumable: bool = False
) -> Iterator[Output]:
    """Configure messages, and turn errors into a sentence and an exit code."""
    configure_logging(level.value, form.value, quiet)
    output = Output(as_json, quiet, form.value)
    try:
        yield output
    except PolarEtlError as error:
        output.error(error, resumable=resumable and error.exit_code in (1, 130, 143))
        raise typer.Exit(error.exit_code) from None
    except OSError as error:
        output.error(RunFailedError(str(error)), resumable=resumable)
        raise typer.Exit(1) from None
    except BaseException:
        if not signals.code:
            raise
        output.error(signals.error(), resumable=resumable)
        raise typer.Exit(signals.code) from None


def _options(**fields: Any) -> Any:
    from polar_etl.api import Options

    plain = {k: v.value if isinstance(v, Enum) else v for k, v in fields.items()}
    return Options(**plain, processes=True)  # nobody else has threads here


def _run(output: Output, inputs: list[str], out: Path, options: Any, scaler: Any = None) -> None:
    from polar_etl.api import run
    from polar_etl.memory import limit_in_force
    from polar_etl.pipeline import Control

    collect_garbage_again()
    with progress(output, limit_in_force(options.memory_limit)) as listener:
        control = Control(listener)
        with signals.stopping(control.stop):
            report = run(inputs, out, options, control, scaler=scaler)
    output.result(report._asdict(), _report_lines(report))


def _report_lines(report: Report) -> list[str]:
    if report.nothing_to_do:
        return [f"Nothing to do: {report.output} is finished ({report.parts} parts)."]
    resumed = f", {report.resumed_batches} resumed" if report.resumed_batches else ""
    return [
        f"{report.rows:,} rows, {report.normalized_columns:,} of {report.columns:,} columns "
        f"normalized, {report.batches} batches{resumed}",
        f"{report.parts} parts, {format_size(report.bytes_out)}, in {report.output}",
        f"{report.seconds:.1f} s; peak memory {format_size(report.measured_peak)}, projected "
        f"{format_size(report.projected_peak)}, limit {format_size(report.memory_limit)}",
    ]


@app.command(epilog=_EPILOG)
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
    with _session(json, quiet, log_level, log_format, resumable=True) as output:
        options = _options(
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
            _show_plan(output, inputs, options, out)
        else:
            _run(output, inputs, out, options)


@app.command(epilog=_EPILOG)
def fit(
    inputs: Inputs,
    scaler: Annotated[Path, typer.Argument(help="File that the scaler is written to.")],
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
    with _session(json, quiet, log_level, log_format) as output:
        from polar_etl import pipeline
        from polar_etl.api import prepare
        from polar_etl.durable import require_place, sweep

        options = _options(
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
        ready = prepare(inputs, options)
        require_place(scaler, [Path(file.path) for file in ready.source.files])
        with progress(output, ready.plan.limit) as listener:
            control = pipeline.Control(listener)
            with signals.stopping(control.stop):
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
    from polar_etl.scaler import is_scaler_file

    if not path.parent.is_dir():
        raise UsageError(
            f"There is no directory {describe(str(path.parent))} for the scaler file: create it."
        )
    if os.path.lexists(path) and not is_scaler_file(path):
        raise UsageError(
            f"{describe(str(path))} exists and is no scaler file: it is left as it is. The last "
            "argument is the file that the scaler is written to; name a new one."
        )


@app.command(epilog=_EPILOG)
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
    with _session(json, quiet, log_level, log_format, resumable=True) as output:
        from polar_etl.scaler import Scaler

        options = _options(
            memory_limit=memory_limit,
            threads=threads,
            rows_per_part=rows_per_part,
            part_size=part_size,
            compression_level=compression_level,
            state_dir=state_dir,
            overwrite=overwrite,
            check_input=check_input,
        )
        _run(output, inputs, out, options, Scaler.load(scaler, memory_limit))


@app.command(epilog=_EPILOG)
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
    with _session(json, quiet, log_level, log_format) as output:
        options = _options(
            columns=columns,
            exclude=exclude,
            dtype=dtype,
            memory_limit=memory_limit,
            threads=threads,
            rows_per_part=rows_per_part,
            part_size=part_size,
        )
        _show_plan(output, inputs, options)


def _show_plan(output: Output, inputs: list[str], options: Any, out: Path | None = None) -> None:
    from polar_etl.api import prepare
    from polar_etl.cli.plans import plan_fields, plan_lines
    from polar_etl.workspace import Workspace

    workspace = None if out is None else Workspace.at(out, options.state_dir)
    ready = prepare(inputs, options, workspace=workspace)
    output.answer(plan_fields(ready), plan_lines(ready))


@app.command(epilog=_EPILOG)
def status(
    out: Out,
    state_dir: StateDir = None,
    json: Json = False,
    quiet: Quiet = False,
    log_level: Level_ = LogLevel.info,
    log_format: Form = LogFormat.text,
) -> None:
    """Show what is done and what is missing."""
    with _session(json, quiet, log_level, log_format) as output:
        from polar_etl.inspection import status_of
        from polar_etl.workspace import Workspace

        found = status_of(Workspace.at(out, state_dir))
        count = found.parts - found.parts_done
        missing = f", {count:,} missing" if count > 0 else ""
        lines = [
            f"{found.output}: {'finished' if found.finished else 'not finished'}",
            f"moments: {found.fitted_rows:,} of {found.rows:,} rows",
            f"parts: {found.parts_done} of {found.parts}{missing}, {format_size(found.bytes_out)}",
            f"memory: peak {format_size(found.measured_peak)}, projected "
            f"{format_size(found.projected_peak)}, limit {format_size(found.memory_limit)}",
        ]
        output.answer(found._asdict(), lines)


@app.command(epilog=_EPILOG)
def verify(
    out: Out,
    deep: Annotated[
        bool, option("--deep", "Decode every part, too; compare rows and moments.")
    ] = False,
    memory_limit: MemoryLimit = None,
    threads: Threads = None,
    state_dir: StateDir = None,
    json: Json = False,
    quiet: Quiet = False,
    log_level: Level_ = LogLevel.info,
    log_format: Form = LogFormat.text,
) -> None:
    """Hash every part again and hold it against the manifest."""
    with _session(json, quiet, log_level, log_format) as output:
        from polar_etl import inspection
        from polar_etl.workspace import Workspace

        workspace = Workspace.at(out, state_dir)
        if deep:
            verdict = _verify_deep(output, workspace, memory_limit, threads)
        else:
            verdict = inspection.verify(workspace)
        if verdict.problems:
            shown = "; ".join(verdict.problems[:10])
            more = len(verdict.problems) - 10
            raise StateMismatchError(
                f"{verdict.output} is not as its manifest says: {shown}"
                + (f" and {more} more" if more > 0 else "")
                + ". Give the command that made it again: it writes what is missing or damaged; "
                "with --overwrite, everything."
            )
        inside = ", inside too" if deep else ""
        output.answer(
            verdict._asdict(), [f"{verdict.parts} parts are as the manifest says{inside}."]
        )


def _verify_deep(
    output: Output, workspace: Workspace, memory_limit: str | None, threads: int | None
) -> Verdict:
    from polar_etl.inspection import verify_deep
    from polar_etl.pipeline import Control

    limits = _options(memory_limit=memory_limit, threads=threads).limits()
    with progress(output, limits.memory) as listener:
        control = Control(listener)
        with signals.stopping(control.stop):
            return verify_deep(workspace, limits, control)


@app.command(epilog=_EPILOG)
def generate(
    out: Annotated[Path, typer.Argument(help="Parquet file to write.")],
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
    with _session(json, quiet, log_level, log_format) as output:
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


def main() -> None:
    """Run the command line."""
    start_fast()
    open_standard_streams()
    outlive_stderr()
    try:
        app()
    except BrokenPipeError:
        sys.exit(0)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        forget_stdout()
        print(f"error: {unshown(error)}", file=sys.stderr)
        sys.exit(1)
    finally:
        gc.freeze()
