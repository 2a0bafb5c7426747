"""Chunks as the only ones of a part."""

from __future__ import annotations

from pathlib import Path

import duckdb
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from polar_etl.encoding.chunks import Chunk, joined
from polar_etl.encoding.part_format import PartFormat
from polar_etl.storage.direct import Staging
from polar_etl.storage.parts import PartWriter, part_name


def written(folder: Path, form: PartFormat, chunk: Chunk, rows: int) -> Path:
    """Return a part that has one column, of one chunk."""
    writer = PartWriter(folder, folder, part_name(0), form, Staging())
    writer.append(joined([chunk]))
    writer.end_group(rows)
    writer.commit()
    return folder / part_name(0)


def require(path: Path, expected: pa.ChunkedArray) -> pq.ColumnChunkMetaData:
    """Check that all readers find a column; return what the footer says of its first chunk."""
    table = pq.read_table(path, page_checksum_verification=True)
    table.validate(full=True)
    by_duckdb = duckdb.sql(f"select * from '{path}'").to_arrow_table()
    for found in (table, pl.read_parquet(path).to_arrow(), by_duckdb):
        assert found.column(0).cast(expected.type).equals(expected)
    return pq.read_metadata(path).row_group(0).column(0)
