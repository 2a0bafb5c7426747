"""The result depends on the rows and the settings alone: bit for bit."""

from __future__ import annotations

import hashlib
import json
import random
import signal
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from support import cli, tables, trees

ROWS = 90_000
PARTS = ("--rows-per-part", 40_000)


def wide_mix() -> pa.Table:
    """Return floats, strings and categories whose batches and slabs are many."""
    return (
        pa.concat_tables([tables.floats(ROWS, 24, "float64")], promote_options="none")
        .append_column("few", pa.array([i * i % 811 for i in range(ROWS)]))
        .append_column("rare", pa.array([None if i % 7 < 2 else i % 9.0 for i in range(ROWS)]))
        .append_column("name", pa.array([f"row {i % 977}" for i in range(ROWS)]))
        .append_column("kind", pa.array([f"k{i % 13}" for i in range(ROWS)]).dictionary_encode())
    )


@pytest.fixture(scope="module")
def usual(tmp_path_factory):
    """A folder with in.parquet and out/, made with the defaults."""
    folder = tmp_path_factory.mktemp("usual")
    tables.write(folder / "in.parquet", wide_mix(), row_group_size=20_000)
    cli.run("normalize", "in.parquet", "out", *PARTS, cwd=folder).expect(0)
    return folder


def smallest_limit(run_process, source) -> str:
    """Return the smallest limit, as the refusal of a smaller one says it."""
    refused = run_process("normalize", source, "never", *PARTS, "--memory-limit", "1MB").expect(7)
    return refused.stderr.split("--memory-limit ")[1].split()[0]


@pytest.mark.parametrize(
    ("memory", "threads"), [("least", 1), ("least", 5), ("4GB", 1), ("4GB", 2), ("4GB", 5)]
)
def test_memory_limit_and_threads_change_no_bit(run_process, tmp_path, usual, threads, memory):
    source = usual / "in.parquet"
    limit = smallest_limit(run_process, source) if memory == "least" else memory
    how = ("--memory-limit", limit, "--threads", threads)
    run_process("normalize", source, "out", *PARTS, *how).expect(0)
    assert trees.result(tmp_path / "out") == trees.result(usual / "out")


@pytest.mark.parametrize(
    "how",
    [
        {"row_group_size": 1_000_000},
        {"row_group_size": 317},
        {"row_group_size": 16_384, "compression": "gzip"},
        {"row_group_size": 30_001, "compression": "none", "data_page_size": 1000},
        {"row_group_size": 50_000, "compression": "brotli", "data_page_version": "2.0"},
        {"row_group_size": 90_000, "use_dictionary": False, "data_page_size": 1 << 24},
    ],
    ids=["one group", "tiny groups", "gzip", "tiny pages", "brotli", "huge pages"],
)
def test_how_the_same_rows_were_written_changes_no_bit(run_process, tmp_path, usual, how):
    tables.write(tmp_path / "in.parquet", wide_mix(), **how)
    run_process("normalize", "in.parquet", "out", *PARTS).expect(0)
    assert trees.result(tmp_path / "out") == trees.result(usual / "out")


def short_files(folder: Path, columns: int, rows: Iterable[int]) -> None:
    """Write files of a few rows each, with nulls, integers and words here and there."""
    for number, many in enumerate(rows):
        table = tables.floats(many, columns, seed=number)
        gaps = pa.array([None if i % 5 == number % 7 else i * 1.5 for i in range(many)])
        table = table.append_column("gaps", gaps.cast(pa.float32()))
        table = table.append_column("whole", pa.array(range(many), pa.int32()))
        table = table.append_column(
            "name", pa.array([f"row {i % 3}" for i in range(many)], pa.string())
        )
        tables.write(folder / f"{number:03}.parquet", table, use_dictionary=number % 2 == 0)


