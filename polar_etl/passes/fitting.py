"""The first pass: moments of every file, checkpointed batch by batch."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import reduce
from itertools import cycle
from typing import Self

import numpy as np

from polar_etl.errors import InputError, StateMismatchError, describe
from polar_etl.events import BatchFinished, PassFinished, PassStarted
from polar_etl.executors.forked import Work
from polar_etl.executors.local import in_step
from polar_etl.features import Features
from polar_etl.pages.ahead import Ahead
from polar_etl.passes.run import Run, Share
from polar_etl.passes.tasks import Batch, BatchMoments, collect_moments
from polar_etl.planning.batches import Extent, extents
from polar_etl.sources.base import Source
from polar_etl.statistics.moments import NO_ROW, Moments
from polar_etl.storage.manifest import BatchRow, Manifest

Progress = dict[int, tuple[int, Moments]]
"""By file: rows covered from its start, and their moments."""


def fit_files(run: Run, features: Features, manifest: Manifest | None) -> list[Moments]:
    """Return the moments of `features`, file by file.

    Args:
        run: Source and plan.
        features: What is normalized.
        manifest: Where an earlier run left off, and where this one records batches; None to
            begin at the start and record nothing.
    """
    progress: Progress = manifest.moments(len(features)) if manifest else {}
    done = len(manifest.batches("moments")) if manifest else 0
    _check(run.source, progress)
    covered = sum(rows for rows, _ in progress.values())
    total = run.offsets[-1]
    started = time.perf_counter()
    run.listen(PassStarted("moments", total, covered, run.row_bytes_of(features.columns)))
    if features:
        begun = {file: rows for file, (rows, _) in progress.items()}
        portions = run.portions(features)
        order = np.argsort(features.places(name for some in portions for name in some.names))
        results = run.map(_Moments(features, begun))
        recorder = _Recorder(run, manifest, features, progress, done)
        with closing(results), recorder:
            for found in in_step(results, len(portions)):
                recorder.add(BatchMoments.beside(found, order))
    run.stop.check()
    run.listen(PassFinished("moments", time.perf_counter() - started))
    nothing = (0, Moments.empty(len(features)))
    return [progress.get(file, nothing)[1] for file in range(len(run.source.files))]


@dataclass(frozen=True, slots=True)
class _Moments:
    """The job to collect the moments of features, from the rows on that are covered."""

    features: Features
    covered: Mapping[int, int]
    """By file: rows from its start on."""

    @contextmanager
    def begun(self, run: Run) -> Iterator[Work[Batch, BatchMoments]]:
        """Return the work that it comes to."""
        batches = list(_extents(run, self.covered, len(self.features)))
        if run.plan.deals_rows:
            starts = [run.offsets[file] + extent.first for file, extent in batches]
            opened = run.shares_in_turn(self.features.columns, starts)
        else:
            opened = run.shares_to_observe(self.features, sum(self.covered.values()))
        with opened as shares:
            yield Work(
                collect_moments,
                lambda: _batches(run, self.features, shares, batches),
                lane=lambda batch: batch.lane,
                in_flight=run.plan.ahead * len(shares),
            )


def _extents(run: Run, begun: Mapping[int, int], features: int) -> Iterator[tuple[int, Extent]]:
    """Yield the batches of what is not yet covered, file by file."""
    for index, file in enumerate(run.source.files):
        for extent in extents(file.group_rows, begun.get(index, 0), run.plan, features):
            yield index, extent


def _batches(
    run: Run, features: Features, shares: Sequence[Share], extents: Sequence[tuple[int, Extent]]
) -> Iterator[Batch]:
    """Yield batches, share by share, or shares by turns."""
    some = [(share, features.select(share.names)) for share in shares]
    turns = [[one] for one in some] if run.plan.deals_rows else [some]
    for (file, extent), turn in zip(extents, cycle(turns), strict=False):
        if run.stop.requested:
            return
        for share, features_here in turn:
            yield Batch(
                file=file,
                first_row=extent.first,
                rows=extent.rows,
                columns=share.columns,
                features=features_here,
                lane=share.lane,
                width=len(features),
                together=run.plan.batch_together,
                ahead=Ahead(rest=extent.rest),
            )


class _Recorder:
    """Merges batches in order, and records them: as many at a time as came while the disk was slow.

    Args:
        run: Source and plan.
        manifest: Where batches are recorded; None to record none.
        features: What is normalized.
        progress: Is kept up to date.
        number: Of the first batch.
    """

    def __init__(
        self,
        run: Run,
        manifest: Manifest | None,
        features: Features,
        progress: Progress,
        number: int,
    ) -> None:
        self._run, self._manifest, self._progress = run, manifest, progress
        self._number = number
        self._row_bytes = run.row_bytes_of(features.columns)
        self._held: list[BatchRow] = []
        self._recorded = self._took = 0.0
        """When batches were recorded last, and how long that took: no less lies in between."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._record()

    def add(self, result: BatchMoments) -> None:
        """Merge a batch, and record it with those before it if it is time to."""
        known = self._progress.get(result.file)
        covered, before = (known[0], [known[1]]) if known else (0, [])
        moments = reduce(Moments.merge, [*before, *result.blocks])
        self._progress[result.file] = (covered + result.rows, moments)
        rss, peak = self._run.observe_memory()
        self._held.append(
            BatchRow(
                pass_name="moments",
                batch=self._number,
                file=result.file,
                first_row=result.first_row,
                rows=result.rows,
                seconds=result.seconds,
                bytes_in=result.rows * self._row_bytes,
                bytes_out=0,
                part=None,
                digest=None,
                rss=rss,
                peak=peak,
            )
        )
        self._number += 1
        if time.perf_counter() - self._recorded >= self._took:
            self._record()

    def _record(self) -> None:
        started = time.perf_counter()
        held, self._held = self._held, []
        if held and self._manifest:
            files = {row.file for row in held}
            self._manifest.record_moments(held, {file: self._progress[file] for file in files})
        for row in held:
            self._run.listen(
                BatchFinished("moments", row.batch, row.rows, 0, None, row.rss, row.peak)
            )
        self._recorded = time.perf_counter()
        self._took = self._recorded - started


def _check(source: Source, progress: Progress) -> None:
    for file, (rows, _) in progress.items():
        if not 0 <= file < len(source.files) or not 0 <= rows <= source.files[file].rows:
            raise StateMismatchError(
                f"The manifest tells of {rows} rows of file {file}, which the input has not. "
                "Start anew with --overwrite."
            )
    there = [progress.get(file, (0, None))[0] for file in range(len(source.files))]
    gap = next((i for i, file in enumerate(source.files) if there[i] < file.rows), len(there))
    if any(there[gap + 1 :]):
        raise StateMismatchError(
            f"The manifest tells of rows behind file {gap}, but not of all of its own. "
            "Start anew with --overwrite."
        )


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
