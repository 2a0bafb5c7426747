"""Which rows of a page are there, however its levels are cut into runs; no bytes crash it."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from polar_etl.pages.headers import UnusualError
from polar_etl.pages.levels import split, valid_in_each
from polar_etl.pages.thrift import as_varint


def with_length(raw: bytes) -> bytes:
    return len(raw).to_bytes(4, "little") + raw


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
    return with_length(b"".join(raw for raw, _ in found)), there


@given(st.lists(pages(), min_size=1, max_size=5), st.sampled_from([1, 30]))
def test_any_runs_of_any_pages(some, times):
    """All are asked for as many rows as the shortest has: a last run may tell of more."""
    rows = min(len(there) for _, there in some)
    found = valid_in_each([raw for raw, _ in some] * times, rows)

    assert found.dtype == np.bool_
    assert found.tolist() == [there[:rows] for _, there in some] * times


@pytest.mark.parametrize("rows", [1, 8, 300, 5000])
@pytest.mark.parametrize("many", [1, 3, 200])
def test_pages_of_one_length_make_a_table(rows, many):
    there = np.random.default_rng(rows).random((many, rows)) < 0.7
    levels = [with_length(bits(np.packbits(row, bitorder="little").tobytes())[0]) for row in there]
    levels[0] = with_length(b"".join(repeated(1, there=bool(one))[0] for one in there[0]))

    np.testing.assert_array_equal(valid_in_each(levels, rows), there)


def test_levels_stand_before_the_values():
    levels, values = split(memoryview(with_length(b"\x06\x01") + b"values"))

    assert (bytes(levels), bytes(values)) == (with_length(b"\x06\x01"), b"values")


@given(st.lists(st.binary(max_size=200), min_size=1, max_size=4), st.integers(1, 10_000))
@example([with_length(b"\x02\x01" * 50)], 51)
@example([with_length(b"\xff" * 100)], 100)
@example([with_length(b"\x03")], 8)
@example([b"\xff\xff\xff\x7f\x03"], 8)
@example([b""], 1)
def test_other_bytes_are_damaged_or_have_as_many_rows(levels, rows):
    try:
        found = valid_in_each(levels, rows)
    except UnusualError:
        return
    assert found.shape == (len(levels), rows)
