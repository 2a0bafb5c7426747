"""Threads of this process: an ordered map with a bounded number of tasks in flight."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def worker_threads(count: int) -> ThreadPoolExecutor:
    """Return so many threads, for all passes of a run.

    If each pass had threads of its own, they could begin before those of the last one have quite
    ended, as they do on a busy machine. Allocators would then give them memory of their own, on top
    of what the last ones have freed (measured: 30 % of a small run's peak).
    """
    return ThreadPoolExecutor(count, thread_name_prefix="polar-etl")


def ordered_map(
    task: Callable[[Item], Result],
    items: Iterable[Item],
    *,
    threads: ThreadPoolExecutor,
    in_flight: int,
    lane: Callable[[Item], int] | None = None,
    scarce: Callable[[], bool] = lambda: False,
) -> Generator[Result, None, None]:
    """Yield `task(item)` for every item, in order, working ahead on a few of them.

    The items are drawn in the calling thread, so whatever reads them overlaps with the tasks; as
    many as may be, before the first result is waited for: what the caller does with one takes time,
    in which no task is to run out of work.
    Closing the generator drops tasks that have not begun and waits for those that have.

    Args:
        task: Called in one of `threads`.
        items: Drawn one by one, only while fewer than `in_flight` results are outstanding.
        threads: They have nothing else to do meanwhile.
        in_flight: Largest number of items drawn whose results were not yet yielded.
        lane: Items with the same lane run one after the other, in order; None for no such rule.
        scarce: Tells that memory is short: no item is drawn then before all results are yielded.
    """
    latest: dict[int, Future[Result]] = {}
    waiting: deque[Future[Result]] = deque()
    try:
        for item in items:
            if lane is None:
                future = threads.submit(task, item)
            else:
                key = lane(item)
                future = threads.submit(_run_after, latest.get(key), task, item)
                latest = {k: f for k, f in latest.items() if not f.done()} | {key: future}
            waiting.append(future)
            del item
            while waiting and (len(waiting) >= in_flight or scarce()):
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        wait([future for future in waiting if not future.cancel()])


def _run_after(before: Future[Result] | None, task: Callable[[Item], Result], item: Item) -> Result:
    """Run a task once `before` has ended. Tasks begin in order, so it has begun: no deadlock."""
    if before is not None:
        wait([before])
    return task(item)


def in_step(results: Iterable[Result], count: int) -> Iterator[list[Result]]:
    """Yield results, `count` of them at a time; what is left at the end is dropped.

    Example:
        >>> list(in_step(range(5), 2))
        [[0, 1], [2, 3]]
    """
    held: list[Result] = []
    for result in results:
        held.append(result)
        if len(held) == count:
            yield held
            held = []
