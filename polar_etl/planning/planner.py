"""The fastest plan that a memory limit allows. Reads no data."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from math import ceil, inf, sqrt
from operator import attrgetter, itemgetter
from typing import NamedTuple

from polar_etl.encoding.slabs import slab_rows
from polar_etl.encoding.words import LETTERS
from polar_etl.errors import MemoryLimitError
from polar_etl.memory import NEAR, format_size
from polar_etl.planning.bill import bill_of, kept_bytes, least_of, moments_bytes
from polar_etl.planning.decoding import rest_behind
from polar_etl.planning.plan import MANY_VALUES, MIB, Plan, Together
from polar_etl.planning.shapes import Shape
from polar_etl.sources.base import HELD_PART, Reading
from polar_etl.statistics.blocks import block_rows

_WORTH_FORKING = 32 * MIB
"""Decoded bytes of a table from which processes save more time than forking them takes."""
_STREAMED = 1 << 21
"""Bytes of words decoded at a time, at least, however scarce memory is."""
_SHARE_BYTES = 16 * MIB
"""Bytes of a slab's share, at most: as much waits to be written for each task in flight."""
_SHARES = 3
"""Shares of a slab for each thread, at least: of two, a fifth more memory waits to be written, and
four take more time (measured)."""
_MANY_FILES = 8
"""Files in a slab beyond which one share for each thread takes less time, as each opens them all:
0.8 of it with 80 (measured)."""
_ARROW_SHARE = 16
"""Columns that PyArrow decodes are not worth a share of their own if they are fewer."""
_TOGETHER = ((1.0, MANY_VALUES), (1.08, 1 << 18))
"""Time taken, and values worked on at a time, from bytes to bytes: each call into another language
waits for the interpreter, and the processor's caches are only so large (measured: 2^17 and 2^22 are
slower)."""
_PAGE_BYTES_TOGETHER = 8
"""Bytes for each of these values of pages, or dictionaries, that are decompressed at one go."""
_KEEPING = 0.87
"""Time that a run takes where the first pass keeps all numbers for the second."""
_MOST_ABREAST = 32
"""Largest `Plan.abreast`."""
_FINER = ((1, 1.0), (2, 1.03), (4, 1.1))
"""How many times more shares there are than are needed, and the time that takes (measured)."""
_AT_STAKE = 1 << 30
"""Bytes of a batch, or of slabs abreast, at most: so much work is lost when a run is killed."""
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
_SHORT_FILE = 1 << 21
"""Values of a file, on average, up to which its batches are dealt to threads as they are: opening
it takes a tenth of the time that its moments take (measured)."""
_VECTOR_VALUES = 1 << 22
"""Values of a batch most of which are in vectors, or a block: all of them are decoded at one go."""
_LEAST_WIDTH = 4
"""Bytes of a number in Parquet, at least."""
_AHEAD = 16
"""Batches of the first pass in flight, at most: so many that tasks go on while the manifest waits
for the disk. Until its turn comes nothing of a batch is decoded."""
_MOMENTS_AHEAD = 16 * MIB


def make_plan(
    shape: Shape,
    *,
    limit: int,
    base: int,
    threads: int,
    rows_per_part: int | None,
    processes: bool = False,
    spare: int = 0,
) -> Plan:
    """Return the fastest plan whose projected peak stays within `limit`.

    Args:
        shape: What is to be processed.
        limit: Bytes that the process may use.
        base: Bytes that the process uses already.
        threads: Largest number of threads.
        rows_per_part: Rows of a part; None for one output row group per part.
        processes: Whether threads may be those of forked processes.
        spare: Bytes that the first pass may keep for the second, if the limit has room for them.

    Raises:
        MemoryLimitError: No plan fits; says what the smallest one needs, and for what.
    """
    slab = slab_rows(shape.nominal_output_bytes, shape.vector_output_bytes)
    part = rows_per_part or slab
    slab = min(slab, part)
    fastest, enough = None, inf
    forks = processes and shape.rows * shape.row_bytes >= _WORTH_FORKING
    vectors_make_most = _deals_vectors(shape, slab, threads)
    if vectors_make_most or not 0 < shape.rows * shape.kept_bytes <= min(spare, limit - base):
        spare = 0  # whatever the plan, so none is looked for
    plans = _Plans(shape, limit, base, slab, part)
    for time, way in _ways(shape, slab, threads, forks=forks):
        if time > enough:
            break
        if plan := plans.within_limit(way):
            keeping = _keeping_numbers(shape, plan, base, spare)
            if keeping.keeps or not spare:
                return keeping
            if fastest is None:
                fastest, enough = plan, time / _KEEPING
    if fastest:
        return fastest
    raise _refusal(plans.smallest(), limit, held=shape.files < 2 or shape.held_chunks > 0)


