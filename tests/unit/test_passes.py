"""Batches to moments, slabs to parts; what passes through is not changed."""

import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from polar_etl.blocks import block_rows
from polar_etl.errors import InputError, RunFailedError
from polar_etl.features import Features
from polar_etl.moments import merge_all
from polar_etl.parts import PartFormat, PartWriter, part_name
from polar_etl.passes import (
    Batch,
    PartsStage,
    Slab,
    collect_moments,
    output_schema,
    passed_through,
)
from polar_etl.scaler import Scaler
from tests.unit.exact import bits, moments_of


def fitted(table: pa.Table, names: tuple[str, ...], **options: object) -> Scaler:
    kinds = tuple(str(table.schema.field(name).type) for name in names)
    return Scaler(names, kinds, moments_of(*[table[name] for name in names]), **options)


def table(rows: int = 100) -> pa.Table:
    return pa.table(
        {
            "text": [str(i) for i in range(rows)],
            "x": np.arange(rows, dtype=np.float64),
            "i": np.arange(rows, dtype=np.int32),
            "y": np.arange(rows, dtype=np.float32) ** 2,
        }
    )


def test_moments_of_a_batch():
    rows = block_rows(2) * 2 + 5
    data = table(rows)

    result = collect_moments(Batch(3, 7 * block_rows(2), data), Features(("y", "x")))

    assert (result.file, result.first_row, result.rows) == (3, 7 * block_rows(2), rows)
    assert [int(block.count[0]) for block in result.blocks] == [block_rows(2)] * 2 + [5]
    assert bits(merge_all(result.blocks, 2)) == bits(moments_of(data["y"], data["x"]))


@pytest.fixture
def folders(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "tmp").mkdir()
    return tmp_path / "out", tmp_path / "tmp"


def stage(folders, data: pa.Table) -> PartsStage:
    scaler = fitted(data, ("x", "y"))
    form = PartFormat(output_schema(data.schema, scaler), scaler.columns, 1)
    return PartsStage(
        features=scaler.features,
        standardizer=scaler.standardizer(),
        form=form,
        writer=lambda index: PartWriter(*folders, part_name(index), form),
    )


def test_slabs_become_row_groups_of_parts(folders):
    data = table()
    made = stage(folders, data)

    results = [
        made.write(Slab(0, False, data.slice(0, 40))),
        made.write(Slab(1, False, data.slice(60, 10))),
        made.write(Slab(0, True, data.slice(40, 20))),
        made.write(Slab(1, True, data.slice(70, 30))),
    ]

    assert [(result.part, result.rows) for result in results] == [
        (0, 40),
        (1, 10),
        (0, 20),
        (1, 30),
    ]
    assert [r.receipt.name if r.receipt else None for r in results] == [
        *(None, None, part_name(0), part_name(1))
    ]
    assert pq.read_metadata(folders[0] / part_name(0)).num_row_groups == 2
    found = pa.concat_tables([pq.read_table(folders[0] / part_name(i)) for i in range(2)])
    x = np.arange(100.0)
    assert found.column_names == data.column_names
    assert found["text"].to_pylist() == data["text"].to_pylist()
    assert found["i"].to_pylist() == data["i"].to_pylist()
    assert found["x"].to_pylist() == ((x - 49.5) / np.std(x)).tolist()
    assert found.schema.field("y").type == pa.float32()


def test_after_a_failure_no_part_is_begun_in_its_middle(folders):
    data = table()
    made = stage(folders, data)
    made.write(Slab(0, False, data))

    with pytest.raises(KeyError):
        made.write(Slab(1, False, data.drop_columns(["x"])))
    for part in (0, 1, 2):
        with pytest.raises(RunFailedError, match="earlier"):
            made.write(Slab(part, True, data))
    made.abort()

    assert os.listdir(folders[0]) == os.listdir(folders[1]) == []


def test_abort_drops_what_was_begun_and_keeps_what_was_committed(folders):
    data = table()
    made = stage(folders, data)
    made.write(Slab(0, True, data))
    made.write(Slab(1, False, data))

    made.abort()
    made.abort()

    assert os.listdir(folders[0]) == [part_name(0)]
    assert os.listdir(folders[1]) == []


