"""Chunks of few different values: every reader finds the column, and what a footer says is true."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from polar_etl.columns import pieces_of
from polar_etl.encoding.dictionaries import looked_up_numbers, looked_up_text
from polar_etl.encoding.part_format import PartFormat
from polar_etl.encoding.repeats import repeats_in
from polar_etl.pages import thrift
from polar_etl.passes.tasks import passed_through
from tests.unit.encoding.parts import require, written


@pytest.mark.parametrize("level", [None, -7, 9])
@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("many", [2, 256, 300, 9_000])
@pytest.mark.parametrize("nulls", ["none", "possible", "some", "a page", "most"])
def test_numbers(tmp_path, many, dtype, nulls, level):
    rows = 200_003
    draw = np.random.default_rng(many)
    values = draw.integers(0, many, rows).astype(dtype)
    valid = np.ones(rows, np.bool_)
    if nulls == "some":
        valid = draw.random(rows) > 0.1
    elif nulls == "a page":
        valid[60_000:140_000] = False
    elif nulls == "most":
        valid = draw.random(rows) > 0.8
    column = pa.chunked_array([pa.array(values, mask=~valid)])
    field = pa.field("x", column.type, nullable=nulls != "none")
    repeats = repeats_in(pieces_of(column), rows)
    form = PartFormat(pa.schema([field]), ("x",), level)

    (chunk,) = form.looked_up({"x": looked_up_numbers(repeats.values, repeats, rows)})

    said = require(written(tmp_path, form, chunk, rows), column)
    assert said.num_values == rows
    assert said.has_dictionary_page
    assert said.total_compressed_size == sum(map(len, chunk.content))
    assert set(said.encodings) == {"PLAIN", "RLE", "RLE_DICTIONARY"}


@pytest.mark.parametrize("kind", [pa.string(), pa.large_binary()], ids=str)
@pytest.mark.parametrize("many", [1, 256, 257, 70_000])
@pytest.mark.parametrize("nulls", ["none", "possible", "some", "a page"])
def test_text(tmp_path, many, kind, nulls):
    rows = 150_001
    draw = np.random.default_rng(many)
    words = pa.array([f"{'w' * (i % 9)}{i or ''}" for i in range(many)]).cast(kind)
    valid = np.ones(rows, np.bool_)
    if nulls == "some":
        valid = draw.random(rows) > 0.1
    elif nulls == "a page":
        valid[60_000:140_000] = False
    places = pa.array(draw.integers(0, many, rows, np.int32) % many, mask=~valid)
    column = pa.chunked_array([pa.DictionaryArray.from_arrays(places, words)]).cast(kind)
    field = pa.field("t", kind, nullable=nulls != "none")
    form = PartFormat(pa.schema([field]), (), None)

    (chunk,) = form.text("t", passed_through("t", column, kind))

    said = require(written(tmp_path, form, chunk, rows), column)
    assert said.num_values == rows
    hardly_repeated = many == 70_000 and nulls == "a page"
    assert said.has_dictionary_page == (not hardly_repeated)
    there = column.drop_null().cast(pa.binary()).to_pylist()
    assert said.statistics.null_count == column.null_count
    found = said.statistics.min, said.statistics.max
    assert tuple(x if isinstance(x, bytes) else x.encode() for x in found) == (
        min(there),
        max(there),
    )


def test_long_words_are_no_bounds(tmp_path):
    column = pa.chunked_array([["a", "b" * 5_000] * 50])
    form = PartFormat(pa.schema([pa.field("t", pa.string())]), (), None)

    (chunk,) = form.text("t", passed_through("t", column, pa.string()))

    said = require(written(tmp_path, form, chunk, 100), column)
    assert said.has_dictionary_page
    assert not said.statistics.has_min_max
    assert said.statistics.null_count == 0


@given(
    words=st.sets(st.lists(st.sampled_from([0, 97, 98, 255]), max_size=9).map(bytes), min_size=65),
    before=st.binary(max_size=40),
)
def test_bounds_are_the_least_and_the_greatest_word(words, before):
    text = pa.array([before + word for word in words], pa.binary()).dictionary_encode()

    said = looked_up_text(text).statistics

    fields, _ = thrift.fields_of(said)
    greatest, least = (said[fields[place].start : fields[place].stop] for place in (5, 6))
    for found, expected in ((least, min(words)), (greatest, max(words))):
        assert found == thrift.as_varint(len(before + expected)) + before + expected


def test_text_without_words(tmp_path):
    column = pa.chunked_array([pa.array([None, None], pa.string())])
    form = PartFormat(pa.schema([pa.field("t", pa.string())]), (), None)

    (chunk,) = form.text("t", passed_through("t", column, pa.string()))

    require(written(tmp_path, form, chunk, 2), column)


def test_text_that_hardly_repeats_has_no_dictionary(tmp_path):
    column = pa.chunked_array([[f"row {i}" for i in range(2_000)]])
    form = PartFormat(pa.schema([pa.field("t", pa.string())]), (), None)

    (chunk,) = form.text("t", passed_through("t", column, pa.string()))

    said = require(written(tmp_path, form, chunk, 2_000), column)
    assert not said.has_dictionary_page
    assert (said.statistics.min, said.statistics.max) == ("row 0", "row 999")


@pytest.mark.parametrize("different", [30, 3_000])
def test_words_of_thousands_of_short_row_groups_come_in_the_order_of_their_appearance(different):
    """Each piece has a dictionary of its own; looking all up for each took minutes."""
    text = pa.array([f"w{i * 7919 % different}" for i in range(300_000)])
    pieces = [text[low : low + 100].dictionary_encode() for low in range(0, len(text), 100)]

    found = passed_through("text", pa.chunked_array(pieces), pa.string())

    assert found.cast(pa.string()).equals(text)
    assert found.dictionary.equals(text.dictionary_encode().dictionary)


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.binary()])
def test_words_are_taken_whatever_their_lengths(kind):
    rng = np.random.default_rng(1)
    lengths = rng.choice([0, 1, 7, 1_024, 1_025, 20_000], 500, p=[0.2, 0.3, 0.3, 0.08, 0.08, 0.04])
    words = pa.array([f"{i}" + "x" * length for i, length in enumerate(lengths)]).cast(kind)
    places = pa.array(rng.integers(100, 400, 3_000).astype(np.int32))
    pieces = [pa.DictionaryArray.from_arrays(places, words)] * 2  # not in order, and not all used

    found = passed_through("text", pa.chunked_array(pieces), kind)

    assert found.cast(kind).equals(pa.concat_arrays([words.take(places)] * 2))


def test_taking_some_of_the_words_takes_little_more_memory_than_they_have():
    """Place by place a letter takes 24 bytes."""
    words = pa.array([f"{i % 97:02}" * 2_500 + str(i) for i in range(1_000)])
    text = pa.chunked_array([words.dictionary_encode()[300:], words.dictionary_encode()[:700]])
    size = words.nbytes
    tracemalloc.start()
    try:
        passed_through("text", text, pa.string())
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert peak < 3 * size
