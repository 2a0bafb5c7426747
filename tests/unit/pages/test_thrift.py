"""Thrift's compact protocol: what is written is read, and no bytes whatever hang or crash."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from polar_etl.pages import thrift

INT64 = st.integers(-(2**63), 2**63 - 1)


@given(st.integers(0, 2**64 - 1), st.binary(max_size=3))
def test_unsigned_numbers_are_read_as_written(value, rest):
    data = thrift.as_varint(value)

    assert thrift.varint(data + rest, 0) == (value, len(data))


@given(INT64, st.binary(max_size=3))
@example(-(2**63), b"")
@example(2**63 - 1, b"")
def test_signed_numbers_are_read_as_written(value, rest):
    data = thrift.as_number(value)

    assert thrift.signed(data + rest, 0) == (value, len(data))
    assert len(data) <= 10


VALUES = st.one_of(
    st.tuples(st.sampled_from([thrift.I16, thrift.I32, thrift.I64]), INT64.map(thrift.as_number)),
    st.binary(max_size=20).map(lambda x: (thrift.BINARY, thrift.as_varint(len(x)) + x)),
    st.sampled_from([(thrift.TRUE, b""), (thrift.FALSE, b"")]),
    st.binary(min_size=1, max_size=1).map(lambda x: (thrift.BYTE, x)),
    st.binary(min_size=8, max_size=8).map(lambda x: (thrift.DOUBLE, x)),
    st.lists(INT64.map(thrift.as_number), max_size=20).map(
        lambda x: (thrift.LIST, thrift.as_list(thrift.I64, x))
    ),
)


def structs(values: st.SearchStrategy) -> st.SearchStrategy:
    return st.dictionaries(st.integers(1, 300), values, max_size=5).map(
        lambda fields: (
            thrift.STRUCT,
            thrift.as_struct((place, *fields[place]) for place in sorted(fields)),
        )
    )


@given(
    st.dictionaries(
        st.integers(1, 32767),
        st.recursive(VALUES, structs, max_leaves=8),
        max_size=8,
    ),
    st.binary(max_size=5),
)
def test_structs_are_read_as_written(values, rest):
    data = thrift.as_struct((place, *values[place]) for place in sorted(values))

    found, stop = thrift.fields_of(b"before" + data + rest, 6)

    assert stop == 6 + len(data)
    assert sorted(found) == sorted(values)
    for place, (kind, value) in values.items():
        field = found[place]
        assert field.kind == kind
        assert (b"before" + data)[field.start : field.stop] == value


@given(st.lists(st.binary(max_size=9), max_size=40))
def test_lists_are_read_as_written(items):
    written = [thrift.as_varint(len(item)) + item for item in items]
    data = thrift.as_list(thrift.BINARY, written)

    found, stop = thrift.items_of(data + b"rest", 0)

    assert stop == len(data)
    assert [data[item.start : item.stop] for item in found] == written


@given(st.binary(max_size=80))
def test_any_bytes_are_a_struct_or_a_value_error(data):
    for read in (thrift.fields_of, thrift.items_of):
        for given_ in (data, memoryview(data)):
            try:
                read(given_, 0)
            except ValueError:
                continue


@pytest.mark.parametrize("kind", range(16))
@pytest.mark.parametrize("count", [1 << 20, 1 << 40, 1 << 62])
def test_lists_that_are_longer_than_their_bytes_are_refused_at_once(kind, count):
    data = bytes([0xF0 | kind]) + thrift.as_varint(count) + bytes(100)

    with pytest.raises(ValueError):
        thrift.items_of(data, 0)
    with pytest.raises(ValueError):
        thrift.fields_of(bytes([0x19]) + data + bytes(1))


@pytest.mark.parametrize(
    "deep", [b"\x1c" * 5000, b"\x19\x19" + b"\x19" * 5000, b"\x19\x1c" * 5000], ids=len
)
def test_structs_nested_too_deeply_are_refused(deep):
    with pytest.raises(ValueError):
        thrift.fields_of(deep)


@pytest.mark.parametrize("data", [b"", b"\x15", b"\x15\x80", b"\x18\x05abc", b"\x1c\x15\x02\x00"])
def test_structs_that_break_off_are_refused(data):
    with pytest.raises(ValueError, match="breaks off"):
        thrift.fields_of(data)


@pytest.mark.parametrize("kind", [0, 11, 13, 14, 15])
def test_kinds_that_parquet_does_not_use_are_refused(kind):
    with pytest.raises(ValueError):
        thrift.fields_of(bytes([0x10 | kind, 0, 0, 0]))


def test_numbers_without_end_are_refused():
    with pytest.raises(ValueError):
        thrift.varint(np.full(100, 0xFF, np.uint8).tobytes(), 0)
