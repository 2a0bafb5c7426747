"""Synthetic tables of any size, made and written a few columns of a row group at a time."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from tempfile import TemporaryFile
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from polar_etl.durable import replacing, require_place, sweep
from polar_etl.encoding.chunks import Placed, joined, placed, row_group
from polar_etl.encoding.page_buffers import Bools, Filled, PagedColumns, Values
from polar_etl.encoding.part_format import PartFormat
from polar_etl.errors import RunFailedError, UsageError, describe
from polar_etl.pages.thrift import MAGIC, footer_end
from polar_etl.passes.tasks import groups_of
from polar_etl.planning.plan import Together
from polar_etl.stop import Stop

DTYPES = ("float16", "float32", "float64", "int8", "int16", "int32", "int64")
_GROUP_ROWS = 1 << 20
_TOGETHER = Together(values=1 << 20)


@dataclass(frozen=True, slots=True)
class Recipe:
    """What a synthetic table looks like; the same recipe gives the same bytes."""

    chunks: int
    rows: int
    """Rows of each chunk."""
    columns: int
    dtype: str
    seed: int
    null_fraction: float
    row_group_rows: int | None
    """None: a chunk, or 1,048,576 rows of it where that is less."""

    def __post_init__(self) -> None:
        """Refuse recipes that make no table.

        Raises:
            UsageError: A number is out of its range, or the dtype is not one of `DTYPES`.
        """
        if self.chunks < 0 or self.rows < 0 or self.columns < 1:
            raise UsageError("chunks and rows must not be negative, cols must be at least 1.")
        if self.seed < 0:
            raise UsageError(f"seed must not be negative, found {self.seed}.")
        if self.dtype not in DTYPES:
            raise UsageError(f"dtype must be one of {', '.join(DTYPES)}, found {self.dtype!r}.")
        if not 0 <= self.null_fraction <= 1:
            raise UsageError("null-fraction must lie between 0 and 1.")
        if self.row_group_rows is not None and self.row_group_rows < 1:
            raise UsageError("row-group-size must be at least 1.")

    @property
    def schema(self) -> pa.Schema:
        """Columns `c0`, `c1`, … of one type."""
        kind = pa.from_numpy_dtype(np.dtype(self.dtype))
        return pa.schema([(f"c{i}", kind) for i in range(self.columns)])

    def group_lengths(self) -> Iterator[int]:
        """Yield the rows of each row group."""
        most = self.row_group_rows or _GROUP_ROWS
        for _ in range(self.chunks):
            left = self.rows
            while left:
                yield min(left, most)
                left -= min(left, most)

    def truth(self) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Return mean and scale of the distribution that each column is drawn from."""
        draw = np.random.default_rng(self.seed)
        mean = draw.normal(0.0, 10.0, self.columns)
        scale = np.exp(draw.normal(0.0, 1.0, self.columns))
        whole = self.dtype.startswith("int")
        return (mean, scale + 2.0) if whole else (mean, scale)


def generate(
    path: Path, recipe: Recipe, truth: Path | None = None, stop: Stop | None = None
) -> int:
    """Write the table to `path` and return its rows; memory holds a few columns of a row group.

    Args:
        path: The Parquet file; must not exist.
        recipe: What it looks like.
        truth: Where to write mean and scale of every column, as Parquet.
        stop: Is asked every few columns whether to go on.

    Raises:
        UsageError: A file exists already, its folder does not, or both are one.
        RunFailedError: A file can't be written; nothing is left of it.
        InterruptedRunError: `stop` asked for it; nothing is left of the file.
    """
    try:
        others: list[Path] = []
        for target in [path] if truth is None else [path, truth]:
            require_place(target, others)
            others.append(target)
            if target.exists():
                raise UsageError(
                    f"{describe(str(target))} exists already: remove it or choose another."
                )
            sweep(target.parent, target.name.__eq__)
        with replacing(path) as temporary:
            rows = _write(temporary, recipe, stop or Stop())
        if truth is not None:
            mean, scale = recipe.truth()
            names = recipe.schema.names
            with replacing(truth) as temporary:
                pq.write_table(pa.table({"column": names, "mean": mean, "scale": scale}), temporary)
    except OSError as error:
        raise RunFailedError(f"{describe(str(path))} can't be written: {error}") from None
    return rows


def _write(path: Path, recipe: Recipe, stop: Stop) -> int:
    """Write the table; its footer is kept in a file until the end, as it grows with the chunks."""
    form = PartFormat(recipe.schema, tuple(recipe.schema.names), level=1)
    rows = groups = 0
    with open(path, "wb") as file, TemporaryFile(dir=path.parent) as described:
        file.write(MAGIC)
        for groups, length in enumerate(recipe.group_lengths(), 1):
            chunks = list(_write_group(file, form, recipe, groups - 1, length, stop))
            described.write(row_group(length, groups - 1, chunks))
            rows += length
        start = file.tell()
        before, after = form.around_groups(rows, groups)
        file.write(before)
        described.seek(0)
        shutil.copyfileobj(described, file)
        file.write(after)
        file.write(footer_end(file.tell() - start))
    return rows


def _write_group(
    file: BinaryIO, form: PartFormat, recipe: Recipe, number: int, length: int, stop: Stop
) -> Iterator[Placed]:
    """Write the row group `number`, and yield its column chunks."""
    columns = _columns(recipe, number, length)
    for names in groups_of(form.plain, length, _TOGETHER):
        stop.check()
        encoded = joined(form.scalars(names, [_filled(list(islice(columns, len(names))))]))
        yield placed(encoded, file.tell())
        content = np.empty(encoded.size, np.uint8)
        encoded.content.read_into(content)
        file.write(content.data)


def _filled(columns: Sequence[tuple[Values, Bools | None]]) -> Filled:
    first = columns[0][0]
    paged = PagedColumns(len(columns), len(first), first.dtype)
    for index, (values, _) in enumerate(columns):
        paged.put(index, 0, values[None, :])
    nulls = {index: valid for index, (_, valid) in enumerate(columns) if valid is not None}
    return Filled(range(len(columns)), paged, nulls)


def _columns(recipe: Recipe, number: int, length: int) -> Iterator[tuple[Values, Bools | None]]:
    """Yield the values of each column of a row group, and which are not null; None if all are."""
    draw = np.random.default_rng([recipe.seed, number])
    single = recipe.dtype in ("float16", "float32")
    for mean, scale in zip(*recipe.truth(), strict=True):
        values = draw.standard_normal(length, dtype=np.float32 if single else np.float64)
        values *= values.dtype.type(scale)
        values += values.dtype.type(mean)
        valid = draw.random(length) >= recipe.null_fraction if recipe.null_fraction else None
        yield _stored(values, recipe.dtype), valid


def _stored(values: npt.NDArray[np.floating], dtype: str) -> Values:
    """Return values of the recipe's type as Parquet stores them: whole numbers in 32 bits or 64."""
    kind = np.dtype(dtype)
    if kind.kind == "i":
        limits = np.iinfo(kind)
        whole = np.clip(np.rint(values), limits.min, limits.max)
        return np.asarray(whole, np.int64 if kind.itemsize == 8 else np.int32)
    return np.asarray(values, kind)
