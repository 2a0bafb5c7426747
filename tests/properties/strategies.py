"""Columns, tables and splits for property tests."""

import itertools

import numpy as np
import pyarrow as pa
from hypothesis import strategies as st

KINDS = [
    *(pa.float64(), pa.float32(), pa.float16(), pa.int8(), pa.int16(), pa.int32(), pa.int64()),
    *(pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64()),
]

FINITE = st.floats(allow_nan=False, allow_infinity=False)
NAMES = st.text(st.characters(exclude_categories=("Cs",)), max_size=8)


def numbers(kind: pa.DataType) -> st.SearchStrategy:
    """Return any value of a numeric type."""
    if pa.types.is_integer(kind):
        limits = np.iinfo(kind.to_pandas_dtype())
        return st.integers(int(limits.min), int(limits.max))
    return st.floats(width=kind.bit_width)


@st.composite
def columns(
    draw: st.DrawFn, kinds: list[pa.DataType] = KINDS, max_size: int = 40
) -> pa.ChunkedArray:
    """Return a numeric column with nulls, NaN and infinities, in chunks."""
    kind = draw(st.sampled_from(kinds))
    values = draw(st.lists(st.none() | numbers(kind), max_size=max_size))
    if kind == pa.float16():
        values = [None if value is None else np.float16(value) for value in values]
    array = pa.array(values, kind, from_pandas=False)
    return pieces(array, draw(cuts(len(array))))


def cuts(rows: int) -> st.SearchStrategy[list[int]]:
    """Return sorted places to cut so many rows at, some twice."""
    return st.lists(st.integers(0, rows), max_size=6).map(sorted)


def pieces(array: pa.Array, places: list[int]) -> pa.ChunkedArray:
    """Return `array` as a column cut at `places`."""
    edges = [0, *places, len(array)]
    chunks = [array.slice(a, b - a) for a, b in itertools.pairwise(edges)]
    return pa.chunked_array(chunks, type=array.type)
