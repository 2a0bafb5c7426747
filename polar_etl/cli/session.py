"""What the commands share: messages and exit codes, the options of a run, and the run itself."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from polar_etl.cli.options import LogFormat, LogLevel
from polar_etl.cli.output import Output, configure_logging, progress
from polar_etl.cli.signals import signals
from polar_etl.cli.startup import collect_garbage_again
from polar_etl.errors import PolarEtlError, RunFailedError
from polar_etl.memory import format_size

if TYPE_CHECKING:
    from polar_etl.api import Options
    from polar_etl.pipeline import Control, Report
    from polar_etl.statistics.scaler import Scaler


@contextmanager
def session(
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


def options_of(**fields: Any) -> Options:
    """Return what was asked for, as the library takes it."""
    from polar_etl.api import Options

    plain = {k: v.value if isinstance(v, Enum) else v for k, v in fields.items()}
    return Options(**plain, processes=True)  # nobody else has threads here


@contextmanager
def controlled(output: Output, limit: int) -> Iterator[Control]:
    """Yield what shows how a run goes, and what the first signal stops it with."""
    from polar_etl.pipeline import Control

    with progress(output, limit) as listener:
        control = Control(listener)
        with signals.stopping(control.stop):
            yield control


def run_shown(
    output: Output, inputs: list[str], out: Path, options: Options, scaler: Scaler | None = None
) -> None:
    """Normalize, with a scaler if there is one; show how it goes, and what became of it."""
    from polar_etl.api import run
    from polar_etl.memory import limit_in_force

    collect_garbage_again()
    with controlled(output, limit_in_force(options.memory_limit)) as control:
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
