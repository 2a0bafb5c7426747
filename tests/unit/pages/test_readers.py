"""Pages of plain numbers: what PyArrow reads, bit by bit, or `UnusualError`."""

import io
import os
from contextlib import closing

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import event, given
from hypothesis import strategies as st

from polar_etl.columns import Piece, validity
from polar_etl.errors import InputError
from polar_etl.pages import readers, thrift
from polar_etl.pages.ahead import Ahead
from polar_etl.pages.headers import LongValueError, UnusualError, pages_of
from polar_etl.pages.readers import ColumnReader, is_usual, read_together
from polar_etl.pages.values import Chunk, stored_dtype
from polar_etl.planning.batches import last_end
from polar_etl.sources.base import Reading
from polar_etl.sources.parquet import ParquetSource
from tests.unit.plain import (
    KINDS,
    by_pyarrow,
    chunks,
    column,
    layout,
    lengths,
    opened,
    polars_files,
    pyarrow_files,
)

HOW = Reading(group_rows=0, stream_rows=64)


def raw(pieces: list[Piece], kind: pa.DataType, rows: int) -> tuple[bytes, bytes]:
    """Return which values are there, and the bits of those."""
    valid = validity(pieces, 0, rows)
    there = np.ones(rows, np.bool_) if valid is None else valid
    values = [np.empty(0, kind.to_pandas_dtype()), *(piece.values for piece in pieces)]
    assert sum(map(len, values)) == rows
    joined = np.concatenate([some.astype(kind.to_pandas_dtype()) for some in values])
    return there.tobytes(), joined[there].tobytes()


def expected(data: pa.ChunkedArray) -> tuple[bytes, bytes]:
    array = pa.chunked_array(data.chunks, data.type).combine_chunks()
    there = np.asarray(array.is_valid())
    values = array.drop_null()
    dtype = np.dtype(array.type.to_pandas_dtype())
    size = len(values) * dtype.itemsize
    start = values.offset * dtype.itemsize
    return there.tobytes(), bytes(values.buffers()[1])[start : start + size]


def read_in_windows(
    content: bytes, table: pa.Table, windows: list[int], skip: int = 0
) -> dict[int, list[tuple[bytes, bytes]]]:
    """Return by column what each window holds, as far as it could be read."""
    found: dict[int, list[tuple[bytes, bytes]]] = {}
    with opened(content) as file:
        readers = {
            place: ColumnReader(chunks(content, place), file) for place in range(table.num_columns)
        }
        for place in list(readers):
            found[place] = []
            try:
                readers[place].skip(skip)
            except UnusualError:
                del readers[place]
        for rows in windows:
            together = read_together(list(readers.values()), rows, file)
            for place, pieces in zip(list(readers), together, strict=True):
                if pieces is None:
                    del readers[place]
                else:
                    found[place].append(raw(pieces, table.schema.field(place).type, rows))
    return found


def same_values(content: bytes, table: pa.Table, windows: list[int], skip: int = 0) -> int:
    """Check what can be read, and return how many columns could be, to their end."""
    whole = 0
    for place, found in read_in_windows(content, table, windows, skip).items():
        first = skip
        for window, rows in zip(found, windows, strict=False):
            assert window == expected(table.column(place).slice(first, rows))
            first += rows
        whole += len(found) == len(windows)
        if not table.column(place).null_count:
            assert len(found) == len(windows), "plain numbers without nulls are usual"
    return whole


@given(pyarrow_files(), st.data())
def test_values_are_those_that_pyarrow_wrote(file, data):
    table, content = file
    skip = data.draw(st.integers(0, len(table)))
    windows = data.draw(lengths(len(table) - skip))

    whole = same_values(content, table, windows, skip)

    event(f"{whole} of {table.num_columns} columns")


