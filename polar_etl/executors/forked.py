"""Processes forked from this one: an ordered map without a shared interpreter.

Threads of one interpreter wait for each other between any two calls into NumPy or zstd, which costs
a sixth of the time where column chunks are long, and a third where they are short (measured). A
child knows all that its parent knew when it was forked, so tasks need not be sent; results come
back as `transfer` tells.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import ExitStack, closing, suppress
from functools import partial
from typing import Generic, NoReturn, Self, TypeVar

from polar_etl.executors.local import ordered_map
from polar_etl.executors.transfer import Receiver, Sender, ended
from polar_etl.memory import PeakSampler, give_back

Item = TypeVar("Item")
Result = TypeVar("Result")

_DIE_WITH_PARENT = 1
_HEEDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def forked_map(
    task: Callable[[Item], Result],
    items: Callable[[], Iterator[Item]],
    *,
    processes: int,
    in_flight: int,
    lane: Callable[[Item], int],
    sampler: PeakSampler,
) -> Generator[Result, None, None]:
    """Yield `task(item)` for every item, in order, each lane in a process of its own or shared.

    This process is one of them. Closing the generator ends the others.

    Args:
        task: Called in a thread of the process that has the item's lane.
        items: Returns the items anew; called in every process.
        processes: How many, this one among them; if the system allows no more, this one alone.
        in_flight: Largest number of items drawn in a process whose results were not yet yielded.
        lane: Items with the same lane run one after the other, in order.
        sampler: Watches the memory of the children, too.

    Raises:
        RunFailedError: A child was killed.
    """

    def results(process: int) -> Generator[Result, None, None]:
        own = (item for item in items() if lane(item) % processes == process)
        return ordered_map(task, own, threads=1, in_flight=in_flight, scarce=lambda: sampler.near)

    give_back()  # what a child is born with counts twice
    with ExitStack() as stack:
        sources: list[Iterator[Result]] = []
        try:
            for process in range(1, processes):
                child = stack.enter_context(_Child(partial(results, process), sampler))
                sources.append(child.results())
        except OSError:  # the system allows no more processes
            stack.close()
            sources, processes = [], 1
        sources.insert(0, stack.enter_context(closing(results(0))))  # its threads come last
        for item in items():
            process = lane(item) % processes
            found = next(sources[process], None)
            if found is None and process == 0:  # a stop was asked for in between
                return
            if found is None:
                raise ended()
            yield found
            del found  # or it is held until the next one is there


class _Child(Generic[Result]):
    """A forked process that computes results; leaving the context ends it."""

    def __init__(self, results: Callable[[], Iterable[Result]], sampler: PeakSampler) -> None:
        self._sampler = sampler
        own, others = socket.socketpair()
        parent = os.getpid()
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, _HEEDED)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of threads: the child uses none of the parent's
                self._pid = os.fork()
            if self._pid == 0:
                _serve(results, others.fileno(), parent, blocked)
        except OSError:
            own.close()
            raise
        finally:
            others.close()
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        self._file = os.fdopen(own.detach(), "rb")
        sampler.watch(self._pid)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._sampler.forget(self._pid)
        with suppress(ProcessLookupError):
            os.kill(self._pid, signal.SIGKILL)  # it holds nothing that could be lost
        os.waitpid(self._pid, 0)
        self._file.close()

    def results(self) -> Generator[Result, None, None]:
        """Yield what the child has computed, and raise what it has raised."""
        for error, found in Receiver(self._file, self._pid).values():
            if error is not None:
                raise error
            if found is None:
                return
            yield found


def _serve(
    results: Callable[[], Iterable[object]], channel: int, parent: int, mask: Iterable[int]
) -> NoReturn:
    """Send results to the parent, in the child, and end."""
    code = 1
    try:
        ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)
        for number in _HEEDED:  # the parent decides what they mean
            signal.signal(number, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        os.closerange(3, channel)  # the locks are the parent's
        os.closerange(channel + 1, os.sysconf("SC_OPEN_MAX"))
        if os.getppid() == parent:
            with os.fdopen(channel, "wb", buffering=1 << 16) as file:
                _send(results, Sender(file))
                code = 0
    finally:
        os._exit(code)


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
