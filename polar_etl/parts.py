"""One part of the output: a zstd Parquet file that is there whole or not at all."""

from __future__ import annotations

import io
import os
import re
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from polar_etl.durable import create_temporary, sync_directory

_NAME = re.compile(r"part-\d{5,9}\.parquet")
_PAGE_BYTES = 1 << 18
_HASH_CHUNK = 1 << 22
_GATHERED = 1 << 18
"""Pages shorter than this are gathered into one write; longer ones go past the buffer."""


@dataclass(frozen=True, slots=True)
class Receipt:
    """What a written part says of itself."""

    name: str
    rows: int
    size: int
    """Bytes of the file."""
    digest: str
    """XXH3-128 of the file, as hexadecimal text."""


@dataclass(frozen=True, slots=True)
class PartFormat:
    """How parts are encoded; the same for all parts of an output."""

    schema: pa.Schema
    plain: tuple[str, ...]
    """Names of the normalized columns: no dictionary, no statistics, nobody looks values up."""
    level: int
    """Level of zstd."""


def part_name(index: int) -> str:
    """Return the file name of a part.

    Example:
        >>> part_name(7)
        'part-00007.parquet'
    """
    return f"part-{index:05d}.parquet"


def is_part_name(name: str) -> bool:
    """Tell whether `name` is one that `part_name` gives."""
    return _NAME.fullmatch(name) is not None


def digest_of(path: Path) -> str:
    """Return the XXH3-128 of a file as hexadecimal text."""
    state = xxhash.xxh3_128()
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb", buffering=0) as file:
        while chunk := file.read(_HASH_CHUNK):
            state.update(chunk)
    return state.hexdigest()


class _HashedFile:
    """An unbuffered file that hashes what is written to it, for PyArrow to write to."""

    def __init__(self, path: Path) -> None:
        self._raw = io.FileIO(path, "wb", opener=_opened)
        self._size = 0
        self._hash = xxhash.xxh3_128()

    @property
    def closed(self) -> bool:
        return self._raw.closed

    def write(self, data: bytes) -> int:
        rest = memoryview(data)
        self._hash.update(rest)
        while rest:
            rest = rest[self._raw.write(rest) :]
        self._size += len(data)
        return len(data)

    def flush(self) -> None:
        """Nothing is held back."""

    def tell(self) -> int:
        return self._size

    def sync(self) -> None:
        """Wait until the contents are on disk. A failure is final: never call it again."""
        os.fsync(self._raw.fileno())

    def close(self) -> None:
        self._raw.close()

    def digest(self) -> str:
        return self._hash.hexdigest()


def _opened(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC)


class PartWriter:
    """Writes one part: row groups into a temporary file, which `commit` gives its name.

    The order on disk is: contents, fsync, rename, fsync of the directory. Until the rename there
    is no file of the final name; `abort` leaves nothing behind.
    """

    def __init__(self, folder: Path, scratch: Path, name: str, form: PartFormat) -> None:
        self._final = folder / name
        self._rows = 0
        self._temporary = create_temporary(scratch, name)
        try:
            self._file = _HashedFile(self._temporary)
            self._sink = pa.BufferedOutputStream(pa.PythonFile(self._file, "w"), _GATHERED)
            self._writer = self._open(form)
        except BaseException:
            self._temporary.unlink(missing_ok=True)
            raise

    def _open(self, form: PartFormat) -> pq.ParquetWriter:
        others = leaf_paths(form)
        return pq.ParquetWriter(
            self._sink,
            form.schema,
            compression="zstd",
            compression_level=form.level,
            use_dictionary=others or False,
            write_statistics=others or False,
            data_page_size=_PAGE_BYTES,
            max_rows_per_page=1 << 20,
            write_batch_size=1 << 16,
            write_page_checksum=True,
        )

    def write(self, table: pa.Table) -> None:
        """Append `table` as one row group."""
        if table.num_rows:
            self._writer.write_table(table, row_group_size=table.num_rows)
            self._rows += table.num_rows

    def commit(self) -> Receipt:
        """Finish the file, bring it to disk, and give it its name."""
        self._writer.close()
        self._sink.flush()
        self._file.sync()
        self._sink.close()
        receipt = Receipt(
            name=self._final.name,
            rows=self._rows,
            size=self._file.tell(),
            digest=self._file.digest(),
        )
        os.replace(self._temporary, self._final)
        sync_directory(self._final.parent)
        return receipt

    def abort(self) -> None:
        """Leave nothing behind; never raises."""
        for close in (self._writer.close, self._sink.close):
            try:
                close()
            except Exception:  # noqa: S112 - the file is dropped, whatever closing says
                continue
        self._temporary.unlink(missing_ok=True)


def leaf_paths(form: PartFormat) -> list[str]:
    """Return the Parquet paths of the columns that are not normalized.

    Only Parquet knows how it names the leaves of nested columns, so an empty file is asked.
    """
    plain = set(form.plain)
    others = [column for column in form.schema if column.name not in plain]
    if not others:
        return []
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(sink, pa.schema(others)):
        pass
    schema = pq.read_metadata(pa.BufferReader(sink.getvalue())).schema
    return [schema.column(i).path for i in range(len(schema))]
