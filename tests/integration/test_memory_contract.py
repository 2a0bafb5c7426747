"""The memory limit is a contract: refused beforehand, or held, as the kernel counts it."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support import cli, tables, trees

ROWS, COLUMNS = 300_000, 100

# ru_maxrss of a child begins with what its parent had, so a small process stands between.
MEASURED = """
import json, os, sys
child = os.fork()
if child == 0:
    os.execv(sys.argv[1], sys.argv[1:])
_, status, usage = os.wait4(child, 0)
with open("usage.json", "w") as file:
    json.dump({"code": os.waitstatus_to_exitcode(status), "peak": usage.ru_maxrss * 1024}, file)
"""


def measured(folder, *args, program=cli.CLI) -> tuple[cli.Outcome, int]:
    """Run `polar-etl ARGS`; return its outcome and its peak of resident bytes, seen from outside."""
    command = [sys.executable, "-S", "-c", MEASURED, *program, *map(str, args)]
    done = subprocess.run(
        command,
        cwd=folder,
        env=cli.environment(),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    usage = json.loads((folder / "usage.json").read_text())
    return cli.Outcome(tuple(command), usage["code"], done.stdout, done.stderr), usage["peak"]


def smallest_limit(folder, *args) -> int:
    """Return the smallest limit in MB, as the refusal of a smaller one says it."""
    return limit_named(cli.run("normalize", *args, "--memory-limit", "1MB", cwd=folder).expect(7))


def limit_named(refused: cli.Outcome) -> int:
    """Return the limit in MB that a refusal names."""
    return int(re.search(r"--memory-limit (\d+)MB", refused.stderr).group(1))


SHAPES = {
    "one row group": {"row_group_size": ROWS},
    "row groups of 50,000": {"row_group_size": 50_000},
    "row groups of 3,000": {"row_group_size": 3_000},
}


@pytest.fixture(scope="module", params=SHAPES, ids=lambda name: name.replace(" ", "-"))
def shape(request, tmp_path_factory):
    """A folder with a float32 table of 120 MB in in.parquet."""
    folder = tmp_path_factory.mktemp("shape")
    tables.write(
        folder / "in.parquet",
        tables.floats(ROWS, COLUMNS),
        use_dictionary=False,
        compression="none",
        **SHAPES[request.param],
    )
    return folder


@pytest.mark.parametrize(
    ("room", "threads"), [("least", 1), ("least", 2), ("more", 2), ("ample", 2)]
)
def test_the_peak_stays_below_the_limit(shape, tmp_path, room, threads):
    how = (shape / "in.parquet", "out", "--threads", threads)
    least = smallest_limit(tmp_path, *how)
    limit = {"least": least, "more": least + 60, "ample": 2000}[room]
    outcome, peak = measured(tmp_path, "normalize", *how, "--memory-limit", f"{limit}MB", "--json")
    summary = outcome.expect(0).summary
    assert summary["memory_limit"] == limit * 10**6
    assert summary["projected_peak"] <= summary["memory_limit"]
    assert peak <= summary["memory_limit"]
    assert summary["measured_peak"] <= summary["memory_limit"]
    if room == "ample":  # there is room for a process for each thread; the kernel tells the largest
        assert peak * 0.95 <= summary["measured_peak"] <= threads * peak * 1.05
    else:
        assert summary["measured_peak"] == pytest.approx(peak, rel=0.05)
    assert summary["measured_peak"] <= summary["projected_peak"]


@pytest.mark.parametrize("columns", [1000, 5000])
def test_wide_tables_in_the_smallest_limit(tmp_path, columns):
    tables.write(tmp_path / "in.parquet", tables.floats(2_000, columns), row_group_size=1000)
    least = smallest_limit(tmp_path, "in.parquet", "out")
    how = ("normalize", "in.parquet", "out", "--memory-limit", f"{least}MB", "--json")
    outcome, peak = measured(tmp_path, *how)
    outcome.expect(0)
    assert peak <= least * 10**6


@pytest.mark.parametrize(
    ("rows", "columns", "group"), [(100_000, 200, 40_000), (100_000, 200, 100_000)]
)
def test_numbers_as_pyarrow_writes_them_by_itself_in_the_smallest_limit(
    tmp_path, rows, columns, group
):
    """Each column begins with a dictionary that soon turns out to be of no use."""
    values = np.random.default_rng(0).standard_normal((columns, rows))
    table = pa.table({f"x{i}": values[i] for i in range(columns)})
    pq.write_table(table, tmp_path / "in.parquet", row_group_size=group)
    limit = smallest_limit(tmp_path, "in.parquet", "out")
    done, peak = measured(
        tmp_path, "normalize", "in.parquet", "out", "--memory-limit", f"{limit}MB"
    )
    done.expect(0)
    assert peak <= limit * 10**6


IN_PYTHON = """
import sys, polars, pyarrow, polar_etl
polar_etl.normalize(sys.argv[1], sys.argv[2], memory_limit=sys.argv[3], threads=3)
"""


@pytest.mark.parametrize("room", [1.07, 1.12, 1.2])
@pytest.mark.parametrize("program", ["command line", "Python"])
def test_hundreds_of_short_columns_with_gaps_that_are_decoded_together(tmp_path, program, room):
    """What PyArrow's allocator has left of some is of no use to it for the next ones."""
    draw = np.random.default_rng(0)
    columns = {
        f"x{i}": pa.array(draw.standard_normal(4_000), mask=draw.random(4_000) < 0.1)
        for i in range(1_500)
    }
    pq.write_table(pa.table(columns), tmp_path / "in.parquet", compression="zstd")

    def run(limit: str) -> tuple[cli.Outcome, int]:
        if program == "Python":
            python = (sys.executable, "-c", IN_PYTHON)
            return measured(tmp_path, "in.parquet", "out", limit, program=python)
        how = ("in.parquet", "out", "--threads", 3, "--memory-limit", limit)
        return measured(tmp_path, "normalize", *how)

    refused, _ = run("1MB")
    limit = int(limit_named(refused) * room)
    done, peak = run(f"{limit}MB")
    done.expect(0)
    assert peak <= limit * 10**6


