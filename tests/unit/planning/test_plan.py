"""Plans: what is projected stays within the limit, or the run is refused with the remedy."""

import re
from itertools import accumulate, pairwise
from types import SimpleNamespace

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from polar_etl.encoding.slabs import slab_rows
from polar_etl.errors import MemoryLimitError
from polar_etl.memory import NEAR, parse_size
from polar_etl.planning import planner
from polar_etl.planning.bill import bill_of
from polar_etl.planning.plan import Plan
from polar_etl.planning.planner import make_plan
from polar_etl.planning.shapes import Shape, files_within
from polar_etl.sources.base import HELD_CHUNK, HELD_PART
from polar_etl.statistics.blocks import block_rows
from tests.unit.shapes import embeddings, shape

NARROW = shape(4_000_000, 50, 131_072)
BIG_GROUPS = shape(1_500_000, 500, 1_048_576, page_bytes=1 << 16)
BIG_GROUPS_BY_ARROW = shape(1_500_000, 500, 1_048_576, page_bytes=1 << 16, from_arrow=500)
LOOKED_UP = shape(1_500_000, 500, 1_048_576, page_bytes=1 << 16, dictionary_bytes=1 << 20)
VERY_WIDE = shape(20_000, 10_000, 4_096)
SHAPES = {
    "narrow": NARROW,
    "big groups": BIG_GROUPS,
    "big groups by PyArrow": BIG_GROUPS_BY_ARROW,
    "dictionaries": LOOKED_UP,
    "very wide, dictionaries": shape(
        20_000, 10_000, 4_096, dictionary_bytes=1 << 14, page_bytes=1 << 14
    ),
    "some by PyArrow": shape(4_000_000, 50, 131_072, from_arrow=3),
    "very wide": VERY_WIDE,
    "many files": shape(100_000, 20, 10_000, files=50),
    "short files": shape(2_000, 50, 2_000, files=500, page_bytes=8_000),
    "text": shape(1_000_000, 10, 100_000, text_bytes=5 * 10**7),
    "one row group": shape(10_000_000, 8, 10_000_000, kind=pa.float64()),
}
VECTORS = {
    "embeddings": embeddings(whole=True),
    "embeddings by PyArrow": embeddings(whole=False),
    "embeddings and text": embeddings(whole=True, text=True),
}
ALL = SHAPES | VECTORS
BASE = 100 << 20


def plan(given: Shape, **changes: object) -> Plan:
    return make_plan(
        given,
        **{"limit": 8 << 30, "base": BASE, "threads": 4, "rows_per_part": None, **changes},
    )


@pytest.mark.parametrize("given", ALL.values(), ids=ALL)
@pytest.mark.parametrize("limit", [10**8, 5 * 10**8, 10**9, 2 * 10**9, 4 * 10**9, 10**11])
@pytest.mark.parametrize("threads", [1, 2, 16])
def test_projected_stays_within_the_limit_or_the_run_is_refused(given, limit, threads):
    try:
        found = plan(given, limit=limit, threads=threads)
    except MemoryLimitError:
        with pytest.raises(MemoryLimitError):
            plan(given, limit=limit, threads=1)
    else:
        assert found.projected <= limit
        assert found.projected == sum(size for _, size in found.bill)
        assert all(size >= 0 for _, size in found.bill)
        assert 1 <= found.threads <= threads
        assert found.in_flight >= 1


@pytest.mark.parametrize("given", ALL.values(), ids=ALL)
def test_what_shapes_the_output_depends_on_neither_limit_nor_threads(given):
    found = {
        (made.slab_rows, made.part_rows, made.parts)
        for made in (
            plan(given, limit=limit, threads=threads, base=base)
            for limit in (3 * 10**9, 10**10, 10**12)
            for threads in (1, 3, 64)
            for base in (0, BASE)
        )
    }

    assert len(found) == 1


def test_the_more_room_the_less_often_dictionaries_are_decoded():
    limits = (250, 350, 450, 600)
    found = [plan(LOOKED_UP, limit=limit * 10**6, threads=1) for limit in limits]

    abreast = [one.abreast for one in found]
    assert abreast == sorted(abreast)
    assert abreast[0] < abreast[-1]


