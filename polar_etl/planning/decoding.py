"""What decoding takes of memory, and what it leaves behind. Reads no data."""

from __future__ import annotations

from functools import lru_cache
from math import ceil, gcd

from polar_etl.pages.ahead import MOSTLY
from polar_etl.pages.vectors import AT_A_TIME, USUAL_PAGE
from polar_etl.planning.plan import MIB, Plan
from polar_etl.planning.shapes import TEXT_COPIES, Shape
from polar_etl.sources.by_arrow import columns_at_a_time

_DECODER = 110_000
"""Bytes of buffers and zstd state for one column that PyArrow decodes (measured: 0.1 MB)."""
_CHUNK_COPIES = 3
"""How often PyArrow holds a column chunk that it decodes whole: as read, its pages, its values."""
_STREAM = 24 * MIB
"""What PyArrow takes to read from inside a row group whatever its shape (measured: 10 to 20 MB)."""
_VECTOR = 36 * MIB
"""Levels and bitmaps of a column of vectors, as read and as written (measured: up to 28 MB)."""
_VECTORS_AT_A_TIME, _PAGES = 3, 2
"""How often numbers of vectors that are decompressed at one go are held: as read, decompressed,
transposed; and how many pages beyond them."""
_PAGE_COPIES = 1.5
"""How often PyArrow holds a page while it reads rows from inside it (measured: 1.3)."""
_GROWTH = 0.75
"""How much more text takes while it is decoded, in buffers that grow by doubling."""
_KEPT = 1.15
"""What the allocator needs more for what is left of pages, each in a piece of its own (measured: up
to 1.08)."""
_HELD, _HELD_AS_ONE = 1.4, 2.0
"""The same for rows that are decoded ahead: they come and go in pieces of many sizes, and those of
a page file go together, when others come already (measured: up to 1.9)."""
_PAGE_OBJECTS = 1_300
"""Bytes of Python objects for a page of which rows are left over (measured)."""
_WORD_COPIES = 2
"""How often words are held while they are decoded."""
_DICTIONARIES = 3
"""How often the words of a row group are held: for lookup, with its rows, and those of the last."""
SLACK = 1.1
"""What the allocator needs more than what is asked of it (measured: up to 1.06)."""


def held_ahead(shape: Shape, plan: Plan) -> float:
    """Return the rows that the second pass holds decoded ahead, of all columns alike.

    What slabs abreast need is held of those columns only that are worked on.
    """
    rows, group = max(shape.rows, 1), shape.even_group
    if group and not plan.slab_rows % group:
        return 0
    more = min((plan.abreast - 1) * plan.slab_rows, shape.largest_group)
    in_work = min(plan.threads / plan.shares, 1) if plan.parts_at_a_time > 1 else 1
    return min(more, max(rows - plan.slab_rows, 0)) * in_work + plan.rest


