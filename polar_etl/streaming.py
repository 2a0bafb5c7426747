"""Both passes over a stream that is read once: nothing can be resumed, so nothing is recorded."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from functools import partial
from itertools import cycle, repeat
from typing import NamedTuple

import pyarrow as pa

from polar_etl.direct import Staging
from polar_etl.durable import make_directory
from polar_etl.errors import UsageError
from polar_etl.executors.local import ordered_map
from polar_etl.features import Features
from polar_etl.moments import Moments
from polar_etl.parts import Receipt
from polar_etl.passes import Encoder, Place, Slab, moments_of
from polar_etl.plan import Plan, Together
from polar_etl.scaler import Scaler
from polar_etl.sources.base import TableWindow, cut
from polar_etl.sources.streams import StreamSource
from polar_etl.workspace import Workspace
from polar_etl.writing import PartsWriter, slab_lengths


def fit_stream(source: StreamSource, features: Features, plan: Plan) -> Moments:
    """Return the moments of `features` over the whole stream, as if it were one file."""
    moments = Moments.empty(len(features))
    results = ordered_map(
        partial(_moments_of, features=features, together=plan.together),
        _numbered(cut(source.tables(), repeat(plan.batch_rows))),
        threads=plan.threads,
        in_flight=plan.in_flight,
    )
    for blocks in results:
        for block in blocks:
            moments = moments.merge(block)
    return moments


def _numbered(tables: Iterator[pa.Table]) -> Iterator[tuple[int, pa.Table]]:
    first = 0
    for table in tables:
        yield first, table
        first += table.num_rows


def _moments_of(
    batch: tuple[int, pa.Table], features: Features, together: Together
) -> list[Moments]:
    first, table = batch
    return moments_of(TableWindow(table), features, first, len(features), together)


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
        results = ordered_map(
            encoder.encode_slab,
            _slabs(source, plan),
            threads=plan.threads,
            in_flight=plan.in_flight,
        )
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
    """Yield slabs; the one that ends a part is known only when the next one has come."""
    names = source.schema.names
    lengths = [rows for rows, _ in slab_lengths(plan, plan.part_rows)]
    tables = cut(source.tables(), cycle(lengths))
    nothing = pa.Table.from_batches([], source.schema)  # `empty_table` would import pandas
    held = next(tables, nothing)
    number = 0
    for table in tables:
        part, place = divmod(number, len(lengths))
        there = Place(part, len(held), last=place == len(lengths) - 1, ends=True)
        yield Slab(there, _Only(held), names, 0, plan.together)
        held, number = table, number + 1
    there = Place(number // len(lengths), len(held), last=True, ends=True)
    yield Slab(there, _Only(held), names, 0, plan.together)


class _Only(NamedTuple):
    """A table as columns that have these rows and no others."""

    table: pa.Table

    def next(self, rows: int, more: int = 0) -> TableWindow:  # noqa: ARG002 - they are all there
        """Return the table."""
        return TableWindow(self.table)

    def close(self) -> None:
        """Hold nothing."""
