"""Widths, leaves and differences of Arrow schemas."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from polar_etl.errors import InputError
from polar_etl.sources.schemas import (
    checked_schema,
    difference,
    has_variable_width,
    leaves,
    width,
)

NESTED = [
    pa.list_(pa.int8()),
    pa.large_list(pa.struct([("a", pa.int8()), ("b", pa.string())])),
    pa.list_(pa.float32(), 3),
    pa.struct(
        [("a", pa.struct([("b", pa.int8()), ("c", pa.list_(pa.int8()))])), ("d", pa.date32())]
    ),
    pa.map_(pa.string(), pa.struct([("a", pa.int8()), ("b", pa.int8())])),
    pa.dictionary(pa.int8(), pa.string()),
    pa.list_(pa.list_(pa.map_(pa.int8(), pa.int8()))),
]


@pytest.mark.parametrize("kind", [pa.int8(), pa.string(), pa.uuid(), *NESTED], ids=str)
def test_leaves_are_the_columns_of_parquet(kind):
    sink = pa.BufferOutputStream()
    pq.ParquetWriter(sink, pa.schema({"x": kind})).close()

    assert leaves(kind) == pq.read_metadata(pa.BufferReader(sink.getvalue())).num_columns


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        *((pa.int8(), 1), (pa.float16(), 2), (pa.float32(), 4), (pa.timestamp("ns"), 8)),
        *((pa.bool_(), 1), (pa.decimal128(5), 16), (pa.binary(5), 5), (pa.uuid(), 16)),
        *((pa.list_(pa.float32(), 768), 3072), (pa.list_(pa.list_(pa.int16(), 2), 3), 12)),
    ],
    ids=str,
)
def test_width_of_fixed_types_is_their_size(kind, expected):
    assert width(kind) == expected
    assert not has_variable_width(kind)


@pytest.mark.parametrize(
    "kind", [pa.string(), pa.binary(), pa.list_(pa.int8()), pa.map_(pa.int8(), pa.int8())], ids=str
)
def test_width_of_other_types_is_nominal_and_positive(kind):
    assert has_variable_width(kind)
    assert width(kind) > 0


class TestDifference:
    """What differs is said in words."""

    SCHEMA = pa.schema({"a": pa.int8(), "b": pa.string(), "c": pa.float32()})

    def test_of_equal_schemas_is_nothing(self):
        assert difference(self.SCHEMA, self.SCHEMA) == ""

    def test_of_nullability_and_metadata_is_nothing(self):
        other = pa.schema(
            [column.with_nullable(False) for column in self.SCHEMA], metadata={"k": "v"}
        )

        assert difference(self.SCHEMA, other) == ""

    def test_names_missing_new_and_changed_columns(self):
        other = pa.schema({"a": pa.int16(), "c": pa.float32(), "d": pa.int8()})

        text = difference(self.SCHEMA, other)

        assert "'b' is missing" in text
        assert "'d' is new" in text
        assert "'a': expected int8, found int16" in text
        assert "'c'" not in text

    def test_tells_of_another_order(self):
        other = pa.schema([self.SCHEMA.field(name) for name in ("b", "a", "c")])

        assert "order" in difference(self.SCHEMA, other)

    def test_names_few_and_counts_the_rest(self):
        wide = pa.schema({f"column{i}": pa.int8() for i in range(1_000)})

        text = difference(wide, pa.schema({"x": pa.int8()}), limit=5)

        assert text.count("'column") == 5
        assert "996 more" in text


def test_a_schema_with_two_columns_of_one_name_is_refused():
    schema = pa.schema([("x", pa.int8()), ("y", pa.int8()), ("x", pa.int8())])

    with pytest.raises(InputError, match="two columns named 'x'"):
        checked_schema("file", schema)


def test_a_schema_without_columns_is_refused():
    with pytest.raises(InputError, match="no columns"):
        checked_schema("file", pa.schema([]))


def test_a_good_schema_is_returned():
    assert checked_schema("file", TestDifference.SCHEMA) is TestDifference.SCHEMA
