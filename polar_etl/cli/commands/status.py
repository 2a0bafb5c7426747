"""`polar-etl status`: what is done and what is missing."""

from __future__ import annotations

from polar_etl.cli.options import (
    Form,
    Json,
    Level_,
    LogFormat,
    LogLevel,
    Out,
    Quiet,
    StateDir,
)
from polar_etl.cli.session import session
from polar_etl.memory import format_size


def status(
    out: Out,
    state_dir: StateDir = None,
    json: Json = False,
    quiet: Quiet = False,
    log_level: Level_ = LogLevel.info,
    log_format: Form = LogFormat.text,
) -> None:
    """Show what is done and what is missing."""
    with session(json, quiet, log_level, log_format) as output:
        from polar_etl.inspection import status_of
        from polar_etl.storage.workspace import Workspace

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