@given(polars_files(), st.data())
def test_values_are_those_that_polars_wrote(file, data):
    table, content = file
    there = layout(content)
    usual = [
        place
        for place in range(table.num_columns)
        if all(there.chunk(group, place) for group in range(len(there.rows)))
    ]
    skip = data.draw(st.integers(0, len(table)))
    windows = data.draw(lengths(len(table) - skip))
    for place in usual:
        found = []
        with opened(content) as descriptor:
            reader = ColumnReader(chunks(content, place), descriptor)
            reader.skip(skip)
            for rows in windows:
                (pieces,) = read_together([reader], rows, descriptor)
                if pieces is None:
                    break
                found.append(raw(pieces, table.schema.field(place).type, rows))
        first = skip
        for window, rows in zip(found, windows, strict=False):
            assert window == expected(table.column(place).slice(first, rows))
            first += rows

    event(f"{len(usual)} of {table.num_columns} columns")


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("version", ["1.0", "2.0"])
@pytest.mark.parametrize("codec", ["none", "snappy", "gzip", "brotli", "zstd", "lz4"])
@pytest.mark.parametrize("nulls", [0.0, 0.5, 1.0])
def test_usual_pages_are_not_left_to_pyarrow(kind, version, codec, nulls):
    rows = 30_000
    table = pa.table({"x": column(kind, rows, nulls, 1)})
    content = by_pyarrow(
        table,
        compression=codec,
        data_page_version=version,
        row_group_size=12_345,
        data_page_size=1 << 14,
        write_page_checksum=True,
    )

    assert same_values(content, table, [1, 9_999, 20_000]) == (1 if nulls in (0.0, 1.0) else 0) or (
        nulls == 0.5
    )


@given(
    pyarrow_files(),
    st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), max_size=4),
    st.data(),
)
def test_damaged_bytes_are_unusual_or_numbers_but_no_other_error(file, flips, data):
    table, content = file
    there = chunks(content, 0)
    damaged = bytearray(content)
    for where, mask in flips:
        damaged[there[0].start + int(where * (there[-1].stop - there[0].start))] ^= mask
    skip = data.draw(st.integers(0, len(table)))
    windows = data.draw(lengths(len(table) - skip))

    with opened(bytes(damaged)) as descriptor:
        reader = ColumnReader(there, descriptor)
        try:
            reader.skip(skip)
        except UnusualError:
            return
        for rows in windows:
            (pieces,) = read_together([reader], rows, descriptor)
            if pieces is None:
                return
            raw(pieces, table.schema.field(0).type, rows)


@given(pyarrow_files(), st.floats(0, 1, exclude_max=True), st.binary(max_size=40), st.data())
def test_other_bytes_are_unusual_or_numbers_but_no_other_error(file, where, others, data):
    table, content = file
    (start, stop) = chunks(content, 0)[0].start, chunks(content, 0)[-1].stop
    place = start + int(where * (stop - start))
    damaged = (content[:place] + others)[:stop] + content[min(place + len(others), stop) :]
    windows = data.draw(lengths(len(table)))

    with opened(damaged) as descriptor:
        reader = ColumnReader(chunks(content, 0), descriptor)
        for rows in windows:
            (pieces,) = read_together([reader], rows, descriptor)
            if pieces is None:
                return
            raw(pieces, table.schema.field(0).type, rows)


def page(rows: int, body: bytes, size: int | None = None, **how: object) -> bytes:
    """Return a page as a careless writer could write it."""
    inner = [
        (1, thrift.I32, thrift.as_number(rows)),
        (2, thrift.I32, thrift.as_number(how.get("encoding", 0))),
        (3, thrift.I32, thrift.as_number(how.get("levels", 3))),
        (4, thrift.I32, thrift.as_number(3)),
    ]
    return (
        thrift.as_struct(
            [
                (1, thrift.I32, thrift.as_number(how.get("kind", 0))),
                (2, thrift.I32, thrift.as_number(len(body) if size is None else size)),
                (3, thrift.I32, thrift.as_number(how.get("stored", len(body)))),
                (5, thrift.STRUCT, thrift.as_struct(inner)),
                *how.get("more", ()),
            ]
        )
        + body
    )


def doubles(*values: float) -> bytes:
    return np.array(values, "<f8").tobytes()


def read_pages(
    content: bytes, *groups: tuple[int, int], nullable: bool = False, codec: str = "UNCOMPRESSED"
) -> list[float] | None:
    """Return the values of chunks of (bytes, rows), 0 for nulls; None if PyArrow must read them."""
    start, there = 0, []
    for size, rows in groups:
        there.append(Chunk(start, start + size, rows, codec, nullable, np.dtype("<f8")))
        start += size
    total = sum(rows for _, rows in groups)
    with opened(content) as file:
        (pieces,) = read_together([ColumnReader(there, file)], total, file)
    return pieces and [
        value if there else 0
        for piece in pieces
        for value, there in zip(piece.values, piece.valid(0, len(piece.values)), strict=True)
    ]


