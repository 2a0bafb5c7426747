"""Rows kept by the first pass for the second: from the start of the source, without gaps."""

import pyarrow as pa
import pytest

from polar_etl.run import Cache


def tables(*lengths: int) -> list[pa.Table]:
    starts = [sum(lengths[:i]) for i in range(len(lengths))]
    return [
        pa.table({"x": pa.array(range(a, a + n), pa.int64())})
        for a, n in zip(starts, lengths, strict=True)
    ]


def drained(cache: Cache) -> list[int]:
    return [x for table in cache.drain() for x in table["x"].to_pylist()]


def test_what_is_kept_comes_back_in_order_once():
    cache = Cache(10**6)
    for table in tables(3, 4, 5):
        cache.keep(table)

    assert cache.rows == 12
    assert drained(cache) == list(range(12))
    assert drained(cache) == []


@pytest.mark.parametrize("room", range(0, 120, 8))
def test_no_more_is_kept_than_there_is_room_and_nothing_after_a_gap(room):
    cache = Cache(room)
    for table in tables(3, 9, 1, 1):  # a row takes 8 bytes
        cache.keep(table)

    rows = cache.rows
    found = drained(cache)

    assert found == list(range(rows))
    assert 8 * rows <= room
    assert rows in (0, 3, 12, 13, 14)
    assert (rows >= 3) == (room >= 24)
    assert (rows == 14) == (room >= 112)
