"""The normalization of decoded columns: (x - mean) / std in Float64, rounded once at the end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from polar_etl.columns import Piece, fill, validity

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
InfPolicy = Literal["error", "ignore", "null"]

_TILE_VALUES = 1 << 18


@dataclass(frozen=True, eq=False)
class Standardizer:
    """What one column each needs to become standardized; every array has shape `(width,)`."""

    mean: Floats
    """Subtracted; 0 where a column holds no values."""
    std: Floats
    """Divided by; 1 where a column holds no values or is constant."""
    constant: Bools
    """Columns whose finite values become 0."""
    exponent: npt.NDArray[np.int64]
    """Values, `mean` and `std` are taken times 2^-exponent, so that no step overflows; mostly 0."""
    single: Bools
    """Columns whose output is float32; the others are float64."""
    inf_to_null: Bools
    """Columns whose infinities become nulls; in the others they stay."""

    def apply(self, columns: Sequence[Sequence[Piece]], rows: int) -> list[pa.Array]:
        """Return the standardized columns as Arrow arrays of `rows` values, nulls where they were.

        Args:
            columns: The numeric columns, each as its pieces, `rows` values long.
            rows: How many rows all of them have.
        """
        outputs: list[pa.Array] = [None] * len(columns)
        with np.errstate(all="ignore"):
            for single in (True, False):
                index = np.flatnonzero(self.single == single)
                dtype = np.dtype(np.float32 if single else np.float64)
                buffer = pa.allocate_buffer(len(index) * rows * dtype.itemsize)
                table = np.frombuffer(buffer, dtype).reshape(len(index), rows)
                self._compute(columns, index, table)
                for place, column in enumerate(index.tolist()):
                    data = buffer.slice(place * rows * dtype.itemsize, rows * dtype.itemsize)
                    outputs[column] = _array(
                        columns[column], table[place], data, bool(self.inf_to_null[column])
                    )
        return outputs

    def _compute(
        self,
        columns: Sequence[Sequence[Piece]],
        index: npt.NDArray[np.int64],
        table: npt.NDArray[np.floating],
    ) -> None:
        """Write the standardized columns `index` into the rows of `table`, tile by tile."""
        rows = table.shape[1]
        length = min(rows, _TILE_VALUES)
        many = max(_TILE_VALUES // max(length, 1), 1)
        tiles = np.empty((many, length))
        special = self.constant | (self.exponent != 0)
        for low in range(0, len(index), many):
            group = index[low : low + many]
            mean, std = self.mean[group, None], self.std[group, None]
            for first in range(0, rows, max(length, 1)):
                tile = tiles[: len(group), : min(length, rows - first)]
                for row, column in zip(tile, group.tolist(), strict=True):
                    fill(row, columns[column], first)
                    if special[column]:
                        self._prepare(column, row)
                tile -= mean
                tile /= std
                table[low : low + len(group), first : first + tile.shape[1]] = tile

    def _prepare(self, column: int, values: Floats) -> None:
        """Bring the values of a special column to where `mean` and `std` are right for them."""
        if self.constant[column]:
            np.copyto(values, self.mean[column], where=np.isfinite(values))
        else:
            np.ldexp(values, -self.exponent[column], out=values)


def _array(
    pieces: Sequence[Piece],
    values: npt.NDArray[np.floating],
    data: pa.Buffer,
    inf_to_null: bool,
) -> pa.Array:
    valid = validity(pieces, 0, len(values))
    if inf_to_null:
        finite = ~np.isinf(values)
        valid = finite if valid is None else valid & finite
    kind = pa.float32() if values.dtype == np.float32 else pa.float64()
    bitmap = None if valid is None else pa.py_buffer(np.packbits(valid, bitorder="little"))
    return pa.Array.from_buffers(kind, len(values), [bitmap, data])
