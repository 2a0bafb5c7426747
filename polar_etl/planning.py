"""The fastest plan that a memory limit allows. Reads no data."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from math import ceil, inf, sqrt
from operator import itemgetter
from typing import NamedTuple

from polar_etl.blocks import block_rows
from polar_etl.errors import MemoryLimitError
from polar_etl.memory import NEAR, format_size
from polar_etl.plan import (
    MANY_VALUES,
    MIB,
    Plan,
    Shape,
    Together,
    bill_of,
    kept_bytes,
    moments_bytes,
)
from polar_etl.sources.base import Reading
from polar_etl.words import LETTERS

_WORTH_FORKING = 128 * MIB
"""Decoded bytes of a table from which processes save more time than forking them takes."""
_STREAMED = 1 << 21
"""Bytes of words decoded at a time, at least, however scarce memory is."""
_SHARE_BYTES = 16 * MIB
"""Bytes of a slab's share, at most: as much waits to be written for each task in flight."""
_SHARES = 3
"""Shares of a slab for each thread, at least: of two, a fifth more memory waits to be written, and
four take more time (measured)."""
_ARROW_SHARE = 16
"""Columns that PyArrow decodes are not worth a share of their own if they are fewer."""
_TOGETHER = ((1.0, MANY_VALUES), (1.08, 1 << 18))
"""Time taken, and values worked on at a time, from bytes to bytes: each call into another language
waits for the interpreter, and the processor's caches are only so large (measured: 2^17 and 2^22 are
slower)."""
_TOGETHER_LOOKED_UP = ((1.0, MANY_VALUES), (1.4, 1 << 18))
"""The same where there are dictionaries, and only so many at a time."""
_PAGE_BYTES_TOGETHER = 8
"""Bytes for each of these values of pages, or dictionaries, that are decompressed at one go."""
_LOOKED_UP = 1 << 18
"""Rows of a batch of the first pass, at most, where dictionaries can be kept: as many values as fit
into the dictionary of the most common writer, which goes on without one then."""
_KEEPING = 0.87
"""Time that a run takes where the first pass keeps all numbers for the second."""
_WINDOWS_AHEAD = (1, 2, 3, 4, 6, 8, 12, 16, 32)
"""See `Reading.ahead`."""
_AHEAD = 16
"""Batches of the first pass in flight, at most: so many that tasks go on while the manifest waits
for the disk. Until its turn comes nothing of a batch is decoded."""
_MOMENTS_AHEAD = 16 * MIB


