"""Arrow columns as NumPy arrays: offsets, bitmaps, types."""

import itertools
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pytest

from polar_etl.columns import fill, is_numeric, pieces_of, places, present, validity

NUMERIC = [
    *(pa.int8(), pa.int16(), pa.int32(), pa.int64()),
    *(pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64()),
    *(pa.float16(), pa.float32(), pa.float64()),
]


def column(array: pa.Array) -> pa.ChunkedArray:
    return pa.chunked_array([array])


def filled(chunks: pa.ChunkedArray, first: int = 0, rows: int | None = None) -> np.ndarray:
    target = np.full(len(chunks) - first if rows is None else rows, 12345.0)
    pieces = pieces_of(chunks)
    fill(target[None, :], [pieces], first)
    valid = validity(pieces, first, len(target))
    return target if valid is None else np.where(valid, target, np.nan)


def nulls(chunks: pa.ChunkedArray, first: int = 0, rows: int | None = None) -> list[bool]:
    rows = len(chunks) - first if rows is None else rows
    valid = validity(pieces_of(chunks), first, rows)
    return [False] * rows if valid is None else (~valid).tolist()


def expected(chunks: pa.ChunkedArray) -> np.ndarray:
    return np.array([np.nan if x is None else float(x) for x in chunks.to_pylist()])


@pytest.mark.parametrize("kind", [*NUMERIC, pa.decimal128(9, 2), pa.decimal256(50, 10)], ids=str)
def test_numbers_are_numeric(kind):
    assert is_numeric(kind)


@pytest.mark.parametrize(
    "kind",
    [
        *(pa.bool_(), pa.string(), pa.binary(), pa.date32(), pa.timestamp("us"), pa.null()),
        *(pa.time64("ns"), pa.duration("s"), pa.list_(pa.float64()), pa.list_(pa.float32(), 3)),
        *(pa.struct([("x", pa.int8())]), pa.dictionary(pa.int8(), pa.int64())),
    ],
    ids=str,
)
def test_all_else_is_not(kind):
    assert not is_numeric(kind)


@pytest.mark.parametrize("kind", NUMERIC, ids=str)
@pytest.mark.parametrize("offset", [0, 1, 7, 8, 9, 63, 64, 65])
@pytest.mark.parametrize("rows", [1, 8, 100])
def test_slices_with_nulls_keep_values_and_places(kind, offset, rows):
    source = [None if i % 3 == 1 else i % 100 for i in range(200)]
    chunks = column(pa.array(source, kind).slice(offset, rows))

    np.testing.assert_array_equal(filled(chunks), expected(chunks))
    assert nulls(chunks) == chunks.is_null().to_pylist()


@pytest.mark.parametrize("kind", NUMERIC, ids=str)
def test_a_slice_without_nulls_of_an_array_with_nulls(kind):
    chunks = column(pa.array([None, 1, 2, 3, None], kind).slice(1, 3))

    assert filled(chunks).tolist() == [1.0, 2.0, 3.0]
    assert validity(pieces_of(chunks), 0, 3) is None


@pytest.mark.parametrize("kind", NUMERIC, ids=str)
def test_a_slice_of_nothing_but_nulls(kind):
    chunks = column(pa.array([1, None, None, 2], kind).slice(1, 2))

    assert np.isnan(filled(chunks)).all()
    assert nulls(chunks) == [True, True]


def test_extremes_of_integers_become_the_nearest_doubles():
    for kind in ("int64", "uint64"):
        limits = np.iinfo(kind)
        chunks = column(pa.array([limits.min, limits.max, limits.max - 1], kind))
        assert filled(chunks).tolist() == [float(x) for x in chunks.to_pylist()]


def test_float16_and_float32_keep_special_values():
    for kind in (np.float16, np.float32, np.float64):
        values = np.array([np.nan, np.inf, -np.inf, -0.0, 1.5], kind)
        found = filled(column(pa.array(values, from_pandas=False)))
        np.testing.assert_array_equal(found, values.astype(np.float64))
        assert np.signbit(found[3])


@pytest.mark.parametrize(("precision", "scale"), [(5, 2), (18, 6), (38, 10), (38, 0), (38, 37)])
def test_decimals_become_doubles_within_one_unit_in_the_last_place(precision, scale):
    draw = np.random.default_rng(precision + scale)
    digits = ["".join(map(str, draw.integers(0, 10, precision))) for _ in range(200)]
    values = [
        Decimal(f"-{text}" if i % 2 else text).scaleb(-scale) for i, text in enumerate(digits)
    ]
    values = [None if i % 5 == 0 else value for i, value in enumerate(values)]
    chunks = column(pa.array(values, pa.decimal128(precision, scale)).slice(3))

    np.testing.assert_array_max_ulp(filled(chunks), expected(chunks), maxulp=1)


def test_decimals_of_256_bits():
    values = [Decimal("123456789012345678901234567890123456789012.5"), None, Decimal("-0.1")]
    chunks = column(pa.array(values, pa.decimal256(60, 1)))

    np.testing.assert_array_max_ulp(filled(chunks), expected(chunks), maxulp=1)


def test_pieces_are_the_chunks_in_order_without_empty_ones():
    empty = pa.array([], pa.int32())
    chunks = pa.chunked_array(
        [empty, pa.array([1, 2], pa.int32()), empty, pa.array([3], pa.int32())]
    )

    assert [piece.values.tolist() for piece in pieces_of(chunks)] == [[1, 2], [3]]


def test_many_chunks_become_one_piece():
    chunks = pa.chunked_array([pa.array([i, None], pa.int32()) for i in range(9)])

    (piece,) = pieces_of(chunks)

    assert piece.values[::2].tolist() == list(range(9))
    assert piece.valid(0, 18).tolist() == [True, False] * 9


def test_pieces_of_plain_columns_are_views():
    values = np.arange(5.0)

    (piece,) = pieces_of(column(pa.array(values)))

    assert np.shares_memory(piece.values, values)


@pytest.mark.parametrize("cuts", [[], [1], [1, 2, 3], [5, 5, 17], [9]])
@pytest.mark.parametrize(("first", "rows"), [(0, 20), (0, 1), (19, 1), (3, 14), (5, 12), (7, 0)])
def test_windows_across_chunks(cuts, first, rows):
    source = pa.array([None if i % 4 == 2 else i for i in range(20)], pa.int16())
    edges = [0, *cuts, 20]
    chunks = pa.chunked_array(
        [source.slice(a, b - a) for a, b in itertools.pairwise(edges)], source.type
    )
    window = chunks.slice(first, rows)

    np.testing.assert_array_equal(filled(chunks, first, rows), expected(window))
    assert nulls(chunks, first, rows) == window.is_null().to_pylist()
    if rows:
        pieces = pieces_of(chunks)
        there = [i for i, value in enumerate(window.to_pylist()) if value is not None]
        assert places(pieces, first, rows).tolist() == there
        assert present(pieces, first, rows).tolist() == window.drop_null().to_pylist()
