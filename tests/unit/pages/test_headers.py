"""Headers of pages: those written as usual say what a look at each of their fields finds."""

import os
import re

import numpy as np
import pyarrow as pa
import pytest

from polar_etl.footers.chunk_table import chunk_table
from polar_etl.pages import headers
from polar_etl.pages.headers import PageHeader, UnusualError, header_of, page_at
from polar_etl.sources.first_look import footer_of
from tests.unit.plain import by_pyarrow

ROWS = 5_000
NEVER = re.compile(rb"(?!)")


def table(kind: pa.DataType) -> pa.Table:
    draw = np.random.default_rng(0)
    values = draw.integers(0, 99, ROWS)
    columns = {
        "all there": pa.array(values).cast(kind),
        "nulls": pa.array(values, mask=draw.random(ROWS) < 0.3).cast(kind),
        "nothing": pa.nulls(ROWS, kind),
    }
    required = pa.field("required", kind, nullable=False)
    return pa.table(columns).append_column(required, [columns["all there"]])


HOW = {
    "usual": {},
    "no statistics": {"write_statistics": False},
    "checksums": {"write_page_checksum": True},
    "dictionaries": {"use_dictionary": True},
    "snappy": {"compression": "snappy"},
    "not compressed": {"compression": "none"},
    "byte streams": {"use_byte_stream_split": True},
}


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("version", ["1.0", "2.0"])
@pytest.mark.parametrize("kind", [pa.float32(), pa.int64()], ids=str)
def test_usual_headers_say_what_their_fields_say(how, version, kind, tmp_path, monkeypatch):
    path = tmp_path / "x.parquet"
    path.write_bytes(by_pyarrow(table(kind), data_page_version=version, **HOW[how]))
    with path.open("rb") as file:
        found = chunk_table(footer_of(file))
        assert found is not None
        starts = sorted({*found.start.reshape(-1).tolist(), *found.data.reshape(-1).tolist()})

        read = []
        with monkeypatch.context() as patch:
            patch.setattr(headers, "_unusual_header", read.append)
            patch.setattr(headers, "_unusual_sizes", read.append)
            said = told(file.fileno(), starts)
        assert not read

        for usual in ("_USUAL", "_USUAL_V2", "_USUAL_DICTIONARY"):
            monkeypatch.setattr(headers, usual, NEVER)
        assert said == told(file.fileno(), starts)


def told(file: int, starts: list[int]) -> list[tuple[PageHeader, object]]:
    """Return what headers say; of sizes only of data pages, as those of dictionaries are rare."""
    found = [header_of(memoryview(os.pread(file, headers.HEADER, start))) for start in starts]
    return [
        (header, header.holds != "dictionary" and page_at(file, start))
        for header, start in zip(found, starts, strict=True)
    ]


def test_what_is_no_header_is_unusual(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"\x15\x06\x15\xff")
    with path.open("rb") as file:
        assert page_at(file.fileno(), 0) is None
        assert page_at(file.fileno(), -1) is None
    with pytest.raises(UnusualError):
        header_of(memoryview(path.read_bytes()))
