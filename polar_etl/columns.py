"""Arrow columns as NumPy arrays, without copying where that is possible."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


def is_numeric(kind: pa.DataType) -> bool:
    """Tell whether columns of Arrow type `kind` are normalized: integers, floats and decimals."""
    return bool(
        pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)
    )


@dataclass(frozen=True, slots=True)
class Piece:
    """A contiguous run of one column's values."""

    values: npt.NDArray[np.generic]
    """The values in their own dtype, shape `(rows,)`; what stands where a null is, is undefined."""
    valid: Bools | None
    """True where there is a value, shape `(rows,)`; None where there are no nulls."""


def pieces_of(column: pa.ChunkedArray) -> list[Piece]:
    """Return the chunks of a numeric column, in row order, as NumPy arrays."""
    return [_piece(chunk) for chunk in column.iterchunks() if len(chunk)]


def _piece(chunk: pa.Array) -> Piece:
    if pa.types.is_decimal(chunk.type):
        chunk = pc.cast(chunk, pa.float64(), safe=False)
    if chunk.null_count == 0:
        return Piece(_values(chunk), None)
    return Piece(_values(chunk), _unpack(chunk.buffers()[0], chunk.offset, len(chunk)))


def _values(chunk: pa.Array) -> npt.NDArray[np.generic]:
    dtype = chunk.type.to_pandas_dtype()
    size = np.dtype(dtype).itemsize
    return np.frombuffer(chunk.buffers()[1], dtype, len(chunk), chunk.offset * size)


def _unpack(bitmap: pa.Buffer, offset: int, rows: int) -> Bools:
    first, last = offset // 8, (offset + rows + 7) // 8
    bits = np.unpackbits(
        np.frombuffer(bitmap, np.uint8, last - first, first),
        bitorder="little",
        count=offset % 8 + rows,
    )
    return bits[offset % 8 :].view(np.bool_)


def fill(target: Floats, pieces: Iterable[Piece], first: int) -> None:
    """Write rows `first` … of a column into `target` as Float64, NaN where a null is.

    Args:
        target: Contiguous, shape `(rows,)`; says how many rows are written.
        pieces: The column, which reaches at least to row `first + len(target)`.
        first: Row of the column that becomes `target[0]`.
    """
    done, start = 0, 0
    for piece in pieces:
        stop = start + len(piece.values)
        low, high = max(first, start), min(first + len(target), stop)
        if low < high:
            into = target[low - first : high - first]
            np.copyto(into, piece.values[low - start : high - start], casting="unsafe")
            if piece.valid is not None:
                np.copyto(into, np.nan, where=~piece.valid[low - start : high - start])
            done += high - low
        start = stop
        if done == len(target):
            return


def count_nulls(pieces: Iterable[Piece], first: int, rows: int) -> int:
    """Return how many of the rows `first` … `first + rows` of a column are null."""
    nulls, start = 0, 0
    for piece in pieces:
        if piece.valid is not None:
            window = piece.valid[max(first - start, 0) : max(first + rows - start, 0)]
            nulls += len(window) - int(np.count_nonzero(window))
        start += len(piece.values)
    return nulls
