"""Moments of fixed row ranges, computed tile by tile.

A block's boundaries follow from the number of normalized columns and the row index within the file
alone, and what happens inside a block from its values alone. So the bits do not depend on row
groups, batches, threads or the memory limit.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache

import numpy as np

from polar_etl.columns import Piece, fill, places, present, validities
from polar_etl.encoding.slabs import slab_rows
from polar_etl.scratch import TILE_VALUES, scratch_floats, tile_arithmetic
from polar_etl.statistics.moments import Moments
from polar_etl.statistics.sums import Sums

Columns = Sequence[Sequence[Piece]]
"""Columns of numbers, each as its pieces."""

_LONGEST_BLOCK = 1 << 14
_SHORTEST_BLOCK = 1 << 8
_BLOCK_BYTES, _LEAST_OF_WIDE = 192 << 20, 1 << 10
"""Float32 in a block, in bytes, at most, unless it has so few rows."""


@lru_cache
def block_rows(columns: int) -> int:
    """Return the rows of a block for a table with so many normalized columns.

    No more than a row group of the output has, if they are float32, as batches are as long. Each
    row of a tile costs something, however short: 10,000 columns take 0.93 of the time that they
    take with blocks of 512 rows, but no less with 8,192 (measured); of a stream whole blocks are
    held.

    Example:
        >>> block_rows(50), block_rows(10_000)
        (16384, 4096)
    """
    most = max(_BLOCK_BYTES // max(4 * columns, 1), _LEAST_OF_WIDE)
    rows = min(slab_rows(4 * columns), most)
    return 1 << (min(max(rows, _SHORTEST_BLOCK), _LONGEST_BLOCK).bit_length() - 1)


def observe(
    columns: Iterable[Columns], features: int, rows: int, first_row: int, width: int | None = None
) -> list[Moments]:
    """Return the moments of each block of a batch, in row order.

    Args:
        columns: Normalized columns, a few at a time, each as its pieces, `rows` values long.
        features: How many there are of them.
        rows: Rows of the batch.
        first_row: Index within the file of the batch's first row: a multiple of the block's rows.
        width: How many normalized columns the table has, which decides how long a block is; None
            if these are all.
    """
    length = block_rows(features if width is None else width)
    whole, tail = divmod(rows, length)
    stretches = [_Stretch(features, 0, whole, length)] if whole else []
    stretches += [_Stretch(features, whole * length, 1, tail, short=True)] if tail else []
    done = 0
    for few in columns:
        with tile_arithmetic():
            for stretch in stretches:
                stretch.reduce(done, few, first_row)
        done += len(few)
        del few  # the next ones are decoded when these are gone
    return [moments for stretch in stretches for moments in stretch.moments()]


class _Stretch:
    """Neighbouring blocks of a batch, reduced a few columns at a time.

    Args:
        features: How many columns there are.
        start: First row of the batch that belongs to them.
        blocks: How many there are of each column.
        length: Rows of each.
        short: They are the rest of a file: few values, whose roundings don't average out.
    """

    def __init__(
        self, features: int, start: int, blocks: int, length: int, *, short: bool = False
    ) -> None:
        self._start, self._blocks, self._length = start, blocks, length
        self._sums = Sums(features * blocks, length, short=short)

    def reduce(self, done: int, columns: Columns, first_row: int) -> None:
        """Reduce some columns.

        Args:
            done: How many were reduced before them.
            columns: Each as its pieces, from the batch's first row on.
            first_row: Index of that row within its file.
        """
        blocks, length, sums = self._blocks, self._length, self._sums
        tiles = scratch_floats("moments", 2 * TILE_VALUES).reshape(2, -1)
        at = slice(done * blocks, (done + len(columns)) * blocks)
        squares = sums.squares(at)
        for low, high, those in _tiles(len(columns), blocks, length):
            some, first = columns[low:high], self._start + those.start * length
            rows = (those.stop - those.start) * length
            tile, rest = tiles[:, : len(some) * rows].reshape(2, -1, length)
            fill(tile.reshape(-1, rows), some, first)
            there = validities(some, first, rows)
            if there is not None:
                there = there.reshape(tile.shape)
            place = low * blocks + those.start
            sums.reduce(at.start + place, tile, rest, squares[place : place + len(tile)], there)
        for place in np.flatnonzero(sums.irregular(at)).tolist():
            column, block = divmod(place, blocks)
            begin, index = self._start + block * length, at.start + place
            values = present(columns[column], begin, length)
            infinite = sums.reduce_any(index, values, tiles[1, : len(values)], squares[place])
            if infinite is not None:
                row = places(columns[column], begin, length)[infinite]
                sums.infinite(index, first_row + begin + int(row))
        sums.add_squares(at, squares)

    def moments(self) -> Iterator[Moments]:
        """Yield the moments of each block, once all columns are reduced."""
        with tile_arithmetic():
            table = self._sums.table()
        by_block = {
            name: np.ascontiguousarray(array.reshape(-1, self._blocks).T)
            for name, array in table.items()
        }
        for block in range(self._blocks):
            yield Moments(**{name: array[block] for name, array in by_block.items()})


def _tiles(columns: int, blocks: int, length: int) -> Iterator[tuple[int, int, slice]]:
    """Yield (first column, last column, blocks): one column at a time, or all blocks at a time."""
    room = TILE_VALUES // length
    if room >= blocks:
        for low in range(0, columns, room // blocks):
            yield low, min(low + room // blocks, columns), slice(0, blocks)
        return
    for column in range(columns):
        for first in range(0, blocks, room):
            yield column, column + 1, slice(first, min(first + room, blocks))
