"""What is known of an output without running anything: its status, and whether its parts hold."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass

from polar_etl.errors import StateMismatchError, describe
from polar_etl.manifest import BatchRow, Manifest
from polar_etl.workspace import Workspace
from polar_etl.writing import damage_of


@dataclass(frozen=True, slots=True)
class Status:
    """How far an output has come."""

    output: str
    finished: bool
    rows: int
    fitted_rows: int
    """Rows whose moments are recorded."""
    parts: int
    """Parts that there will be."""
    parts_done: int
    missing: tuple[int, ...]
    """Indices of the parts that are not recorded."""
    bytes_out: int
    memory_limit: int
    projected_peak: int
    measured_peak: int


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is wrong with the parts of an output."""

    output: str
    parts: int
    """Parts looked at."""
    problems: tuple[str, ...]
    """One sentence each; none when every part is as recorded."""


def status_of(workspace: Workspace) -> Status:
    """Return how far an output has come.

    Raises:
        StateMismatchError: There is no manifest, or a damaged one.
    """
    with _manifest(workspace) as manifest:
        moments, parts = manifest.batches("moments"), manifest.batches("parts")
        total = manifest.number("parts")
        done = {row.batch for row in parts}
        return Status(
            output=str(workspace.out),
            finished=bool(manifest.fact("finished")),
            rows=manifest.number("rows"),
            fitted_rows=sum(row.rows for row in moments),
            parts=total,
            parts_done=len(parts),
            missing=tuple(index for index in range(total) if index not in done),
            bytes_out=sum(row.bytes_out for row in parts),
            memory_limit=manifest.number("memory_limit"),
            projected_peak=manifest.number("projected_peak"),
            measured_peak=max((row.peak for row in (*moments, *parts)), default=0),
        )


def verify(workspace: Workspace) -> Verdict:
    """Hash every part again and hold it against the manifest.

    Raises:
        StateMismatchError: There is no manifest, or a damaged one.
    """
    with _manifest(workspace) as manifest:
        rows = manifest.batches("parts")
        total = manifest.number("parts")
    problems = [f"{row.part}: {damage}" for row in rows if (damage := damage_of(workspace, row))]
    if len(rows) < total:
        problems.append(f"{total - len(rows)} of {total} parts are not written yet")
    known = {row.part for row in rows}
    problems += [f"{name}: no manifest row" for name in workspace.part_files() if name not in known]
    return Verdict(str(workspace.out), len(rows), tuple(problems))


def batches_of(workspace: Workspace) -> list[BatchRow]:
    """Return all recorded batches of both passes."""
    with _manifest(workspace) as manifest:
        return [*manifest.batches("moments"), *manifest.batches("parts")]


def _manifest(workspace: Workspace) -> AbstractContextManager[Manifest]:
    if not workspace.manifest.exists():
        raise StateMismatchError(
            f"There is no run at {describe(str(workspace.out))}: "
            f"{describe(str(workspace.manifest))} does not exist. "
            "Begin one with 'polar-etl normalize', or say --state-dir."
        )
    return Manifest.open(workspace.manifest, read_only=True)
