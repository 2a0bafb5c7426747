"""Parquet files: any window of rows, decoded in any way, is the same rows."""

import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from polar_etl.errors import InputError
from polar_etl.sources.base import Reading
from polar_etl.sources.parquet import ParquetSource

ROWS = 1_000


def table(rows: int = ROWS) -> pa.Table:
    return pa.table(
        {
            "i": pa.array(range(rows), pa.int64()),
            "x": np.random.default_rng(0).standard_normal(rows),
            "list": pa.array([[i, i + 1] for i in range(rows)], pa.list_(pa.int16())),
            "text": [f"text {i}" for i in range(rows)],
            "record": pa.array([{"a": i, "b": str(i)} for i in range(rows)]),
            "last": pa.array([None if i % 3 else i for i in range(rows)], pa.int32()),
        }
    )


@pytest.fixture
def path(tmp_path):
    pq.write_table(table(), tmp_path / "x.parquet", row_group_size=130)
    return str(tmp_path / "x.parquet")


WAYS = [
    Reading(threads=threads, group_rows=group_rows, stream_rows=stream_rows)
    for threads in (1, 2)
    for group_rows in (0, 130, 300, ROWS)
    for stream_rows in (17, 256)
]


@pytest.mark.parametrize("how", WAYS, ids=str)
@pytest.mark.parametrize(
    "window", [(0, ROWS), (0, 1), (999, 1_000), (129, 131), (200, 777), (5, 5)]
)
def test_any_window_read_in_any_way_is_the_same_rows(path, how, window):
    source = ParquetSource.open([path])

    found = list(source.read(0, *window, None, how))

    rows = pa.concat_tables([source.schema.empty_table(), *found])
    assert rows.equals(table().slice(window[0], window[1] - window[0]))


@pytest.mark.parametrize("how", WAYS[:4], ids=str)
@pytest.mark.parametrize("columns", [["x"], ["i", "last"], ["list", "record"], ["last"], ["text"]])
def test_columns_can_be_chosen(path, columns, how):
    source = ParquetSource.open([path])

    found = pa.concat_tables(source.read(0, 100, 900, columns, how))

    assert found.equals(table().select(columns).slice(100, 800))


def test_files_are_described_without_reading_them(path):
    source = ParquetSource.open([path, path])

    assert source.schema.equals(table().schema)
    assert [file.rows for file in source.files] == [ROWS, ROWS]
    assert source.files[0].group_rows == (130,) * 7 + (90,)
    assert source.files[0].size == os.stat(path).st_size
    assert source.files[0].variable_bytes > 0
    assert source.files[0].page_bytes > 0


def test_the_fingerprint_changes_with_the_file(path):
    before = ParquetSource.open([path]).fingerprint()
    assert ParquetSource.open([path]).fingerprint() == before

    os.utime(path, ns=(1, 1))
    touched = ParquetSource.open([path]).fingerprint()
    pq.write_table(table(10), path)

    assert before != touched != ParquetSource.open([path]).fingerprint()


def test_a_file_that_changes_while_it_is_read_is_an_input_error(path):
    source = ParquetSource.open([path])
    pq.write_table(table(10), path)

    with pytest.raises(InputError, match="changed"):
        list(source.read(0, 0, ROWS, None, WAYS[0]))


@pytest.mark.parametrize(
    "content", [b"", b"PAR1", b"PAR1PAR1", b"PAR1" + b"\xff" * 100 + b"PAR1", b"text" * 100]
)
def test_what_is_no_parquet_is_an_input_error(tmp_path, content):
    (tmp_path / "x.parquet").write_bytes(content)

    with pytest.raises(InputError, match="can't be read as Parquet"):
        ParquetSource.open([str(tmp_path / "x.parquet")])


def test_a_missing_file_is_an_input_error(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        ParquetSource.open([str(tmp_path / "absent.parquet")])


@pytest.mark.parametrize("how", [WAYS[0], WAYS[6]], ids=str)
def test_damaged_pages_are_an_input_error(tmp_path, how):
    path = tmp_path / "x.parquet"
    pq.write_table(table(), path, write_page_checksum=True)
    content = bytearray(path.read_bytes())
    chunk = pq.read_metadata(path).row_group(0).column(1)
    content[chunk.data_page_offset + chunk.total_compressed_size // 2] ^= 0xFF
    path.write_bytes(content)
    source = ParquetSource.open([str(path)])

    with pytest.raises(InputError, match=r"x\.parquet"):
        list(source.read(0, 0, ROWS, None, how))


def test_files_of_different_schemas_are_refused_by_name(path, tmp_path):
    pq.write_table(table().drop_columns(["x"]), tmp_path / "y.parquet")

    with pytest.raises(InputError, match="column 'x' is missing") as caught:
        ParquetSource.open([path, str(tmp_path / "y.parquet")])
    assert "y.parquet" in str(caught.value)


def test_a_file_without_rows(tmp_path):
    pq.write_table(table(0), tmp_path / "x.parquet")
    source = ParquetSource.open([str(tmp_path / "x.parquet")])

    assert source.files[0].rows == 0
    assert list(source.read(0, 0, 0, None, WAYS[0])) == []
