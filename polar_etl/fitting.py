"""The first pass: moments of every file, checkpointed batch by batch."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import repeat

import numpy as np
import pyarrow as pa

from polar_etl.errors import InputError, StateMismatchError, describe
from polar_etl.events import BatchFinished, PassFinished, PassStarted
from polar_etl.executors.local import ordered_map
from polar_etl.features import Features
from polar_etl.manifest import BatchRow, Manifest
from polar_etl.moments import NO_ROW, Moments
from polar_etl.passes import Batch, BatchMoments, collect_moments
from polar_etl.run import Cache, Run
from polar_etl.sources.base import Source, cut
from polar_etl.sources.schemas import width

Progress = dict[int, tuple[int, Moments]]
"""By file: rows covered from its start, and their moments."""


def fit_files(
    run: Run, features: Features, manifest: Manifest | None, cache: Cache
) -> list[Moments]:
    """Return the moments of `features`, file by file.

    Args:
        run: Source and plan.
        features: What is normalized.
        manifest: Where an earlier run left off, and where this one records batches; None to
            begin at the start and record nothing.
        cache: Is given decoded rows as long as it takes them.
    """
    progress: Progress = manifest.moments(len(features)) if manifest else {}
    done = len(manifest.batches("moments")) if manifest else 0
    _check(run.source, progress)
    resumed = sum(rows for rows, _ in progress.values())
    total = sum(file.rows for file in run.source.files)
    started = time.perf_counter()
    run.listen(
        PassStarted("moments", total, resumed, _row_bytes(run.source.schema, features.columns))
    )
    if features:
        results = ordered_map(
            partial(collect_moments, features=features),
            _batches(run, features.columns, progress, cache),
            threads=run.plan.threads,
            in_flight=run.plan.in_flight,
        )
        for number, result in enumerate(results, start=done):
            _record(run, result, number, progress, len(features), manifest)
    run.stop.check()
    run.listen(PassFinished("moments", time.perf_counter() - started))
    nothing = (0, Moments.empty(len(features)))
    return [progress.get(file, nothing)[1] for file in range(len(run.source.files))]


def _batches(run: Run, names: tuple[str, ...], progress: Progress, cache: Cache) -> Iterator[Batch]:
    """Yield what is not yet covered, file by file, in batches of whole blocks."""
    schema = run.source.schema
    everything = list(names) == schema.names
    for index, file in enumerate(run.source.files):
        first = progress.get(index, (0, None))[0]
        if first:
            cache.room = 0
        keep = everything or cache.room >= file.rows * _row_bytes(schema, schema.names)
        columns = None if keep else list(names)
        tables = run.source.read(index, first, file.rows, columns, run.plan.reading)
        for table in cut(tables, repeat(run.plan.batch_rows)):
            if keep:
                cache.keep(table)
            yield Batch(index, first, table)
            first += table.num_rows
            del table
            run.observe_memory()
            if run.stop.requested:
                return
        if first != file.rows:
            raise InputError(f"{describe(file.path)} holds {first} rows, its footer {file.rows}.")
        if not keep and file.rows:
            cache.room = 0


def _record(
    run: Run,
    result: BatchMoments,
    number: int,
    progress: Progress,
    width: int,
    manifest: Manifest | None,
) -> None:
    covered, state = progress.get(result.file, (0, Moments.empty(width)))
    for block in result.blocks:
        state = state.merge(block)
    progress[result.file] = (covered + result.rows, state)
    rss, peak = run.observe_memory()
    if manifest:
        row = BatchRow(
            pass_name="moments",
            batch=number,
            file=result.file,
            first_row=result.first_row,
            rows=result.rows,
            seconds=result.seconds,
            bytes_in=result.bytes_in,
            bytes_out=0,
            part=None,
            digest=None,
            rss=rss,
            peak=peak,
        )
        manifest.record_moments(row, covered + result.rows, state)
    run.listen(BatchFinished("moments", number, result.rows, 0, None, rss, peak))


def _check(source: Source, progress: Progress) -> None:
    for file, (rows, _) in progress.items():
        if not 0 <= file < len(source.files) or not 0 <= rows <= source.files[file].rows:
            raise StateMismatchError(
                f"The manifest tells of {rows} rows of file {file}, which the input has not. "
                "Start anew with --overwrite."
            )


def _row_bytes(schema: pa.Schema, names: tuple[str, ...] | list[str]) -> int:
    return sum(width(schema.field(name).type) for name in names)


def refuse_infinities(paths: list[str], names: Sequence[str], files: list[Moments]) -> None:
    """Raise an error that names the features with infinite values, if there are any.

    Raises:
        InputError: With columns, counts, and the first file and row.
    """
    counts = np.array([moments.inf_count for moments in files]).sum(axis=0)
    if not counts.any():
        return
    columns = np.flatnonzero(counts).tolist()
    file = next(i for i, moments in enumerate(files) if moments.inf_count.any())
    first_rows = files[file].first_inf
    column = int(first_rows.argmin())
    assert first_rows[column] != NO_ROW
    named = ", ".join(f"{describe(names[i])} ({counts[i]})" for i in columns[:5])
    more = f" and {len(columns) - 5} more columns" if len(columns) > 5 else ""
    raise InputError(
        f"{counts.sum()} infinite values in {named}{more}; the first stands in "
        f"{describe(paths[file])}, row {first_rows[column]} (counted from 0), column "
        f"{describe(names[column])}. Nothing was written. Use --inf ignore to pass them on "
        "uncounted, or --inf null to make them null."
    )
