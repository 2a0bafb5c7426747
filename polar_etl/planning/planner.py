"""The fastest plan that a memory limit allows. Reads no data."""

from __future__ import annotations

from math import ceil, inf
from operator import attrgetter

from polar_etl.encoding.slabs import slab_rows
from polar_etl.errors import MemoryLimitError
from polar_etl.memory import NEAR, format_size
from polar_etl.planning.bill import bill_of, kept_bytes, least_of, moments_bytes
from polar_etl.planning.decoding import rest_behind
from polar_etl.planning.plan import MIB, Plan
from polar_etl.planning.shapes import Shape
from polar_etl.planning.ways import AT_STAKE, SHARE_BYTES, Way, ways, worked_on
from polar_etl.sources.base import HELD_PART
from polar_etl.statistics.blocks import block_rows

_WORTH_FORKING = 32 * MIB
"""Decoded bytes of a table from which processes save more time than forking them takes."""
_SHARES = 3
"""Shares of a slab for each thread, at least: of two, a fifth more memory waits to be written, and
four take more time (measured)."""
_MANY_FILES = 8
"""Files in a slab beyond which one share for each thread takes less time, as each opens them all:
0.8 of it with 80 (measured)."""
_ARROW_SHARE = 16
"""Columns that PyArrow decodes are not worth a share of their own if they are fewer."""
_KEEPING = 0.87
"""Time that a run takes where the first pass keeps all numbers for the second."""
_SHORT_FILE = 1 << 21
"""Values of a file, on average, up to which its batches are dealt to threads as they are: opening
it takes a tenth of the time that its moments take (measured)."""
_VECTOR_VALUES = 1 << 22
"""Values of a batch most of which are in vectors, or a block: all of them are decoded at one go."""
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
    for time, way in ways(shape, slab, threads, forks=forks):
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
        self._for_one_thread: dict[Way, Plan] = {}

    def within_limit(self, way: Way) -> Plan | None:
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

    def _plan(self, way: Way) -> Plan:
        """Return the plan of one way to go, without its bill."""
        shape, slab, part = self._shape, self._slab, self._part
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
            together=worked_on(shape, way, slab, way.abreast),
            batch_together=worked_on(shape, way, batch),
            reading=way.reading,
            bill=(),
            limit=self._limit,
            deals_rows=deals_slabs or (threads > 1 and _has_short_files(shape, threads)),
            deals_slabs=deals_slabs,
        )

    def _billed(self, plan: Plan) -> Plan:
        """Return a plan with its bill; nothing is held behind batches where it has no room."""
        plan = plan._replace(bill=bill_of(self._shape, plan, self._base))
        if plan.batch_rest and plan.projected > self._limit:
            plan = plan._replace(batch_rest=0)
            plan = plan._replace(bill=bill_of(self._shape, plan, self._base))
        return plan


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


def _shares(shape: Shape, slab: int, way: Way) -> int:
    """Return how many runs of columns slabs are cut into."""
    slab_bytes = min(slab, max(shape.rows, 1)) * max(shape.output_bytes, shape.row_bytes)
    each = _SHARES if way.threads > 1 and shape.files_in_slab <= _MANY_FILES else 1
    shares = max(each * way.threads, ceil(slab_bytes / SHARE_BYTES)) * way.finer
    apart = max(shape.columns - shape.arrow_columns, 1) + shape.arrow_columns // _ARROW_SHARE + 1
    return max(min(shares, apart, shape.columns), 1)


def _batch(shape: Shape, way: Way) -> tuple[int, int]:
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
    at_stake = AT_STAKE // max(block * shape.normalized_bytes, 1)
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
