"""What both passes of one run share."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from itertools import accumulate
from math import ceil
from typing import NamedTuple, TypeVar

from polar_etl.events import Listener
from polar_etl.executors.forked import forked_map
from polar_etl.executors.local import ordered_map
from polar_etl.memory import PeakSampler
from polar_etl.plan import Plan
from polar_etl.sources.base import Columns, Source
from polar_etl.sources.schemas import width
from polar_etl.stop import Stop

Item = TypeVar("Item")
Result = TypeVar("Result")


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

    def map(
        self,
        task: Callable[[Item], Result],
        items: Callable[[], Iterator[Item]],
        *,
        in_flight: int,
        lane: Callable[[Item], int],
    ) -> Generator[Result, None, None]:
        """Yield `task(item)` for every item, in order, in as many threads or processes as planned.

        Args:
            task: Called in a thread of this process, or of a forked one.
            items: Returns the items anew.
            in_flight: Largest number of items drawn whose results were not yet yielded.
            lane: Items with the same lane run one after the other, in order.
        """
        if self.plan.processes > 1:
            return forked_map(
                task,
                items,
                processes=self.plan.processes,
                in_flight=ceil(in_flight / self.plan.processes),
                lane=lane,
                sampler=self.sampler,
            )
        threads = self.plan.threads
        return ordered_map(task, items(), threads=threads, in_flight=in_flight, lane=lane)

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
