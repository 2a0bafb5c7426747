"""Headers that are read many at a go: they say what those say that are read one by one."""

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from polar_etl.pages.headers import DATA, DICTIONARY, header_of, plain_header
from polar_etl.short_chunks.usual_headers import LONGEST, headers_at
from tests.unit.plain import chunks

NUMBERS = st.integers(0, (1 << 31) - 1)


@pytest.mark.parametrize("checksums", [True, False])
@pytest.mark.parametrize("rows", [1, 70, 5_000])
def test_they_say_what_is_read_one_by_one(checksums, rows):
    random = np.random.default_rng(rows)
    source = pa.table({f"c{i}": random.integers(0, 10**i, rows) for i in range(9)})
    sink = io.BytesIO()
    pq.write_table(source, sink, write_page_checksum=checksums)
    content = sink.getvalue()
    found = [chunk for place in range(9) for chunk in chunks(content, place)]
    raw = np.frombuffer(content, np.uint8)

    for kind, at in (
        (DICTIONARY, [chunk.start for chunk in found]),
        (DATA, [chunk.data for chunk in found]),
    ):
        expected = [header_of(memoryview(content)[place:]) for place in at]
        headers = headers_at(raw, np.array(at), kind)
        assert headers.usual.all()
        assert headers.size.tolist() == [some.size for some in expected]
        assert headers.stored.tolist() == [some.stored for some in expected]
        assert headers.values.tolist() == [some.rows for some in expected]
        assert headers.checked.tolist() == [checksums] * len(found)
        other = DATA if kind == DICTIONARY else DICTIONARY
        assert not headers_at(raw, np.array(at), other).usual.any()


@given(st.sampled_from([DATA, DICTIONARY]), NUMBERS, NUMBERS, st.sampled_from([0, 2, 8]))
def test_those_that_are_written_are_usual(kind, size, values, encoding):
    raw = plain_header(kind, size, values, encoding)
    found = headers_at(np.frombuffer(raw + bytes(LONGEST), np.uint8), np.zeros(1, np.int64), kind)
    assert [some.item() for some in found] == [True, size, size, values, encoding, False]
    one = header_of(memoryview(plain_header(kind, size, values, encoding if kind == DATA else 0)))
    assert (one.size, one.stored, one.rows) == (size, size, values)


@given(st.lists(st.binary(min_size=LONGEST, max_size=LONGEST), min_size=1, max_size=5))
def test_one_by_one_they_say_the_same(some):
    """Many are read at a go, few one by one."""
    written = [plain_header(kind, 70, 900, 8) for kind in (DATA, DICTIONARY)]
    some = [*some, *(head.ljust(LONGEST, byte) for head in written for byte in (b"\0", b"\xff"))]
    raw = np.frombuffer(b"".join(some), np.uint8)
    at = np.arange(len(some)) * LONGEST
    for kind in (DATA, DICTIONARY):
        few, many = headers_at(raw, at, kind), headers_at(raw, np.tile(at, 40), kind)
        assert few.usual.tolist() == many.usual[: len(at)].tolist()
        assert few.usual.sum() == 2
        for one, other in zip(few, many, strict=True):
            assert one[few.usual].tolist() == other[: len(at)][few.usual].tolist()


@given(st.binary(min_size=LONGEST, max_size=LONGEST), st.sampled_from([DATA, DICTIONARY]))
def test_any_bytes_may_stand_there(raw, kind):
    headers_at(np.frombuffer(raw, np.uint8), np.zeros(1, np.int64), kind)