def test_pages_as_a_careless_writer_writes_them():
    content = page(2, doubles(1, 2)) + page(1, doubles(3))

    assert read_pages(content, (len(content), 3)) == [1.0, 2.0, 3.0]


@given(
    lengths=st.lists(st.sampled_from([1, 2, 2, 2, 5]), min_size=1, max_size=12),
    holes=st.sets(st.integers(0, 40), max_size=2),
    keep=st.booleans(),
    data=st.data(),
)
def test_pages_that_are_alike_are_read_together(lengths, holes, keep, data):
    rows = sum(lengths)
    values = [None if i in holes else float(i) for i in range(rows)]
    content, first = b"", 0
    for length in lengths:
        some = values[first : first + length]
        there = [value is not None for value in some]
        run = bytes([3, sum(bit << i for i, bit in enumerate(there))])
        levels = len(run).to_bytes(4, "little") + run if not all(there) else bytes([2, 0, 0, 0])
        levels += bytes([length << 1, 1]) if all(there) else b""
        content += page(length, levels + doubles(*(v for v in some if v is not None)))
        first += length
    chunk = Chunk(0, len(content), rows, "UNCOMPRESSED", True, np.dtype("<f8"))
    found: list[float | None] = []
    with opened(content) as file:
        reader = ColumnReader([chunk], file, keep=keep)
        while len(found) < rows:
            some = data.draw(st.integers(1, rows - len(found)))
            (pieces,) = read_together([reader], some, file)
            for piece in pieces:
                valid = piece.valid(0, len(piece.values)).tolist()
                found += [v if v_ else None for v, v_ in zip(piece.values, valid, strict=True)]

    assert found == values


def test_headers_of_pages_that_are_alike_are_not_read_one_by_one(monkeypatch):
    read = []
    original = readers.header_of
    monkeypatch.setattr(readers, "header_of", lambda raw: read.append(1) or original(raw))
    content = b"".join(page(2, doubles(i, i + 0.5)) for i in range(50)) + page(1, doubles(50))

    assert read_pages(content, (len(content), 101)) == [i / 2 for i in range(101)]
    assert len(read) == 2


@pytest.mark.parametrize("rows", [-1, 0, 1, 3, 2**31 - 1, 2**62])
def test_pages_with_another_number_of_rows_are_unusual(rows):
    content = page(rows, doubles(1, 2)) + page(2, doubles(3, 4))

    assert read_pages(content, (len(content), 4)) is None


def test_chunks_with_fewer_rows_than_the_footer_tells_of_shift_no_others():
    """Rows of the next row group must not take the place of those that are missing."""
    first, second = page(2, doubles(1, 2)), page(3, doubles(4, 5, 6))
    content = first + second

    assert read_pages(content, (len(first), 3), (len(second), 3)) is None


def test_chunks_with_fewer_rows_at_the_end_are_unusual():
    content = page(2, doubles(1, 2))

    assert read_pages(content, (len(content), 3)) is None


def test_chunks_with_more_rows_than_the_footer_tells_of_shift_no_others():
    first, second = page(2, doubles(1, 2)) + page(2, doubles(3, 4)), page(2, doubles(5, 6))
    content = first + second

    assert read_pages(content, (len(first), 2), (len(second), 2)) is None


def test_skipping_over_chunks_with_fewer_rows_is_unusual():
    first, second = page(2, doubles(1, 2)), page(3, doubles(4, 5, 6))
    there = [
        Chunk(0, len(first), 3, "UNCOMPRESSED", False, np.dtype("<f8")),
        Chunk(len(first), len(first + second), 3, "UNCOMPRESSED", False, np.dtype("<f8")),
    ]
    with opened(first + second) as file, pytest.raises(UnusualError):
        ColumnReader(there, file).skip(5)


HUGE_LIST = bytes([0xF0 | thrift.DOUBLE]) + thrift.as_varint(1 << 62)


