"""Row groups of one Parquet file to Arrow tables, columns side by side in several threads.

PyArrow can share its work among threads itself, column by column; that takes half as long again
where column chunks or batches are short (measured), so each thread reads columns of its own.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache, partial
from itertools import chain, pairwise, repeat
from typing import TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from polar_etl.errors import InputError, PolarEtlError, RunFailedError, describe
from polar_etl.sources.base import Reading, cut

Result = TypeVar("Result")

STREAM_BUFFER = 1 << 16
"""Bytes of a file that are read at a time where columns are not read whole."""
_COLUMNS_AT_A_TIME = 128
_BYTES_AT_A_TIME = 1 << 22
_TRANSIENT = {errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ESTALE, errno.EINTR}
"""Errors of the system that say nothing about the file."""


def columns_at_a_time(rows: int) -> int:
    """Return how many columns of so many rows one thread reads at a time.

    PyArrow keeps a decompressor (0.1 MB) for each of them, and what it has read of all of them.
    """
    return min(max(_BYTES_AT_A_TIME // (8 * max(rows, 1)), 1), _COLUMNS_AT_A_TIME)


@dataclass(frozen=True, slots=True)
class Decoder:
    """Decodes some columns of one file."""

    path: str
    footer: pq.FileMetaData
    schema: pa.Schema
    """The columns that are decoded."""
    leaves: tuple[range, ...]
    """Indices of the Parquet columns that each of them consists of."""
    how: Reading

    def whole(self, groups: list[int]) -> Iterator[pa.Table]:
        """Yield the rows of some row groups as one table.

        Raises:
            InputError: They can't be decoded.
        """
        shares = self._shares()
        many = columns_at_a_time(sum(self.footer.row_group(i).num_rows for i in groups))
        tasks = [partial(self._columns, groups, share, many) for share in shares]
        found = _side_by_side(tasks, self.how.threads)
        yield self._table(chain.from_iterable(found))

    def _columns(
        self, groups: list[int], share: Sequence[range], many: int
    ) -> list[pa.ChunkedArray]:
        found: list[pa.ChunkedArray] = []
        with self._opened(buffer_size=0) as opened:
            for low in range(0, len(share), many):
                indices = list(chain.from_iterable(share[low : low + many]))
                table = opened.reader.read_row_groups(
                    groups, column_indices=indices, use_threads=False
                )
                found += table.columns
        return found

    def inside(self, group: int) -> Iterator[pa.Table]:
        """Yield the rows of one row group, `how.stream_rows` at a time.

        Raises:
            InputError: They can't be decoded.
        """
        streams = [self._stream(group, share) for share in self._shares()]
        with ExitStack() as stack:
            for stream in streams:
                stack.callback(stream.close)
            tasks = [partial(next, stream, None) for stream in streams]
            while all(tables := _side_by_side(tasks, self.how.threads)):
                yield self._table(column for table in tables for column in table.columns)
                del tables

    def _stream(self, group: int, share: Sequence[range]) -> Generator[pa.Table, None, None]:
        with self._opened(buffer_size=STREAM_BUFFER) as opened:
            batches = opened.reader.iter_batches(
                self.how.stream_rows,
                row_groups=[group],
                column_indices=list(chain.from_iterable(share)),
                use_threads=False,
            )
            tables = (pa.Table.from_batches([batch]) for batch in batches)
            yield from cut(tables, repeat(self.how.stream_rows))

    def _shares(self) -> list[tuple[range, ...]]:
        """Return the columns in as many runs of neighbours as there are threads for."""
        count = min(self.how.threads, len(self.leaves))
        bounds = [len(self.leaves) * i // count for i in range(count + 1)]
        return [self.leaves[low:high] for low, high in pairwise(bounds)]

    def _table(self, columns: Iterable[pa.ChunkedArray]) -> pa.Table:
        """Return the columns as a table, after checking that they are what the footer promised."""
        found = list(columns)
        with explained(self.path):
            for expected, column in zip(self.schema, found, strict=True):
                if not column.type.equals(expected.type):
                    raise pa.ArrowInvalid(
                        f"column {describe(expected.name)} decodes to {column.type}, "
                        f"not to {expected.type}"
                    )
            return pa.Table.from_arrays(found, schema=self.schema)

    @contextmanager
    def _opened(self, *, buffer_size: int) -> Iterator[pq.ParquetFile]:
        with (
            explained(self.path),
            pq.ParquetFile(
                self.path,
                metadata=self.footer,
                pre_buffer=False,
                buffer_size=buffer_size,
                page_checksum_verification=True,
            ) as opened,
        ):
            yield opened


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    """Return the threads that decode. They stay: each new one takes new memory from jemalloc."""
    return ThreadPoolExecutor(threads, thread_name_prefix="polar-etl-decode")


os.register_at_fork(after_in_child=_pool.cache_clear)  # no thread outlives a fork


def _side_by_side(tasks: Iterable[Callable[[], Result]], threads: int) -> list[Result]:
    """Return the results of all tasks, once all have ended: also before one's error is raised."""
    futures = [_pool(threads).submit(task) for task in tasks]
    wait(futures)
    return [future.result() for future in futures]


@contextmanager
def explained(path: str) -> Iterator[None]:
    """Turn whatever goes wrong with a file that is read into an error that says so.

    Raises:
        InputError: The file can't be read.
        RunFailedError: It can't be read just now.
    """
    try:
        yield
    except Exception as error:
        raise _explanation(path, error) from None


def _explanation(path: str, error: Exception) -> Exception:
    """Return what to raise: errors of ours and of memory as they are."""
    if isinstance(error, (PolarEtlError, MemoryError)):
        return error
    if isinstance(error, OSError) and error.errno in _TRANSIENT:
        return RunFailedError(f"{describe(path)} can't be read just now: {error.strerror}.")
    reason = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, FileNotFoundError):
        reason = "there is no such file"
    return InputError(
        f"{describe(path)} can't be read as Parquet: {describe(reason, 300)[1:-1]}. "
        "Check that the file is complete and not damaged or encrypted."
    )