def test_the_first_pass_decodes_a_dictionary_once():
    found = plan(LOOKED_UP, limit=512 * 10**6)

    assert found.batch_rows > plan(LOOKED_UP._replace(number_dictionaries=0)).batch_rows
    assert found.batch_rows >= min(LOOKED_UP.largest_group, 1 << 18)


def test_threads_have_short_files_by_turns_and_decode_many_columns_of_them_at_a_time():
    found = plan(SHAPES["short files"])
    assert found.deals_rows
    assert found.together.gathered * 2_000 >= 50_000

    assert not plan(SHAPES["short files"], threads=1).deals_rows
    assert not plan(NARROW).deals_rows
    assert plan(NARROW).together.gathered == 1


def test_what_is_kept_for_the_second_pass_stays_with_the_thread_that_has_its_columns():
    found = plan(SHAPES["short files"], spare=4 << 30)
    assert found.keeps
    assert not found.deals_rows


def test_nothing_is_left_of_row_groups_that_end_with_a_slab():
    found = plan(SHAPES["very wide, dictionaries"])

    assert dict(found.bill)["decoding"] == 0


def least_limit(given: Shape) -> int:
    """Return the limit that a refusal names."""
    with pytest.raises(MemoryLimitError) as caught:
        plan(given, limit=BASE)
    return parse_size(re.search(r"--memory-limit (\w+)", str(caught.value)).group(1))


@pytest.mark.parametrize("given", SHAPES.values(), ids=SHAPES)
def test_a_refusal_names_a_limit_that_is_enough(given):
    enough = least_limit(given)

    assert plan(given, limit=enough).projected <= enough
    with pytest.raises(MemoryLimitError):
        plan(given, limit=enough - 10**6)


def test_a_refusal_names_room_for_what_a_larger_limit_holds_of_all_files():
    given = shape(2_000, 50, 2_000, files=700, page_bytes=8_000)._replace(held_chunks=0)
    enough = least_limit(given)
    chunks = enough // (HELD_PART * HELD_CHUNK)

    assert plan(given._replace(held_chunks=chunks), limit=enough).projected <= enough


def test_a_refusal_says_what_takes_the_memory_and_that_nothing_was_done():
    with pytest.raises(MemoryLimitError, match="Nothing was read or written") as caught:
        plan(VERY_WIDE, limit=BASE)

    for name in (
        "interpreter",
        "footers",
        "statistics",
        "arithmetic and encoding",
        "encoded columns",
    ):
        assert name in str(caught.value)


@pytest.mark.parametrize("given", SHAPES.values(), ids=SHAPES)
def test_batches_of_the_first_pass_are_whole_blocks(given):
    for limit in (3 * 10**9, 10**12):
        assert plan(given, limit=limit).batch_rows % block_rows(given.normalized) == 0


@pytest.mark.parametrize("given", [BIG_GROUPS, SHAPES["one row group"]], ids=["wide", "long"])
def test_big_row_groups_of_plain_numbers_fit_where_memory_is_scarce(given):
    found = plan(given, limit=5 * 10**8)

    assert found.projected < given.largest_group * given.row_bytes + BASE


def test_big_row_groups_are_not_decoded_whole_by_pyarrow_where_memory_is_scarce():
    found = plan(BIG_GROUPS_BY_ARROW, limit=10**9)

    assert found.reading.group_rows < 1_048_576
    assert found.reading.stream_rows <= found.slab_rows


def test_big_row_groups_are_decoded_whole_by_pyarrow_where_memory_is_plenty():
    assert plan(BIG_GROUPS_BY_ARROW, limit=10**11).reading.group_rows >= 1_048_576


def test_short_row_groups_of_plain_numbers_need_no_more_memory_than_long_ones():
    def needed(group_rows: int) -> int:
        given = shape(4_000_000, 50, group_rows)
        bill = dict(plan(given, limit=least_limit(given)).bill)
        return sum(bill.values()) - bill["footers"]

    found = [needed(rows) for rows in (10_000, 131_072, 10**6, 4_000_000)]

    assert max(found) == found[-1]


