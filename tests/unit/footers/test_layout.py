"""Where plain numbers stand, as PyArrow says it, whoever wrote the file; no bytes crash it."""

import io
import subprocess
import sys

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pyarrow.parquet.encryption as pe
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from polar_etl.footers import chunk_table as chunk_table_module
from polar_etl.footers.chunk_table import chunk_table, schema_alone
from polar_etl.footers.layout import Layout, layout_of
from polar_etl.pages import thrift
from tests.support.tables import mixed
from tests.unit.plain import by_polars, by_pyarrow, footer_of, layout, polars_files, pyarrow_files

CODECS = {"UNCOMPRESSED", "SNAPPY", "GZIP", "BROTLI", "LZ4", "ZSTD"}
READ = {
    *("PLAIN", "RLE", "BIT_PACKED", "PLAIN_DICTIONARY", "RLE_DICTIONARY"),
    *("DELTA_BINARY_PACKED", "BYTE_STREAM_SPLIT"),
}
NUMBERS = (pa.types.is_integer, pa.types.is_floating)


def wide(rows: int = 500, columns: int = 40) -> pa.Table:
    draw = np.random.default_rng(0)
    fields = [
        pa.field(f"c{i}" * (1 + i % 3), [pa.float32(), pa.int64(), pa.uint8()][i % 3], i % 2 > 0)
        for i in range(columns)
    ]
    arrays = [pa.array(draw.integers(0, 99, rows)).cast(field.type) for field in fields]
    return pa.Table.from_arrays(arrays, schema=pa.schema(fields))


def by_duckdb(table: pa.Table, tmp_path, **how: object) -> bytes:
    path = tmp_path / "duck.parquet"
    options = "".join(f", {name} {value}" for name, value in how.items())
    with duckdb.connect() as connection:
        connection.register("given", table)
        connection.sql(f"COPY (SELECT * FROM given) TO '{path}' (FORMAT parquet{options})")
    return path.read_bytes()


WRITERS = {
    "pyarrow": lambda table, _: by_pyarrow(table),
    "pyarrow, dictionaries": lambda table, _: by_pyarrow(table, use_dictionary=True),
    "pyarrow, some dictionaries": lambda table, _: by_pyarrow(table, use_dictionary=["c1c1", "x"]),
    "pyarrow, small groups": lambda table, _: by_pyarrow(table, row_group_size=60),
    "pyarrow, no statistics": lambda table, _: by_pyarrow(table, write_statistics=False),
    "pyarrow, v2": lambda table, _: by_pyarrow(table, data_page_version="2.0"),
    "pyarrow, page index": lambda table, _: by_pyarrow(table, write_page_index=True),
    "pyarrow, byte streams": lambda table, _: by_pyarrow(
        table.select([n for n in table.column_names if table[n].type == pa.float32()]),
        use_byte_stream_split=True,
    ),
    "pyarrow, gzip": lambda table, _: by_pyarrow(table, compression="gzip"),
    "pyarrow, lz4": lambda table, _: by_pyarrow(table, compression="lz4"),
    "pyarrow, brotli": lambda table, _: by_pyarrow(table, compression="brotli"),
    "pyarrow, zstd": lambda table, _: by_pyarrow(table, compression="zstd"),
    "pyarrow, none": lambda table, _: by_pyarrow(table, compression="none", store_schema=False),
    "polars": lambda table, _: by_polars(table),
    "polars, small groups": lambda table, _: by_polars(table, row_group_size=60),
    "polars, no statistics": lambda table, _: by_polars(table, statistics=False),
    "polars, snappy": lambda table, _: by_polars(table, compression="snappy"),
    "duckdb": by_duckdb,
    "duckdb, zstd": lambda table, path: by_duckdb(table, path, COMPRESSION="zstd"),
    "duckdb, v2": lambda table, path: by_duckdb(table, path, PARQUET_VERSION="v2"),
}


