"""The table of the memory contract, each input in a control group where one can be made."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SMALL = ["bigrg-default", "vwide", "vectors", "dictionaries", "lying"]
ALL = [
    *("bigrg", "bigrg-single", "bigrg-pages", "bigrg-default", "vwide", "vwide-single", "vvwide"),
    *("vectors", "vectors-single", "files", "dictionaries", "long-texts", "one-long-text"),
    *("lying", "lying-later", "narrow", "wide", "wide-default", "vwide-default", "nulls"),
]


def measured(folder: Path, *args: str) -> subprocess.CompletedProcess[str]:
    """Run the benchmark of memory, which fails where the contract is not kept."""
    command = [sys.executable, "-m", "benchmarks.memory", "--data", str(folder), *args]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("shape", SMALL)
def test_a_small_one_stays_below_the_smallest_limit(shape, tmp_path):
    done = measured(tmp_path, "--shapes", shape, "--limits", "least", "--scale", "0.02")

    assert done.returncode == 0, done.stdout + done.stderr
    assert "NOT KEPT" not in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("shape", ALL)
def test_at_full_size_it_stays_below_its_limits(shape, tmp_path):
    done = measured(tmp_path, "--shapes", shape, "--scale", "1")

    assert done.returncode == 0, done.stdout + done.stderr


def test_no_shape_is_left_out():
    code = "from benchmarks.shapes import SHAPES; print(*SHAPES)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )

    assert set(done.stdout.split()) == set(ALL)