@pytest.mark.parametrize(
    "how",
    [
        {"kind": 2},
        {"encoding": 8},
        {"levels": 4},
        {"stored": -1},
        {"stored": 2**31 - 1},
        {"size": 2**31 - 1},
        {"size": 0},
        {"size": -16},
        {"more": [(9, thrift.LIST, HUGE_LIST)]},
        {"more": [(9, thrift.LIST, HUGE_LIST.replace(b"\xf7", b"\xf1"))]},
        {"more": [(9, thrift.STRUCT, b"\x1c" * 100)]},
        {"more": [(9, thrift.BINARY, thrift.as_varint(1 << 40))]},
    ],
    ids=str,
)
def test_other_pages_are_unusual(how):
    content = page(2, doubles(1, 2), **how)

    assert read_pages(content, (len(content), 2)) is None


CODECS = ("SNAPPY", "GZIP", "BROTLI", "LZ4", "ZSTD", "LZ4_RAW")


def compressed(codec: str, content: bytes) -> bytes:
    if codec == "LZ4":  # as Hadoop frames it
        raw = compressed("LZ4_RAW", content)
        return len(content).to_bytes(4, "big") + len(raw).to_bytes(4, "big") + raw
    return pa.Codec(codec.lower()).compress(content, asbytes=True)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("body", [b"", b"\x00", b"\xff" * 20, doubles(1, 2)], ids=repr)
@pytest.mark.parametrize("size", [0, 16])
def test_what_can_not_be_decompressed_is_unusual(codec, body, size):
    content = page(2, body, size)

    assert read_pages(content, (len(content), 2), codec=codec) is None


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("nullable", [True, False])
@pytest.mark.parametrize("values", [(), (1,), (1, 2), (1, 2, 3)], ids=len)
def test_what_decompresses_to_another_size_is_unusual(codec, nullable, values):
    before = levels(b"\x04\x01") if nullable else b""
    expected = len(before) + 2 * 8
    body = compressed(codec, before + doubles(*values))
    content = page(2, body, expected)

    found = read_pages(content, (len(content), 2), codec=codec, nullable=nullable)
    assert found == ([1, 2] if len(values) == 2 else None)


def levels(data: bytes) -> bytes:
    return len(data).to_bytes(4, "little") + data


@pytest.mark.parametrize(
    ("data", "values", "there"),
    [
        (b"\x06\x01", (1, 2, 3), [1, 2, 3]),
        (b"\x06\x00", (), [0, 0, 0]),
        (b"\x03\x05", (1, 3), [1, 0, 3]),
        (b"\x02\x01\x04\x00", (1,), [1, 0, 0]),
        (b"\xff\xff\xff\xff\x0f\x05", (1, 3), None),
        (b"", (), None),
        (b"\x00\x01", (), None),
        (b"\x01", (), None),
        (b"\x06", (1, 2, 3), None),
        (b"\x04\x01", (1, 2), None),
        (b"\x06\x01", (1, 2), None),
        (b"\x06\x01", (1, 2, 3, 4), [1, 2, 3]),
        (b"\xff" * 200, (1, 2, 3), None),
        (b"\x02\x01" * 200, (1, 2, 3), None),
    ],
)
def test_levels(data, values, there):
    content = page(3, levels(data) + doubles(*values))

    assert read_pages(content, (len(content), 3), nullable=True) == there


@pytest.mark.parametrize("data", [b"\xff" * 200, b"\x80" * 9 + b"\x01" * 200])
def test_levels_that_are_no_runs_are_unusual(data):
    content = page(100, levels(data) + doubles(*range(100)))

    assert read_pages(content, (len(content), 100), nullable=True) is None


def page_v2(rows: int, there: bytes, body: bytes) -> bytes:
    """Return a page of the second version, whose levels stand before what is compressed."""
    numbers = [rows, 0, rows, 0, len(there), 0]
    inner = [(at + 1, thrift.I32, thrift.as_number(value)) for at, value in enumerate(numbers)]
    size = thrift.as_number(len(there) + len(body))
    outer = [(1, thrift.I32, thrift.as_number(3)), (2, thrift.I32, size), (3, thrift.I32, size)]
    header = thrift.as_struct([*outer, (8, thrift.STRUCT, thrift.as_struct(inner))])
    return header + there + body


