"""Column chunks as bytes: every reader finds what was given, however it was cut into slabs."""

import io
from pathlib import Path

import duckdb
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from polar_etl.encoding.chunks import Chunk, Described, joined, numbers_of, placed
from polar_etl.encoding.page_buffers import Filled, PagedColumns
from polar_etl.encoding.part_format import PartFormat, leaf_paths
from polar_etl.pages import thrift
from polar_etl.storage.direct import Staging
from polar_etl.storage.parts import PartWriter, part_name
from tests.support import tables
from tests.unit.arrays import encoded, in_one, paged
from tests.unit.plain import column


def mixed(rows: int) -> pa.Table:
    """Return about every kind that there is; Python has no nanoseconds."""
    table = tables.mixed(rows)
    zoned = table["zoned"].cast(pa.timestamp("us", "Europe/Berlin"), safe=False)
    return table.set_column(table.column_names.index("zoned"), "zoned", zoned)


def write(folder: Path, form: PartFormat, slabs: list[pa.Table], shares: int = 1) -> Path:
    writer = PartWriter(folder, folder, part_name(0), form, Staging())
    for slab in slabs:
        for share in encoded(form, slab, shares):
            writer.append(share)
        writer.end_group(len(slab))
    writer.commit()
    return folder / part_name(0)


def cut(table: pa.Table, lengths: list[int]) -> list[pa.Table]:
    starts = np.cumsum([0, *lengths])
    return [table.slice(a, n) for a, n in zip(starts, lengths, strict=False)]


def bits(data: pa.ChunkedArray) -> tuple[list[bool], bytes]:
    """Return which floats are there, and the bits of those."""
    there = data.is_valid().to_pylist()
    return there, data.drop_null().to_numpy().tobytes()


def same(found: pa.Table, table: pa.Table, floats: tuple[str, ...]) -> None:
    found.validate(full=True)
    assert found.schema.equals(table.schema)
    assert found.schema.equals(by_pyarrow(table), check_metadata=True)
    assert found.num_rows == table.num_rows
    for name in table.column_names:
        if name in floats:
            assert bits(found[name]) == bits(table[name])
        else:
            assert found[name].to_pylist() == table[name].to_pylist()


def by_pyarrow(table: pa.Table) -> pa.Schema:
    """Return the schema that comes back from PyArrow's own files."""
    sink = io.BytesIO()
    pq.write_table(table.slice(0, 0), sink)
    return pq.read_schema(sink)


def verified(path: Path) -> pa.Table:
    return pq.read_table(path, page_checksum_verification=True, use_threads=False)


OTHERS = {
    name: values
    for name, values in zip(mixed(64).column_names, mixed(64).columns, strict=True)
    if name not in ("x", "y")
}


@st.composite
def slabs(draw: st.DrawFn) -> tuple[PartFormat, list[pa.Table]]:
    """Return slabs of normalized and other columns in any order."""
    lengths = draw(st.lists(st.integers(0, 20), max_size=4))
    rows = sum(lengths)
    fields, arrays, plain = [], [], []
    for place in range(draw(st.integers(0, 4))):
        nulls = draw(st.sampled_from([0.0, 0.3, 1.0]))
        kind = draw(st.sampled_from([pa.float32(), pa.float64()]))
        nullable = nulls > 0 or draw(st.booleans())
        metadata = draw(st.sampled_from([None, {"unit": "m"}]))
        fields.append(pa.field(f"ü{place}", kind, nullable, metadata))
        arrays.append(column(kind, rows, nulls, draw(st.integers(0, 9))))
        plain.append(f"ü{place}")
    for name in draw(st.lists(st.sampled_from(sorted(OTHERS)), max_size=3, unique=True)):
        fields.append(pa.field(name, OTHERS[name].type))
        arrays.append(OTHERS[name].combine_chunks().take(pa.array(np.arange(rows) % 64)))
    assume(fields)  # input without columns is refused
    order = draw(st.permutations(range(len(fields))))
    schema = pa.schema([fields[i] for i in order], draw(st.sampled_from([None, {"origin": "ü"}])))
    table = pa.Table.from_arrays([arrays[i] for i in order], schema=schema)
    form = PartFormat(schema, tuple(plain), draw(st.sampled_from([-5, 1, 3, 9])))
    return form, cut(table, lengths) or [table]


@given(given_=slabs(), shares=st.integers(1, 5))
def test_any_slabs_read_back_the_same(tmp_path_factory, given_, shares):
    form, parts = given_
    folder = tmp_path_factory.getbasetemp()
    table = pa.concat_tables(parts)

    path = write(folder, form, parts, shares)

    same(verified(path), table, form.plain)
    lengths = [len(part) for part in parts if len(part)]
    metadata = pq.read_metadata(path)
    assert [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)] == lengths
    assert metadata.num_rows == sum(lengths)


@given(given_=slabs())
def test_polars_reads_what_pyarrow_reads(tmp_path_factory, given_):
    form, parts = given_
    table = pa.concat_tables(parts)
    floats = [name for name in table.column_names if name in form.plain]
    path = write(tmp_path_factory.getbasetemp(), form, parts)

    found = pl.read_parquet(path, columns=floats, use_pyarrow=False)

    for name in floats:
        assert bits(pa.chunked_array([found[name].to_arrow()])) == bits(table[name])


