"""Columns in many short pieces, put together: each piece costs the same, however short it is."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from polar_etl.columns import Bitmap, Piece

SHORT = 1 << 13
"""Rows of a piece from which on what is done for each piece of a column no longer matters."""


def put_together(windows: Iterable[Sequence[Sequence[Piece]]], rows: int) -> list[list[Piece]]:
    """Return columns as one piece each, or as several where their dtype changes on the way.

    Args:
        windows: Neighbouring rows of the same columns, each as its pieces.
        rows: In all of them.

    Example:
        >>> import numpy as np
        >>> windows = [[[Piece(np.zeros(2))]], [[Piece(np.ones(1))]]]
        >>> put_together(windows, 3)
        [[Piece(values=array([0., 0., 1.]), bitmaps=())]]
    """
    columns: list[list[_Run]] = []
    for window in windows:
        columns = columns or [[] for _ in window]
        for runs, pieces in zip(columns, window, strict=True):
            for piece in pieces:
                if not runs or runs[-1].dtype != piece.values.dtype:
                    left = rows - sum(run.rows for run in runs)
                    runs.append(_Run(piece.values.dtype, left))
                runs[-1].put(piece)
    return [[run.piece() for run in runs] for runs in columns]


class _Run:
    """Values of one dtype.

    Args:
        dtype: The dtype.
        most: How many there may be.
    """

    def __init__(self, dtype: np.dtype[np.generic], most: int) -> None:
        self.dtype, self.rows = dtype, 0
        self._values = np.empty(most, dtype)
        self._valid: npt.NDArray[np.bool_] | None = None
        """None as long as all are there."""

    def put(self, piece: Piece) -> None:
        """Put values behind those that are there."""
        first, self.rows = self.rows, self.rows + len(piece.values)
        self._values[first : self.rows] = piece.values
        if piece.bitmaps:
            if self._valid is None:
                self._valid = np.ones(len(self._values), np.bool_)
            self._valid[first : self.rows] = piece.valid(0, len(piece.values))

    def piece(self) -> Piece:
        """Return what was put here."""
        values = self._values[: self.rows]
        if self._valid is None:
            return Piece(values)
        bits = np.packbits(self._valid[: self.rows], bitorder="little")
        return Piece(values, (Bitmap(bits),))
