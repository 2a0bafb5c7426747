"""Processes forked from this one, which share the work of a pass without a shared interpreter.

Threads of one interpreter wait for each other between any two calls into NumPy or zstd, which costs
a sixth of the time where column chunks are long, and a third where they are short (measured). A
child knows all that its parent knew when it was forked, so its first job need not be sent; results
come back as `transfer` tells.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import pickle
import signal
import socket
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, closing, suppress
from functools import partial
from math import ceil
from typing import IO, Any, Generic, NamedTuple, NoReturn, TypeVar

from polar_etl.errors import RunFailedError
from polar_etl.executors.local import ordered_map, worker_threads
from polar_etl.executors.transfer import Receiver, Sender, ended
from polar_etl.memory import PeakSampler, give_back

Job = TypeVar("Job")
Item = TypeVar("Item")
Result = TypeVar("Result")

_DIE_WITH_PARENT = 1
_HEEDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Work(NamedTuple, Generic[Item, Result]):
    """What a job comes to: a task for each of some items."""

    task: Callable[[Item], Result]
    """Called in a thread of the process that has the item's lane."""
    items: Callable[[], Iterator[Item]]
    """Returns the items anew: the same ones in every process."""
    lane: Callable[[Item], int]
    """Items with the same lane run one after the other, in order."""
    in_flight: int
    """Largest number of items drawn whose results were not yet yielded, in all processes."""


class Workers(Generic[Job]):
    """This process and some that are forked from it: an ordered map over items of a job.

    Args:
        begin: Returns the work that a job comes to, as a context; called in every process.
        processes: How many, this one among them; if the system allows no more, this one alone.
        threads: The thread of this process that works on items; each child has one of its own.
        sampler: Watches the memory of the children, too.
        stay: Whether children do the next job, too, with all that they have in memory. Others are
            forked anew for each job, and know what this process knows by then.
        shared: Memory that all of them see, which contents are read into.
    """

    def __init__(
        self,
        begin: Callable[[Job], AbstractContextManager[Work[Any, Any]]],
        *,
        processes: int,
        threads: ThreadPoolExecutor,
        sampler: PeakSampler,
        stay: bool,
        shared: mmap.mmap,
    ) -> None:
        self._begin, self._processes, self._threads = begin, processes, threads
        self._sampler, self._stay, self._shared = sampler, stay, shared
        self._children: list[_Child] = []

    def map(self, job: Job) -> Generator[Any, None, None]:
        """Yield the results of all items of a job, in order.

        Closing the generator before it ends, and an error, end the children.

        Raises:
            RunFailedError: A child was killed.
        """
        done = False
        try:
            have_begun = self._hand_on(job)
            with self._begin(job) as work:
                if not have_begun:
                    self._hire(work)
                processes = len(self._children) + 1
                with closing(self._results(work, 0, processes, self._threads)) as here:
                    sources = [here, *(child.results() for child in self._children)]
                    yield from _in_order(work, sources)
            done = True
        finally:
            if not (done and self._stay):
                self.close()

    def _hand_on(self, job: Job) -> bool:
        """Let children that have stayed begin a job; tell whether there are any."""
        if not self._children or not all(child.is_idle() for child in self._children):
            self.close()
            return False
        for child in self._children:
            child.send(job)
        return True

    def _hire(self, work: Work[Any, Any]) -> None:
        """Let new children begin a job, which is this work."""
        give_back()  # what a child is born with counts twice
        try:
            for process in range(1, self._processes):
                threads = worker_threads(1)
                first = partial(self._results, work, process, self._processes, threads)
                later = partial(self._results_of, process, threads)
                self._children.append(_Child(first, later, self._sampler, self._shared))
        except OSError:  # the system allows no more processes
            self.close()

    def close(self) -> None:
        """End the children; what they have in memory is lost."""
        with ExitStack() as stack:
            while self._children:
                stack.callback(self._children.pop().end)

    def _results_of(self, process: int, threads: ThreadPoolExecutor, job: Job) -> Iterator[Any]:
        """Yield the results of a child's items of a job that it was sent."""
        with (
            self._begin(job) as work,
            closing(self._results(work, process, self._processes, threads)) as found,
        ):
            yield from found

    def _results(
        self, work: Work[Item, Result], process: int, processes: int, threads: ThreadPoolExecutor
    ) -> Generator[Result, None, None]:
        own = (item for item in work.items() if work.lane(item) % processes == process)
        return ordered_map(
            work.task,
            own,
            threads=threads,
            in_flight=ceil(work.in_flight / processes),
            scarce=lambda: self._sampler.near,
        )


