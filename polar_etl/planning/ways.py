"""The ways to go: how many work, what is read, kept and done together, and the time that takes."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from math import ceil, sqrt
from operator import itemgetter
from typing import NamedTuple

from polar_etl.encoding.words import LETTERS
from polar_etl.planning.plan import MANY_VALUES, MIB, Together
from polar_etl.planning.shapes import Shape
from polar_etl.sources.base import Reading

SHARE_BYTES = 16 * MIB
"""Bytes of a slab's share, at most: as much waits to be written for each task in flight."""
AT_STAKE = 1 << 30
"""Bytes of a batch, or of slabs abreast, at most: so much work is lost when a run is killed."""
_STREAMED = 1 << 21
"""Bytes of words decoded at a time, at least, however scarce memory is."""
_TOGETHER = ((1.0, MANY_VALUES), (1.08, 1 << 18))
"""Time taken, and values worked on at a time, from bytes to bytes: each call into another language
waits for the interpreter, and the processor's caches are only so large (measured: 2^17 and 2^22 are
slower)."""
_PAGE_BYTES_TOGETHER = 8
"""Bytes for each of these values of pages, or dictionaries, that are decompressed at one go."""
_MOST_ABREAST = 32
"""Largest `Plan.abreast`."""
_FINER = ((1, 1.0), (2, 1.03), (4, 1.1))
"""How many times more shares there are than are needed, and the time that takes (measured)."""
_CALL = 10_000
"""Values that are worked on in the time that the calls for a few columns take (measured)."""
_PAGE_FILE_CALL = 3
"""How much longer it takes to hand columns with dictionaries to PyArrow (measured: 2 to 4)."""
_CONTENDED = 3
"""How much longer a call takes where threads share an interpreter: two of them take as long as one
if it is for 50,000 values (measured)."""
_WORTH_A_CALL = 1 << 18
"""Values of a run of rows that are decoded by one call, at least, where memory is not scarce: a
call takes as long as decoding some ten thousand (measured)."""
_LONG_RUN = 1 << 16
"""Rows of a run from which on it no longer matters how many columns of it a call decodes."""
_LEAST_WIDTH = 4
"""Bytes of a number in Parquet, at least."""


class Way(NamedTuple):
    """One way to go, which takes more or less time and memory."""

    threads: int
    processes: int
    in_flight: int
    reading: Reading
    abreast: int
    holds_rest: bool
    """Whether what is left of a row group behind slabs abreast is held."""
    finer: int
    """How many times more shares there are than are needed."""
    values: int
    """See `Together`."""
    gathers: bool
    """Whether more columns are decoded at a time than are worked on, where rows are in short
    pieces."""

    def for_one_thread(self) -> Way:
        """Return what takes least memory of all that is done like this."""
        return self._replace(threads=1, processes=1, in_flight=1)


def ways(shape: Shape, slab: int, threads: int, *, forks: bool) -> list[tuple[float, Way]]:
    """Return all ways to go, and the time they take (measured on 2 cores), from fast to small."""
    choices = product(
        _shares_of_work(threads, forks=forks),
        _readings(shape, slab),
        _keeping(shape, slab),
        _together(shape, slab),
    )
    found = [
        (work * read * again * apart, Way(*how, Reading(*whole, kept), *abreast, *values))
        for (work, how), (read, whole), (again, kept, abreast), (apart, values) in choices
    ]
    timed = ((time * _calls(shape, slab, way), way) for time, way in found)
    return sorted(timed, key=itemgetter(0))


def _shares_of_work(threads: int, *, forks: bool) -> Iterator[tuple[float, tuple[int, int, int]]]:
    """Yield the time taken, and (threads, processes, shares of slabs in flight)."""
    workers = threads
    while workers:
        fewer = sqrt(threads / workers)
        for ahead, waiting in ((4, 1.0), (2, 1.02), (1, 1.04), (0, 1.06)):
            yield fewer * waiting, (workers, 1, workers + ahead)
        if forks and workers > 1:
            for many, waiting in ((3, 0.8), (2, 0.81)):  # with one, each waits for the other
                yield waiting * fewer, (workers, workers, many * workers)
        workers //= 2


