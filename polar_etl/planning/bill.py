"""What a plan takes of memory, line by line: arithmetic on shapes. Reads no data."""

from __future__ import annotations

from math import ceil
from typing import NamedTuple

from polar_etl.encoding.words import LETTERS, words_kept
from polar_etl.planning.decoding import SLACK, decoding_bytes, held_ahead, held_bytes
from polar_etl.planning.plan import MANY_VALUES, MIB, Bill, Plan, Together
from polar_etl.planning.shapes import Shape
from polar_etl.sources.base import HELD_CHUNK
from polar_etl.statistics.blocks import block_rows
from polar_etl.storage.direct import staged_bytes

_FOOTER_CHUNK = 1300
"""Bytes that PyArrow keeps for one column chunk of a footer (measured: 1.2 kB)."""
_OPENING_CHUNK, _OPENING_CHUNK_ALONE = 1500, 200
"""Bytes that it takes per column chunk to look at a footer, before anything else, and without
PyArrow (measured: 1.3 kB and 130)."""
_OPENING_COLUMN = 3_000
"""The same per column (measured: 2.9 kB)."""
_SCHEMA_COLUMN = 700
"""The same for one column of a file's schema, for each share of whose columns PyArrow decodes some
(measured: 650)."""
_COLUMN_OF_ANOTHER = 400
"""Bytes that each column takes in each file of a slab but the first, besides where its chunks
stand (measured, with what is left between what was freed: 280)."""
_OUTPUT_CHUNK = 500
"""Bytes that describe a column chunk of the output until its part is finished (measured: 400)."""
_RUNTIME = 24 * MIB
"""Thread stacks, code loaded late, SQLite, what is staged for the disk as a rule, and what the
allocators keep back."""
_COLUMN_OBJECTS = 2_000
"""Bytes of Python objects for one column: its reader, its pieces, its statistics (measured: up to
1.8 kB)."""
_LOOKED_UP = 4
"""How often a dictionary is held while each thread decodes one column after the other: as it stands
in the file, in a file of its own, decompressed, and decoded."""
_WORKER = 8 * MIB
"""Tiles and the compressor of one thread."""
_SMALL_WORKER = 20 * MIB
"""The same where few values are worked on at a time: what lingers does not get smaller."""
_FORKED = 24 * MIB
"""Bytes of the interpreter and its libraries that a forked process never touches (measured)."""
_PAGE_FILES = 14 * MIB
"""What a process takes to have pages decoded by PyArrow: its code, and what its allocator keeps
(measured)."""
_GROUP_COPIES = 4
"""How often the columns that are worked on together are held: as they stand in the file,
decompressed, as pages, and compressed."""
_ARROW_COPIES = 3
"""The same where PyArrow decodes all columns, numbers only: the first two are its own."""
_STATISTICS = 1500
"""Bytes of what a scaler, its file, and the manifest hold of one feature."""
_MOMENTS = 96
"""Bytes of one column's moments."""
_PASSED_COPIES = 3
"""How often columns that PyArrow encodes are held meanwhile: as decoded, joined, and encoded."""
_LONG_PAGE = 5
"""How often more a page of text is held, read and written, in buffers that grow by doubling."""
_KEPT_PIECE = 400
"""Bytes of Python objects for the rows of a batch of a column that is kept."""
_COMPUTE = 16 * MIB
"""PyArrow's functions, which are loaded when words are looked for in text."""
_WORD_PLACE = 16
"""Bytes of the place of a word: as read, by order of appearance, where that is first, written."""
_SHORT_TEXT = 32
"""Bytes that a text is taken to have, where a dictionary does not tell."""
_LINGERING = 0.15
"""Share of freed memory that is not yet given back (measured: up to 0.12). What was held behind
batches lies scattered, and is of no use to the second pass (measured: 12 MB, billed as 8)."""
_UNEVEN = 1.06
"""How much larger than the others a share may be, besides the column that it ends with."""


