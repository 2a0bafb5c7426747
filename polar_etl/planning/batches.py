"""Where batches of the first pass, and slabs abreast, end: with row groups wherever they can."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import NamedTuple

from polar_etl.planning.plan import Plan
from polar_etl.statistics.blocks import block_rows


class Extent(NamedTuple):
    """The rows of a batch, within its file."""

    first: int
    rows: int
    rest: int
    """Rows of a row group behind them that are decoded with them, and held for the next batch."""


def extents(
    group_rows: Sequence[int], covered: int, plan: Plan, normalized: int
) -> Iterator[Extent]:
    """Yield the batches of a file: whole blocks, up to its end.

    Args:
        group_rows: Rows of each row group of the file.
        covered: Rows that earlier batches had.
        plan: How long they may be, and what may be held behind them.
        normalized: How many features are normalized, which decides how long a block is.
    """
    ends = list(accumulate(group_rows))
    rows, block = sum(group_rows), block_rows(normalized)
    while covered < rows:
        longest = covered + plan.batch_rows
        stops = range(covered + block, longest + 1, block) if longest < rows else [rows]
        stop, rest = last_end(stops, ends, plan.batch_rest)
        yield Extent(covered, stop - covered, rest)
        covered = stop


def last_end(stops: Sequence[int], ends: Sequence[int], held: int) -> tuple[int, int]:
    """Return the best of some rows to stop at, and how many rows behind it are to be held.

    A page or a dictionary on both sides is decoded twice, unless what is left of it is held. So
    that is the last stop behind which so little is left; if there is none, the last one.

    Args:
        stops: Where one may stop, one at least; none is behind the last row.
        ends: Where row groups end; the last one not before any of `stops`.
        held: Rows of a row group that may be held.

    Example:
        >>> last_end([256, 512, 768, 1024], ends=[600, 1200, 1800], held=100)
        (512, 88)
        >>> last_end([256, 512, 768, 1024], ends=[600, 1200, 1800], held=0)
        (1024, 0)
    """
    for stop in reversed(stops):
        left = ends[bisect_left(ends, stop)] - stop
        if left <= held:
            return stop, left
    return stops[-1], 0
