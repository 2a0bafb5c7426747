"""What every source can tell and do, and the cutting of its rows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

import pyarrow as pa


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One file of a source, as its footer describes it."""

    path: str
    """Absolute path."""
    size: int
    mtime_ns: int
    footer: str
    """Hash of the footer, which holds the place and size of every column chunk."""
    group_rows: tuple[int, ...]
    """Rows of each row group."""
    chunks: int
    """Column chunks: leaf columns times row groups. What a decoded footer costs follows from it."""
    variable_bytes: int
    """Uncompressed bytes of columns of variable width, as the footer has it."""
    page_bytes: int
    """Uncompressed bytes of the largest page among those looked at."""

    @property
    def rows(self) -> int:
        """Rows of the file."""
        return sum(self.group_rows)


@dataclass(frozen=True, slots=True)
class Reading:
    """How rows are read: a trade between speed and memory that never changes what is read."""

    threads: int
    """Threads that decode columns side by side."""
    group_rows: int
    """Row groups up to this size are decoded whole, small ones together; 0: none is."""
    stream_rows: int
    """Rows decoded at a time from inside larger row groups."""


class Source(Protocol):
    """Where rows come from. Row order is part of a source's identity."""

    @property
    def schema(self) -> pa.Schema:
        """Names and Arrow types of the columns."""

    @property
    def files(self) -> tuple[SourceFile, ...]:
        """The files in row order."""

    def fingerprint(self, *, full: bool = False) -> dict[str, object]:
        """Return a small JSON value that changes when the input does.

        Args:
            full: Whether all bytes are looked at, not only where they are and how many.

        Raises:
            InputError: The input can't be read.
        """

    def read(
        self, file: int, first: int, stop: int, columns: list[str] | None, how: Reading
    ) -> Iterator[pa.Table]:
        """Yield the rows `first` … `stop` of a file in order, as tables of any length.

        Args:
            file: Index into `files`.
            first: First row, counted from the start of the file.
            stop: Row behind the last one.
            columns: Names of the columns to read, in schema order; None for all.
            how: Trade between speed and memory.

        Raises:
            InputError: The file can't be decoded.
        """


def cut(tables: Iterable[pa.Table], lengths: Iterable[int]) -> Iterator[pa.Table]:
    """Yield the rows of `tables` again, cut into tables of the given lengths, without copying.

    The last table is shorter where the rows end before the lengths do.

    Example:
        >>> import pyarrow as pa
        >>> [len(t) for t in cut([pa.table({"x": range(5)})], [2, 2, 2])]
        [2, 2, 1]
    """
    incoming = iter(tables)
    held: list[pa.Table] = []
    rows = 0
    for length in lengths:
        while rows < length and (table := next(incoming, None)) is not None:
            held.append(table)
            rows += table.num_rows
            del table
        if not rows:
            return
        whole = held[0] if len(held) == 1 else pa.concat_tables(held)
        taken = min(length, rows)
        rows -= taken
        held = [whole.slice(taken)] if rows else []
        yield whole if taken == whole.num_rows else whole.slice(0, taken)
        del whole
