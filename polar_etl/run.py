"""What both passes of one run share."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import accumulate, pairwise

import pyarrow as pa

from polar_etl.events import Listener
from polar_etl.memory import PeakSampler
from polar_etl.plan import Plan
from polar_etl.sources.base import Source
from polar_etl.stop import Stop


@dataclass(frozen=True, slots=True)
class Run:
    """A source, the plan for it, and those who watch."""

    source: Source
    plan: Plan
    sampler: PeakSampler
    stop: Stop
    listen: Listener

    def observe_memory(self) -> tuple[int, int]:
        """Return resident bytes now and at most so far, and stop the run if that is too much."""
        rss = self.sampler.sample()
        self.stop.watch(self.sampler)
        return rss, self.sampler.peak

    @property
    def offsets(self) -> list[int]:
        """Rows before each file, and all rows last."""
        return list(accumulate((file.rows for file in self.source.files), initial=0))

    def rows(self, first: int, stop: int) -> Iterator[pa.Table]:
        """Yield the rows `first` … `stop` of the whole source, all columns."""
        offsets = self.offsets
        for file, (start, end) in enumerate(pairwise(offsets)):
            low, high = max(first, start), min(stop, end)
            if low < high:
                yield from self.source.read(
                    file, low - start, high - start, None, self.plan.reading
                )


@dataclass(eq=False)
class Cache:
    """Decoded rows from the start of the source on, kept by the first pass for the second."""

    room: int
    """Bytes that may still be kept; 0 once the rows have gaps."""
    rows: int = 0
    tables: list[pa.Table] = field(default_factory=list)

    def keep(self, table: pa.Table) -> None:
        """Keep `table`, the next rows of the source with all columns, if there is room."""
        if table.nbytes <= self.room:
            self.room -= table.nbytes
            self.rows += table.num_rows
            self.tables.append(table)
        else:
            self.room = 0

    def drain(self) -> Iterator[pa.Table]:
        """Yield the kept tables, letting go of each."""
        self.tables.reverse()
        while self.tables:
            yield self.tables.pop()
