"""Parquet files of one schema as one source of rows."""

from __future__ import annotations

import hashlib
import os
from bisect import bisect_right
from collections import deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import cache, cached_property, partial
from itertools import accumulate, chain
from operator import itemgetter
from threading import Lock
from weakref import WeakValueDictionary

import pyarrow as pa
import pyarrow.parquet as pq

from polar_etl.columns import Piece, word_type
from polar_etl.errors import InputError, describe
from polar_etl.features import first_length, numbers_in, open_lists, require_lengths
from polar_etl.footers.layout import Layout, layout_of
from polar_etl.pages.ahead import NONE_AHEAD, Ahead
from polar_etl.short_chunks.short_pieces import SHORT, put_together
from polar_etl.sources.base import Columns, Reading, SourceFile, Window
from polar_etl.sources.by_arrow import ParquetFile, for_arrow
from polar_etl.sources.decoding import FileColumns
from polar_etl.sources.explained import explained
from polar_etl.sources.first_look import UNLIMITED, Room, footer_of, inspect, texts_of
from polar_etl.sources.schemas import difference, leaf_ranges
from polar_etl.sources.vectors import are_whole

_ROWS_LOOKED_AT = 256


@dataclass(frozen=True, eq=False)
class ParquetSource:
    """Parquet files of one schema, in the given order."""

    schema: pa.Schema
    files: tuple[SourceFile, ...]
    lengths: Mapping[str, int] = field(default_factory=dict)
    """The length that all lists of a column must have."""
    _opened: WeakValueDictionary[int, ParquetFile] = field(
        default_factory=WeakValueDictionary, repr=False
    )
    """The files that somebody reads: all shares of columns have the same description of each."""
    _last: deque[ParquetFile] = field(default_factory=lambda: deque(maxlen=2), repr=False)
    """Those that were opened last, which shares that are a little behind ask for."""
    _layouts: dict[int, Layout | None] = field(default_factory=dict, repr=False)
    """Those of all files where there is room for them, else that of the first, until it is opened:
    then a footer is parsed again for each share of columns that is read of its file, which takes as
    long as decoding some thousand rows."""
    _lock: Lock = field(default_factory=Lock, repr=False)

    @classmethod
    def open(cls, paths: list[str], room: Room = UNLIMITED) -> ParquetSource:
        """Return the source over the files at `paths`, after reading every footer once.

        Args:
            paths: Of the files.
            room: What looking at them may take.

        Raises:
            MemoryLimitError: There is not enough room.
            InputError: A file is missing, is no Parquet, or its schema differs from the first's.
        """
        found, schema, told, held = [], None, None, 0
        layouts: dict[int, Layout | None] = {}
        for index, path in enumerate(paths):
            file, told, layout = inspect(path, room, told)
            own = told.schema
            if schema is None or own is schema:  # as it is of files with the same columns
                schema = own
            elif text := difference(schema, own):
                raise InputError(
                    f"{describe(path)} differs in schema from {describe(paths[0])}: {text}. "
                    "All files of an input must have one schema: convert the file or leave it out."
                )
            else:
                schema = _nullable_where_either_is(schema, own)
            found.append(file)
            held += file.held_chunks
            if index == 0 or held <= room.chunks:
                layouts[index] = layout
        if held > room.chunks:
            layouts = {0: layouts[0]}
        if schema is None:
            raise InputError("There is no Parquet file to read.")
        return cls(schema, tuple(found), _layouts=layouts)

    @property
    def held_chunks(self) -> int:
        """For how many column chunks it is held where they stand."""
        held = len(self._layouts) == len(self.files)
        return sum(file.held_chunks for file in self.files) if held else 0

    def fingerprint(self, *, full: bool = False) -> dict[str, object]:
        """Return path, size, mtime and footer hash of every file; when `full`, a hash of it all."""
        return {
            "files": [
                {"path": f.path, "size": f.size, "mtime_ns": f.mtime_ns, "footer": f.footer}
                | ({"contents": _hash(f.path)} if full else {})
                for f in self.files
            ]
        }

    def columns(self, names: Sequence[str], first: int, stop: int, how: Reading) -> Columns:
        """Return some columns of a range of rows, see `Source.columns`."""
        return _Columns(self, names, first, stop, how)

    def files_of(self, first: int, stop: int) -> Iterator[tuple[int, int, int]]:
        """Yield the files that hold some rows of all: its number, and from where to where."""
        begin = max(bisect_right(self._offsets, first) - 1, 0)
        for index in range(begin, len(self.files)):
            start, end = self._offsets[index : index + 2]
            if start >= stop:
                return
            if max(first, start) < min(stop, end):
                yield index, max(first - start, 0), min(stop, end) - start

    @cached_property
    def _offsets(self) -> list[int]:
        return list(accumulate((file.rows for file in self.files), initial=0))

    def with_lengths(self, columns: Sequence[str], known: Mapping[str, int]) -> ParquetSource:
        """Return the source with the lists among `columns` of one length: a known or the first's.

        Raises:
            InputError: No list tells the length.
        """
        lists = open_lists(self.schema, columns)
        if not lists:
            return self.with_whole_vectors()
        lengths = {
            name: known.get(name) or first_length(self._rows_of(name), name) for name in lists
        }
        found = replace(
            self,
            lengths=lengths,
            files=tuple(self._without(file, lengths) for file in self.files),
            _opened=WeakValueDictionary(),  # those that were opened know of no lengths
            _last=deque(maxlen=2),
        )
        return found.with_whole_vectors()

    def with_whole_vectors(self) -> ParquetSource:
        """Return the source with what footers tell of vectors, see `SourceFile.whole_vectors`."""
        if not self._vectors:
            return self
        whole = map(self._whole_vectors, range(len(self.files)))
        pairs = zip(self.files, whole, strict=True)
        return replace(self, files=tuple(f._replace(whole_vectors=some) for f, some in pairs))

    def _whole_vectors(self, index: int) -> frozenset[int]:
        opened = self.opened(index)
        with explained(opened.path), open(opened.path, "rb") as raw:
            return frozenset(p for p in self._vectors if are_whole(opened, p, raw.fileno()))

    @staticmethod
    def _without(file: SourceFile, vectors: Collection[str]) -> SourceFile:
        """Return what is known of a file whose columns `vectors` are no text."""
        sampled, texts = texts_of(file.path, vectors)
        return file._replace(
            variable_bytes=sampled, text_windows=texts.windows, text_page=texts.longest
        )

    def _rows_of(self, column: str) -> Iterator[pa.Table]:
        few = Reading(group_rows=0, stream_rows=_ROWS_LOOKED_AT)
        rows = sum(file.rows for file in self.files)
        with closing(self.columns([column], 0, rows, few)) as columns:
            for first in range(0, rows, _ROWS_LOOKED_AT):
                window = columns.next(min(_ROWS_LOOKED_AT, rows - first))
                yield pa.table({column: window.column(column)})

    def opened(self, index: int) -> ParquetFile:
        """Return the file `index`, after a look at its footer."""
        with self._lock:
            file = self._opened.get(index)
            if file is None:
                file = self._opened[index] = self._described(index)
                self._last.append(file)
            return file

    def _described(self, index: int) -> ParquetFile:
        path = self.files[index].path
        footer = cache(partial(_metadata_of, path))
        if index in self._layouts:
            are_all = len(self._layouts) == len(self.files)
            layout = self._layouts[index] if are_all else self._layouts.pop(index)
        else:
            with explained(path), open(path, "rb") as raw:
                layout = layout_of(footer_of(raw), self.schema)
        return ParquetFile(
            path=path,
            schema=self.schema,
            group_rows=self.files[index].group_rows,
            leaves=self._leaf_ranges,
            from_arrow=self.files[index].from_arrow,
            layout=layout,
            words=self.files[index].words,
            vectors=self._vectors,
            footer=footer,
        )

    @cached_property
    def _vectors(self) -> dict[int, int]:
        return {
            place: size
            for place in sorted(self.files[0].from_arrow)
            if (field := self.schema.field(place))
            and (size := self.lengths.get(field.name) or numbers_in(field.type))
        }

    def refuse_changes(self, file: int) -> None:
        """Check that a file is still the one that was planned for.

        Raises:
            InputError: It has changed.
        """
        found = self.files[file]
        with explained(found.path):
            now = os.stat(found.path)
        if (now.st_size, now.st_mtime_ns) != (found.size, found.mtime_ns):
            raise InputError(
                f"{describe(found.path)} has changed while it was being read. "
                "Run again with --overwrite when nothing writes to it any more."
            )

    @cached_property
    def _leaf_ranges(self) -> tuple[range, ...]:
        return leaf_ranges(self.schema)


