"""Both passes over a stream that is read once: nothing can be resumed, so nothing is recorded."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from functools import partial
from itertools import chain, repeat

import pyarrow as pa

from polar_etl.errors import UsageError
from polar_etl.executors.local import ordered_map
from polar_etl.features import Features
from polar_etl.moments import Moments
from polar_etl.parts import Receipt
from polar_etl.passes import Batch, PartsStage, Slab, collect_moments
from polar_etl.plan import Plan
from polar_etl.scaler import Scaler
from polar_etl.sources.base import cut
from polar_etl.sources.streams import StreamSource
from polar_etl.workspace import Workspace


def fit_stream(source: StreamSource, features: Features, plan: Plan) -> Moments:
    """Return the moments of `features` over the whole stream, as if it were one file."""
    moments = Moments.empty(len(features))
    results = ordered_map(
        partial(collect_moments, features=features),
        _batches(source, features.columns, plan),
        threads=plan.threads,
        in_flight=plan.in_flight,
    )
    for result in results:
        for block in result.blocks:
            moments = moments.merge(block)
    return moments


def _batches(source: StreamSource, names: tuple[str, ...], plan: Plan) -> Iterator[Batch]:
    first = 0
    tables = (table.select(list(names)) for table in source.tables())
    for table in cut(tables, repeat(plan.batch_rows)):
        yield Batch(0, first, table)
        first += table.num_rows


def write_stream(
    source: StreamSource,
    scaler: Scaler,
    plan: Plan,
    workspace: Workspace,
    level: int,
    *,
    overwrite: bool = False,
) -> list[Receipt]:
    """Write the stream as parts and return their receipts.

    Raises:
        UsageError: The output holds an earlier run that is not to be replaced.
    """
    with workspace.opened(overwrite=overwrite) as opening:
        if opening.resumed:
            raise UsageError(
                f"{workspace.out} holds a run over files, and a stream can't resume it: "
                "choose another output, or replace it with --overwrite."
            )
        stage = PartsStage.into(workspace, source.schema, scaler, level)
        results = ordered_map(
            stage.write,
            _slabs(source, plan),
            threads=plan.threads,
            in_flight=plan.in_flight,
            lane=lambda slab: slab.part,
        )
        try:
            with closing(results):
                return [result.receipt for result in results if result.receipt]
        except BaseException:
            stage.abort()
            workspace.discard(opening)
            raise


def _slabs(source: StreamSource, plan: Plan) -> Iterator[Slab]:
    """Yield slabs; the one that ends a part is known only when the next one has come."""
    per_part = -(-plan.part_rows // plan.slab_rows)
    lengths = [plan.slab_rows] * (per_part - 1)
    lengths.append(plan.part_rows - sum(lengths))
    tables = cut(source.tables(), chain.from_iterable(repeat(lengths)))
    nothing = pa.Table.from_batches([], source.schema)  # `empty_table` would import pandas
    held = next(tables, nothing)
    number = 0
    for table in tables:
        yield Slab(number // per_part, number % per_part == per_part - 1, held)
        held, number = table, number + 1
    yield Slab(number // per_part, True, held)
