"""Pages as a file of their own: what PyArrow makes of them is what was written."""

import io
import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from polar_etl.columns import Piece
from polar_etl.pages import files
from polar_etl.pages.fetching import Stretch
from polar_etl.pages.files import PageRun, RunKind, decoded_runs
from polar_etl.pages.headers import UnusualError
from tests.unit.plain import ENCODINGS, KINDS, chunks, column, opened


def written(table: pa.Table, **how: object) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink, **how)
    return sink.getvalue()


def whole(content: bytes, place: int, *, from_file: int | None = None) -> PageRun:
    """Return the pages of a column, the dictionary apart from them or still in a file."""
    (chunk,) = chunks(content, place)
    data = max(chunk.data, chunk.start)
    dictionary = memoryview(content)[chunk.start : data]
    if from_file is not None and len(dictionary):
        dictionary = Stretch(from_file, chunk.start, data)
    pages = [memoryview(content)[data : chunk.stop]]
    kind = RunKind(chunk.stored, chunk.nullable, chunk.codec)
    return PageRun(kind, dictionary, pages)


def same(piece: Piece, array: pa.ChunkedArray) -> None:
    there = np.asarray(array.is_valid())
    np.testing.assert_array_equal(piece.valid(0, len(piece.values)), there)
    expected = array.drop_null().to_numpy()
    np.testing.assert_array_equal(piece.values[there].astype(expected.dtype), expected)


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("codec", ["none", "snappy", "gzip", "brotli", "zstd", "lz4"])
@pytest.mark.parametrize("encoding", ENCODINGS, ids=str)
@pytest.mark.parametrize("nulls", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("version", ["1.0", "2.0"])
def test_numbers_of_all_kinds(kind, codec, encoding, nulls, version):
    table = pa.table({"x": column(kind, 3_000, nulls, 1)})
    how = {"compression": codec, "data_page_version": version, **encoding}
    content = written(table, data_page_size=1 << 10, write_batch_size=100, **how)

    (piece,) = decoded_runs([whole(content, 0)], 3_000)

    same(piece, table["x"])


@pytest.mark.parametrize("kind", [pa.int32(), pa.int64()], ids=str)
@pytest.mark.parametrize("rows", [1, 2, 33, 3_000])
def test_differences_in_bits(kind, rows):
    table = pa.table({"x": column(kind, rows, 0.0, 1)})
    content = written(table, use_dictionary=False, column_encoding="DELTA_BINARY_PACKED")

    (piece,) = decoded_runs([whole(content, 0)], rows)

    same(piece, table["x"])


@given(st.data())
def test_any_columns_together(data):
    kinds = data.draw(st.lists(st.sampled_from(KINDS), min_size=1, max_size=6))
    rows = data.draw(st.integers(1, 500))
    shares = data.draw(st.lists(st.sampled_from([0.0, 0.2]), min_size=6, max_size=6))
    table = pa.table({f"c{i}": column(kind, rows, shares[i], i) for i, kind in enumerate(kinds)})
    content = written(table, write_page_checksum=data.draw(st.booleans()))
    with opened(content) as file:
        runs = [whole(content, place, from_file=file) for place in range(len(kinds))]
        found = decoded_runs(runs, rows)

    for piece, name in zip(found, table.column_names, strict=True):
        same(piece, table[name])


@pytest.mark.parametrize("most", [1, 3_000, 1 << 20])
def test_long_columns_have_a_file_each(monkeypatch, most):
    table = pa.table({f"c{i}": column(pa.float64(), 100, 0.1, i) for i in range(10)})
    content = written(table)
    asked = []
    original = files.decoded_array

    def noting(runs, rows, memory):
        asked.append(len(runs))
        return original(runs, rows, memory)

    monkeypatch.setattr(files, "_FILE", most)
    monkeypatch.setattr(files, "decoded_array", noting)
    found = decoded_runs([whole(content, place) for place in range(10)], 100)

    for piece, name in zip(found, table.column_names, strict=True):
        same(piece, table[name])
    assert sum(asked) == 10
    assert (len(asked) == 10) == (most == 1)
    assert (len(asked) == 1) == (most > 10_000)


@pytest.mark.parametrize("rows", [1, 99, 101, 10_000])
def test_another_number_of_rows_is_unusual_or_not_more_than_asked_for(rows):
    content = written(pa.table({"x": column(pa.float64(), 100, 0.1, 0)}))
    try:
        (piece,) = decoded_runs([whole(content, 0)], rows)
    except UnusualError:
        return
    assert len(piece.values) == rows < 100


def test_a_dictionary_that_breaks_off_is_unusual(tmp_path):
    content = written(pa.table({"x": [1.5, 2.5] * 100}))
    path = tmp_path / "short"
    path.write_bytes(content[:10])
    file = os.open(path, os.O_RDONLY)
    try:
        with pytest.raises(UnusualError):
            decoded_runs([whole(content, 0, from_file=file)], 200)
    finally:
        os.close(file)


@given(st.integers(0, 10_000), st.integers(1, 255))
def test_damage_that_has_a_checksum_is_unusual(where, mask):
    table = pa.table({"x": column(pa.float64(), 300, 0.1, 0)})
    content = written(table, write_page_checksum=True, use_dictionary=False)
    (chunk,) = chunks(content, 0)
    damaged = bytearray(content)
    damaged[chunk.start + where % (chunk.stop - chunk.start)] ^= mask
    try:
        (piece,) = decoded_runs([whole(bytes(damaged), 0)], 300)
    except UnusualError:
        return
    same(piece, table["x"])  # it was in the header, where statistics are
