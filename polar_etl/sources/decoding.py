"""Columns of one Parquet file to NumPy and Arrow, window by window.

Plain numbers are read by ourselves, page by page; all others by PyArrow.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import product

import numpy as np
import pyarrow as pa

from polar_etl.columns import Piece, array_of, pieces_of, validity, word_type
from polar_etl.errors import describe
from polar_etl.pages.ahead import NONE_AHEAD, Ahead
from polar_etl.pages.headers import UnusualError
from polar_etl.pages.readers import ColumnReader, read_together
from polar_etl.pages.vectors import VectorReader
from polar_etl.short_chunks.single_pages import SinglePages
from polar_etl.sources.base import Cutter, Reading
from polar_etl.sources.by_arrow import ArrowColumns, ParquetFile
from polar_etl.sources.explained import explained
from polar_etl.sources.vectors import read_vectors, vector_reader


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
        self._by_arrow = ArrowColumns(file, groups, how)
        self._row = self._skip = skip
        self._start = sum(file.group_rows[: groups[0]])
        with explained(file.path):
            self._descriptor = os.open(file.path, os.O_RDONLY | os.O_CLOEXEC)
        self._single: SinglePages | None = None
        self._plain: dict[int, ColumnReader] = {}
        self._vectors: dict[int, VectorReader] = {}
        self._arrow: list[tuple[list[int], Cutter]] = []
        self._decoded: dict[int, pa.ChunkedArray] = {}
        self._rows, self._ahead = 0, NONE_AHEAD
        try:
            with explained(file.path):
                self._single = self._single_pages(places)
                others = [place for place in places if not self._is_single(place)]
                readers = {place: self._reader(place) for place in others}
                self._plain = {place: reader for place, reader in readers.items() if reader}
                self._vectors = self._vector_readers(others)
                ours = self._plain.keys() | self._vectors.keys()
                self._from_arrow([place for place in others if place not in ours])
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

    def _vector_readers(self, places: Sequence[int]) -> dict[int, VectorReader]:
        readers = {
            place: vector_reader(self._file, place, self._groups, self._descriptor)
            for place in places
            if place in self._file.vectors
        }
        return {place: reader for place, reader in readers.items() if reader}

    def _from_arrow(self, places: list[int]) -> None:
        """Let PyArrow read these columns, from the present row on."""
        if places:
            if layout := self._file.layout:
                for group, leaf in product(self._groups, self._file.leaves_of(places)):
                    layout.require_page_sizes(group, leaf, self._descriptor)
            tables = self._by_arrow.from_row(self._row, places)
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
            for readers in (self._plain, self._vectors):
                for place in list(readers):
                    numbers = self._skip * self._file.vectors.get(place, 1)
                    try:
                        readers[place].skip(numbers)
                    except UnusualError:
                        del readers[place]
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
        self._plain.pop(place, None)
        self._vectors.pop(place, None)
        self._from_arrow([place])
        self._decode(*self._arrow[-1])

    def column(self, place: int) -> pa.ChunkedArray:
        """Return the present rows of a column of any type; each can be asked for once."""
        kind = self._file.schema.field(place).type
        if place in self._vectors:
            with explained(self._file.path):
                try:
                    return read_vectors(
                        self._vectors[place], self._rows, kind, self._file.vectors[place]
                    )
                except UnusualError:
                    self._give_up(place)
        if place in self._decoded:
            return self._decoded.pop(place)
        (pieces,) = self.pieces([place])
        values = [piece.values for piece in pieces] or [np.empty(0)]
        joined = np.concatenate(values).astype(kind.to_pandas_dtype())
        return pa.chunked_array([array_of(joined, validity(pieces, 0, self._rows))], kind)

    def close(self) -> None:
        """Let go of the file."""
        self._single, self._plain, self._vectors = None, {}, {}
        self._arrow, self._decoded = [], {}
        self._by_arrow.close()
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
