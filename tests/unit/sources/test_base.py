"""Cutting tables to length."""

from itertools import repeat

import pyarrow as pa
import pytest

from polar_etl.sources.base import SourceFile, TableWindow, cut


def tables(*lengths: int) -> list[pa.Table]:
    starts = [sum(lengths[:i]) for i in range(len(lengths))]
    return [
        pa.table({"x": pa.array(range(start, start + length), pa.int64())})
        for start, length in zip(starts, lengths, strict=True)
    ]


@pytest.mark.parametrize(
    ("given", "lengths", "expected"),
    [
        ([5], [2, 2, 2], [2, 2, 1]),
        ([5], [5], [5]),
        ([5], [9], [5]),
        ([1, 1, 1, 1], [3, 1], [3, 1]),
        ([0, 3, 0, 0, 2, 0], [4, 4], [4, 1]),
        ([], [3], []),
        ([0, 0], [3], []),
        ([5], [], []),
        ([7, 1], [1] * 8, [1] * 8),
        ([2, 2], [1, 2], [1, 2]),
    ],
)
def test_lengths(given, lengths, expected):
    found = list(cut(tables(*given), lengths))

    assert [len(table) for table in found] == expected
    rows = [x for table in found for x in table["x"].to_pylist()]
    assert rows == list(range(sum(expected)))


def test_lengths_may_be_without_end():
    assert [len(table) for table in cut(tables(3, 4), repeat(2))] == [2, 2, 2, 1]


def test_nothing_is_copied():
    table = pa.table({"x": pa.array(range(10), pa.int64())})

    first, second = cut([table], [4, 6])

    address = table["x"].chunk(0).buffers()[1].address
    assert first["x"].chunk(0).buffers()[1].address == address
    assert second["x"].chunk(0).buffers()[1].address == address


def test_no_more_tables_are_drawn_than_needed():
    drawn = []

    def source():
        for table in tables(5, 5, 5):
            drawn.append(len(table))
            yield table

    pieces = cut(source(), [3, 3, 3])
    next(pieces)
    assert drawn == [5]
    next(pieces)
    assert drawn == [5, 5]


def test_rows_of_a_file_are_those_of_its_row_groups():
    file = SourceFile("/x", 1, 2, "", (3, 0, 4), 3, 0, 0)

    assert file.rows == 7


def test_a_table_is_a_window():
    table = pa.table({"x": [1.0, None], "t": ["a", "b"], "y": [1, 2]})
    window = TableWindow(table)

    y, x = window.pieces(["y", "x"])

    assert window.rows == 2
    assert [piece.values.tolist() for piece in y] == [[1, 2]]
    assert [piece.valid(0, 2).tolist() for piece in x] == [[True, False]]
    assert window.column("t").equals(table["t"])