class _Columns:
    """Some columns of a range of rows, over as many files as it takes."""

    def __init__(
        self,
        source: ParquetSource,
        names: Sequence[str],
        first: int,
        stop: int,
        how: Reading,
    ) -> None:
        self._source, self._how = source, how
        places = {name: source.schema.get_field_index(name) for name in names}
        self._places = dict(sorted(places.items(), key=itemgetter(1)))
        self._ahead = deque(source.files_of(first, stop))
        self._open: list[tuple[int, FileColumns]] = []
        """Files that the present window reaches into."""
        self._left = 0
        """Rows that the last of them still has."""

    def next(self, rows: int, ahead: Ahead = NONE_AHEAD) -> Window:
        """Return the next rows; the window before is gone then."""
        for index, columns in self._open[: None if self._left == 0 else -1]:
            columns.close()
            self._source.refuse_changes(index)
        self._open = self._open[-1:] if self._left else []
        taken = 0
        while taken < rows:
            if not self._left:
                self._open_next()
            some = min(rows - taken, self._left)
            self._open[-1][1].advance(some, ahead)
            self._left -= some
            taken += some
        parts = [columns for _, columns in self._open] if rows else []
        return _Window(rows, self._places, parts, self._source)

    def _open_next(self) -> None:
        index, low, high = self._ahead.popleft()
        self._source.refuse_changes(index)
        file = self._source.opened(index)
        groups, start = _groups_of(file.group_rows, low, high)
        places = list(self._places.values())
        self._open.append((index, FileColumns(file, places, groups, low - start, self._how)))
        self._left = high - low

    def close(self) -> None:
        """Let go of all files."""
        for _, columns in self._open:
            columns.close()
        self._open, self._left = [], 0
        self._ahead.clear()


