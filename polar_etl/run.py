"""What both passes of one run share."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from math import ceil
from typing import NamedTuple, TypeVar

from polar_etl.columns import by_column, word_type
from polar_etl.events import Listener
from polar_etl.executors.forked import forked_map
from polar_etl.executors.local import ordered_map
from polar_etl.memory import PeakSampler
from polar_etl.plan import Plan
from polar_etl.sources.base import Columns, Source
from polar_etl.sources.schemas import width
from polar_etl.stop import Stop

_WORD = 8
"""What a word of text counts for where columns are shared out, in bytes of a number."""

Item = TypeVar("Item")
Result = TypeVar("Result")


class Share(NamedTuple):
    """Neighbouring columns that are worked on in step."""

    names: tuple[str, ...]
    columns: Columns


@dataclass(frozen=True, eq=False)
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

    @cached_property
    def row_bytes(self) -> int:
        """Decoded bytes of a row, nominal ones for text."""
        return sum(self._widths.values())

    def row_bytes_of(self, names: Iterable[str]) -> int:
        """Return the same for some columns."""
        return sum(self._widths[name] for name in names)

    @cached_property
    def _widths(self) -> dict[str, int]:
        return by_column(width, self.source.schema)

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
        return ordered_map(
            task,
            items(),
            threads=self.plan.threads,
            in_flight=in_flight,
            lane=lane,
            scarce=lambda: self.sampler.near,
        )

    @contextmanager
    def shares(
        self, names: Sequence[str], first: int, stop: int, *, driving: float
    ) -> Iterator[list[Share]]:
        """Yield the columns `names` of the rows `first` … `stop`, in shares.

        Args:
            names: Names of the columns.
            first: The first row.
            stop: The row behind the last.
            driving: What this process has to do besides, as a part of all work on columns.
        """
        with ExitStack() as stack:
            yield [
                Share(some, stack.enter_context(closing(opened)))
                for some in self._cut(names, driving)
                for opened in [self.source.columns(some, first, stop, self.plan.reading)]
            ]

    @cached_property
    def _work(self) -> dict[str, int]:
        """What there is to do for a value of each column; a word takes as long as a double."""
        return by_column(lambda kind: _WORD if word_type(kind) else width(kind), self.source.schema)

    def _cut(self, names: Sequence[str], driving: float) -> list[tuple[str, ...]]:
        """Return the columns in at most `plan.shares` runs of neighbours, by work."""
        ends = list(accumulate(self._work[name] for name in names))
        bounds = list(accumulate(self._sizes(driving)))
        found: list[list[str]] = [[] for _ in bounds]
        for name, end in zip(names, ends, strict=True):
            place = bisect_left(bounds, (end - 0.5) / max(ends[-1], 1) * bounds[-1])
            found[place].append(name)
        return [tuple(some) for some in found if some]

    def _sizes(self, driving: float) -> list[float]:
        """Return how large each share is, so that all processes end at one time."""
        processes, shares = self.plan.processes, self.plan.shares
        if processes == 1:
            return [1.0] * shares
        least = 0.25 / processes
        own = max((1 - driving * (processes - 1)) / processes, least)
        other = (1 - own) / (processes - 1)
        many = [len(range(process, shares, processes)) for process in range(processes)]
        return [
            (other if share % processes else own) / many[share % processes]
            for share in range(shares)
        ]
