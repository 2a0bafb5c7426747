"""A plan, and what it takes of memory line by line: arithmetic on shapes. Reads no data."""

from __future__ import annotations

from functools import lru_cache
from math import ceil, gcd
from typing import NamedTuple

from polar_etl.encoding.words import LETTERS, words_kept
from polar_etl.pages.readers import MOSTLY
from polar_etl.sources.base import Reading
from polar_etl.sources.decoding import columns_at_a_time
from polar_etl.sources.texts import text_in
from polar_etl.statistics.blocks import block_rows
from polar_etl.storage.direct import staged_bytes

MIB = 1 << 20
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
_LAYOUT_CHUNK = 100
"""Bytes that are kept of a column chunk that holds plain numbers."""
_OUTPUT_CHUNK = 500
"""Bytes that describe a column chunk of the output until its part is finished (measured: 400)."""
_DECODER = 110_000
"""Bytes of buffers and zstd state for one column that PyArrow decodes (measured: 0.1 MB)."""
_CHUNK_COPIES = 3
"""How often PyArrow holds a column chunk that it decodes whole: as read, its pages, its values."""
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
_STREAM = 24 * MIB
"""What PyArrow takes to read from inside a row group whatever its shape (measured: 10 to 20 MB)."""
_VECTOR = 36 * MIB
"""Levels and bitmaps of a column of vectors, as read and as written (measured: up to 28 MB)."""
_PAGE_COPIES = 1.5
"""How often PyArrow holds a page while it reads rows from inside it (measured: 1.3)."""
_PASSED_COPIES = 3
"""How often columns that PyArrow encodes are held meanwhile: as decoded, joined, and encoded."""
_GROWTH = 0.75
"""How much more text takes while it is decoded, in buffers that grow by doubling."""
_LONG_PAGE = 5
"""How often more a page of text is held, read and written, in buffers that grow by doubling."""
_KEPT = 1.15
"""What the allocator needs more for what is left of pages, each in a piece of its own (measured: up
to 1.08)."""
_KEPT_PIECE = 400
"""Bytes of Python objects for the rows of a batch of a column that is kept."""
_HELD, _HELD_AS_ONE = 1.4, 2.0
"""The same for rows that are decoded ahead: they come and go in pieces of many sizes, and those of
a page file go together, when others come already (measured: up to 1.9)."""
_PAGE_OBJECTS = 1_300
"""Bytes of Python objects for a page of which rows are left over (measured)."""
TEXT_COPIES = 8
"""How often text is held that is decoded from inside a row group (measured: 7)."""
_WORD_COPIES = 2
"""How often words are held while they are decoded."""
_COMPUTE = 16 * MIB
"""PyArrow's functions, which are loaded when words are looked for in text."""
_DICTIONARIES = 3
"""How often the words of a row group are held: for lookup, with its rows, and those of the last."""
_WORD_PLACE = 16
"""Bytes of the place of a word: as read, by order of appearance, where that is first, written."""
_SHORT_TEXT = 32
"""Bytes that a text is taken to have, where a dictionary does not tell."""
MANY_VALUES = 1 << 20
"""Values worked on at a time where memory is not scarce."""
_SLACK = 1.1
"""What the allocator needs more than what is asked of it (measured: up to 1.06)."""
_LINGERING = 0.15
"""Share of freed memory that is not yet given back (measured: up to 0.12). What was held behind
batches lies scattered, and is of no use to the second pass (measured: 12 MB, billed as 8)."""
_UNEVEN = 1.06
"""How much larger than the others a share may be, besides the column that it ends with."""


