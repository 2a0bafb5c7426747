"""Parquet files: any window of rows, decoded in any way, is the same rows."""

import os
from contextlib import closing
from itertools import cycle

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from polar_etl.columns import fill, validity
from polar_etl.errors import InputError
from polar_etl.pages.thrift import as_number
from polar_etl.sources import first_look
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
    Reading(group_rows=group_rows, stream_rows=stream_rows)
    for group_rows in (0, 130, 300, ROWS)
    for stream_rows in (17, 256)
]


def read(source, first, stop, how, names=None, lengths=(100,)) -> pa.Table:
    """Return rows of a source, window by window."""
    names = source.schema.names if names is None else names
    found = []
    with closing(source.columns(names, first, stop, how)) as columns:
        for length in cycle(lengths):
            if first >= stop:
                break
            window = columns.next(min(length, stop - first))
            assert window.rows == min(length, stop - first)
            found.append(pa.table([window.column(name) for name in names], names=list(names)))
            first += window.rows
    schema = pa.schema([source.schema.field(name) for name in names])
    return pa.concat_tables([schema.empty_table(), *found])


@pytest.mark.parametrize("how", WAYS, ids=str)
@pytest.mark.parametrize(
    "window", [(0, ROWS), (0, 1), (999, 1_000), (129, 131), (200, 777), (5, 5)]
)
def test_any_rows_read_in_any_way_are_the_same_rows(path, how, window):
    source = ParquetSource.open([path])

    for length in (7, 130, 10_000):
        found = read(source, *window, how, lengths=[length])
        assert found.equals(table().slice(window[0], window[1] - window[0]))


@pytest.mark.parametrize("how", WAYS[:4], ids=str)
@pytest.mark.parametrize("columns", [["x"], ["i", "last"], ["list", "record"], ["last"], ["text"]])
def test_columns_can_be_chosen(path, columns, how):
    source = ParquetSource.open([path])

    found = read(source, 100, 900, how, columns)

    assert found.equals(table().select(columns).slice(100, 800))


def test_columns_may_be_asked_for_in_any_order(path):
    source = ParquetSource.open([path])

    found = read(source, 100, 900, WAYS[0], ["last", "text", "i"])

    assert found.equals(table().select(["last", "text", "i"]).slice(100, 800))


@pytest.mark.parametrize("lengths", [[3000], [1], [999, 1, 1, 998, 1001], [1500, 1500], [17, 983]])
@pytest.mark.parametrize("how", [WAYS[0], WAYS[5]], ids=str)
@pytest.mark.parametrize("held", [True, False])
def test_rows_of_several_files_come_as_if_they_were_one(
    path, tmp_path, monkeypatch, how, lengths, held
):
    if not held:  # of so many chunks that it is looked up anew where they stand
        monkeypatch.setattr(first_look, "_FEW_CHUNKS", 1)
    other = tmp_path / "other.parquet"
    pq.write_table(table().take(pa.array(range(ROWS))[::-1]), other, use_dictionary=False)
    empty = tmp_path / "empty.parquet"
    pq.write_table(table().slice(0, 0), empty)
    source = ParquetSource.open([path, str(empty), str(other), path])
    expected = pa.concat_tables([table(), pq.read_table(other), table()])

    for first, stop in ((0, 3 * ROWS), (500, 2500), (1000, 2000), (2999, 3000)):
        found = read(source, first, stop, how, lengths=lengths)
        assert found.combine_chunks().equals(expected.slice(first, stop - first).combine_chunks())


@pytest.mark.parametrize(("limit", "held"), [(1 << 30, True), (10_000, False), (1 << 62, False)])
def test_it_is_held_where_chunks_stand_if_they_take_a_small_part_of_the_limit(
    path, monkeypatch, limit, held
):
    """Without a limit, only of a few."""
    monkeypatch.setattr(first_look, "_FEW_CHUNKS", 1)
    source = ParquetSource.open([path, path], first_look.Room(limit))
    assert source.held_chunks == (sum(file.held_chunks for file in source.files) if held else 0)


@pytest.mark.parametrize("how", [WAYS[0], WAYS[5]], ids=str)
def test_numbers_come_as_pieces(path, how):
    source = ParquetSource.open([path, path])
    names = ["i", "last", "x"]
    twice = pa.concat_tables([table(), table()])
    with closing(source.columns(source.schema.names, 300, 1700, how)) as columns:
        for first in range(300, 1700, 700):
            window = columns.next(700)
            found = window.pieces(names)
            for name, pieces in zip(names, found, strict=True):
                expected = twice[name].slice(first, 700)
                target = np.empty((1, 700))
                fill(target, [pieces], 0)
                valid = validity(pieces, 0, 700)
                there = expected.is_valid().to_numpy()
                assert (np.ones(700, bool) if valid is None else valid).tolist() == there.tolist()
                assert (target[0, there] == expected.drop_null().to_numpy()).all()


