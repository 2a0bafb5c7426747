"""What a plan needs to know of a table: what its rows weigh, read and written."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

import pyarrow as pa

from polar_etl.columns import asked_once, by_column, listed
from polar_etl.encoding.slabs import slab_rows
from polar_etl.features import Features, value_type
from polar_etl.footers.texts import Windows, beside, text_in
from polar_etl.planning.settings import Settings
from polar_etl.short_chunks.short_pieces import SHORT
from polar_etl.sources.base import SourceFile
from polar_etl.sources.schemas import has_variable_width, leaves, width
from polar_etl.statistics.scaler import output_type

_LONG_TEXT = 32
"""Bytes beyond `NOMINAL_TEXT_WIDTH` that a text is taken to have when slabs are cut."""
_VALUE_COPIES = 3
"""How often numbers that are decoded from inside a row group are held (measured: 2.2 to 3)."""
TEXT_COPIES = 8
"""How often text is held that is decoded from inside a row group (measured: 7)."""
_STORED = 4
"""Bytes of a number in Parquet, at least."""


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
    files_in_slab: int
    """Files that a slab reaches into, at most."""
    held_chunks: int
    """Those of which it is held where they stand."""
    stretches: int
    """Runs of rows that are decoded one by one: files, or row groups unless these are short and
    alike."""
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
    whole_vectors: bool = False
    """Whether all vectors are there, and none is decoded or encoded by PyArrow."""
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
    def number_bytes(self) -> int:
        """Bytes of a number that is normalized, decoded."""
        return min(max(-(-self.normalized_bytes // max(self.normalized, 1)), _STORED), 8)

    @property
    def vectors_make_most(self) -> bool:
        """Whether rows hold more bytes in vectors than in all other columns."""
        return 2 * self.vector_bytes > self.row_bytes

    def without_vectors(self) -> Shape:
        """Return what there is of it besides columns of vectors."""
        return self._replace(
            columns=self.columns - len(self.vectors),
            arrow_columns=self.arrow_columns - len(self.vectors),
            row_bytes=self.row_bytes - self.vector_bytes,
            vectors=(),
            vector_bytes=0,
        )

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


def shape_of(
    schema: pa.Schema, files: Sequence[SourceFile], settings: Settings, held_chunks: int = 0
) -> Shape:
    """Return what a plan needs to know of a source's schema and footers.

    Args:
        schema: Of the source.
        files: Of the source.
        settings: What shapes the result.
        held_chunks: For how many column chunks it is held where they stand.
    """
    features = settings.features
    names, _ = listed(schema)
    vectors = Features.of(schema, tuple(names), features.vectors).vectors
    numbers = by_column(value_type, schema)
    read = by_column(width, schema)
    read |= {name: size * width(numbers[name]) for name, size in vectors.items()}
    output_widths = _output_widths([numbers[name] for name in features.columns], settings.dtype)
    written = read | {
        name: vectors.get(name, 1) * one
        for name, one in zip(features.columns, output_widths, strict=True)
    }
    others = [name for name in names if name not in vectors]
    places = frozenset().union(*(file.from_arrow for file in files))
    arrow = [names[place] for place in sorted(places)]
    normalized = set(features.columns)
    words = {names[place] for file in files for place in file.words}
    decoded = [name for name in arrow if name not in vectors and name not in words]
    word_bytes = max((file.word_bytes for file in files), default=0)
    nominal, output = sum(read.values()), sum(written.values())
    plain = sum(read[name] for name in read if name not in words)
    nominal_output = output + sum(
        more for name, more in by_column(_more_for_text, schema).items() if name not in vectors
    )
    vector_output = sum(written[name] for name in vectors)
    windows, rows = _text_windows(files), sum(file.rows for file in files)
    slab = slab_rows(nominal_output, vector_output)
    slab = max(min(slab, part_rows(settings, nominal_output) or slab, rows), 1)
    text = -(-text_in(windows, slab) // slab) if windows else _text_bytes(files)
    largest = max(files, key=lambda file: file.chunks, default=None)
    return Shape(
        rows=rows,
        largest_group=max((max(f.group_rows, default=0) for f in files), default=0),
        even_group=_even_group(files),
        files=len(files),
        files_in_slab=files_within(slab, files),
        columns=len(schema) if largest is None else _leaf_columns(largest, len(schema)),
        normalized=len(features),
        row_bytes=plain + text + word_bytes,
        normalized_bytes=sum(read[name] for name in features.columns),
        output_bytes=output - nominal + plain + text + word_bytes,
        nominal_output_bytes=nominal_output,
        footer_chunks=0 if largest is None else largest.chunks,
        held_chunks=held_chunks,
        stretches=sum(_stretches(file.group_rows) for file in files),
        page_bytes=max((file.page_bytes for file in files), default=0),
        lookup_bytes=max((file.lookup_bytes for file in files), default=0),
        nulls=any(file.nulls for file in files),
        number_dictionaries=max((file.number_dictionaries for file in files), default=0),
        arrow_columns=sum(leaves(schema.field(name).type) for name in arrow),
        arrow_bytes=text + sum(read[name] for name in decoded),
        stream_bytes=sum(_stream_bytes(schema.field(name).type) for name in decoded),
        passed_bytes=text
        + sum(written[n] for n in others if n not in normalized and n not in words),
        normalized_arrow=sum(n in normalized for n in arrow),
        word_columns=len(words),
        word_bytes=word_bytes,
        dictionary_bytes=max((file.dictionary_bytes for file in files), default=0),
        vectors=tuple((size, max(width(numbers[name]), 4)) for name, size in vectors.items()),
        vector_bytes=sum(read[name] for name in vectors),
        whole_vectors=bool(files)
        and vectors.keys() <= normalized
        and all(vectors.keys() <= {names[at] for at in file.whole_vectors} for file in files),
        vector_output_bytes=vector_output,
        text_bytes=text,
        text_windows=windows,
        text_page=max((file.text_page for file in files), default=0),
        kept_columns=len(features.columns) - len(vectors.keys() & normalized),
        kept_bytes=sum(max(read[n], _STORED) for n in features.columns if n not in vectors),
    )


def files_within(rows: int, files: Sequence[SourceFile]) -> int:
    """Return into how many files so many neighbouring rows reach, at most.

    They reach into two if all files between these have two rows less.
    """
    lengths = [file.rows for file in files if file.rows]
    most = first = between = 0
    for last in range(len(lengths)):
        between += lengths[last - 1] if last - first > 1 else 0
        while last > first and between + 2 > rows:
            first += 1
            between -= lengths[first] if first < last else 0
        most = max(most, last - first + 1)
    return most


def _stretches(groups: Sequence[int]) -> int:
    return sum(1 if rows < SHORT else len([*some]) for rows, some in groupby(groups) if rows)


def _output_widths(numbers: Sequence[pa.DataType], asked: str | None) -> list[int]:
    return asked_once(lambda kind: 4 if output_type(str(kind), asked) == "float32" else 8, numbers)


def _more_for_text(kind: pa.DataType) -> int:
    """Return what a value of variable width counts for more where slabs are cut: it may be long."""
    return _LONG_TEXT * leaves(kind) if has_variable_width(kind) else 0


def _stream_bytes(kind: pa.DataType) -> int:
    """Return what decoding one value takes; Parquet's own types are four bytes wide at least."""
    copies = TEXT_COPIES if has_variable_width(kind) else _VALUE_COPIES
    return int(copies * max(width(kind), 4))


