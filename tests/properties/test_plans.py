"""Plans and cutting, for any shapes and lengths."""

import re

import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from polar_etl.encoding.slabs import slab_rows
from polar_etl.errors import MemoryLimitError
from polar_etl.memory import parse_size
from polar_etl.planning.plan import Plan
from polar_etl.planning.planner import make_plan
from polar_etl.sources.base import cut
from polar_etl.statistics.blocks import block_rows
from tests.unit.shapes import shape

LENGTHS = st.lists(st.integers(0, 12), max_size=12)


@given(LENGTHS, st.lists(st.integers(1, 15), max_size=40))
def test_cutting_loses_and_reorders_nothing(given_lengths, wanted):
    rows = pa.table({"x": pa.array(range(sum(given_lengths)), pa.int32())})
    starts = [sum(given_lengths[:i]) for i in range(len(given_lengths))]
    tables = [rows.slice(a, n) for a, n in zip(starts, given_lengths, strict=True)]

    found = list(cut(tables, wanted))

    covered = min(sum(wanted), len(rows))
    assert [x for table in found for x in table["x"].to_pylist()] == list(range(covered))
    assert [len(table) for table in found[:-1]] == wanted[: max(len(found) - 1, 0)]
    assert all(0 < len(table) <= n for table, n in zip(found, wanted, strict=False))
    assert len(found) <= len(wanted)


SHAPES = st.builds(
    shape,
    rows=st.integers(0, 10**8),
    columns=st.integers(1, 300),
    group_rows=st.integers(10**5, 10**7),
    files=st.integers(1, 20),
    kind=st.sampled_from([pa.float16(), pa.float32(), pa.float64(), pa.int8()]),
    page_bytes=st.integers(0, 1 << 21),
    text_bytes=st.integers(0, 10**9),
    from_arrow=st.sampled_from([0, 0, 1, 300]),
    dictionary_bytes=st.sampled_from([0, 0, 100, 1 << 20]),
)
LIMITS = st.integers(10**7, 10**11)
BASES = st.integers(0, 300 << 20)
THREADS = st.integers(1, 64)
PARTS = st.none() | st.integers(1, 10**8)


def attempt(given_shape, **options: object) -> Plan | None:
    try:
        return make_plan(given_shape, **options)
    except MemoryLimitError:
        return None


@given(SHAPES, LIMITS, BASES, THREADS, PARTS)
def test_a_plan_keeps_its_limit_or_is_refused_with_one_that_does(
    given_shape, limit, base, threads, per_part
):
    options = {"base": base, "threads": threads, "rows_per_part": per_part}
    try:
        found = make_plan(given_shape, limit=limit, **options)
    except MemoryLimitError as error:
        enough = parse_size(re.search(r"--memory-limit (\w+)", str(error)).group(1))
        assert enough > limit
        found, limit = make_plan(given_shape, limit=enough, **options), enough

    assert found.projected <= limit
    assert found.limit == limit
    assert found.projected >= base
    assert 1 <= found.threads <= threads
    assert found.in_flight >= found.threads
    assert found.batch_rows % block_rows(given_shape.normalized) == 0
    assert found.batch_rows > 0
    assert found.shares >= 1
    assert found.ahead >= 1
    assert min(found.together) >= 1
    assert found.reading.stream_rows >= 1
    assert all(size >= 0 for _, size in found.bill)


@given(SHAPES, LIMITS, LIMITS, BASES, THREADS, THREADS, PARTS)
def test_parts_depend_on_neither_limit_nor_threads(
    given_shape, limit, other_limit, base, threads, other_threads, per_part
):
    one = attempt(given_shape, limit=limit, base=base, threads=threads, rows_per_part=per_part)
    two = attempt(
        given_shape, limit=other_limit, base=0, threads=other_threads, rows_per_part=per_part
    )

    for found in (one, two):
        if found is not None:
            assert 1 <= found.slab_rows <= found.part_rows
            assert found.parts == max(-(-given_shape.rows // found.part_rows), 1)
            assert per_part in (None, found.part_rows)
    if one is not None and two is not None:
        assert (one.slab_rows, one.part_rows, one.parts) == (
            two.slab_rows,
            two.part_rows,
            two.parts,
        )


@given(SHAPES, LIMITS, st.integers(0, 10**11), BASES, THREADS, PARTS)
def test_more_memory_never_refuses_what_less_allows(
    given_shape, limit, more, base, threads, per_part
):
    options = {"base": base, "threads": threads, "rows_per_part": per_part}

    if attempt(given_shape, limit=limit, **options):
        assert attempt(given_shape, limit=limit + more, **options)


@given(SHAPES, LIMITS, BASES, THREADS, THREADS)
def test_more_threads_allowed_never_refuse_what_fewer_allow(given_shape, limit, base, few, more):
    options = {"limit": limit, "base": base, "rows_per_part": None}

    if attempt(given_shape, threads=few, **options):
        assert attempt(given_shape, threads=few + more, **options)


@given(st.integers(0, 10**9), st.integers(0, 10**9))
def test_wider_rows_make_no_longer_slabs(size, more):
    assert 1 <= slab_rows(size + more) <= slab_rows(size)


@given(st.integers(0, 10**6), st.integers(0, 10**6))
def test_wider_tables_have_no_longer_blocks(columns, more):
    assert block_rows(columns + more) <= block_rows(columns)