def _keeping_numbers(shape: Shape, plan: Plan, base: int, spare: int) -> Plan:
    """Return the plan that also keeps all numbers for the second pass, if there is room for them.

    Some of them would save time in proportion, but take all that the limit leaves.
    """
    size = kept_bytes(shape, plan)
    if not 0 < size <= spare:
        return plan
    together = plan.batch_together  # nothing is decoded again, so nothing need go abreast
    keeping = plan._replace(abreast=1, rest=0, together=together, deals_rows=False, keeps=True)
    bill = (*bill_of(shape, keeping, base), ("numbers kept for the second pass", size))
    keeping = keeping._replace(bill=bill)
    return keeping if keeping.projected <= NEAR * plan.limit else plan


class _Way(NamedTuple):
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

    def for_one_thread(self) -> _Way:
        """Return what takes least memory of all that is done like this."""
        return self._replace(threads=1, processes=1, in_flight=1)


class _Plans:
    """The plans of the ways to go; most of them are found too large without a bill of their own.

    Args:
        shape: What is to be processed.
        limit: Bytes that the process may use.
        base: Bytes that the process uses already.
        slab: Rows of a row group of the output.
        part: Rows of a part.
    """

    def __init__(self, shape: Shape, limit: int, base: int, slab: int, part: int) -> None:
        self._shape, self._limit, self._base = shape, limit, base
        self._slab, self._part = slab, part
        self._for_one_thread: dict[_Way, Plan] = {}

    def within_limit(self, way: _Way) -> Plan | None:
        """Return the plan of one way to go, None if it does not stay within the limit."""
        single = way.for_one_thread()
        if single not in self._for_one_thread:
            self._for_one_thread[single] = self._billed(self._plan(single))
        if self._for_one_thread[single].projected > self._limit:
            return None
        plan = self._plan(way)
        if least_of(plan, self._base) > self._limit:
            return None
        plan = self._billed(plan)
        return plan if plan.projected <= self._limit else None

    def smallest(self) -> Plan:
        """Return the plan that takes least memory of all that were asked for."""
        return min(self._for_one_thread.values(), key=attrgetter("projected"))

    def _plan(self, way: _Way) -> Plan:
        return _plan(self._shape, self._limit, self._slab, self._part, way)

    def _billed(self, plan: Plan) -> Plan:
        """Return a plan with its bill; nothing is held behind batches where it has no room."""
        plan = plan._replace(bill=bill_of(self._shape, plan, self._base))
        if plan.batch_rest and plan.projected > self._limit:
            plan = plan._replace(batch_rest=0)
            plan = plan._replace(bill=bill_of(self._shape, plan, self._base))
        return plan