def decoding_bytes(shape: Shape, plan: Plan, window: int, ahead: float) -> int:
    """Return what decoding takes, and what it leaves behind the present rows.

    Args:
        shape: What is decoded.
        plan: How.
        window: Rows that are decoded at a time in this pass.
        ahead: Rows of each column that are held decoded ahead of those that come next.
    """
    if shape.vectors and shape.whole_vectors:
        return decoding_bytes(shape.without_vectors(), plan, window, ahead) + sum(
            int(SLACK * min(window, max(shape.rows, 1)) * size * width)
            + _VECTORS_AT_A_TIME * AT_A_TIME * width
            + _PAGES * USUAL_PAGE
            for size, width in shape.vectors
        )
    rows, reading = max(shape.rows, 1), plan.reading
    plain = shape.columns - shape.arrow_columns
    behind = max(_behind_batch(shape, plan), _left_behind(shape, plan.slab_rows))
    pages = int(min(plain * shape.page_bytes, behind * shape.row_bytes) * _KEPT)
    kept = pages * reading.keep_pages
    kept += held_bytes(shape, ahead)
    found = min(kept, shape.rows * shape.row_bytes)
    found += _PAGE_OBJECTS * plain * bool(kept)
    if not shape.arrow_columns:
        return found
    group_rows, stream_rows = reading.group_rows, reading.stream_rows
    decoded = min(group_rows or stream_rows, shape.largest_group, rows)
    if group_rows:
        many = min(columns_at_a_time(decoded), shape.arrow_columns)
        value = 8 if shape.arrow_columns > shape.word_columns else 4
        at_once = min(plan.threads * many, shape.arrow_columns)  # each by one thread
        found += at_once * (_DECODER + _CHUNK_COPIES * value * decoded)
        largest = shape.word_bytes / max(min(shape.word_columns // many, plan.threads), 1)
        found += int(_CHUNK_COPIES * decoded * largest + _GROWTH * shape.text_in(decoded))
    else:
        page = shape.page_bytes + shape.lookup_bytes
        found += shape.arrow_columns * (_DECODER + int(_PAGE_COPIES * page))
        here = decoded * (shape.stream_bytes + _WORD_COPIES * shape.word_bytes)
        here += TEXT_COPIES * shape.text_in(decoded)
        found += here + min(_STREAM, shape.rows * shape.row_bytes)
    table, group = min(group_rows or stream_rows, rows), shape.even_group
    aligned = group >= rows or bool(group and group % table == 0)
    held = min(_alive(table, window, aligned=aligned), rows)
    others = shape.arrow_bytes - shape.text_bytes + shape.vector_bytes + shape.held_word_bytes
    found += int((held * others + shape.text_in(held)) * SLACK)
    found += _DICTIONARIES * shape.dictionary_bytes
    return found + _vector_buffers(shape, decoded)


def held_bytes(shape: Shape, rows: float) -> int:
    """Return the bytes of so many rows that are held decoded ahead."""
    row = shape.row_bytes - shape.vector_bytes * shape.whole_vectors
    return int(rows * row * (_HELD_AS_ONE if shape.has_page_files else _HELD))


def _behind_batch(shape: Shape, plan: Plan) -> int:
    """Return the rows of a row group that may be left of a page behind a batch, at most."""
    if plan.batch_rest and shape.largest_group <= plan.batch_rows:
        return 0
    return _left_behind(shape, plan.batch_rows)


def rest_behind(shape: Shape, step: int) -> int:
    """Return the rows of a row group behind the last of so many rows that it fills, at most.

    Args:
        shape: What is read.
        step: Rows of a block, or a slab.
    """
    apart = gcd(shape.even_group, step) if shape.even_group else 1
    return max(min(step, shape.largest_group) - apart, 0)


def _left_behind(shape: Shape, window: int) -> int:
    """Return the rows of a row group that may be held for those that read on, at most.

    Args:
        shape: What is read.
        window: Rows that are read at a time, from the start of a row group on.
    """
    behind = max(shape.rows - window, 0)
    if not shape.even_group:
        return behind
    return min(behind, int(MOSTLY * _rest(shape.even_group, window, ceil(shape.rows / window))))


@lru_cache
def _rest(group: int, window: int, windows: int) -> int:
    """Return how many rows are left of a row group behind the first of so many windows, at most.

    Example:
        >>> _rest(1000, 700, 3), _rest(1000, 500, 3), _rest(1000, 700, 1000)
        (600, 500, 900)
    """
    if windows > group // gcd(group, window):
        return group - gcd(group, window)
    return max((-place * window % group for place in range(1, windows)), default=0)


def _alive(decoded: int, window: int, *, aligned: bool) -> int:
    """Return the rows of all tables that a window reaches into: of each all rows are held.

    Args:
        decoded: Rows of a table.
        window: Rows of a window.
        aligned: Whether tables begin at multiples of their rows.

    Example:
        >>> _alive(1000, 300, aligned=True), _alive(1000, 500, aligned=True)
        (2000, 1000)
        >>> _alive(1000, 1001, aligned=True), _alive(1000, 1000, aligned=False)
        (2000, 2000)
    """
    if aligned and not (window % decoded and decoded % window):
        return max(decoded, window)
    return (ceil((window - 1) / decoded) + 1) * decoded


def _vector_buffers(shape: Shape, rows: int) -> int:
    """Return what PyArrow holds while it decodes vectors, besides the result.

    That is each number as Parquet has it and two levels of 2 bytes, in buffers that grow by
    doubling (measured: 8.1 to 13.6 bytes for a float32, 12.1 to 20.3 for a float64).
    """
    return sum(
        min(_VECTOR, shape.rows * size * (width + 4))
        + (1 << (rows * size - 1).bit_length()) * (width + 4)
        for size, width in shape.vectors
    )
