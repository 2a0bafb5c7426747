"""Results as Arrow arrays, and tables as what the passes work on."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from polar_etl.columns import Piece, array_of, is_valid, pieces_of
from polar_etl.encoding import Encoded, PagedColumn, PagedColumns, PartFormat, joined
from polar_etl.sources.base import TableWindow
from polar_etl.standardize import Standardizer


def applied(how: Standardizer, columns: Sequence[pa.ChunkedArray]) -> list[pa.Array]:
    """Return the columns standardized, as arrays of their own: what is yielded is scratch."""
    found = []
    made = how.apply([pieces_of(c) for c in columns], len(columns[0]))
    for (column, valid), single in zip(made, how.single, strict=True):
        values = values_of(column).astype(np.float32 if single else np.float64)
        found.append(array_of(values, None if valid is None else valid.copy()))
    return found


def values_of(column: PagedColumn) -> np.ndarray:
    """Return the values of all pages of a column."""
    return np.concatenate([page.values for page in column.pages] or [np.empty(0)])


def paged(values: np.ndarray) -> PagedColumn:
    """Return a column as pages."""
    made = PagedColumns(1, len(values), values.dtype)
    made.put(0, 0, values[None, :])
    return made.column(0)


class TableColumns:
    """A table's columns, read in step."""

    def __init__(self, table: pa.Table) -> None:
        self.rest = table
        self.closed = False

    def next(self, rows: int) -> TableWindow:
        """Return the next rows."""
        assert rows <= self.rest.num_rows
        window = TableWindow(self.rest.slice(0, rows))
        self.rest = self.rest.slice(rows)
        return window

    def close(self) -> None:
        """Tell that it was."""
        self.closed = True


def encoded(form: PartFormat, table: pa.Table, shares: int = 1) -> list[Encoded]:
    """Return a table as the chunks of a row group, its columns in several shares."""
    plain = [name for name in form.plain if name in table.column_names]
    chunks = {}
    for name in plain:
        column = pa.chunked_array(table[name].chunks, table[name].type).combine_chunks()
        (piece,) = pieces_of(pa.chunked_array([column])) or [Piece(np.empty(0))]
        values = piece.values.astype(column.type.to_pandas_dtype())
        valid = is_valid(column) if column.null_count else None
        chunks[name] = form.scalars([name], [(paged(values), valid)])
    others = [name for name in table.column_names if name not in plain]
    chunks |= form.others({name: table[name].combine_chunks() for name in others})
    names = table.column_names
    many = max(-(-len(names) // shares), 1)
    return [
        joined([chunk for name in names[low : low + many] for chunk in chunks[name]])
        for low in range(0, len(names), many)
    ]