class TestOutputSchema:
    """The source's schema, with normalized columns as floats."""

    def test_keeps_order_metadata_and_all_else(self):
        schema = pa.schema(
            [
                pa.field("text", pa.string(), nullable=False, metadata={"k": "v"}),
                pa.field("x", pa.float64(), nullable=False, metadata={"unit": "m"}),
                pa.field("f", pa.float32()),
                pa.field("h", pa.float16()),
                pa.field("i", pa.uint8()),
            ],
            metadata={"origin": "here"},
        )
        data = schema.empty_table()

        found = output_schema(schema, fitted(data, ("x", "f", "h", "i")))

        assert found.metadata == schema.metadata
        assert found.field("text").equals(schema.field("text"), check_metadata=True)
        assert found.field("x").equals(schema.field("x"), check_metadata=True)
        assert [field.type for field in found] == [
            *(pa.string(), pa.float64(), pa.float32(), pa.float32(), pa.float64())
        ]

    @pytest.mark.parametrize(
        ("asked", "kind"), [("float32", pa.float32()), ("float64", pa.float64())]
    )
    def test_follows_the_type_that_was_asked(self, asked, kind):
        data = pa.table({"x": [1.0], "f": pa.array([1.0], pa.float32())})

        found = output_schema(data.schema, fitted(data, ("x", "f"), dtype=asked))

        assert found.types == [kind, kind]

    @pytest.mark.parametrize(("policy", "nullable"), [("null", True), ("ignore", False)])
    def test_columns_whose_infinities_become_null_are_nullable(self, policy, nullable):
        schema = pa.schema([pa.field("x", pa.float64(), nullable=False)])
        data = pa.Table.from_arrays([pa.array([1.0, np.inf, 2.0])], schema=schema)

        found = output_schema(schema, fitted(data, ("x",), inf=policy))

        assert found.field("x").nullable is nullable


class TestPassedThrough:
    """However a column was cut when read, the same form goes out, with the same values."""

    TEXTS = ("b", "a", None, "b", "c", "a", "a", None)

    def variants(self, kind: pa.DataType) -> list[pa.ChunkedArray]:
        def chunk(values: list[str | None]) -> pa.Array:
            array = pa.array(values)
            return (
                array.dictionary_encode().cast(kind)
                if pa.types.is_dictionary(kind)
                else array.cast(kind)
            )

        cuts = ([], [1], [3, 5], [0, 2, 2, 7], list(range(8)))
        return [
            pa.chunked_array(
                [chunk(list(self.TEXTS[a:b])) for a, b in zip([0, *cut], [*cut, 8], strict=True)],
                kind,
            )
            for cut in cuts
        ]

    @pytest.mark.parametrize(
        "kind",
        [pa.string(), pa.large_string(), pa.binary(), pa.dictionary(pa.int8(), pa.string())],
        ids=str,
    )
    def test_is_the_same_however_it_was_cut(self, kind):
        found = [passed_through("t", column) for column in self.variants(kind)]

        for array in found:
            assert array.type == kind
            assert array.equals(found[0])
            expected = [x.encode() if x and kind == pa.binary() else x for x in self.TEXTS]
            assert array.to_pylist() == expected

    def test_dictionaries_keep_no_unused_values(self):
        full = pa.DictionaryArray.from_arrays(pa.array([2, 2], pa.int8()), ["a", "b", "c"])

        found = passed_through("t", pa.chunked_array([full]))

        assert found.dictionary.to_pylist() == ["c"]

    def test_ordered_dictionaries_keep_their_order(self):
        levels = ["low", "mid", "high"]
        column = pa.chunked_array(
            [
                pa.DictionaryArray.from_arrays(pa.array([code], pa.int8()), levels, ordered=True)
                for code in (2, 0, 1)
            ]
        )

        found = passed_through("level", column)

        assert found.type == column.type
        assert found.to_pylist() == ["high", "low", "mid"]
        chunks = found.chunks if isinstance(found, pa.ChunkedArray) else [found]
        for chunk in chunks:
            assert chunk.dictionary.to_pylist() == levels

    @pytest.mark.parametrize(
        "data",
        [
            pa.array([[1, 2], None, []], pa.list_(pa.int8())),
            pa.array([{"a": 1}, None], pa.struct([("a", pa.int8())])),
            pa.array([True, None, False]),
            pa.nulls(3),
        ],
        ids=lambda data: str(data.type),
    )
    def test_other_types_keep_their_values(self, data):
        column = pa.chunked_array([data, data[1:], data[:0]])

        found = passed_through("c", column)

        assert found.type == data.type
        assert found.to_pylist() == column.to_pylist()

    @pytest.mark.parametrize("kind", [pa.string(), pa.dictionary(pa.int8(), pa.string())], ids=str)
    def test_a_column_without_rows(self, kind):
        found = passed_through("c", pa.chunked_array([], kind))

        assert (found.type, len(found)) == (kind, 0)

    def test_text_that_is_not_utf8_is_an_input_error(self):
        broken = pa.Array.from_buffers(
            pa.string(), 1, [None, pa.py_buffer(b"\0\0\0\0\2\0\0\0"), pa.py_buffer(b"\xff\xfe")]
        )

        with pytest.raises(InputError, match="'c' holds invalid values"):
            passed_through("c", pa.chunked_array([broken]))
