"""Whether a column hardly ever repeats a value, as far as a sample tells.

Times, keys and names that all differ get no dictionary, and to find that out by looking all of them
up takes longer than to write them.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from polar_etl.columns import is_valid

Ints = npt.NDArray[np.int64]
Look = Callable[[Ints], list[Hashable]]
"""Returns what stands in some rows, which ascend; nulls are left out."""

_FEWEST = 1 << 14
"""Rows of a column below which looking at them takes as long as it saves."""
_RUNS, _RUN = 8, 1 << 8
"""Neighbours are looked at, as many values occur several times in a row or not at all; so many
runs of so many rows."""
_SCATTERED = 1 << 11
"""Rows that are looked at besides: any two of them may be alike."""
_FIRST = 1 << 10
"""Rows that tell of most columns that they repeat their values."""


def are_unique(column: pa.Array) -> bool:
    """Tell whether numbers, dates or times hardly repeat, as far as a sample tells.

    Only the values decide.

    Example:
        >>> are_unique(pa.array(range(20_000))), are_unique(pa.array([1, 2] * 10_000))
        (True, False)
    """
    if not pa.types.is_primitive(column.type) or column.type.bit_width not in (16, 32, 64):
        return False
    return hardly_repeat(len(column), lambda rows: _numbers_at(column, rows))


def hardly_repeat(many: int, look: Look) -> bool:
    """Tell whether values hardly repeat, as far as a sample tells.

    Values that all differ do. Those that occur twice on average, in any order, have twice as many
    pairs in the sample as are let pass.

    Args:
        many: How many rows there are, nulls included.
        look: Tells what stands in some of them.
    """
    if many < _FEWEST:
        return False
    rows = _looked_at(many)
    first = look(rows[:_FIRST])
    if _repeats(first) > len(rows) ** 2 // (4 * many):
        return False
    seen = first + look(rows[_FIRST:])
    return bool(seen) and _repeats(seen) <= len(seen) * len(rows) // (4 * many)


def _repeats(seen: Sequence[Hashable]) -> int:
    return len(seen) - len(set(seen))


@lru_cache
def _looked_at(many: int) -> Ints:
    """Return which of so many rows are looked at, in order.

    NumPy's own random numbers and sets would do, but take 20 ms to load.
    """
    looked_at = np.zeros(many, np.bool_)
    for first in np.linspace(0, many - _RUN, _RUNS, dtype=np.int64):
        looked_at[first : first + _RUN] = True
    looked_at[_scattered(_SCATTERED) % np.uint64(many)] = True
    return np.flatnonzero(looked_at)


def _scattered(many: int) -> npt.NDArray[np.uint64]:
    """Return so many numbers that look drawn at random (Steele, Lea, Flood 2014, *SplitMix64*)."""
    numbers = np.arange(1, many + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    numbers = (numbers ^ numbers >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    numbers = (numbers ^ numbers >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return numbers ^ numbers >> np.uint64(31)


def _numbers_at(column: pa.Array, rows: Ints) -> list[Hashable]:
    """Return the bits of some values."""
    size = column.type.bit_width // 8
    values = np.frombuffer(column.buffers()[1], f"i{size}", len(column), column.offset * size)
    found: list[Hashable] = values[there(column, rows)].tolist()
    return found


def there(column: pa.Array, rows: Ints) -> Ints:
    """Return those of some rows that are not null."""
    return rows[is_valid(column)[rows]] if column.null_count else rows