def agrees(content: bytes) -> int:
    """Hold a layout against PyArrow's metadata, and return how many chunks are ours to read."""
    found, metadata = layout(content), pq.read_metadata(io.BytesIO(content))
    schema = metadata.schema.to_arrow_schema()
    assert found is not None
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    assert found.rows == tuple(group.num_rows for group in groups)
    flat = [metadata.schema.column(i) for i in range(metadata.num_columns)]
    ours = 0
    leaf = 0
    for place, field in enumerate(schema):
        if pa.types.is_nested(field.type):
            many = sum(
                1 for c in flat if c.path == field.name or c.path.startswith(f"{field.name}.")
            )
            assert all(found.chunk(group, place) is None for group in range(len(groups)))
            leaf += many
            continue
        for index, group in enumerate(groups):
            theirs, chunk = group.column(leaf), found.chunk(index, place)
            readable = (
                any(kind(field.type) for kind in NUMBERS)
                and theirs.compression in CODECS
                and set(theirs.encodings) <= READ
            )
            assert (chunk is not None) == readable, (field, theirs)
            if chunk is not None:
                ours += 1
                looked_up = theirs.has_dictionary_page and theirs.dictionary_page_offset
                assert chunk.start == (looked_up or theirs.data_page_offset)
                assert chunk.data == theirs.data_page_offset
                assert chunk.stop - chunk.start == theirs.total_compressed_size
                assert chunk.rows == theirs.num_values == group.num_rows
                assert chunk.codec.removesuffix("_RAW") == theirs.compression
                assert chunk.nullable == (flat[leaf].max_definition_level > 0)
                width = {"INT32": 4, "FLOAT": 4, "INT64": 8, "DOUBLE": 8}
                assert chunk.stored.itemsize == width.get(theirs.physical_type, 2)
        leaf += 1
    filled = [index for index, group in enumerate(groups) if group.num_rows]
    assert found.plain() == [
        place
        for place in range(len(schema))
        if all(found.chunk(index, place) is not None for index in filled)
    ]
    shape = (len(groups), metadata.num_columns)
    assert {found.start.shape, found.stop.shape, found.codec.shape} == {shape}
    assert (
        found.plain_size.tolist()
        == [
            [group.column(leaf).total_uncompressed_size for leaf in range(metadata.num_columns)]
            for group in groups
        ]
        or not groups
    )
    return ours


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("make", [wide, lambda: mixed(300)], ids=["numbers", "mixed"])
def test_it_is_what_pyarrow_says(writer, make, tmp_path):
    table = make()
    if "byte streams" in writer and table.num_columns < 40:
        return
    if "duckdb" in writer or "polars" in writer:
        table = table.drop_columns(
            [n for n in ("nothing", "clock", "map") if n in table.column_names]
        )

    ours = agrees(WRITERS[writer](table, tmp_path))

    usual = "pyarrow" in writer and not any(
        word in writer for word in ("all dict", "byte", "dictionaries")
    )
    assert ours > 0 or not usual


@given(pyarrow_files() | polars_files())
def test_it_is_what_pyarrow_says_of_any_file(file):
    _, content = file

    agrees(content)


@pytest.mark.parametrize("writer", WRITERS)
def test_the_schema_of_numbers_is_told_without_row_groups(writer, tmp_path):
    content = WRITERS[writer](wide(), tmp_path)
    table = chunk_table(footer_of(content))

    alone = schema_alone(footer_of(content), table)

    whole, short = (pq.read_metadata(io.BytesIO(file)) for file in (content, alone))
    assert (short.num_row_groups, short.num_rows) == (0, 0)
    assert short.schema.to_arrow_schema().equals(whole.schema.to_arrow_schema(), True)
    other = footer_of(WRITERS[writer](wide(rows=7), tmp_path))
    assert schema_alone(other, chunk_table(other)) == alone


@given(pyarrow_files() | polars_files())
def test_a_schema_that_is_told_alone_is_that_of_the_file(file):
    _, content = file
    table = chunk_table(footer_of(content))

    alone = table and schema_alone(footer_of(content), table)

    if alone:
        assert pq.read_schema(io.BytesIO(alone)) == pq.read_schema(io.BytesIO(content))


@pytest.mark.parametrize("other", [[[1.0], [2.0]], [{"a": 1}, None]], ids=str)
def test_of_what_is_nested_pyarrow_is_asked_more(other):
    content = by_pyarrow(pa.table({"x": [1.0, 2.0], "other": other}))

    assert schema_alone(footer_of(content), chunk_table(footer_of(content))) is None


def test_columns_of_odd_names_and_schemas():
    names = ["", ".", "a.b", "ü" * 200, "list.element", "x" * 5000, "\n", "schema"]
    table = pa.table({name: [1.0, 2.0] for name in names})

    assert agrees(by_pyarrow(table)) == len(names)


