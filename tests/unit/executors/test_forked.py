"""An ordered map over forked processes: same results, same order, and none left behind."""

import mmap
import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from itertools import islice

import numpy as np
import psutil
import pytest

from polar_etl.encoding.contents import Content, Readable
from polar_etl.errors import InputError, RunFailedError
from polar_etl.executors.forked import Work, Workers
from polar_etl.executors.local import worker_threads
from polar_etl.executors.transfer import Incoming
from polar_etl.memory import PeakSampler

SHARED = mmap.mmap(-1, 1 << 23)


def workers(task, *, processes=3, in_flight=2, lanes=4, sampler=None, stay=False):
    """Return workers that do a task for so many items as a job says."""

    @contextmanager
    def begin(count):
        yield Work(
            task,
            lambda: iter(range(count)),
            lane=lambda item: item % lanes,
            in_flight=in_flight * processes,
        )

    return Workers(
        begin,
        processes=processes,
        threads=worker_threads(1),
        sampler=sampler or PeakSampler(1 << 60),
        stay=stay,
        shared=SHARED,
    )


def mapped(task, count=20, **how):
    return workers(task, **how).map(count)


def octets(content: Readable, size: int | None = None, place: int = 0) -> bytes:
    """Return the next bytes of a content."""
    room = np.frombuffer(SHARED, np.uint8)[place:][: len(content) if size is None else size]
    if wait := content.read_into(room):
        wait()
    return room.tobytes()


@pytest.fixture(autouse=True)
def _only_our_children():
    """Other tests of this process have children, too."""
    BEFORE.clear()
    BEFORE.update(psutil.Process().children())


BEFORE: set[psutil.Process] = set()


def children() -> set[psutil.Process]:
    return {*psutil.Process().children()} - BEFORE


@pytest.mark.parametrize("lanes", [1, 2, 3, 7])
@pytest.mark.parametrize("in_flight", [1, 4])
@pytest.mark.parametrize("processes", [2, 3, 5])
def test_results_come_in_order(processes, in_flight, lanes):
    found = mapped(lambda x: x * x, processes=processes, in_flight=in_flight, lanes=lanes)

    assert list(found) == [x * x for x in range(20)]
    assert not children()


def test_where_memory_is_scarce_results_come_in_order_too():
    sampler = PeakSampler(1)
    sampler.sample()
    assert sampler.near

    assert list(mapped(lambda x: -x, in_flight=5, sampler=sampler)) == [-x for x in range(20)]


def test_lanes_have_processes_of_their_own_and_this_is_one_of_them():
    found = list(mapped(lambda item: (item % 4, os.getpid()), lanes=4, processes=4))

    assert len({pid for _, pid in found}) == 4
    assert len(set(found)) == 4
    assert os.getpid() in {pid for _, pid in found}


def test_items_of_a_lane_share_what_was_there_before():
    """A child goes on from what its parent had, lane by lane, in order."""
    state = {0: 100, 1: 200}

    def task(item: int) -> int:
        state[item % 2] += 1
        return state[item % 2]

    found = list(mapped(task, 8, processes=2, lanes=2))

    assert found == [101, 201, 102, 202, 103, 203, 104, 204]


def test_contents_are_read_where_they_are_wanted():
    numbers = np.arange(1_000_000, dtype=np.uint32).tobytes()

    def task(item: int) -> tuple[int, list[Content]]:
        pieces = [b"head", memoryview(numbers)[item:], b"", numbers[:item]]
        return item, [Content(pieces), Content([])]

    for item, (long, empty) in mapped(task, 6, processes=2, lanes=2):
        assert isinstance(long, Incoming) == (item % 2 == 1)
        assert len(long) == len(numbers) + 4
        assert len(empty) == 0
        found = octets(long, 1000, 77) + octets(long, len(long) - 1000)
        assert found == b"head" + numbers[item:] + numbers[:item]


def test_what_is_asked_for_comes_in_any_thread_while_the_parent_goes_on():
    """Some of it is waited for after the next value was taken."""
    content = np.arange(1_000_000, dtype=np.uint32)

    def task(item: int) -> Content:
        return Content([(content + item).tobytes()])

    rooms = np.frombuffer(SHARED, np.uint8)[: 6 * 1_000_000].reshape(6, -1)
    with ThreadPoolExecutor(3) as pool:
        waits = []
        for item, found in enumerate(mapped(task, 6, processes=2, lanes=2)):
            half = rooms[item][:500_000], rooms[item][500_000:]
            waits += [pool.submit(wait) for room in half if (wait := found.read_into(room))]
        for wait in waits:
            wait.result()
    assert len(waits) == 6
    for item in range(6):
        assert rooms[item].tobytes() == (content + item)[:250_000].tobytes()


