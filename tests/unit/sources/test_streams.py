"""Rows that are read once: frames and Arrow streams."""

import polars as pl
import pyarrow as pa
import pytest

from polar_etl.errors import InputError, UsageError
from polar_etl.sources.streams import StreamSource

TABLE = pa.table({"x": [1.0, None, 3.0], "text": ["a", "b", None]})


class Foreign:
    """Some other library's table."""

    def __init__(self, table: pa.Table) -> None:
        self._table = table

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        return self._table.__arrow_c_stream__(requested_schema)


SOURCES = {
    "LazyFrame": lambda: pl.from_arrow(TABLE).lazy(),
    "DataFrame": lambda: pl.from_arrow(TABLE),
    "Table": lambda: TABLE,
    "RecordBatch": lambda: TABLE.to_batches()[0],
    "RecordBatchReader": lambda: TABLE.to_reader(max_chunksize=1),
    "another library": lambda: Foreign(TABLE),
}


@pytest.mark.parametrize("make", SOURCES.values(), ids=SOURCES)
def test_rows_come_once_and_in_order(make):
    source = StreamSource.of(make())

    assert source.schema.names == ["x", "text"]
    rows = pa.concat_tables(source.tables())
    assert rows.to_pydict() == TABLE.to_pydict()
    assert rows.schema.equals(source.schema)
    assert list(source.tables()) == []


@pytest.mark.parametrize("thing", [7, None, {"x": [1.0]}, [1.0, 2.0], b"x"], ids=repr)
def test_other_things_are_no_source(thing):
    with pytest.raises(UsageError, match="no source"):
        StreamSource.of(thing)


def test_an_expression_is_no_source():
    with pytest.raises(UsageError, match="no source"):
        StreamSource.of(pl.col("x"))


def test_a_stream_that_breaks_off_is_an_input_error():
    def batches():
        yield TABLE.to_batches()[0]
        raise OSError("the line is dead")

    source = StreamSource.of(pa.RecordBatchReader.from_batches(TABLE.schema, batches()))

    with pytest.raises(InputError, match="the line is dead"):
        list(source.tables())


def test_a_lazyframe_that_fails_is_an_input_error():
    frame = pl.LazyFrame({"x": ["no number"]}).with_columns(pl.col("x").cast(pl.Int8))

    with pytest.raises(InputError, match="can't be collected"):
        list(StreamSource.of(frame).tables())


@pytest.mark.parametrize(
    "thing",
    [pl.Series([1.0]), pl.scan_parquet("absent.parquet"), pl.LazyFrame({"x": [1]}).select("y")],
    ids=["a column", "of no file", "of no such column"],
)
def test_what_has_no_columns_to_tell_is_an_input_error(thing):
    with pytest.raises(InputError, match=r"no stream of tables|can't be collected"):
        StreamSource.of(thing)


@pytest.mark.parametrize("frame", [pl.LazyFrame(), pa.table({})], ids=["polars", "pyarrow"])
def test_no_columns_are_an_input_error(frame):
    with pytest.raises(InputError, match="no columns"):
        StreamSource.of(frame)


def test_two_columns_of_one_name_are_an_input_error():
    table = pa.table([pa.array([1]), pa.array([2])], names=["x", "x"])

    with pytest.raises(InputError, match="two columns"):
        StreamSource.of(table)


@pytest.mark.parametrize("kind", ["Int128", "UInt128"])
def test_integers_of_128_bits_become_the_nearest_floats(kind):
    if not hasattr(pl, kind):
        pytest.skip(f"this Polars has no {kind}")
    values = [2**127 - 1, 2**53 + 1, None, 0]
    frame = pl.LazyFrame({"x": pl.Series(values, dtype=getattr(pl, kind))})

    source = StreamSource.of(frame)

    table = pa.concat_tables(source.tables())
    assert source.schema == table.schema == pa.schema({"x": pa.float64()})
    assert table["x"].to_pylist() == [None if x is None else float(x) for x in values]