@pytest.mark.parametrize(
    ("there", "values", "expected"),
    [
        (b"\x06\x01", (1, 2, 3), [1, 2, 3]),
        (b"\x03\x05", (1, 2), [1, 0, 2]),
        (b"\x03\x05", (1, 2, 3), [1, 0, 2]),
        (b"\x06\x01", (1, 2), None),
    ],
)
def test_levels_of_the_second_version(there, values, expected):
    content = page_v2(3, there, doubles(*values))

    assert read_pages(content, (len(content), 3), nullable=True) == expected


def test_levels_in_many_runs():
    content = page(100, levels(b"\x02\x01\x02\x00" * 50) + doubles(*range(50)))

    there = [value for half in range(50) for value in (half, 0)]
    assert read_pages(content, (len(content), 100), nullable=True) == there


@pytest.mark.parametrize("length", [4, 12, 2**31, 2**32 - 1])
def test_levels_that_are_longer_than_their_page_are_unusual(length):
    content = page(3, length.to_bytes(4, "little") + b"\x06\x01")

    assert read_pages(content, (len(content), 3), nullable=True) is None


def test_a_column_that_is_unusual_does_not_harm_its_neighbours():
    good, bad = page(2, doubles(1, 2)), page(2, doubles(1, 2), 15)
    dtype = np.dtype("<f8")
    places = [(0, good), (len(good), bad), (len(good + bad), good)]
    there = [Chunk(a, a + len(b), 2, "UNCOMPRESSED", False, dtype) for a, b in places]
    with opened(good + bad + good) as file:
        found = read_together([ColumnReader([chunk], file) for chunk in there], 2, file)

    assert [some and some[0].values.tolist() for some in found] == [[1, 2], None, [1, 2]]


def test_a_file_that_breaks_off_is_unusual():
    content = page(2, doubles(1, 2))
    for length in range(len(content)):
        assert read_pages(content[:length], (len(content), 2)) is None


def test_numbers_that_are_stored_in_another_way_are_none_of_ours():
    assert stored_dtype(pa.uint32(), "INT64") is None
    assert stored_dtype(pa.timestamp("us"), "INT64") is None
    assert stored_dtype(pa.decimal128(9, 2), "INT32") is None
    assert stored_dtype(pa.bool_(), "BOOLEAN") is None
    assert stored_dtype(pa.float16(), "FIXED_LEN_BYTE_ARRAY") == np.dtype("<f2")


@given(pyarrow_files() | polars_files())
def test_pages_of_any_writer_claim_no_more_than_their_chunk_has(file):
    _, content = file
    metadata = pq.read_metadata(io.BytesIO(content))
    there = layout(content)
    with opened(content) as descriptor:
        for group in range(metadata.num_row_groups):
            for leaf in range(metadata.num_columns):
                there.require_page_sizes(group, leaf, descriptor)


@pytest.mark.parametrize(
    "how", [{}, {"use_dictionary": True}, {"data_page_version": "2.0"}], ids=str
)
def test_pages_of_any_kind_claim_no_more_than_their_chunk_has(how):
    texts = [f"{i % 50:0500d}" for i in range(2_000)]
    table = pa.table({"text": texts, "list": [[i] * 3 for i in range(2_000)]})
    content = by_pyarrow(table, data_page_size=5_000, row_group_size=700, **how)
    there = layout(content)
    with opened(content) as descriptor:
        for group in range(3):
            for leaf in range(2):
                there.require_page_sizes(group, leaf, descriptor)


@pytest.mark.parametrize("size", [2**31 - 1, 1 << 20, 17, -1])
@pytest.mark.parametrize("first", [True, False])
def test_pages_that_claim_more_than_their_chunk_has_are_unusual(size, first):
    pages = [page(2, doubles(1, 2)), page(2, doubles(3, 4), size)]
    content = b"".join(pages[:: -1 if first else 1])
    with opened(content) as file, pytest.raises(UnusualError, match="claims"):
        list(pages_of(file, 0, len(content), 16))


@pytest.mark.parametrize("stored", [2**31 - 1, 1 << 20, 16 + 101, -1])
def test_pages_that_go_beyond_their_chunk_are_unusual(stored):
    content = page(2, doubles(1, 2), stored=stored)
    with opened(content + bytes(200)) as file, pytest.raises(UnusualError, match="claims"):
        list(pages_of(file, 0, len(content), 1000))