class Shape(NamedTuple):
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
    """Features: columns that are normalized, and dimensions of vectors that are."""
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
    lookup_bytes: int = 0
    """Bytes of the largest dictionary that numbers are looked up in."""
    nulls: bool = False
    """Whether there are nulls between plain numbers."""
    number_dictionaries: int = 0
    """Bytes of all dictionaries of numbers in a row group, those aside that PyArrow decodes."""
    arrow_columns: int = 0
    """Leaf columns that PyArrow decodes."""
    arrow_bytes: int = 0
    """Decoded bytes of these of a row, vectors aside."""
    stream_bytes: int = 0
    """Bytes that decoding them takes for each row read at a time from inside a row group, vectors
    aside."""
    passed_bytes: int = 0
    """Bytes of a row of the output that PyArrow encodes, vectors aside."""
    normalized_arrow: int = 0
    """Columns that PyArrow decodes and that are normalized."""
    word_columns: int = 0
    """Columns of text that are decoded as words and their places; not counted above."""
    word_bytes: int = 0
    """Bytes of a row of these, not compressed, in the row group where they are most."""
    dictionary_bytes: int = 0
    """Bytes of their words in a row group, which are held together."""
    vectors: tuple[tuple[int, int], ...] = ()
    """Of each column of vectors: numbers in a row, and bytes of a number in Parquet."""
    vector_bytes: int = 0
    """Decoded bytes of the vectors of a row."""
    vector_output_bytes: int = 0
    """Bytes of the vectors of a row of the output."""
    text_bytes: int = 0
    """Bytes of text of a row that PyArrow decodes as it stands; counted above, too."""
    text_windows: tuple[int, ...] = ()
    """Bytes of it in neighbouring rows, see `SourceFile`."""
    text_page: int = 0
    """Bytes of the longest page of it."""
    kept_columns: int = 0
    """Columns of numbers that the second pass needs as the first one decodes them."""
    kept_bytes: int = 0
    """Decoded bytes of these of a row."""

    @property
    def held_word_bytes(self) -> int:
        """Bytes of a row of columns of text, decoded."""
        return self.word_bytes + 5 * self.word_columns

    @property
    def has_page_files(self) -> bool:
        """Whether pages are files of their own, for PyArrow."""
        return self.nulls or self.number_dictionaries > 0

    @property
    def own_lookup_bytes(self) -> int:
        """Bytes of the largest dictionary of numbers that PyArrow does not decode."""
        return self.lookup_bytes if self.number_dictionaries else 0

    def text_in(self, rows: int) -> int:
        """Return the bytes of text in so many neighbouring rows, at most."""
        return text_in(self.text_windows, rows) if self.text_windows else rows * self.text_bytes

    def first_pass(self) -> Shape:
        """Return what there is of it in the first pass, which reads what is normalized."""
        return self._replace(
            arrow_columns=self.normalized_arrow,
            columns=self.columns - self.arrow_columns + self.normalized_arrow,
            arrow_bytes=self.arrow_bytes - self.text_bytes if self.normalized_arrow else 0,
            stream_bytes=self.stream_bytes if self.normalized_arrow else 0,
            passed_bytes=0,
            word_columns=0,
            word_bytes=0,
            dictionary_bytes=0,
            vector_output_bytes=0,
            text_bytes=0,
            text_windows=(),
            text_page=0,
        )


class Together(NamedTuple):
    """How much is worked on at a time, at most; one column at least."""

    values: int
    columns: int = 1 << 30
    """So few are decoded at a time: each may take much memory however few rows are asked for."""


Bill = tuple[tuple[str, int], ...]
"""What for, and how many bytes."""


class Plan(NamedTuple):
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
    """Rows of a batch of the first pass, at most: whole blocks."""
    batch_rest: int
    """Rows left of a row group behind a batch that are decoded with it and held for the next one,
    at most; where more are left, they are decoded again."""
    threads: int
    """Threads that decode and work on columns, in all processes."""
    processes: int
    """Processes that have one such thread each; 1 if all are of this one."""
    shares: int
    """Runs of columns that batches and slabs are cut into, for the threads."""
    ahead: int
    """Batches of the first pass in flight."""
    in_flight: int
    """Shares of slabs in flight: they are encoded, or wait to be written."""
    abreast: int
    """Slabs, at most, whose shares are encoded before the next share is begun. What is not kept of
    a page or a dictionary is decoded once for all of them."""
    rest: int
    """Rows left of a row group behind slabs abreast that are held for the next ones, as of a
    batch."""
    together: Together
    """What a thread works on at a time."""
    reading: Reading
    bill: Bill
    """What the projected peak consists of."""
    limit: int
    keeps: bool = False
    """Whether the first pass keeps the numbers that it decodes for the second one."""

    @property
    def projected(self) -> int:
        """Bytes that the process is expected to need at most."""
        return sum(size for _, size in self.bill)

    @property
    def parts_at_a_time(self) -> int:
        """Parts that are written side by side: slabs that go abreast, if each is a whole part.

        Those of one part must be written one after the other.
        """
        return min(self.abreast, self.parts) if self.part_rows <= self.slab_rows else 1


