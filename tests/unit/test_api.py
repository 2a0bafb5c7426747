"""The public functions, over files, LazyFrames and Arrow streams."""

import math
import os
import subprocess
import sys

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from polars.testing import assert_frame_equal

import polar_etl as pe
from polar_etl.api import Options
from polar_etl.events import Warned
from tests.support import trees
from tests.unit.exact import bits

ROWS = 20_000


def frame(rows: int = ROWS) -> pl.DataFrame:
    draw = np.random.default_rng(0)
    return pl.DataFrame(
        {
            "id": [f"row {i}" for i in range(rows)],
            "x": draw.standard_normal(rows) * 5 + 1e6,
            "y": pl.Series(draw.standard_normal(rows), dtype=pl.Float32),
            "i": draw.integers(-50, 50, rows),
            "holes": pl.Series([None if i % 5 == 0 else float(i) for i in range(rows)]),
            "flag": [i % 2 == 0 for i in range(rows)],
        }
    )


def everything_in(folder) -> trees.Tree:
    """Return all there is, but for the lock: it tells when it was last taken."""
    return {key: found for key, found in trees.tree(folder).items() if not key.endswith("/lock")}


class Foreign:
    """Some other library's table."""

    def __init__(self, table: pa.Table) -> None:
        self._table = table

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        return self._table.__arrow_c_stream__(requested_schema)


@pytest.fixture
def path(tmp_path):
    frame().write_parquet(tmp_path / "in.parquet", row_group_size=3_000)
    return tmp_path / "in.parquet"


STREAMS = {
    "LazyFrame": pl.scan_parquet,
    "DataFrame": pl.read_parquet,
    "Table": pq.read_table,
    "RecordBatchReader": lambda path: pq.read_table(path).to_reader(max_chunksize=777),
    "another library": lambda path: Foreign(pq.read_table(path)),
}


class TestOptions:
    """Values that make no sense are refused before anything is read."""

    @pytest.mark.parametrize(
        "wrong",
        [
            *({"ddof": 2}, {"ddof": -1}, {"inf": "drop"}, {"inf": None}, {"dtype": "float16"}),
            *({"threads": 0}, {"threads": -1}, {"rows_per_part": 0}, {"rows_per_part": -5}),
            *({"rows_per_part": 5, "part_size": "1MB"}, {"compression_level": 23}),
            *({"compression_level": -8}, {"part_size": "big"}, {"memory_limit": "0"}),
            *({"memory_limit": "lots"}, {"no_such_option": 1}, {"ddof": 0, "ddoff": 1}),
            *({"ddof": 1.0}, {"ddof": True}, {"ddof": None}, {"threads": "2"}),
            *({"rows_per_part": 1e5}, {"compression_level": 1.0}),
            *({"columns": 7}, {"exclude": ["x", 7]}),
        ],
        ids=str,
    )
    def test_are_refused(self, path, tmp_path, wrong):
        with pytest.raises(pe.UsageError):
            pe.normalize(path, tmp_path / "out", **wrong)

        assert os.listdir(tmp_path) == ["in.parquet"]

    def test_that_are_wrong_are_named(self):
        with pytest.raises(pe.UsageError, match="no option 'ddoff', only columns, exclude, ddof"):
            pe.fit("in.parquet", ddoff=1)
        with pytest.raises(pe.UsageError, match="threads must be a whole number, found '2'"):
            Options(threads="2")

    def test_are_values(self):
        assert Options(ddof=1) == Options(ddof=1) != Options()

    def test_defaults(self):
        found = Options()

        assert (found.ddof, found.inf, found.dtype, found.overwrite) == (0, "error", None, False)
        assert found.limits().threads == len(os.sched_getaffinity(0))


