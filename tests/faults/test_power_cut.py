"""Power cuts: what was not brought to disk is gone, and the same command still ends well.

A file system in a file is mounted, shut down in the middle of a run without flushing its log, and
mounted again. Needs root, loop devices and `mkfs`; skipped where they are missing.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import random
import shutil
import subprocess

import pytest
from support import cli, tables, trees

pytestmark = pytest.mark.slow  # mounts, and waits for disks

SHUTDOWN, NO_LOG_FLUSH = 0x8004587D, (2).to_bytes(4, "little")
HOW = ("--rows-per-part", 400, "--threads", 1)
SIZE = {"ext4": "64M", "xfs": "320M"}


def call(*command: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, check=False
    )


class Disk:
    """A file system whose power can be cut."""

    def __init__(self, kind: str, folder) -> None:
        self._image, self.folder = folder / "image", folder / "disk"
        self.folder.mkdir()
        if os.geteuid() != 0 or shutil.which(f"mkfs.{kind}") is None:
            pytest.skip(f"needs root and mkfs.{kind}")
        call("truncate", "-s", SIZE[kind], self._image)
        made = call(f"mkfs.{kind}", "-q", self._image)
        assert made.returncode == 0, made
        self.mount()

    def mount(self) -> None:
        done = call("mount", "-o", "loop", self._image, self.folder)
        if done.returncode != 0:
            pytest.skip(f"loop devices can't be mounted here: {done.stderr.strip()}")

    def unmount(self) -> None:
        cli.wait_until(lambda: call("umount", self.folder).returncode == 0)

    def cut(self) -> None:
        """Stop everything at once; what the disk does not hold by now is gone."""
        descriptor = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.ioctl(descriptor, SHUTDOWN, NO_LOG_FLUSH)
        except OSError as error:
            pytest.skip(f"this file system can't be shut down: {error}")
        finally:
            os.close(descriptor)


@pytest.fixture(params=["ext4", "xfs"])
def disk(request, tmp_path):
    disk = Disk(request.param, tmp_path)
    yield disk
    with contextlib.suppress(AssertionError):
        disk.unmount()


@pytest.fixture
def usual(tmp_path):
    """tmp_path with data/ and its undisturbed result usual/, on a disk that stays."""
    for number in range(12):
        table = tables.floats(1000, 12, "float64", seed=number)
        tables.write(tmp_path / "data" / f"{number:02d}.parquet", table, row_group_size=300)
    cli.run("normalize", "data", "usual", *HOW, cwd=tmp_path).expect(0)
    return tmp_path


def assert_nothing_runs_ahead(out, expected: dict[str, bytes]) -> list[tuple[object, ...]]:
    """Check parts and manifest as they are after the cut; return the rows of the manifest."""
    for path in out.glob("part-*.parquet") if out.exists() else ():
        assert path.read_bytes() == expected[path.name], f"{path.name} is not whole"
    rows = trees.rows_as_found(out)
    named = [row[trees.COLUMNS.index("part")] for row in rows]
    lost = [name for name in named if name is not None and not (out / name).exists()]
    assert not lost, f"the manifest names parts that the cut has taken: {lost}"
    return rows


@pytest.mark.parametrize("seed", range(3))
def test_power_cut_at_random_moments(usual, disk, seed):
    draw = random.Random(seed)
    expected = trees.result(usual / "usual")
    out, before = disk.folder / "out", []
    for _ in range(8):
        lines = draw.randrange(1, 16)
        with cli.started("normalize", "data", out, *HOW, "--json", cwd=usual) as process:
            assert process.stdout is not None
            told = [json.loads(process.stdout.readline() or "{}") for _ in range(lines)]
            for _ in range(draw.randrange(2000)):
                pass  # some microseconds
            disk.cut()
            process.kill()
        disk.unmount()
        disk.mount()
        rows = assert_nothing_runs_ahead(out, expected[0])
        assert [row for row in before if row not in rows] == [], "finished batches are lost"
        keys = {row[:2] for row in rows}
        early = [
            line for line in told if "pass" in line and (line["pass"], line["batch"]) not in keys
        ]
        assert not early, f"told before they were durable: {early}"
        before = rows
    cli.run("normalize", "data", out, *HOW, cwd=usual).expect(0)
    assert trees.result(out) == expected
    assert [row for row in before if row not in trees.batch_rows(out)] == []
    assert trees.leftovers(out) == []


def test_power_cut_just_after_the_run_was_done(usual, disk):
    out = disk.folder / "out"
    cli.run("normalize", "data", out, *HOW, cwd=usual).expect(0)
    disk.cut()
    disk.unmount()
    disk.mount()
    assert trees.result(out) == trees.result(usual / "usual")
    cli.run("verify", out, "--deep", cwd=usual).expect(0)
    done = cli.run("normalize", "data", out, *HOW, "--json", cwd=usual).expect(0)
    assert done.summary["nothing_to_do"] is True
