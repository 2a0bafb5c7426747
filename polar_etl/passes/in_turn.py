"""Columns of rows that several threads have by turns, not step by step."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from polar_etl.pages.ahead import NONE_AHEAD, Ahead
from polar_etl.sources.base import Columns, Window


class RowsInTurn:
    """Columns whose rows lie apart, each window of which is opened by itself.

    Args:
        opened: Returns the columns of the rows between two.
        starts: First rows of the windows that will be asked for.
    """

    def __init__(self, opened: Callable[[int, int], Columns], starts: Iterator[int]) -> None:
        self._opened, self._starts = opened, starts
        self._columns: Columns | None = None

    def next(self, rows: int, ahead: Ahead = NONE_AHEAD) -> Window:
        """Return the next of these rows; the window before is gone then."""
        if self._columns:
            self._columns.next(0)  # which finds files that have changed meanwhile
        self.close()
        first = next(self._starts)
        self._columns = self._opened(first, first + rows)
        return self._columns.next(rows, ahead)

    def close(self) -> None:
        """Let go of all files."""
        if self._columns:
            self._columns.close()
        self._columns = None