class TestNormalize:
    """Files in, a LazyFrame over the parts out."""

    def test_gives_the_formula_and_passes_the_rest(self, path, tmp_path):
        found = pe.normalize(path, tmp_path / "out").collect()

        given = frame()
        x = given["x"].to_numpy()
        stats = pe.fit(path).stats.row(by_predicate=pl.col("column") == "x", named=True)
        assert found["x"].to_list() == ((x - stats["mean"]) / stats["std"]).tolist()
        assert_frame_equal(found.select("id", "flag"), given.select("id", "flag"))
        assert found["y"].dtype == pl.Float32
        assert found["i"].dtype == pl.Float64
        assert found["holes"].is_null().to_list() == given["holes"].is_null().to_list()
        assert abs(found["holes"].mean()) < 1e-12
        assert found["holes"].std(ddof=0) == pytest.approx(1, rel=1e-12)

    def test_leaves_nothing_but_parts_in_the_output(self, path, tmp_path):
        pe.normalize(path, tmp_path / "out", rows_per_part=6_000)

        assert sorted(os.listdir(tmp_path / "out")) == [f"part-0000{i}.parquet" for i in range(4)]
        assert ds.dataset(tmp_path / "out").count_rows() == ROWS

    def test_of_several_files_is_that_of_all_rows(self, path, tmp_path):
        rows = frame()
        paths = [tmp_path / "a.parquet", tmp_path / "b.parquet"]
        rows.head(16_384).write_parquet(paths[0])
        rows.tail(ROWS - 16_384).write_parquet(paths[1])

        one = pe.normalize(path, tmp_path / "one").collect()
        two = pe.normalize(paths, tmp_path / "two").collect()

        assert_frame_equal(one, two, check_exact=True)

    def test_again_changes_nothing(self, path, tmp_path):
        events = []
        pe.normalize(path, tmp_path / "out")
        part = tmp_path / "out" / "part-00000.parquet"
        before = (part.read_bytes(), part.stat().st_mtime_ns)

        pe.normalize(path, tmp_path / "out", listener=events.append)

        assert (part.read_bytes(), part.stat().st_mtime_ns) == before
        assert not any(type(event).__name__ == "BatchFinished" for event in events)

    def test_columns_can_be_chosen(self, path, tmp_path):
        found = pe.normalize(path, tmp_path / "out", columns=["x", "i"], exclude=["i"]).collect()

        assert_frame_equal(found.drop("x"), frame().drop("x"))
        assert abs(found["x"].mean()) < 1e-9

    def test_a_single_column_needs_no_list(self, path, tmp_path):
        found = pe.normalize(path, tmp_path / "out", columns="holes")

        assert_frame_equal(found.drop("holes").collect(), frame().drop("holes"))
        assert pe.fit(path, exclude="id").columns == pe.fit(path).columns
        assert pe.fit(path, columns=(name for name in "xy")).columns == ("x", "y")

    def test_takes_paths_of_any_iterator(self, path, tmp_path):
        found = pe.normalize(path.parent.glob("*.parquet"), tmp_path / "out").collect()

        assert found.height == ROWS
        assert pe.fit(path.parent.glob("in.*")).columns == ("x", "y", "i", "holes")

    @pytest.mark.parametrize(
        "thing",
        [pl.LazyFrame({"x": [1.0]}), 7, None, {"x": 1}],
        ids=lambda thing: type(thing).__name__,
    )
    def test_takes_no_streams_and_says_what_does(self, tmp_path, thing):
        with pytest.raises(pe.UsageError, match=r"twice.*Use fit and transform"):
            pe.normalize(thing, tmp_path / "out")

    @pytest.mark.parametrize("dtype", ["float32", "float64"])
    def test_the_type_can_be_chosen(self, path, tmp_path, dtype):
        found = pe.normalize(path, tmp_path / "out", dtype=dtype).collect_schema()

        kind = {"float32": pl.Float32, "float64": pl.Float64}[dtype]
        assert {found[name] for name in ("x", "y", "i", "holes")} == {kind}

    def test_infinities_are_refused_and_leave_nothing(self, tmp_path):
        pl.DataFrame({"a": [1.0, 2.0], "b": [1.0, -math.inf]}).write_parquet(
            tmp_path / "in.parquet"
        )

        with pytest.raises(pe.InputError, match=r"'b' \(1\).*row 1") as caught:
            pe.normalize(tmp_path / "in.parquet", tmp_path / "out")

        assert "--inf" in str(caught.value)
        assert os.listdir(tmp_path) == ["in.parquet"]

    @pytest.mark.parametrize(("policy", "expected"), [("ignore", math.inf), ("null", None)])
    def test_infinities_can_pass_or_become_null(self, tmp_path, policy, expected):
        pl.DataFrame({"a": [1.0, math.inf, 3.0]}).write_parquet(tmp_path / "in.parquet")

        found = pe.normalize(tmp_path / "in.parquet", tmp_path / "out", inf=policy).collect()

        assert found["a"].to_list() == [-1.0, expected, 1.0]

    def test_a_missing_input_is_an_input_error(self, tmp_path):
        with pytest.raises(pe.InputError, match="does not exist"):
            pe.normalize(tmp_path / "absent.parquet", tmp_path / "out")
        assert os.listdir(tmp_path) == []

    def test_a_memory_limit_that_is_too_small_leaves_nothing(self, path, tmp_path):
        with pytest.raises(pe.MemoryLimitError, match="--memory-limit"):
            pe.normalize(path, tmp_path / "out", memory_limit="10MB")
        assert os.listdir(tmp_path) == ["in.parquet"]

    def test_an_output_of_other_settings_is_refused_and_can_be_replaced(self, path, tmp_path):
        pe.normalize(path, tmp_path / "out")

        with pytest.raises(pe.StateMismatchError, match="--ddof was '0', now '1'"):
            pe.normalize(path, tmp_path / "out", ddof=1)
        found = pe.normalize(path, tmp_path / "out", ddof=1, overwrite=True).collect()

        assert found["x"].std(ddof=1) == pytest.approx(1, rel=1e-9)

    def test_the_state_can_lie_elsewhere(self, path, tmp_path):
        pe.normalize(path, tmp_path / "out", state_dir=tmp_path / "state")

        assert sorted(os.listdir(tmp_path)) == ["in.parquet", "out", "state"]

    @pytest.mark.parametrize("rows", [0, 1])
    def test_few_rows(self, tmp_path, rows):
        frame().head(rows).write_parquet(tmp_path / "in.parquet")

        found = pe.normalize(tmp_path / "in.parquet", tmp_path / "out").collect()

        assert found.height == rows
        assert found.columns == frame().columns
        assert found["x"].to_list() == [0.0] * rows

    def test_a_table_without_numbers_is_copied(self, tmp_path):
        given = frame().select("id", "flag")
        given.write_parquet(tmp_path / "in.parquet")

        assert_frame_equal(pe.normalize(tmp_path / "in.parquet", tmp_path / "out").collect(), given)


