"""Flags as pages of our own: every reader finds them, and what a footer says is true."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from polar_etl.encoding.part_format import PartFormat
from polar_etl.passes.tasks import passed_through
from tests.unit.encoding.parts import require, written

DRAW = np.random.default_rng(0)


@pytest.mark.parametrize("rows", [1, 7, 1_001, (1 << 20) + 13])
@pytest.mark.parametrize("flags", ["mixed", "rare", "all", "none"])
@pytest.mark.parametrize("nulls", ["none", "possible", "some", "a page", "all"])
def test_every_reader_finds_them(tmp_path, rows, flags, nulls):
    share = {"mixed": 0.5, "rare": 0.01, "all": 1.0, "none": 0.0}[flags]
    values, valid = DRAW.random(rows) < share, np.ones(rows, np.bool_)
    if nulls == "some":
        valid = DRAW.random(rows) > 0.3
    elif nulls == "a page":
        valid[: 1 << 20] = rows <= 1 << 20
    elif nulls == "all":
        valid[:] = False
    column = pa.chunked_array([pa.array(values, mask=~valid)])
    form = PartFormat(pa.schema([pa.field("f", pa.bool_(), nulls != "none")]), (), None)

    (chunk,) = form.others({"f": passed_through("f", column)})["f"]

    said = require(written(tmp_path, form, chunk, rows), column)
    assert said.num_values == rows
    assert said.total_compressed_size == sum(map(len, chunk.content))
    assert set(said.encodings) == {"PLAIN", "RLE"}
    there = values[valid]
    assert said.statistics.null_count == rows - len(there)
    assert said.statistics.has_min_max == bool(len(there))
    if len(there):
        assert (said.statistics.min, said.statistics.max) == (there.min(), there.max())


def test_where_they_stand_in_memory_is_no_matter():
    values = pa.array(DRAW.random(5_000) < 0.5, mask=DRAW.random(5_000) < 0.1)
    form = PartFormat(pa.schema([pa.field("f", pa.bool_())]), (), None)

    cut = form.others({"f": values.slice(1_003, 2_001)})["f"]
    alone = form.others({"f": pa.array(values.slice(1_003, 2_001).to_pylist())})["f"]

    assert [bytes(piece) for piece in cut[0].content] == [bytes(p) for p in alone[0].content]