def test_a_file_without_columns_or_rows():
    agrees(by_pyarrow(wide(0)))
    content = by_pyarrow(pa.table({}))
    found = layout(content)
    assert found is None or found.stored == ()


def test_structs_are_none_of_ours():
    table = pa.table(
        {
            "one": pa.array([{"a": 1.0}, None]),
            "x": [1.0, 2.0],
            "deep": pa.array([{"a": {"b": {"c": [1, 2]}}, "d": 1}, None]),
            "y": [1.0, 2.0],
            "many": pa.array([[1.0], [2.0, 3.0]]),
            "vector": pa.array([[1.0], [2.0]], pa.list_(pa.float64(), 1)),
            "z": [1, 2],
        }
    )

    assert agrees(by_pyarrow(table)) == 3


def of_one_kind() -> pa.Table:
    """Columns of one type, chunks of which are 77 to 2,136 bytes long, with nulls in some."""
    draw = np.random.default_rng(0)
    values = {f"column {i}": draw.standard_normal(400).astype(np.float32) for i in range(1500)}
    found = pa.table(values)
    for place, name in ((500, "constant"), (800, "nested"), (1300, "holed")):
        column = {
            "constant": pa.array(np.zeros(400, np.float32)),
            "nested": pa.array([{"x": 1.0}] * 400),
            "holed": pa.array([None, 1.0] * 200, pa.float32()),
        }[name]
        found = found.set_column(place, name, column)
    return found


