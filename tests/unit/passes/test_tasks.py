"""Batches to moments, slabs to parts; what passes through is not changed."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from polar_etl.errors import InputError
from polar_etl.features import Features
from polar_etl.passes.tasks import (
    Batch,
    BatchMoments,
    EncodedSlab,
    Encoder,
    Place,
    Slab,
    collect_moments,
    groups_of,
    output_schema,
    passed_through,
)
from polar_etl.passes.tasks import (
    moments_of as moments_of_window,
)
from polar_etl.planning.plan import Together
from polar_etl.sources.base import TableWindow
from polar_etl.statistics.blocks import block_rows
from polar_etl.statistics.moments import merge_all
from polar_etl.statistics.scaler import Scaler
from polar_etl.storage.direct import Staging
from polar_etl.storage.parts import PartWriter, part_name
from tests.unit.arrays import TableColumns, in_one
from tests.unit.exact import bits, moments_of


def fitted(table: pa.Table, names: tuple[str, ...], **options: object) -> Scaler:
    kinds = tuple(str(table.schema.field(name).type) for name in names)
    return Scaler(names, kinds, moments_of(*[table[name] for name in names]), **options)


TOGETHER = Together(values=1 << 16)


def table(rows: int = 100) -> pa.Table:
    return pa.table(
        {
            "text": [str(i) for i in range(rows)],
            "x": np.arange(rows, dtype=np.float64),
            "i": np.arange(rows, dtype=np.int32),
            "y": np.arange(rows, dtype=np.float32) ** 2,
        }
    )


def batch(
    data: pa.Table,
    features: Features,
    first_row: int = 0,
    *,
    file: int = 0,
    share: int = 0,
    width: int | None = None,
) -> Batch:
    return Batch(
        file=file,
        first_row=first_row,
        rows=len(data),
        columns=TableColumns(data),
        features=features,
        lane=share,
        width=len(features) if width is None else width,
        together=TOGETHER,
    )


def slab_of(
    columns: TableColumns, rows: int, names: list[str], *, last: bool = True, ends: bool = True
) -> Slab:
    return Slab(
        Place(0, rows, last=last, ends=ends),
        columns=columns,
        names=names,
        lane=0,
        together=TOGETHER,
    )


def test_moments_of_a_batch():
    rows = block_rows(2) * 2 + 5
    data = table(rows)

    result = collect_moments(batch(data, Features(("y", "x")), 7 * block_rows(2), file=3))

    assert (result.file, result.first_row, result.rows) == (3, 7 * block_rows(2), rows)
    assert [int(block.count[0]) for block in result.blocks] == [block_rows(2)] * 2 + [5]
    assert bits(merge_all(result.blocks, 2)) == bits(moments_of(data["y"], data["x"]))


def test_shares_of_a_batch_give_the_moments_of_the_whole():
    """Blocks are as long as all features say, however they are shared out."""
    rows = block_rows(2) + 5
    data = table(rows)
    features = Features(("x", "i", "y"))
    shares = [
        collect_moments(batch(data, features.select(names), share=number, width=len(features)))
        for number, names in enumerate([("x", "y"), ("i",)])
    ]

    found = BatchMoments.beside(shares, np.array([0, 2, 1]))

    whole = collect_moments(batch(data, features))
    assert (found.file, found.first_row, found.rows) == (0, 0, rows)
    assert found.seconds == sum(share.seconds for share in shares)
    assert [bits(block) for block in found.blocks] == [bits(block) for block in whole.blocks]


@pytest.mark.parametrize("together", map(Together, [1, 1000, 1 << 17, 1 << 30], [1, 9, 2, 9]))
def test_how_many_values_are_worked_on_together_does_not_change_moments(together):
    rows = block_rows(3) + 5
    data, features = table(rows), Features(("x", "i", "y"))

    found = moments_of_window(TableWindow(data), features, 0, 3, together)

    whole = moments_of_window(TableWindow(data), features, 0, 3, Together(3 * rows))
    assert [bits(block) for block in found] == [bits(block) for block in whole]
    assert bits(merge_all(found, 3)) == bits(moments_of(data["x"], data["i"], data["y"]))


@pytest.mark.parametrize("rows", [0, 1, 1 << 18, 1 << 20, 1 << 24])
@pytest.mark.parametrize("values", [1, 1 << 18, 3 << 18, 1 << 22])
@pytest.mark.parametrize("columns", [1, 7, 1000])
def test_columns_are_worked_on_a_few_at_a_time_and_in_order(rows, values, columns):
    names = [f"c{i}" for i in range(50)]

    found = list(groups_of(names, rows, Together(values, columns)))

    assert [name for some in found for name in some] == names
    assert all(len(some) == 1 or len(some) * rows <= values for some in found)
    assert all(len(some) <= columns for some in found)
    assert all(  # no fewer either
        len(some) == columns or (len(some) + 1) * max(rows, 1) > values for some in found[:-1]
    )


def read_back(encoder: Encoder, tmp_path, slabs: list[EncodedSlab]) -> pa.Table:
    writer = PartWriter(tmp_path, tmp_path, part_name(0), encoder.form, Staging())
    for slab in slabs:
        writer.append(slab.encoded)
        if slab.place.ends:
            writer.end_group(slab.place.rows)
    writer.commit()
    return pq.read_table(tmp_path / part_name(0))


def test_slabs_are_standardized_and_encoded_in_the_order_of_their_columns(tmp_path):
    data = table()
    encoder = Encoder.of(data.schema, fitted(data, ("x", "y")), 1)
    columns = TableColumns(data)

    slabs = [
        encoder.encode_slab(slab_of(columns, rows, data.column_names, last=last))
        for rows, last in ((40, False), (60, True))
    ]

    found = read_back(encoder, tmp_path, slabs)
    assert pq.read_metadata(tmp_path / part_name(0)).num_row_groups == 2
    x = np.arange(100.0)
    assert found.column_names == data.column_names
    assert found["text"].to_pylist() == data["text"].to_pylist()
    assert found["i"].to_pylist() == data["i"].to_pylist()
    assert found["x"].to_pylist() == ((x - 49.5) / np.std(x)).tolist()
    assert found.schema.field("y").type == pa.float32()


def test_a_share_of_the_columns_has_the_bytes_that_it_has_in_the_whole():
    data = table(1000)
    encoder = Encoder.of(data.schema, fitted(data, ("y", "x")), 1)

    whole = encoder.encode(TableWindow(data), data.column_names, TOGETHER)
    shares = [encoder.encode(TableWindow(data), [name], TOGETHER) for name in data.column_names]

    assert in_one([whole]) == in_one(shares)


@pytest.mark.parametrize("together", map(Together, [1, 1000, 2000, 1 << 30], [1, 9, 1, 9]))
def test_how_many_values_are_worked_on_together_does_not_change_bytes(together):
    data = table(1000)
    encoder = Encoder.of(data.schema, fitted(data, ("y", "i", "x")), 1)

    found = encoder.encode(TableWindow(data), data.column_names, together)

    whole = encoder.encode(TableWindow(data), data.column_names, TOGETHER)
    assert in_one([found]) == in_one([whole])


def test_shares_of_slabs_read_back_as_the_whole(tmp_path):
    data = table()
    names = data.column_names
    encoder = Encoder.of(data.schema, fitted(data, ("x", "y")), 1)
    cut = [names[:1], names[1:3], names[3:]]
    shares = [(TableColumns(data.select(some)), some, some is cut[-1]) for some in cut]

    slabs = [
        encoder.encode_slab(slab_of(columns, rows, some, last=last, ends=ends))
        for rows, last in ((40, False), (60, True))
        for columns, some, ends in shares
    ]
    found = read_back(encoder, tmp_path, slabs)

    columns = TableColumns(data)
    whole = [encoder.encode_slab(slab_of(columns, rows, names)) for rows in (40, 60)]
    assert found.equals(read_back(encoder, tmp_path, whole))
    assert pq.read_metadata(tmp_path / part_name(0)).num_row_groups == 2


def test_a_window_that_lacks_a_column_fails(tmp_path):
    data = table()
    encoder = Encoder.of(data.schema, fitted(data, ("x", "y")), 1)

    with pytest.raises(KeyError):
        encoder.encode(TableWindow(data.drop_columns(["x"])), data.column_names, TOGETHER)


def test_a_slab_without_rows(tmp_path):
    data = table(0)
    encoder = Encoder.of(data.schema, fitted(table(3), ("x", "y")), 1)

    slab = encoder.encode_slab(slab_of(TableColumns(data), 0, data.column_names))

    assert read_back(encoder, tmp_path, [slab]).num_rows == 0


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
            assert array.equals(found[0])
            expected = [x.encode() if x and kind == pa.binary() else x for x in self.TEXTS]
            assert array.cast(kind).to_pylist() == expected

    @pytest.mark.parametrize("words", [20, 2_000], ids=["few", "many"])
    @pytest.mark.parametrize("kind", [pa.string(), pa.large_binary()], ids=str)
    def test_long_text_is_the_same_however_it_was_read(self, words, kind):
        draw = np.random.default_rng(words)
        places = draw.integers(0, words, 12_000, np.int32)
        values = pa.array([f"{i} {'abcdefghij' * (i % 200)}" for i in range(words)]).cast(
            pa.binary() if pa.types.is_large_binary(kind) else pa.string()
        )
        text = pa.DictionaryArray.from_arrays(pa.array(places, mask=places % 7 == 0), values)
        plain = pa.chunked_array([text]).cast(kind)
        read = [
            pa.chunked_array([text]),
            pa.chunked_array([text.slice(at, 700) for at in range(0, 12_000, 700)]),
            plain,
            pa.chunked_array(
                [plain.slice(at, 999).combine_chunks() for at in range(0, 12_000, 999)]
            ),
        ]

        found = [passed_through("t", column, kind) for column in read]

        for column in found:
            assert column.cast(kind).to_pylist() == plain.to_pylist()
            pieces = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
            assert [len(piece) for piece in pieces] == [
                len(piece) for piece in getattr(found[0], "chunks", [found[0]])
            ]
            assert (len(pieces) == 1) == (words == 20)

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