def slab_rows(output_bytes: int, vector_bytes: int = 0) -> int:
    """Return the rows of an output row group, from the bytes of an output row alone.

    About 32 MiB; more for wide tables, whose column chunks would become too short to compress.
    Those of vectors don't.

    Example:
        >>> slab_rows(200), slab_rows(4_000), slab_rows(40_000), slab_rows(400_000)
        (167680, 16384, 4096, 1024)
        >>> slab_rows(4_000, vector_bytes=4_000)
        8192
    """
    size = max(output_bytes, 1)
    wide = max(output_bytes - vector_bytes, 0) / size
    rows = max(
        32 * MIB // size,
        min(int(16_384 * wide), 64 * MIB // size),
        min(int(4_096 * wide), 192 * MIB // size),
        min(int(1_024 * wide), 512 * MIB // size),
        1,
    )
    rows = min(rows, 1 << 20)
    return rows - rows % 256 if rows > 256 else rows


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
    smallest = fastest = None
    enough = inf
    forks = processes and shape.rows * shape.row_bytes >= _WORTH_FORKING
    for time, way in _ways(shape, slab, threads, forks=forks):
        if time > enough:
            break
        plan = _plan(shape, limit, base, slab, part, way)
        if plan.projected <= limit:
            keeping = _keeping_numbers(shape, plan, spare)
            if keeping.keeps or not spare:
                return keeping
            if fastest is None:
                fastest, enough = plan, time / _KEEPING
        if smallest is None or plan.projected < smallest.projected:
            smallest = plan
    if fastest:
        return fastest
    assert smallest is not None
    raise _refusal(smallest, limit)


def _keeping_numbers(shape: Shape, plan: Plan, spare: int) -> Plan:
    """Return the plan that also keeps all numbers for the second pass, if there is room for them.

    Some of them would save time in proportion, but take all that the limit leaves.
    """
    size = kept_bytes(shape, plan)
    if not 0 < size <= spare or plan.projected + size > NEAR * plan.limit:
        return plan
    return plan._replace(keeps=True, bill=(*plan.bill, ("numbers kept for the second pass", size)))


class _Way(NamedTuple):
    """One way to go, which takes more or less time and memory."""

    threads: int
    processes: int
    in_flight: int
    reading: Reading
    values: int
    """See `Together`."""


def _ways(shape: Shape, slab: int, threads: int, *, forks: bool) -> list[tuple[float, _Way]]:
    """Return all ways to go, and the time they take (measured on 2 cores), from fast to small."""
    ways = [
        (work * read * again * calls, _Way(*how, Reading(group_rows, stream_rows, *keep), values))
        for (work, how), (read, group_rows, stream_rows), (again, keep), (calls, values) in product(
            _shares_of_work(threads, forks=forks),
            _readings(shape, slab),
            _keeping(shape, slab),
            _TOGETHER_LOOKED_UP if shape.number_dictionaries else _TOGETHER,
        )
    ]
    return sorted(ways, key=itemgetter(0))


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


def _keeping(shape: Shape, slab: int) -> list[tuple[float, tuple[bool, bool, int]]]:
    """Return (time taken, how it is read): see `Reading` on what is kept, and how far ahead."""
    width = max(shape.row_bytes // max(shape.columns, 1), 1)
    times = shape.page_bytes / (slab * width)  # that a page is decoded for each pass
    larger = shape.number_dictionaries / (slab * max(shape.row_bytes, 1))
    found = []
    looked_up = (True, False) if shape.number_dictionaries else (True,)
    for pages, dictionaries in product((True, False), looked_up):
        for ahead in (1,) if pages and dictionaries else _WINDOWS_AHEAD:
            again = 1.0 if pages else 1.2 + 0.06 * times / ahead
            again *= 1.0 if dictionaries else 1.01 + 0.083 * max(larger / ahead - 1, 0)
            found.append((again, (pages, dictionaries, ahead)))
    return found


def _readings(shape: Shape, slab: int) -> list[tuple[float, int, int]]:
    """Return (time taken, rows of a row group decoded whole, rows decoded from inside)."""
    whole = [(1.0, max(shape.largest_group, slab), slab)]
    if not shape.arrow_columns:
        return whole
    few = 1 if shape.vectors else 256
    most = _STREAMED // max(shape.held_word_bytes, 1)
    halved = [slab >> by for by in range(20) if slab >> by >= few]
    lengths = [rows for by, rows in enumerate(halved) if by < 4 or rows > most]
    inside = [(1.1 + 0.05 * by, 0, rows) for by, rows in enumerate(lengths)]
    if shape.vectors:  # one leaf is decoded by one thread, whole or not
        return [(1.3, *whole[0][1:]), *inside]
    if shape.largest_group <= slab and shape.largest_group * shape.word_bytes <= LETTERS:
        return whole
    return whole + inside


def _plan(shape: Shape, limit: int, base: int, slab: int, part: int, way: _Way) -> Plan:
    """Return the plan of one way to go, with its bill."""
    rows = max(shape.rows, 1)
    slab_bytes = min(slab, rows) * max(shape.output_bytes, shape.row_bytes)
    shares = max(_SHARES * way.threads if way.threads > 1 else 1, ceil(slab_bytes / _SHARE_BYTES))
    apart = max(shape.columns - shape.arrow_columns, 1) + shape.arrow_columns // _ARROW_SHARE + 1
    shares = max(min(shares, apart, shape.columns), 1)
    threads, in_flight = way.threads, way.in_flight
    if shape.vectors:  # a column of them is one share, whose next slab only one thread can work on
        threads, in_flight = min(threads, shares), min(in_flight, max(2 * shares - 1, 1))
    block = block_rows(shape.normalized)
    batch = max(min(slab_rows(shape.normalized_bytes), rows) // block, 1) * block
    if shape.number_dictionaries:  # the more rows, the less often they are decoded, or kept at all
        most = _LOOKED_UP if way.reading.keep_dictionaries else rows
        batch = max(batch, min(shape.largest_group, rows, most) // block * block)
    ahead = _MOMENTS_AHEAD // max(moments_bytes(shape, batch), 1)
    pages = _PAGE_BYTES_TOGETHER * way.values // max(shape.page_bytes, shape.own_lookup_bytes, 1)
    plan = Plan(
        slab_rows=slab,
        part_rows=part,
        parts=max(1, ceil(shape.rows / part)),
        batch_rows=batch,
        threads=threads,
        processes=min(way.processes, threads, shares),
        shares=shares,
        ahead=max(min(_AHEAD, ahead), 2),
        in_flight=in_flight,
        together=Together(way.values, max(pages, 1)),
        reading=way.reading,
        bill=(),
        limit=limit,
    )
    return plan._replace(bill=bill_of(shape, plan, base))


def _refusal(smallest: Plan, limit: int) -> MemoryLimitError:
    needed = smallest.projected
    lines = ", ".join(f"{name} {format_size(size)}" for name, size in smallest.bill if size)
    megabytes = ceil(needed / 10**6)
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
