"""What is normalized: a feature is a scalar column, or one dimension of a vector column.

Vectors are fixed-size lists, Arrow's fixed-shape tensors (their elements in storage order), and
lists that turn out to be of one length.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, groupby
from typing import Protocol

import numpy as np
import pyarrow as pa

from polar_etl.columns import (
    Floats,
    Ints,
    Piece,
    by_column,
    is_numeric,
    pieces_of,
    places,
    plain_width,
    present,
)
from polar_etl.errors import InputError, describe
from polar_etl.vectors import fixed, storage_type, vector_pieces


def value_type(kind: pa.DataType) -> pa.DataType | None:
    """Return the type of the numbers that a column holds, plain or in vectors; None if neither.

    Example:
        >>> import pyarrow as pa
        >>> value_type(pa.list_(pa.float32(), 768)), value_type(pa.string())
        (DataType(float), None)
    """
    if plain_width(kind):
        return kind
    kind = storage_type(kind)
    if pa.types.is_fixed_size_list(kind):
        inner = kind.value_type if kind.list_size else None
    else:
        inner = kind.value_type if _is_list(kind) else kind
    return inner if inner is not None and is_numeric(inner) else None


def dimensions(kind: pa.DataType) -> int | None:
    """Return how many numbers each value holds, None where the type does not say."""
    kind = storage_type(kind)
    return int(kind.list_size) if pa.types.is_fixed_size_list(kind) else None


def numbers_in(kind: pa.DataType) -> int | None:
    """Return how many numbers each vector holds, None if it is none, or the type does not say."""
    return dimensions(kind) if value_type(kind) else None


def is_open_list(kind: pa.DataType) -> bool:
    """Tell whether columns of this type hold lists of numbers, which may differ in length."""
    return _is_list(kind) and value_type(kind) is not None


def open_lists(schema: pa.Schema, columns: Iterable[str]) -> list[str]:
    """Return which of the columns `columns` hold lists of numbers, which may differ in length."""
    known = by_column(is_open_list, schema)
    return [name for name in columns if known[name]]


def with_values(kind: pa.DataType, values: pa.DataType, *, nullable: bool) -> pa.DataType:
    """Return `kind` with other numbers in it.

    Args:
        kind: Type of a scalar or vector column.
        values: Type of the numbers.
        nullable: Whether there may be nulls among them, also where `kind` has none.
    """
    if isinstance(kind, pa.FixedShapeTensorType):
        return pa.fixed_shape_tensor(values, kind.shape, kind.dim_names, kind.permutation)
    if value_type(kind) is kind or not hasattr(kind, "value_field"):
        return values
    inner = kind.value_field.with_type(values)
    inner = inner.with_nullable(inner.nullable or nullable)
    if pa.types.is_fixed_size_list(kind):
        return pa.list_(inner, kind.list_size)
    return pa.large_list(inner) if pa.types.is_large_list(kind) else pa.list_(inner)


class Numbers(Protocol):
    """Rows whose columns can be had as numbers, or as Arrow has them."""

    def pieces(self, names: Sequence[str]) -> list[list[Piece]]:
        """Return columns of numbers."""

    def column(self, name: str) -> pa.ChunkedArray:
        """Return a column of any type."""


@dataclass(frozen=True, slots=True)
class Features:
    """The features of some columns, in order.

    Example:
        >>> found = Features(("x", "embedding"), {"embedding": 2})
        >>> len(found), found.labels()
        (3, ['x', 'embedding[0]', 'embedding[1]'])
    """

    columns: tuple[str, ...]
    """Names of the columns."""
    vectors: Mapping[str, int] = field(default_factory=dict)
    """How many dimensions those have that hold vectors."""

    @classmethod
    def of(
        cls, schema: pa.Schema, columns: tuple[str, ...], lengths: Mapping[str, int]
    ) -> Features:
        """Return the features of some columns.

        Args:
            schema: Of the source.
            columns: Names of the columns.
            lengths: How many numbers the lists hold where the type does not say.
        """
        known = by_column(numbers_in, schema)
        return cls(columns, {**{name: n for name in columns if (n := known[name])}, **lengths})

    @classmethod
    def of_labels(cls, labels: list[str], dimensions: list[int | None]) -> Features:
        """Return the features of which `labels` and `dimensions` were asked for.

        Raises:
            ValueError: They contradict each other.
        """
        columns: list[str] = []
        vectors: dict[str, int] = {}
        for label, place in zip(labels, dimensions, strict=True):
            name = label if place is None else label.removesuffix(f"[{place}]")
            if not place:
                columns.append(name)
            if place is not None:
                if place != vectors.get(name, 0):
                    raise ValueError("a dimension is missing")
                vectors[name] = place + 1
        if len(set(columns)) != len(columns):
            raise ValueError("it holds a column twice")
        found = cls(tuple(columns), vectors)
        if found.labels() != labels or found.dimensions() != dimensions:
            raise ValueError("its dimensions contradict each other")
        return found

    def __len__(self) -> int:
        """Return the number of features."""
        more = sum(size - 1 for name, size in self.vectors.items() if name in self.columns)
        return len(self.columns) + more

    def spans(self) -> Iterator[tuple[str, slice]]:
        """Yield each column with the places of its features."""
        start = 0
        for name in self.columns:
            stop = start + self.vectors.get(name, 1)
            yield name, slice(start, stop)
            start = stop

    def places(self, names: Iterable[str]) -> Ints:
        """Return the places of the features of some of the columns, column by column.

        Example:
            >>> Features(("x", "embedding"), {"embedding": 2}).places(["embedding", "x"]).tolist()
            [1, 2, 0]
        """
        spans = dict(self.spans())
        found = [range(spans[name].start, spans[name].stop) for name in names]
        return np.array(list(chain.from_iterable(found)), np.int64)

    def dimensions(self) -> list[int | None]:
        """Return for each feature which dimension of a vector it is, None for scalar columns."""
        return [
            place
            for name in self.columns
            for place in (range(self.vectors[name]) if name in self.vectors else (None,))
        ]

    def owners(self) -> list[str]:
        """Return the column of each feature."""
        if not self.vectors:  # as a rule, where there are ten thousand
            return list(self.columns)
        return [name for name in self.columns for _ in range(self.vectors.get(name, 1))]

    def labels(self) -> list[str]:
        """Return the name of each feature: the column's, and the dimension in brackets."""
        if not self.vectors:
            return list(self.columns)
        pairs = zip(self.owners(), self.dimensions(), strict=True)
        return [name if place is None else f"{name}[{place}]" for name, place in pairs]

    def select(self, names: Sequence[str]) -> Features:
        """Return the features of some of the columns."""
        return Features(
            tuple(names), {name: size for name, size in self.vectors.items() if name in names}
        )

    @property
    def scalars(self) -> list[str]:
        """The columns that are no vectors."""
        return [name for name in self.columns if name not in self.vectors]

    def pieces(self, window: Numbers) -> Iterator[list[list[Piece]]]:
        """Yield the values of the features, in order, those of some at a time.

        Lists must be of the right length, see `of_equal_lengths`.
        """
        for are_vectors, names in groupby(self.columns, self.vectors.__contains__):
            if not are_vectors:
                yield window.pieces(list(names))
                continue
            for name in names:
                size = self.vectors[name]
                yield from vector_pieces(fixed(window.column(name), size), size)