@dataclass(frozen=True, slots=True)
class _Window:
    """The present rows of some columns of one or several files."""

    rows: int
    places: Mapping[str, int]
    parts: Sequence[FileColumns]
    source: ParquetSource

    def pieces(self, names: Sequence[str]) -> list[list[Piece]]:
        """Return columns of numbers."""
        places = [self.places[name] for name in names]
        if len(self.parts) < 2:
            return self.parts[0].pieces(places) if self.parts else [[] for _ in places]
        by_part = (part.pieces(places) for part in self.parts)
        if self.rows < SHORT * len(self.parts):
            return put_together(by_part, self.rows)
        return [list(chain.from_iterable(pieces)) for pieces in zip(*by_part, strict=True)]

    def column(self, name: str) -> pa.ChunkedArray:
        """Return a column of any type."""
        found, kind = self.text(name), self.source.schema.field(name).type
        return found if found.type == kind else found.cast(kind)  # the first cast takes 60 ms

    def text(self, name: str) -> pa.ChunkedArray:
        """Return a column; one of text as words and their places wherever that can be had."""
        place, lengths = self.places[name], self.source.lengths
        found = [part.column(place) for part in self.parts]
        if name in lengths:
            for part, column in zip(self.parts, found, strict=True):
                require_lengths(name, column, lengths[name], part.path, part.row)
        chunks = [chunk for column in found for chunk in column.iterchunks()]
        kinds = {column.type for column in found} or {self.source.schema.field(place).type}
        if len(kinds) > 1:  # words of one file, text of another
            words = word_type(self.source.schema.field(place).type)
            chunks = [chunk.cast(words).dictionary_encode() for chunk in chunks]
            kinds = {pa.dictionary(pa.int32(), words)}
        return pa.chunked_array(chunks, *kinds)


def _nullable_where_either_is(schema: pa.Schema, other: pa.Schema) -> pa.Schema:
    pairs = zip(schema, other, strict=True)
    columns = [column.with_nullable(column.nullable or also.nullable) for column, also in pairs]
    return pa.schema(columns, metadata=schema.metadata)


def _groups_of(rows: Sequence[int], first: int, stop: int) -> tuple[list[int], int]:
    """Return the row groups that hold the rows `first` … `stop`, and the first row of the first."""
    starts = list(accumulate(rows, initial=0))
    found = [i for i, n in enumerate(rows) if n and starts[i] < stop and starts[i] + n > first]
    return found, starts[found[0]] if found else 0


def _hash(path: str) -> str:
    with explained(path), open(path, "rb") as file:
        return hashlib.file_digest(file, hashlib.blake2b).hexdigest()


def _metadata_of(path: str) -> pq.FileMetaData:
    return pq.read_metadata(for_arrow(path))
