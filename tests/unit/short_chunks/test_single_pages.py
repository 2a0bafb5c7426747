"""Column chunks of one page each: read many at a go, and left to others where they are unusual."""

import os
import weakref

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from polar_etl.footers.layout import layout_of
from polar_etl.pages.ahead import Ahead
from polar_etl.short_chunks import page_batches
from polar_etl.short_chunks.single_pages import SinglePages
from polar_etl.sources.first_look import footer_of

WRITTEN = [
    {"compression": codec, "use_dictionary": dictionaries}
    for codec in ("zstd", "snappy", "none")
    for dictionaries in (True, False)
]
WRITTEN += [
    {"compression": "gzip", "use_dictionary": False},
    {"compression": "lz4", "use_dictionary": True},
]
"""How chunks are written: all but plain zstd is decoded by PyArrow."""
PLAIN = {"compression": "zstd", "use_dictionary": False}

WINDOWS = [(step, PLAIN) for step in (30, 100, 1000)] + [(130, how) for how in WRITTEN]
"""Rows that are asked for at a time, and how chunks are written."""


def at_each_byte(count: int) -> list[tuple[int, dict[str, object]]]:
    """Return (place of a byte, how chunks are written): each byte of plain zstd, some of others."""
    return [(at, how) for how in WRITTEN for at in range(0, count, 1 if how == PLAIN else 3)]


KINDS = [pa.int8(), pa.uint32(), pa.int64(), pa.float16(), pa.float32(), pa.float64()]


def table(columns: int, rows: int, *, nullable: bool = True) -> pa.Table:
    random = np.random.default_rng(columns)
    fields, arrays = [], []
    for i in range(columns):
        kind = KINDS[i % len(KINDS)]
        values = random.integers(0, 100, rows).astype(kind.to_pandas_dtype())
        fields.append(pa.field(f"c{i}", kind, nullable=nullable and i % 2 == 0))
        arrays.append(pa.array(values))
    return pa.Table.from_arrays(arrays, schema=pa.schema(fields))


class Opened:
    """A file, and the reader of some of its columns."""

    def __init__(self, path, source: pa.Table, *, keep=True, groups=None, **how) -> None:
        how = {"use_dictionary": False, "compression": "zstd", "row_group_size": 100} | how
        pq.write_table(source, path, **how)
        self.path, self.source = path, source
        self.open(keep=keep, groups=groups)

    def open(self, *, keep=True, groups=None) -> None:
        with open(self.path, "rb") as file:
            layout = layout_of(footer_of(file), self.source.schema)
        groups = range(len(layout.rows)) if groups is None else groups
        self.layout, descriptor = layout, os.open(self.path, os.O_RDONLY)
        places = range(self.source.num_columns)
        self.reader = SinglePages(layout, places, groups, descriptor, keep=keep)
        weakref.finalize(self.reader, os.close, descriptor)

    def check(self, first: int, rows: int, places=None) -> dict:
        places = list(self.reader.kinds) if places is None else places
        found = self.reader.pieces(places, first, rows)
        for place, pieces in found.items():
            expected = self.source.column(place).slice(first, rows)
            there = expected.is_valid().to_numpy()
            valid = np.concatenate([piece.valid(0, len(piece.values)) for piece in pieces])
            values = np.concatenate([piece.values for piece in pieces])
            np.testing.assert_array_equal(valid, there)
            np.testing.assert_array_equal(values[valid], expected.drop_null().to_numpy())
        return found


@pytest.fixture
def path(tmp_path):
    return tmp_path / "x.parquet"


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("checksums", [True, False])
@pytest.mark.parametrize("statistics", [True, False])
@pytest.mark.parametrize(("step", "how"), WINDOWS, ids=str)
def test_all_kinds_in_any_windows(path, keep, checksums, statistics, step, how):
    how = {"write_page_checksum": checksums, "write_statistics": statistics} | how
    opened = Opened(path, table(12, 1000), keep=keep, **how)
    for first in range(0, 1000, step):
        assert len(opened.check(first, min(step, 1000 - first))) == 12


def values_held(opened: Opened) -> list[np.ndarray]:
    return [values for held in opened.reader._held.values() for values in held.values.values]


@pytest.mark.parametrize(("step", "whole"), [(90, False), (20, True)])
def test_what_is_left_of_a_page_that_is_kept_holds_not_much_more(path, step, whole):
    opened = Opened(path, table(3, 1000), row_group_size=100)
    opened.check(0, step)
    for values in values_held(opened):
        assert len(values) == 100 - step
        assert (values.base.shape[-1] > 100 - step) == whole
    opened.check(step, 10)