class TestFit:
    """Files, frames and streams give one scaler."""

    @pytest.mark.parametrize("make", STREAMS.values(), ids=STREAMS)
    def test_a_stream_has_the_bits_of_a_file(self, path, make):
        by_file, by_stream = pe.fit(path), pe.fit(make(path))

        assert bits(by_stream.moments) == bits(by_file.moments)
        assert (by_stream.columns, by_stream.dtypes) == (by_file.columns, by_file.dtypes)

    def test_options_are_followed(self, path):
        scaler = pe.fit(path, columns=["x", "y"], ddof=1, inf="null", dtype="float32")

        assert scaler.columns == ("x", "y")
        assert (scaler.ddof, scaler.inf, scaler.dtype) == (1, "null", "float32")

    @pytest.mark.parametrize("as_stream", [False, True])
    def test_infinities_are_refused(self, tmp_path, as_stream):
        given = pl.DataFrame({"a": [1.0, math.inf]})
        given.write_parquet(tmp_path / "in.parquet")

        with pytest.raises(pe.InputError, match="'a'"):
            pe.fit(given.lazy() if as_stream else tmp_path / "in.parquet")

    def test_threads_and_memory_change_no_bit(self, path):
        found = {
            pe.fit(path, threads=threads, memory_limit=limit).to_json()
            for threads in (1, 3)
            for limit in ("1GB", "8GB")
        }

        assert len(found) == 1

    def test_nothing_is_written(self, path, tmp_path):
        pe.fit(path)

        assert os.listdir(tmp_path) == ["in.parquet"]

    @pytest.mark.parametrize("thing", [7, None, {"x": [1.0]}], ids=repr)
    def test_other_things_are_refused(self, thing):
        with pytest.raises(pe.UsageError, match="no source"):
            pe.fit(thing)

    def test_no_inputs_are_refused(self):
        with pytest.raises(pe.UsageError):
            pe.fit([])

    @pytest.mark.parametrize("streamed", [False, True])
    def test_a_variance_beyond_float64_is_told(self, tmp_path, streamed):
        table = pl.DataFrame({"x": [1.5e308, 1.5e308, -1e308], "y": [1.0, 2.0, 4.0]})
        table.write_parquet(tmp_path / "in.parquet")
        events = []

        scaler = pe.fit(
            table.lazy() if streamed else tmp_path / "in.parquet", listener=events.append
        )

        warnings = [event.message for event in events if isinstance(event, Warned)]
        assert warnings == ["Variance beyond Float64 (the output is right): 'x'."]
        assert math.isfinite(scaler.stats["std"][0])


