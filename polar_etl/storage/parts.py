"""One part of the output: a zstd Parquet file that is there whole or not at all."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import NamedTuple

import xxhash

from polar_etl.durable import create_temporary, sync_directory
from polar_etl.encoding.chunks import Encoded, Placed, placed, row_group
from polar_etl.encoding.contents import Content
from polar_etl.encoding.part_format import PartFormat
from polar_etl.pages.thrift import MAGIC
from polar_etl.storage.direct import DirectFile, Staging

_NAME = re.compile(r"part-\d{5,9}\.parquet")
MOST_PARTS = 100_000
"""Readers take parts in the order of their names, which have five digits."""
_HASH_CHUNK = 1 << 22


class Receipt(NamedTuple):
    """What a written part says of itself."""

    name: str
    rows: int
    size: int
    """Bytes of the file."""
    digest: str
    """XXH3-128 of the file, as hexadecimal text."""


def part_name(index: int) -> str:
    """Return the file name of a part.

    Example:
        >>> part_name(7)
        'part-00007.parquet'
    """
    return f"part-{index:05d}.parquet"


def part_index(name: str) -> int:
    """Return the index that `part_name` made `name` of.

    Example:
        >>> part_index("part-00007.parquet")
        7
    """
    return int(name.removeprefix("part-").removesuffix(".parquet"))


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


class PartWriter:
    """Writes one part: row groups into a temporary file, which `commit` gives its name.

    The order on disk is: contents, fsync, rename, fsync of the directory. Until the rename there
    is no file of the final name; `abort` leaves nothing behind.

    Args:
        folder: Where the part goes.
        scratch: Where it is until then.
        name: Of the part.
        form: How it is encoded.
        staging: The memory it is written from.
    """

    def __init__(
        self, folder: Path, scratch: Path, name: str, form: PartFormat, staging: Staging
    ) -> None:
        self._final = folder / name
        self._form = form
        self._rows = 0
        self._groups: list[bytes] = []
        self._chunks: list[Placed] = []
        self._temporary = create_temporary(scratch, name)
        try:
            self._file = DirectFile(self._temporary, staging)
            self._file.append(Content([MAGIC]))
        except BaseException:
            self._temporary.unlink(missing_ok=True)
            raise

    def append(self, encoded: Encoded) -> None:
        """Append the next columns of a row group."""
        self._chunks.append(placed(encoded, self._file.size))
        self._file.append(encoded.content)

    def end_group(self, rows: int) -> None:
        """End a row group of so many rows; without rows there is none."""
        if rows:
            self._groups.append(row_group(rows, len(self._groups), self._chunks))
            self._rows += rows
        self._chunks = []

    def commit(self) -> Receipt:
        """Finish the file, bring it to disk, and give it its name; whatever fails, drop it."""
        try:
            return self._commit()
        except BaseException:
            self.abort()
            raise

    def _commit(self) -> Receipt:
        self._file.append(Content([self._form.footer(self._rows, self._groups)]))
        digest = self._file.sync()
        self._file.close()
        os.replace(self._temporary, self._final)
        sync_directory(self._final.parent)
        return Receipt(self._final.name, self._rows, self._file.size, digest)

    def abort(self) -> None:
        """Leave nothing behind; never raises."""
        try:
            self._file.close()
        finally:
            self._temporary.unlink(missing_ok=True)