def bill_of(shape: Shape, plan: Plan, base: int) -> Bill:
    """Return what the projected peak of a run consists of.

    Args:
        shape: What is processed.
        plan: How; its own bill is not looked at.
        base: Bytes that the process uses already.
    """
    rows = max(shape.rows, 1)
    slab, batch = min(plan.slab_rows, rows), min(max(plan.batch_rows, plan.slab_rows), rows)
    first, lanes = shape.first_pass(), plan.threads if plan.deals_slabs else 1
    objects = max(shape.columns, shape.normalized) * _COLUMN_OBJECTS
    objects *= plan.threads // plan.processes if plan.deals_rows else 1
    statistics = objects + shape.normalized * _STATISTICS
    held = statistics + plan.ahead * moments_bytes(shape, plan.batch_rows)
    more = (plan.abreast - 1) * plan.slab_rows + plan.rest
    passes = (
        _Worked(
            held,
            lanes * decoding_bytes(first, plan, plan.batch_rows, plan.batch_rest),
            _working(first, plan, plan.batch_together, batch, plan.batch_rest),
        ),
        _Worked(
            held,
            lanes * decoding_bytes(shape, plan, plan.slab_rows, held_ahead(shape, plan)),
            _working(shape, plan, plan.together, slab, more),
            _encoded(shape, plan, slab),
        ),
    )
    worked = max(passes, key=sum)
    at_a_time = plan.parts_at_a_time
    staged = staged_bytes(at_a_time)
    side_by_side = max(staged - staged_bytes(1), 0)  # the runtime has what one part takes
    needed = sum(worked) + side_by_side
    lingering = int(_LINGERING * needed) + held_bytes(first, plan.batch_rest)
    footers = max(shape.held_chunks, shape.files_in_slab * shape.footer_chunks) * HELD_CHUNK
    footers += max(shape.files_in_slab - 1, 0) * shape.columns * _COLUMN_OF_ANOTHER
    footers += shape.footer_chunks * (_FOOTER_CHUNK - HELD_CHUNK) * bool(shape.arrow_columns)
    by_arrow = _PAGE_FILES * shape.has_page_files
    forked = base - _FORKED + footers + statistics + staged  # which counts wherever it is seen
    described = at_a_time * ceil(min(plan.part_rows, rows) / plan.slab_rows)
    footers += described * shape.columns * _OUTPUT_CHUNK
    footers += min(plan.shares, shape.arrow_columns) * shape.columns * _SCHEMA_COLUMN
    opened = shape.footer_chunks * (_OPENING_CHUNK if shape.arrow_columns else _OPENING_CHUNK_ALONE)
    compute = _COMPUTE * bool(shape.text_bytes)
    opening = opened + shape.columns * _OPENING_COLUMN - needed - lingering
    return (
        ("interpreter and libraries", base + _RUNTIME + by_arrow + compute),
        ("forked processes", (plan.processes - 1) * (forked + by_arrow)),
        ("footers", max(footers, opening)),
        ("statistics", worked.statistics),
        ("decoding", worked.decoding),
        ("arithmetic and encoding", worked.working),
        ("encoded columns", worked.encoded),
        ("parts side by side", side_by_side),
        ("freed and not yet given back", lingering),
    )


def least_of(plan: Plan, base: int) -> int:
    """Return what the projected peak of a run is at least, whatever is processed.

    Most plans for many threads are too large by that alone, which takes no time to see.
    """
    workers = plan.threads * _worker_bytes(plan.together)
    return base + _RUNTIME + (plan.processes - 1) * (base - _FORKED) + workers


def _worker_bytes(together: Together) -> int:
    return _WORKER if together.values >= MANY_VALUES else _SMALL_WORKER


def moments_bytes(shape: Shape, batch: int) -> int:
    """Return the bytes of the moments of a batch of so many rows."""
    block = block_rows(shape.normalized)
    return ceil(min(batch, max(shape.rows, 1)) / block) * shape.normalized * _MOMENTS