@pytest.mark.parametrize(("rows", "size"), [(1, 2**30), (1, 2**31 - 1), (0, 2**30)])
def test_values_of_a_gibibyte_are_too_long(rows, size):
    pages = [page(2, doubles(1, 2)), page(rows, b"squeezed", size)]
    with opened(b"".join(pages)) as file, pytest.raises(LongValueError, match=f"{size:,} bytes"):
        list(pages_of(file, 0, sum(map(len, pages)), 2**32))


@pytest.mark.parametrize(("rows", "size"), [(1, 2**30 - 1), (2, 2**31 - 1)])
def test_long_pages_need_not_have_long_values(rows, size):
    content = page(rows, b"squeezed", size)
    with opened(content) as file:
        list(pages_of(file, 0, len(content), 2**32))


def test_old_writers_may_leave_a_header_out_of_what_a_chunk_takes():
    content = page(2, doubles(1, 2)) + page(2, doubles(3, 4))
    with opened(content) as file:
        list(pages_of(file, 0, len(content) - 20, 32))


@given(st.binary(min_size=1, max_size=60), st.integers(0, 100))
def test_sizes_in_any_bytes_are_right_or_unusual(content, most):
    with opened(content) as file:
        try:
            list(pages_of(file, 0, len(content), most))
        except UnusualError:
            return


@pytest.mark.parametrize(("abreast", "times"), [(1, 10), (2, 5), (3, 4), (10, 1)])
def test_a_dictionary_is_read_once_for_windows_that_are_told_of(monkeypatch, abreast, times):
    table = pa.table({"x": np.arange(10_000) % 997 * 1.5})
    sink = io.BytesIO()
    pq.write_table(table, sink, data_page_size=500, write_batch_size=100, compression="none")
    read, (chunk,) = [], chunks(sink.getvalue(), 0)
    preadv = os.preadv

    def noting(file, rooms, at):
        read.append((at, at + sum(map(len, rooms))))
        return preadv(file, rooms, at)

    monkeypatch.setattr(os, "preadv", noting)
    with opened(sink.getvalue()) as file:
        reader = ColumnReader([chunk], file)
        later = [1_000 * (abreast - 1 - window % abreast) for window in range(10)]
        found = [read_together([reader], 1_000, file, Ahead(soon)) for soon in later]

    values = np.concatenate([piece.values for ((pieces,),) in zip(found) for piece in pieces])
    assert values.tolist() == table["x"].to_pylist()
    whole = [span for span in read if span[0] <= chunk.start + 50 and span[1] >= chunk.data - 50]
    assert len(whole) == times


@pytest.mark.parametrize("dictionaries", [True, False])
def test_a_row_group_is_decoded_once_if_the_rest_behind_each_window_is_held(
    monkeypatch, dictionaries
):
    table = pa.table({"x": np.arange(10_000) % 97 * 1.5})
    sink = io.BytesIO()
    pq.write_table(table, sink, use_dictionary=dictionaries, row_group_size=900)
    ends = [*range(900, 10_000, 900), 10_000]
    decoded, decode = [], readers.decoded_apart

    def noting(stored, memory):
        decoded.extend(page.rows for run in stored for page in run or ())
        return decode(stored, memory)

    monkeypatch.setattr(readers, "decoded_apart", noting)
    first, found = 0, []
    with opened(sink.getvalue()) as file:
        reader = ColumnReader(chunks(sink.getvalue(), 0), file, keep=False)
        while first < 10_000:
            stop, rest = last_end(range(min(first + 256, 10_000), 10_001, 256)[:4], ends, 255)
            ((piece, *others),) = read_together([reader], stop - first, file, Ahead(rest=rest))
            found += [x for some in (piece, *others) for x in some.values.tolist()]
            assert memory_of(piece.values) <= 8 * 900 + 100
            first = stop

    assert found == table["x"].to_pylist()
    assert sum(decoded) == 10_000


def memory_of(values: np.ndarray) -> int:
    """Return the bytes that are held for as long as an array is."""
    while isinstance(values.base, np.ndarray):
        values = values.base
    return len(values.base) if isinstance(values.base, bytes | memoryview) else values.nbytes


