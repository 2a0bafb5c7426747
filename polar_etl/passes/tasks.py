"""The two passes over a source, as tasks: each decodes some rows of some columns and is done.

A task takes a few columns at a time from their bytes to their moments, or to the bytes of the
output, while they are in the processor's cache. Nothing decoded outlives it but what is kept.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from polar_etl.columns import Ints, listed, word_type
from polar_etl.encoding.chunks import Chunk, Encoded, joined
from polar_etl.encoding.dictionaries import LookedUp, looked_up_numbers
from polar_etl.encoding.part_format import PartFormat
from polar_etl.encoding.repeats import repeats_in
from polar_etl.encoding.words import words_of
from polar_etl.errors import InputError, describe
from polar_etl.features import Features, with_values
from polar_etl.pages.ahead import NONE_AHEAD, Ahead
from polar_etl.planning.plan import Together
from polar_etl.sources.base import Columns, Window
from polar_etl.sources.gathered import gathered
from polar_etl.statistics.blocks import observe
from polar_etl.statistics.moments import Moments
from polar_etl.statistics.scaler import Scaler, output_type
from polar_etl.statistics.standardize import Standardizer
from polar_etl.vectors import in_short_chunks


def groups_of(names: Sequence[str], rows: int, together: Together) -> Iterator[Sequence[str]]:
    """Yield `names` in runs of columns of `rows` rows that are worked on together.

    Example:
        >>> list(groups_of(["a", "b", "c"], 500, Together(values=1000)))
        [['a', 'b'], ['c']]
    """
    many = max(min(together.values // max(rows, 1), together.columns), 1)
    for low in range(0, len(names), many):
        yield names[low : low + many]


class Batch(NamedTuple):
    """Rows of one file, of some of its columns."""

    file: int
    first_row: int
    """Index of the first row within the file: a multiple of the block's rows."""
    rows: int
    columns: Columns
    """The next of their rows are these."""
    features: Features
    lane: int
    """Whoever has this one has the next rows of these columns, too."""
    width: int
    """Features in all shares."""
    together: Together
    """What is worked on at a time."""
    ahead: Ahead = NONE_AHEAD
    """Rows of the same columns that are decoded with these."""


class BatchMoments(NamedTuple):
    """What became of a `Batch`, or of all shares of one."""

    file: int
    first_row: int
    rows: int
    blocks: list[Moments]
    seconds: float

    @classmethod
    def beside(cls, shares: Sequence[BatchMoments], order: Ints) -> BatchMoments:
        """Return the moments of all columns, from those of their shares.

        Args:
            shares: Which cover the same rows.
            order: See `Moments.beside`.
        """
        first = shares[0]
        return cls(
            file=first.file,
            first_row=first.first_row,
            rows=first.rows,
            blocks=[
                Moments.beside(found, order)
                for found in zip(*(share.blocks for share in shares), strict=True)
            ],
            seconds=sum(share.seconds for share in shares),
        )


def collect_moments(batch: Batch) -> BatchMoments:
    """Return the moments of every block of a batch."""
    started = time.perf_counter()
    window = batch.columns.next(batch.rows, batch.ahead)
    return BatchMoments(
        file=batch.file,
        first_row=batch.first_row,
        rows=batch.rows,
        blocks=moments_of(window, batch.features, batch.first_row, batch.width, batch.together),
        seconds=time.perf_counter() - started,
    )


def moments_of(
    window: Window, features: Features, first_row: int, width: int, together: Together
) -> list[Moments]:
    """Return the moments of every block of a window, a few columns at a time.

    Args:
        window: The rows.
        features: What is looked at.
        first_row: Index of the first row within its file.
        width: How many features the table has.
        together: How much is worked on at a time.
    """
    window = gathered(window, features.scalars, together.gathered)
    columns = chain.from_iterable(
        features.select(few).pieces(window)
        for few in groups_of(features.columns, window.rows, together)
    )
    return observe(columns, len(features), window.rows, first_row, width)


class Place(NamedTuple):
    """Where a share of a slab belongs in the output."""

    part: int
    rows: int
    """Of the slab."""
    last: bool
    """Whether the part ends with this slab."""
    ends: bool
    """Whether this is the last share of the slab."""


class Slab(NamedTuple):
    """Rows that become one row group of a part, of some of the columns."""

    place: Place
    columns: Columns
    """The next of their rows are these."""
    names: Sequence[str]
    lane: int
    """Whoever has this one has the next rows of these columns, too."""
    together: Together
    """What is worked on at a time."""
    ahead: Ahead = NONE_AHEAD
    """Rows of the same columns that are decoded with these."""


class EncodedSlab(NamedTuple):
    """What became of a `Slab`."""

    place: Place
    encoded: Encoded
    seconds: float