@pytest.mark.parametrize("read", [0, 1000])
def test_contents_that_nobody_wants_are_dropped(read):
    numbers = np.arange(1_000_000, dtype=np.uint32).tobytes()
    found = []
    for item, content in mapped(lambda item: (item, Content([numbers])), 6, processes=2, lanes=2):
        octets(content, read)
        found.append(item)
    assert found == list(range(6))


def test_contents_of_a_child_that_is_killed_are_not_made_up():
    numbers = np.arange(1_000_000, dtype=np.uint32).tobytes()

    with closing(mapped(lambda _: Content([numbers]), 6, processes=2, lanes=2)) as results:
        (content,) = (found for found in islice(results, 2) if isinstance(found, Incoming))
        for child in children():
            child.kill()
            while child.status() != psutil.STATUS_ZOMBIE:
                pass
        with pytest.raises(RunFailedError, match="killed"):
            octets(content)


def test_whoever_still_waits_for_a_child_that_was_killed_is_told_so():
    """Also once nobody listens to it any more."""
    numbers = np.arange(1_000_000, dtype=np.uint32).tobytes()
    room = np.frombuffer(SHARED, np.uint8)[: len(numbers)]

    with closing(mapped(lambda _: Content([numbers]), 6, processes=2, lanes=2)) as results:
        (content,) = (found for found in islice(results, 2) if isinstance(found, Incoming))
        (child,) = children()
        child.suspend()
        wait = content.read_into(room)
        child.kill()
    assert not children()
    with pytest.raises(RunFailedError, match="killed"):
        wait()


def test_what_was_asked_for_comes_before_a_child_is_ended():
    numbers = np.arange(1_000_000, dtype=np.uint32).tobytes()
    room = np.frombuffer(SHARED, np.uint8)[: len(numbers)]
    room[:] = 0

    with closing(mapped(lambda _: Content([numbers]), 6, processes=2, lanes=2)) as results:
        (content,) = (found for found in islice(results, 2) if isinstance(found, Incoming))
        content.read_into(room)
    assert not children()
    assert room.tobytes() == numbers


@pytest.mark.parametrize("item", [0, 1, 5])
def test_errors_are_raised_here_as_they_are(item):
    def task(found: int) -> int:
        if found == item:
            raise InputError(f"number {found} is bad")
        return found

    results = mapped(task)
    with pytest.raises(InputError, match=f"number {item} is bad"), closing(results):
        list(results)
    assert not children()


@pytest.mark.parametrize("last", [1, 5])
def test_a_child_that_is_killed_fails_the_run(last):
    """Before it has sent anything, or later."""
    parent = os.getpid()

    def task(item: int) -> int:
        if item == last and os.getpid() != parent:
            os.kill(os.getpid(), signal.SIGKILL)
        return item

    with pytest.raises(RunFailedError, match="killed"):
        list(mapped(task, processes=2, lanes=2))
    assert not children()


def test_where_no_process_can_be_had_this_one_does_it_all(monkeypatch):
    call, made = os.fork, []

    def one_only() -> int:
        if made:
            raise BlockingIOError("no more")
        made.append(True)
        return call()

    monkeypatch.setattr(os, "fork", one_only)
    found = list(mapped(lambda item: (item, os.getpid()), processes=3))

    assert found == [(item, os.getpid()) for item in range(20)]
    assert not children()


def test_signals_are_for_the_parent():
    parent = os.getpid()

    def task(item: int) -> int:
        if os.getpid() != parent:
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                os.kill(os.getpid(), number)
        return item

    assert list(mapped(task)) == list(range(20))


def test_leaving_half_way_ends_the_children():
    never = threading.Event()
    parent = os.getpid()

    def task(item: int) -> int:
        if os.getpid() != parent and item > 2:
            never.wait()
        return item

    with closing(mapped(task, processes=2, lanes=2)) as results:
        assert next(results) == 0
        assert next(results) == 1
        assert len(children()) == 1
    assert not children()


def test_a_child_has_no_files_of_its_parent(tmp_path):
    """Locks are freed when the process that took them ends."""
    with open(tmp_path / "held", "w") as held:
        number = held.fileno()
        parent = os.getpid()

        def task(item: int) -> bool:
            try:
                os.fstat(number)
            except OSError:
                return os.getpid() != parent
            return os.getpid() == parent

        assert all(mapped(task, processes=2, lanes=2))
        assert not held.closed


