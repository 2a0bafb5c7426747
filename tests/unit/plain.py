"""Parquet files of plain numbers, as several writers write them, and what stands in them."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import strategies as st

from polar_etl.footers.layout import Layout, layout_of
from polar_etl.pages.values import Chunk

KINDS = [
    *(pa.int8(), pa.int16(), pa.int32(), pa.int64()),
    *(pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64()),
    *(pa.float16(), pa.float32(), pa.float64()),
]
ENCODINGS: list[dict[str, object]] = [
    {"use_dictionary": True},
    {"use_dictionary": False},
    {"use_dictionary": False, "column_encoding": "BYTE_STREAM_SPLIT"},
]
CODECS = ["none", "snappy", "gzip", "brotli", "zstd", "lz4"]
NULLS = [0.0, 0.02, 0.5, 1.0]


def column(kind: pa.DataType, rows: int, nulls: float, seed: int) -> pa.Array:
    """Return any bit patterns as numbers, a share of them null."""
    draw = np.random.default_rng(seed)
    dtype = np.dtype(kind.to_pandas_dtype())
    values = np.frombuffer(draw.bytes(rows * dtype.itemsize), dtype)
    return pa.array(values, kind, mask=draw.random(rows) < nulls if nulls else None)


def by_pyarrow(table: pa.Table, **how: object) -> bytes:
    """Return the table as a file of PyArrow's."""
    sink = io.BytesIO()
    pq.write_table(table, sink, **{"use_dictionary": False} | how)
    return sink.getvalue()


def by_polars(table: pa.Table, **how: object) -> bytes:
    """Return the table as a file of Polars'."""
    sink = io.BytesIO()
    pl.from_arrow(table).write_parquet(sink, **how)
    return sink.getvalue()


def footer_of(content: bytes) -> bytes:
    """Return the footer of a file, with length and magic."""
    return content[-8 - int.from_bytes(content[-8:-4], "little") :]


def layout(content: bytes) -> Layout | None:
    """Return the layout of a file."""
    return layout_of(footer_of(content), pq.read_schema(io.BytesIO(content)))


def chunks(content: bytes, place: int) -> list[Chunk]:
    """Return the chunks of a column of plain numbers."""
    there = layout(content)
    assert there is not None
    found = [there.chunk(group, place) for group in range(len(there.rows))]
    assert None not in found
    return found


@contextmanager
def opened(content: bytes) -> Iterator[int]:
    """Yield the descriptor of a file in memory."""
    file = os.memfd_create("pages")
    try:
        rest = memoryview(content)
        while rest:
            rest = rest[os.write(file, rest) :]
        yield file
    finally:
        os.close(file)


@st.composite
def tables(draw: st.DrawFn, kinds: list[pa.DataType] = KINDS, max_rows: int = 400) -> pa.Table:
    """Return a table of plain numbers, some columns required."""
    rows = draw(st.integers(1, max_rows))
    fields, arrays = [], []
    for place in range(draw(st.integers(1, 3))):
        kind = draw(st.sampled_from(kinds))
        nulls = draw(st.sampled_from(NULLS))
        fields.append(pa.field(f"c{place}", kind, nullable=nulls > 0 or draw(st.booleans())))
        arrays.append(column(kind, rows, nulls, draw(st.integers(0, 9))))
    return pa.Table.from_arrays(arrays, schema=pa.schema(fields))


@st.composite
def pyarrow_files(draw: st.DrawFn, **how: object) -> tuple[pa.Table, bytes]:
    """Return a table, and a file of PyArrow's that holds it as plain numbers."""
    table = draw(tables())
    options = {
        "compression": draw(st.sampled_from(CODECS)),
        "data_page_version": draw(st.sampled_from(["1.0", "2.0"])),
        **draw(st.sampled_from(ENCODINGS)),
        "dictionary_pagesize_limit": draw(st.sampled_from([16, 200, 1 << 20])),
        "write_page_checksum": draw(st.booleans()),
        "write_statistics": draw(st.booleans()),
        "row_group_size": draw(st.sampled_from([1, 7, 64, 150, 1000])),
        "data_page_size": draw(st.sampled_from([1, 64, 1 << 20])),
        "write_batch_size": draw(st.sampled_from([1, 8, 50, 1024])),
        "store_schema": True,
    }
    return table, by_pyarrow(table, **options | how)


@st.composite
def polars_files(draw: st.DrawFn) -> tuple[pa.Table, bytes]:
    """Return a table, and a file of Polars' that holds it."""
    table = draw(tables([kind for kind in KINDS if kind != pa.float16()]))
    content = by_polars(
        table,
        compression=draw(st.sampled_from(["uncompressed", *CODECS[1:]])),
        row_group_size=draw(st.sampled_from([7, 64, 1000])),
        data_page_size=draw(st.sampled_from([64, 1000, 1 << 20])),
        statistics=draw(st.booleans()),
    )
    return table, content


def lengths(rows: int) -> st.SearchStrategy[list[int]]:
    """Return lengths of windows that cover `rows` rows."""

    def covering(cuts: list[int]) -> list[int]:
        edges = [0, *sorted(cuts), rows]
        return [b - a for a, b in pairwise(edges)]

    return st.lists(st.integers(0, rows), max_size=6).map(covering)
