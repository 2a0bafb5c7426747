"""A window that decodes more columns at a time than it is asked for.

Rows that stand in many short files, or row groups, take calls for each of these, however few the
columns are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice

import pyarrow as pa

from polar_etl.columns import Piece
from polar_etl.sources.base import Window


class GatheredWindow:
    """A window whose columns of numbers are decoded so many at a time, or more.

    Args:
        window: The window.
        names: Columns of numbers, in the order in which they will be asked for.
        many: How many are decoded at a time.
    """

    def __init__(self, window: Window, names: Sequence[str], many: int) -> None:
        self._window, self._many = window, many
        self._later: Iterator[str] = iter(names)
        self._ready: dict[str, list[Piece]] = {}

    @property
    def rows(self) -> int:
        """How many there are."""
        return self._window.rows

    def pieces(self, names: Sequence[str]) -> list[list[Piece]]:
        """Return columns of numbers, the next ones in order."""
        lacking = len(names) - len(self._ready)
        if lacking > 0:
            few = list(islice(self._later, max(lacking, self._many)))
            self._ready |= zip(few, self._window.pieces(few), strict=True)
        return [self._ready.pop(name) for name in names]

    def column(self, name: str) -> pa.ChunkedArray:
        """Return a column of any other type."""
        return self._window.column(name)

    def text(self, name: str) -> pa.ChunkedArray:
        """Return a column; one of text perhaps as words and their places."""
        return self._window.text(name)


def gathered(window: Window, names: Sequence[str], many: int) -> Window:
    """Return a window that decodes so many of some columns at a time, see `GatheredWindow`.

    Example:
        >>> import pyarrow as pa
        >>> from polar_etl.sources.base import TableWindow
        >>> window = gathered(TableWindow(pa.table({"a": [1.0], "b": [2.0]})), ["a", "b"], 2)
        >>> [len(pieces) for pieces in window.pieces(["a"])]
        [1]
    """
    return window if many <= 1 else GatheredWindow(window, names, many)
