"""Vectors as pages of our own: every reader finds them, and no page holds a part of one."""

from __future__ import annotations

import duckdb
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from polar_etl.encoding.chunks import Chunk
from polar_etl.encoding.page_buffers import PagedVectors
from polar_etl.encoding.part_format import PartFormat
from polar_etl.pages.headers import pages_of
from polar_etl.vectors import vectors_of
from tests.unit.encoding.parts import written


def kinds(values: pa.DataType, size: int) -> dict[str, pa.Field]:
    required = pa.field("element", values, nullable=False)
    return {
        "fixed": pa.field("v", pa.list_(values, size)),
        "list": pa.field("v", pa.list_(values)),
        "large": pa.field("v", pa.large_list(values)),
        "required": pa.field("v", pa.list_(required, size), nullable=False),
        "tensor": pa.field("v", pa.fixed_shape_tensor(values, (size,))),
        "a name with dots": pa.field("v.w", pa.list_(values, size)),
    }


def chunk_of(form: PartFormat, numbers: np.ndarray) -> Chunk:
    paged = PagedVectors(*numbers.shape, numbers.dtype)
    done = 0
    for table in paged.tables():
        table[...] = numbers[done : done + len(table)]
        done += len(table)
    assert done == len(numbers)
    found = form.vectors(form.schema.names[0], paged)
    assert found is not None
    return found


@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize(
    ("rows", "size"), [(1, 1), (70_001, 1), (9_000, 3), (2_000, 129), (300, 768), (3, 70_000)]
)
@pytest.mark.parametrize("kind", kinds(pa.float32(), 2))
def test_every_reader_finds_them(tmp_path, kind, rows, size, dtype):
    numbers = np.random.default_rng(size).standard_normal((rows, size)).astype(dtype)
    field = kinds(pa.from_numpy_dtype(numbers.dtype), size)[kind]
    form = PartFormat(pa.schema([field]), (field.name,), None)
    path = written(tmp_path, form, chunk_of(form, numbers), rows)
    expected = vectors_of(field.type, pa.array(numbers.reshape(-1)), size, None)

    table = pq.read_table(path, page_checksum_verification=True)

    table.validate(full=True)
    assert table.schema.field(0).equals(field)
    assert table.column(0).combine_chunks().equals(expected)
    by_polars = pl.read_parquet(path).to_series().to_list()
    by_duckdb = [row for (row,) in duckdb.sql(f"select * from '{path}'").fetchall()]
    assert np.array_equal(np.array(by_polars).reshape(rows, size), numbers)
    assert np.array_equal(np.array(by_duckdb).reshape(rows, size), numbers)


def test_pages_hold_whole_vectors_and_footers_say_what_there_is(tmp_path):
    numbers = np.random.default_rng(0).standard_normal((2_000, 129)).astype(np.float32)
    field = kinds(pa.float32(), 129)["fixed"]
    form = PartFormat(pa.schema([field]), ("v",), None)
    path = written(tmp_path, form, chunk_of(form, numbers), len(numbers))

    said = pq.read_metadata(path).row_group(0).column(0)

    assert (said.path_in_schema, said.num_values) == ("v.list.element", numbers.size)
    assert set(said.encodings) == {"PLAIN", "RLE"}
    assert said.statistics is None
    with path.open("rb") as file:
        start, stop = said.data_page_offset, said.data_page_offset + said.total_compressed_size
        pages = list(pages_of(file.fileno(), start, stop, said.total_uncompressed_size))
    assert len(pages) > 3
    assert all(page.values % 129 == 0 for page in pages)
    assert sum(page.values for page in pages) == numbers.size
    assert said.total_compressed_size == sum(map(len, chunk_of(form, numbers).content))


def test_what_parquet_does_not_have_as_lists_is_left_to_pyarrow():
    form = PartFormat(pa.schema([pa.field("v", pa.list_(pa.float32(), 0))]), ("v",), None)

    assert form.vectors("v", PagedVectors(0, 1, np.dtype("f4"))) is None