def of_equal_lengths(
    tables: Iterable[pa.Table], sizes: Mapping[str, int], where: str, first: int
) -> Iterator[pa.Table]:
    """Yield `tables` again, after a look at the lengths of their lists.

    Args:
        tables: Rows in order.
        sizes: The length that all lists of a column must have.
        where: What the rows come from, for the message.
        first: Index of the first row.

    Raises:
        InputError: A list has another length; names the row, counted from 0.
    """
    for table in tables:
        for name in sizes:
            if name in table.column_names:
                require_lengths(name, table.column(name), sizes[name], where, first)
        first += table.num_rows
        yield table
        del table


def require_lengths(name: str, column: pa.ChunkedArray, size: int, where: str, first: int) -> None:
    """Check that all lists of a column are of one length.

    Raises:
        InputError: One is not; names the row, counted from 0, where `first` is the first.
    """
    lengths, rows = _lengths(column)
    wrong = np.flatnonzero(lengths != size)
    if len(wrong):
        row = rows[wrong[0]]
        raise InputError(
            f"Column {describe(name)} holds {lengths[wrong[0]]:.0f} numbers in row "
            f"{first + row} (counted from 0) of {describe(where)}, where {size} "
            "were expected: only vectors of one length can be normalized. Mend that row, "
            "or leave the column out of --columns."
        )


def _lengths(column: pa.ChunkedArray) -> tuple[Floats, Ints]:
    """Return the lengths of the lists that are not null, and their places."""
    import pyarrow.compute as pc

    found = pc.list_value_length(column)
    pieces = pieces_of(found)
    return present(pieces, 0, len(found)), places(pieces, 0, len(found))


def first_length(tables: Iterable[pa.Table], name: str) -> int:
    """Return the length of the first list of a column that is not null.

    Raises:
        InputError: There is none, or it is empty.
    """
    lengths = (_lengths(table.column(name))[0] for table in tables)
    size = next((found[0] for found in lengths if len(found)), None)
    if not size:
        found = "holds nulls only" if size is None else "begins with an empty list"
        raise InputError(
            f"Column {describe(name)} {found}, so nothing tells how many dimensions there are. "
            "Leave it out of --columns, or --exclude it."
        )
    return int(size)


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind))
