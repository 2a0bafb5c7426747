"""Many short pieces of columns: put together they hold what they held apart."""

from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from polar_etl.columns import Bitmap, Piece, validity
from polar_etl.short_chunks.short_pieces import put_together

DTYPES = [np.dtype(np.float32), np.dtype(np.int64)]


@st.composite
def pieces(draw: st.DrawFn, rows: int) -> list[Piece]:
    """Return so many rows of a column, in pieces, some of them with nulls."""
    found = []
    while rows:
        size = draw(st.integers(1, rows))
        values = np.arange(size) + draw(st.integers(0, 9))
        there = np.array(draw(st.lists(st.booleans(), min_size=size, max_size=size)))
        bitmaps = (Bitmap(np.packbits(there, bitorder="little")),) if draw(st.booleans()) else ()
        found.append(Piece(values.astype(draw(st.sampled_from(DTYPES))), bitmaps))
        rows -= size
    return found


@st.composite
def windows(draw: st.DrawFn) -> list[list[list[Piece]]]:
    lengths = draw(st.lists(st.integers(0, 20), min_size=1, max_size=6))
    columns = draw(st.integers(1, 3))
    return [[draw(pieces(rows)) for _ in range(columns)] for rows in lengths]


@given(windows())
def test_what_is_put_together_is_what_there_was(some):
    rows = sum(sum(len(piece.values) for piece in window[0]) for window in some)

    found = put_together(some, rows)

    assert len(found) == len(some[0])
    for column, *apart in zip(found, *some, strict=True):
        expected = [piece for window in apart for piece in window]
        values = [value for piece in expected for value in piece.values]
        assert [value for piece in column for value in piece.values] == values
        dtypes = [piece.values.dtype for piece in expected]
        changes = sum(a != b for a, b in pairwise(dtypes))
        assert len(column) == (changes + 1 if dtypes else 0)
        valid, was = validity(column, 0, rows), validity(expected, 0, rows)
        assert np.array_equal(
            np.ones(rows, bool) if valid is None else valid,
            np.ones(rows, bool) if was is None else was,
        )
