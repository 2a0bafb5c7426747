"""Rows that can be read once, in batches: LazyFrames and Arrow streams."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from polar_etl.errors import InputError, UsageError
from polar_etl.features import first_length, of_equal_lengths, open_lists
from polar_etl.sources.schemas import checked_schema

if TYPE_CHECKING:
    import polars as pl


@dataclass(frozen=True, eq=False)
class StreamSource:
    """An ordered stream of tables of one schema."""

    schema: pa.Schema
    _reader: Iterator[pa.Table]
    lengths: Mapping[str, int] = field(default_factory=dict)
    """The length that all lists of a column must have."""

    @classmethod
    def of(cls, data: Any) -> StreamSource:
        """Return the stream of `data`, a Polars frame or anything with `__arrow_c_stream__`.

        Raises:
            UsageError: `data` is neither.
            InputError: It has no schema of columns to tell.
        """
        if type(data).__module__.partition(".")[0] == "polars" and hasattr(data, "lazy"):
            return _of_lazyframe(data.lazy())
        if not hasattr(data, "__arrow_c_stream__"):
            raise UsageError(
                f"{type(data).__name__} is no source: expected a path, paths, a LazyFrame or an "
                "object with __arrow_c_stream__."
            )
        try:
            reader = pa.RecordBatchReader.from_stream(data)
        except pa.ArrowException as error:
            raise InputError(f"{type(data).__name__} is no stream of tables: {error}") from None
        batches = (pa.Table.from_batches([batch]) for batch in reader)
        return cls(checked_schema("the stream", reader.schema), batches)

    def with_lengths(self, columns: Sequence[str], known: Mapping[str, int]) -> StreamSource:
        """Return the source with the lists among `columns` of one length: a known or the first's.

        What had to be read for it comes again; this source itself must not be used any more.

        Raises:
            InputError: No list tells the length.
        """
        lists = open_lists(self.schema, columns)
        if not lists:
            return self
        read: deque[pa.Table] = deque()
        rest = self.tables()

        def look() -> Iterator[pa.Table]:
            yield from list(read)
            for table in rest:
                read.append(table)
                yield table

        lengths = {name: known.get(name) or first_length(look(), name) for name in lists}
        again = (read.popleft() for _ in range(len(read)))
        return replace(self, lengths=lengths, _reader=chain(again, rest))

    def tables(self) -> Iterator[pa.Table]:
        """Yield the tables; the second call yields nothing.

        Raises:
            InputError: The stream breaks off.
        """
        try:
            yield from of_equal_lengths(self._reader, self.lengths, "the stream", 0)
        except (pa.ArrowException, OSError) as error:
            raise InputError(f"The stream can't be read: {error}") from error


def _of_lazyframe(frame: pl.LazyFrame) -> StreamSource:
    """Return the stream of `frame`; integers of 128 bits, which Arrow lacks, become Float64."""
    import polars as pl
    import polars.selectors as cs

    wide = [getattr(pl, name) for name in ("Int128", "UInt128") if hasattr(pl, name)]
    frame = frame.with_columns(cs.by_dtype(wide).cast(pl.Float64))
    try:
        schema = frame.collect_schema()
    except (pl.exceptions.PolarsError, OSError) as error:
        raise InputError(f"The LazyFrame can't be collected: {error}") from error

    def tables() -> Iterator[pa.Table]:
        try:
            for batch in frame.collect_batches(maintain_order=True):
                yield _table(batch)
        except pl.exceptions.PolarsError as error:
            raise InputError(f"The LazyFrame can't be collected: {error}") from error

    empty = pl.DataFrame(schema=schema)
    return StreamSource(checked_schema("the LazyFrame", _table(empty).schema), tables())


def _table(frame: pl.DataFrame) -> pa.Table:
    from polars import CompatLevel

    return frame.to_arrow(compat_level=CompatLevel.oldest())