@dataclass(frozen=True, eq=False)
class Encoder:
    """Standardizes and encodes windows."""

    scaler: Scaler
    standardizer: Standardizer
    form: PartFormat

    @classmethod
    def of(cls, schema: pa.Schema, scaler: Scaler, level: int | None) -> Encoder:
        """Return the encoder for a source of this schema."""
        form = PartFormat(output_schema(schema, scaler), scaler.columns, level)
        return cls(scaler, scaler.standardizer(), form)

    @cached_property
    def _places(self) -> dict[str, slice]:
        """By column: the places of its features."""
        return dict(self.scaler.features.spans())

    def encode_slab(self, slab: Slab) -> EncodedSlab:
        """Return a slab's columns as bytes."""
        started = time.perf_counter()
        window = slab.columns.next(slab.place.rows, slab.ahead)
        encoded = self.encode(window, slab.names, slab.together)
        return EncodedSlab(slab.place, encoded, time.perf_counter() - started)

    def encode(self, window: Window, names: Sequence[str], together: Together) -> Encoded:
        """Return columns of a window as the chunks of a row group."""
        if not window.rows:
            return joined([])
        places = {name: self._places[name] for name in names if name in self._places}
        vectors = self.scaler.vectors
        scalars = [name for name in names if name in places and name not in vectors]
        window = gathered(window, scalars, together.gathered)
        chunks: dict[str, list[Chunk]] = {}
        for some in groups_of(scalars, window.rows, together._replace(columns=len(scalars))):
            features = [places[name].start for name in some]
            encoded = self._scalars(some, features, window, together)
            chunks |= {name: [chunk] for name, chunk in encoded.items()}
        others: dict[str, pa.Array | pa.ChunkedArray] = {}
        for name in names:
            if name in places and name in vectors:
                how, column = self.standardizer.select(places[name]), window.column(name)
                paged = how.paged_vectors(column)
                if paged and (chunk := self.form.vectors(name, paged)):
                    chunks[name] = [chunk]
                    continue
                made = how.apply_to_vectors(column, self.form.schema.field(name).type)
                others[name] = in_short_chunks(made, vectors[name])
            elif name not in chunks and word_type(self.form.schema.field(name).type) is None:
                others[name] = passed_through(name, window.column(name))
        chunks |= self.form.others(others)
        for name in names:
            if name not in chunks:
                kind = self.form.schema.field(name).type
                text = passed_through(name, window.text(name), kind)
                chunks[name] = self.form.text(name, text)
                del text
        return joined([chunk for name in names for chunk in chunks[name]])

    def _scalars(
        self, names: Sequence[str], features: Sequence[int], window: Window, together: Together
    ) -> dict[str, Chunk]:
        """Return columns of numbers as chunks, those of few different values by a dictionary."""
        rows = window.rows
        columns = [
            pieces
            for few in groups_of(names, rows, together)  # that much is decoded at one go
            for pieces in window.pieces(few)
        ]
        few: dict[str, LookedUp] = {}
        for name, feature, pieces in zip(names, features, columns, strict=True):
            if repeats := repeats_in(pieces, rows):
                values = self.standardizer.apply_to_values(feature, repeats.values)
                if np.isfinite(values).all():
                    few[name] = looked_up_numbers(values, repeats, rows)
        many = [at for at, name in enumerate(names) if name not in few]
        how = self.standardizer.select(np.array([features[at] for at in many], np.int64))
        done = how.apply([columns[at] for at in many], rows)
        del columns, pieces  # nothing decoded is needed while the rest is compressed
        found = dict(zip(few, self.form.looked_up(few), strict=True))
        others = [names[at] for at in many]
        return found | dict(zip(others, self.form.scalars(others, done), strict=True))


def passed_through(
    name: str, column: pa.ChunkedArray, kind: pa.DataType | None = None
) -> pa.ChunkedArray | pa.Array:
    """Return a column in the form that gives the same bytes however it was cut when read.

    Args:
        name: Of the column.
        column: Its rows; text may be words and their places, whatever its type.
        kind: Type of the column, if it may come as another one. Text goes out as words.

    Raises:
        InputError: The decoded values are not valid Arrow, text that is not UTF-8 for one.
    """
    kind = kind or column.type
    try:
        column.validate(full=True)
    except pa.ArrowInvalid as error:
        raise InputError(f"Column {describe(name)} holds invalid values: {error}") from None
    if word_type(kind) and len(column):
        return words_of(column, kind)
    if column.type != kind:
        column = column.cast(kind)
    if pa.types.is_dictionary(kind):  # the order is its own, levels that do not occur included
        return column.unify_dictionaries().combine_chunks()
    try:
        return column.combine_chunks()
    except pa.ArrowInvalid:  # more values than 32-bit offsets can tell
        return column


def output_schema(schema: pa.Schema, scaler: Scaler) -> pa.Schema:
    """Return the schema of the parts: the source's, with normalized columns as floats."""
    more_nulls = scaler.inf == "null"
    changed: dict[int, pa.Field] = {}
    dtypes = dict(zip(scaler.columns, scaler.dtypes, strict=True))
    for place, (name, kind) in enumerate(zip(*listed(schema), strict=True)):
        if name not in dtypes:
            continue
        single = output_type(dtypes[name], scaler.dtype) == "float32"
        floats = pa.float32() if single else pa.float64()
        if more_nulls or kind.id != floats.id:
            column = schema.field(place)
            column = column.with_type(with_values(kind, floats, nullable=more_nulls))
            more = more_nulls and name not in scaler.vectors
            changed[place] = column.with_nullable(True) if more else column
    if not changed:  # as of floats; to make ten thousand fields anew takes a while
        return schema
    fields = (changed.get(place, column) for place, column in enumerate(schema))
    return pa.schema(fields, metadata=schema.metadata)
