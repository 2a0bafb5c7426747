"""Rows that threads have by turns: each window is opened by itself, and closed before the next."""

import pyarrow as pa

from polar_etl.passes.in_turn import RowsInTurn
from tests.unit.arrays import TableColumns

TABLE = pa.table({"x": list(range(10))})


def test_windows_are_opened_one_by_one_and_closed():
    opened: list[TableColumns] = []

    def columns(first: int, stop: int) -> TableColumns:
        assert all(some.closed for some in opened)
        opened.append(TableColumns(TABLE.slice(first, stop - first)))
        return opened[-1]

    turn = RowsInTurn(columns, iter([2, 7]))
    assert not opened
    assert turn.next(3).column("x").to_pylist() == [2, 3, 4]
    assert turn.next(2).column("x").to_pylist() == [7, 8]
    turn.close()
    turn.close()

    assert [some.closed for some in opened] == [True, True]


def test_a_window_that_is_gone_is_told_so_before_it_is_closed():
    """Files that have changed while they were read are found then."""
    asked: list[int] = []

    class Columns(TableColumns):
        def next(self, rows: int, more: object = None):
            asked.append(rows)
            return super().next(rows)

    turn = RowsInTurn(lambda first, stop: Columns(TABLE.slice(first, stop - first)), iter([0, 4]))
    turn.next(4)
    turn.next(3)

    assert asked == [4, 0, 3]
