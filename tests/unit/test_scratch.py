"""Working memory: each thread's own, one for each use, kept."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from polar_etl.scratch import scratch, scratch_floats


@pytest.mark.parametrize("size", [0, 1, 1000, 10, 10**6, 5])
def test_it_is_as_large_as_asked(size):
    found = scratch("test", size)

    assert (found.dtype, found.shape) == (np.uint8, (size,))
    found[:] = 7


@pytest.mark.parametrize("count", [0, 1, 1000])
def test_floats_are_aligned_and_as_many_as_asked(count):
    found = scratch_floats("test of floats", count)

    assert (found.dtype, found.shape) == (np.float64, (count,))
    assert found.flags.aligned
    assert found.flags.writeable


def test_it_is_kept():
    large = scratch("test of keeping", 1000)

    assert np.shares_memory(scratch("test of keeping", 1000), large)
    assert np.shares_memory(scratch("test of keeping", 10), large)


def test_two_uses_share_nothing():
    assert not np.shares_memory(scratch("one use", 100), scratch("another use", 100))


def test_two_threads_share_nothing():
    together = threading.Barrier(3, timeout=60)

    def task(number: int) -> bool:
        mine = scratch("test of threads", 1000)
        mine[:] = number
        together.wait()
        mine = scratch("test of threads", 1000)
        return bool((mine == number).all())

    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(task, range(3))) == [True] * 3
