"""What both passes of one run share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

from polar_etl.events import Listener
from polar_etl.memory import PeakSampler
from polar_etl.plan import Plan
from polar_etl.sources.base import Columns, Source
from polar_etl.sources.schemas import width
from polar_etl.stop import Stop


class Share(NamedTuple):
    """Neighbouring columns that are worked on in step."""

    names: tuple[str, ...]
    columns: Columns


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

    @contextmanager
    def shares(self, names: Sequence[str], first: int, stop: int) -> Iterator[list[Share]]:
        """Yield the columns `names` of the rows `first` … `stop`, in shares of about one size."""
        with ExitStack() as stack:
            yield [
                Share(some, stack.enter_context(closing(opened)))
                for some in self._cut(names)
                for opened in [self.source.columns(some, first, stop, self.plan.reading)]
            ]

    def _cut(self, names: Sequence[str]) -> list[tuple[str, ...]]:
        """Return the columns in at most `plan.shares` runs of neighbours, alike in bytes."""
        schema = self.source.schema
        ends = list(accumulate(width(schema.field(name).type) for name in names))
        found: list[list[str]] = [[] for _ in range(self.plan.shares)]
        for name, end in zip(names, ends, strict=True):
            found[(end * self.plan.shares - 1) // max(ends[-1], 1)].append(name)
        return [tuple(some) for some in found if some]
