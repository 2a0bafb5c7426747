"""What is known of an output without running anything: its status, and whether its parts hold."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing
from itertools import filterfalse, islice
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from polar_etl import pipeline
from polar_etl.durable import is_regular
from polar_etl.errors import InputError, StateMismatchError, describe
from polar_etl.passes.tasks import output_schema, passed_through
from polar_etl.passes.writing import damage_of
from polar_etl.planning.settings import Limits, Settings
from polar_etl.sources.base import Reading
from polar_etl.sources.parquet import ParquetSource
from polar_etl.statistics.moments import Moments
from polar_etl.statistics.scaler import Scaler
from polar_etl.storage.manifest import Manifest
from polar_etl.storage.parts import part_index
from polar_etl.storage.workspace import Workspace

_SHOWN = 100_000
_UNIT = 2.0**-53
_UNIT_OF_SINGLE = 2.0**-24


class Status(NamedTuple):
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
    """Indices of the parts that are not recorded; of very many, the first."""
    bytes_out: int
    memory_limit: int
    projected_peak: int
    measured_peak: int


class Verdict(NamedTuple):
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
            missing=tuple(islice(filterfalse(done.__contains__, range(total)), _SHOWN)),
            bytes_out=sum(row.bytes_out for row in parts),
            memory_limit=manifest.number("memory_limit"),
            projected_peak=manifest.number("projected_peak"),
            measured_peak=max((row.peak for row in (*moments, *parts)), default=0),
        )


def verify(workspace: Workspace) -> Verdict:
    """Hash every part, and the scaler, again and hold them against the manifest.

    Raises:
        StateMismatchError: There is no manifest, or a damaged one.
    """
    with _manifest(workspace) as manifest:
        rows = manifest.batches("parts")
        total = manifest.number("parts")
        scaler = manifest.fact("scaler")
    problems = [f"{row.part}: {damage}" for row in rows if (damage := damage_of(workspace, row))]
    if scaler is not None and (damage := _damage_of_scaler(workspace, scaler)):
        problems.append(f"{workspace.scaler.name} in the state directory: {damage}")
    if len(rows) < total:
        problems.append(f"{total - len(rows)} of {total} parts are not written yet")
    known = {row.part for row in rows}
    problems += [
        f"{name}: no manifest row{', remove it' if part_index(name) >= total else ''}"
        for name in workspace.part_files()
        if name not in known
    ]
    return Verdict(str(workspace.out), len(rows), tuple(problems))


def _damage_of_scaler(workspace: Workspace, digest: object) -> str | None:
    """Return what is wrong with the scaler of a run, None if it is as the manifest says."""
    path = workspace.scaler
    if not is_regular(path):
        return "missing"
    with path.open("rb") as file:
        found = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
    return None if found == digest else "its hash differs, remove it"


def verify_deep(workspace: Workspace, limits: Limits, control: pipeline.Control) -> Verdict:
    """Decode every part, too, and hold its rows and moments against manifest and scaler.

    Page checksums are verified. Moments are held against the scaler only where the run has fitted
    it: what a given scaler makes of other rows has no mean of 0.

    Raises:
        StateMismatchError: There is no manifest, or a damaged one.
        MemoryLimitError: The memory limit is too small.
        InterruptedRunError: `control.stop` asked for it.
    """
    verdict = verify(workspace)
    if verdict.problems:
        return verdict
    try:
        return verdict._replace(problems=tuple(_found_inside(workspace, limits, control)))
    except InputError as error:
        return verdict._replace(problems=(str(error).rstrip("."),))


def _found_inside(workspace: Workspace, limits: Limits, control: pipeline.Control) -> Iterator[str]:
    base = pipeline.memory_before_a_run()
    with _manifest(workspace) as manifest:
        rows = manifest.batches("parts")
        total = manifest.number("rows")
        settings = manifest.fact("settings")
    if not is_regular(workspace.scaler):
        yield f"{workspace.scaler.name} is missing, or not a regular file"
        return
    scaler = Scaler.load(workspace.scaler, limits.memory)
    source = ParquetSource.open([str(workspace.out / (row.part or "")) for row in rows])
    if difference := _unlike(scaler, source.schema):
        yield difference
        return
    for row, file in zip(rows, source.files, strict=True):
        if row.rows != file.rows:
            yield f"{row.part}: {file.rows} rows instead of {row.rows}"
    if sum(file.rows for file in source.files) != total:
        yield f"the parts hold {sum(file.rows for file in source.files)} rows instead of {total}"
    source = source.with_lengths(scaler.columns, scaler.vectors)
    how = Settings(scaler.features, scaler.ddof, "ignore", None, None, None, 1)
    plan = pipeline.plan_run(source, how, limits, base, only_fits=True)
    found = pipeline.fit(source, how, plan, control)
    _decode_others(source, scaler, plan.reading)
    if isinstance(settings, dict) and settings.get("--scaler") is None:
        yield from moment_problems(scaler, found.moments)


def _unlike(scaler: Scaler, schema: pa.Schema) -> str | None:
    """Say whether the parts lack a column of the scaler, or hold it as another type."""
    there = set(schema.names)
    missing = [name for name in scaler.columns if name not in there]
    if missing:
        return f"the parts have no column {describe(missing[0])}"
    expected = output_schema(schema, scaler)
    for column, wanted in zip(schema, expected, strict=True):
        if column.type != wanted.type:
            return f"column {describe(column.name)} is {column.type} instead of {wanted.type}"
    return None


def _decode_others(source: ParquetSource, scaler: Scaler, how: Reading) -> None:
    """Decode and validate the columns that were passed on."""
    normalized = set(scaler.columns)
    others = [name for name in source.schema.names if name not in normalized]
    total = sum(file.rows for file in source.files)
    with closing(source.columns(others, 0, total, how)) as columns:
        for first in range(0, total, how.stream_rows):
            window = columns.next(min(how.stream_rows, total - first))
            for name in others:
                passed_through(name, window.text(name), source.schema.field(name).type)


def moment_problems(scaler: Scaler, found: Moments) -> list[str]:
    """Return what tells the moments of an output from what its scaler promises.

    Counts must be equal, and constant columns 0. For the others let u = 2^-53, e = 3 u plus the
    unit of the output's rounding, and q = u |mean| / std, by which rounding the mean moves all
    values (u |mean| is at least half the least Float64). A value of the output is b (1 + d) with
    b = (x - mean) / std exact and |d| <= e. So its mean is at most q + e away from 0, and its
    deviation at most 64 u (the scaler's own error, see the README) plus e (1 + q) away from 1.
    Both bounds are taken twice, for terms of second order.
    """
    how, fitted, labels = scaler.standardizer(), scaler.moments, scaler.features.labels()
    made_null = scaler.inf == "null"
    infinite = np.zeros_like(fitted.inf_count) if made_null else fitted.inf_count
    nulls = fitted.null_count + (fitted.inf_count if made_null else 0)
    counts = {
        "values": (found.count, fitted.count),
        "nulls": (found.null_count, nulls),
        "NaN": (found.nan_count, fitted.nan_count),
        "infinities": (found.inf_count, infinite),
    }
    problems = [
        f"column {describe(labels[i])}: {there[i]} {name} instead of {expected[i]}"
        for name, (there, expected) in counts.items()
        for i in np.flatnonzero(there != expected).tolist()
    ]
    flat = how.constant & (found.count > 0)
    scaled = (found.count > 0) & ~how.constant
    least = np.ldexp(0.5, -1074 - how.exponent)
    moved = np.maximum(_UNIT * np.abs(how.mean), least) / how.std
    rounding = 3 * _UNIT + np.where(how.single, _UNIT_OF_SINGLE, 0.0)
    mean, std = np.nan_to_num(found.mean()), found.std(scaler.ddof)
    checks = {
        "is not 0": flat & ((found.min != 0) | (found.max != 0)),
        "has another mean than 0": scaled & ~(np.abs(mean) <= 2 * (moved + rounding)),
        "has another deviation than 1": scaled
        & ~(np.abs(std - 1) <= 2 * (64 * _UNIT + rounding * (1 + moved))),
    }
    return problems + [
        f"column {describe(labels[i])} {what}"
        for what, wrong in checks.items()
        for i in np.flatnonzero(wrong).tolist()
    ]


def _manifest(workspace: Workspace) -> AbstractContextManager[Manifest]:
    if not workspace.manifest.exists():
        raise StateMismatchError(
            f"There is no run at {describe(str(workspace.out))}: "
            f"{describe(str(workspace.manifest))} does not exist. "
            "Begin one with 'polar-etl normalize', or say --state-dir."
        )
    return Manifest.open(workspace.manifest, read_only=True)