def kept_bytes(shape: Shape, plan: Plan) -> int:
    """Return the bytes of all numbers that the second pass needs, as the first one keeps them."""
    shortest = max(plan.batch_rows // 2, min(plan.batch_rows, block_rows(shape.normalized)))
    pieces = ceil(shape.rows / shortest) + shape.files
    nulls = shape.kept_columns / 8
    size = shape.rows * (shape.kept_bytes + nulls) + pieces * shape.kept_columns * _KEPT_PIECE
    return int(size)


class _Worked(NamedTuple):
    """What a pass needs for its work."""

    statistics: int
    decoding: int
    working: int
    encoded: int = 0


def _working(shape: Shape, plan: Plan, together: Together, slab: int, more: int) -> int:
    """Return what the threads need to get from decoded columns to the bytes of the output.

    Args:
        shape: What is worked on.
        plan: How.
        together: How much is worked on at a time.
        slab: Rows that are.
        more: Rows that are decoded at one go with them.
    """
    width = shape.number_bytes
    scalars = max(shape.normalized - sum(size for size, _ in shape.vectors), 0)
    many = min(max(together.values // slab, 1), scalars)
    decoded = min(plan.threads * min(many, together.columns), scalars)  # each by one thread
    ahead = min(slab + more, max(shape.rows, slab))
    columns = decoded * max(ahead * width, shape.page_bytes)
    columns += (min(plan.threads * many, scalars) - decoded) * slab * width
    gathered = min(plan.threads * together.gathered, scalars) * slab * width
    filed = 0
    if shape.has_page_files:
        filed = plan.threads * (_LOOKED_UP * shape.own_lookup_bytes + ahead * width)
    others = max(shape.passed_bytes - shape.text_bytes, 0)
    passed = slab * (others * _PASSED_COPIES + shape.vector_output_bytes)
    passed += _passed_text(shape, plan, slab) + shape.text_page * _LONG_PAGE
    passed += min(plan.threads, shape.word_columns) * _passed_words(shape, slab)
    passed += slab * shape.word_bytes * (slab * (shape.word_bytes + _SHORT_TEXT) > LETTERS)
    ours = shape.columns > shape.arrow_columns or shape.text_bytes or shape.word_columns
    copies = _GROUP_COPIES if ours else _ARROW_COPIES
    copies -= bool(shape.number_dictionaries and ours)  # a file has each value once
    copies += shape.nulls and bool(ours)  # values as they stand in the file, and between nulls
    ready = max(gathered - columns, 0)
    passed *= plan.threads if plan.deals_slabs else 1
    return (
        plan.threads * _worker_bytes(together)
        + copies * columns
        + ready
        + filed
        + int(passed * SLACK)
    )


def _passed_words(shape: Shape, slab: int) -> int:
    """Return what a column of text that comes as words takes until it is encoded.

    It is put together from words only where these are many: a few of their letters make most of it.
    """
    letters = min(slab * (shape.word_bytes + _SHORT_TEXT), LETTERS)
    if shape.even_group:
        groups = min(slab // shape.even_group + 2, ceil(shape.rows / shape.even_group))
        words = shape.dictionary_bytes * groups
        if words <= words_kept(0):
            letters = min(letters, 2 * words)
    return _PASSED_COPIES * letters + _WORD_PLACE * slab


def _passed_text(shape: Shape, plan: Plan, slab: int) -> int:
    """Return what text that is decoded as it stands takes besides, until it is encoded.

    A long one is cut into pieces, of which only those are copied that reach into two tables.
    """
    text, at_once = shape.text_in(slab), min(plan.threads, max(shape.arrow_columns, 1))
    short = at_once * LETTERS
    if text <= short:
        return _PASSED_COPIES * text
    table = min(plan.reading.group_rows or plan.reading.stream_rows, shape.even_group)
    joined = min(ceil(slab / table) * short, text) if table else text
    return joined + _PASSED_COPIES * (short + at_once * words_kept(text))


def _encoded(shape: Shape, plan: Plan, slab: int) -> int:
    """Return the bytes of encoded columns that wait to be written.

    Columns of vectors and of text may be far larger than the others, and can't be cut into shares.
    """
    shares, in_flight = plan.shares, plan.in_flight
    row = max(shape.output_bytes, shape.row_bytes)
    if plan.deals_slabs:
        return int(in_flight * slab * row * SLACK)
    large = min(shape.vector_output_bytes + shape.word_bytes + shape.text_bytes, row)
    uneven = _UNEVEN / shares + 1 / shape.columns
    even = in_flight * (row - large) * min(uneven * SLACK, 1)
    waiting = slab * (even + (1 + in_flight / min(shares, shape.columns)) * large * SLACK)
    return int(min(waiting, max(shape.rows, 1) * row * SLACK))
