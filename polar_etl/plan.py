"""Arithmetic that turns shapes and a memory limit into a plan. Reads no data."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from math import ceil, sqrt

from polar_etl.blocks import block_rows
from polar_etl.errors import MemoryLimitError
from polar_etl.memory import format_size
from polar_etl.sources.base import Reading
from polar_etl.sources.decoding import columns_at_a_time

MIB = 1 << 20
_FOOTER_CHUNK = 1300
"""Bytes that PyArrow keeps for one column chunk of a footer (measured: 1.2 kB)."""
_DECODER = 110_000
"""Bytes of buffers and zstd state for one column that is being decoded (measured: 0.1 MB)."""
_CHUNK_COPIES = 3
"""How often a column chunk is held while it is decoded whole: as read, its pages, its values."""
_RUNTIME = 32 * MIB
"""Thread stacks, code loaded late, SQLite, and what the allocators keep back."""
_COLUMN_OBJECTS = 3_000
"""Bytes of Python and Arrow objects for one column of one table."""
_WORKER = 16 * MIB
"""Tiles, pages, and the compressor of one thread."""
_TILE_COPIES = 64
"""Bytes of tiles and pages for one value, where a table has too few to fill them."""
_STREAM = 24 * MIB
"""What reading from inside a row group takes whatever its shape (measured: 10 to 20 MB)."""
_VECTOR = 24 * MIB
"""Levels and bitmaps of a column of vectors, as read and as written (measured: up to 16 MB)."""
_PAGE_COPIES = 1.5
"""How often a page is held while rows are read from inside it (measured: 1.3)."""
_SLACK = 1.1
"""What the allocator needs more than what is asked of it (measured: up to 1.06)."""
_LINGERING = 0.15
"""Share of freed memory that is not yet given back, where small pieces or several batches come and
go (measured: up to 0.12)."""
_CACHE_SHARE = 0.85
"""Share of the room left under the limit that decoded batches may fill."""


@dataclass(frozen=True, slots=True)
class Shape:
    """All that a plan depends on besides the limit."""

    rows: int
    largest_group: int
    """Rows of the largest row group."""
    even_group: int
    """Rows that all row groups have, the very last one excepted; 0 if they have not."""
    files: int
    columns: int
    """Leaf columns."""
    normalized: int
    """Columns that are normalized."""
    row_bytes: int
    """Decoded bytes of a row."""
    normalized_bytes: int
    """Decoded bytes of the normalized columns of a row."""
    output_bytes: int
    """Bytes of a row of the output, decoded."""
    nominal_output_bytes: int
    """The same as far as the schema alone tells; part boundaries follow from it."""
    reused_bytes: int
    """What of them can take the place of what was read, where a slab is in one piece."""
    footer_chunks: int
    """Column chunks in the largest footer."""
    page_bytes: int
    """Uncompressed bytes of the largest page."""
    stream_bytes: int
    """Bytes that decoding takes for each row read at a time from inside a row group, vectors
    aside."""
    vectors: tuple[tuple[int, int], ...] = ()
    """Of each column of vectors: numbers in a row, and bytes of a number in Parquet."""
    vector_bytes: int = 0
    """Decoded bytes of the vectors of a row."""
    vector_output_bytes: int = 0
    """Bytes of the vectors of a row of the output."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How a run goes.

    Only `slab_rows` and `part_rows` shape the output, and neither follows from the memory limit or
    the threads.
    """

    slab_rows: int
    """Rows of a row group of the output."""
    part_rows: int
    """Rows of a part, the last one excepted."""
    parts: int
    """Number of parts."""
    batch_rows: int
    """Rows of a batch of the first pass: whole blocks."""
    threads: int
    """Threads that decode and work on columns."""
    shares: int
    """Runs of columns that batches and slabs are cut into, for the threads."""
    in_flight: int
    """Batches that are worked on, wait for it, or are being decoded."""
    reading: Reading
    cached_bytes: int
    """Decoded bytes kept from the first pass for the second."""
    bill: tuple[tuple[str, int], ...]
    """What the projected peak consists of."""
    limit: int

    @property
    def projected(self) -> int:
        """Bytes that the process is expected to need at most."""
        return sum(size for _, size in self.bill)


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
    shape: Shape, *, limit: int, base: int, threads: int, rows_per_part: int | None
) -> Plan:
    """Return the fastest plan whose projected peak stays within `limit`.

    Args:
        shape: What is to be processed.
        limit: Bytes that the process may use.
        base: Bytes that the process uses already.
        threads: Largest number of threads.
        rows_per_part: Rows of a part; None for one output row group per part.

    Raises:
        MemoryLimitError: No plan fits; says what the smallest one needs, and for what.
    """
    slab = slab_rows(shape.nominal_output_bytes, shape.vector_output_bytes)
    part = rows_per_part or slab
    slab = min(slab, part)
    smallest: Plan | None = None
    for way in _ways(shape, slab, threads):
        plan = _plan(shape, limit, base, slab, part, way)
        if plan.projected <= limit:
            return plan
        if smallest is None or plan.projected < smallest.projected:
            smallest = plan
    assert smallest is not None
    raise _refusal(smallest, limit)


@dataclass(frozen=True, slots=True)
class _Way:
    """One way to go, which takes more or less time and memory."""

    threads: int
    in_flight: int
    reading: Reading


def _ways(shape: Shape, slab: int, threads: int) -> list[_Way]:
    """Return all ways to go, from fast to small, by the time they take (measured on 2 cores)."""
    ways = [
        (cost * slower, _Way(workers, in_flight, Reading(readers, group_rows, stream_rows)))
        for (cost, workers, in_flight, readers), (slower, group_rows, stream_rows) in product(
            _shares_of_work(threads), _readings(shape, slab)
        )
    ]
    return [way for _, way in sorted(ways, key=lambda pair: pair[0])]


def _shares_of_work(threads: int) -> Iterator[tuple[float, int, int, int]]:
    """Yield (time taken, threads that work on batches, batches in flight, threads that decode)."""
    workers = threads
    while workers:
        slower = sqrt(threads / workers)
        for ahead, waiting in ((2, 1.0), (1, 1.03), (0, 1.1 if workers > 1 else 1.5)):
            yield slower * waiting, workers, workers + ahead, threads
            yield slower * waiting * 1.1, workers, workers + ahead, workers
        workers //= 2


def _readings(shape: Shape, slab: int) -> list[tuple[float, int, int]]:
    """Return (time taken, rows of a row group decoded whole, rows decoded from inside)."""
    whole = [(1.0, max(shape.largest_group, slab), slab)]
    few = 1 if shape.vectors else 256
    lengths = [slab >> by for by in range(4) if slab >> by >= few]
    inside = [(1.1 + 0.05 * by, 0, rows) for by, rows in enumerate(lengths)]
    if shape.vectors:  # one leaf is decoded by one thread, whole or not
        return [(1.3, *whole[0][1:]), *inside]
    if shape.largest_group <= slab:
        return whole
    return whole + inside


def _plan(shape: Shape, limit: int, base: int, slab: int, part: int, way: _Way) -> Plan:
    """Return the plan of one way to go, with its bill."""
    threads, in_flight, reading = way.threads, way.in_flight, way.reading
    block = block_rows(shape.normalized)
    rows = max(shape.rows, 1)
    group_rows, stream_rows = reading.group_rows, reading.stream_rows
    batch = min(slab_rows(shape.normalized_bytes), rows // (2 * threads))
    batch = max(batch // block, 1) * block
    decoded = min(group_rows or stream_rows, shape.largest_group, rows)
    if group_rows:
        read = min(group_rows, shape.largest_group, rows)
        many = min(columns_at_a_time(read), shape.columns)
        decoding = reading.threads * many * (_DECODER + _CHUNK_COPIES * 8 * read)
        decoding += _vector_buffers(shape, min(group_rows, rows)) + decoded * shape.vector_bytes
    else:
        batch = max(stream_rows // block, 1) * block
        decoding = shape.columns * (_DECODER + int(_PAGE_COPIES * shape.page_bytes))
        decoding += stream_rows * shape.stream_bytes + _STREAM
        decoding += _vector_buffers(shape, decoded) + decoded * shape.vector_bytes
    objects = max(shape.columns, shape.normalized) * _COLUMN_OBJECTS
    worker = min(_WORKER, MIB + _TILE_COPIES * min(slab, rows) * shape.normalized)
    slabs_per_part = ceil(min(part, rows) / slab)
    held = _held_rows(shape, max(min(batch, rows), slab), decoded, in_flight)
    most = int((rows + decoded) * shape.row_bytes * _SLACK)
    batches = min(int(held * shape.row_bytes * _SLACK), most)
    in_one_piece = group_rows and shape.even_group and shape.even_group % slab == part % slab == 0
    fresh = shape.output_bytes - (shape.reused_bytes if in_one_piece else 0)
    normalized = threads * (min(slab, rows) * fresh + objects)
    if not group_rows or in_flight > 1:
        decoding += int(_LINGERING * (decoding + batches + normalized))
    bill = (
        ("interpreter and libraries", base + _RUNTIME),
        ("footers", shape.footer_chunks * _FOOTER_CHUNK),
        ("statistics", shape.normalized * 600),
        ("decoding", decoding),
        ("decoded batches", batches + (in_flight + 1) * objects),
        ("normalized columns", normalized),
        (
            "arithmetic and encoding",
            threads * (slabs_per_part * shape.columns * _FOOTER_CHUNK + worker),
        ),
    )
    room = int(max(limit - sum(size for _, size in bill), 0) * _CACHE_SHARE)
    kept = min(room, most - batches)
    return Plan(
        slab_rows=slab,
        part_rows=part,
        parts=max(1, ceil(shape.rows / part)),
        batch_rows=batch,
        threads=threads,
        shares=2 * threads if threads > 1 else 1,
        in_flight=in_flight,
        reading=reading,
        cached_bytes=min(int(room / _SLACK), shape.rows * shape.row_bytes),
        bill=(*bill, ("decoded batches kept for the second pass", kept)),
        limit=limit,
    )


def _vector_buffers(shape: Shape, rows: int) -> int:
    """Return what PyArrow holds while it decodes vectors, besides the result.

    That is each number as Parquet has it and two levels of 2 bytes, in buffers that grow by
    doubling (measured: 8.1 to 13.6 bytes for a float32, 12.1 to 20.3 for a float64).
    """
    return sum(
        _VECTOR + (1 << (rows * size - 1).bit_length()) * (width + 4)
        for size, width in shape.vectors
    )


def _held_rows(shape: Shape, length: int, decoded: int, in_flight: int) -> int:
    """Return how many decoded rows are alive at a time.

    Args:
        shape: Tells whether row groups end where batches do.
        length: Rows of a batch.
        decoded: Rows that come out of one call of the decoder; slices keep all of them alive.
        in_flight: Batches in flight; one more is being put together.
    """
    if decoded > length:
        return 2 * decoded + length
    aligned = shape.even_group and length % shape.even_group == 0
    return (in_flight + 1) * length + (0 if aligned else decoded)


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