@pytest.mark.parametrize("step", [250, 301, 700])
def test_many_short_row_groups_make_one_piece(path, step):
    opened = Opened(path, table(9, 1000))
    for first in range(0, 1000, step):
        found = opened.check(first, min(step, 1000 - first))
        assert [len(pieces) for pieces in found.values()] == [1] * 9


def test_long_row_groups_are_not_copied_into_one_piece(path):
    opened = Opened(path, table(1, 40_000), row_group_size=20_000)
    assert len(opened.check(0, 30_000)[0]) == 2


@pytest.mark.parametrize(("soon", "most"), [(0, 100), (300, 400), (900, 1000)])
def test_of_a_page_that_is_not_kept_no_more_is_held_than_is_wanted_soon(path, soon, most):
    opened = Opened(path, table(3, 1000), keep=False, row_group_size=1000)
    first = opened.reader.pieces([0, 1, 2], 0, 100, Ahead(soon))
    held = values_held(opened)
    assert all(len(values) <= most for values in held)
    assert len(held) == (3 if soon else 0)
    for place, (piece,) in first.items():
        values = piece.values
        whole = values.base if isinstance(values.base, np.ndarray) else values
        assert whole.nbytes <= (most + 10) * values.itemsize
        expected = opened.source.column(place).slice(0, 100).to_numpy()
        np.testing.assert_array_equal(values, expected)


def test_the_rest_of_a_page_is_held_without_the_rows_before_it(path):
    opened = Opened(path, table(3, 1000), keep=False, row_group_size=1000)
    for first, ahead in ((0, Ahead(300, 200)), (500, Ahead(0, 200))):
        opened.reader.pieces([0, 1, 2], first, 300 if first else 500, ahead)
    held = values_held(opened)

    assert [len(values) for values in held] == [200] * 3
    path.write_bytes(b"")  # what is held is not read again
    found = opened.reader.pieces([0, 1, 2], 800, 200)
    for place, (piece,) in found.items():
        np.testing.assert_array_equal(piece.values, opened.source.column(place).slice(800))


@given(st.data())
def test_any_columns_from_any_row_on(tmp_path_factory, data):
    rows = data.draw(st.integers(1, 300))
    opened = Opened(
        tmp_path_factory.mktemp("x") / "x.parquet",
        table(data.draw(st.integers(1, 9)), rows),
        row_group_size=data.draw(st.integers(1, 300)),
        **data.draw(st.sampled_from(WRITTEN)),
    )
    first = data.draw(st.integers(0, rows - 1))
    while first < rows:
        some = data.draw(st.integers(1, rows - first))
        for place in range(opened.source.num_columns):
            assert list(opened.check(first, some, [place])) == [place]
        first += some


def holed(columns: int, rows: int, share: float) -> pa.Table:
    """Columns of all kinds, some of which have nulls."""
    random = np.random.default_rng(rows)
    found = table(columns, rows)
    for at, name in enumerate(found.column_names):
        if at % 3 != 1:
            values = found.column(name).to_numpy()
            nulls = random.random(rows) < share
            found = found.set_column(at, name, pa.array(values, mask=nulls))
    return found


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("checksums", [True, False])
@pytest.mark.parametrize("share", [0.01, 0.3, 1.0])
@pytest.mark.parametrize(("step", "how"), WINDOWS, ids=str)
def test_nulls_in_any_windows(path, keep, checksums, share, step, how):
    source = holed(13, 1000, share)
    opened = Opened(path, source, keep=keep, write_page_checksum=checksums, **how)
    for first in range(0, 1000, step):
        assert len(opened.check(first, min(step, 1000 - first))) == 13


def test_nulls_in_long_row_groups(path):
    opened = Opened(path, holed(3, 40_000, 0.05), row_group_size=20_000)
    for first in range(0, 40_000, 15_000):
        assert len(opened.check(first, min(15_000, 40_000 - first))) == 3


def test_a_null_far_behind_does_not_cost_the_column(path):
    holed = pa.array([None if i == 250 else i for i in range(400)], pa.int64())
    opened = Opened(path, table(5, 400).append_column("holed", holed))
    for first in range(0, 400, 100):
        assert len(opened.check(first, 100)) == 6