def _ways(shape: Shape, slab: int, threads: int, *, forks: bool) -> list[tuple[float, _Way]]:
    """Return all ways to go, and the time they take (measured on 2 cores), from fast to small."""
    choices = product(
        _shares_of_work(threads, forks=forks),
        _readings(shape, slab),
        _keeping(shape, slab),
        _together(shape, slab),
    )
    ways = [
        (work * read * again * apart, _Way(*how, Reading(*whole, kept), *abreast, *values))
        for (work, how), (read, whole), (again, kept, abreast), (apart, values) in choices
    ]
    return sorted(((time * _calls(shape, slab, way), way) for time, way in ways), key=itemgetter(0))


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
    """Yield (time taken, whether pages are kept, how slabs go abreast), see `_Way`.

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
    most = _AT_STAKE // (slab * max(shape.output_bytes, shape.row_bytes, 1))
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
    """Yield (time taken, values worked on at a time, whether columns are gathered), see `_Way`."""
    short = _least_columns(shape) > max(MANY_VALUES // slab, 1)
    for apart, values in _TOGETHER:
        for gathers in (True, False) if short else (False,):
            yield apart, (values, gathers)


def _calls(shape: Shape, slab: int, way: _Way) -> float:
    """Return the time taken, as each call decodes values of one run of rows, if these are short."""
    rows = max(shape.rows, 1) / max(shape.stretches, 1)
    if rows >= _LONG_RUN or shape.vectors_make_most:
        return 1.0
    together = _worked_on(shape, way, slab, way.abreast)
    columns = max(min(way.values // slab, together.columns), together.gathered)
    call = _CALL * (_PAGE_FILE_CALL if shape.number_dictionaries else 1)
    call *= _CONTENDED if way.threads > way.processes else 1
    return 1 + call / (min(columns, max(shape.columns, 1)) * rows)


def _worked_on(shape: Shape, way: _Way, rows: int, abreast: int = 1) -> Together:
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


def _has_short_files(shape: Shape, threads: int) -> bool:
    """Tell whether files are many, and so short that opening them takes long."""
    values = shape.rows * shape.normalized
    ours = not (
        shape.vectors or shape.normalized_arrow
    )  # PyArrow decodes row groups of all columns
    return ours and shape.files >= 2 * threads and values <= _SHORT_FILE * shape.files


def _deals_vectors(shape: Shape, slab: int, threads: int) -> bool:
    """Tell whether rows are dealt to threads, because vectors make most of them.

    What PyArrow decodes of a row group before the rows of a slab is decoded for nothing.
    """
    others = shape.arrow_columns - len(shape.vectors)
    few = not others or shape.largest_group <= slab
    return threads > 1 and shape.whole_vectors and few and shape.vectors_make_most


def _gathered(shape: Shape, rows: int, most: int) -> int:
    """Return how many columns of so many rows are decoded at a time, at most, if they are gathered.

    Args:
        shape: What is decoded.
        rows: How many are worked on at a time.
        most: So few are decoded at a time whatever is gained.
    """
    room = _SHARE_BYTES // (rows * shape.number_bytes)
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


def _plan(shape: Shape, limit: int, slab: int, part: int, way: _Way) -> Plan:
    """Return the plan of one way to go, without its bill."""
    shares = _shares(shape, slab, way)
    deals_slabs = _deals_vectors(shape, slab, way.threads)
    if deals_slabs:
        few = min(way.in_flight, way.threads + 2)
        shares, way = 1, way._replace(in_flight=few, abreast=1, holds_rest=False)
    elif shape.vectors:  # a column is one share, whose next slab only one thread can work on
        few = min(way.in_flight, max(2 * shares - 1, 1))
        way = way._replace(in_flight=few, threads=min(way.threads, shares))
    threads = way.threads
    batch, rest = _batch(shape, way)
    ahead = _MOMENTS_AHEAD // max(moments_bytes(shape, batch), 1)
    return Plan(
        slab_rows=slab,
        part_rows=part,
        parts=max(1, ceil(shape.rows / part)),
        batch_rows=batch,
        batch_rest=rest,
        threads=threads,
        processes=min(way.processes, threads, threads if deals_slabs else shares),
        shares=shares,
        ahead=max(min(_AHEAD, ahead), 2),
        in_flight=way.in_flight,
        abreast=way.abreast,
        rest=rest_behind(shape, slab) if way.holds_rest else 0,
        together=_worked_on(shape, way, slab, way.abreast),
        batch_together=_worked_on(shape, way, batch),
        reading=way.reading,
        bill=(),
        limit=limit,
        deals_rows=deals_slabs or (threads > 1 and _has_short_files(shape, threads)),
        deals_slabs=deals_slabs,
    )


def _shares(shape: Shape, slab: int, way: _Way) -> int:
    """Return how many runs of columns slabs are cut into."""
    slab_bytes = min(slab, max(shape.rows, 1)) * max(shape.output_bytes, shape.row_bytes)
    each = _SHARES if way.threads > 1 and shape.files_in_slab <= _MANY_FILES else 1
    shares = max(each * way.threads, ceil(slab_bytes / _SHARE_BYTES)) * way.finer
    apart = max(shape.columns - shape.arrow_columns, 1) + shape.arrow_columns // _ARROW_SHARE + 1
    return max(min(shares, apart, shape.columns), 1)


def _batch(shape: Shape, way: _Way) -> tuple[int, int]:
    """Return the rows of a batch, and those that may be held of a row group behind one."""
    rows, block = max(shape.rows, 1), block_rows(shape.normalized)
    most = min(slab_rows(shape.normalized_bytes), rows)
    if shape.whole_vectors and shape.vectors_make_most:
        most = min(most, _VECTOR_VALUES // max(shape.normalized, 1))
        return max(most // block, 1) * block, 0
    batch = max(most // block, 1) * block
    if not shape.number_dictionaries and way.reading.keep_pages:
        return batch, 0
    whole = ceil(min(shape.largest_group, rows) / block)  # all of it is decoded once
    at_stake = _AT_STAKE // max(block * shape.normalized_bytes, 1)
    return max(batch, min(whole, at_stake) * block), rest_behind(shape, block)


def _refusal(smallest: Plan, limit: int, *, held: bool) -> MemoryLimitError:
    """Return the error that says what would do.

    Args:
        smallest: The plan that needs least.
        limit: The limit, which is less.
        held: Whether its bill has what is held of all files; a larger limit has room for that.
    """
    needed = smallest.projected
    enough = needed if held else needed * HELD_PART // (HELD_PART - 1)
    lines = ", ".join(f"{name} {format_size(size)}" for name, size in smallest.bill if size)
    megabytes = ceil(enough / 10**6)
    return MemoryLimitError(
        f"The memory limit of {format_size(limit)} is too small: the smallest plan needs "
        f"{format_size(needed)} ({lines}). Nothing was read or written. "
        f"Use --memory-limit {megabytes}MB or more"
        + (
            ", or fewer rows in a part (--rows-per-part)."
            if smallest.slab_rows > 1
            else "; one row with all its columns is what does not fit."
        )
    )