@pytest.mark.parametrize("required", [False, True])
def test_duckdb_and_polars_read_what_was_written(tmp_path, required):
    rows = 3000
    draw = np.random.default_rng(0)
    x = draw.standard_normal(rows)
    kind = pa.float32()
    y = pa.array(x.astype("f4"), kind, mask=None if required else draw.random(rows) < 0.4)
    text = [f"text {i % 9}" for i in range(rows)]
    schema = pa.schema(
        [
            ("text", pa.string()),
            pa.field("x", pa.float64(), not required),
            pa.field("y", kind, not required),
        ]
    )
    table = pa.Table.from_arrays([pa.array(text), pa.array(x), y], schema=schema)
    path = write(tmp_path, PartFormat(schema, ("x", "y"), 1), cut(table, [1000, 1, 1999]))

    with duckdb.connect() as connection:
        rows_of = connection.sql(f"SELECT text, x, y FROM '{path}'").fetchall()
        assert rows_of == list(zip(text, x.tolist(), y.to_pylist(), strict=True))
        low = connection.sql(f"SELECT count(*) FROM '{path}' WHERE x < 0 AND text = 'text 3'")
        assert low.fetchall()[0][0] == sum(
            1 for a, b in zip(x, text, strict=True) if a < 0 and b == "text 3"
        )
    assert pl.read_parquet(path).rows() == rows_of
    assert pl.scan_parquet(path).filter(pl.col("text") == "text 3").collect().height == text.count(
        "text 3"
    )


def test_columns_of_every_kind_read_back(tmp_path):
    table = mixed(500)
    path = write(tmp_path, PartFormat(table.schema, ("x", "y"), 1), cut(table, [200, 0, 1, 299]))

    found = verified(path)

    for name in table.column_names:
        assert found[name].to_pylist() == table[name].to_pylist()
    assert found.schema.equals(table.schema)


@pytest.mark.parametrize("kind", [pa.float32(), pa.float64()], ids=str)
@pytest.mark.parametrize("rows", [1, 32_767, 32_768, 32_769, 65_536, 65_537, 200_000])
@pytest.mark.parametrize("nulls", [0.0, 0.1, 1.0])
def test_long_columns_come_in_several_pages(tmp_path, kind, rows, nulls):
    table = pa.table({"x": column(kind, rows, nulls, 0)})

    path = write(tmp_path, PartFormat(table.schema, ("x",), 1), [table])

    assert bits(verified(path)["x"]) == bits(table["x"])
    assert bits(pa.chunked_array([pl.read_parquet(path)["x"].to_arrow()])) == bits(table["x"])


def described(chunk: pq.ColumnChunkMetaData) -> dict[str, object]:
    """Return what a footer says of a chunk, except where it stands."""
    found = chunk.to_dict()
    start = chunk.dictionary_page_offset or chunk.data_page_offset
    for name in ("dictionary_page_offset", "data_page_offset", "index_page_offset"):
        found[name] = found.get(name) and found[name] - start
    found.pop("file_offset")
    return found


def test_other_columns_are_described_as_pyarrow_describes_them(tmp_path):
    """Statistics, encodings and sizes: readers skip rows by them."""
    table = mixed(500)
    path = write(tmp_path, PartFormat(table.schema, ("x", "y"), 1), [table])
    sink = io.BytesIO()
    ours_alone = "x", "y", "flag"
    others = [name for name in table.column_names if name not in ours_alone]
    pq.write_table(
        table.select(others),
        sink,
        compression="zstd",
        compression_level=1,
        write_page_checksum=True,
        data_page_size=1 << 18,
        store_schema=False,
    )

    group, theirs = pq.read_metadata(path).row_group(0), pq.read_metadata(sink).row_group(0)
    ours = [group.column(i) for i in range(group.num_columns)]
    ours = [chunk for chunk in ours if chunk.path_in_schema not in ours_alone]
    assert [described(chunk) for chunk in ours] == [
        described(theirs.column(i)) for i in range(theirs.num_columns)
    ]


def test_row_groups_are_described_truly(tmp_path):
    table = mixed(500)
    path = write(tmp_path, PartFormat(table.schema, ("x", "y"), 1), cut(table, [100, 400]))
    content = path.read_bytes()

    metadata = pq.read_metadata(path)
    at = 4
    for index in range(metadata.num_row_groups):
        group = metadata.row_group(index)
        chunks = [group.column(i) for i in range(group.num_columns)]
        for chunk in chunks:
            start = chunk.dictionary_page_offset or chunk.data_page_offset
            assert start == at
            assert chunk.num_values >= 0
            at += chunk.total_compressed_size
        assert group.total_byte_size == sum(chunk.total_uncompressed_size for chunk in chunks)
    assert at == len(content) - 8 - int.from_bytes(content[-8:-4], "little")


