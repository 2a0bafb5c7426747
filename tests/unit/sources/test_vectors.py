"""Vectors read page by page are those that PyArrow reads; what is not all there is left to it."""

from __future__ import annotations

from pathlib import Path

import duckdb
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from polar_etl.pages.headers import UnusualError
from polar_etl.pages.vectors import VectorReader
from polar_etl.sources.base import Reading
from polar_etl.sources.parquet import ParquetSource

ROWS = 5_000
HOW = Reading(group_rows=0, stream_rows=512)
KINDS = {
    "fixed": pa.list_(pa.float32(), 24),
    "three": pa.list_(pa.float64(), 3),
    "one": pa.list_(pa.float32(), 1),
    "long": pa.list_(pa.float32(), 1_031),
    "list": pa.list_(pa.float32()),
    "large": pa.large_list(pa.int64()),
    "required": pa.list_(pa.field("element", pa.int16(), nullable=False), 24),
    "half": pa.list_(pa.float16(), 24),
    "bytes": pa.list_(pa.uint8(), 24),
    "tensor": pa.fixed_shape_tensor(pa.float32(), (4, 6)),
}
WRITTEN = {
    "zstd": {"compression": "zstd", "use_dictionary": False},
    "snappy, with a dictionary": {"compression": "snappy"},
    "gzip, short pages": {"compression": "gzip", "data_page_size": 5_000},
    "not compressed": {"compression": "none", "use_dictionary": False, "data_page_size": 1 << 16},
    "with checksums": {"compression": "zstd", "write_page_checksum": True},
    "a dictionary that is given up": {"dictionary_pagesize_limit": 10_000},
}


def column(kind: pa.DataType, rows: int = ROWS, values: int = 1 << 16) -> pa.Array:
    storage = kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind
    size = storage.list_size if pa.types.is_fixed_size_list(storage) else 24
    draw = np.random.default_rng(size)
    numbers = pa.array(draw.integers(0, values, rows * size)).cast(storage.value_type, safe=False)
    if pa.types.is_fixed_size_list(storage):
        made = pa.FixedSizeListArray.from_arrays(numbers, type=storage)
    else:
        offsets = pa.array(np.arange(rows + 1) * size)
        large = pa.types.is_large_list(storage)
        offsets = offsets if large else offsets.cast(pa.int32())
        made = (pa.LargeListArray if large else pa.ListArray).from_arrays(offsets, numbers)
    return pa.ExtensionArray.from_storage(kind, made) if made.type != kind else made


@pytest.fixture
def outcomes(monkeypatch) -> list[str]:
    """Note what became of windows that were not left to PyArrow from the start."""
    found: list[str] = []
    vectors = VectorReader.vectors

    def noting(self, rows):
        try:
            yield from vectors(self, rows)
            found.append("read")
        except UnusualError as error:
            found.append(str(error))
            raise

    monkeypatch.setattr(VectorReader, "vectors", noting)
    return found


def read(path: Path, first: int = 0, step: int = 700, size: int = 24) -> pa.ChunkedArray:
    """Return the rows of column `v` from one on, read so many at a time."""
    source = ParquetSource.open([str(path)])
    source = source.with_lengths(["v"], {"v": size})
    rows = source.files[0].rows
    columns = source.columns(["v"], first, rows, HOW)
    found = []
    for low in range(first, rows, step):
        found += columns.next(min(step, rows - low)).column("v").chunks
    columns.close()
    return pa.chunked_array(found, source.schema.field("v").type)


@pytest.mark.parametrize("how", WRITTEN.values(), ids=WRITTEN)
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_vectors_are_those_that_were_written(tmp_path, outcomes, kind, how):
    values = column(kind, 500 if kind is KINDS["long"] else ROWS)
    pq.write_table(pa.table({"v": values}), tmp_path / "v.parquet", row_group_size=2_011, **how)

    for first in (0, 1, 433):
        assert read(tmp_path / "v.parquet", first).combine_chunks().equals(values[first:])
    assert set(outcomes) == {"read"}


@pytest.mark.parametrize("writer", ["polars", "duckdb"])
def test_of_other_writers(tmp_path, outcomes, writer):
    written = pa.table({"v": column(KINDS["fixed"])})
    path = tmp_path / "v.parquet"
    if writer == "polars":
        pl.from_arrow(written).write_parquet(path, data_page_size=20_000)
    else:
        duckdb.sql(f"copy written to '{path}'")

    found = read(path, 10).combine_chunks()

    assert found.cast(written["v"].type).equals(written["v"].combine_chunks()[10:])
    assert set(outcomes) == {"read"}


GAPS = {
    "a null vector": ([[1.0] * 24, None], set()),  # its chunk has fewer numbers
    "a null number": ([[1.0] * 24, [1.0] * 23 + [None]], {"read", "there are nulls"}),
}


@pytest.mark.parametrize(("rows", "seen"), GAPS.values(), ids=GAPS)
def test_with_nulls_they_are_read_by_pyarrow_from_there_on(tmp_path, outcomes, rows, seen):
    whole, some = column(KINDS["fixed"]), pa.array(rows, KINDS["fixed"])
    values = pa.concat_arrays([whole, some, whole])
    table = pa.table({"v": values})
    path = tmp_path / "v.parquet"
    pq.write_table(table, path, data_page_size=20_000, use_dictionary=False)

    for first in (0, 4_000, ROWS + 1):
        assert read(path, first).combine_chunks().equals(values[first:])
    assert set(outcomes) == seen


def test_lists_that_differ_in_length_are_refused_as_ever(tmp_path):
    lists = [[1.0, 2.0], [3.0], [4.0, 5.0, 6.0]] * 1_000  # as many numbers as two for each
    pq.write_table(pa.table({"v": pa.array(lists)}), tmp_path / "v.parquet")

    with pytest.raises(Exception, match=r"holds 1 numbers in row 1 \(counted from 0\)"):
        read(tmp_path / "v.parquet", size=2)


def test_damaged_pages_are_refused(tmp_path):
    path = tmp_path / "v.parquet"
    table = pa.table({"v": column(KINDS["fixed"])})
    pq.write_table(table, path, write_page_checksum=True, compression="none", use_dictionary=False)
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)

    with pytest.raises(Exception, match=r"(?i)crc|checksum|damaged"):
        read(path)
