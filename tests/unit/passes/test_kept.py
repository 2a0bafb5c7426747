"""Columns that the first pass keeps for the second: the same rows, however either is cut."""

import mmap
from contextlib import closing
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from polar_etl.columns import Piece, array_of, validity
from polar_etl.passes import kept as module
from polar_etl.passes.kept import KeepingColumns, Kept, KeptColumns
from tests.unit.arrays import TableColumns

KINDS = [pa.float32(), pa.float64(), pa.int8(), pa.int64()]


@st.composite
def chunked(draw, rows: int) -> pa.ChunkedArray:
    kind = draw(st.sampled_from(KINDS))
    cuts = sorted(draw(st.lists(st.integers(0, rows), max_size=3)))
    nulls = draw(st.sampled_from([0.0, 0.3, 1.0]))
    random = np.random.default_rng(draw(st.integers(0, 99)))
    values = random.integers(-99, 99, rows)
    array = pa.array(values, kind, mask=random.random(rows) < nulls)
    bounds = [0, *cuts, rows]
    pieces = [array[low:high] for low, high in pairwise(bounds)]
    return pa.chunked_array(pieces, kind)


@st.composite
def lengths(draw, rows: int) -> list[int]:
    cuts = sorted({0, rows, *draw(st.lists(st.integers(0, rows), max_size=4))})
    return np.diff(cuts).tolist()


def as_array(pieces: list[Piece]) -> pa.Array:
    rows = sum(len(piece.values) for piece in pieces)
    return array_of(np.concatenate([p.values for p in pieces]), validity(pieces, 0, rows))


@given(st.data())
def test_what_is_kept_is_what_was_read(data):
    rows = data.draw(st.integers(1, 60_000))
    names = ("a", "b", "c")
    table = pa.table({name: data.draw(chunked(rows)) for name in names})
    keeps = frozenset(data.draw(st.sets(st.sampled_from(names))))
    kept = Kept()

    first = KeepingColumns(TableColumns(table.select(sorted(keeps))), kept)
    at = 0
    for many in data.draw(lengths(rows)):
        window = first.next(many)
        for name, pieces in zip(sorted(keeps), window.pieces(sorted(keeps)), strict=True):
            assert as_array(pieces).equals(table[name].slice(at, many).combine_chunks())
        at += many
    assert {name: kept.rows(name) for name in names} == {n: rows * (n in keeps) for n in names}

    others = [name for name in names if name not in keeps]
    second = KeptColumns(TableColumns(table.select(others)), kept, keeps)
    at = 0
    for many in data.draw(lengths(rows)):
        window = second.next(many)
        for name, pieces in zip(names, window.pieces(names), strict=True):
            assert as_array(pieces).equals(table[name].slice(at, many).combine_chunks())
        at += many
    assert at == rows


def test_other_columns_are_passed_on():
    table = pa.table({"x": [1.0, 2.0], "text": ["a", "b"]})
    read = TableColumns(table)
    for columns in (
        KeepingColumns(read, Kept()),
        KeptColumns(TableColumns(table), Kept(), frozenset()),
    ):
        with closing(columns):
            window = columns.next(2)
            assert window.rows == 2
            assert window.column("text") == window.text("text") == table["text"]
    assert read.closed


def test_columns_that_change_their_type_on_the_way_are_not_whole():
    kept = Kept()
    mixed = [Piece(np.ones(2, np.int32)), Piece(np.ones(1, np.int8))]

    assert kept.put(["x"], [mixed], 3) == [mixed]
    kept.put(["x"], [[Piece(np.ones(3))]], 3)

    assert kept.rows("x") == 3


def test_each_batch_may_have_its_own_type():
    kept = Kept()
    kept.put(["x"], [[Piece(np.ones(2, np.int32))]], 2)
    kept.put(["x"], [[Piece(np.zeros(2, np.int8))]], 2)

    assert [p.values.tolist() for p in kept.take("x", 3)] == [[1, 1], [0]]


def test_where_there_is_no_memory_nothing_is_kept(monkeypatch):
    kept = Kept()
    pieces = [Piece(np.ones(1 << 17))]
    kept.put(["x"], [pieces], 1 << 17)

    class Full(mmap.mmap):
        def __new__(cls, *_: object):
            raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(module.mmap, "mmap", Full)
    (found,) = kept.put(["x"], [pieces], 1 << 17)
    assert found is pieces
    assert kept.rows("x") == 0

    monkeypatch.undo()
    kept.put(["x"], [pieces], 1 << 17)
    assert kept.rows("x") == 0


@pytest.mark.parametrize("rows", [1 << 10, 1 << 20])
def test_what_was_taken_is_kept_no_more(rows):
    kept = Kept()
    kept.put(["x", "y"], [[Piece(np.ones(rows))], [Piece(np.zeros(rows))]], rows)

    assert kept.take("x", rows)[0].values.all()
    with pytest.raises(IndexError):
        kept.take("x", 1)
    kept.drop(["y"])
    assert kept.rows("y") == 0