def test_footers_say_what_pyarrow_says(tmp_path):
    table = mixed(10).replace_schema_metadata({"origin": "here"})
    path = write(tmp_path, PartFormat(table.schema, ("x", "y"), 1), [table])
    sink = io.BytesIO()
    pq.write_table(table, sink)

    ours, theirs = pq.read_metadata(path), pq.read_metadata(sink)

    assert ours.schema.equals(theirs.schema)
    assert ours.metadata == theirs.metadata
    assert (ours.created_by, ours.format_version) == (theirs.created_by, theirs.format_version)


def test_chunks_do_not_depend_on_their_neighbours():
    """So shares of columns can be encoded apart."""
    table = mixed(100)
    form = PartFormat(table.schema, ("x", "y"), 1)

    (whole,), apart = encoded(form, table), encoded(form, table, table.num_columns)

    assert in_one([whole]) == in_one(apart)
    assert whole.columns == len(leaf_paths(table.schema)) == sum(share.columns for share in apart)
    assert whole.size == len(whole.content) == sum(share.size for share in apart)
    assert whole.plain_size == sum(share.plain_size for share in apart)


@pytest.mark.parametrize("start", [4, 1 << 40])
def test_chunks_stand_one_behind_the_other_wherever_they_are_placed(start):
    table = mixed(100)
    whole, apart = (encoded(PartFormat(table.schema, ("x", "y"), 1), table, n) for n in (1, 100))

    (found,) = (placed(share, start) for share in whole)
    entries = b""
    for share in apart:
        there = placed(share, start)
        assert there.place == start
        entries += there.entries
        start += share.size
    assert found.entries == entries


def test_the_scratch_that_values_stand_in_may_be_used_again():
    form = PartFormat(pa.schema({"x": pa.float64()}), ("x",), 1)
    column = paged(np.arange(100_000.0))
    (chunk,) = form.scalars(["x"], [column])
    content = b"".join(chunk.content)

    for page in column.columns.pages(0):
        page.values[:] = 0

    assert b"".join(chunk.content) == content


@pytest.mark.parametrize("level", [-7, 1, 19])
def test_the_level_decides_how_small_it_becomes(level):
    values = np.repeat(np.random.default_rng(0).standard_normal(1000), 30)
    sizes = [
        PartFormat(pa.schema({"x": pa.float64()}), ("x",), some)
        .scalars(["x"], [paged(values)])[0]
        .described.size
        for some in (-7, level, 19)
    ]

    assert sizes[0] >= sizes[1] >= sizes[2]


def test_leaf_paths_are_those_of_the_file(tmp_path):
    table = mixed(10)
    path = write(tmp_path, PartFormat(table.schema, ("x", "y"), 1), [table])
    schema = pq.read_metadata(path).schema

    assert leaf_paths(table.schema) == [schema.column(i).path for i in range(len(schema))]
    assert leaf_paths(pa.schema([])) == []


@pytest.mark.parametrize("nullable", [True, False])
@pytest.mark.parametrize("rows", [1, 1000, 70_000], ids=["a row", "a page", "two pages"])
def test_columns_are_encoded_side_by_side_as_they_are_alone(rows, nullable):
    """Those without nulls that are one page each are put together in another way than the rest."""
    draw = np.random.default_rng(1)
    values = np.cumsum(draw.standard_normal((5, rows), dtype=np.float32), axis=1)
    valid = {1: draw.random(rows) < 0.5, 3: np.zeros(rows, np.bool_)} if nullable else {}
    names = [f"c{i}" for i in range(5)]
    form = PartFormat(pa.schema([pa.field(n, pa.float32(), nullable) for n in names]), names, 1)
    pages = PagedColumns(5, rows, values.dtype)
    pages.put(0, 0, values)

    together = form.scalars(names, [Filled(range(5), pages, valid)])
    contents = [b"".join(chunk.content) for chunk in together]

    for at, (name, chunk) in enumerate(zip(names, together, strict=True)):
        there = valid.get(at, np.ones(rows, np.bool_))  # so that each page is looked at
        (alone,) = form.scalars([name], [paged(values[at], there)])
        assert contents[at] == b"".join(alone.content)
        assert len(contents[at]) == chunk.described.size
        assert chunk.described.size == alone.described.size
        assert chunk.described.plain_size == alone.described.plain_size


@given(st.integers(0, 1 << 20), st.lists(st.integers(1, 1 << 45), max_size=20))
def test_places_are_written_as_thrift_has_them(start, sizes):
    chunks = [Chunk((), Described(size, size, (b"<", 0, b"|", 7, b">"))) for size in sizes]
    expected, place = b"", start
    for size in sizes:
        expected += b"<%b|%b>" % (thrift.as_number(place), thrift.as_number(place + 7))
        place += size

    assert placed(joined(chunks), start).entries == expected


NUMBERS = st.integers(-(1 << 63), (1 << 63) - 1)


@given(st.lists(NUMBERS, max_size=100) | NUMBERS.map(lambda value: [value] * 100))
def test_numbers_are_encoded_as_one_by_one_however_many(values):
    found = numbers_of(np.array(values, np.int64))

    assert found == [thrift.as_number(value) for value in values]