def one_by_one(footer: bytes, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(chunk_table_module, "_read_alike", lambda footer, start, at, *_: (0, at))
        return chunk_table(footer)


def same(one, other) -> bool:
    if one is None or other is None:
        return one is other
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("writer", WRITERS)
def test_chunks_that_are_alike_are_read_as_one_by_one(writer, tmp_path, monkeypatch):
    footer = footer_of(WRITERS[writer](of_one_kind(), tmp_path))
    found = chunk_table(footer)
    assert found is not None
    assert same(found, one_by_one(footer, monkeypatch))


def test_most_chunks_that_are_alike_are_not_read_one_by_one(monkeypatch):
    table = pa.table({f"c{i}": np.ones(10, np.float32) for i in range(5000)})
    read = []
    original = chunk_table_module._read_apart
    monkeypatch.setattr(
        chunk_table_module,
        "_read_apart",
        lambda footer, at, columns, into: (
            read.append(len(columns)) or original(footer, at, columns, into)
        ),
    )
    assert agrees(by_pyarrow(table, compression="zstd")) == 5000
    assert sum(read) <= 2 * 128


def test_damage_to_chunks_that_are_alike_is_seen_as_one_by_one(monkeypatch):
    footer = bytearray(footer_of(by_pyarrow(of_one_kind(), compression="zstd")))
    draw = np.random.default_rng(1)
    for place in draw.choice(len(footer), 300, replace=False).tolist():
        kept = footer[place]
        footer[place] ^= 1 << int(draw.integers(8))
        assert same(chunk_table(bytes(footer)), one_by_one(bytes(footer), monkeypatch))
        footer[place] = kept


def test_another_schema_gives_no_layout():
    content = by_pyarrow(wide())
    other = wide().schema.append(pa.field("more", pa.int8()))

    assert layout_of(footer_of(content), other) is None
    assert layout_of(footer_of(content), pa.schema([])) is None


BASE = footer_of(by_pyarrow(wide(50, 6), row_group_size=20))
SCHEMA = wide(50, 6).schema


def survives(footer: bytes) -> None:
    found = layout_of(footer, SCHEMA)

    assert found is None or isinstance(found, Layout)
    if found is not None:
        for group in range(len(found.rows)):
            for place in range(len(SCHEMA)):
                found.chunk(group, place)


@given(
    st.lists(st.tuples(st.integers(0, len(BASE) - 1), st.integers(1, 255)), min_size=1, max_size=5)
)
def test_flipped_bytes_give_a_layout_or_none(flips):
    damaged = bytearray(BASE)
    for place, mask in flips:
        damaged[place] ^= mask

    survives(bytes(damaged))


@given(st.integers(0, len(BASE)), st.binary(max_size=30), st.integers(0, 30))
@example(0, b"", 0)
@example(0, b"\x19\xf7" + b"\xff" * 8 + b"\x00", 0)
def test_other_bytes_give_a_layout_or_none(place, others, dropped):
    survives(BASE[:place] + others + BASE[place + dropped :])
    survives(BASE[:place] + others)
    survives(others)


def test_every_single_flip_gives_a_layout_or_none():
    for place in range(len(BASE)):
        damaged = bytearray(BASE)
        damaged[place] ^= 1 << place % 8
        survives(bytes(damaged))


class Kms(pe.KmsClient):
    """Keys that are no secret."""

    def wrap_key(self, key_bytes: bytes, master_key_identifier: str) -> bytes:
        """Return the key as it is."""
        return key_bytes.hex().encode()

    def unwrap_key(self, wrapped_key: bytes, master_key_identifier: str) -> bytes:
        """Return the key as it was."""
        return bytes.fromhex(wrapped_key.decode())


def encrypted(table: pa.Table, **how: object) -> bytes:
    factory = pe.CryptoFactory(lambda _: Kms())
    config = pe.EncryptionConfiguration(footer_key="footer", plaintext_footer=True, **how)
    properties = factory.file_encryption_properties(pe.KmsConnectionConfig(), config)
    return by_pyarrow(table, encryption_properties=properties)


@pytest.mark.parametrize(
    "how",
    [{"uniform_encryption": True}, {"column_keys": {"key": [f"c{i}" for i in range(3, 40, 3)]}}],
    ids=str,
)
def test_encrypted_columns_are_none_of_ours(how):
    """PyArrow ends the process when it is asked about them, so the names tell which ones are."""
    table = wide().rename_columns([f"c{i}" for i in range(40)])
    secret = (
        set(table.column_names) if "uniform_encryption" in how else set(how["column_keys"]["key"])
    )

    found = layout_of(footer_of(encrypted(table, **how)), table.schema)

    readable = {
        name
        for place, name in enumerate(table.column_names)
        if found is not None and found.chunk(0, place) is not None
    }
    assert readable == set(table.column_names) - secret


def test_an_encrypted_file_of_another_writer(test_data):
    path = test_data / "parquet-testing/data/encrypt_columns_plaintext_footer.parquet.encrypted"
    if not path.exists():
        pytest.skip("no such file here")
    content = path.read_bytes()
    code = (
        "import sys, io, pyarrow.parquet as pq\n"
        "from polar_etl.footers.layout import layout_of\n"
        "content = open(sys.argv[1], 'rb').read()\n"
        "footer = content[-8 - int.from_bytes(content[-8:-4], 'little'):]\n"
        "schema = pq.read_schema(io.BytesIO(content))\n"
        "found = layout_of(footer, schema)\n"
        "print({n: found.chunk(0, i) is not None for i, n in enumerate(schema.names)})\n"
    )

    done = subprocess.run(
        [sys.executable, "-c", code, path], capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stderr
    assert "'float_field': False" in done.stdout
    assert "'double_field': False" in done.stdout
    assert content.startswith(b"PAR1")


def test_chunks_that_are_encrypted_alike_are_none_of_ours():
    """What says so stands behind the sizes, the same for every column."""
    names = [f"c{i}" for i in range(300)]
    table = pa.table({name: [1.0, 2.0] for name in names})
    content = footer_of(by_pyarrow(table, write_statistics=False, use_dictionary=False))
    crypto = thrift.as_struct([(1, thrift.STRUCT, b"\x00")])
    fields = thrift.fields_of(content)[0]
    (group,) = thrift.items_of(content, fields[4].start)[0]
    inside = thrift.fields_of(content, group.start)[0]
    chunks = []
    for chunk in thrift.items_of(content, inside[1].start)[0]:
        found = thrift.fields_of(content, chunk.start)[0]
        kept = [(n, found[n].kind, content[found[n].start : found[n].stop]) for n in (2, 3)]
        chunks.append(thrift.as_struct([*kept, (8, thrift.STRUCT, crypto)]))

    def again(found: dict[int, thrift.Field], **other: bytes) -> bytes:
        values = {n: content[f.start : f.stop] for n, f in found.items()}
        values |= {int(name[1:]): value for name, value in other.items()}
        return thrift.as_struct((n, found[n].kind, values[n]) for n in sorted(found))

    changed = again(inside, _1=thrift.as_list(thrift.STRUCT, chunks))
    footer = again(fields, _4=thrift.as_list(thrift.STRUCT, [changed]))

    found = layout_of(footer, table.schema)

    assert found is not None
    assert [found.chunk(0, place) for place in range(300)] == [None] * 300
