"""Blocks: fixed row ranges whose bits depend on nothing but their values."""

import numpy as np
import pyarrow as pa
import pytest

from polar_etl.statistics.blocks import block_rows
from polar_etl.statistics.moments import merge_all
from tests.unit.exact import bits, blocks_of, chunked, exact, moments_of

BLOCK = block_rows(1)


def values(rows: int = 3 * BLOCK + 77, seed: int = 0) -> pa.Array:
    draw = np.random.default_rng(seed)
    mask = draw.random(rows) < 0.01
    return pa.array(draw.standard_normal(rows) * 1e3 + 1e6, mask=mask)


def all_bits(*columns: pa.ChunkedArray) -> list[dict[str, bytes]]:
    return [bits(block) for block in blocks_of(*columns)]


@pytest.mark.parametrize("columns", [0, 1, 2, 511, 512, 513, 1_000, 10_000, 10**6, 10**9])
def test_block_rows_is_a_power_of_two_within_its_bounds(columns):
    rows = block_rows(columns)

    assert rows & (rows - 1) == 0
    assert 256 <= rows <= 16_384


def test_wider_tables_have_no_longer_blocks():
    rows = [block_rows(columns) for columns in range(1, 20_000, 37)]

    assert rows == sorted(rows, reverse=True)


@pytest.mark.parametrize("rows", [1, BLOCK - 1, BLOCK, BLOCK + 1, 5 * BLOCK])
def test_there_is_one_block_per_fixed_range_and_one_for_the_rest(rows):
    counts = [int(block.count[0]) for block in blocks_of(chunked(np.zeros(rows)))]

    assert sum(counts) == rows
    assert counts[:-1] == [BLOCK] * (len(counts) - 1)
    assert 1 <= counts[-1] <= BLOCK


def test_no_rows_make_no_blocks():
    assert blocks_of(chunked(pa.array([], pa.float64()))) == []


@pytest.mark.parametrize(
    "cuts",
    [
        [1],
        [BLOCK],
        [BLOCK - 1, BLOCK, BLOCK + 1],
        list(range(0, 3 * BLOCK, 1_000)),
        [0, 0, 5, 5],
        [3 * BLOCK + 77],
    ],
)
def test_chunks_change_no_bit(cuts):
    column = values()

    assert all_bits(chunked(column, cuts)) == all_bits(chunked(column))


@pytest.mark.parametrize("batch", [BLOCK, 2 * BLOCK])
def test_batches_of_whole_blocks_change_no_bit(batch):
    column = chunked(values())

    pieces = [
        block
        for first in range(0, len(column), batch)
        for block in blocks_of(column.slice(first, batch), first_row=first)
    ]

    assert [bits(block) for block in pieces] == all_bits(column)
    assert bits(merge_all(pieces, 1)) == bits(moments_of(column))


@pytest.mark.parametrize("width", [2, 17, 300])
def test_neighbours_change_no_bit(width):
    column = chunked(values(BLOCK + 500))
    others = [chunked(values(BLOCK + 500, seed)) for seed in (1, 2, 3)]
    table = [others[i % 3] for i in range(width - 1)]

    for place in (0, width // 2, width - 1):
        found = moments_of(*table[:place], column, *table[place:])
        assert bits(found.select(np.array([place]))) == bits(moments_of(column))


def test_hostile_neighbours_change_no_bit():
    column = chunked(values(BLOCK + 500))
    hostile = [
        chunked(np.full(BLOCK + 500, value)) for value in (np.nan, np.inf, 1e300, 1e-300, 5e-324)
    ]

    found = moments_of(*hostile, column, *hostile)

    assert bits(found.select(np.array([len(hostile)]))) == bits(moments_of(column))


@pytest.mark.parametrize("rows", [300, BLOCK + 500], ids=["a rest", "blocks"])
def test_neighbours_with_nulls_change_no_bit(rows):
    mask = np.random.default_rng(5).random(rows) < 0.3
    numbers = np.random.default_rng(6).standard_normal(rows)
    holes, whole = chunked(pa.array(numbers, mask=mask)), chunked(numbers)
    nothing = chunked(pa.nulls(rows, pa.float64()))

    found = moments_of(holes, whole, nothing, holes)

    for place, alone in enumerate((holes, whole, nothing, holes)):
        assert bits(found.select(np.array([place]))) == bits(moments_of(alone))
    assert found.count.tolist() == [rows - mask.sum(), rows, 0, rows - mask.sum()]
    assert found.null_count.tolist() == [mask.sum(), 0, rows, mask.sum()]


@pytest.mark.parametrize("rows", [1, 300, BLOCK, BLOCK + 500])
@pytest.mark.parametrize("far", [0.0, 1e9], ids=["near zero", "far from zero"])
def test_nulls_take_no_part(rows, far):
    mask = np.random.default_rng(7).random(rows) < 0.5
    numbers = np.random.default_rng(8).standard_normal(rows) + far
    kept = numbers[~mask]

    found = moments_of(chunked(pa.array(numbers, mask=mask)))

    truth = exact(kept)
    assert (found.min[0], found.max[0]) == (kept.min(initial=np.inf), kept.max(initial=-np.inf))
    if truth.count:
        assert float(found.mean()[0]) == pytest.approx(float(truth.mean), rel=1e-15, abs=1e-18)
        assert float(found.m2[0]) == pytest.approx(float(truth.deviations), rel=1e-13, abs=1e-18)


def test_the_same_values_give_the_same_bits_whatever_stands_where_nulls_are():
    mask = np.random.default_rng(2).random(BLOCK + 9) < 0.5
    numbers = np.random.default_rng(3).standard_normal(BLOCK + 9)
    junk = np.where(mask, np.inf, numbers)

    clean, dirty = pa.array(numbers, mask=mask), pa.array(junk, mask=mask)

    assert all_bits(chunked(clean)) == all_bits(chunked(dirty))


@pytest.mark.parametrize("kind", ["f2", "f4", "i1", "i2", "i4", "u1", "u2", "u4"])
def test_the_same_numbers_in_a_narrower_type_have_the_same_moments(kind):
    narrow = np.random.default_rng(4).integers(0, 100, BLOCK + 9).astype(kind)

    assert bits(moments_of(narrow)) == bits(moments_of(narrow.astype(np.float64)))


def test_a_wide_table_has_shorter_blocks_and_right_moments():
    width, rows = 3_000, 5_000
    table = np.random.default_rng(5).standard_normal((width, rows)) + 1e6
    found = blocks_of(*[chunked(row) for row in table])

    assert len(found) == -(-rows // block_rows(width))
    merged = merge_all(found, width)
    np.testing.assert_allclose(merged.mean(), table.mean(axis=1), rtol=1e-12)
    np.testing.assert_allclose(merged.std(), table.std(axis=1), rtol=1e-9)