@pytest.mark.parametrize("codec", ["none", "zstd"])
@pytest.mark.parametrize(("soon", "most"), [(0, 1_000), (3_000, 4_000), (9_000, 10_000)])
def test_of_a_page_that_is_not_kept_no_more_is_held_than_is_wanted_soon(codec, soon, most):
    table = pa.table({"x": np.random.default_rng(0).standard_normal(10_000)})
    sink = io.BytesIO()
    pq.write_table(table, sink, use_dictionary=False, compression=codec)
    with opened(sink.getvalue()) as file:
        reader = ColumnReader(chunks(sink.getvalue(), 0), file, keep=False)
        for first in range(0, 10_000, 1_000):
            later = max(soon - first, 0) if soon < 9_000 else 9_000 - first
            ((piece,),) = read_together([reader], 1_000, file, Ahead(later))
            assert piece.values.tolist() == table["x"][first : first + 1_000].to_pylist()
            assert memory_of(piece.values) <= 8 * most + 100


def test_a_first_page_tells_whether_a_chunk_is_usual():
    for content, usual in (
        (page(2, doubles(1, 2)), True),
        (page(2, doubles(1, 2), kind=2), False),
        (page(2, doubles(1, 2), 15), False),
        (page(3, doubles(1, 2)), False),
    ):
        chunk = Chunk(0, len(content), 2, "UNCOMPRESSED", False, np.dtype("<f8"))
        with opened(content) as file:
            assert is_usual(chunk, file) is usual


@pytest.mark.parametrize("levels", [b"\x80" * 40, b"\x80" * 90, b"\x80", b""], ids=len)
def test_a_first_page_whose_levels_break_off_is_looked_at_without_an_error(levels):
    content = page(2, len(levels).to_bytes(4, "little") + levels)
    chunk = Chunk(0, len(content), 2, "UNCOMPRESSED", True, np.dtype("<f8"))
    with opened(content) as file:
        assert is_usual(chunk, file)  # reading it will tell


class TestThroughTheSource:
    """What is unusual, PyArrow reads; what is damaged is an error that says so."""

    @staticmethod
    def read(path: str, windows: list[int], first: int = 0) -> pa.Table:
        source = ParquetSource.open([path])
        names = source.schema.names
        found = [source.schema.empty_table()]
        stop = first + sum(windows)
        with closing(source.columns(names, first, stop, HOW)) as columns:
            for rows in windows:
                window = columns.next(rows)
                made = [window.column(name) for name in names]
                found.append(pa.Table.from_arrays(made, schema=source.schema))
        return pa.concat_tables(found)

    @staticmethod
    def equal(found: pa.Table, table: pa.Table) -> bool:
        return found.num_rows == table.num_rows and all(
            expected(found[name]) == expected(table[name]) for name in table.column_names
        )

    @given(file=pyarrow_files() | polars_files(), data=st.data())
    def test_any_rows_in_any_windows_are_right(self, tmp_path_factory, file, data):
        table, content = file
        path = tmp_path_factory.getbasetemp() / "any.parquet"
        path.write_bytes(content)
        first = data.draw(st.integers(0, len(table)))

        found = self.read(str(path), data.draw(lengths(len(table) - first)), first)

        assert self.equal(found, table.slice(first))

    @given(
        file=pyarrow_files(write_page_checksum=True),
        flips=st.lists(
            st.tuples(st.floats(0, 1, exclude_max=True), st.sampled_from([1, 2, 8, 64, 128, 255])),
            min_size=1,
            max_size=2,
        ),
        data=st.data(),
    )
    def test_damage_is_an_input_error_or_harmless(self, tmp_path_factory, file, flips, data):
        """Pages have checksums, headers have none: a reading is what was written or PyArrow's."""
        table, content = file
        start, stop = chunks(content, 0)[0].start, len(content) - 8
        stop -= int.from_bytes(content[-8:-4], "little")
        damaged = bytearray(content)
        for where, mask in flips:
            damaged[start + int(where * (stop - start))] ^= mask
        path = tmp_path_factory.getbasetemp() / "damaged.parquet"
        path.write_bytes(damaged)
        windows = data.draw(lengths(len(table)))

        try:
            found = self.read(str(path), windows)
        except InputError as error:
            text = str(error)
            assert "can't be read as Parquet: " in text
            assert not any(
                word in text for word in ("StopIteration", "index out of range", "Error.")
            )
            return
        if not self.equal(found, table):
            assert self.equal(found, pq.read_table(path, page_checksum_verification=True))