def test_limits_and_threads_change_no_bit_of_many_short_files(run_process, tmp_path):
    """Threads may have columns of all files, or files by turns, and processes either."""
    short_files(tmp_path / "in", 60, (i * 37 % 601 for i in range(40)))
    parts = ("--rows-per-part", 7_000)
    run_process("normalize", "in", "out", *parts, "--threads", 1).expect(0)
    refused = run_process("normalize", "in", "never", *parts, "--memory-limit", "1MB").expect(7)
    least = refused.stderr.split("--memory-limit ")[1].split()[0]
    for limit, threads in (("4GB", 2), (least, 2), ("230MB", 3)):
        how = ("--memory-limit", limit, "--threads", threads, "--overwrite")
        run_process("normalize", "in", "again", *parts, *how).expect(0)
        assert trees.result(tmp_path / "again") == trees.result(tmp_path / "out")


def test_one_large_group_streamed_in_little_memory_changes_no_bit(run_process, tmp_path, usual):
    tables.write(tmp_path / "in.parquet", wide_mix(), row_group_size=1_000_000)
    limit = smallest_limit(run_process, "in.parquet")
    run_process("normalize", "in.parquet", "out", *PARTS, "--memory-limit", limit).expect(0)
    assert trees.result(tmp_path / "out") == trees.result(usual / "out")


def test_a_part_does_not_depend_on_the_sizes_of_other_parts(run_process, tmp_path, usual):
    run_process("normalize", usual / "in.parquet", "out", "--rows-per-part", 40_000).expect(0)
    run_process("normalize", usual / "in.parquet", "other", "--rows-per-part", 80_000).expect(0)
    one, other = (tables.read(tmp_path / name) for name in ("out", "other"))
    assert one.drop(["kind"]).equals(other.drop(["kind"]))
    assert one["kind"].to_pylist() == other["kind"].to_pylist()


FILES = (0, 30_000, 30_001, 48_000)
"""The rows at which the table of twenty runs is cut into files."""
WRITINGS = (
    {"row_group_size": 1_000_000},
    {"row_group_size": 317, "compression": "gzip"},
    {"row_group_size": 9_000, "data_page_size": 1000, "data_page_version": "2.0"},
    {"row_group_size": 16_384, "use_dictionary": False, "compression": "none"},
)


def killed(command, folder, wanted: str, lines: int) -> bool:
    """Start a command, kill it after so many batches of a pass; tell whether it died of that."""
    with cli.started(*command, cwd=folder) as process:
        assert process.stdout is not None
        for line in process.stdout:
            message = json.loads(line)
            lines -= message["message_type"] == "status" and message["pass"] == wanted
            if lines == 0:
                process.kill()
        return process.wait(cli.DEADLINE) == -signal.SIGKILL


def digest(out) -> str:
    parts, scaler = trees.result(out)
    found = hashlib.blake2b(scaler)
    for name in sorted(parts):
        found.update(name.encode() + parts[name])
    return found.hexdigest()


@pytest.mark.parametrize("runs", [20, pytest.param(200, marks=pytest.mark.slow)])
def test_many_runs_have_one_hash(tmp_path, run_process, runs):
    """Other limits, threads, row groups, pages, processors, and kills at other moments."""
    rows = tables.mixed(FILES[-1]).select([*tables.NORMALIZED_OF_MIXED, "text", "flag"])
    limits = []
    for number, how in enumerate(WRITINGS):
        for first, last in pairwise(FILES):
            file = tmp_path / f"in{number}" / f"{first:06}.parquet"
            tables.write(file, rows.slice(first, last - first), **how)
        limits.append([smallest_limit(run_process, tmp_path / f"in{number}"), "1GB", "4GB"])
    hashes, kills = set(), 0
    for number in range(runs):
        draw = random.Random(number)
        writing = number % len(WRITINGS)
        folder = tmp_path / f"run{number}"
        folder.mkdir()
        (folder / "data").symlink_to(tmp_path / f"in{writing}")

        def command(draw=draw, writing=writing):
            how = "--memory-limit", draw.choice(limits[writing]), "--threads", draw.choice("1235")
            return "normalize", "data", "out", "--rows-per-part", 20_000, "--json", *how

        for wanted in draw.choice([(), (), ("moments",), ("parts",), ("moments", "parts")]):
            kills += killed(command(), folder, wanted, draw.randint(1, 3))
        processor = draw.choice(["", "X86_V4", "X86_V3 X86_V4"])  # without AVX512, without AVX2
        cli.run(*command(), cwd=folder, env={"NPY_DISABLE_CPU_FEATURES": processor}).expect(0)
        hashes.add(digest(folder / "out"))
    assert len(hashes) == 1
    assert kills >= runs // 4


