"""The ordered map: order, a bound on what is in flight, lanes, and errors."""

import threading
from contextlib import closing

import pytest

from polar_etl.executors import local
from polar_etl.executors.local import in_step, worker_threads

PATIENCE = 60  # seconds; only a deadlock waits so long


def ordered_map(task, items, *, threads, **how):
    """Map with so many threads of its own."""
    with worker_threads(threads) as workers:
        yield from local.ordered_map(task, items, threads=workers, **how)


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("in_flight", [1, 2, 7])
@pytest.mark.parametrize("lane", [None, lambda x: x % 3, lambda x: 0, lambda x: x // 5])
def test_results_come_in_the_order_of_the_items(threads, in_flight, lane):
    found = ordered_map(lambda x: x * x, range(50), threads=threads, in_flight=in_flight, lane=lane)

    assert list(found) == [x * x for x in range(50)]


def test_order_holds_when_later_tasks_end_first():
    second_done = threading.Event()

    def task(item: int) -> int:
        if item == 0:
            assert second_done.wait(PATIENCE)
        elif item == 1:
            second_done.set()
        return item

    assert list(ordered_map(task, range(4), threads=2, in_flight=3)) == [0, 1, 2, 3]


def test_tasks_run_side_by_side():
    together = threading.Barrier(3, timeout=PATIENCE)

    found = ordered_map(lambda _: together.wait() >= 0, range(3), threads=3, in_flight=4)

    assert list(found) == [True] * 3


def test_tasks_run_in_other_threads_and_items_are_drawn_in_this_one():
    drawn_in: set[int] = set()

    def items():
        for item in range(5):
            drawn_in.add(threading.get_ident())
            yield item

    ran_in = set(ordered_map(lambda _: threading.get_ident(), items(), threads=2, in_flight=2))

    assert drawn_in == {threading.get_ident()}
    assert threading.get_ident() not in ran_in


@pytest.mark.parametrize("threads", [1, 4])
def test_where_memory_is_scarce_one_item_is_drawn_at_a_time(threads):
    drawn: list[int] = []
    short_of = {3, 4, 5}

    def items():
        for item in range(9):
            drawn.append(item)
            yield item

    def scarce() -> bool:
        return drawn[-1] in short_of

    found = ordered_map(lambda item: item, items(), threads=threads, in_flight=100, scarce=scarce)
    for item in found:
        if item in short_of:
            assert drawn[-1] == item, "nothing was drawn before all results were there"
    assert drawn == list(range(9))


@pytest.mark.parametrize("threads", [1, 2, 4])
@pytest.mark.parametrize("in_flight", [1, 2, 5])
def test_no_more_items_are_drawn_than_allowed(threads, in_flight):
    drawn = yielded = most = 0

    def items():
        nonlocal drawn, most
        for item in range(40):
            drawn += 1
            most = max(most, drawn - yielded)
            yield item

    for _ in ordered_map(lambda x: x, items(), threads=threads, in_flight=in_flight):
        yielded += 1

    assert yielded == 40
    assert most <= in_flight


def test_nothing_is_drawn_before_the_first_result_is_asked_for():
    drawn: list[int] = []

    ordered_map(lambda x: x, (drawn.append(x) for x in range(5)), threads=2, in_flight=2)

    assert drawn == []


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_items_of_a_lane_run_one_after_the_other_in_order(threads):
    running: dict[int, int] = {}
    ran: dict[int, list[int]] = {}
    guard = threading.Lock()

    def task(item: int) -> bool:
        lane = item % 4
        with guard:
            alone = not running.get(lane)
            running[lane] = 1
            ran.setdefault(lane, []).append(item)
        with guard:
            running[lane] = 0
        return alone

    found = ordered_map(task, range(200), threads=threads, in_flight=9, lane=lambda x: x % 4)

    assert all(found)
    assert ran == {lane: list(range(lane, 200, 4)) for lane in range(4)}


def test_lanes_run_side_by_side():
    together = threading.Barrier(2, timeout=PATIENCE)

    found = ordered_map(
        lambda _: together.wait() >= 0, range(2), threads=2, in_flight=3, lane=lambda x: x
    )

    assert list(found) == [True] * 2


@pytest.mark.parametrize("failing", [0, 3, 9])
@pytest.mark.parametrize("threads", [1, 3])
def test_an_error_of_a_task_comes_in_its_place(failing, threads):
    def task(item: int) -> int:
        if item == failing:
            raise ZeroDivisionError(f"item {item}")
        return item

    results = ordered_map(task, range(10), threads=threads, in_flight=4)
    found = []

    with pytest.raises(ZeroDivisionError, match=f"item {failing}"):
        found.extend(results)

    assert found == list(range(failing))
    assert list(results) == []


def test_an_error_while_drawing_comes_through():
    def items():
        yield 1
        raise ZeroDivisionError("source")

    with pytest.raises(ZeroDivisionError, match="source"):
        list(ordered_map(lambda x: x, items(), threads=2, in_flight=2))


def test_closing_waits_for_what_runs_and_draws_no_more():
    drawn: list[int] = []
    began: list[int] = []
    ended: list[int] = []
    all_drawn, started, release = threading.Event(), threading.Event(), threading.Event()
    threads_before = threading.active_count()

    def items():
        for item in range(100):
            drawn.append(item)
            if item == 3:
                all_drawn.set()
            yield item

    def task(item: int) -> int:
        began.append(item)
        assert all_drawn.wait(PATIENCE)
        if item == 1:
            started.set()
            assert release.wait(PATIENCE)
        ended.append(item)
        return item

    with worker_threads(1) as threads:
        with closing(local.ordered_map(task, items(), threads=threads, in_flight=4)) as results:
            assert next(results) == 0
            assert started.wait(PATIENCE)
            assert ended == [0]
            release.set()
        assert began == ended

    assert drawn == [0, 1, 2, 3]
    assert threading.active_count() == threads_before


def test_what_one_map_has_left_in_its_threads_the_next_one_finds_there():
    """As memory that they have freed, which allocators keep for each thread."""
    own = threading.local()

    def left_behind(item: int) -> object:
        found, own.left = getattr(own, "left", None), item
        return found

    with worker_threads(1) as threads:
        first = list(local.ordered_map(left_behind, [1, 2], threads=threads, in_flight=2))
        second = list(local.ordered_map(left_behind, [3, 4], threads=threads, in_flight=2))

    assert first + second == [None, 1, 2, 3]


def test_no_items_give_no_results():
    assert list(ordered_map(lambda x: x, [], threads=2, in_flight=2)) == []


def test_items_are_let_go():
    """No item that was worked on is held until the end: memory would grow with the input."""
    alive: set[int] = set()
    most = 0

    class Item:
        def __init__(self, number: int) -> None:
            alive.add(number)
            self.number = number

        def __del__(self) -> None:
            alive.discard(self.number)

    for _ in ordered_map(lambda x: x.number, map(Item, range(100)), threads=2, in_flight=3):
        most = max(most, len(alive))

    assert most <= 5


@pytest.mark.parametrize("count", [1, 2, 5])
def test_results_in_step_come_together_and_whole(count):
    found = list(in_step(iter(range(23)), count))

    assert [x for some in found for x in some] == list(range(23 // count * count))
    assert all(len(some) == count for some in found)


@pytest.mark.parametrize("lane", [None, lambda x: x % 2])
def test_tasks_are_waiting_while_the_caller_is_busy_with_a_result(lane):
    """Or threads run out of work whenever a result comes quickly."""
    drawn: list[int] = []

    def items():
        for item in range(9):
            drawn.append(item)
            yield item

    with closing(ordered_map(lambda x: x, items(), threads=2, in_flight=4, lane=lane)) as found:
        for item in found:
            assert len(drawn) == min(item + 4, 9)
