"""Columns of few different whole numbers are found by their values alone."""

from __future__ import annotations

import warnings
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from polar_etl.columns import Bitmap, Piece
from polar_etl.encoding.repeats import repeats_in

ROWS = 20_000
DTYPES = ("i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f4", "f8")


def piece(values: np.ndarray, valid: np.ndarray | None = None) -> Piece:
    if valid is None:
        return Piece(values)
    return Piece(values, (Bitmap(np.packbits(valid, bitorder="little")),))


def codes(dtype: str, many: int = 90, lowest: int = 0) -> np.ndarray:
    return (np.random.default_rng(many).integers(0, many, ROWS) + lowest).astype(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("lowest", [0, -60, "least", "greatest"])
def test_values_at_their_places_are_the_column(dtype, lowest):
    if lowest == -60 and dtype[0] == "u":
        pytest.skip("unsigned numbers are not negative")
    ends = np.iinfo(dtype) if dtype[0] != "f" else np.iinfo("i4" if dtype == "f8" else "i2")
    lowest = {"least": ends.min, "greatest": ends.max - 89}.get(lowest, lowest)
    values = np.arange(90).astype(dtype) + np.array(lowest, dtype)
    values = values[np.random.default_rng(0).integers(0, 90, ROWS)]

    found = repeats_in([piece(values)], ROWS)

    assert found.values.dtype == values.dtype
    assert found.places.dtype == np.uint8
    assert found.valid is None
    assert found.values[found.places].tobytes() == values.tobytes()
    assert (np.diff(found.values) > 0).all()


@pytest.mark.parametrize("many", [2, 256, 257, 4_000])
def test_places_are_one_or_two_bytes(many):
    values = np.arange(ROWS).astype("f8") % many

    found = repeats_in([piece(values)], ROWS)

    assert found.places.dtype == (np.uint8 if many <= 256 else np.uint16)
    assert found.values[found.places].tobytes() == values.tobytes()


@given(
    dtype=st.sampled_from(DTYPES),
    cuts=st.lists(st.integers(0, ROWS), max_size=4),
    nulls=st.sampled_from([None, 0.0, 0.2, 0.9]),
    seed=st.integers(0, 99),
)
def test_only_what_is_there_decides(dtype, cuts, nulls, seed):
    """Neither what stands in place of nulls, nor where pieces begin."""
    draw = np.random.default_rng(seed)
    values = codes(dtype)
    valid = None if nulls is None else draw.random(ROWS) >= nulls
    whole = repeats_in([piece(values, valid)], ROWS)
    hidden = values.copy()
    if valid is not None:
        garbage = np.frombuffer(draw.bytes(ROWS * hidden.itemsize), dtype)
        hidden[~valid] = garbage[~valid]
    bounds = [0, *sorted(cuts), ROWS]
    pieces = [
        piece(hidden[low:high], None if valid is None else valid[low:high])
        for low, high in pairwise(bounds)
    ]

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = repeats_in(pieces, ROWS)

    if nulls == 0.9:
        assert found is whole is None  # too few values are left
        return
    assert found.values.tobytes() == whole.values.tobytes()
    assert found.places.tobytes() == whole.places.tobytes()
    assert (found.valid is None) == (whole.valid is None)
    if found.valid is not None:
        assert (found.valid == valid).all()


def replaced(values: np.ndarray, value: float) -> np.ndarray:
    values = values.copy()
    values[ROWS // 2] = value
    return values


@pytest.mark.parametrize(
    "values",
    [
        codes("f8") / 7,
        replaced(codes("f8"), 0.5),
        replaced(codes("f8"), 1e-20),
        replaced(codes("f8"), np.nan),
        replaced(codes("f8"), np.inf),
        replaced(codes("f8"), -np.inf),
        replaced(codes("f8"), -0.0),
        replaced(codes("f4"), 1e30),
        replaced(codes("i8"), 1 << 16),
        replaced(codes("i8"), -(1 << 62)),
        replaced(codes("u8"), (1 << 64) - 1),
        np.zeros(ROWS),
        np.arange(ROWS),
        np.arange(ROWS) // 3,
        codes("f2"),
    ],
    ids=[
        *("no whole numbers", "one and a half", "almost zero", "NaN", "infinite", "minus infinite"),
        *("negative zero", "far away", "far", "very far", "unsigned", "constant", "all different"),
        *("hardly repeated", "half precision"),
    ],
)
def test_other_columns_have_none(values):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert repeats_in([piece(values)], ROWS) is None


def test_short_columns_have_none():
    assert repeats_in([piece(codes("i8")[:1_000])], 1_000) is None


def test_a_column_of_nulls_has_none():
    assert repeats_in([piece(codes("f8"), np.zeros(ROWS, np.bool_))], ROWS) is None