def test_a_child_dies_with_its_parent():
    """Whoever kills the run with SIGKILL leaves nothing behind."""
    receiver, sender = os.pipe()
    pid = os.fork()
    if pid == 0:
        never = threading.Event()

        def task(item: int) -> int:
            never.wait()
            return item

        def watched() -> int:
            sampler = PeakSampler(1 << 60)
            sampler.watch = lambda child: os.write(sender, f"{child}\n".encode())
            return next(mapped(task, processes=2, lanes=2, sampler=sampler))

        try:
            watched()
        finally:
            os._exit(1)
    os.close(sender)
    with os.fdopen(receiver) as told:
        child = psutil.Process(int(told.readline()))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        child.wait(60)
    assert not psutil.pid_exists(child.pid) or child.status() == psutil.STATUS_ZOMBIE


def test_the_memory_of_children_counts():
    sampler = PeakSampler(1 << 60)
    alone = sampler.sample()
    results = mapped(lambda _: bytes(1 << 22), processes=3, lanes=3, sampler=sampler)
    with closing(results):  # no pipe holds so much: the children wait
        next(results)
        assert sampler.sample() > alone + (10 << 20)
    assert sampler.sample() < alone + (10 << 20)


@pytest.mark.parametrize("counts", [[20, 20], [5, 0, 9, 1]])
def test_children_that_stay_do_the_next_job_with_all_that_they_have(counts):
    state = {}

    def task(item: int) -> tuple[int, int, int]:
        state[item % 4] = state.get(item % 4, 0) + 1
        return item, os.getpid(), state[item % 4]

    with closing(workers(task, stay=True)) as team:
        found = [list(team.map(count)) for count in counts]
        assert len(children()) == 2

    assert [[item for item, *_ in results] for results in found] == [
        list(range(count)) for count in counts
    ]
    done = [item % 4 for results in found for item, *_ in results]
    assert [times for results in found for *_, times in results] == [
        done[: at + 1].count(lane) for at, lane in enumerate(done)
    ]
    assert len({(item % 4, process) for results in found for item, process, _ in results}) == 4
    assert not children()


def test_children_that_do_not_stay_know_what_is_known_by_then():
    known = {}
    team = workers(lambda item: known.get("what", "nothing"), processes=2)

    assert set(team.map(4)) == {"nothing"}
    known["what"] = "more"
    assert set(team.map(4)) == {"more"}


@pytest.mark.parametrize("stay", [True, False])
def test_contents_are_read_in_every_job(stay):
    numbers = np.arange(100_000, dtype=np.uint32)

    def task(item: int) -> Content:
        return Content([(numbers + item).tobytes()])

    with closing(workers(task, processes=2, lanes=2, stay=stay)) as team:
        for _ in range(3):
            for item, found in enumerate(team.map(6)):
                assert octets(found) == (numbers + item).tobytes()


@pytest.mark.parametrize("stay", [True, False])
def test_after_an_error_the_next_job_is_done_by_new_children(stay):
    parent = os.getpid()

    def task(item: int) -> int:
        if item == 5:
            raise InputError("number 5 is bad")
        return 0 if os.getpid() == parent else os.getpid()

    with closing(workers(task, processes=2, lanes=2, stay=stay)) as team:
        before = set(team.map(4))
        with pytest.raises(InputError):
            list(team.map(8))
        assert not children()
        after = set(team.map(4))
    assert len(before & after) == 1
    assert not children()


def test_a_job_that_is_left_half_way_leaves_nothing_to_the_next():
    with closing(workers(lambda item: item, processes=2, lanes=2, stay=True)) as team:
        with closing(team.map(1000)) as results:
            assert list(islice(results, 5)) == list(range(5))
        assert list(team.map(7)) == list(range(7))


def test_a_child_that_is_killed_between_two_jobs_fails_the_run():
    with closing(workers(lambda item: item, processes=2, lanes=2, stay=True)) as team:
        assert list(team.map(4)) == list(range(4))
        for child in children():
            child.kill()
            while child.status() != psutil.STATUS_ZOMBIE:
                pass
        with pytest.raises(RunFailedError, match="killed"):
            list(team.map(4))


def test_items_that_end_early_end_the_results():
    """When a stop is asked for, no more items are drawn; what was drawn is yielded, or dropped."""
    stop = []

    def items():
        for item in range(1000):
            if stop:
                return
            yield item

    found = []

    @contextmanager
    def begin(_):
        yield Work(lambda x: x, items, lane=lambda x: x % 2, in_flight=4)

    results = Workers(
        begin,
        processes=2,
        threads=worker_threads(1),
        sampler=PeakSampler(1 << 60),
        stay=False,
        shared=SHARED,
    ).map(None)
    for item in results:
        found.append(item)
        if item == 9:
            stop.append(True)
    assert found == list(range(len(found)))
    assert len(found) < 1000
    assert not children()
