"""Places in runs of either kind are unpacked as the format tells, or left to PyArrow."""

import numpy as np
import pytest
from hypothesis import event, given
from hypothesis import strategies as st

from polar_etl import thrift
from polar_etl.headers import UnusualError
from polar_etl.runs import FEW_RUNS, places_in

EVERY_RUN = 1.0


def all_places(some: list[tuple[bytes, int]], *most: float) -> list[list[int]]:
    """Return the places of each page."""
    found = {number: places.tolist() for number, places in places_in(some, *most)}
    assert sorted(found) == list(range(len(some)))
    return [found[number] for number in range(len(some))]


def bits_of(places: list[int], width: int) -> bytes:
    """Return places packed as the format tells: bit by bit, the lowest first."""
    number = sum(place << index * width for index, place in enumerate(places))
    return number.to_bytes(-(-len(places) * width // 8), "little")


def packed(places: list[int], width: int, *, whole: bool = True) -> bytes:
    """Return a run of bits; `whole` groups of eight, as the format asks for."""
    groups = -(-len(places) // 8)
    filled = places + [0] * (8 * groups - len(places)) if whole else places
    return thrift.as_varint(groups << 1 | 1) + bits_of(filled, width)


def repeated(place: int, count: int, width: int) -> bytes:
    """Return a run of one value."""
    return thrift.as_varint(count << 1) + place.to_bytes(-(-width // 8), "little")


@st.composite
def pages(draw: st.DrawFn) -> tuple[bytes, list[int]]:
    """Return a page, and the places in it."""
    width = draw(st.integers(0, 25))
    any_place = st.integers(0, (1 << width) - 1)
    content, places = b"", []
    for _ in range(draw(st.integers(1, 4))):
        if draw(st.booleans()):
            some = [draw(any_place)] * draw(st.integers(1, 40))
            content += repeated(some[0], len(some), width)
            places += some
            continue
        seed, groups = draw(st.integers(0, 99)), draw(st.sampled_from([1, 2, 63, 64, 70]))
        for number in range(draw(st.integers(1, 4))):  # of one length, as most writers have them
            some = np.random.default_rng([seed, number]).integers(0, 1 << width, 8 * groups)
            content += packed(some.tolist(), width)
            places += some.tolist()
    used = len(places) - draw(st.integers(0, 7)) if len(places) > 7 else len(places)
    return bytes([width]) + content, places[: max(used, 1)]


@given(st.lists(pages(), max_size=5), st.integers(1, 3))
def test_places_are_those_that_were_packed(some, times):
    some = some * times  # pages with equal runs are unpacked together

    found = all_places([(content, len(places)) for content, places in some], EVERY_RUN)

    assert found == [places for _, places in some]


def test_pages_of_one_length_need_not_have_the_same_runs():
    width = 3
    first = bytes([width]) + packed([1] * 8, width) + repeated(5, 8, width)
    second = bytes([width]) + packed([1] * 8, width) + repeated(6, 8, width)

    found = all_places([(first, 16), (second, 16), (first, 16)])

    assert found == [[1] * 8 + [n] * 8 for n in (5, 6, 5)]


@pytest.mark.parametrize("runs", [1, 3])
def test_the_end_of_the_last_run_may_be_left_out(runs):
    """Polars writes no bits behind the last place."""
    width, places = 5, [n % 32 for n in range(8 * 63 * runs + 3)]
    content = bytes([width])
    for first in range(0, 8 * 63 * runs, 8 * 63):
        content += packed(places[first : first + 8 * 63], width)
    content += packed(places[8 * 63 * runs :], width, whole=False)

    assert all_places([(content, len(places))]) == [places]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x04",
        b"\x04\x03",
        b"\x04\x03\x00",
        b"\x04\x00\x01",
        b"\x04\x01",
        b"\x04\x10",
        b"\x1a" + packed([1] * 8, 26),
        b"\xff" * 20,
        b"\x04" + b"\x80" * 12,
    ],
    ids=repr,
)
def test_damaged_places_are_unusual(content):
    with pytest.raises(UnusualError):
        all_places([(content, 8)])


def test_a_last_run_that_tells_of_too_many_takes_no_memory_for_them():
    content = b"\x08" + thrift.as_varint(1 << 50 | 1) + bytes(range(8))
    assert all_places([(content, 8)]) == [list(range(8))]


@given(st.binary(max_size=60), st.integers(0, 40))
def test_any_bytes_are_unusual_or_as_many_places(content, count):
    try:
        (found,) = all_places([(content, count)])
    except UnusualError:
        event("unusual")
        return
    assert len(found) == count


def test_many_runs_are_read_but_not_looked_for():
    """PyArrow is faster with these; a plan that did not expect them must do without it."""
    many = b"\x04" + b"".join(repeated(n % 16, 8, 4) for n in range(60))

    assert all_places([(many, 480)], EVERY_RUN) == [[n % 16 for n in range(60) for _ in range(8)]]
    with pytest.raises(UnusualError, match="many runs"):
        all_places([(many, 480)], FEW_RUNS)
