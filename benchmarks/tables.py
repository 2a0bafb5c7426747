"""Which tables do we measure on?

The named tables, made on the fly from a seed and kept in a cache folder for the next measurement:

    python -m benchmarks.tables --tables narrow,wide --scale 0.1 --data DIR
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True, slots=True)
class Table:
    """A synthetic table of numbers."""

    rows: int
    columns: int
    group_rows: int
    """Rows of a row group."""
    dtype: str = "float32"
    null_fraction: float = 0.0
    files: int = 1
    """Files that the rows are shared out to; more than one lie in a directory."""
    limits: tuple[str, ...] = ("4GB", "512MB")
    """Memory limits that it is measured with."""
    by_default: bool = False
    """Whether it is written with PyArrow's own defaults: Snappy, statistics, and a dictionary for
    every column until that is 1 MiB long."""


TABLES = {
    "narrow": Table(4_000_000, 50, 131_072),
    "wide": Table(200_000, 1_000, 16_384),
    "vwide": Table(20_000, 10_000, 4_096, limits=("4GB", "1GB")),
    "vvwide": Table(6_000, 100_000, 1_000, limits=("4GB", "2GB")),
    "bigrg": Table(1_500_000, 500, 1_048_576),
    "nulls": Table(2_000_000, 100, 131_072, "float64", 0.05),
    "default": Table(1_500_000, 500, 1_048_576, by_default=True),
    "pages": Table(150_000, 800, 150_000),
    "odd": Table(1_000_000, 200, 125_000),
    "distinct": Table(1_000_000, 200, 125_000, by_default=True),
    "short": Table(20_000, 10_000, 1_000, by_default=True),
    "files": Table(2_000_000, 50, 131_072, files=400, by_default=True),
}
"""Row groups of the odd ones end in the midst of what is worked on at a time; all values in the
dictionaries of the distinct ones differ, which takes longest; a short row group of many columns is
all headers, and so are many short files."""
MIXED = "mixed"
"""What real tables are made of: codes, counts, measurements, words, and nulls among them."""
_MIXED_ROWS, _MIXED_GROUP = 6_000_000, 1 << 20
FLIGHTS = "flights"
"""Real data of mixed types; is there when the test data are."""
_USUAL_LIMITS = ("4GB", "512MB")


@dataclass(frozen=True, slots=True, kw_only=True)
class Data:
    """Where the tables lie, and which variant of them."""

    folder: Path
    scale: float = 1.0
    """Factor on the rows of tables and row groups."""
    seed: int = 0

    def path(self, name: str) -> Path:
        """Return the Parquet file of a table, after making it where it is missing."""
        if name == FLIGHTS:
            return test_data() / "flights" / "flights.parquet"
        if name == MIXED:
            return self.kept(name, partial(make_mixed, round(_MIXED_ROWS * self.scale), self.seed))
        return self.kept(name, partial(make, scaled(TABLES[name], self.scale), self.seed))

    def kept(self, name: str, write: Callable[[Path], None]) -> Path:
        """Return what `write` writes, a file or a directory, from the cache if it is there."""
        path = self.folder / f"{name}-scale{self.scale:g}-seed{self.seed}.parquet"
        if not path.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            unfinished = path.with_name(f"{path.stem}-{os.getpid()}.tmp")
            try:
                write(unfinished)
                unfinished.rename(path)
            finally:
                remove(unfinished)
        return path

    def scratch(self, name: str) -> Path:
        """Return the folder for outputs that are measured on a table."""
        return self.folder / f"runs-{name}-{os.getpid()}"


def scaled(table: Table, factor: float) -> Table:
    """Return the table with so many times the rows, and rows of a row group."""
    rows, group_rows = round(table.rows * factor), round(table.group_rows * factor)
    return replace(table, rows=max(rows, table.files), group_rows=max(group_rows, 1))


def make(table: Table, seed: int, path: Path) -> None:
    """Write a table as one file, or as a directory of files."""
    from polar_etl.generate import Recipe, generate

    if table.files > 1:
        path.mkdir()
    for number in range(table.files):
        recipe = Recipe(
            chunks=1,
            rows=table.rows // table.files,
            columns=table.columns,
            dtype=table.dtype,
            seed=seed + number,
            null_fraction=table.null_fraction,
            row_group_rows=table.group_rows,
        )
        target = path / f"{number:05}.parquet" if table.files > 1 else path
        ours = target.with_suffix(".ours")
        generate(ours, recipe)
        try:
            _rewrite(ours, target, by_default=table.by_default)
        finally:
            ours.unlink()


def make_mixed(rows: int, seed: int, path: Path) -> None:
    """Write a table of 20 columns of mixed types, with PyArrow's own defaults."""
    draw = np.random.default_rng(seed)
    words = {many: [f"{'NEWS'[i % 4]}{i}" for i in range(many)] for many in (3, 16, 105, 4_000)}
    writer = None
    try:
        for first in range(0, rows, _MIXED_GROUP):
            table = _mixed(min(_MIXED_GROUP, rows - first), draw, words)
            writer = writer or pq.ParquetWriter(path, table.schema)
            writer.write_table(table, row_group_size=_MIXED_GROUP)
    finally:
        if writer:
            writer.close()


