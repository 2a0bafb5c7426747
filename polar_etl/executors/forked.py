"""Processes forked from this one: an ordered map without a shared interpreter.

Threads of one interpreter wait for each other between any two calls into NumPy or zstd, which costs
a sixth of the time where column chunks are long, and a third where they are short (measured). A
child knows all that its parent knew when it was forked, so tasks need not be sent; results come
back through a pipe.
"""

from __future__ import annotations

import ctypes
import io
import os
import pickle
import signal
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import ExitStack, closing, suppress
from fcntl import fcntl
from functools import partial
from typing import IO, Any, Generic, NoReturn, Self, TypeVar

import numpy as np
import numpy.typing as npt

from polar_etl.errors import RunFailedError
from polar_etl.executors.local import ordered_map
from polar_etl.memory import PeakSampler, give_back

Item = TypeVar("Item")
Result = TypeVar("Result")

_SET_PIPE_SIZE = 1031
_PIPE_BYTES = 1 << 20
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
                raise _ended()
            yield found
            del found  # or it is held until the next one is there


class _Child(Generic[Result]):
    """A forked process that computes results; leaving the context ends it."""

    def __init__(self, results: Callable[[], Iterable[Result]], sampler: PeakSampler) -> None:
        self._sampler = sampler
        receiver, sender = os.pipe2(os.O_CLOEXEC)
        with suppress(OSError):
            fcntl(sender, _SET_PIPE_SIZE, _PIPE_BYTES)
        parent = os.getpid()
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, _HEEDED)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of threads: the child uses none of the parent's
                self._pid = os.fork()
            if self._pid == 0:
                _serve(results, sender, parent, blocked)
        except OSError:
            os.close(receiver)
            raise
        finally:
            os.close(sender)
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        self._file = os.fdopen(receiver, "rb")
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
        """Yield what the child has computed, and raise what it has raised.

        Memory in a result is an `Incoming`; what of it is not read until the next result is asked
        for is dropped.
        """
        while True:
            unpickler = _Unpickler(self._file)
            try:
                error, found = unpickler.load()
            except (EOFError, pickle.UnpicklingError):
                raise _ended() from None
            if error is not None:
                raise error
            if found is None:
                return
            yield found
            for memory in unpickler.memories:
                memory.drop()


class Incoming:
    """Bytes that a child is sending."""

    def __init__(self, file: io.BufferedReader, size: int) -> None:
        self._file = file
        self._size = self._left = size

    def __len__(self) -> int:
        return self._size

    def read_into(self, room: npt.NDArray[np.uint8]) -> None:
        """Fill `room` with the next of them.

        Raises:
            RunFailedError: The child was killed.
        """
        if self._file.readinto(room.data) != len(room):
            raise _ended()
        self._left -= len(room)

    def drop(self) -> None:
        """Let go of those that were not read."""
        while self._left:
            self.read_into(np.empty(min(self._left, _PIPE_BYTES), np.uint8))


def _ended() -> RunFailedError:
    return RunFailedError(
        "A worker process was killed, perhaps because memory ran out. Finished parts are safe."
    )


def _serve(
    results: Callable[[], Iterable[object]], sender: int, parent: int, mask: Iterable[int]
) -> NoReturn:
    """Send results to the parent, in the child, and end."""
    code = 1
    try:
        ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)
        for number in _HEEDED:  # the parent decides what they mean
            signal.signal(number, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        os.closerange(3, sender)  # the locks are the parent's
        os.closerange(sender + 1, os.sysconf("SC_OPEN_MAX"))
        if os.getppid() == parent:
            with os.fdopen(sender, "wb", buffering=1 << 16) as file:
                _send(results, file)
                code = 0
    finally:
        os._exit(code)


def _send(results: Callable[[], Iterable[object]], file: IO[bytes]) -> None:
    last: BaseException | None = None
    try:
        for found in results():
            pickler = _Pickler(file)
            pickler.dump((None, found))
            for memory in pickler.memories:
                file.write(memory)
            file.flush()
    except BrokenPipeError:
        return
    except BaseException as error:
        last = error
    _Pickler(file).dump((last, None))


class _Pickler(pickle.Pickler):
    """Pickles all but memory, which is to be sent behind."""

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__(file, pickle.HIGHEST_PROTOCOL)
        self.memories: list[memoryview] = []

    def reducer_override(self, value: object) -> Any:
        """Return how a value is made again."""
        if not isinstance(value, memoryview):
            return NotImplemented
        self.memories.append(value)
        return Incoming, (len(value),)


class _Unpickler(pickle.Unpickler):
    """Knows where memory comes from."""

    def __init__(self, file: io.BufferedReader) -> None:
        super().__init__(file)
        self._file = file
        self.memories: list[Incoming] = []

    def find_class(self, module: str, name: str) -> Any:
        """Return what a name in a pickle stands for."""
        found = super().find_class(module, name)
        return self._incoming if found is Incoming else found

    def _incoming(self, size: int) -> Incoming:
        self.memories.append(Incoming(self._file, size))
        return self.memories[-1]
