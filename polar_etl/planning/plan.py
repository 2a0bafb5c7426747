"""A plan: how a run goes, and what it takes of memory line by line."""

from __future__ import annotations

from typing import NamedTuple

from polar_etl.sources.base import Reading

MIB = 1 << 20
MANY_VALUES = 1 << 20
"""Values worked on at a time where memory is not scarce."""


class Together(NamedTuple):
    """How much is worked on at a time, at most; one column at least."""

    values: int
    columns: int = 1 << 30
    """So few are decoded at a time: each may take much memory however few rows are asked for."""
    gathered: int = 1
    """So many are, at least, as rows are in short pieces."""


Bill = tuple[tuple[str, int], ...]
"""What for, and how many bytes."""


class Plan(NamedTuple):
    """How a run goes.

    Only `slab_rows` and `part_rows` shape the output, and neither follows from the memory limit or
    the threads.
    """

    slab_rows: int
    """Rows of a row group of the output."""
    part_rows: int
    """Rows of a part, the last one excepted."""
    parts: int
    """Number of parts."""
    batch_rows: int
    """Rows of a batch of the first pass, at most: whole blocks."""
    batch_rest: int
    """Rows left of a row group behind a batch that are decoded with it and held for the next one,
    at most; where more are left, they are decoded again."""
    threads: int
    """Threads that decode and work on columns, in all processes."""
    processes: int
    """Processes that have one such thread each; 1 if all are of this one."""
    shares: int
    """Runs of columns that batches and slabs are cut into, for the threads."""
    ahead: int
    """Batches of the first pass in flight."""
    in_flight: int
    """Shares of slabs in flight: they are encoded, or wait to be written."""
    abreast: int
    """Slabs, at most, whose shares are encoded before the next share is begun. What is not kept of
    a page or a dictionary is decoded once for all of them."""
    rest: int
    """Rows left of a row group behind slabs abreast that are held for the next ones, as of a
    batch."""
    together: Together
    """What a thread works on at a time in the second pass."""
    batch_together: Together
    """The same of the first pass."""
    reading: Reading
    bill: Bill
    """What the projected peak consists of."""
    limit: int
    deals_rows: bool = False
    """Whether threads have batches of the first pass by turns, rather than some columns of each: so
    each of many short files is opened by one of them."""
    deals_slabs: bool = False
    """Whether they have slabs by turns, too: a column of vectors is encoded by one thread."""
    keeps: bool = False
    """Whether the first pass keeps the numbers that it decodes for the second one."""

    @property
    def projected(self) -> int:
        """Bytes that the process is expected to need at most."""
        return sum(size for _, size in self.bill)

    @property
    def parts_at_a_time(self) -> int:
        """Parts that are written side by side: slabs that go abreast, if each is a whole part.

        Those of one part must be written one after the other.
        """
        return min(self.abreast, self.parts) if self.part_rows <= self.slab_rows else 1
