"""Results as Arrow arrays, and tables as what the passes work on."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from polar_etl.columns import Piece, array_of, is_valid, pieces_of
from polar_etl.encoding import Encoded, PartFormat, joined
from polar_etl.sources.base import TableWindow
from polar_etl.standardize import Standardizer


def applied(how: Standardizer, columns: Sequence[pa.ChunkedArray]) -> list[pa.Array]:
    """Return the columns standardized, as arrays of their own: what is yielded is scratch."""
    found = []
    for values, valid in how.apply([pieces_of(c) for c in columns], len(columns[0])):
        assert values.flags.c_contiguous
        found.append(array_of(values.copy(), None if valid is None else valid.copy()))
    return found


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
    columns = []
    for name in plain:
        column = pa.chunked_array(table[name].chunks, table[name].type).combine_chunks()
        (piece,) = pieces_of(pa.chunked_array([column])) or [Piece(np.empty(0))]
        values = piece.values.astype(column.type.to_pandas_dtype())
        columns.append((values, is_valid(column) if column.null_count else None))
    chunks = {n: [c] for n, c in zip(plain, form.scalars(plain, columns), strict=True)}
    chunks |= form.others({n: table[n] for n in table.column_names if n not in plain})
    names = table.column_names
    many = max(-(-len(names) // shares), 1)
    return [
        joined([chunk for name in names[low : low + many] for chunk in chunks[name]])
        for low in range(0, len(names), many)
    ]