class TestTransform:
    """Apply a scaler to files or streams."""

    @pytest.mark.parametrize("make", STREAMS.values(), ids=STREAMS)
    @pytest.mark.parametrize("rows_per_part", [None, 6_000, ROWS])
    def test_a_stream_gives_the_parts_of_a_file(self, path, tmp_path, make, rows_per_part):
        scaler = pe.fit(path)
        options = {"scaler": scaler, "rows_per_part": rows_per_part}

        by_file = pe.transform(path, tmp_path / "file", **options).collect()
        by_stream = pe.transform(make(path), tmp_path / "stream", **options).collect()

        assert_frame_equal(by_file, by_stream, check_exact=True)
        assert os.listdir(tmp_path / "file") == os.listdir(tmp_path / "stream")

    def test_empty_batches_of_a_stream_make_no_parts(self, path, tmp_path):
        table = pq.read_table(path)
        nothing = pa.RecordBatch.from_pylist([], table.schema)
        batches = [nothing, *table.slice(0, 12_000).to_batches(), nothing, nothing]
        stream = pa.RecordBatchReader.from_batches(table.schema, batches)

        pe.transform(stream, tmp_path / "out", scaler=pe.fit(path), rows_per_part=6_000)

        parts = [tmp_path / "out" / name for name in sorted(os.listdir(tmp_path / "out"))]
        assert [pq.read_metadata(part).num_rows for part in parts] == [6_000, 6_000]

    def test_is_what_normalize_does(self, path, tmp_path):
        pe.normalize(path, tmp_path / "one")
        pe.transform(path, tmp_path / "two", scaler=pe.fit(path))

        one, two = (
            (tmp_path / name / "part-00000.parquet").read_bytes() for name in ("one", "two")
        )
        assert one == two

    def test_a_saved_scaler_is_as_good(self, path, tmp_path):
        pe.fit(path).save(tmp_path / "scaler.json")
        scaler = pe.Scaler.load(tmp_path / "scaler.json")

        a = pe.transform(path, tmp_path / "a", scaler=pe.fit(path)).collect()
        b = pe.transform(path, tmp_path / "b", scaler=scaler).collect()

        assert_frame_equal(a, b, check_exact=True)

    @pytest.mark.parametrize("as_stream", [False, True])
    def test_a_source_that_does_not_fit_is_refused_and_leaves_nothing(
        self, path, tmp_path, as_stream
    ):
        other = frame().drop("x")
        other.write_parquet(tmp_path / "other.parquet")
        source = other.lazy() if as_stream else tmp_path / "other.parquet"

        with pytest.raises(pe.InputError, match="needs column 'x'"):
            pe.transform(source, tmp_path / "out", scaler=pe.fit(path))

        assert sorted(os.listdir(tmp_path)) == ["in.parquet", "other.parquet"]

    def test_a_stream_into_an_output_that_is_there_is_refused(self, path, tmp_path):
        scaler = pe.fit(path)
        pe.normalize(path, tmp_path / "out")
        before = os.listdir(tmp_path / "out")

        with pytest.raises(pe.UsageError, match="another output"):
            pe.transform(pl.scan_parquet(path), tmp_path / "out", scaler=scaler)
        assert os.listdir(tmp_path / "out") == before

    @pytest.mark.parametrize("first", ["file", "stream"])
    def test_a_stream_replaces_an_output_when_asked_to(self, path, tmp_path, first):
        scaler = pe.fit(path)
        source = path if first == "file" else frame().lazy()
        pe.transform(source, tmp_path / "out", scaler=scaler, rows_per_part=1_000)

        found = pe.transform(
            frame().head(10).lazy(), tmp_path / "out", scaler=scaler, overwrite=True
        )

        assert found.collect().height == 10

    @pytest.mark.parametrize(
        ("policy", "expected"), [("error", math.inf), ("ignore", math.inf), ("null", None)]
    )
    def test_infinities_that_the_fit_did_not_see(self, tmp_path, policy, expected):
        scaler = pe.fit(pl.LazyFrame({"x": [1.0, 3.0], "flat": [7.0, 7.0]}), inf=policy)
        new = pl.DataFrame({"x": [3.0, math.inf], "flat": [-math.inf, 1.0]})
        new.write_parquet(tmp_path / "new.parquet")

        parts = pe.transform(tmp_path / "new.parquet", tmp_path / "out", scaler=scaler).collect()

        assert parts["x"].to_list() == [1.0, expected]
        assert parts["flat"].to_list() == [expected and -expected, 0.0]
        assert_frame_equal(scaler.transform(new.lazy()).collect(), parts)

    @pytest.mark.parametrize("option", [{"ddof": 0}, {"columns": ["x"]}, {"dtype": "float64"}])
    def test_refuses_what_the_scaler_decides_on(self, path, tmp_path, option):
        with pytest.raises(pe.UsageError, match=f"scaler decides on {next(iter(option))}"):
            pe.transform(path, tmp_path / "out", scaler=pe.fit(path), **option)

    def test_a_stream_that_breaks_off_leaves_nothing(self, path, tmp_path):
        table = pq.read_table(path)

        def batches():
            yield from table.to_batches()
            raise OSError("the line is dead")

        reader = pa.RecordBatchReader.from_batches(table.schema, batches())
        with pytest.raises(pe.InputError, match="the line is dead"):
            pe.transform(reader, tmp_path / "out", scaler=pe.fit(path), rows_per_part=1_000)

        assert os.listdir(tmp_path) == ["in.parquet"]

    @pytest.mark.parametrize("first", ["file", "stream"])
    def test_a_stream_that_breaks_off_leaves_what_it_was_to_replace(self, path, tmp_path, first):
        scaler, table = pe.fit(path), pq.read_table(path)
        source = path if first == "file" else frame().lazy()
        pe.transform(source, tmp_path / "out", scaler=scaler, rows_per_part=700)
        before = everything_in(tmp_path)

        def batches():
            yield from table.to_batches(max_chunksize=100)
            raise OSError("the line is dead")

        reader = pa.RecordBatchReader.from_batches(table.schema, batches())
        with pytest.raises(pe.InputError, match="the line is dead"):
            pe.transform(reader, tmp_path / "out", scaler=scaler, rows_per_part=300, overwrite=True)

        assert everything_in(tmp_path) == before

    def test_what_a_killed_stream_has_staged_is_swept(self, path, tmp_path):
        scaler = pe.fit(path)
        pe.transform(path, tmp_path / "out", scaler=scaler)
        staged = tmp_path / "out.polar-etl" / "tmp" / ".staged"
        staged.mkdir(parents=True)
        (staged / "part-00000.parquet").write_bytes(b"half of it")

        pe.transform(frame().lazy(), tmp_path / "out", scaler=scaler, overwrite=True)

        assert not staged.exists()

    def test_an_empty_stream_gives_one_empty_part(self, path, tmp_path):
        scaler = pe.fit(path)

        found = pe.transform(frame().head(0).lazy(), tmp_path / "out", scaler=scaler).collect()

        assert found.height == 0
        assert os.listdir(tmp_path / "out") == ["part-00000.parquet"]