@pytest.mark.parametrize("limit", [250, 400])
def test_rows_that_are_decoded_ahead_are_all_that_is_held_of_their_pages(tmp_path, limit):
    """Ten parts of each page; its last rows are left over in the first pass, too."""
    table = pa.table(tables.floats(20_000, 2_000))
    pq.write_table(table, tmp_path / "in.parquet")
    how = ("--memory-limit", f"{limit}MB", "--threads", 1, "--rows-per-part", 2_000, "--json")
    done, peak = measured(tmp_path, "normalize", "in.parquet", "out", *how)
    assert peak <= done.expect(0).summary["projected_peak"] <= limit * 10**6


@pytest.mark.parametrize("groups", [1, 30])
def test_long_texts_in_the_smallest_limit(tmp_path, groups):
    rows = 60_000
    texts = pa.array([f"{i:08d}" * (i % 97) for i in range(rows)])
    kinds = pa.array([f"kind {i % 31}" for i in range(rows)]).dictionary_encode()
    columns = {"x": range(rows), "text": texts, "again": texts, "kind": kinds}
    tables.write(tmp_path / "in.parquet", columns, row_group_size=rows // groups)
    least = smallest_limit(tmp_path, "in.parquet", "out")
    how = ("normalize", "in.parquet", "out", "--memory-limit", f"{least}MB", "--json")
    outcome, peak = measured(tmp_path, *how)
    outcome.expect(0)
    assert peak <= least * 10**6
    assert tables.read(tmp_path / "out")["text"].to_pylist() == texts.to_pylist()


def test_numbers_with_a_few_texts_streamed_from_one_large_group(tmp_path):
    rows = 90_000
    table = tables.floats(rows, 24, "float64")
    table = table.append_column("name", pa.array([f"row {i % 977}" for i in range(rows)]))
    table = table.append_column(
        "kind", pa.array([f"k{i % 13}" for i in range(rows)]).dictionary_encode()
    )
    tables.write(tmp_path / "in.parquet", table, row_group_size=rows)
    least = smallest_limit(tmp_path, "in.parquet", "out")
    for limit in (least, least + 10):
        how = ("--overwrite", "--memory-limit", f"{limit}MB", "--json")
        outcome, peak = measured(tmp_path, "normalize", "in.parquet", "out", *how)
        outcome.expect(0)
        assert peak <= limit * 10**6


def test_many_short_files_of_many_columns_in_the_smallest_limit(tmp_path):
    """All files that the rows of a row group of the output come from are open at a time."""
    (tmp_path / "in").mkdir()
    for number in range(60):
        tables.write(tmp_path / "in" / f"{number:02}.parquet", tables.floats(150, 1_500))
    least = smallest_limit(tmp_path, "in", "out")
    how = ("normalize", "in", "out", "--memory-limit", f"{least}MB", "--json")
    outcome, peak = measured(tmp_path, *how)
    outcome.expect(0)
    assert peak <= least * 10**6


def letters(size: int, seed: int) -> str:
    return np.random.default_rng(seed).integers(97, 123, size, np.uint8).tobytes().decode()


REPEATED = {
    "one word": (["x" * 8_000], 0),
    "one word in the last rows": (["x" * 8_000], 199_000),
    "longer words in fewer rows": (["x" * 500_000], 197_000),
    "a hundred words": ([letters(8_000, i) for i in range(100)], 0),
    "a thousand words": ([letters(8_000, i) for i in range(1_000)], 0),
}


@pytest.mark.parametrize("room", ["least", "ample"])
@pytest.mark.parametrize("case", REPEATED)
def test_a_megabyte_that_decodes_to_more_than_a_gigabyte_is_held(tmp_path, case, room):
    words, empty = REPEATED[case]
    rows = 200_000
    places = np.random.default_rng(0).integers(1, len(words) + 1, rows).astype(np.int32)
    places[:empty] = 0
    text = pa.DictionaryArray.from_arrays(pa.array(places), ["", *words])
    columns = {"x": np.arange(rows) / 7, "text": text}
    how = {"store_schema": False, "dictionary_pagesize_limit": 1 << 25, "compression": "zstd"}
    tables.write(tmp_path / "in.parquet", columns, row_group_size=rows, **how)
    least = smallest_limit(tmp_path, "in.parquet", "out")
    assert least <= 400
    limit = least if room == "least" else 2_000
    how = ("normalize", "in.parquet", "out", "--memory-limit", f"{limit}MB", "--json")
    outcome, peak = measured(tmp_path, *how)
    summary = outcome.expect(0).summary
    assert peak <= least * 10**6
    assert peak <= summary["projected_peak"]
    found = pq.ParquetFile(tmp_path / "out" / "part-00000.parquet", read_dictionary=["text"])
    column = found.read_row_group(0, ["text"])["text"].combine_chunks()
    assert column.slice(0, 5).to_pylist() == text.slice(0, 5).to_pylist()
    assert column.slice(len(column) - 5).to_pylist() == text.slice(len(column) - 5, 5).to_pylist()


def text_tables() -> dict[str, dict]:
    """Return columns of text by what they are like."""
    draw = np.random.default_rng(0)

    def words(many: int, size: int) -> pa.Array:
        sizes = draw.integers(1, size, many)
        return pa.array([f"{i} {letters(int(n), i)}" for i, n in enumerate(sizes)])

    def of(few: pa.Array, rows: int) -> pa.DictionaryArray:
        return pa.DictionaryArray.from_arrays(draw.integers(0, len(few), rows, np.int32), few)

    numbers = {f"x{i}": draw.standard_normal(200_000, np.float32) for i in range(8)}
    return {
        "dictionaries": numbers | {f"t{i}": of(words(1_000, 20), 200_000) for i in range(6)},
        "short texts": numbers | {"t": [f"text {i}" for i in range(200_000)]},
        "repeated texts": numbers | {"t": of(words(500, 400), 200_000).cast(pa.string())},
        "long texts": {"x": range(20_000), "t": words(20_000, 4_000)},
        "short, then long": numbers | {"t": ["ab"] * 150_000 + words(50_000, 1_000).to_pylist()},
        "one of 20 MB": numbers | {"t": ["ab"] * 99_999 + ["x" * 20_000_000] + ["ab"] * 100_000},
    }


VARIES = 8 << 20
"""Bytes that the same run peaks higher or lower: the interpreter does so before it begins."""
TEXTS = [
    "dictionaries",
    "short texts",
    "repeated texts",
    "long texts",
    "short, then long",
    "one of 20 MB",
]


@pytest.mark.parametrize("groups", [1, 10])
@pytest.mark.parametrize("kind", TEXTS)
def test_what_is_projected_for_texts_is_neither_too_little_nor_far_too_much(tmp_path, kind, groups):
    columns = text_tables()[kind]
    rows = len(columns["t" if "t" in columns else "t0"])
    tables.write(tmp_path / "in.parquet", columns, row_group_size=rows // groups)
    for limit in (f"{smallest_limit(tmp_path, 'in.parquet', 'out')}MB", "2GB"):
        how = ("--overwrite", "--memory-limit", limit, "--json")
        outcome, peak = measured(tmp_path, "normalize", "in.parquet", "out", *how)
        summary = outcome.expect(0).summary
        projected = summary["projected_peak"]
        tree = max(peak, summary["measured_peak"])  # the kernel tells that of the largest process
        assert tree <= projected
        if (kind, groups) != ("one of 20 MB", 10):  # there one row group in ten is words only
            assert projected <= 2 * (tree + VARIES)


def write_one_long_text(path, **how) -> None:
    texts = ["b"] * 2_000 + [letters(1 << 20, 0) * 100] + ["a"] * 2_000
    tables.write(path, {"x": [1.0] * len(texts), "t": texts}, **how)


def test_a_word_that_is_too_long_to_look_at_is_refused_unread(tmp_path):
    write_one_long_text(tmp_path / "in.parquet")
    outcome, peak = measured(tmp_path, "normalize", "in.parquet", "out", "--memory-limit", "300MB")
    assert "holds a page of 105 MB" in outcome.expect(7).stderr
    assert peak <= 300_000_000
    assert trees.names(tmp_path) == {"in.parquet", "usage.json"}


def test_the_refusal_of_a_long_text_says_what_would_do(tmp_path):
    write_one_long_text(tmp_path / "in.parquet", use_dictionary=False)
    refused, peak = measured(tmp_path, "normalize", "in.parquet", "out", "--memory-limit", "300MB")
    least = limit_named(refused.expect(7))
    assert peak <= 300_000_000
    how = ("--memory-limit", f"{least}MB")
    outcome, peak = measured(tmp_path, "normalize", "in.parquet", "out", *how)
    outcome.expect(0)
    assert peak <= least * 10**6


def write_vectors(path, rows: int, group: int, size: int, missing: str = "") -> None:
    """Write `rows` vectors in row groups of `group`, a few thousand rows in memory at a time."""
    kind = pa.list_(pa.float32(), -1 if "lists" in missing else size)
    draw = np.random.default_rng(0)
    how = {"compression": "zstd", "compression_level": 1, "use_dictionary": False}
    with pq.ParquetWriter(path, pa.schema({"v": kind}), **how) as writer:
        for first in range(0, rows, group):
            left = min(group, rows - first)
            chunks = []
            for low in range(0, left, 4_000):
                many = min(4_000, left - low)
                values = draw.standard_normal(many * size, dtype=np.float32)
                gaps = draw.random(len(values)) < 0.02 if "numbers" in missing else None
                nulls = pa.array(draw.random(many) < 0.1) if "rows" in missing else None
                flat = pa.array(values, mask=gaps)
                chunks.append(pa.FixedSizeListArray.from_arrays(flat, size, mask=nulls))
            column = pa.chunked_array(chunks).cast(kind)
            writer.write_table(pa.table({"v": column}), row_group_size=left)


@pytest.mark.parametrize(
    ("group", "missing", "threads"),
    [(40_000, "", 2), (3_000, "", 1), (40_000, "rows, lists", 1), (15_000, "rows, numbers", 2)],
)
def test_vectors_in_the_smallest_limit(tmp_path, group, missing, threads):
    write_vectors(tmp_path / "in.parquet", 40_000, group, 768, missing)
    how = ("in.parquet", "out", "--threads", threads, "--columns", "v")
    least = smallest_limit(tmp_path, *how) + 1  # what the interpreter takes varies by some kB
    limit = ("--memory-limit", f"{least}MB", "--json")
    outcome, peak = measured(tmp_path, "normalize", *how, *limit)
    outcome.expect(0)
    assert peak <= least * 10**6


@pytest.mark.slow
@pytest.mark.parametrize("group", [20_000, 500_000])
def test_embeddings_in_512_megabytes(tmp_path, group):
    write_vectors(tmp_path / "in.parquet", 500_000, group, 768)
    limit = ("--memory-limit", "512MB", "--json")
    outcome, peak = measured(tmp_path, "normalize", "in.parquet", "out", *limit)
    summary = outcome.expect(0).summary
    assert peak <= 512 * 10**6
    assert summary["projected_peak"] <= peak * 1.6


def test_a_limit_that_is_too_small_is_refused_before_any_work(run_process, tmp_path):
    tables.write(tmp_path / "in.parquet", tables.floats(1000, 3))
    before = trees.tree(tmp_path)
    for command in (
        ("normalize", "in.parquet", "out"),
        ("plan", "in.parquet"),
        ("fit", "in.parquet", "scaler.json"),
    ):
        refused = run_process(*command, "--memory-limit", "60MB").expect(7)
        assert "60 MB" in refused.stderr
        assert re.search(r"--memory-limit \d+MB", refused.stderr)
    assert trees.tree(tmp_path) == before


def test_half_of_what_there_is_by_default(run_process, tmp_path):
    tables.write(tmp_path / "in.parquet", {"x": [1.0, 2.0]})
    default = run_process("plan", "in.parquet", "--json").summary["memory_limit"]
    half = run_process("plan", "in.parquet", "--json", "--memory-limit", "50%").summary[
        "memory_limit"
    ]
    quarter = run_process("plan", "in.parquet", "--json", "--memory-limit", "25%").summary
    assert default == half
    assert quarter["memory_limit"] == pytest.approx(half / 2, abs=1)


def test_an_rlimit_counts_as_memory_that_there_is(tmp_path):
    tables.write(tmp_path / "in.parquet", {"x": [1.0, 2.0]})
    shell = f"ulimit -d 4000000 && exec {' '.join(cli.CLI)} plan in.parquet --json"
    done = subprocess.run(
        ["sh", "-c", shell],
        cwd=tmp_path,
        env=cli.environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    limit = json.loads(done.stdout.splitlines()[-1])["memory_limit"]
    assert limit <= 4_000_000 * 1024 // 2


@pytest.mark.parametrize(("rows", "columns", "most"), [(100_000, 50, 12), (10, 2_000, 30)])
def test_generate_takes_memory_that_does_not_grow_with_the_chunks(tmp_path, rows, columns, most):
    peaks = []
    for chunks in (2, most):
        size = ("--rows", rows, "--cols", columns, "--chunks", chunks)
        outcome, peak = measured(tmp_path, "generate", f"{chunks}.parquet", *size)
        outcome.expect(0)
        peaks.append(peak)
    assert peaks[1] < peaks[0] * 1.1
