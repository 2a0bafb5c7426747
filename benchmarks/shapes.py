"""On which inputs must the memory limit hold? Makes them from a seed, for `benchmarks.memory`.

    python -m benchmarks.shapes --shapes bigrg,dictionaries --scale 0.1 --data DIR

They are the table of the memory contract, and three of the tables of `benchmarks.tables`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.tables import TABLES, Data, Table, add_arguments, data_of, make, scaled

_VECTOR = 768
_ROWS_AT_A_TIME = 4_000
_WHOLE = 1 << 62
"""Rows of a row group that holds all there are."""


@dataclass(frozen=True, slots=True)
class Shape:
    """An input, and limits that it must do with, or be refused."""

    title: str
    limits: tuple[str, ...]
    path: Callable[[str, Data], Path]
    """Returns where it lies in the cache by its name, after making it where it is missing."""


def _numbers(table: Table) -> Callable[[str, Data], Path]:
    def path(name: str, data: Data) -> Path:
        return data.kept(name, partial(make, scaled(table, data.scale), data.seed))

    return path


def _large_pages(table: Table) -> Callable[[str, Data], Path]:
    """Return what writes a table with pages of 1 MiB, as other writers than PyArrow do."""

    def path(name: str, data: Data) -> Path:
        def write(target: Path) -> None:
            plain = target.with_suffix(".plain")
            try:
                make(scaled(table, data.scale), data.seed, plain)
                with pq.ParquetFile(plain) as file:
                    groups = map(file.read_row_group, range(file.num_row_groups))
                    _write(target, groups, max_rows_per_page=1 << 30, data_page_size=1 << 20)
            finally:
                plain.unlink(missing_ok=True)

        return data.kept(name, write)

    return path


def _others(
    groups: Callable[[int, np.random.Generator], Iterator[pa.Table]],
    rows: int,
    *,
    scales: bool = True,
    **how: object,
) -> Callable[[str, Data], Path]:
    """Return what writes the tables that `groups` yields for a number of rows as row groups.

    Args:
        groups: Makes the tables.
        rows: The number at full size.
        scales: Whether there are fewer rows when less than the full size is asked for.
        **how: Passed on to the writer.
    """

    def path(name: str, data: Data) -> Path:
        draw = np.random.default_rng(data.seed)
        many = max(round(rows * data.scale), 1) if scales else rows
        return data.kept(name, lambda target: _write(target, groups(many, draw), **how))

    return path


def _write(path: Path, groups: Iterable[pa.Table], **how: object) -> None:
    writer = None
    for table in groups:
        if writer is None:
            flat = [f.name for f in table.schema if pa.types.is_floating(f.type)]
            texts = [name for name in table.schema.names if name not in flat]
            writer = pq.ParquetWriter(
                path,
                table.schema,
                compression="zstd",
                compression_level=1,
                use_dictionary=texts or False,
                **how,
            )
        writer.write_table(table, row_group_size=max(len(table), 1))
    assert writer is not None
    writer.close()


def _lengths(rows: int, group_rows: int) -> Iterator[int]:
    for first in range(0, rows, group_rows):
        yield min(group_rows, rows - first)


def _floats(rows: int, columns: int, draw: np.random.Generator) -> dict[str, pa.Array]:
    return {
        f"x{i}": pa.array(draw.standard_normal(rows, np.float32) * (i + 1)) for i in range(columns)
    }


def _vectors(groups: int, rows: int, draw: np.random.Generator) -> Iterator[pa.Table]:
    for length in _lengths(rows, max(rows // groups, 1)):
        chunks = []
        for few in _lengths(length, _ROWS_AT_A_TIME):
            values = pa.array(draw.standard_normal(few * _VECTOR, np.float32))
            chunks.append(pa.FixedSizeListArray.from_arrays(values, _VECTOR))
        yield pa.table({"embedding": pa.chunked_array(chunks)})


def _dictionaries(rows: int, draw: np.random.Generator) -> Iterator[pa.Table]:
    """Yield 20 columns of numbers beside 10 dictionaries of 1,000 words."""
    words = pa.array([f"word {i} {'x' * (i % 50)}" for i in range(1_000)])
    for length in _lengths(rows, 262_144):
        columns = _floats(length, 20, draw)
        for i in range(10):
            indices = pa.array(draw.integers(0, len(words), length, np.int32))
            columns[f"word{i}"] = pa.DictionaryArray.from_arrays(indices, words)
        yield pa.table(columns)


def _letters(size: int, draw: np.random.Generator) -> str:
    return draw.integers(97, 123, size, np.uint8).tobytes().decode()


def _long_texts(rows: int, draw: np.random.Generator) -> Iterator[pa.Table]:
    """Yield 20 columns of numbers beside texts of up to 4,000 letters."""
    letters = _letters(1 << 22, draw)
    for length in _lengths(rows, 50_000):
        starts = draw.integers(0, len(letters) - 4_000, length)
        ends = starts + draw.integers(0, 4_000, length)
        texts = [letters[a:b] for a, b in zip(starts.tolist(), ends.tolist(), strict=True)]
        yield pa.table({**_floats(length, 20, draw), "text": pa.array(texts)})


def _one_long_text(rows: int, draw: np.random.Generator) -> Iterator[pa.Table]:
    """Yield 20 columns of numbers beside short texts, one of which has 50 MB."""
    texts = [f"text {i}" for i in range(rows)]
    texts[rows // 2] = _letters(50_000_000, draw)
    yield pa.table({**_floats(rows, 20, draw), "text": pa.array(texts)})


def _lying(empty: int, rows: int, draw: np.random.Generator) -> Iterator[pa.Table]:
    """Yield 8 columns of 1,000 equal letters, which the footer counts once; the first are empty.

    A megabyte of file decodes to 1.6 GB. No stored schema tells that they were dictionaries.
    """
    values = pa.array(["", "x" * 1_000])
    indices = pa.array((np.arange(rows) >= empty).astype(np.int32))
    text = pa.DictionaryArray.from_arrays(indices, values)
    yield pa.table({"x": _floats(rows, 1, draw)["x0"], **{f"text{i}": text for i in range(8)}})


_BIG, _WIDE, _FILES = TABLES["bigrg"], TABLES["vwide"], Table(20_000_000, 50, 100_000, "float64")

SHAPES = {
    "bigrg": Shape(
        "1,500,000 x 500 float32, row groups of 1,048,576", ("512MB", "300MB"), _numbers(_BIG)
    ),
    "bigrg-single": Shape(
        "1,500,000 x 500 float32, one row group",
        ("512MB",),
        _numbers(replace(_BIG, group_rows=_WHOLE)),
    ),
    "bigrg-pages": Shape("1,500,000 x 500 float32, pages of 1 MiB", ("1GB",), _large_pages(_BIG)),
    "bigrg-default": Shape(
        "1,500,000 x 500 float32, as PyArrow writes by default",
        ("512MB", "300MB"),
        _numbers(TABLES["default"]),
    ),
    "vwide": Shape("20,000 x 10,000 float32, row groups of 4,096", ("1GB",), _numbers(_WIDE)),
    "vwide-single": Shape(
        "20,000 x 10,000 float32, one row group",
        ("1GB",),
        _numbers(replace(_WIDE, group_rows=_WHOLE)),
    ),
    "wide-default": Shape(
        "200,000 x 1,000 float32, as PyArrow writes by default",
        ("512MB",),
        _numbers(replace(TABLES["wide"], group_rows=_WHOLE, by_default=True)),
    ),
    "vwide-default": Shape(
        "20,000 x 10,000 float32, as PyArrow writes by default",
        ("1GB",),
        _numbers(replace(_WIDE, group_rows=_WHOLE, by_default=True)),
    ),
    "vvwide": Shape(
        "6,000 x 100,000 float32, row groups of 1,000", ("2GB",), _numbers(TABLES["vvwide"])
    ),
    "vectors": Shape(
        "500,000 x vector of 768 float32, row groups of 20,000",
        ("512MB",),
        _others(partial(_vectors, 25), 500_000),
    ),
    "vectors-single": Shape(
        "500,000 x vector of 768 float32, one row group",
        ("512MB",),
        _others(partial(_vectors, 1), 500_000),
    ),
    "files": Shape(
        "20,000,000 x 50 float64, 200 files", ("256MB",), _numbers(replace(_FILES, files=200))
    ),
    "dictionaries": Shape(
        "2,000,000 x 20 float32 and 10 dictionaries", ("512MB",), _others(_dictionaries, 2_000_000)
    ),
    "long-texts": Shape(
        "200,000 x 20 float32 and texts of up to 4,000", ("512MB",), _others(_long_texts, 200_000)
    ),
    "one-long-text": Shape(
        "100,000 x 20 float32 and texts, one of 50 MB", ("512MB",), _others(_one_long_text, 100_000)
    ),
    "lying": Shape(
        "1 MB that decodes to 1.6 GB",
        ("512MB",),
        _others(partial(_lying, 0), 200_000, scales=False, store_schema=False),
    ),
    "lying-later": Shape(
        "1 MB that decodes to 1.6 GB, but for 1,000 rows",
        ("512MB",),
        _others(partial(_lying, 1_000), 200_000, scales=False, store_schema=False),
    ),
    "narrow": Shape("4,000,000 x 50 float32", ("300MB",), _numbers(TABLES["narrow"])),
    "wide": Shape("200,000 x 1,000 float32", ("512MB",), _numbers(TABLES["wide"])),
    "nulls": Shape("2,000,000 x 100 float64, 5 % nulls", ("512MB",), _numbers(TABLES["nulls"])),
}


def shape_names(text: str) -> list[str]:
    """Return the names in a comma-separated list; for `argparse`."""
    names = text.split(",")
    unknown = sorted(set(names) - set(SHAPES))
    if unknown:
        choices = ", ".join(SHAPES)
        raise argparse.ArgumentTypeError(f"no shape {', '.join(unknown)}; there are {choices}")
    return names


def path_of(name: str, data: Data) -> Path:
    """Return where a shape lies, after making it where it is missing."""
    return SHAPES[name].path(name, data)


def main() -> None:
    """Make shapes and print where they are."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", type=shape_names, default=list(SHAPES), metavar="A,B")
    add_arguments(parser)
    arguments = parser.parse_args()
    for name in arguments.shapes:
        print(f"{name:14} {SHAPES[name].title:55} {path_of(name, data_of(arguments))}", flush=True)


if __name__ == "__main__":
    main()