def test_long_texts_come_out_alike_however_they_were_encoded(run_process, tmp_path):
    rows = 4_000
    letters = [chr(97 + i * i % 26) * (i % 97) + str(i) for i in range(rows)]
    columns = {
        "x": pa.array(range(rows)),
        "few": pa.array(["x" * 5_000 + letters[i % 5] for i in range(rows)]),
        "many": pa.array([f"{word} " * (5_000 // len(word)) for word in letters]),
    }
    delta = {"few": "DELTA_LENGTH_BYTE_ARRAY", "many": "DELTA_BYTE_ARRAY", "x": "PLAIN"}
    layouts = [
        {"row_group_size": rows},
        {"row_group_size": 700, "dictionary_pagesize_limit": 1 << 25},
        {"row_group_size": 1_001, "use_dictionary": False, "data_page_size": 10_000},
        {"use_dictionary": False, "column_encoding": delta},
    ]
    results = []
    for number, how in enumerate(layouts):
        source = tables.write(tmp_path / f"{number}.parquet", columns, **how)
        limit = smallest_limit(run_process, source)
        for memory in (limit, "4GB"):
            args = (*PARTS, "--overwrite", "--memory-limit", memory)
            run_process("normalize", source, "out", *args).expect(0)
            results.append(trees.result(tmp_path / "out"))
    assert all(result == results[0] for result in results)
    assert tables.read(tmp_path / "out").drop(["x"]).equals(pa.table(columns).drop(["x"]))


def embeddings(kind: pa.DataType, missing: bool) -> pa.Table:
    """Return vectors that make most of their table, some of which miss a number or are null."""
    draw = np.random.default_rng(1)
    size = 48
    values = draw.standard_normal(VECTORS * size, np.float32)
    gaps = np.zeros(len(values), np.bool_)
    gaps[size * 60_000 + 5] = missing
    rows = np.zeros(VECTORS, np.bool_)
    rows[30_000] = missing
    flat = pa.array(values, mask=gaps)
    vectors = pa.FixedSizeListArray.from_arrays(flat, size, mask=pa.array(rows)).cast(kind)
    numbers = pa.array(draw.standard_normal(VECTORS))
    return pa.table({"v": vectors, "x": numbers, "name": [f"n{i % 9}" for i in range(VECTORS)]})


VECTORS = 80_000
WRITTEN = {
    "zstd": {"compression": "zstd", "use_dictionary": False, "row_group_size": 9_000},
    "one group": {"row_group_size": VECTORS},
    "short pages": {"row_group_size": 30_001, "compression": "gzip", "data_page_size": 5_000},
    "version 2": {"row_group_size": 7_000, "data_page_version": "2.0"},
    "brotli": {"row_group_size": 7_000, "compression": "brotli", "write_statistics": False},
}


@pytest.mark.parametrize("missing", [False, True], ids=["whole", "with gaps"])
@pytest.mark.parametrize("kind", [pa.list_(pa.float32(), 48), pa.list_(pa.float32())], ids=str)
def test_vectors_become_the_same_whoever_reads_them(tmp_path, kind, missing):
    """Threads may have rows by turns; pages are read here or by PyArrow; runs are killed."""
    table = embeddings(kind, missing)
    command = ("normalize", "in.parquet", "out", "--columns", "v", "--columns", "x", *PARTS)
    found = []
    for number, how in enumerate(WRITTEN.values()):
        folder = tmp_path / str(number)
        tables.write(folder / "in.parquet", table, **how)
        args = (*command, "--json", "--threads")
        if number % 2:
            killed((*args, 2), folder, "parts", 1 + number % 3)
        cli.run(*args, 1 + number % 3, cwd=folder).expect(0)
        found.append(trees.result(folder / "out"))
    assert all(result == found[0] for result in found)
    read = tables.read(tmp_path / "0" / "out")
    assert read["name"].equals(table["name"])
    assert read["v"].null_count == table["v"].null_count == int(missing)
