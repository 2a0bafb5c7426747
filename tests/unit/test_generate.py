"""Synthetic tables: the same recipe, the same bytes; memory of a few columns."""

from dataclasses import replace

import duckdb
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from polar_etl.errors import RunFailedError, UsageError
from polar_etl.generate import DTYPES, Recipe, generate

SMALL = Recipe(
    chunks=3,
    rows=1_000,
    columns=4,
    dtype="float64",
    seed=1,
    null_fraction=0.0,
    row_group_rows=None,
)


def made(tmp_path, recipe: Recipe) -> pl.DataFrame:
    path = tmp_path / "made.parquet"
    path.unlink(missing_ok=True)
    assert generate(path, recipe) == recipe.chunks * recipe.rows
    return pl.read_parquet(path)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_same_recipe_gives_the_same_bytes(tmp_path, dtype):
    recipe = replace(SMALL, dtype=dtype, null_fraction=0.1)

    for name in ("a", "b"):
        generate(tmp_path / name, recipe)

    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_another_seed_gives_another_table(tmp_path):
    assert not made(tmp_path, SMALL).equals(made(tmp_path, replace(SMALL, seed=2)))


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_table_is_what_the_recipe_says(tmp_path, dtype):
    recipe = replace(SMALL, dtype=dtype)
    generate(tmp_path / "x.parquet", recipe)

    with pq.ParquetFile(tmp_path / "x.parquet") as file:
        assert file.schema_arrow.equals(recipe.schema)
        assert file.schema_arrow.names == ["c0", "c1", "c2", "c3"]
        assert file.metadata.num_rows == 3_000
        assert file.metadata.num_row_groups == 3
        table = file.read()
    assert all(column.null_count == 0 for column in table.columns)


def test_row_groups_follow_from_the_recipe_alone():
    recipe = replace(SMALL, row_group_rows=400)

    assert list(recipe.group_lengths()) == [400, 400, 200] * 3
    assert list(SMALL.group_lengths()) == [1_000] * 3


def test_long_chunks_are_cut_into_row_groups_of_a_usual_size():
    recipe = replace(SMALL, chunks=2, rows=2**21 + 5, columns=10**6)

    assert list(recipe.group_lengths()) == [2**20, 2**20, 5] * 2


@pytest.mark.parametrize(("columns", "rows"), [(1, 100), (20, 60_000), (3_000, 1_000)])
@pytest.mark.parametrize("dtype", ["int16", "float64"])
def test_columns_that_are_made_together_are_as_made_alone(tmp_path, columns, rows, dtype):
    recipe = replace(SMALL, chunks=1, rows=rows, columns=columns, dtype=dtype, null_fraction=0.2)
    frame = made(tmp_path, recipe)

    draw = np.random.default_rng([recipe.seed, 0])
    mean, scale = recipe.truth()
    for i, name in enumerate(frame.columns):
        values = draw.standard_normal(rows) * scale[i] + mean[i]
        valid = draw.random(rows) >= 0.2
        expected = np.rint(values) if dtype == "int16" else values
        assert (frame[name].is_not_null().to_numpy() == valid).all()
        assert frame[name].drop_nulls().to_list() == expected[valid].tolist()


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_reader_reads_it(tmp_path, dtype):
    path = tmp_path / "x.parquet"
    generate(path, replace(SMALL, dtype=dtype, null_fraction=0.3, row_group_rows=300))

    found = pq.read_table(path, page_checksum_verification=True)
    assert pa.table(pl.read_parquet(path, use_pyarrow=False).to_arrow()).equals(found)
    narrow = (
        found
        if dtype != "float16"
        else found.cast(pa.schema([(n, pa.float32()) for n in found.column_names]))
    )
    assert duckdb.read_parquet(str(path)).to_arrow_table().cast(narrow.schema).equals(narrow)


def test_more_chunks_begin_with_the_same_rows(tmp_path):
    recipe = replace(SMALL, null_fraction=0.3)
    few = made(tmp_path, recipe)
    many = made(tmp_path, replace(recipe, chunks=5))

    assert many.head(3_000).equals(few)


