"""Which rows of a page are there, however its levels are cut into runs; no bytes crash it."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from polar_etl.headers import UnusualError
from polar_etl.levels import valid_in, valid_in_each
from polar_etl.thrift import as_varint


def repeated(count: int, *, there: bool) -> tuple[bytes, list[bool]]:
    return as_varint(count << 1) + bytes([there]), [there] * count


def bits(octets: bytes) -> tuple[bytes, list[bool]]:
    there = [bool(byte >> place & 1) for byte in octets for place in range(8)]
    return as_varint(len(octets) << 1 | 1) + octets, there


runs = st.one_of(
    st.builds(repeated, st.integers(1, 100), there=st.booleans()),
    st.binary(min_size=1, max_size=20).map(bits),
)


@st.composite
def pages(draw) -> tuple[bytes, list[bool]]:
    found = draw(st.lists(runs, min_size=1, max_size=60))
    there = [value for _, values in found for value in values]
    return b"".join(raw for raw, _ in found), there


def check(given_pages: list[tuple[bytes, list[bool]]]) -> None:
    found = valid_in([(raw, len(there)) for raw, there in given_pages])

    for valid, (_, there) in zip(found, given_pages, strict=True):
        assert (valid is None) == all(there)
        if valid is not None:
            assert valid.dtype == np.bool_
            assert valid.tolist() == there


@given(st.lists(pages(), max_size=5), st.sampled_from([1, 30]))
def test_any_runs_of_any_pages(some, times):
    check(some * times)


@given(st.lists(runs, max_size=90))
def test_many_short_pages(some):
    check(some)


@pytest.mark.parametrize("rows", [1, 8, 300, 5000])
@pytest.mark.parametrize("many", [1, 3, 200])
def test_pages_of_one_length_make_a_table(rows, many):
    there = np.random.default_rng(rows).random((many, rows)) < 0.7
    levels = [bits(np.packbits(row, bitorder="little").tobytes())[0] for row in there]
    levels[0] = b"".join(repeated(1, there=bool(one))[0] for one in there[0])

    np.testing.assert_array_equal(valid_in_each(levels, rows), there)


@pytest.mark.parametrize("count", [1, 100, 1000])
def test_few_and_many_runs_together(count):
    many = [repeated(1 + i % 3, there=i % 2 > 0) for i in range(count)]
    raw, there = b"".join(r for r, _ in many), [v for _, values in many for v in values]
    check([(raw, there), repeated(5, there=True), bits(b"\xff" * 100), (raw, there), bits(b"\x05")])


def test_a_page_may_need_fewer_rows_than_its_last_run_has():
    raw, there = bits(b"\x0f" * 30)
    many = b"".join(repeated(1, there=i % 2 > 0)[0] for i in range(100))
    (valid,) = valid_in([(many + raw, 101)])

    assert valid is not None
    assert valid.tolist() == [i % 2 > 0 for i in range(100)] + there[:1]


@given(st.lists(st.tuples(st.binary(max_size=200), st.integers(1, 10_000)), max_size=4))
@example([(b"\x02\x01" * 50, 51)])
@example([(b"\xff" * 100, 100)])
@example([(b"\x03", 8)])
@example([(b"", 1)])
def test_other_bytes_are_damaged_or_have_as_many_rows(some):
    try:
        found = valid_in(some)
    except UnusualError:
        return
    for valid, (_, rows) in zip(found, some, strict=True):
        assert valid is None or len(valid) == rows
