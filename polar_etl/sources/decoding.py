"""Columns of one Parquet file to NumPy and Arrow, window by window.

Plain numbers are read by ourselves, page by page; all others by PyArrow, which could share its work
among threads itself, column by column. That takes half as long again where column chunks are short
(measured), so whoever wants several threads gives each columns of its own.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from itertools import chain, product
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from polar_etl.columns import Piece, array_of, pieces_of, validity, word_type
from polar_etl.errors import InputError, PolarEtlError, RunFailedError, describe
from polar_etl.pages.ahead import NONE_AHEAD, Ahead
from polar_etl.pages.headers import LongValueError, UnusualError
from polar_etl.pages.readers import ColumnReader, read_together
from polar_etl.sources.base import Cutter, Reading
from polar_etl.sources.layout import Layout
from polar_etl.sources.single_pages import SinglePages

STREAM_BUFFER = 1 << 16
"""Bytes of a file that are read at a time where columns are not read whole."""
_COLUMNS_AT_A_TIME = 128
_BYTES_AT_A_TIME = 1 << 22
_TRANSIENT = {errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ESTALE, errno.EINTR}
"""Errors of the system that say nothing about the file."""


def columns_at_a_time(rows: int) -> int:
    """Return how many columns of so many rows PyArrow reads at a time.

    It keeps a decompressor (0.1 MB) for each of them, and what it has read of all of them.
    """
    return min(max(_BYTES_AT_A_TIME // (8 * max(rows, 1)), 1), _COLUMNS_AT_A_TIME)


class ParquetFile(NamedTuple):
    """One file, as its footer describes it."""

    path: str
    schema: pa.Schema
    group_rows: tuple[int, ...]
    leaves: tuple[range, ...]
    """Indices of the Parquet columns that each column consists of."""
    from_arrow: frozenset[int]
    """Places of the columns that PyArrow must decode."""
    layout: Layout | None
    """Where plain numbers stand; None where nobody knows."""
    words: frozenset[int]
    """Places of the columns of text that are decoded as words and their places: what a row group
    repeats is decoded once."""
    footer: Callable[[], pq.FileMetaData]
    """Returns the footer as PyArrow has it, which takes time and memory."""


class FileColumns:
    """Some columns of one file, read in step, in one thread at a time.

    Args:
        file: The file.
        places: Which of its columns.
        groups: Its row groups that are read, in order.
        skip: Rows at their start that are left out.
        how: Trade between speed and memory, for what PyArrow reads.
    """

    def __init__(
        self,
        file: ParquetFile,
        places: Sequence[int],
        groups: Sequence[int],
        skip: int,
        how: Reading,
    ) -> None:
        self._file, self._groups, self._how = file, groups, how
        self._row = self._skip = skip
        self._start = sum(file.group_rows[: groups[0]])
        with explained(file.path):
            self._descriptor = os.open(file.path, os.O_RDONLY | os.O_CLOEXEC)
        self._single: SinglePages | None = None
        self._plain: dict[int, ColumnReader] = {}
        self._arrow: list[tuple[list[int], Cutter]] = []
        self._decoded: dict[int, pa.ChunkedArray] = {}
        self._whole_groups: pq.ParquetFile | None = None
        self._rows, self._ahead = 0, NONE_AHEAD
        try:
            with explained(file.path):
                self._single = self._single_pages(places)
                others = [place for place in places if not self._is_single(place)]
                readers = {place: self._reader(place) for place in others}
                self._plain = {place: reader for place, reader in readers.items() if reader}
                self._from_arrow([place for place in others if place not in self._plain])
        except BaseException:
            self.close()
            raise

    @property
    def path(self) -> str:
        """Where the file lies."""
        return self._file.path

    @property
    def row(self) -> int:
        """The first of the present rows, counted from the start of the file."""
        return self._start + self._row

    def _single_pages(self, places: Sequence[int]) -> SinglePages | None:
        layout = self._file.layout
        ours = [place for place in places if place not in self._file.from_arrow]
        if layout is None or not ours:
            return None
        keep = self._how.keep_pages
        return SinglePages(layout, ours, self._groups, self._descriptor, keep=keep)

    def _is_single(self, place: int) -> bool:
        return self._single is not None and place in self._single.kinds

    def _reader(self, place: int) -> ColumnReader | None:
        layout = None if place in self._file.from_arrow else self._file.layout
        if layout is None or not layout.holds_numbers(self._groups, place):
            return None
        chunks = (chunk for group in self._groups if (chunk := layout.chunk(group, place)))
        return ColumnReader(chunks, self._descriptor, keep=self._how.keep_pages)

    def _from_arrow(self, places: list[int]) -> None:
        """Let PyArrow read these columns, from the present row on."""
        if places:
            if layout := self._file.layout:
                for group, leaf in product(self._groups, self._leaves(places)):
                    layout.require_page_sizes(group, leaf, self._descriptor)
            tables = _behind(self._row, self._tables(places))
            self._arrow.append((places, Cutter(tables)))

    def advance(self, rows: int, ahead: Ahead = NONE_AHEAD) -> None:
        """Go on to the next `rows` rows, which must be there; `ahead` may be decoded with them."""
        if self._skip:
            self._skip_plain()
        self._row += self._rows
        self._rows, self._ahead = rows, ahead
        with explained(self._file.path):
            self._decoded = {}
            for places, cutter in self._arrow:
                self._decode(places, cutter)

    def _decode(self, places: list[int], cutter: Cutter) -> None:
        table = cutter.take(self._rows)
        if table is None or table.num_rows != self._rows:
            raise pa.ArrowInvalid("it holds fewer rows than its footer tells of")
        for place, column in zip(places, table.columns, strict=True):
            expected = self._file.schema.field(place)
            words = place in self._file.words and pa.dictionary(
                pa.int32(), word_type(expected.type)
            )
            if not column.type.equals(words or expected.type):
                raise pa.ArrowInvalid(
                    f"column {describe(expected.name)} decodes to {column.type}, "
                    f"not to {expected.type}"
                )
            self._decoded[place] = column

    def _skip_plain(self) -> None:
        with explained(self._file.path):
            for place in list(self._plain):
                try:
                    self._plain[place].skip(self._skip)
                except UnusualError:
                    del self._plain[place]
                    self._from_arrow([place])
        self._skip = 0

    def pieces(self, places: Sequence[int]) -> list[list[Piece]]:
        """Return the present rows of some columns of numbers; each can be asked for once."""
        with explained(self._file.path):
            found = self._single_pieces(places)
            plain = [place for place in places if place in self._plain]
            if plain:
                readers = [self._plain[place] for place in plain]
                together = read_together(readers, self._rows, self._descriptor, self._ahead)
                for place, pieces in zip(plain, together, strict=True):
                    if pieces is None:
                        self._give_up(place)
                    else:
                        found[place] = pieces
            for place in places:
                if place not in found:
                    found[place] = pieces_of(self._decoded.pop(place))
            return [found[place] for place in places]

    def _single_pieces(self, places: Sequence[int]) -> dict[int, list[Piece]]:
        """Return the present rows of columns of single pages; others are read as such from here."""
        single = [place for place in places if self._is_single(place)]
        if self._single is None or not single:
            return {}
        found = self._single.pieces(single, self._row, self._rows, self._ahead)
        for place in single:
            if place not in found and (reader := self._reader(place)):
                self._plain[place] = reader
                try:
                    reader.skip(self._row)
                except UnusualError:
                    self._give_up(place)
        return found

    def _give_up(self, place: int) -> None:
        """Let PyArrow read a column, from the present rows on."""
        del self._plain[place]
        self._from_arrow([place])
        self._decode(*self._arrow[-1])

    def column(self, place: int) -> pa.ChunkedArray:
        """Return the present rows of a column of any type; each can be asked for once."""
        if place in self._decoded:
            return self._decoded.pop(place)
        kind = self._file.schema.field(place).type
        (pieces,) = self.pieces([place])
        values = [piece.values for piece in pieces] or [np.empty(0)]
        joined = np.concatenate(values).astype(kind.to_pandas_dtype())
        return pa.chunked_array([array_of(joined, validity(pieces, 0, self._rows))], kind)

    def close(self) -> None:
        """Let go of the file."""
        self._single, self._plain, self._arrow, self._decoded = None, {}, [], {}
        if self._whole_groups:
            self._whole_groups.close(force=True)
            self._whole_groups = None
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _tables(self, places: Sequence[int]) -> Iterator[pa.Table]:
        rows = self._file.group_rows
        for groups in stretches(self._groups, rows, self._how.group_rows):
            if rows[groups[0]] > self._how.group_rows:
                yield from self._inside(groups[0], places)
            else:
                yield self._whole(groups, places)

    def _whole(self, groups: list[int], places: Sequence[int]) -> pa.Table:
        """Return some columns of some row groups, a few of them decoded at a time."""
        many = columns_at_a_time(sum(self._file.group_rows[group] for group in groups))
        found: list[pa.ChunkedArray] = []
        self._whole_groups = self._whole_groups or self._opened(buffer_size=0)
        for low in range(0, len(places), many):
            table = self._whole_groups.reader.read_row_groups(
                groups, column_indices=self._leaves(places[low : low + many]), use_threads=False
            )
            found += table.columns
        return pa.Table.from_arrays(found, names=[str(place) for place in places])

    def _inside(self, group: int, places: Sequence[int]) -> Iterator[pa.Table]:
        """Yield some columns of one row group, a few rows at a time."""
        with closing(self._opened(buffer_size=STREAM_BUFFER)) as opened:
            batches = opened.reader.iter_batches(
                self._how.stream_rows,
                row_groups=[group],
                column_indices=self._leaves(places),
                use_threads=False,
            )
            earlier = None
            for batch in batches:
                earlier = _with_words_of(pa.Table.from_batches([batch]), earlier)
                yield earlier

    def _leaves(self, places: Sequence[int]) -> list[int]:
        return list(chain.from_iterable(self._file.leaves[place] for place in places))

    def _opened(self, *, buffer_size: int) -> pq.ParquetFile:
        return pq.ParquetFile(
            for_arrow(self._file.path),
            metadata=self._file.footer(),
            pre_buffer=False,
            buffer_size=buffer_size,
            page_checksum_verification=True,
            read_dictionary=self._leaves(sorted(self._file.words)),
        )


def _with_words_of(table: pa.Table, earlier: pa.Table | None) -> pa.Table:
    """Return `table` with the dictionaries of an earlier one where they are equal.

    PyArrow gives each batch a copy of all words of its row group.
    """
    if earlier is None:
        return table
    columns = []
    for column, before in zip(table.columns, earlier.columns, strict=True):
        if pa.types.is_dictionary(column.type) and column.num_chunks == before.num_chunks == 1:
            (here,), words = column.chunks, before.chunk(0).dictionary
            if here.dictionary.equals(words):
                here = pa.DictionaryArray.from_arrays(
                    here.indices, words, ordered=here.type.ordered
                )
                column = pa.chunked_array([here])
        columns.append(column)
    return pa.Table.from_arrays(columns, names=table.column_names)


def stretches(groups: Sequence[int], rows: Sequence[int], most: int) -> Iterator[list[int]]:
    """Yield the row groups that are decoded together: neighbours of up to `most` rows, or one."""
    held: list[int] = []
    held_rows = 0
    for group in groups:
        if held and held_rows + rows[group] > most:
            yield held
            held, held_rows = [], 0
        held.append(group)
        held_rows += rows[group]
    if held:
        yield held


def _behind(skip: int, tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Yield `tables` without their first `skip` rows."""
    for table in tables:
        if skip < table.num_rows:
            yield table.slice(skip)
        skip = max(skip - table.num_rows, 0)
        del table


def for_arrow(path: str) -> str | pa.NativeFile:
    """Return a file's path, or the file where its path is not UTF-8, which is all PyArrow takes."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return pa.OSFile(os.fsencode(path))
    return path


@contextmanager
def explained(path: str) -> Iterator[None]:
    """Turn whatever goes wrong with a file that is read into an error that says so.

    Raises:
        InputError: The file can't be read.
        RunFailedError: It can't be read just now.
    """
    try:
        yield
    except Exception as error:
        raise _explanation(path, error) from None


def _explanation(path: str, error: Exception) -> Exception:
    """Return what to raise: errors of ours and of memory as they are."""
    if isinstance(error, (PolarEtlError, MemoryError)):
        return error
    if isinstance(error, OSError) and error.errno in _TRANSIENT:
        return RunFailedError(f"{describe(path)} can't be read just now: {error.strerror}.")
    if isinstance(error, LongValueError):
        return InputError(f"{describe(path)} can't be handled: {error}; 1 GiB is too much for one.")
    reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
    if isinstance(error, FileNotFoundError):
        reason = "there is no such file"
    return InputError(
        f"{describe(path)} can't be read as Parquet: {describe(reason, 300)[1:-1]}. "
        "Check that the file is complete and not damaged or encrypted."
    )
