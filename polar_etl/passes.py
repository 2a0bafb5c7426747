"""The two passes over a source, as tasks: moments of batches, and parts from batches."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from polar_etl.blocks import observe
from polar_etl.errors import InputError, RunFailedError, describe
from polar_etl.features import Features, in_short_chunks, with_values
from polar_etl.moments import Moments
from polar_etl.parts import PartFormat, PartWriter, Receipt, part_name
from polar_etl.scaler import Scaler, output_type
from polar_etl.standardize import Standardizer
from polar_etl.workspace import Workspace


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows of one file, decoded."""

    file: int
    first_row: int
    """Index of the first row within the file: a multiple of the block's rows."""
    table: pa.Table


@dataclass(frozen=True, slots=True)
class BatchMoments:
    """What became of a `Batch`."""

    file: int
    first_row: int
    rows: int
    bytes_in: int
    blocks: list[Moments]
    seconds: float


def collect_moments(batch: Batch, features: Features) -> BatchMoments:
    """Return the moments of every block of a batch."""
    started = time.perf_counter()
    return BatchMoments(
        file=batch.file,
        first_row=batch.first_row,
        rows=batch.table.num_rows,
        bytes_in=batch.table.nbytes,
        blocks=observe(features.pieces(batch.table), batch.table.num_rows, batch.first_row),
        seconds=time.perf_counter() - started,
    )


@dataclass(frozen=True, slots=True)
class Slab:
    """Rows that become one row group of a part, decoded."""

    part: int
    last: bool
    """Whether the part ends with this slab."""
    table: pa.Table


@dataclass(frozen=True, slots=True)
class Written:
    """What became of a `Slab`."""

    part: int
    rows: int
    bytes_in: int
    receipt: Receipt | None
    """The part's receipt, with its last slab."""
    seconds: float


@dataclass(eq=False)
class PartsStage:
    """Normalizes slabs and writes them; slabs of one part come in order, parts side by side."""

    features: Features
    standardizer: Standardizer
    form: PartFormat
    writer: Callable[[int], PartWriter]
    """Begins the part of an index."""
    in_place: bool = False
    """Whether the values of slabs may be overwritten: nobody else has them."""
    _open: dict[int, PartWriter] = field(default_factory=dict)
    _failed: bool = False

    @classmethod
    def into(
        cls,
        workspace: Workspace,
        schema: pa.Schema,
        scaler: Scaler,
        level: int,
        *,
        in_place: bool = False,
    ) -> PartsStage:
        """Return the stage that writes a source of this schema into a workspace."""
        form = PartFormat(output_schema(schema, scaler), scaler.columns, level)
        scratch = workspace.scratch
        return cls(
            features=scaler.features,
            standardizer=scaler.standardizer(),
            form=form,
            writer=lambda index: PartWriter(workspace.out, scratch, part_name(index), form),
            in_place=in_place,
        )

    def write(self, slab: Slab) -> Written:
        """Append a slab to its part, and commit the part with its last slab.

        Once a slab has failed all further ones do: a part must not be begun in its middle.
        """
        if self._failed:
            raise RunFailedError("An earlier batch has failed.")
        started = time.perf_counter()
        writer = self._open.get(slab.part)
        if writer is None:
            writer = self._open[slab.part] = self.writer(slab.part)
        try:
            writer.write(self._normalized(slab.table))
            receipt = writer.commit() if slab.last else None
        except BaseException:
            self._failed = True
            self._open.pop(slab.part).abort()
            raise
        if slab.last:
            del self._open[slab.part]
        return Written(
            part=slab.part,
            rows=slab.table.num_rows,
            bytes_in=slab.table.nbytes,
            receipt=receipt,
            seconds=time.perf_counter() - started,
        )

    def abort(self) -> None:
        """Drop all parts that were begun and not committed."""
        while self._open:
            self._open.popitem()[1].abort()

    def _normalized(self, table: pa.Table) -> pa.Table:
        done = dict(self._standardized(table))
        columns = [
            done[name] if name in done else passed_through(name, table.column(name))
            for name in table.column_names
        ]
        return pa.Table.from_arrays(columns, schema=self.form.schema)

    def _standardized(self, table: pa.Table) -> Iterator[tuple[str, pa.Array | pa.ChunkedArray]]:
        vectors = self.features.vectors
        places = {name: span for name, span in self.features.spans() if name not in vectors}
        scalars = self.standardizer.select(np.array([s.start for s in places.values()], np.int64))
        pieces = Features(tuple(places)).pieces(table)
        done = scalars.apply(pieces, len(table), in_place=self.in_place)
        yield from zip(places, done, strict=True)
        for name, span in self.features.spans():
            if name in vectors:
                how, kind = self.standardizer.select(span), self.form.schema.field(name).type
                made = how.apply_to_vectors(table.column(name), kind)
                yield name, in_short_chunks(made, vectors[name])


def passed_through(name: str, column: pa.ChunkedArray) -> pa.ChunkedArray | pa.Array:
    """Return a column in the form that gives the same bytes however it was cut when read.

    Raises:
        InputError: The decoded values are not valid Arrow, text that is not UTF-8 for one.
    """
    try:
        column.validate(full=True)
    except pa.ArrowInvalid as error:
        raise InputError(f"Column {describe(name)} holds invalid values: {error}") from None
    if pa.types.is_dictionary(column.type):
        return _encoded_anew(column)
    try:
        return column.combine_chunks()
    except pa.ArrowInvalid:  # more text than 32-bit offsets can tell
        return column


def _encoded_anew(column: pa.ChunkedArray) -> pa.Array:
    kind = column.type
    if kind.ordered:  # the order is the dictionary's, levels that do not occur included
        return column.unify_dictionaries().combine_chunks()
    plain = column.cast(kind.value_type).combine_chunks()
    encoded = plain.dictionary_encode()
    return pa.DictionaryArray.from_arrays(encoded.indices.cast(kind.index_type), encoded.dictionary)


def output_schema(schema: pa.Schema, scaler: Scaler) -> pa.Schema:
    """Return the schema of the parts: the source's, with normalized columns as floats."""
    fields = list(schema)
    made_null = (scaler.moments.inf_count > 0) & (scaler.inf == "null")
    spans = dict(scaler.features.spans())
    for name, dtype in zip(scaler.columns, scaler.dtypes, strict=True):
        place = schema.get_field_index(name)
        single = output_type(dtype, scaler.dtype) == "float32"
        more_nulls = bool(made_null[spans[name]].any())
        floats = pa.float32() if single else pa.float64()
        column = schema.field(place)
        column = column.with_type(with_values(column.type, floats, nullable=more_nulls))
        if name not in scaler.vectors:
            column = column.with_nullable(column.nullable or more_nulls)
        fields[place] = column
    return pa.schema(fields, metadata=schema.metadata)
