"""What both passes of one run share."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import accumulate
from math import ceil
from typing import Any, NamedTuple, Protocol

from polar_etl.columns import by_column
from polar_etl.events import Listener
from polar_etl.executors.forked import Work, Workers
from polar_etl.executors.local import ordered_map, worker_threads
from polar_etl.features import Features
from polar_etl.memory import PeakSampler
from polar_etl.passes.in_turn import RowsInTurn
from polar_etl.passes.kept import KeepingColumns, Kept, KeptColumns
from polar_etl.passes.shares import Portion, Team, cut, cut_again, dealt
from polar_etl.passes.weights import work_of
from polar_etl.planning.plan import Plan
from polar_etl.sources.base import Columns, Source
from polar_etl.sources.schemas import width
from polar_etl.stop import Stop
from polar_etl.storage.direct import Staging

_DRIVING = 0.06
"""What appending to parts takes, as a part of all work on columns (measured)."""


class Share(NamedTuple):
    """Columns that are worked on in step."""

    lane: int
    """Number of its own; `Workers` tells from it which process it has."""
    names: tuple[str, ...]
    columns: Columns


class Job(Protocol):
    """A pass, or a part of one. Goes to other processes as it stands."""

    def begun(self, run: Run) -> AbstractContextManager[Work[Any, Any]]:
        """Return the work that it comes to in this process, for as long as the context lasts."""


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
        rss = self.sampler.recent()
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

    @cached_property
    def offsets(self) -> list[int]:
        """Rows before each file, and all rows last."""
        return list(accumulate((file.rows for file in self.source.files), initial=0))

    def map(self, job: Job) -> Generator[Any, None, None]:
        """Yield the results of a job in order, from as many threads or processes as planned."""
        return self._workers.map(job) if self.plan.processes > 1 else self._map_here(job)

    def _map_here(self, job: Job) -> Generator[Any, None, None]:
        with job.begun(self) as work:
            yield from ordered_map(
                work.task,
                work.items(),
                threads=self._threads,
                in_flight=work.in_flight,
                lane=work.lane,
                scarce=lambda: self.sampler.near,
            )

    @cached_property
    def _workers(self) -> Workers[Job]:
        """This process and its children; these stay where they keep something."""
        return Workers(
            lambda job: job.begun(self),
            processes=self.plan.processes,
            threads=self._threads,
            sampler=self.sampler,
            stay=self.plan.keeps,
            shared=self.staging.memory,
        )

    @cached_property
    def _threads(self) -> ThreadPoolExecutor:
        """Those of this process that work on columns."""
        return worker_threads(self._lanes // self.plan.processes)

    @cached_property
    def staging(self) -> Staging:
        """What parts are written from, in this process; its children read into it, too."""
        return Staging(self.plan.parts_at_a_time)

    @cached_property
    def _kept(self) -> Kept:
        """What this process keeps."""
        return Kept()

    def close(self) -> None:
        """End all other processes, and threads."""
        if self.plan.processes > 1:
            self._workers.close()
        self._threads.shutdown()
        self.staging.close()

    def portions(self, features: Features) -> list[Portion]:
        """Return which process has which columns of a batch in the first pass.

        One for each thread takes least time, as sums are set up for each of them.
        """
        if self.plan.deals_rows:
            return [Portion(0, tuple(features.columns))]
        return dealt(self._runs(features), self._lanes)

    def _runs(self, features: Features) -> list[Portion]:
        """Return the columns of the first pass in runs, which threads have by turns.

        The second pass needs what is kept in the order of columns, so with a single run each all
        processes but one would wait (measured: a quarter of the time with 10,000 columns).
        """
        shares = ceil(self.plan.shares / self._lanes) * self._lanes
        return cut(self._work_on(features.columns), self._team._replace(shares=shares))

    def _portions_again(self, features: Features, names: Sequence[str]) -> list[Portion]:
        """Return which process has which columns in the second pass: those it has kept, mostly."""
        work, team = self._work_on(names), self._team._replace(driving=_DRIVING)
        kept = {name for name in features.columns if name in work and name not in features.vectors}
        if not (self.plan.keeps and kept):
            return cut(work, team)
        return cut_again(work, team, self._runs(features), kept)

    @contextmanager
    def shares_in_turn(self, names: Sequence[str], starts: Sequence[int]) -> Iterator[list[Share]]:
        """Yield the columns `names` as often as there are threads, which have rows by turns.

        Args:
            names: Of the columns.
            starts: First rows of the batches or slabs, counted over all files.
        """
        names, lanes = tuple(names), self._lanes
        opened = partial(self.source.columns, names, how=self.plan.reading)
        turns = [RowsInTurn(opened, iter(starts[lane::lanes])) for lane in range(lanes)]
        with ExitStack() as stack:
            yield [
                Share(lane, names, stack.enter_context(closing(turn)))
                for lane, turn in enumerate(turns)
            ]

    @contextmanager
    def shares_to_observe(self, features: Features, first: int) -> Iterator[list[Share]]:
        """Yield the columns of features, all rows from `first` on, in shares.

        If these are all rows, and there is room, numbers are kept for the second pass.
        """
        keeps = self.plan.keeps and not first
        with self._opened(self.portions(features), first, self.offsets[-1]) as shares:
            yield [
                share._replace(columns=KeepingColumns(share.columns, self._kept))
                if keeps
                else share
                for share in shares
            ]

    @contextmanager
    def shares_to_encode(
        self, features: Features, names: Sequence[str], first: int, stop: int
    ) -> Iterator[list[Share]]:
        """Yield the columns `names` of the rows `first` … `stop`, in shares.

        This process has less of them, because it appends to parts besides.
        """
        with self._opened(self._portions_again(features, names), first, stop) as shares:
            yield shares

    @contextmanager
    def _opened(self, portions: Sequence[Portion], first: int, stop: int) -> Iterator[list[Share]]:
        """Yield portions of the rows `first` … `stop`, counted over all files, as shares."""
        with ExitStack() as stack:
            yield [
                Share(
                    at * self.plan.processes + process,
                    names,
                    stack.enter_context(closing(self._columns(names, first, stop))),
                )
                for at, (process, names) in enumerate(portions)
            ]

    def _columns(self, names: Sequence[str], first: int, stop: int) -> Columns:
        """Return columns of some rows: what is kept of them, and the others as they are read."""
        rows = self.offsets[-1]
        there = () if first else (name for name in names if self._kept.rows(name) == rows > 0)
        if not (kept := frozenset(there)):
            return self.source.columns(names, first, stop, self.plan.reading)
        others = [name for name in names if name not in kept]
        read = self.source.columns(others, first, stop, self.plan.reading)
        return KeptColumns(read, self._kept, kept)

    @property
    def _lanes(self) -> int:
        """Threads that work on columns, in all processes."""
        return self.plan.threads if self.plan.processes == 1 else self.plan.processes

    @property
    def _team(self) -> Team:
        return Team(self.plan.processes, self.plan.shares, driving=0.0)

    def _work_on(self, names: Sequence[str]) -> dict[str, int]:
        return {name: self._work[name] for name in names}

    @cached_property
    def _work(self) -> dict[str, int]:
        """What there is to do for a value of each column."""
        return work_of(self.source)
