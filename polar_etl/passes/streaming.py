"""Both passes over a stream that is read once: nothing can be resumed, so nothing is recorded."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from functools import partial
from itertools import count, cycle, repeat
from typing import NamedTuple

import pyarrow as pa

from polar_etl.durable import make_directory
from polar_etl.errors import UsageError
from polar_etl.executors.local import Item, Result, in_step, ordered_map, worker_threads
from polar_etl.features import Features
from polar_etl.pages.ahead import NONE_AHEAD, Ahead
from polar_etl.passes import shares
from polar_etl.passes.shares import Team
from polar_etl.passes.tasks import Encoder, Place, Slab, moments_of
from polar_etl.passes.writing import PartsWriter, slab_lengths
from polar_etl.planning.plan import Plan, Together
from polar_etl.sources.base import TableWindow, cut
from polar_etl.sources.streams import StreamSource
from polar_etl.statistics.moments import Moments
from polar_etl.statistics.scaler import Scaler
from polar_etl.storage.direct import Staging
from polar_etl.storage.parts import Receipt
from polar_etl.storage.workspace import Workspace


def fit_stream(source: StreamSource, features: Features, plan: Plan) -> Moments:
    """Return the moments of `features` over the whole stream, as if it were one file."""
    moments = Moments.empty(len(features))
    some = [features.select(names) for names in _portions(features.columns, plan)]
    results = _mapped(
        partial(_moments_of, width=len(features), together=plan.together),
        _batches(cut(source.tables(), repeat(plan.batch_rows)), some),
        plan,
    )
    for beside in in_step(results, len(some)):
        for blocks in zip(*beside, strict=True):
            moments = moments.merge(Moments.beside(blocks))
    return moments


def _mapped(
    task: Callable[[Item], Result], items: Iterable[Item], plan: Plan
) -> Generator[Result, None, None]:
    """Yield `task(item)` for every item, see `ordered_map`, in threads of one pass."""
    with worker_threads(plan.threads) as threads:
        yield from ordered_map(task, items, threads=threads, in_flight=plan.in_flight)


def _portions(columns: Sequence[str], plan: Plan) -> list[tuple[str, ...]]:
    """Return columns in runs that are worked on side by side, so that few tables are held."""
    return [some.names for some in shares.cut(dict.fromkeys(columns, 1), Team(1, plan.shares, 0.0))]


class _Batch(NamedTuple):
    """Rows of a stream, of some of its features."""

    first_row: int
    table: pa.Table
    features: Features


def _batches(tables: Iterable[pa.Table], portions: Sequence[Features]) -> Iterator[_Batch]:
    first = 0
    for table in tables:
        yield from (_Batch(first, table, some) for some in portions)
        first += table.num_rows


def _moments_of(batch: _Batch, width: int, together: Together) -> list[Moments]:
    window = TableWindow(batch.table)
    return moments_of(window, batch.features, batch.first_row, width, together)


def write_stream(
    source: StreamSource,
    scaler: Scaler,
    plan: Plan,
    workspace: Workspace,
    level: int | None,
    *,
    overwrite: bool = False,
) -> list[Receipt]:
    """Write the stream as parts and return their receipts.

    Parts that replace those of an earlier run are staged until all of them are there: a stream is
    read once, and what is wrong with it may come last.

    Raises:
        UsageError: The output holds an earlier run that is not to be replaced, or the stream is so
            long that there would be too many parts; nothing is left of them.
    """
    with workspace.opened(overwrite=overwrite) as opening:
        if opening.resumed:
            raise UsageError(
                f"{workspace.out} holds a run over files, and a stream can't resume it: "
                "choose another output, or replace it with --overwrite."
            )
        replaces = opening.manifest == workspace.draft
        target = workspace.staged if replaces else workspace
        if replaces:
            make_directory(target.out)
        encoder = Encoder.of(source.schema, scaler, level)
        results = _mapped(encoder.encode_slab, _slabs(source, plan), plan)
        try:
            with (
                closing(results),
                closing(Staging()) as staging,
                PartsWriter(target, encoder.form, staging) as writer,
            ):
                written = [part for found in results for part in writer.append(found)]
                written += writer.finish()
            if replaces:
                workspace.take_over(target)
            return [part.receipt for part in written]
        except BaseException:
            workspace.discard(opening)
            raise


def _slabs(source: StreamSource, plan: Plan) -> Iterator[Slab]:
    """Yield slabs share by share; which one ends a part is known when the next one has come."""
    portions = _portions(source.schema.names, plan)
    lengths = [rows for rows, _ in slab_lengths(plan, plan.part_rows)]
    tables = cut(source.tables(), cycle(lengths))
    nothing = pa.Table.from_batches([], source.schema)  # `empty_table` would import pandas
    held = next(tables, nothing)
    for number in count():
        part, place = divmod(number, len(lengths))
        following = next(tables, None)
        last = following is None or place == len(lengths) - 1
        for share, names in enumerate(portions):
            there = Place(part, len(held), last, ends=share == len(portions) - 1)
            yield Slab(there, _Only(held), names, share, plan.together)
        if following is None:
            return
        held = following


class _Only(NamedTuple):
    """A table as columns that have these rows and no others."""

    table: pa.Table

    def next(
        self,
        rows: int,  # noqa: ARG002 - they are all there
        ahead: Ahead = NONE_AHEAD,  # noqa: ARG002
    ) -> TableWindow:
        """Return the table."""
        return TableWindow(self.table)

    def close(self) -> None:
        """Hold nothing."""