def test_what_is_held_of_row_groups_that_end_within_slabs_is_billed():
    given = shape(1_000_000, 200, 125_000, page_bytes=500_000)
    found = plan(given, limit=5 * 10**8)
    held = (
        dict(found.bill)["decoding"]
        - dict(bill_of(given, found._replace(rest=0), BASE))["decoding"]
    )

    assert 0 < found.rest < found.slab_rows
    assert held >= found.rest * given.row_bytes


@pytest.mark.parametrize(
    ("group", "held"), [(16_384, 0), (131_072, 0), (125_000, 16_376), (122_880, 8_192), (999, 998)]
)
def test_of_row_groups_that_end_within_blocks_less_than_a_block_is_held(group, held):
    given = shape(1_000_000, 200, group, dictionary_bytes=1 << 14)

    assert block_rows(given.normalized) == 16_384
    assert plan(given).batch_rest == held


def test_values_between_nulls_are_billed_once_more():
    def working(source) -> int:
        return dict(plan(source, limit=10**10).bill)["arithmetic and encoding"]

    whole = shape(4_000_000, 50, 131_072)
    assert working(whole._replace(nulls=True)) - working(whole) >= 2 * 4 * 10**6


def test_what_windows_leave_of_row_groups_is_billed_as_it_is():
    def decoding(group_rows: int) -> int:
        wide = shape(20_000, 10_000, group_rows, page_bytes=4 * group_rows)
        return dict(plan(wide, limit=10**10).bill)["decoding"]

    assert plan(shape(20_000, 10_000, 1_000), limit=10**10).slab_rows == 8_192
    assert decoding(8_192) == decoding(1_024) == 0
    few, many = decoding(1_677), decoding(5_000)  # 386 and 3,616 rows at most
    assert 386 * 40_000 < few < 1_677 * 40_000 < 3_616 * 40_000 < many < 1.5 * 5_000 * 40_000


