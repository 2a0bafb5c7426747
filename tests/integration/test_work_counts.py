"""Work that a run must not do twice, counted from outside and without a clock.

The kernel counts what a process has read and written (`/proc/PID/io`), strace its system calls.
Each figure is a slope: two inputs that differ in one respect, the difference of what the runs did
over the difference of the inputs. So imports, SQLite's pages and whatever else is the same in
every run cancels, and the figures are the same on every machine.

The bounds are those of a design that decodes everything twice, once per pass, where there is no
room to keep it. A file that is mapped
into memory is not counted as read: these are upper bounds, they catch work that creeps in.
"""

from __future__ import annotations

import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support import cli, tables, tracing

COLUMNS = 50


@dataclass(frozen=True, slots=True)
class Work:
    """What a run did."""

    read: int
    """Bytes that it read from anything."""
    written: int
    writes: int
    """System calls that wrote."""
    bytes_in: int
    """Size of its input."""
    bytes_out: int
    """Size of its parts."""


def work(folder: Path, data: Path, *args: object) -> Work:
    """Run `polar-etl normalize DATA` in a process of its own and return what the kernel counted."""
    out = folder / f"out-{data.name}"
    command = [*cli.CLI, "normalize", str(data), str(out), "--overwrite", "--quiet", *args]
    process = subprocess.Popen(
        list(map(str, command)),
        env=cli.environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # ended, and still to be looked at
    lines = Path(f"/proc/{process.pid}/io").read_text().splitlines()
    said = process.communicate()[1].decode()
    assert process.returncode == 0, said
    counted = {name: int(value) for name, value in (line.split(": ") for line in lines)}
    return Work(
        read=counted["rchar"],
        written=counted["wchar"],
        writes=counted["syscw"],
        bytes_in=sum(file.stat().st_size for file in data.iterdir()),
        bytes_out=sum(file.stat().st_size for file in out.iterdir()),
    )


def write(folder: Path, name: str, rows: int, group: int, files: int = 1, note: int = 0) -> Path:
    """Write a directory of files that hold `note` bytes more in each footer."""
    table = tables.floats(rows, COLUMNS)
    (folder / name).mkdir()
    for number in range(files):
        path = folder / name / f"{number}.parquet"
        with pq.ParquetWriter(
            path, table.schema, compression="zstd", use_dictionary=False
        ) as writer:
            writer.write_table(table, row_group_size=group)
            writer.add_key_value_metadata({"note": "x" * note})
    return folder / name


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder, after a first run: its byte code is written and is not written again."""
    folder = tmp_path_factory.mktemp("work")
    tables.write(folder / "first" / "0.parquet", {"x": [1.0, 2.0]})
    work(folder, folder / "first")
    return folder


@pytest.fixture(scope="module")
def small(folder):
    return write(folder, "small", 20_000, 10_000)


@pytest.fixture(scope="module")
def large(folder):
    return write(folder, "large", 120_000, 10_000)


@pytest.fixture(scope="module")
def least(folder, large) -> tuple[str, str]:
    """The smallest limit that will do, as the refusal of a smaller one says it."""
    refused = cli.run("normalize", large, "out", "--memory-limit", "1MB", cwd=folder).expect(7)
    return "--memory-limit", re.search(r"--memory-limit (\d+MB)", refused.stderr).group(1)


@pytest.fixture(scope="module", params=["least", "ample"])
def more(request, folder, small, large, least) -> Work:
    """What a run does more on a table of 18 MB more, with and without room to keep any of it."""
    how = least if request.param == "least" else ("--memory-limit", "2GB")
    few, many = work(folder, small, *how), work(folder, large, *how)
    return Work(*(getattr(many, n) - getattr(few, n) for n in Work.__slots__))


def test_input_is_read_twice_at_most(more):
    # once per pass; the rest is for buffers that are read ahead and read again (seen: a tenth)
    assert more.read <= 2.5 * more.bytes_in


def test_numbers_are_read_once_where_there_is_room_to_keep_them(folder, small, large):
    few, many = (work(folder, data, "--memory-limit", "2GB") for data in (small, large))

    assert many.read - few.read <= 1.25 * (many.bytes_in - few.bytes_in)


def test_output_is_written_once(more):
    # the rest is the manifest: a row per batch, a page of SQLite's log each
    assert more.written <= 1.05 * more.bytes_out


def test_output_is_written_in_large_pieces(more):
    # 64 kB on average, so that no time goes into calls; the manifest's small ones included
    assert more.writes <= more.bytes_out / (1 << 16)


@pytest.mark.parametrize("files", [1, 12])
@pytest.mark.parametrize("groups", [1, 20])
def test_a_footer_is_read_once(folder, files, groups):
    # while planning; never once per pass, row group, batch, share, thread or part
    rows, note = 2_000, 1 << 20
    how = ("--rows-per-part", rows // 4, "--memory-limit", "2GB")
    name = f"{files}-{groups}"
    lean = work(folder, write(folder, f"lean-{name}", rows, rows // groups, files), *how)
    fat = work(folder, write(folder, f"fat-{name}", rows, rows // groups, files, note), *how)
    assert fat.bytes_in - lean.bytes_in >= files * note
    assert fat.read - lean.read <= 1.1 * (fat.bytes_in - lean.bytes_in)


def calls(folder: Path, data: Path, *args: object, names: tuple[str, ...]) -> list[tracing.Call]:
    """Return the system calls of these names that a run makes."""
    tracing.require()
    how = ("--overwrite", "--quiet", "--threads", 2, *args)
    return tracing.census(folder, "normalize", data, folder / "traced", *how, names=names)


def test_a_row_group_more_is_a_few_opens_more(folder, small, large, least):
    # each pass opens the file once for each share of the columns, of which a thread has three, and
    # once per thread for every row group at most
    threads, shares, passes = 2, 6, 2
    opens = {}
    for data in (small, large):
        found = calls(folder, data, *least, names=("open", "openat", "openat2"))
        opens[data] = sum("0.parquet" in call.text for call in found)
    assert opens[small] <= 4 + shares * passes  # and a few looks while planning
    assert opens[large] - opens[small] <= 10 * threads * passes


def test_a_part_more_is_a_few_syncs_more(folder):
    # its contents and its directory, and a row of the manifest for the batch of either pass;
    # SQLite may sync its log a second time for each, and the log's directory
    data = tables.write(
        folder / "parts" / "0.parquet",
        pa.table({"x": np.arange(20_000.0), "y": np.arange(20_000.0)}),
    ).parent
    syncs = {}
    for parts in (4, 20):
        how = ("--rows-per-part", 20_000 // parts)
        syncs[parts] = len(
            calls(folder, data, *how, names=("fsync", "fdatasync", "sync_file_range"))
        )
    assert syncs[20] - syncs[4] >= 2 * 16, "the contents and the directory of each part are synced"
    assert syncs[20] - syncs[4] <= 6 * 16
    assert syncs[4] <= 40 + 6 * 4  # begin and end of a run: directories, scaler, manifest