class TestNamespace:
    """`LazyFrame.polar_etl`."""

    def test_normalizes_lazily(self, path, tmp_path):
        found = pl.scan_parquet(path).polar_etl.normalize(columns=["x"], ddof=1)

        assert isinstance(found, pl.LazyFrame)
        expected = pe.normalize(path, tmp_path / "out", columns=["x"], ddof=1)
        assert_frame_equal(found.collect(), expected.collect(), rel_tol=1e-15)

    @pytest.mark.parametrize("first", ["polar_etl", "polars"])
    def test_is_there_in_both_orders_of_import(self, first):
        second = {"polar_etl": "polars", "polars": "polar_etl"}[first]
        code = (
            f"import {first}\nimport {second}\n"
            "import polars as pl\n"
            "print(pl.LazyFrame({'x': [1.0, 3.0]}).polar_etl.normalize().collect()['x'].to_list())"
        )

        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False
        )

        assert (done.returncode, done.stdout, done.stderr) == (0, "[-1.0, 1.0]\n", "")


def test_streams_import_no_pandas():
    """PyArrow does, where it is installed, for many a call: half a second and 60 MB."""
    code = (
        "import sys, tempfile, polars as pl, polar_etl as pe\n"
        "frame = pl.LazyFrame({'x': [1.0, 3.0], 's': ['a', 'b'], 'v': [[1.0], [2.0]]})\n"
        "scaler = pe.fit(frame, columns='*')\n"
        "pe.transform(frame, tempfile.mkdtemp() + '/out', scaler=scaler)\n"
        "frame.polar_etl.normalize().collect()\n"
        "sys.exit('pandas' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_all_public_names_are_there():
    for name in pe.__all__:
        assert getattr(pe, name) is not None
    assert set(dir(pe)) >= set(pe.__all__)


def test_other_names_are_attribute_errors():
    with pytest.raises(AttributeError, match="no_such_thing"):
        _ = pe.no_such_thing
