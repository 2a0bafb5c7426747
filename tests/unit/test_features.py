"""What counts as a vector, what its features are called, and views of its dimensions."""

import itertools

import numpy as np
import pyarrow as pa
import pytest

from polar_etl.errors import InputError
from polar_etl.features import (
    Features,
    dimensions,
    first_length,
    is_open_list,
    of_equal_lengths,
    value_type,
    with_values,
)
from polar_etl.vectors import fixed, in_short_chunks, matrix_of, vector_pieces, vectors_of

TENSOR = pa.fixed_shape_tensor(pa.int16(), (2, 3), dim_names=["a", "b"], permutation=[1, 0])


@pytest.mark.parametrize(
    ("kind", "numbers", "size", "open_list"),
    [
        (pa.float32(), pa.float32(), None, False),
        (pa.decimal128(9, 2), pa.decimal128(9, 2), None, False),
        (pa.list_(pa.float16(), 4), pa.float16(), 4, False),
        (pa.list_(pa.decimal128(9, 2), 4), pa.decimal128(9, 2), 4, False),
        (TENSOR, pa.int16(), 6, False),
        (pa.list_(pa.uint8()), pa.uint8(), None, True),
        (pa.large_list(pa.float64()), pa.float64(), None, True),
        (pa.list_(pa.float32(), 0), None, 0, False),
        (pa.list_(pa.string(), 2), None, 2, False),
        (pa.list_(pa.bool_()), None, None, False),
        (pa.list_(pa.list_(pa.float32(), 2), 2), None, 2, False),
        (pa.map_(pa.string(), pa.int8()), None, None, False),
        (pa.string(), None, None, False),
    ],
    ids=str,
)
def test_types(kind, numbers, size, open_list):
    assert value_type(kind) == numbers
    assert dimensions(kind) == size
    assert is_open_list(kind) == open_list


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (pa.int8(), pa.float32()),
        (pa.list_(pa.int8(), 4), pa.list_(pa.float32(), 4)),
        (pa.list_(pa.int8()), pa.list_(pa.float32())),
        (pa.large_list(pa.int8()), pa.large_list(pa.float32())),
        (TENSOR, pa.fixed_shape_tensor(pa.float32(), (2, 3), ["a", "b"], [1, 0])),
    ],
    ids=str,
)
def test_other_numbers_in_the_same_type(kind, expected):
    assert with_values(kind, pa.float32(), nullable=False) == expected


def test_names_of_elements_stay_and_nulls_are_allowed_where_they_come_up():
    kind = pa.list_(pa.field("element", pa.int8(), nullable=False), 2)

    strict = with_values(kind, pa.float32(), nullable=False).value_field
    loose = with_values(kind, pa.float32(), nullable=True).value_field

    assert (strict.name, strict.nullable) == ("element", False)
    assert (loose.name, loose.nullable) == ("element", True)


FEATURES = Features(("v[0]", "v", "x", "one"), {"v": 3, "one": 1})


def test_features_in_order():
    assert len(FEATURES) == 6
    assert FEATURES.labels() == ["v[0]", "v[0]", "v[1]", "v[2]", "x", "one[0]"]
    assert FEATURES.dimensions() == [None, 0, 1, 2, None, 0]
    assert FEATURES.owners() == ["v[0]", "v", "v", "v", "x", "one"]
    assert dict(FEATURES.spans())["v"] == slice(1, 4)
    assert not Features(())


def test_labels_and_dimensions_tell_the_features():
    assert Features.of_labels(FEATURES.labels(), FEATURES.dimensions()) == FEATURES


@pytest.mark.parametrize(
    ("labels", "places"),
    [
        (["x", "x"], [None, None]),
        (["v[0]", "v[0]"], [0, 0]),
        (["v[1]"], [1]),
        (["v[0]", "v[2]"], [0, 2]),
        (["v[0]", "x", "v[1]"], [0, None, 1]),
        (["v"], [0]),
        (["v[0]", "w[1]"], [0, 1]),
        (["v[0]"], [10**18]),
        (["v[-1]"], [-1]),
    ],
)
def test_labels_that_contradict_themselves(labels, places):
    with pytest.raises(ValueError):
        Features.of_labels(labels, places)


def test_features_of_a_schema():
    schema = pa.schema(
        {"x": pa.int8(), "e": pa.list_(pa.float32(), 3), "t": TENSOR, "l": pa.list_(pa.int8())}
    )

    found = Features.of(schema, ("t", "x", "l"), {"l": 5})

    assert found == Features(("t", "x", "l"), {"t": 6, "l": 5})


def rows_of(column: pa.ChunkedArray, size: int) -> list:
    """Return the rows as the pieces of their dimensions say, None for each missing number."""
    found = []
    for pieces in itertools.chain.from_iterable(vector_pieces(fixed(column, size), size)):
        values = [
            value if there else None
            for piece in pieces
            for value, there in zip(
                piece.values.tolist(), piece.valid(0, len(piece.values)).tolist(), strict=True
            )
        ]
        found.append(values)
    return [list(row) for row in zip(*found, strict=True)]