def _in_order(
    work: Work[Item, Result], sources: list[Iterator[Result]]
) -> Generator[Result, None, None]:
    """Yield the results of all items as they come from this process, the first, and the others."""
    for item in work.items():
        process = work.lane(item) % len(sources)
        found = next(sources[process], None)
        if found is None and process == 0:  # a stop was asked for in between
            return
        if found is None:
            raise ended()
        yield found
        del found  # or it is held until the next one is there


class _Child:
    """A forked process that computes results.

    Args:
        first: Returns those of the job that it is born with.
        later: Returns those of a job that it is sent.
        sampler: Watches its memory, too.
        shared: Memory that it has in common with this process.
    """

    def __init__(
        self,
        first: Callable[[], Iterable[object]],
        later: Callable[[Any], Iterable[object]],
        sampler: PeakSampler,
        shared: mmap.mmap,
    ) -> None:
        self._sampler = sampler
        own, others = socket.socketpair()
        parent = os.getpid()
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, _HEEDED)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of threads: the child uses none of the parent's
                self._pid = os.fork()
            if self._pid == 0:
                _serve(first, later, shared, others.fileno(), parent, blocked)
        except OSError:
            own.close()
            raise
        finally:
            others.close()
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        self._file = os.fdopen(own.detach(), "rb")
        sampler.watch(self._pid)
        self._receiver = Receiver(self._file, shared)
        self._values = self._receiver.values()
        self._results: Iterator[Any] = iter(())

    def results(self) -> Iterator[Any]:
        """Yield what the child has computed of its job, and raise what it has raised."""
        self._results = self._results_of_job()
        return self._results

    def _results_of_job(self) -> Iterator[Any]:
        for error, found in self._values:
            if error is not None:
                raise error
            if found is None:
                return
            yield found

    def is_idle(self) -> bool:
        """Tell whether all results were taken; one of those that were not is gone then."""
        return next(self._results, None) is None

    def send(self, job: object) -> None:
        """Let the child, which must be idle, do another job.

        Raises:
            RunFailedError: It was killed.
        """
        try:
            with os.fdopen(os.dup(self._file.fileno()), "wb") as file:
                pickle.dump(job, file, pickle.HIGHEST_PROTOCOL)
        except ConnectionError:
            raise ended() from None

    def end(self) -> None:
        """End the process, once it has copied what it was asked for: that may be written yet."""
        self._sampler.forget(self._pid)
        with suppress(RunFailedError):
            self._receiver.settle()
        with suppress(ProcessLookupError):
            os.kill(self._pid, signal.SIGKILL)  # it holds nothing that could be lost
        os.waitpid(self._pid, 0)
        self._file.close()


def _serve(
    first: Callable[[], Iterable[object]],
    later: Callable[[Any], Iterable[object]],
    shared: mmap.mmap,
    channel: int,
    parent: int,
    mask: Iterable[int],
) -> NoReturn:
    """Do one job after the other, in the child, until the parent wants no more; end then."""
    code = 1
    try:
        ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)
        for number in _HEEDED:  # the parent decides what they mean
            signal.signal(number, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        os.closerange(3, channel)  # the locks are the parent's
        os.closerange(channel + 1, os.sysconf("SC_OPEN_MAX"))
        if os.getppid() == parent:
            with (
                os.fdopen(os.dup(channel), "rb") as jobs,
                os.fdopen(channel, "wb", buffering=1 << 16) as file,
            ):
                sender = Sender(file, jobs, shared)
                _send(first, sender)
                for job in _sent(jobs):
                    _send(partial(later, job), sender)
                code = 0
    finally:
        os._exit(code)


def _sent(jobs: IO[bytes]) -> Iterator[object]:
    """Yield the jobs that a parent sends."""
    with suppress(EOFError):
        while True:
            yield pickle.load(jobs)  # noqa: S301 - the parent alone can have written it


def _send(results: Callable[[], Iterable[object]], sender: Sender) -> None:
    last: BaseException | None = None
    try:
        for found in results():
            sender.send((None, found))
    except ConnectionError:
        return
    except BaseException as error:
        last = error
    sender.send((last, None))