def _keeping(shape: Shape, slab: int) -> Iterator[tuple[float, bool, tuple[int, bool, int]]]:
    """Yield (time taken, whether pages are kept, how slabs go abreast), see `Way`.

    Times are those that were measured with pages that are 0.8 to 9 slabs long, and dictionaries as
    large as 2 to 15 slabs.
    """
    if not shape.number_dictionaries:
        yield 1.0, True, (1, False, 1)
    width = max(shape.row_bytes // max(shape.columns, 1), 1)
    page = shape.page_bytes / (slab * width)
    slabs = ceil(shape.rows / slab)
    dictionary = shape.number_dictionaries / (slab * max(shape.row_bytes, 1))
    for pages in (True, False) if shape.number_dictionaries else (False,):
        for (abreast, holds), (finer, time) in product(_slabs_abreast(shape, slab), _FINER):
            turns = 0 if holds or abreast == slabs else 1 / abreast
            if not pages:
                values = _columns_together(shape, MANY_VALUES, abreast * slab) * slab
                keeping_takes = 0.28 * min(max(page - 1, 0) / 5, 1)
                time *= (1 - keeping_takes + 0.11 * page * turns) * (1 + _CALL / values)
            yield time * (1 + 0.02 * dictionary * turns), pages, (abreast, holds, finer)


def _slabs_abreast(shape: Shape, slab: int) -> list[tuple[int, bool]]:
    """Return how many slabs may go abreast, and whether what is left behind them is held.

    It is little only where they may be as long as a row group.
    """
    slabs = max(ceil(shape.rows / slab), 1)
    most = AT_STAKE // (slab * max(shape.output_bytes, shape.row_bytes, 1))
    most = max(min(most, slabs, _MOST_ABREAST), 1)
    limits = [1 << by for by in range(most.bit_length())]
    several = {_evenly(slabs, limit) for limit in [*limits, most]}
    enough = ceil(shape.largest_group / slab)
    holding = {max(many, enough) for many in several if enough <= most} - {slabs}
    return [*product(sorted(several), [False]), *product(sorted(holding), [True])]


def _evenly(many: int, most: int) -> int:
    """Return how many of so many things go together at most, if turns are as even as they can be.

    Example:
        >>> [_evenly(5, most) for most in (1, 2, 4, 5)]
        [1, 2, 3, 5]
    """
    return ceil(many / ceil(many / most))


def _together(shape: Shape, slab: int) -> Iterator[tuple[float, tuple[int, bool]]]:
    """Yield (time taken, values worked on at a time, whether columns are gathered), see `Way`."""
    short = _least_columns(shape) > max(MANY_VALUES // slab, 1)
    for apart, values in _TOGETHER:
        for gathers in (True, False) if short else (False,):
            yield apart, (values, gathers)


def _readings(shape: Shape, slab: int) -> list[tuple[float, tuple[int, int]]]:
    """Return time taken, and (rows of a row group decoded whole, rows decoded from inside)."""
    whole = [(1.0, (max(shape.largest_group, slab), slab))]
    if not shape.arrow_columns:
        return whole
    few = 1 if shape.vectors else 256
    most = _STREAMED // max(shape.held_word_bytes, 1)
    halved = [slab >> by for by in range(20) if slab >> by >= few]
    lengths = [rows for by, rows in enumerate(halved) if by < 4 or rows > most]
    inside = [(1.1 + 0.05 * by, (0, rows)) for by, rows in enumerate(lengths)]
    if shape.vectors:  # one leaf is decoded by one thread, whole or not
        return [(1.3, whole[0][1]), *inside]
    if shape.largest_group <= slab and shape.largest_group * shape.word_bytes <= LETTERS:
        return whole
    return whole + inside


def _calls(shape: Shape, slab: int, way: Way) -> float:
    """Return the time taken, as each call decodes values of one run of rows, if these are short."""
    rows = max(shape.rows, 1) / max(shape.stretches, 1)
    if rows >= _LONG_RUN or shape.vectors_make_most:
        return 1.0
    together = worked_on(shape, way, slab, way.abreast)
    columns = max(min(way.values // slab, together.columns), together.gathered)
    call = _CALL * (_PAGE_FILE_CALL if shape.number_dictionaries else 1)
    call *= _CONTENDED if way.threads > way.processes else 1
    return 1 + call / (min(columns, max(shape.columns, 1)) * rows)


def worked_on(shape: Shape, way: Way, rows: int, abreast: int = 1) -> Together:
    """Return what is worked on at a time, and decoded.

    Args:
        shape: What it is of.
        way: How.
        rows: Of a batch or a slab.
        abreast: How many of them are decoded at one go.
    """
    decoded = min(abreast * rows, shape.rows) if abreast > 1 else 0
    columns = _columns_together(shape, way.values, decoded)
    gathered = _gathered(shape, rows, columns) if way.gathers else 1
    return Together(way.values, columns, gathered)


def _least_columns(shape: Shape) -> int:
    """Return how many columns are to be decoded at a time, so that it is worth a call."""
    return ceil(_WORTH_A_CALL * max(shape.stretches, 1) / max(shape.rows, 1))


def _gathered(shape: Shape, rows: int, most: int) -> int:
    """Return how many columns of so many rows are decoded at a time, at most, if they are gathered.

    Args:
        shape: What is decoded.
        rows: How many are worked on at a time.
        most: So few are decoded at a time whatever is gained.
    """
    room = SHARE_BYTES // (rows * shape.number_bytes)
    return max(min(_least_columns(shape), room, most), 1)


def _columns_together(shape: Shape, values: int, rows: int) -> int:
    """Return how many columns may be decoded at one go, where each takes much memory.

    Args:
        shape: What is decoded.
        values: How many are worked on together.
        rows: How many are decoded of each column, at least.
    """
    column = max(shape.page_bytes, shape.own_lookup_bytes, rows * _LEAST_WIDTH, 1)
    return max(_PAGE_BYTES_TOGETHER * values // column, 1)
