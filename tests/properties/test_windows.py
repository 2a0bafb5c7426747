"""Rows read in any windows are the rows of the file, whether what is left of pages is kept or not."""

import itertools
from contextlib import closing

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from polar_etl.pages.ahead import Ahead
from polar_etl.sources.base import Reading
from polar_etl.sources.parquet import ParquetSource

ROWS = 2_000
DRAW = np.random.default_rng(0)
TABLE = pa.table(
    {
        "late": pa.array(DRAW.standard_normal(ROWS).astype("f4"), mask=np.arange(ROWS) > 1_600),
        "plain": DRAW.standard_normal(ROWS),
        "short": DRAW.integers(0, 9, ROWS).astype("i2"),
        "gap": pa.array(DRAW.integers(0, 9, ROWS), mask=np.arange(ROWS) // 500 == 2),
        "text": [str(i) for i in range(ROWS)],
    }
)


@pytest.fixture(
    scope="module",
    params=itertools.product(["1.0", "2.0"], [1_000, 10**6], [["text"], True], ["none", "zstd"]),
)
def source(request, tmp_path_factory):
    version, page, dictionaries, codec = request.param
    path = tmp_path_factory.mktemp("windows") / "in.parquet"
    pq.write_table(
        TABLE,
        path,
        use_dictionary=dictionaries,
        dictionary_pagesize_limit=2_000,  # some chunks begin with places, and go on with values
        compression=codec,
        row_group_size=700,
        data_page_size=page,
        data_page_version=version,
        write_batch_size=50,
    )
    return ParquetSource.open([str(path)])


@given(st.data(), st.booleans(), st.integers(1, ROWS), st.integers(0, ROWS))
def test_any_windows_hold_the_rows_of_the_file(source, data, keep, window, most):
    first = data.draw(st.integers(0, ROWS - 1))
    stop = data.draw(st.integers(first + 1, min(ROWS, first + 100 * window)))
    names = TABLE.schema.names
    found = {name: [] for name in names}
    how = Reading(1 << 20, 300, keep)
    with closing(source.columns(names, first, stop, how)) as columns:
        for row in range(first, stop, window):
            ahead = Ahead(data.draw(st.integers(0, most)), data.draw(st.integers(0, most)))
            rows = columns.next(min(window, stop - row), ahead)
            for name in names:
                found[name] += rows.column(name).to_pylist()
    assert found == TABLE.slice(first, stop - first).to_pydict()


def test_only_text_is_left_to_pyarrow(source):
    assert source.files[0].from_arrow == {TABLE.schema.names.index("text")}
