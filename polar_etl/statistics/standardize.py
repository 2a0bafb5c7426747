"""The normalization of decoded columns: (x - mean) / std in Float64, rounded once at the end."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from polar_etl.columns import Piece, array_of, fill, validity
from polar_etl.encoding.page_buffers import Filled, PagedColumns, PagedVectors
from polar_etl.scratch import TILE_VALUES, scratch_floats, tile_arithmetic
from polar_etl.vectors import (
    fixed,
    has_nulls,
    matrix_of,
    numbers_valid,
    rows_valid,
    vectors_of,
)

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
_SHORT_ROW = 1 << 9
"""Numbers below which several vectors are computed with as one: each row of a tile costs a call."""
InfPolicy = Literal["error", "ignore", "null"]


@dataclass(frozen=True, eq=False)
class Standardizer:
    """What one feature each needs to become standardized; every array has shape `(width,)`."""

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

    def select(self, index: slice | npt.NDArray[np.int64]) -> Standardizer:
        """Return what is needed for the features at `index`."""
        return Standardizer(**{item.name: getattr(self, item.name)[index] for item in fields(self)})

    def apply(self, columns: Sequence[Sequence[Piece]], rows: int) -> list[Filled]:
        """Return the standardized values of columns: those that are float32, and the others.

        They are this thread's scratch: good until the next call.

        Args:
            columns: The numeric columns, each as its pieces, `rows` values long.
            rows: How many rows all of them have.
        """
        return [
            self._filled(columns, np.flatnonzero(self.single == single), rows, np.dtype(dtype))
            for single, dtype in ((True, np.float32), (False, np.float64))
            if (self.single == single).any()
        ]

    def _filled(
        self,
        columns: Sequence[Sequence[Piece]],
        index: npt.NDArray[np.int64],
        rows: int,
        dtype: np.dtype[np.floating],
    ) -> Filled:
        """Return the standardized values of the columns `index`."""
        paged = PagedColumns(len(index), rows, dtype)
        with tile_arithmetic():
            for column, first, tile in self._tiles(columns, index, rows):
                paged.put(column, first, tile)
        found: dict[int, Bools] = {}
        to_null = self.inf_to_null[index].tolist()
        for at, column in enumerate(index.tolist()):
            valid = validity(columns[column], 0, rows)
            if to_null[at]:
                finite = [~np.isinf(page.values) for page in paged.pages(at)]
                kept = np.concatenate([np.empty(0, np.bool_), *finite])
                valid = kept if valid is None else valid & kept
            if valid is not None:
                found[at] = valid
        return Filled(index.tolist(), paged, found)

    def apply_to_values(self, column: int, values: npt.NDArray[np.generic]) -> Floats:
        """Return some values of one column, standardized and rounded as `apply` does it."""
        found = values.astype(np.float64)
        with tile_arithmetic():
            if self.constant[column] or self.exponent[column]:
                self._prepare(column, found)
            found -= self.mean[column]
            found /= self.std[column]
            return found.astype(np.float32) if self.single[column] else found

    def apply_to_vectors(self, column: pa.ChunkedArray, kind: pa.DataType) -> pa.Array:
        """Return a vector column, each dimension standardized as the feature of its place.

        Args:
            column: The column, with as many dimensions as there are features.
            kind: Type of the result: lists, fixed-size lists or tensors of floats.
        """
        width = len(self.mean)
        chunks = fixed(column, width)
        dtype = np.dtype(np.float32 if self.single.all() else np.float64)
        data = pa.allocate_buffer(len(column) * width * dtype.itemsize)
        numbers = np.frombuffer(data, dtype)
        table, first = numbers.reshape(-1, width), 0
        with tile_arithmetic():
            for chunk in chunks:
                self._put_vectors(matrix_of(chunk), table[first : first + len(chunk)])
                first += len(chunk)
        valid = numbers_valid(chunks)
        if self.inf_to_null.any():
            kept = ~(np.isinf(table) & self.inf_to_null).reshape(-1)
            valid = kept if valid is None else valid & kept
        made = array_of(numbers, valid)
        return vectors_of(kind, made, width, rows_valid(chunks))

    def paged_vectors(self, column: pa.ChunkedArray) -> PagedVectors | None:
        """Return a vector column as `apply_to_vectors` does, as pages; None if it has any nulls.

        They are this thread's scratch: good until the next call.

        Args:
            column: The column, with as many dimensions as there are features.
        """
        width = len(self.mean)
        chunks = fixed(column, width)
        if self.inf_to_null.any() or any(map(has_nulls, chunks)):
            return None
        dtype = np.dtype(np.float32 if self.single.all() else np.float64)
        paged = PagedVectors(len(column), width, dtype)
        matrices = iter([matrix_of(chunk) for chunk in chunks])
        matrix: npt.NDArray[np.generic] = np.empty((0, width))
        with tile_arithmetic():
            for table in paged.tables():
                while len(table):
                    matrix = matrix if len(matrix) else next(matrices)
                    some = min(len(table), len(matrix))
                    self._put_vectors(matrix[:some], table[:some])
                    matrix, table = matrix[some:], table[some:]
        return paged

    def _put_vectors(self, matrix: npt.NDArray[np.generic], room: npt.NDArray[np.number]) -> None:
        """Write standardized vectors to `room`, rounding them; both of shape `(rows, width)`."""
        width = matrix.shape[1]
        several = max(_SHORT_ROW // width, 1)
        mean, std = np.tile(self.mean, several), np.tile(self.std, several)
        special = np.flatnonzero(self.constant | (self.exponent != 0)).tolist()
        step = max(TILE_VALUES // (width * several), 1) * several
        for first in range(0, len(matrix), step):
            some = matrix[first : first + step]
            tile = scratch_floats("values", some.size).reshape(some.shape)
            np.copyto(tile, some, casting="unsafe")
            for place in special:
                self._prepare(place, tile[:, place])
            whole = len(some) // several * several
            for rows, times in ((tile[:whole], several), (tile[whole:], 1)):
                long = rows.reshape(-1, width * times)
                long -= mean[: width * times]
                long /= std[: width * times]
            room[first : first + step] = tile

    def _tiles(
        self, columns: Sequence[Sequence[Piece]], index: npt.NDArray[np.int64], rows: int
    ) -> Iterator[tuple[int, int, Floats]]:
        """Yield (first place in `index`, first row, values) of tiles of the columns `index`.

        Each is this thread's scratch, good until the next one is asked for.
        """
        length = max(min(rows, TILE_VALUES), 1)
        many = TILE_VALUES // length
        special = self.constant | (self.exponent != 0)
        for low in range(0, len(index), many):
            group = index[low : low + many]
            some = [columns[column] for column in group.tolist()]
            mean, std = self.mean[group, None], self.std[group, None]
            for first in range(0, rows, length):
                here = min(length, rows - first)
                tile = scratch_floats("values", len(group) * here).reshape(len(group), here)
                fill(tile, some, first)
                for place in np.flatnonzero(special[group]).tolist():
                    self._prepare(int(group[place]), tile[place])
                tile -= mean
                tile /= std
                yield low, first, tile

    def _prepare(self, column: int, values: Floats) -> None:
        """Bring the values of a special column to where `mean` and `std` are right for them."""
        if self.constant[column]:
            np.copyto(values, self.mean[column], where=np.isfinite(values))
        else:
            np.ldexp(values, -self.exponent[column], out=values)