def _mixed(rows: int, draw: np.random.Generator, words: dict[int, list[str]]) -> pa.Table:
    """Return some rows of the mixed table."""

    def rare_nulls(values: np.ndarray) -> pa.Array:
        return pa.array(values, mask=draw.random(rows) < 0.02)

    codes = {f"code{many}": draw.integers(0, many, rows) for many in (2, 7, 31, 60, 366, 5_000)}
    counts = {
        f"count{mean}": rare_nulls(draw.poisson(mean, rows).astype(np.float64))
        for mean in (1, 10, 150, 1_000)
    }
    prices = {
        f"price{i}": np.round(draw.lognormal(3, 1, rows), 2).astype(np.float64) for i in range(2)
    }
    measured = {
        "exact": draw.standard_normal(rows),
        "single": draw.standard_normal(rows, np.float32),
        "gappy": rare_nulls(draw.standard_normal(rows)),
    }
    texts = {
        f"word{many}": pa.array(some).take(pa.array(draw.integers(0, many, rows)))
        for many, some in words.items()
    }
    hours = draw.integers(1_357_000_000, 1_388_000_000, rows) // 3600 * 3600
    when = {"hour": pa.array(hours * 10**6, pa.timestamp("us", "UTC"))}
    return pa.table(codes | counts | prices | measured | texts | when)


def _rewrite(source: Path, target: Path, *, by_default: bool) -> None:
    """Write a file anew as PyArrow does by itself: nobody's input was written by polar-etl."""
    plain = {"compression": "zstd", "use_dictionary": False, "write_statistics": False}
    with (
        pq.ParquetFile(source) as file,
        pq.ParquetWriter(target, file.schema_arrow, **({} if by_default else plain)) as writer,
    ):
        for group in range(file.num_row_groups):
            table = file.read_row_group(group)
            writer.write_table(table, row_group_size=max(table.num_rows, 1))


def remove(path: Path) -> None:
    """Remove a file, or a directory and what is in it, or nothing."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def limits_of(name: str) -> tuple[str, ...]:
    """Return the memory limits that a table is measured with."""
    return TABLES[name].limits if name in TABLES else _USUAL_LIMITS


def test_data() -> Path:
    """Return the folder of real and reference data, which may not exist."""
    return Path(os.environ.get("POLAR_ETL_TEST_DATA", ROOT.parent / "shared" / "data"))


def known_tables() -> list[str]:
    """Return the names of the tables that can be measured here."""
    flights = test_data() / "flights" / "flights.parquet"
    return [*TABLES, MIXED, *([FLIGHTS] if flights.exists() else [])]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that `data_of` reads."""
    folder = Path(tempfile.gettempdir()) / "polar-etl-benchmarks"
    parser.add_argument("--data", type=Path, default=folder, metavar="DIR", help="cache of tables")
    parser.add_argument("--scale", type=float, default=1.0, help="factor on rows (1: full size)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the tables")


def data_of(arguments: argparse.Namespace) -> Data:
    """Return the tables that the command line asks for."""
    return Data(folder=arguments.data.resolve(), scale=arguments.scale, seed=arguments.seed)


def table_names(text: str) -> list[str]:
    """Return the names in a comma-separated list; for `argparse`."""
    names = text.split(",")
    unknown = sorted(set(names) - set(known_tables()))
    if unknown:
        choices = ", ".join(known_tables())
        raise argparse.ArgumentTypeError(f"no table {', '.join(unknown)}; there are {choices}")
    return names


def main() -> None:
    """Make tables and print where they are."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tables", type=table_names, default=known_tables(), metavar="A,B")
    add_arguments(parser)
    arguments = parser.parse_args()
    for name in arguments.tables:
        path = data_of(arguments).path(name)
        print(f"{name:8} {path.stat().st_size / 1e6:8.1f} MB  {path}")


if __name__ == "__main__":
    main()
