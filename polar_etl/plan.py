"""Arithmetic that turns shapes and a memory limit into a plan. Reads no data."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from math import ceil, sqrt
from typing import NamedTuple

from polar_etl.blocks import block_rows
from polar_etl.errors import MemoryLimitError
from polar_etl.memory import format_size
from polar_etl.sources.base import Reading
from polar_etl.sources.decoding import columns_at_a_time
from polar_etl.sources.texts import text_in

MIB = 1 << 20
_FOOTER_CHUNK = 1300
"""Bytes that PyArrow keeps for one column chunk of a footer (measured: 1.2 kB)."""
_OPENING_CHUNK = 1500
"""Bytes that it takes per column chunk to look at a footer, before anything else (measured)."""
_LAYOUT_CHUNK = 100
"""Bytes that are kept of a column chunk that holds plain numbers."""
_OUTPUT_CHUNK = 500
"""Bytes that describe a column chunk of the output until its part is finished (measured: 400)."""
_DECODER = 110_000
"""Bytes of buffers and zstd state for one column that PyArrow decodes (measured: 0.1 MB)."""
_CHUNK_COPIES = 3
"""How often PyArrow holds a column chunk that it decodes whole: as read, its pages, its values."""
_RUNTIME = 24 * MIB
"""Thread stacks, code loaded late, SQLite, and what the allocators keep back."""
_COLUMN_OBJECTS = 4_000
"""Bytes of Python objects for one column: its reader, its pieces, its statistics."""
_PLACE = 8
"""Bytes of a place in a dictionary: as stored, and unpacked."""
_LOOKED_UP = 3
"""How often a dictionary is held while it is decoded: as it stands in the file, decompressed, and
by itself."""
_WORKER = 8 * MIB
"""Tiles and the compressor of one thread."""
_SMALL_WORKER = 20 * MIB
"""The same where few values are worked on at a time: what lingers does not get smaller."""
_FORKED = 24 * MIB
"""Bytes of the interpreter and its libraries that a forked process never touches (measured)."""
_WORTH_FORKING = 128 * MIB
"""Decoded bytes of a table from which processes save more time than forking them takes."""
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
_VECTOR = 24 * MIB
"""Levels and bitmaps of a column of vectors, as read and as written (measured: up to 16 MB)."""
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
_PAGE_OBJECTS = 1_300
"""Bytes of Python objects for a page of which rows are left over (measured)."""
TEXT_COPIES = 8
"""How often text is held that is decoded from inside a row group (measured: 7)."""
_WORD_COPIES = 2
"""How often words are held while they are decoded."""
_COMPUTE = 16 * MIB
"""PyArrow's functions, which are loaded when text is put together from words."""
_DICTIONARIES = 3
"""How often the words of a row group are held: for lookup, with its rows, and those of the last."""
_STREAMED = 1 << 21
"""Bytes of words decoded at a time, at least, however scarce memory is."""
_SHORT_TEXT = 32
"""Bytes that a text is taken to have, where a dictionary does not tell."""
LETTERS = 1 << 23
"""Bytes of text that are held as plain text at a time."""
_WORDS, _REPEATED = 1 << 20, 16
"""A column chunk gets a dictionary if its words have at most so many bytes, as with PyArrow, or the
bytes of its text by so many."""
_SLACK = 1.1
"""What the allocator needs more than what is asked of it (measured: up to 1.06)."""
_LINGERING = 0.15
"""Share of freed memory that is not yet given back (measured: up to 0.12)."""
_SHARE_BYTES = 16 * MIB
"""Bytes of a slab's share, at most: as much waits to be written for each task in flight."""
_SHARES = 3
"""Shares of a slab for each thread, at least: of two, a fifth more memory waits to be written, and
four take more time (measured)."""
_ARROW_SHARE = 16
"""Columns that PyArrow decodes are not worth a share of their own if they are fewer."""
_UNEVEN = 1.06
"""How much larger than the others a share may be, besides the column that it ends with."""
_TOGETHER = ((1.0, 1 << 20), (1.06, 1 << 18))
"""Time taken, and values worked on at a time, from bytes to bytes: each call into another language
waits for the interpreter, and the processor's caches are only so large (measured: 2^17 and 2^22 are
slower)."""
_PAGE_BYTES_TOGETHER = 8
"""Bytes for each of these values of pages, or dictionaries, that are decompressed at one go."""
_AHEAD = 16
"""Batches of the first pass in flight, at most: so many that tasks go on while the manifest waits
for the disk. Until its turn comes nothing of a batch is decoded."""
_MOMENTS_AHEAD = 16 * MIB


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

    @property
    def held_word_bytes(self) -> int:
        """Bytes of a row of columns of text, decoded."""
        return self.word_bytes + 5 * self.word_columns

    @property
    def own_lookup_bytes(self) -> int:
        """Bytes of the largest dictionary of numbers that PyArrow does not decode."""
        return self.lookup_bytes if self.number_dictionaries else 0

    def text_in(self, rows: int) -> int:
        """Return the bytes of text in so many neighbouring rows, at most."""
        return text_in(self.text_windows, rows) if self.text_windows else rows * self.text_bytes

    def first_pass(self) -> Shape:
        """Return what there is of it in the first pass, which reads what is normalized."""
        return replace(
            self,
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


def words_kept(letters: int) -> int:
    """Return how many bytes the words of a text may have that gets a dictionary."""
    return max(_WORDS, letters // _REPEATED)


class Together(NamedTuple):
    """How much is worked on at a time, at most; one column at least."""

    values: int
    columns: int = 1 << 30
    """So few where each takes much memory however few rows are asked for."""


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
    """Threads that decode and work on columns, in all processes."""
    processes: int
    """Processes that have one such thread each; 1 if all are of this one."""
    shares: int
    """Runs of columns that batches and slabs are cut into, for the threads."""
    ahead: int
    """Batches of the first pass in flight."""
    in_flight: int
    """Shares of slabs in flight: they are encoded, or wait to be written."""
    together: Together
    """What a thread works on at a time."""
    reading: Reading
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
    shape: Shape,
    *,
    limit: int,
    base: int,
    threads: int,
    rows_per_part: int | None,
    processes: bool = False,
) -> Plan:
    """Return the fastest plan whose projected peak stays within `limit`.

    Args:
        shape: What is to be processed.
        limit: Bytes that the process may use.
        base: Bytes that the process uses already.
        threads: Largest number of threads.
        rows_per_part: Rows of a part; None for one output row group per part.
        processes: Whether threads may be those of forked processes.

    Raises:
        MemoryLimitError: No plan fits; says what the smallest one needs, and for what.
    """
    slab = slab_rows(shape.nominal_output_bytes, shape.vector_output_bytes)
    part = rows_per_part or slab
    slab = min(slab, part)
    smallest: Plan | None = None
    forks = processes and shape.rows * shape.row_bytes >= _WORTH_FORKING
    for way in _ways(shape, slab, threads, forks=forks):
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
    processes: int
    in_flight: int
    reading: Reading
    values: int
    """See `Together`."""


def _ways(shape: Shape, slab: int, threads: int, *, forks: bool) -> list[_Way]:
    """Return all ways to go, from fast to small, by the time they take (measured on 2 cores)."""
    ways = [
        (work * read * again * calls, _Way(*how, Reading(group_rows, stream_rows, *keep), values))
        for (work, how), (read, group_rows, stream_rows), (again, keep), (calls, values) in product(
            _shares_of_work(threads, forks=forks),
            _readings(shape, slab),
            _keeping(shape, slab),
            _TOGETHER,
        )
    ]
    return [way for _, way in sorted(ways, key=lambda pair: pair[0])]


def _shares_of_work(threads: int, *, forks: bool) -> Iterator[tuple[float, tuple[int, int, int]]]:
    """Yield the time taken, and (threads, processes, shares of slabs in flight)."""
    workers = threads
    while workers:
        fewer = sqrt(threads / workers)
        for ahead, waiting in ((4, 1.0), (2, 1.02), (1, 1.05), (0, 1.2)):
            yield fewer * waiting, (workers, 1, workers + ahead)
        if forks and workers > 1:
            yield 0.8 * fewer, (workers, workers, 2 * workers)
            yield 0.9 * fewer, (workers, workers, workers)
        workers //= 2


def _keeping(shape: Shape, slab: int) -> list[tuple[float, tuple[bool, bool]]]:
    """Return (time taken, whether pages and dictionaries are kept as long as rows are left)."""
    width = max(shape.row_bytes // max(shape.columns, 1), 1)
    times = ceil(shape.page_bytes / (slab * width))  # that a page is decoded for each pass
    pages = [(1.0, True), (1.3 + 0.2 * times, False)]
    if not shape.number_dictionaries:
        return [(time, (keep, True)) for time, keep in pages]
    larger = shape.number_dictionaries / (slab * max(shape.row_bytes, 1))
    dictionaries = [(1.0, True), (1.1 + 0.05 * larger, False)]
    return [(a * b, (page, words)) for (a, page), (b, words) in product(pages, dictionaries)]


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
    slab_bytes = min(slab, max(shape.rows, 1)) * max(shape.output_bytes, shape.row_bytes)
    shares = max(_SHARES * way.threads if way.threads > 1 else 1, ceil(slab_bytes / _SHARE_BYTES))
    apart = max(shape.columns - shape.arrow_columns, 1) + shape.arrow_columns // _ARROW_SHARE + 1
    shares = max(min(shares, apart, shape.columns), 1)
    if shape.vectors:  # a column of them is one share, whose next slab only one thread can work on
        threads, waiting = min(way.threads, shares), max(2 * shares - 1, 1)
        way = replace(way, threads=threads, in_flight=min(way.in_flight, waiting))
    threads, in_flight = way.threads, way.in_flight
    processes = min(way.processes, threads, shares)
    block = block_rows(shape.normalized)
    rows = max(shape.rows, 1)
    batch = max(min(slab_rows(shape.normalized_bytes), rows) // block, 1) * block
    if not way.reading.keep_dictionaries:  # the more rows, the less often they are decoded
        batch = max(batch, min(shape.largest_group, rows) // block * block)
    moments = ceil(min(batch, rows) / block) * shape.normalized * _MOMENTS
    ahead = max(min(_AHEAD, _MOMENTS_AHEAD // max(moments, 1)), 2)
    longest = max(shape.page_bytes, shape.own_lookup_bytes, 1)
    pages = _PAGE_BYTES_TOGETHER * way.values // longest
    together = Together(way.values, max(pages, 1))
    objects = max(shape.columns, shape.normalized) * _COLUMN_OBJECTS
    slabs_per_part = ceil(min(part, rows) / slab)
    statistics = objects + shape.normalized * _STATISTICS + ahead * moments
    passes = (
        _Worked(
            statistics,
            _decoding(shape.first_pass(), (batch, slab), batch, way),
            _working(shape.first_pass(), min(max(batch, slab), rows), together, way),
        ),
        _Worked(
            statistics,
            _decoding(shape, (batch, slab), slab, way),
            _working(shape, min(slab, rows), together, way),
            _encoded(shape, min(slab, rows), shares, in_flight),
        ),
    )
    worked = max(passes, key=sum)
    needed = sum(worked)
    lingering = int(_LINGERING * needed)
    footers = shape.footer_chunks * (_FOOTER_CHUNK if shape.arrow_columns else _LAYOUT_CHUNK)
    forked = base - _FORKED + footers + objects + shape.normalized * _STATISTICS
    footers += slabs_per_part * shape.columns * _OUTPUT_CHUNK
    opening = shape.footer_chunks * _OPENING_CHUNK - needed - lingering
    libraries = base + _RUNTIME + _COMPUTE * bool(shape.word_columns)
    bill = (
        ("interpreter and libraries", libraries),
        ("forked processes", (processes - 1) * forked),
        ("footers", max(footers, opening)),
        ("statistics", worked.statistics),
        ("decoding", worked.decoding),
        ("arithmetic and encoding", worked.working),
        ("encoded columns", worked.encoded),
        ("freed and not yet given back", lingering),
    )
    return Plan(
        slab_rows=slab,
        part_rows=part,
        parts=max(1, ceil(shape.rows / part)),
        batch_rows=batch,
        threads=threads,
        processes=processes,
        shares=shares,
        ahead=ahead,
        in_flight=in_flight,
        together=together,
        reading=way.reading,
        bill=bill,
        limit=limit,
    )


class _Worked(NamedTuple):
    """What a pass needs for its work."""

    statistics: int
    decoding: int
    working: int
    encoded: int = 0


def _decoding(shape: Shape, windows: tuple[int, int], window: int, way: _Way) -> int:
    """Return what decoding takes, and what it leaves behind the present rows.

    Args:
        shape: What is decoded.
        windows: Rows that are decoded at a time in either pass.
        window: The same in this pass.
        way: How.
    """
    rows = max(shape.rows, 1)
    plain = shape.columns - shape.arrow_columns
    cut = not shape.even_group or any(window % shape.even_group for window in windows)
    kept = int(plain * shape.page_bytes * _KEPT) * (cut and way.reading.keep_pages)
    kept += int(shape.number_dictionaries * _KEPT) * (cut and way.reading.keep_dictionaries)
    behind = max(shape.rows - min(windows), 0)  # rows that the first window leaves, at most
    found = min(kept, int(behind * shape.row_bytes * _KEPT))
    found += _PAGE_OBJECTS * plain * bool(kept)
    if not shape.arrow_columns:
        return found
    group_rows, stream_rows = way.reading.group_rows, way.reading.stream_rows
    decoded = min(group_rows or stream_rows, shape.largest_group, rows)
    if group_rows:
        many = min(columns_at_a_time(decoded), shape.arrow_columns)
        value = 8 if shape.arrow_columns > shape.word_columns else 4
        found += way.threads * many * (_DECODER + _CHUNK_COPIES * value * decoded)
        largest = shape.word_bytes / max(min(shape.word_columns // many, way.threads), 1)
        found += int(_CHUNK_COPIES * decoded * largest + _GROWTH * shape.text_in(decoded))
    else:
        pages = shape.page_bytes + shape.lookup_bytes
        found += shape.arrow_columns * (_DECODER + int(_PAGE_COPIES * pages))
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


def _working(shape: Shape, slab: int, together: Together, way: _Way) -> int:
    """Return what the threads need to get from decoded columns to the bytes of the output."""
    width = min(max(ceil(shape.normalized_bytes / max(shape.normalized, 1)), 4), 8)
    scalars = shape.normalized - sum(size for size, _ in shape.vectors)
    many = min(max(together.values // slab, 1), together.columns, max(scalars, 0))
    group = many * max(slab * width, shape.page_bytes)
    looked_up = 0
    if shape.number_dictionaries:
        looked_up = many * (_LOOKED_UP * shape.own_lookup_bytes + _PLACE * slab)
    others = max(shape.passed_bytes - shape.text_bytes, 0)
    passed = slab * (others * _PASSED_COPIES + shape.vector_output_bytes)
    passed += _passed_text(shape, slab, way) + shape.text_page * _LONG_PAGE
    letters = slab * (shape.word_bytes + _SHORT_TEXT)
    passed += min(way.threads, shape.word_columns) * min(letters, LETTERS) * _PASSED_COPIES
    passed += slab * shape.word_bytes * (letters > LETTERS)
    ours = shape.columns > shape.arrow_columns or shape.text_bytes or shape.word_columns
    copies = _GROUP_COPIES if ours else _ARROW_COPIES
    worker = _WORKER if way.values == _TOGETHER[0][1] else _SMALL_WORKER
    return way.threads * (worker + copies * group + looked_up) + int(passed * _SLACK)


def _passed_text(shape: Shape, slab: int, way: _Way) -> int:
    """Return what text that is decoded as it stands takes besides, until it is encoded.

    A long one is cut into pieces, of which only those are copied that reach into two tables.
    """
    text, at_once = shape.text_in(slab), min(way.threads, max(shape.arrow_columns, 1))
    short = at_once * LETTERS
    if text <= short:
        return _PASSED_COPIES * text
    table = min(way.reading.group_rows or way.reading.stream_rows, shape.even_group)
    joined = min(ceil(slab / table) * short, text) if table else text
    return joined + _PASSED_COPIES * (short + at_once * words_kept(text))


def _encoded(shape: Shape, slab: int, shares: int, in_flight: int) -> int:
    """Return the bytes of encoded columns that wait to be written.

    Columns of vectors and of text may be far larger than the others, and can't be cut into shares.
    """
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
