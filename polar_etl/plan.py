"""Arithmetic that turns shapes and a memory limit into a plan. Reads no data."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from math import ceil

from polar_etl.blocks import block_rows
from polar_etl.errors import MemoryLimitError
from polar_etl.memory import format_size
from polar_etl.sources.base import Reading

MIB = 1 << 20
_FOOTER_CHUNK = 1300
"""Bytes that PyArrow keeps for one column chunk of a footer (measured: 1.2 kB)."""
_DECODER = 110_000
"""Bytes of buffers and zstd state for one column that is being decoded (measured: 0.1 MB)."""
_COLUMNS_DECODED = 512
_RUNTIME = 64 * MIB
"""Thread stacks, code loaded late, SQLite, and what the allocators keep back."""
_COLUMN_OBJECTS = 3_000
"""Bytes of Python and Arrow objects for one column of one table."""
_WORKER = 16 * MIB
"""Tiles, pages, and the compressor of one thread."""
_TILE_COPIES = 64
"""Bytes of tiles and pages for one value, where a table has too few to fill them."""
_STREAM_COPIES = 8
"""How often the rows that PyArrow decodes from inside a row group are held (measured: 3.5 to 7)."""
_STREAM = 32 * MIB
"""What reading from inside a row group takes whatever its shape (measured: 10 to 20 MB)."""
_SLACK = 1.1
"""What the allocator needs more than what is asked of it (measured: up to 1.06)."""
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
    footer_chunks: int
    """Column chunks in the largest footer."""
    page_bytes: int
    """Uncompressed bytes of the largest page."""
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
    """Threads that work on batches; decoding has those of `reading` beside them."""
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
    plans = [
        _plan(
            shape,
            limit,
            base,
            slab,
            part,
            workers,
            ahead,
            Reading(threads, group_rows, stream_rows),
        )
        for (workers, ahead), (group_rows, stream_rows) in product(
            _workers(threads), _readings(shape, slab)
        )
    ]
    for plan in plans:
        if plan.projected <= limit:
            return plan
    raise _refusal(min(plans, key=lambda plan: plan.projected), limit)


def _workers(threads: int) -> list[tuple[int, int]]:
    """Return (threads that work on batches, batches in flight), from fast to small."""
    return [(threads, threads + 1), (threads, threads), (1, 2), (1, 1)]


def _readings(shape: Shape, slab: int) -> list[tuple[int, int]]:
    """Return (rows of a row group decoded whole, rows decoded from inside), from fast to small."""
    whole = [(max(shape.largest_group, slab), slab)]
    few = 1 if shape.vectors else 256
    inside = [rows for rows in (slab, slab // 2, slab // 4, slab // 8) if rows >= few]
    if shape.vectors:  # one leaf is decoded by one thread, whole or not
        return [(0, rows) for rows in inside] + whole
    if shape.largest_group <= slab or not inside:
        return whole
    if shape.largest_group * shape.row_bytes <= 256 * MIB:
        return whole + [(0, rows) for rows in inside]
    return [(0, rows) for rows in inside] + whole


def _plan(
    shape: Shape,
    limit: int,
    base: int,
    slab: int,
    part: int,
    threads: int,
    in_flight: int,
    reading: Reading,
) -> Plan:
    block = block_rows(shape.normalized)
    rows = max(shape.rows, 1)
    group_rows, stream_rows = reading.group_rows, reading.stream_rows
    batch = max(slab_rows(shape.normalized_bytes) // block, 1) * block
    decoded = min(group_rows or stream_rows, shape.largest_group, rows)
    if group_rows:
        decoding = min(shape.columns, _COLUMNS_DECODED) * _DECODER
        decoding += _vector_buffers(shape, min(group_rows, rows)) + decoded * shape.vector_bytes
    else:
        batch = max(stream_rows // block, 1) * block
        decoding = shape.columns * (_DECODER + 2 * shape.page_bytes)
        scalar_bytes = shape.row_bytes - shape.vector_bytes
        decoding += _STREAM_COPIES * stream_rows * scalar_bytes + _STREAM
        decoding += _vector_buffers(shape, decoded) + decoded * shape.vector_bytes
    objects = max(shape.columns, shape.normalized) * _COLUMN_OBJECTS
    worker = min(_WORKER, MIB + _TILE_COPIES * min(slab, rows) * shape.normalized)
    slabs_per_part = ceil(min(part, rows) / slab)
    held = _held_rows(shape, max(min(batch, rows), slab), decoded, in_flight)
    most = int((rows + decoded) * shape.row_bytes * _SLACK)
    batches = min(int(held * shape.row_bytes * _SLACK), most)
    bill = (
        ("interpreter and libraries", base + _RUNTIME),
        ("footers", shape.footer_chunks * _FOOTER_CHUNK),
        ("statistics", shape.normalized * 600),
        ("decoding", decoding),
        ("decoded batches", batches + (in_flight + 1) * objects),
        ("normalized columns", threads * (min(slab, rows) * shape.output_bytes + objects)),
        (
            "arithmetic and encoding",
            threads * (slabs_per_part * shape.columns * _FOOTER_CHUNK + worker),
        ),
    )
    room = int(max(limit - sum(size for _, size in bill), 0) * _CACHE_SHARE)
    everything = room >= most - batches
    kept = most - batches if everything else room
    cached = shape.rows * shape.row_bytes if everything else int(room / _SLACK)
    return Plan(
        slab_rows=slab,
        part_rows=part,
        parts=max(1, ceil(shape.rows / part)),
        batch_rows=batch,
        threads=threads,
        in_flight=in_flight,
        reading=reading,
        cached_bytes=cached,
        bill=(*bill, ("decoded batches kept for the second pass", kept)),
        limit=limit,
    )


def _vector_buffers(shape: Shape, rows: int) -> int:
    """Return what PyArrow holds while it decodes vectors, besides the result.

    That is each number as Parquet has it and two levels of 2 bytes, in buffers that grow by
    doubling (measured: 8.1 to 13.6 bytes for a float32, 12.1 to 20.3 for a float64).
    """
    return sum((1 << (rows * size - 1).bit_length()) * (width + 4) for size, width in shape.vectors)


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