@pytest.mark.parametrize("dtype", ["float32", "float64", "int32", "int64"])
def test_the_truth_is_what_the_values_are_drawn_from(tmp_path, dtype):
    recipe = replace(SMALL, chunks=2, rows=50_000, columns=20, dtype=dtype)
    generate(tmp_path / "x.parquet", recipe, tmp_path / "truth.parquet")

    truth = pl.read_parquet(tmp_path / "truth.parquet")
    frame = pl.read_parquet(tmp_path / "x.parquet").cast(pl.Float64)

    assert truth["column"].to_list() == frame.columns
    mean, scale = recipe.truth()
    assert truth["mean"].to_list() == mean.tolist()
    assert truth["scale"].to_list() == scale.tolist()
    # the mean of n draws lies within 6 standard errors of the truth, so does the deviation
    error = 6 * scale / np.sqrt(100_000)
    assert (np.abs(frame.mean().to_numpy()[0] - mean) < error).all()
    rounding = 0.03 if dtype.startswith("int") else 0  # Sheppard: 1/12 more variance
    assert (np.abs(frame.std().to_numpy()[0] - scale) < error + rounding).all()


@pytest.mark.parametrize("fraction", [0.0, 0.25, 1.0])
@pytest.mark.parametrize("dtype", ["float16", "float32", "int8"])
def test_as_many_nulls_as_asked(tmp_path, fraction, dtype):
    recipe = replace(SMALL, rows=20_000, null_fraction=fraction, dtype=dtype)

    shares = [column.null_count() / 60_000 for column in made(tmp_path, recipe)]

    # 6 standard errors of a share of 60,000 draws
    assert shares == pytest.approx([fraction] * 4, abs=6 * (fraction * (1 - fraction) / 6e4) ** 0.5)


def test_nulls_change_no_value(tmp_path):
    whole, holes = made(tmp_path, SMALL), made(tmp_path, replace(SMALL, null_fraction=0.5))

    for name in whole.columns[:1]:
        kept = holes[name].is_not_null()
        assert holes[name].filter(kept).to_list() == whole[name].filter(kept).to_list()


@pytest.mark.parametrize("dtype", ["int8", "int16", "float16"])
def test_narrow_types_hold_finite_values(tmp_path, dtype):
    recipe = replace(SMALL, dtype=dtype, columns=50)

    frame = made(tmp_path, recipe).cast(pl.Float64)

    assert all(column.is_finite().all() for column in frame)


@pytest.mark.parametrize("empty", [{"chunks": 0}, {"rows": 0}])
def test_a_table_without_rows(tmp_path, empty):
    frame = made(tmp_path, replace(SMALL, **empty))

    assert frame.shape == (0, 4)


@pytest.mark.parametrize(
    "wrong",
    [
        *({"chunks": -1}, {"rows": -1}, {"columns": 0}, {"dtype": "string"}, {"dtype": "float"}),
        *({"null_fraction": -0.1}, {"null_fraction": 1.1}, {"null_fraction": float("nan")}),
        *({"row_group_rows": 0}, {"seed": -1}),
    ],
    ids=str,
)
def test_impossible_recipes_are_refused(wrong):
    with pytest.raises(UsageError):
        replace(SMALL, **wrong)


@pytest.mark.parametrize("name", ["made.parquet", "truth.parquet"])
def test_nothing_is_overwritten(tmp_path, name):
    (tmp_path / name).write_bytes(b"precious")

    with pytest.raises(UsageError, match="exists already"):
        generate(tmp_path / "made.parquet", SMALL, tmp_path / "truth.parquet")

    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [(name, b"precious")]


def test_what_can_not_be_written_leaves_nothing(tmp_path):
    with pytest.raises(RunFailedError, match="can't be written"):
        generate(tmp_path / ("x" * 300), SMALL)
    with pytest.raises(UsageError, match="create it first"):
        generate(tmp_path / "absent" / "made.parquet", SMALL)

    assert list(tmp_path.iterdir()) == []


def test_nothing_but_the_table_is_left(tmp_path):
    generate(tmp_path / "made.parquet", SMALL)

    assert [path.name for path in tmp_path.iterdir()] == ["made.parquet"]