def bill_of(shape: Shape, plan: Plan, base: int) -> Bill:
    """Return what the projected peak of a run consists of.

    Args:
        shape: What is processed.
        plan: How; its own bill is not looked at.
        base: Bytes that the process uses already.
    """
    rows = max(shape.rows, 1)
    slab, batch = min(plan.slab_rows, rows), min(max(plan.batch_rows, plan.slab_rows), rows)
    first = shape.first_pass()
    objects = max(shape.columns, shape.normalized) * _COLUMN_OBJECTS
    statistics = objects + shape.normalized * _STATISTICS
    held = statistics + plan.ahead * moments_bytes(shape, plan.batch_rows)
    more = (plan.abreast - 1) * plan.slab_rows + plan.rest
    passes = (
        _Worked(
            held,
            _decoding(first, plan, plan.batch_rows, plan.batch_rest),
            _working(first, plan, batch, plan.batch_rest),
        ),
        _Worked(
            held,
            _decoding(shape, plan, plan.slab_rows, _held_ahead(shape, plan)),
            _working(shape, plan, slab, more),
            _encoded(shape, plan, slab),
        ),
    )
    worked = max(passes, key=sum)
    at_a_time = plan.parts_at_a_time
    staged = staged_bytes(at_a_time)
    side_by_side = max(staged - staged_bytes(1), 0)  # the runtime has what one part takes
    needed = sum(worked) + side_by_side
    lingering = int(_LINGERING * needed) + _held(first, plan.batch_rest)
    footers = shape.footer_chunks * (_FOOTER_CHUNK if shape.arrow_columns else _LAYOUT_CHUNK)
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


def _held_ahead(shape: Shape, plan: Plan) -> float:
    """Return the rows that the second pass holds decoded ahead, of all columns alike.

    What slabs abreast need is held of those columns only that are worked on.
    """
    rows, group = max(shape.rows, 1), shape.even_group
    if group and not plan.slab_rows % group:
        return 0
    more = min((plan.abreast - 1) * plan.slab_rows, shape.largest_group)
    in_work = min(plan.threads / plan.shares, 1) if plan.parts_at_a_time > 1 else 1
    return min(more, max(rows - plan.slab_rows, 0)) * in_work + plan.rest


def _decoding(shape: Shape, plan: Plan, window: int, ahead: float) -> int:
    """Return what decoding takes, and what it leaves behind the present rows.

    Args:
        shape: What is decoded.
        plan: How.
        window: Rows that are decoded at a time in this pass.
        ahead: Rows of each column that are held decoded ahead of those that come next.
    """
    rows, reading = max(shape.rows, 1), plan.reading
    plain = shape.columns - shape.arrow_columns
    behind = max(_behind_batch(shape, plan), _left_behind(shape, plan.slab_rows))
    pages = int(min(plain * shape.page_bytes, behind * shape.row_bytes) * _KEPT)
    kept = pages * reading.keep_pages
    kept += _held(shape, ahead)
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
    found += int((held * others + shape.text_in(held)) * _SLACK)
    found += _DICTIONARIES * shape.dictionary_bytes
    return found + _vector_buffers(shape, decoded)


def _held(shape: Shape, rows: float) -> int:
    """Return the bytes of so many rows that are held decoded ahead."""
    return int(rows * shape.row_bytes * (_HELD_AS_ONE if shape.has_page_files else _HELD))


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


def _working(shape: Shape, plan: Plan, slab: int, more: int) -> int:
    """Return what the threads need to get from decoded columns to the bytes of the output.

    Args:
        shape: What is worked on.
        plan: How.
        slab: Rows that are worked on at a time.
        more: Rows that are decoded at one go with them.
    """
    together = plan.together
    width = min(max(ceil(shape.normalized_bytes / max(shape.normalized, 1)), 4), 8)
    scalars = max(shape.normalized - sum(size for size, _ in shape.vectors), 0)
    many = min(max(together.values // slab, 1), scalars)
    decoded = min(plan.threads * min(many, together.columns), scalars)  # each by one thread
    ahead = min(slab + more, max(shape.rows, slab))
    columns = decoded * max(ahead * width, shape.page_bytes)
    columns += (min(plan.threads * many, scalars) - decoded) * slab * width
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
    worker = _WORKER if together.values >= MANY_VALUES else _SMALL_WORKER
    return plan.threads * worker + copies * columns + filed + int(passed * _SLACK)


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
    large = min(shape.vector_output_bytes + shape.word_bytes + shape.text_bytes, row)
    uneven = _UNEVEN / shares + 1 / shape.columns
    even = in_flight * (row - large) * min(uneven * _SLACK, 1)
    waiting = slab * (even + (1 + in_flight / min(shares, shape.columns)) * large * _SLACK)
    return int(min(waiting, max(shape.rows, 1) * row * _SLACK))


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
