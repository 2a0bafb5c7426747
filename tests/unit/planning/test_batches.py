"""Batches of the first pass: all rows in order, and row groups whole wherever that can be."""

from itertools import accumulate, pairwise
from types import SimpleNamespace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from polar_etl.planning.batches import Extent, extents, last_end
from polar_etl.statistics.blocks import block_rows

COLUMNS = 100_000
BLOCK = block_rows(COLUMNS)
GROUPS = st.lists(st.integers(0, 5 * BLOCK), max_size=20)


def cut(groups: list[int], blocks: int, rest: int, covered: int = 0) -> list[Extent]:
    plan = SimpleNamespace(batch_rows=blocks * BLOCK, batch_rest=rest)
    return list(extents(groups, covered, plan, COLUMNS))


@given(GROUPS, st.integers(1, 8), st.integers(0, BLOCK), st.integers(0, 20))
def test_batches_are_all_rows_in_whole_blocks(groups, blocks, rest, covered):
    covered *= BLOCK
    assume(covered <= sum(groups))
    found = cut(groups, blocks, rest, covered)

    bounds = [covered, *(batch.first + batch.rows for batch in found)]
    assert [batch.first for batch in found] == bounds[:-1]
    assert bounds[-1] == sum(groups)
    assert all(0 < high - low <= blocks * BLOCK for low, high in pairwise(bounds))
    assert all(batch.rows % BLOCK == 0 for batch in found[:-1])
    assert all(0 <= batch.rest <= rest for batch in found)


@given(GROUPS, st.integers(5, 8))
def test_row_groups_no_longer_than_a_batch_are_taken_whole_but_for_what_is_held(groups, blocks):
    ends = {0, *accumulate(groups)}

    for batch in cut(groups, blocks, BLOCK - 1):
        assert batch.first + batch.rows + batch.rest in ends


def test_batches_are_as_long_as_they_may_be_where_row_groups_are_longer():
    found = cut([20 * BLOCK + 1], 8, BLOCK - 1)

    assert [(batch.rows // BLOCK, batch.rest) for batch in found] == [(8, 0), (8, 0), (4, 0)]


@pytest.mark.parametrize("held", [0, 99, 100, 500])
def test_rows_stop_where_as_little_is_left_as_may_be_held(held):
    stop, rest = last_end([250, 500, 750], ends=[300, 600, 900], held=held)

    assert (stop, rest) == {0: (750, 0), 99: (250, 50), 100: (500, 100), 500: (750, 150)}[held]
