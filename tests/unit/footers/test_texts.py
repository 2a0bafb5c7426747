"""How much text page headers tell of: never much less than there is, nor far more."""

import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from polar_etl.footers.texts import beside, text_in
from polar_etl.sources.first_look import inspect

ROWS = 20_000
PAGE = 1 << 15


def texts_of(path, texts: list[str | None], **how: object) -> tuple[int, ...]:
    pq.write_table(pa.table({"x": range(len(texts)), "t": texts}), path, **how)
    return inspect(os.fspath(path)).file.text_windows


def most(texts: list[str | None], rows: int) -> int:
    """Return the bytes of the letters of so many neighbouring rows, where they are most."""
    sums = np.cumsum([0, *(len(text or "") for text in texts)])
    rows = min(rows, len(texts))
    return int((sums[rows:] - sums[: len(sums) - rows]).max())


def written(size: int) -> list[str]:
    draw = np.random.default_rng(size)
    return [f"{i}{'abc' * int(n)}" for i, n in enumerate(draw.integers(0, size, ROWS))]


@pytest.mark.parametrize("size", [4, 100])
@pytest.mark.parametrize(
    "how",
    [
        {"use_dictionary": False},
        {"use_dictionary": False, "row_group_size": 3_000},
        {"use_dictionary": False, "data_page_version": "2.0"},
        {"use_dictionary": False, "column_encoding": {"t": "DELTA_LENGTH_BYTE_ARRAY"}},
        {"dictionary_pagesize_limit": 1 << 14},
    ],
    ids=lambda how: " ".join(f"{key}={value}" for key, value in how.items()),
)
def test_windows_hold_what_there_is_and_little_more(tmp_path, how, size):
    texts = written(size)
    windows = texts_of(tmp_path / "in.parquet", texts, data_page_size=PAGE, **how)
    for rows in (1, 10, 500, 3_000, 7_777, ROWS, 10**9):
        there = most(texts, rows)
        assert text_in(windows, rows) >= there - PAGE
        assert text_in(windows, rows) <= 1.5 * (there + 4 * min(rows, ROWS)) + 2 * PAGE


@pytest.mark.parametrize(
    ("long", "how"),
    [
        (50, {"use_dictionary": False}),
        (19_990, {"use_dictionary": False, "row_group_size": 1_000}),
        (50, {}),
        (10_000, {}),  # words of a dictionary before it, and behind it plain text
    ],
)
def test_one_long_text_counts_wherever_it_stands(tmp_path, long, how):
    texts = ["ab"] * ROWS
    texts[long] = "x" * 5_000_000
    windows = texts_of(tmp_path / "in.parquet", texts, **how)
    for rows in (1, 100, ROWS):
        assert 5_000_000 <= text_in(windows, rows) <= 12_000_000


def test_words_that_a_dictionary_hardly_uses_do_not_count_for_all(tmp_path):
    texts = ["ab"] * (ROWS // 2) + [f"{i}{'x' * 1_000}" for i in range(ROWS // 2)]
    windows = texts_of(tmp_path / "in.parquet", texts)
    assert text_in(windows, ROWS) <= 1.2 * most(texts, ROWS)


@pytest.mark.parametrize(
    "column",
    [
        [["a", "b"]],
        pa.array(["a"]).dictionary_encode(),
        [{"a": "b"}],
    ],
    ids=["lists", "categories", "structs"],
)
def test_nested_text_is_not_told(tmp_path, column):
    pq.write_table(pa.table({"t": column}), tmp_path / "in.parquet", use_dictionary=False)
    assert inspect(os.fspath(tmp_path / "in.parquet")).file.text_windows == ()


def test_a_prefix_that_is_left_out_is_not_told(tmp_path):
    how = {"use_dictionary": False, "column_encoding": {"t": "DELTA_BYTE_ARRAY"}}
    assert texts_of(tmp_path / "in.parquet", written(10), **how) == ()


@given(st.lists(st.lists(st.integers(0, 50), min_size=1, max_size=30), min_size=1, max_size=5))
def test_neighbouring_files_hold_no_more_than_is_told(files):
    windows, rows = [], []
    for sizes in files:
        reach = range(4 * (len(sizes) - 1).bit_length() + 1)
        texts = ["x" * size for size in sizes]
        windows.append(tuple(most(texts, int(2 ** (place / 4) + 1e-9)) for place in reach))
        rows.append(len(sizes))
    everything = ["x" * size for sizes in files for size in sizes]
    together = beside(windows, rows)
    for length in range(1, len(everything) + 1):
        assert text_in(together, length) >= most(everything, length)