@pytest.mark.parametrize("rows", [1, 10, 1_000, 10**6, 10**9])
def test_rows_per_part_is_obeyed(rows):
    found = plan(NARROW, rows_per_part=rows, limit=10**12)

    assert found.part_rows == rows
    assert found.slab_rows <= rows
    assert found.parts == max(-(-4_000_000 // rows), 1)


def test_an_empty_source_makes_one_part():
    assert plan(shape(0, 50, 1_000)).parts == 1


def test_a_plan_for_few_rows_is_small():
    tiny = shape(10, 50, 10, page_bytes=100)

    assert plan(tiny).projected < BASE + (128 << 20)


@pytest.mark.parametrize("given", SHAPES.values(), ids=SHAPES)
def test_more_room_than_a_plan_can_use_is_not_asked_for(given):
    most = 4.5 * 10**9  # two row groups of PyArrow's, where a slab reaches into both
    assert plan(given, limit=10**11).projected <= plan(given, limit=10**12).projected < most


@pytest.mark.parametrize("given", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("threads", [1, 2, 16])
def test_there_is_work_for_every_thread_and_no_more_shares_than_columns(given, threads):
    found = plan(given, limit=10**11, threads=threads)

    assert found.in_flight >= found.threads == threads
    assert 1 <= found.shares <= given.columns + 1
    assert found.shares >= min(threads, given.columns - given.arrow_columns)
    assert found.ahead >= 2
    assert min(found.together) >= 1


@pytest.mark.parametrize("size", [0, 1, 8, 200, 4_000, 40_000, 400_000, 10**9])
def test_slabs_are_of_moderate_size(size):
    rows = slab_rows(size)

    assert 1 <= rows <= 1 << 20
    assert rows < 256 or rows % 256 == 0
    assert rows * size <= 1 << 30 or rows == 1


def test_pyarrow_is_billed_for_the_schema_that_it_keeps_for_each_share():
    ours, by_arrow = (shape(20_000, 5_000, 20_000, from_arrow=some) for some in (0, 5_000))
    found = plan(by_arrow, limit=10**11)

    more = dict(found.bill)["footers"] - dict(plan(ours, limit=10**11).bill)["footers"]
    assert found.shares > 1
    assert more >= found.shares * 5_000 * 650


@pytest.mark.parametrize("given", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("limit", [5 * 10**8, 2 * 10**9, 10**10, 10**12])
def test_what_the_limit_leaves_keeps_all_numbers_or_none(given, limit):
    try:
        once = plan(given, limit=limit)
    except MemoryLimitError:
        return
    twice = plan(given, limit=limit, spare=10**12)
    size = dict(twice.bill).get("numbers kept for the second pass", 0)

    assert not once.keeps
    assert (twice.slab_rows, twice.parts) == (once.slab_rows, once.parts)
    if twice.keeps:
        assert given.rows * given.kept_bytes < size < 2 * given.rows * given.kept_bytes
        assert twice.projected <= NEAR * limit
    else:
        assert twice == once
        assert once.projected + given.rows * given.kept_bytes > 0.8 * limit


def test_a_smaller_plan_is_chosen_where_it_leaves_room_to_keep_numbers():
    once = plan(LOOKED_UP, limit=4 * 10**9)
    twice = plan(LOOKED_UP, limit=4 * 10**9, spare=10**12)

    assert once.projected + LOOKED_UP.rows * LOOKED_UP.kept_bytes > 4 * 10**9
    assert twice.keeps


def test_where_there_are_no_numbers_nothing_is_kept():
    assert not plan(NARROW._replace(kept_columns=0, kept_bytes=0), spare=10**12).keeps


def test_no_more_is_kept_than_may_be():
    kept = dict(plan(NARROW, spare=10**12).bill)["numbers kept for the second pass"]
    assert plan(NARROW, spare=kept).keeps
    assert not plan(NARROW, spare=kept - 1).keeps


@given(st.lists(st.sampled_from([0, 1, 1, 2, 3, 5, 8]), max_size=9), st.integers(1, 12))
def test_files_that_some_neighbouring_rows_reach_into(lengths, rows):
    ends = list(accumulate(lengths, initial=0))
    reached = [
        sum(low < min(first + rows, high) and first < high for low, high in pairwise(ends))
        for first in range(ends[-1])
    ]
    files = [SimpleNamespace(rows=length) for length in lengths]
    assert files_within(rows, files) == max(reached, default=0)


def test_threads_have_rows_by_turns_where_vectors_make_most_of_them():
    whole = embeddings(whole=True)
    found = plan(whole, limit=4 * 10**9, threads=2)
    assert found.deals_rows
    assert found.deals_slabs
    assert not found.keeps
    assert found.in_flight > found.threads == 2
    assert not plan(whole, limit=4 * 10**9, threads=1).deals_slabs
    assert not plan(whole, limit=330 * 10**6, threads=2).deals_slabs  # no room for the rows of two


def test_nothing_is_decoded_twice_so_that_rows_can_be_dealt():
    """PyArrow decodes a row group from its start: vectors with nulls, and text besides them."""
    for some in (
        embeddings(whole=False),
        embeddings(whole=True, group=200_000, text=True),
        embeddings(whole=True, exclude="v"),  # PyArrow encodes them, with levels for each number
    ):
        assert not plan(some, limit=4 * 10**9, threads=2).deals_slabs
    assert plan(
        embeddings(whole=True, group=5_000, text=True), limit=4 * 10**9, threads=2
    ).deals_slabs
    assert plan(embeddings(whole=True, group=200_000), limit=4 * 10**9, threads=2).deals_slabs


def test_more_threads_take_no_more_bills_until_a_run_is_refused(monkeypatch):
    """A table of text and dictionaries has 16,000 ways to go with 64 threads."""
    given = shape(5_000_000, 50, 1_000_000, text_bytes=10**9, dictionary_bytes=1 << 20, files=20)
    bills = []
    monkeypatch.setattr(planner, "bill_of", lambda *args: bills.append(args) or bill_of(*args))
    counts = []

    for threads in (1, 64):
        bills.clear()
        with pytest.raises(MemoryLimitError):
            make_plan(given, limit=1 << 28, base=BASE, threads=threads, rows_per_part=None)
        counts.append(len(bills))

    assert counts[0] == counts[1] < 1_000