@pytest.mark.parametrize("names", [["x"], ["i", "x"]])
def test_a_window_without_rows_has_every_column(path, names):
    source = ParquetSource.open([path])
    with closing(source.columns(source.schema.names, 5, 5, WAYS[0])) as columns:
        window = columns.next(0)
        found = window.pieces(names)
        text = window.column("text")

    assert window.rows == 0
    assert len(found) == len(names)
    assert sum(len(piece.values) for pieces in found for piece in pieces) == 0
    assert (text.type, len(text)) == (pa.string(), 0)


def test_closing_lets_go_of_all_files(path):
    source = ParquetSource.open([path, path])
    before = os.listdir("/proc/self/fd")
    columns = source.columns(["x", "text"], 0, 2 * ROWS, WAYS[0])
    columns.next(ROWS + 5)
    assert len(os.listdir("/proc/self/fd")) > len(before)

    columns.close()
    columns.close()

    assert os.listdir("/proc/self/fd") == before


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
        read(source, 0, ROWS, WAYS[0])


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
        read(source, 0, ROWS, how)


def test_a_footer_that_contradicts_itself_on_the_number_of_rows_is_an_input_error(tmp_path):
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"x": np.zeros(777)}), path, row_group_size=400)
    head, written, rest = path.read_bytes().rpartition(as_number(777))
    assert written
    path.write_bytes(head + as_number(778) + rest)

    with pytest.raises(InputError, match="778 rows, and of 777"):
        ParquetSource.open([str(path)])


def test_files_of_different_schemas_are_refused_by_name(path, tmp_path):
    pq.write_table(table().drop_columns(["x"]), tmp_path / "y.parquet")

    with pytest.raises(InputError, match="column 'x' is missing") as caught:
        ParquetSource.open([path, str(tmp_path / "y.parquet")])
    assert "y.parquet" in str(caught.value)


def test_a_look_at_several_files_finds_what_a_look_at_each_of_them_does(tmp_path):
    """Those of the same columns, of other columns in between, of other row groups, of no rows."""
    draw, paths = np.random.default_rng(0), []
    for number in range(12):
        data = {f"c{i}": draw.standard_normal(10 * number) for i in range(20)}
        found = pa.table(data)
        if number in (5, 6, 9):  # not null
            fields = [field.with_nullable(False) for field in found.schema]
            found = found.cast(pa.schema(fields))
        paths.append(str(tmp_path / f"{number:02}.parquet"))
        how = {"use_dictionary": number % 4 == 3, "row_group_size": 50 if number > 7 else 1000}
        pq.write_table(found, paths[-1], **how)

    source = ParquetSource.open(paths)

    alone = [ParquetSource.open([path]) for path in paths]
    assert list(source.files) == [one.files[0] for one in alone]
    assert source.schema == alone[0].schema


def test_pyarrow_is_asked_once_for_the_schema_of_files_of_the_same_columns(tmp_path, monkeypatch):
    paths = [str(tmp_path / f"{number}.parquet") for number in range(5)]
    for number, path in enumerate(paths):
        pq.write_table(pa.table({"x": np.arange(float(number + 1))}), path)
    opened = []
    original = pq.ParquetFile.__init__
    monkeypatch.setattr(
        pq.ParquetFile, "__init__", lambda *a, **k: opened.append(a) or original(*a, **k)
    )

    assert [file.rows for file in ParquetSource.open(paths).files] == [1, 2, 3, 4, 5]
    assert len(opened) == 1


def test_a_file_without_rows(tmp_path):
    pq.write_table(table(0), tmp_path / "x.parquet")
    source = ParquetSource.open([str(tmp_path / "x.parquet")])

    assert source.files[0].rows == 0
    assert read(source, 0, 0, WAYS[0]).equals(table(0))


@pytest.mark.parametrize("version", ["1.0", "2.0"])
@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 1.0])
def test_pages_tell_whether_there_are_nulls(tmp_path, share, version):
    draw = np.random.default_rng(0)
    nulls = draw.random(5000) < share
    table = pa.table({"x": pa.array(draw.standard_normal(5000), mask=nulls), "text": ["a"] * 5000})
    path = tmp_path / "x.parquet"
    pq.write_table(table, path, use_dictionary=["text"], data_page_version=version)

    assert ParquetSource.open([str(path)]).files[0].nulls == nulls.any()
