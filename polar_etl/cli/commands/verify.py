"""`polar-etl verify`: whether the parts are as the manifest says."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from polar_etl.cli.options import (
    Form,
    Json,
    Level_,
    LogFormat,
    LogLevel,
    MemoryLimit,
    Out,
    Quiet,
    StateDir,
    Threads,
    option,
)
from polar_etl.cli.output import Output
from polar_etl.cli.session import controlled, options_of, session
from polar_etl.errors import StateMismatchError

if TYPE_CHECKING:
    from polar_etl.inspection import Verdict
    from polar_etl.storage.workspace import Workspace


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
    with session(json, quiet, log_level, log_format) as output:
        from polar_etl import inspection
        from polar_etl.storage.workspace import Workspace

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

    limits = options_of(memory_limit=memory_limit, threads=threads).limits()
    with controlled(output, limits.memory) as control:
        return verify_deep(workspace, limits, control)
