"""Columns of numbers, read page by page.

PyArrow reads and writes every kind of page, with copies, levels and state for each column; that is
half of the work for plain numbers, and most of the memory for wide tables. What is unusual here is
left to PyArrow: `UnusualError` says so.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from itertools import islice

from polar_etl.columns import Piece
from polar_etl.pages.ahead import MOSTLY, NONE_AHEAD, Ahead
from polar_etl.pages.fetching import Span, Stretch, fetched
from polar_etl.pages.files import ROOM_BEFORE, room_behind
from polar_etl.pages.headers import HEADER, PageHeader, UnusualError, header_of, pages_like
from polar_etl.pages.values import Chunk, StoredPages, decoded_apart, is_plain, require_possible

_NOTHING = memoryview(b"")
_LONGEST_USUAL = 96
"""Bytes of a usual header, at most."""
_FETCHED = 1 << 23
"""Bytes fetched at one go."""
_UNLIKE = 64
"""Pages are fetched with so small a part more, because they differ in length."""


def _rows_of(pieces: Iterable[Piece]) -> int:
    return sum(len(piece.values) for piece in pieces)


class ColumnReader:
    """Reads the rows of one column in order, page by page, over one or several row groups.

    Args:
        chunks: Where they stand, in row order; one at least.
        file: Descriptor of the file.
        keep: Whether what is left of a page is kept; otherwise it is decoded again when it is
            needed, which takes time instead of memory.
    """

    __slots__ = (
        *("_file", "_keep"),
        *("_chunk", "_later", "_ahead", "_dictionary"),
        *("_at", "_left", "_last", "_last_rows", "_again", "_usual", "_held", "_shared"),
    )
    """There may be 100,000 of them."""

    def __init__(self, chunks: Iterable[Chunk], file: int, *, keep: bool = True) -> None:
        self._file, self._keep = file, keep
        self._dictionary: Span | None = None
        """Where that of the chunk stands, once its header is read."""
        self._last, self._last_rows = 0, 0
        """Where the page that was read last stands, and how many rows it has."""
        self._again = 0
        """Rows of the next page that were decoded before: they are taken, or held."""
        self._later = iter(chunks)
        self._ahead: list[Chunk] = []
        """Chunks behind this one that were looked at."""
        self._chunk = next(self._later)
        self._at = self._chunk.start
        self._held: list[Piece] = []
        """The next rows, as far as they are decoded already."""
        self._shared = 0
        """Rows of the memory that these are part of; 0 if they have memory of their own."""
        self._usual = 1
        """Rows of the page that was read last: most writers make all of them alike."""
        self._left = self._chunk.rows
        """Rows of the chunk that stand in pages behind."""

    def _there(self) -> int:
        """Return how many of the next rows are decoded already."""
        return _rows_of(self._held)

    def missing(self, rows: int, ahead: Ahead = NONE_AHEAD) -> int:
        """Return how many rows are to be decoded so that the next ones are there.

        Those ahead count where they would be decoded again: where not all of a page is kept, or
        there is a dictionary, which is never kept.
        """
        missing = rows - self._there()
        if missing <= 0:
            return 0
        self._turn_chunk()
        missing += self._again
        left, at = self._left, 0
        while missing > left and (chunk := self._behind(at)):
            left, at = left + chunk.rows, at + 1
        if self._reads_ahead():
            missing += max(min(ahead.rows, left - missing), 0)
        return missing

    def _reads_ahead(self) -> bool:
        """Tell whether rows that are asked for later are decoded with those that are taken."""
        return not self._keep or self._chunk.data > self._chunk.start

    def spans(self, rows: int) -> list[Span]:
        """Return where in the file so many missing rows are likely to stand, chunk by chunk."""
        if not rows:
            return []
        found = [self._likely(self._at, self._chunk, self._left, rows)]
        rows -= self._left
        while rows > 0 and (chunk := self._behind(len(found) - 1)):
            found.append(self._likely(chunk.start, chunk, chunk.rows, rows))
            rows -= chunk.rows
        return found

    def _behind(self, place: int) -> Chunk | None:
        """Return a chunk behind the present one, None if there are not so many."""
        if place == len(self._ahead):
            self._ahead.extend(islice(self._later, 1))
        return self._ahead[place] if place < len(self._ahead) else None

    def _likely(self, at: int, chunk: Chunk, left: int, rows: int) -> Span:
        """Return where the next rows of a chunk are likely to stand, in whole pages.

        Args:
            at: Where the next page stands.
            chunk: The chunk.
            left: Rows of it that stand there and behind.
            rows: How many are needed, at most.
        """
        rows = min(-(-rows // self._usual) * self._usual, left)
        dictionary = max(chunk.data - at, 0)
        size = dictionary + (chunk.stop - at - dictionary) * rows // left
        return at, min(at + min(size + size // _UNLIKE, _FETCHED) + HEADER, chunk.stop)

    def pages(self, rows: int, raw_spans: Iterable[memoryview] = ()) -> list[StoredPages]:
        """Return the pages that hold so many missing rows.

        Args:
            rows: How many.
            raw_spans: The bytes of `spans`, as far as they were fetched.
        """
        found: list[StoredPages] = []
        dictionary: memoryview | Stretch | None = None
        pieces, piece, start = iter(raw_spans), _NOTHING, -1
        while rows > 0:
            if start < 0 or self._at == self._chunk.stop:
                self._turn_chunk()
                dictionary = None
                piece, start = next(pieces, _NOTHING), self._at
                if not piece:
                    _, stop = self._likely(start, self._chunk, self._left, rows)
                    piece = self._fetch(stop - start)
            raw, header = self._header(piece[self._at - start :])
            whole = header.length + header.stored
            if len(raw) < whole:
                raw = self._fetch(whole)
            if header.holds == "places" and dictionary is None:
                dictionary = self._dictionary_page(piece, start)
            contents = [raw[header.length : whole]]
            first, left = self._at, self._left
            self._go_on(whole, header.rows)
            more = rows - header.rows
            if is_plain(self._chunk, header):
                contents += self._alike(header, more, piece, start)
            else:
                self._go_behind(more, piece, start)
            done = left - self._left
            pages = raw[:whole], piece[first + whole - start : self._at - start]
            stored = StoredPages(self._chunk, header, tuple(contents), pages, done, dictionary)
            found.append(stored)
            rows -= done
        return found

    def peek(self) -> PageHeader:
        """Return the header of the next page of rows."""
        return self._header(_NOTHING)[1]

    def _go_on(self, size: int, rows: int) -> None:
        """Go on behind a page of so many bytes and rows."""
        self._last, self._last_rows = self._at, rows
        self._at += size
        self._left -= rows
        if self._left or rows > self._usual:  # the last page of a chunk may be short
            self._usual = rows

    def _alike(
        self, header: PageHeader, rows: int, piece: memoryview, start: int
    ) -> list[memoryview]:
        """Return the contents of pages like the one before, as far as rows need and bytes allow.

        Args:
            header: Of the page before.
            rows: How many rows are needed.
            piece: Bytes that were fetched.
            start: Where in the file they stand.
        """
        found: list[memoryview] = []
        told = header.checksum is not None or header.levels is not None
        if rows <= 0 or told or not header.compressed:
            return found
        for begin, end in pages_like(header, piece, self._at - start):
            last = start + end == self._chunk.stop
            if rows <= 0 or header.rows > self._left or last != (header.rows == self._left):
                break
            found.append(piece[begin:end])
            self._go_on(start + end - self._at, header.rows)
            rows -= header.rows
        return found

    def _go_behind(self, rows: int, piece: memoryview, start: int) -> None:
        """Go on behind pages that PyArrow decodes, as far as rows need and bytes allow.

        Args:
            rows: How many rows are needed.
            piece: Bytes that were fetched.
            start: Where in the file they stand.
        """
        rows = min(rows, self._left)
        while rows > 0 and len(raw := piece[self._at - start :]) >= _LONGEST_USUAL:
            _, header = self._any_header(raw)
            require_possible(self._chunk, header)
            whole = header.length + header.stored
            if whole > len(raw) or header.holds == "dictionary":
                return
            self._go_on(whole, header.rows)
            rows -= header.rows

    def _dictionary_page(self, piece: memoryview, start: int) -> memoryview | Stretch:
        """Return the page of the dictionary, or where it stands if it was not fetched.

        Args:
            piece: Bytes that were fetched.
            start: Where in the file they stand.

        Raises:
            UnusualError: There is none.
        """
        if self._dictionary is None:
            raise UnusualError("it refers to a dictionary that is not there")
        first, stop = self._dictionary
        if start <= first and stop - start <= len(piece):
            return piece[first - start : stop - start]
        return Stretch(self._file, first, stop)

    def take(self, rows: int, pieces: Sequence[Piece], ahead: Ahead = NONE_AHEAD) -> list[Piece]:
        """Return the next rows, as they stand in what is held and in the pages behind it.

        Args:
            rows: How many.
            pieces: What `pages` found, decoded.
            ahead: Which ones behind them are held.
        """
        held = self._held
        if len(pieces) == 1 and len(pieces[0].values) == rows and not (held or self._again):
            return [pieces[0]]
        held.extend(self._wanted(pieces, rows + ahead.rows))
        if pieces:
            self._shared = self._there()
        found, left = [], rows
        while left:
            piece = held.pop(0)
            length, some = len(piece.values), min(len(piece.values), left)
            found.append(piece if some == length else piece.between(0, some))
            if some < length:
                held.insert(0, piece.between(some, length))
            left -= some
        if not (ahead.soon and self._reads_ahead()):
            self._let_go()
        return found

    def _let_go(self) -> None:
        """Keep no more memory than what is held needs."""
        if MOSTLY * self._there() < self._shared:
            self._held = [piece.alone() for piece in self._held]
        self._shared = 0

    def _wanted(self, pieces: Sequence[Piece], rows: int) -> list[Piece]:
        """Return what is taken or held of some values; what is not kept is decoded again.

        Args:
            pieces: The next ones, decoded.
            rows: How many rows are wanted, those that are held already among them.
        """
        found = list(pieces)
        if not found:
            return found
        if self._again:
            found[0] = found[0].between(self._again, len(found[0].values))
            self._again = 0
        if self._keep:
            return found
        over = self._there() + _rows_of(found) - rows
        if over > 0:
            last = found.pop()
            if over < len(last.values):
                found.append(last.between(0, len(last.values) - over))
            self._at, self._again = self._last, self._last_rows - over
            self._left += self._last_rows
        if MOSTLY * _rows_of(found) < _rows_of(pieces):
            found = [piece.alone() for piece in found]  # the others' memory is free then
        return found

    def skip(self, rows: int) -> None:
        """Leave out the next rows, without decompressing pages that hold no others.

        Raises:
            UnusualError: PyArrow must read this column.
        """
        while rows:
            left = self._there()
            if not left:
                self._turn_chunk()
                _, header = self._header(_NOTHING)
                if header.rows <= rows and not self._again:
                    self._at += header.length + header.stored
                    self._left -= header.rows
                    rows -= header.rows
                    continue
                left = rows
            some = min(left, rows)
            pieces = self._decoded(self.pages(self.missing(some)))
            if pieces is None:
                raise UnusualError("its pages are damaged")
            self.take(some, pieces)
            rows -= some

    def _decoded(self, stored: list[StoredPages]) -> list[Piece] | None:
        """Return the values of pages, None if PyArrow must read them."""
        return decoded_apart([stored])[0]

    def _turn_chunk(self) -> None:
        while self._at == self._chunk.stop:
            self._chunk = self._ahead.pop(0) if self._ahead else next(self._later)
            self._dictionary = None
            self._at, self._left = self._chunk.start, self._chunk.rows

    def _header(self, raw: memoryview) -> tuple[memoryview, PageHeader]:
        """Return the header of the next page of rows, and what was fetched from its start on."""
        raw, header = self._any_header(raw)
        if header.holds == "dictionary":
            whole = header.length + header.stored
            if header.size > min(header.rows, self._chunk.rows) * self._chunk.stored.itemsize:
                raise UnusualError("its dictionary claims too much")
            self._dictionary = self._at, self._at + whole
            self._at += whole
            raw, header = self._any_header(raw[whole:])
        return raw, header

    def _any_header(self, raw: memoryview) -> tuple[memoryview, PageHeader]:
        """Return the next header, and the bytes from its start on that were fetched."""
        left = self._chunk.stop - self._at
        if len(raw) < min(left, _LONGEST_USUAL):
            raw = self._fetch(min(left, HEADER))
        header = header_of(raw)
        possible = 0 < header.rows <= self._left and header.stored >= 0
        whole = header.length + header.stored
        if header.holds == "dictionary":
            possible = header.stored >= 0 and self._at == self._chunk.start and whole < left
        elif (whole == left) != (header.rows == self._left):
            possible = False
        if not possible or whole > left:
            raise UnusualError("a page header is impossible")
        return raw, header

    def _fetch(self, size: int) -> memoryview:
        """Return bytes of the file, from the present place on."""
        found = os.pread(self._file, size, self._at)
        if len(found) != size:
            raise UnusualError("the file breaks off")
        return memoryview(found)


def is_usual(chunk: Chunk, file: int) -> bool:
    """Tell whether a column chunk can be read here, as far as its first page tells."""
    try:
        reader = ColumnReader([chunk], file)
        header = reader.peek()
        is_plain = header.holds == "values" and not chunk.nullable
        return not is_plain or header.size == header.rows * chunk.stored.itemsize
    except UnusualError:
        return False


def read_together(
    readers: Sequence[ColumnReader], rows: int, file: int, ahead: Ahead = NONE_AHEAD
) -> list[list[Piece] | None]:
    """Return the next rows of some columns; None for those that PyArrow must read.

    Args:
        readers: Of the columns.
        rows: How many are taken.
        file: Descriptor of the file.
        ahead: Which ones behind them may be decoded, too, and held.

    Their bytes are fetched, and their pages decompressed, at one go: every call into another
    language lets another thread have the interpreter, and waiting for it costs more than a page.
    """
    missing = [reader.missing(rows, ahead) for reader in readers]
    wanted = [reader.spans(some) for reader, some in zip(readers, missing, strict=True)]
    room = room_behind(sum(map(len, wanted)))
    memory, bytes_of = fetched(wanted, file, before=ROOM_BEFORE, behind=room)
    stored: list[list[StoredPages] | None] = []
    for reader, some, raw in zip(readers, missing, bytes_of, strict=True):
        try:
            stored.append(reader.pages(some, raw))
        except UnusualError:
            stored.append(None)
    return [
        None if pieces is None else reader.take(rows, pieces, ahead)
        for reader, pieces in zip(readers, decoded_apart(stored, memory), strict=True)
    ]
