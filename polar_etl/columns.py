"""Arrow columns as NumPy arrays, without copying where that is possible."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

Floats = npt.NDArray[np.float64]
Array = npt.NDArray[np.generic]
Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]
Answer = TypeVar("Answer")


_PLAIN_WIDTHS = {
    kind.id: kind.bit_width // 8
    for kind in (
        *(pa.int8(), pa.int16(), pa.int32(), pa.int64()),
        *(pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64()),
        *(pa.float16(), pa.float32(), pa.float64()),
    )
}


def plain_width(kind: pa.DataType) -> int | None:
    """Return the bytes of an integer or float, None for other types."""
    return _PLAIN_WIDTHS.get(kind.id)


_recent: list[tuple[pa.Schema, list[str], list[pa.DataType]]] = []


def listed(schema: pa.Schema) -> tuple[list[str], list[pa.DataType]]:
    """Return the names and the types of a schema's columns, which are not to be changed.

    PyArrow makes them anew each time it is asked, 7 ms for 10,000 columns; those of the last two
    schemas are kept.
    """
    for known, names, kinds in _recent:
        if known is schema:
            return names, kinds
    names, kinds = schema.names, schema.types
    _recent[:] = [(schema, names, kinds), *_recent[:1]]
    return names, kinds


def asked_once(ask: Callable[[pa.DataType], Answer], kinds: Iterable[pa.DataType]) -> list[Answer]:
    """Return what `ask` says of each type: of all columns of one type of plain numbers, once.

    Example:
        >>> asked_once(str, [pa.int8(), pa.string(), pa.int8()])
        ['int8', 'string', 'int8']
    """
    known: dict[int, Answer] = {}
    answers = []
    for kind in kinds:
        if kind.id in known:
            answers.append(known[kind.id])
            continue
        answers.append(ask(kind))
        if plain_width(kind):
            known[kind.id] = answers[-1]
    return answers


def by_column(ask: Callable[[pa.DataType], Answer], schema: pa.Schema) -> dict[str, Answer]:
    """Return what `ask` says of the type of each column, see `asked_once`."""
    names, kinds = listed(schema)
    return dict(zip(names, asked_once(ask, kinds), strict=True))


def is_numeric(kind: pa.DataType) -> bool:
    """Tell whether columns of Arrow type `kind` are normalized: integers, floats and decimals."""
    return kind.id in _PLAIN_WIDTHS or bool(pa.types.is_decimal(kind))


def word_type(kind: pa.DataType) -> pa.DataType | None:
    """Return the type of the words that a column of text or bytes consists of; None for others.

    Ordered dictionaries are others: their order is more than their words.

    Example:
        >>> word_type(pa.large_string()), word_type(pa.int8())
        (DataType(string), None)
    """
    if plain_width(kind):
        return None
    if pa.types.is_dictionary(kind):
        return None if kind.ordered else word_type(kind.value_type)
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return pa.string()
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind):
        return pa.binary()
    return None


class Bitmap(NamedTuple):
    """Tells of a run of values which are there, as Arrow does."""

    bits: npt.NDArray[np.uint8]
    """Arrow's validity bitmap, least significant bit first."""
    offset: int = 0
    """Bit that belongs to the first value."""
    step: int = 1
    """Bits from one value to the next."""

    def valid(self, low: int, high: int) -> Bools:
        """Return for the values `low` … `high` whether they are there, shape `(high - low,)`."""
        if self.step > 1:
            places = self.offset + np.arange(low, high) * self.step
            return np.asarray((self.bits[places >> 3] >> (places & 7).astype(np.uint8)) & 1 != 0)
        first = self.offset + low
        bits = np.unpackbits(
            self.bits[first // 8 : (self.offset + high + 7) // 8],
            bitorder="little",
            count=first % 8 + high - low,
        )
        return np.asarray(bits[first % 8 :].view(np.bool_))

    def behind(self, rows: int) -> Bitmap:
        """Return what it tells of the values behind the first `rows`."""
        return self._replace(offset=self.offset + rows * self.step)


class Piece(NamedTuple):
    """A run of one column's values."""

    values: npt.NDArray[np.generic]
    """The values in their own dtype, shape `(rows,)`; what stands where a null is, is undefined."""
    bitmaps: tuple[Bitmap, ...] = ()
    """A value is there if all of these say so."""

    def valid(self, low: int, high: int) -> Bools:
        """Return for the values `low` … `high` whether they are there, shape `(high - low,)`."""
        found = [bitmap.valid(low, high) for bitmap in self.bitmaps]
        if len(found) == 1:
            return found[0]
        return np.logical_and.reduce(found) if found else np.ones(high - low, np.bool_)

    def between(self, low: int, high: int) -> Piece:
        """Return the values `low` … `high`."""
        return Piece(self.values[low:high], tuple(bitmap.behind(low) for bitmap in self.bitmaps))

    def alone(self) -> Piece:
        """Return the same in memory of its own."""
        if not self.bitmaps:
            return Piece(self.values.copy())
        bits = np.packbits(self.valid(0, len(self.values)), bitorder="little")
        return Piece(self.values.copy(), (Bitmap(bits),))


_MANY_CHUNKS = 3
"""So many cost more one by one than joining them does (measured)."""


def pieces_of(column: pa.ChunkedArray) -> list[Piece]:
    """Return the chunks of a numeric column, in row order, as NumPy arrays; many as one."""
    chunks = [chunk for chunk in column.iterchunks() if len(chunk)]
    if len(chunks) >= _MANY_CHUNKS:
        chunks = [pa.concat_arrays(chunks)]
    return [piece_of(chunk) for chunk in chunks]


def piece_of(chunk: pa.Array) -> Piece:
    """Return a numeric array as a NumPy array with its bitmap."""
    if pa.types.is_decimal(chunk.type):
        chunk = _nearest_floats(chunk)
    dtype = np.dtype(chunk.type.to_pandas_dtype())
    data = chunk.buffers()[1]
    values = np.frombuffer(data, dtype, len(chunk), chunk.offset * dtype.itemsize)
    return Piece(values, bitmaps_of(chunk))


def bitmaps_of(chunk: pa.Array) -> tuple[Bitmap, ...]:
    """Return the bitmap of an array of any type, none where there are no nulls."""
    if chunk.null_count == 0:
        return ()
    return (Bitmap(np.frombuffer(chunk.buffers()[0], np.uint8), chunk.offset),)


def is_valid(array: pa.Array) -> Bools:
    """Return which values of an array are there."""
    found = bitmaps_of(array)
    return found[0].valid(0, len(array)) if found else np.ones(len(array), np.bool_)


def array_of(values: npt.NDArray[np.generic], valid: Bools | None) -> pa.Array:
    """Return contiguous numbers as an Arrow array, without copying.

    `pa.array` and `to_numpy` would do, but import pandas where it is installed: half a second and
    60 MB (measured).
    """
    bitmap = None if valid is None else pa.py_buffer(np.packbits(valid, bitorder="little"))
    kind = pa.from_numpy_dtype(values.dtype)
    return pa.Array.from_buffers(kind, len(values), [bitmap, pa.py_buffer(values)])


def _nearest_floats(chunk: pa.Array) -> pa.Array:
    """Return the Float64 nearest to each decimal; Arrow's own cast may be one off.

    Up to 15 digits the unscaled integer and the power of ten are doubles, so one division rounds
    once. More digits go through text, whose parser rounds correctly.
    """
    kind = chunk.type
    if kind.precision > 15 or not 0 <= kind.scale <= 22:
        return chunk.cast(pa.string()).cast(pa.float64())
    words = kind.bit_width // 64
    integers = np.dtype(np.int64 if words else np.int32)
    step = max(words, 1)
    raw = np.frombuffer(chunk.buffers()[1], integers)[chunk.offset * step :: step]
    values = raw[: len(chunk)] / 10.0**kind.scale
    return array_of(values, is_valid(chunk) if chunk.null_count else None)


def _windows(
    pieces: Iterable[Piece], first: int, rows: int
) -> Iterator[tuple[Piece, int, int, int]]:
    """Yield (piece, low, high, place) for the rows `first` … `first + rows` of a column.

    `low` and `high` count from the piece's start, `place` from row `first`.
    """
    start = 0
    for piece in pieces:
        stop = start + len(piece.values)
        low, high = max(first, start), min(first + rows, stop)
        if low < high:
            yield piece, low - start, high - start, low - first
        start = stop
        if start >= first + rows:
            return


def fill(tile: Floats, columns: Sequence[Sequence[Piece]], first: int) -> None:
    """Write rows `first` … of some columns into `tile` as Float64; where a null is, anything.

    Args:
        tile: Contiguous, shape `(columns, rows)`; says how many rows are written.
        columns: They reach at least to row `first + rows`.
        first: Row of the columns that comes first.
    """
    rows = tile.shape[1]
    if first == 0 and all(len(some) == 1 and len(some[0].values) == rows for some in columns):
        values = [some[0].values for some in columns]  # as a rule, in wide tables
    else:
        values = [
            piece.values[low:high]
            for pieces in columns
            for piece, low, high, _ in _windows(pieces, first, rows)
        ]
    flat = tile.reshape(-1)
    if len({some.dtype for some in values}) == 1:
        np.concatenate(values, out=flat, casting="unsafe")
    else:
        place = 0
        for some in values:
            np.copyto(flat[place : place + len(some)], some, casting="unsafe")
            place += len(some)


_HOLED = 1 / 10
"""Share of nulls from which on it takes less time to look for the values first, which is the same
for any of them, than to go by a mask, which stops at each null (measured)."""


def put_where(room: Array, there: Bools, values: Array) -> None:
    """Write values to where they are there.

    Args:
        room: Any shape, contiguous.
        there: In the same shape, contiguous: where a value belongs.
        values: As many as are there.

    Raises:
        ValueError: There is another number of values.
    """
    many_nulls = there.size - len(values) > _HOLED * there.size
    which = there.reshape(-1)
    room.reshape(-1)[np.flatnonzero(which) if many_nulls else which] = values


def validities(columns: Sequence[Sequence[Piece]], first: int, rows: int) -> Bools | None:
    """Return which of the rows `first` … `first + rows` hold a value, shape `(columns, rows)`.

    None if all of them do.
    """
    found = [validity(pieces, first, rows) for pieces in columns]
    if all(valid is None for valid in found):
        return None
    there = np.ones((len(columns), rows), np.bool_)
    for row, valid in zip(there, found, strict=True):
        if valid is not None:
            row[:] = valid
    return there


def validity(pieces: Sequence[Piece], first: int, rows: int) -> Bools | None:
    """Return which of the rows `first` … `first + rows` hold a value; None if all of them do."""
    for piece in pieces:
        if piece.bitmaps:
            break
    else:  # as a rule, and faster so than by `any`
        return None
    windows = list(_windows(pieces, first, rows))
    if not any(piece.bitmaps for piece, _, _, _ in windows):
        return None
    found = [piece.valid(low, high) for piece, low, high, _ in windows]
    return found[0] if len(found) == 1 else np.concatenate(found)


def present(pieces: Iterable[Piece], first: int, rows: int) -> Floats:
    """Return what is not null among the rows `first` … `first + rows` of a column, as Float64."""
    values = [np.empty(0)]
    for piece, low, high, _ in _windows(pieces, first, rows):
        found = piece.values[low:high]
        if piece.bitmaps:
            found = found[piece.valid(low, high)]
        values.append(found.astype(np.float64))
    return values[1] if len(values) == 2 else np.concatenate(values)


def places(pieces: Sequence[Piece], first: int, rows: int) -> Ints:
    """Return the places of what `present` returns, counted from row `first`."""
    found = validity(pieces, first, rows)
    return np.arange(rows) if found is None else np.flatnonzero(found)
