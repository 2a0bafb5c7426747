"""Results as Arrow arrays, and tables as what the passes work on."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from polar_etl.columns import Piece, array_of, is_valid, pieces_of
from polar_etl.encoding.chunks import Encoded, joined, placed
from polar_etl.encoding.contents import Readable
from polar_etl.encoding.page_buffers import Filled, PagedColumns
from polar_etl.encoding.part_format import PartFormat
from polar_etl.sources.base import TableWindow
from polar_etl.statistics.standardize import Standardizer


def applied(how: Standardizer, columns: Sequence[pa.ChunkedArray]) -> list[pa.Array]:
    """Return the columns standardized, as arrays of their own: what is returned is scratch."""
    found = {}
    for filled in how.apply([pieces_of(c) for c in columns], len(columns[0])):
        for at, place in enumerate(filled.places):
            valid = filled.valid.get(at)
            values = values_of(filled, at).copy()
            found[place] = array_of(values, None if valid is None else valid.copy())
    return [found[place] for place in range(len(columns))]


def values_of(filled: Filled, at: int = 0) -> np.ndarray:
    """Return the values of all pages of a column."""
    pages = filled.columns.pages(at)
    return np.concatenate([page.values for page in pages] or [np.empty(0, filled.columns.dtype)])


def paged(values: np.ndarray, valid: np.ndarray | None = None) -> Filled:
    """Return a column as pages."""
    made = PagedColumns(1, len(values), values.dtype)
    made.put(0, 0, values[None, :])
    return Filled([0], made, {} if valid is None else {0: valid})


def in_one(shares: Sequence[Encoded], start: int = 4) -> tuple[bytes, bytes]:
    """Return the bytes of neighbouring shares, and what a footer says of them."""
    content, entries = b"", b""
    for share in shares:
        entries += placed(share, start + len(content)).entries
        content += octets(share.content)
    return content, entries


def octets(content: Readable) -> bytes:
    """Return what is left of a content."""
    room = np.empty(len(content), np.uint8)
    assert content.read_into(room) is None
    return room.tobytes()


class TableColumns:
    """A table's columns, read in step."""

    def __init__(self, table: pa.Table) -> None:
        self.rest = table
        self.closed = False

    def next(self, rows: int, more: int = 0) -> TableWindow:
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
        chunks[name] = form.scalars([name], [paged(values, valid)])
    others = [name for name in table.column_names if name not in plain]
    chunks |= form.others({name: table[name].combine_chunks() for name in others})
    names = table.column_names
    many = max(-(-len(names) // shares), 1)
    return [
        joined([chunk for name in names[low : low + many] for chunk in chunks[name]])
        for low in range(0, len(names), many)
    ]
