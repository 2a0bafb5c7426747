"""The second pass: parts that are missing, written and recorded one by one."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing
from itertools import chain, groupby

from polar_etl.errors import InputError
from polar_etl.events import BatchFinished, PassFinished, PassStarted, Warned
from polar_etl.executors.local import ordered_map
from polar_etl.manifest import BatchRow, Manifest
from polar_etl.parts import digest_of, part_name
from polar_etl.passes import PartsStage, Slab, Written
from polar_etl.plan import Plan
from polar_etl.run import Cache, Run
from polar_etl.sources.base import cut
from polar_etl.sources.schemas import width
from polar_etl.workspace import Workspace


def damage_of(workspace: Workspace, row: BatchRow) -> str | None:
    """Return what is wrong with a recorded part, None if it is as the manifest says."""
    receipt = row.receipt()
    path = workspace.out / receipt.name
    try:
        if path.is_symlink() or not path.is_file():
            return "missing"
        if path.stat().st_size != receipt.size:
            return f"{path.stat().st_size} bytes instead of {receipt.size}"
        return None if digest_of(path) == receipt.digest else "its hash differs"
    except OSError as error:
        return f"unreadable ({error.strerror})"


def write_parts(
    run: Run, stage: PartsStage, manifest: Manifest, workspace: Workspace, cache: Cache
) -> int:
    """Write all parts that are not there yet; return how many were there already.

    Args:
        run: Source and plan.
        stage: Normalizes and writes; nothing of it is left open.
        manifest: Tells the finished parts, and is told the new ones.
        workspace: Where parts go.
        cache: Rows that need not be read again; emptied.
    """
    intact = _intact_parts(run, manifest, workspace)
    missing = [index for index in range(run.plan.parts) if index not in intact]
    total = run.offsets[-1]
    row_bytes = sum(width(column.type) for column in run.source.schema)
    done = total - sum(_part_rows(run.plan, index, total) for index in missing)
    started = time.perf_counter()
    run.listen(PassStarted("parts", total, done, row_bytes))
    results = ordered_map(
        stage.write,
        _slabs(run, missing, total, cache),
        threads=run.plan.threads,
        in_flight=run.plan.in_flight,
        lane=lambda slab: slab.part,
    )
    try:
        with closing(results):
            for part in _parts(results):
                _record(run, manifest, part)
        run.stop.check()
    finally:
        stage.abort()
    run.listen(PassFinished("parts", time.perf_counter() - started))
    return len(intact)


def _intact_parts(run: Run, manifest: Manifest, workspace: Workspace) -> set[int]:
    rows = manifest.batches("parts")
    damaged = {row.batch: reason for row in rows if (reason := damage_of(workspace, row))}
    for batch, reason in damaged.items():
        run.listen(Warned(f"{part_name(batch)} is damaged ({reason}): it is written again."))
    if damaged:
        manifest.forget_parts(list(damaged))
    return {row.batch for row in rows if row.batch not in damaged}


def _part_rows(plan: Plan, index: int, total: int) -> int:
    return min(plan.part_rows, max(total - index * plan.part_rows, 0))


def _slabs(run: Run, missing: list[int], total: int, cache: Cache) -> Iterator[Slab]:
    """Yield the slabs of the missing parts, reading each stretch of neighbours in one go."""
    if total == 0:
        if missing:
            yield Slab(0, True, run.source.schema.empty_table())
        return
    for _, stretch in groupby(enumerate(missing), key=lambda pair: pair[1] - pair[0]):
        parts = [part for _, part in stretch]
        first = parts[0] * run.plan.part_rows
        stop = min((parts[-1] + 1) * run.plan.part_rows, total)
        kept = cache.rows if first == 0 else 0
        tables = chain(cache.drain() if kept else (), run.rows(first + kept, stop))
        lengths = [piece for part in parts for piece in _slab_lengths(run.plan, part, total)]
        pieces = cut(tables, (length for length, _, _ in lengths))
        for rows, part, last in lengths:
            table = next(pieces, None)
            if table is None or table.num_rows != rows:
                raise InputError(
                    f"{part_name(part)} lacks rows that the footers of the input tell of."
                )
            yield Slab(part, last, table)
            del table
            run.observe_memory()
            if run.stop.requested:
                return


def _slab_lengths(plan: Plan, part: int, total: int) -> Iterator[tuple[int, int, bool]]:
    """Yield (rows, part, whether it is the last) of each slab of a part."""
    rows = _part_rows(plan, part, total)
    while rows > 0:
        length = min(plan.slab_rows, rows)
        rows -= length
        yield length, part, rows == 0


def _parts(results: Iterator[Written]) -> Iterator[list[Written]]:
    """Group the results of slabs into whole parts."""
    slabs_of_part: list[Written] = []
    for result in results:
        slabs_of_part.append(result)
        if result.receipt:
            yield slabs_of_part
            slabs_of_part = []


def _record(run: Run, manifest: Manifest, part: list[Written]) -> None:
    receipt = part[-1].receipt
    assert receipt is not None
    first_row = part[0].part * run.plan.part_rows
    offsets = run.offsets
    file = max((i for i in range(len(offsets) - 1) if offsets[i] <= first_row), default=0)
    rss, peak = run.observe_memory()
    manifest.record(
        BatchRow(
            pass_name="parts",
            batch=part[0].part,
            file=file,
            first_row=first_row - offsets[file],
            rows=receipt.rows,
            seconds=sum(slab.seconds for slab in part),
            bytes_in=sum(slab.bytes_in for slab in part),
            bytes_out=receipt.size,
            part=receipt.name,
            digest=receipt.digest,
            rss=rss,
            peak=peak,
        )
    )
    run.listen(
        BatchFinished("parts", part[0].part, receipt.rows, receipt.size, receipt.name, rss, peak)
    )