@pytest.mark.parametrize(
    "how",
    [
        {"use_dictionary": True, "row_group_size": 1 << 14},
        {"use_dictionary": True, "dictionary_pagesize_limit": 8, "write_batch_size": 10},
        {"max_rows_per_page": 10, "write_batch_size": 10},
        {"column_encoding": "BYTE_STREAM_SPLIT"},
    ],
    ids=lambda how: next(iter(how)),
)
def test_what_is_no_single_page_is_left_out(path, how):
    source = pa.table({"x": pa.array(np.arange(20_000) % 300, pa.float32())})
    opened = Opened(path, source, **how)
    assert not opened.reader.kinds or not opened.check(0, 400)


@pytest.mark.parametrize("how", WRITTEN, ids=str)
def test_pages_of_the_second_version_are_left_out(path, how):
    opened = Opened(path, table(3, 400), data_page_version="2.0", **how)
    assert not opened.check(0, 400)


@pytest.mark.parametrize("how", WRITTEN, ids=str)
def test_a_page_that_claims_more_than_its_rows_need_is_left_out(path, how):
    source = pa.table({f"c{i}": np.arange(100) * 1.5 + i for i in range(5)})
    opened = Opened(path, source, **how)
    start, _, _ = opened.layout.span(0, 2)
    raw = bytearray(path.read_bytes())
    for at in {start, opened.layout.data.item(0, 2)}:
        damaged = raw.copy()
        damaged[at + 4] = 0x7F if damaged[at + 4] < 0x80 else 0xFF  # its size, or where it goes on
        assert damaged != raw
        path.write_bytes(damaged)
        opened.open()
        assert opened.check(0, 100).keys() == {0, 1, 3, 4}


@pytest.mark.parametrize(
    ("place", "how", "checksums"),
    [
        (place, how, checksums)
        for place, how in at_each_byte(40)
        for checksums in (True, False)
        if checksums or how == PLAIN  # without them, damage is only seen in headers
    ],
    ids=str,
)
@pytest.mark.parametrize("nulls", [True, False])
def test_damage_to_one_chunk_costs_no_other_its_right_values(path, place, checksums, nulls, how):
    source = holed(4, 100, 0.1) if nulls else table(4, 100)
    opened = Opened(path, source, write_page_checksum=checksums, **how)
    start, _, _ = opened.layout.span(0, 2)
    raw = bytearray(path.read_bytes())
    raw[start + place] ^= 0xFF
    path.write_bytes(raw)
    opened.open()
    found = opened.check(0, 100)  # what is there is right
    assert found.keys() >= {0, 1, 3} or not checksums


@pytest.mark.parametrize("how", WRITTEN, ids=str)
@pytest.mark.parametrize("columns", [1, 3])
@pytest.mark.parametrize("group", [0, 1, 2])
def test_damage_in_one_of_many_row_groups_costs_that_column_alone(path, group, columns, how):
    opened = Opened(path, table(columns, 500), write_page_checksum=True, **how)
    _, stop, _ = opened.layout.span(group, 0)
    raw = bytearray(path.read_bytes())
    raw[stop - 1] ^= 0xFF
    path.write_bytes(raw)
    opened.open()
    assert opened.check(0, 250).keys() == {*range(1, columns)}


@pytest.mark.parametrize("how", WRITTEN, ids=str)
def test_a_file_that_breaks_off_gives_nothing(path, how):
    opened = Opened(path, table(4, 100), **how)
    os.truncate(path, opened.layout.span(0, 2)[0] + 5)
    assert opened.check(0, 100) == {}


@pytest.mark.parametrize("statistics", [True, False])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5])
def test_headers_that_differ_in_numbers_only_are_not_read_one_by_one(
    path, monkeypatch, share, statistics
):
    random = np.random.default_rng(0)
    columns = {
        f"c{i}": pa.array(random.standard_normal(400), mask=random.random(400) < share)
        for i in range(200)
    }
    opened = Opened(path, pa.table(columns), write_statistics=statistics)
    read = []
    original = page_batches.header_of
    monkeypatch.setattr(page_batches, "header_of", lambda raw: read.append(1) or original(raw))
    assert len(opened.check(0, 400)) == 200
    assert len(read) <= 8  # for as many lengths of them, in 800 chunks


@pytest.mark.parametrize(("place", "how"), at_each_byte(30), ids=str)
@pytest.mark.parametrize("value", [0x00, 0x7F, 0x80, 0xFF])
def test_a_damaged_header_among_many_gives_no_wrong_values(path, place, value, how):
    opened = Opened(path, holed(40, 100, 0.1), row_group_size=50, **how)
    start = opened.layout.data.item(0, 21)
    raw = bytearray(path.read_bytes())
    raw[start + place] = value
    path.write_bytes(raw)
    opened.open()
    opened.check(0, 100)
