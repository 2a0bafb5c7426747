"""Columns that hardly repeat are known by a sample; only what is in them decides."""

from __future__ import annotations

import tracemalloc
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest

from polar_etl.encoding.part_format import PartFormat
from polar_etl.encoding.uniqueness import are_unique
from polar_etl.passes.tasks import passed_through

ROWS = 120_000
ORDERS = {
    "sorted": np.arange(ROWS),
    "shuffled": np.random.default_rng(1).permutation(ROWS),
    "one period behind the other": np.arange(ROWS).reshape(-1, 40).T.ravel(),
}
KINDS = [
    pa.timestamp("us", "UTC"),
    pa.timestamp("ns"),
    pa.date32(),
    pa.time64("us"),
    pa.duration("ms"),
    pa.int64(),
    pa.uint32(),
    pa.float64(),
]


def seen_as(kind: pa.DataType, values: np.ndarray) -> pa.Array:
    """Return whole numbers as if their bits were values of another type."""
    return pa.array(values.astype(f"i{kind.bit_width // 8}")).view(kind)


def has_dictionary(column: pa.Array) -> bool:
    """Tell whether the chunk of a column that passes through gets one."""
    form = PartFormat(pa.schema([pa.field("x", column.type)]), (), None)
    ((chunk,),) = form.others({"x": column}).values()
    return b"\x15\x04\x15" in bytes(chunk.content[0])[:3]  # a dictionary's page header


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("order", ORDERS)
def test_what_all_differs_has_no_dictionary(kind, order):
    column = seen_as(kind, ORDERS[order])

    assert are_unique(column)
    assert not has_dictionary(column)


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("times", [3, 100, ROWS])
def test_what_repeats_has_one(kind, order, times):
    column = seen_as(kind, ORDERS[order] // times)

    assert not are_unique(column)
    assert has_dictionary(column)


def test_what_stands_in_place_of_nulls_does_not_decide():
    values = np.arange(ROWS)
    valid = np.random.default_rng(2).random(ROWS) < 0.5
    zeros, others = np.where(valid, values, 0), np.where(valid, values, -values)

    for some in (zeros, others):
        assert are_unique(pa.array(some, mask=~valid))
    for some in (np.where(valid, 7, values), np.where(valid, 7, 0)):
        assert not are_unique(pa.array(some, mask=~valid))
    assert not are_unique(pa.nulls(ROWS, pa.int64()))


def test_short_columns_and_those_of_a_byte_are_not_looked_at():
    assert not are_unique(pa.array(range(1_000)))
    assert not are_unique(pa.array(np.zeros(ROWS, np.int8)))
    assert not are_unique(pa.array(np.zeros(ROWS, np.bool_)))
    assert not are_unique(pa.array([[1]] * ROWS))


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("times", [1, 2, 3, 100])
@pytest.mark.parametrize("nulls", [0.0, 0.3])
def test_text_becomes_the_same_however_it_was_encoded_and_cut(order, times, nulls):
    draw = np.random.default_rng(times)
    text = pa.array([f"text {i}" for i in range(ROWS)])
    places = pa.array(ORDERS[order] // times, mask=draw.random(ROWS) < nulls)
    column = text.take(places)
    cuts = [0, 5, 40_000, 40_001, ROWS]
    pieces = [column[a:b] for a, b in pairwise(cuts)]
    form = PartFormat(pa.schema([pa.field("t", pa.string())]), (), None)

    forms = [
        pa.chunked_array([column]),
        pa.chunked_array(pieces),
        pa.chunked_array([column.dictionary_encode()]),
        pa.chunked_array([piece.dictionary_encode() for piece in pieces]),
        pa.chunked_array([pa.DictionaryArray.from_arrays(places, text)]),
    ]
    found = {
        b"".join(map(bytes, form.text("t", passed_through("t", some, pa.string()))[0].content))
        for some in forms
    }

    assert len(found) == 1
    (bytes_,) = found
    if times != 2:  # half of the letters are what a dictionary may have
        assert bytes_.startswith(b"\x15\x04\x15") == (times > 1)


def test_of_long_texts_a_few_letters_are_held():
    """A sample of whole texts might take more memory than there is."""
    texts = pa.array([f"{i:06}" + "x" * 2_000 for i in range(20_000)])
    column = pa.chunked_array([texts.slice(0, 9_000), texts.slice(9_000)])
    passed_through("t", column, pa.string())  # so that nothing is loaded while it is measured
    tracemalloc.start()
    try:
        found = passed_through("t", column, pa.string())
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert isinstance(found, pa.ChunkedArray)  # no dictionary
    assert peak < 4_000_000


def test_long_texts_that_differ_inside_only_are_looked_at_as_a_whole():
    texts = pa.array(["x" * 100 + f"{i % 3}" + "x" * 100 for i in range(20_000)])

    found = passed_through("t", pa.chunked_array([texts]), pa.string())

    assert len(found.dictionary) == 3