ROWS = [[1, 2, 3], None, [4, None, 6], [7, 8, 9], None, [None, None, None], [10, 11, 12]]
FIXED = pa.array(ROWS, pa.list_(pa.int16(), 3))
KINDS = {
    "fixed-size": FIXED,
    "list": pa.array(ROWS, pa.list_(pa.int16())),
    "large list": pa.array(ROWS, pa.large_list(pa.int16())),
    "tensor": pa.ExtensionArray.from_storage(pa.fixed_shape_tensor(pa.int16(), (3,)), FIXED),
    "garbage behind nulls": pa.FixedSizeListArray.from_arrays(
        pa.array(
            [1, 2, 3, 0, 0, 0, 4, None, 6, 7, 8, 9, 0, 0, 0, *[None] * 3, 10, 11, 12], "int16"
        ),
        3,
        mask=pa.array([row is None for row in ROWS]),
    ),
    "lists that are null and not empty": pa.ListArray.from_arrays(
        pa.array([2, 5, 7, 10, 13, 13, 16, 19], pa.int32()),
        pa.array(
            [*[77] * 2, 1, 2, 3, 5, 5, 4, None, 6, 7, 8, 9, *[None] * 3, 10, 11, 12], pa.int16()
        ),
        mask=pa.array([row is None for row in ROWS]),
    ),
}


@pytest.mark.parametrize("array", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("cuts", [[0, 7], [1, 6], [0, 3, 3, 5, 7], [2, 3, 7], [4, 5], [0, 0]])
def test_dimensions_of_slices(array, cuts):
    chunks = [array.slice(a, b - a) for a, b in itertools.pairwise(cuts)]
    expected = [row or [None] * 3 for row in ROWS[cuts[0] : cuts[-1]]]

    assert rows_of(pa.chunked_array(chunks), 3) == expected


def test_fixed_size_lists_are_not_copied():
    values = np.arange(12, dtype=np.float32)
    array = pa.FixedSizeListArray.from_arrays(pa.array(values), 3)
    lists = pa.ListArray.from_arrays(pa.array([0, 3, 6, 9, 12], pa.int32()), pa.array(values))

    for column in (array.slice(1), lists.slice(1)):
        (chunk,) = fixed(pa.chunked_array([column]), 3)
        assert np.shares_memory(matrix_of(chunk), values)


@pytest.mark.parametrize(
    "kind",
    [
        pa.list_(pa.float32(), 2),
        pa.list_(pa.float32()),
        pa.large_list(pa.float32()),
        pa.fixed_shape_tensor(pa.float32(), (1, 2)),
    ],
    ids=str,
)
@pytest.mark.parametrize("valid", [None, [True, False, True]])
def test_vectors_are_made_of_numbers(kind, valid):
    numbers = pa.array([1, 2, 3, 4, None, 6], pa.float32())

    made = vectors_of(kind, numbers, 2, None if valid is None else np.array(valid))

    made.validate(full=True)
    assert made.type == kind
    storage = made.storage if isinstance(made, pa.ExtensionArray) else made
    assert storage.to_pylist() == [[1, 2], None if valid else [3, 4], [None, 6]]
    assert vectors_of(kind, numbers.slice(0, 0), 2, None).to_pylist() == []


def test_short_chunks_hold_the_same_rows():
    array = pa.array([[float(i)] * 1000 for i in range(1000)], pa.list_(pa.float32(), 1000))

    made = in_short_chunks(array, 1000)

    assert made.combine_chunks() == array
    assert {len(chunk) for chunk in made.chunks[:-1]} == {262}
    assert in_short_chunks(array.slice(0, 0), 1000).type == array.type


def lists(*rows: object) -> pa.Table:
    return pa.table({"v": pa.array(rows, pa.list_(pa.int8()))})


def test_equal_lengths_pass():
    tables = [lists([1, 2], None), lists(), lists([3, 4])]

    assert list(of_equal_lengths(tables, {"v": 2}, "in.parquet", 0)) == tables
    assert list(of_equal_lengths(tables, {"w": 2}, "in.parquet", 0)) == tables


@pytest.mark.parametrize("odd", [[], [1], [1, 2, 3]])
def test_another_length_is_named_with_its_row(odd):
    tables = of_equal_lengths([lists([1, 2], None), lists([1, 2], odd)], {"v": 2}, "a\x1b.pq", 100)

    next(tables)
    with pytest.raises(InputError) as caught:
        next(tables)

    text = str(caught.value)
    assert f"'v' holds {len(odd)} numbers in row 103" in text
    assert "a\\x1b.pq" in text
    assert "2 were expected" in text


def test_the_first_list_tells_the_length():
    assert first_length([lists(), lists(None), lists(None, [1, 2, 3]), lists([1])], "v") == 3


@pytest.mark.parametrize(
    ("tables", "reason"), [([], "nulls"), ([lists(None)], "nulls"), ([lists([])], "empty")]
)
def test_nothing_tells_the_length(tables, reason):
    with pytest.raises(InputError, match=reason):
        first_length(tables, "v")
