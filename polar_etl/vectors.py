"""Columns of vectors as matrices of their numbers, and back, without copies where possible.

A vector is a fixed-size list, a fixed-shape tensor (its elements in storage order), or a list as
long as all others of its column.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from polar_etl.columns import Array, Bitmap, Bools, Piece, array_of, bitmaps_of, is_valid, piece_of

_CHUNK_NUMBERS = 1 << 18
_TRANSPOSED, _TRANSPOSED_ROWS, _TRANSPOSED_NUMBERS = 64, 256, 1 << 21
"""Dimensions of vectors that are transposed at a time, if they have no more numbers, some rows
after the other: a third of the time that one dimension after the other takes (measured)."""


def storage_type(kind: pa.DataType) -> pa.DataType:
    """Return the type of the lists that a column of this type consists of, or the type itself."""
    return kind.storage_type if isinstance(kind, pa.FixedShapeTensorType) else kind


def fixed(column: pa.ChunkedArray, size: int) -> list[pa.FixedSizeListArray]:
    """Return the chunks of a vector column as fixed-size lists, copied only from lists with nulls.

    Args:
        column: The column; lists must be of the right length, see `of_equal_lengths`.
        size: Number of dimensions.
    """
    return [_fixed(chunk, size) for chunk in column.iterchunks() if len(chunk)]


def _fixed(chunk: pa.Array, size: int) -> pa.FixedSizeListArray:
    if isinstance(chunk, pa.ExtensionArray):
        chunk = chunk.storage
    if pa.types.is_fixed_size_list(chunk.type):
        return chunk
    dense = pa.FixedSizeListArray.from_arrays(chunk.flatten(), size)
    if chunk.null_count == 0:
        return dense
    valid = is_valid(chunk)
    return dense.take(array_of(np.cumsum(valid) - 1, valid))


def vector_pieces(chunks: list[pa.FixedSizeListArray], size: int) -> Iterator[list[list[Piece]]]:
    """Yield the values of some of `size` dimensions after the other, chunk by chunk.

    They have memory of their own, where those of a dimension are neighbours.
    """
    known = [(matrix_of(chunk), _gaps(chunk), bitmaps_of(chunk)) for chunk in chunks]
    rows = sum(map(len, chunks))
    many = max(min(_TRANSPOSED, _TRANSPOSED_NUMBERS // max(rows, 1)), 1)
    for low in range(0, size, many):
        places = range(low, min(low + many, size))
        columns: list[list[Piece]] = [[] for _ in places]
        for matrix, gaps, missing in known:
            values = _transposed(matrix[:, low : places.stop])
            for column, place, row in zip(columns, places, values, strict=True):
                inside = (Bitmap(gap.bits, gap.offset + place, size) for gap in gaps)
                column.append(Piece(row, (*missing, *inside)))
        yield columns


def _transposed(matrix: Array) -> Array:
    """Return a matrix with rows and columns exchanged, in memory of its own.

    A few rows at a time, so that what is fetched of a row is still at hand for its neighbours.
    """
    found = np.empty(matrix.shape[::-1], matrix.dtype)
    for first in range(0, len(matrix), _TRANSPOSED_ROWS):
        some = slice(first, first + _TRANSPOSED_ROWS)
        found[:, some] = matrix[some].T
    return found


def matrix_of(chunk: pa.FixedSizeListArray) -> Array:
    """Return the numbers of vectors, shape `(rows, dimensions)`; where a null is, anything."""
    return piece_of(_numbers(chunk)).values.reshape(-1, chunk.type.list_size)


def _gaps(chunk: pa.FixedSizeListArray) -> tuple[Bitmap, ...]:
    """Return which numbers are there, if there are nulls besides those of null rows."""
    return () if chunk.null_count and _is_full(chunk) else bitmaps_of(_numbers(chunk))


def _is_full(chunk: pa.FixedSizeListArray) -> bool:
    """Tell whether only null rows hold nulls, as Parquet's do: half the work then (measured)."""
    step = max(_CHUNK_NUMBERS // chunk.type.list_size, 1)
    parts = (chunk.slice(first, step) for first in range(0, len(chunk), step))
    return all(part.flatten().null_count == 0 for part in parts)


def _numbers(chunk: pa.FixedSizeListArray) -> pa.Array:
    """Return all numbers row by row, whatever stands in null rows included."""
    size = chunk.type.list_size
    return chunk.values.slice(chunk.offset * size, len(chunk) * size)


def has_nulls(chunk: pa.FixedSizeListArray) -> bool:
    """Tell whether a vector is null, or any of its numbers."""
    return bool(chunk.null_count or _numbers(chunk).null_count)


def rows_valid(chunks: list[pa.FixedSizeListArray]) -> Bools | None:
    """Return which vectors are there; None if all of them are."""
    return _valid(chunks)


def numbers_valid(chunks: list[pa.FixedSizeListArray]) -> Bools | None:
    """Return which numbers are there, row by row, null rows aside; None if all of them are."""
    return _valid([_numbers(chunk) for chunk in chunks])


def _valid(chunks: list[pa.Array]) -> Bools | None:
    if not any(chunk.null_count for chunk in chunks):
        return None
    return np.concatenate([is_valid(chunk) for chunk in chunks])


def vectors_of(kind: pa.DataType, numbers: pa.Array, size: int, valid: Bools | None) -> pa.Array:
    """Return vectors of type `kind`, a list, fixed-size list or tensor.

    Args:
        kind: The type.
        numbers: All numbers row by row, those of null rows included.
        size: Number of dimensions.
        valid: Which rows are not null; None if all of them are.
    """
    storage, rows = storage_type(kind), len(numbers) // size
    buffers = [None if valid is None else pa.py_buffer(np.packbits(valid, bitorder="little"))]
    if not pa.types.is_fixed_size_list(storage):
        offsets = np.arange(rows + 1) * size
        bits = 64 if pa.types.is_large_list(storage) else 32
        buffers.append(pa.py_buffer(offsets.astype(f"int{bits}")))
    made = pa.Array.from_buffers(storage, rows, buffers, children=[numbers])
    return made if kind is storage else pa.ExtensionArray.from_storage(kind, made)


def in_short_chunks(column: pa.Array, size: int) -> pa.ChunkedArray:
    """Return vectors cut into chunks of about a quarter million numbers.

    Levels are made for a chunk at a time when it is written: for 8 million numbers in one chunk
    they take 60 MB, and 120 MB where rows are null; in short ones 3 MB, and less time (measured).
    """
    step = max(_CHUNK_NUMBERS // size, 1)
    chunks = [column.slice(first, step) for first in range(0, len(column), step)]
    return pa.chunked_array(chunks, column.type)