def _even_group(files: Sequence[SourceFile]) -> int:
    """Return the rows that all row groups have, leaving out the last of all; 0 if they differ."""
    groups = [rows for file in files for rows in file.group_rows]
    return groups[0] if groups and all(rows == groups[0] for rows in groups[:-1]) else 0


def _text_bytes(files: Sequence[SourceFile]) -> int:
    """Return decoded bytes per row of columns of variable width, with room for dictionaries."""
    return max((3 * file.variable_bytes // max(file.rows, 1) for file in files), default=0)


def _text_windows(files: Sequence[SourceFile]) -> Windows:
    """Return how much text stands in neighbouring rows; nothing if any file does not tell."""
    filled = [file for file in files if file.rows]
    if not filled or not all(file.text_windows for file in filled):
        return ()
    return beside([file.text_windows for file in filled], [file.rows for file in filled])


def _leaf_columns(file: SourceFile, columns: int) -> int:
    return file.chunks // len(file.group_rows) if file.group_rows else columns


def part_rows(settings: Settings, output_bytes: int) -> int | None:
    """Return how many rows of a part were asked for, directly or as bytes; None if neither.

    Args:
        settings: What was asked for.
        output_bytes: Bytes of a row of the output, as far as the schema tells.
    """
    if settings.rows_per_part is None and settings.part_bytes is not None:
        return max(settings.part_bytes // max(output_bytes, 1), 1)
    return settings.rows_per_part
