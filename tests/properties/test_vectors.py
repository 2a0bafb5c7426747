"""A vector column is as good as its dimensions in columns of their own, bit by bit."""

import json
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import given
from hypothesis import strategies as st

from polar_etl.features import Features
from polar_etl.passes.tasks import Encoder
from polar_etl.planning.plan import Together
from polar_etl.sources.base import TableWindow
from polar_etl.statistics.blocks import observe
from polar_etl.statistics.moments import merge_all
from polar_etl.statistics.scaler import Scaler
from polar_etl.storage.direct import Staging
from polar_etl.storage.parts import PartWriter, part_name
from tests.properties.strategies import KINDS, cuts, numbers, pieces
from tests.unit.exact import bits


@st.composite
def vectors(draw: st.DrawFn) -> tuple[pa.ChunkedArray, pa.Table]:
    """Return a vector column in chunks, and a table with a column for each of its dimensions."""
    kind = draw(st.sampled_from(KINDS))
    size = draw(st.integers(1, 4))
    number = st.none() | numbers(kind)
    rows = draw(st.lists(st.none() | st.lists(number, min_size=size, max_size=size), max_size=12))
    if kind == pa.float16():
        rows = [row and [x if x is None else np.float16(x) for x in row] for row in rows]
    fixed = pa.array(rows, pa.list_(kind, size))
    array = draw(
        st.sampled_from(
            [
                fixed,
                pa.array(rows, pa.list_(kind)),
                pa.array(rows, pa.large_list(kind)),
                pa.ExtensionArray.from_storage(pa.fixed_shape_tensor(kind, (size,)), fixed),
            ]
        )
    )
    scalars = {
        f"v[{i}]": pa.array([None if row is None else row[i] for row in rows], kind)
        for i in range(size)
    }
    skipped = draw(st.integers(0, len(rows)))
    column = pieces(array.slice(skipped), draw(cuts(len(rows) - skipped)))
    return column, pa.table(scalars).slice(skipped)


def fitted(table: pa.Table, features: Features, kind: str, inf: str, dtype: str | None) -> Scaler:
    moments = merge_all(
        observe(features.pieces(TableWindow(table)), len(features), len(table), 0), len(features)
    )
    kinds = (kind,) * len(features.columns)
    return Scaler(features.columns, kinds, moments, 0, inf, dtype, features.vectors)


def normalized(table: pa.Table, scaler: Scaler, together: Together) -> pa.Table:
    """Return what reads back of the table as one part."""
    encoder = Encoder.of(table.schema, scaler, 1)
    encoded = encoder.encode(TableWindow(table), table.column_names, together)
    with tempfile.TemporaryDirectory() as folder:
        writer = PartWriter(Path(folder), Path(folder), part_name(0), encoder.form, Staging())
        writer.append(encoded)
        writer.end_group(len(table))
        writer.commit()
        return pq.read_table(Path(folder) / part_name(0))


def raw(array: pa.Array) -> tuple[bytes, bytes]:
    """Return which numbers are there, and their bits."""
    there = np.asarray(array.is_valid())
    return there.tobytes(), array.to_numpy(zero_copy_only=False)[there].tobytes()


@given(
    vectors(),
    st.sampled_from(["ignore", "null"]),
    st.sampled_from([None, "float32", "float64"]),
    st.sampled_from([1, 8, 10**6]).map(Together),
)
def test_a_vector_column_is_like_its_dimensions_as_columns(given_, inf, dtype, together):
    column, scalars = given_
    size, kind = scalars.num_columns, str(scalars.schema.field(0).type)
    table = pa.table({"v": column})

    scaler = fitted(table, Features(("v",), {"v": size}), kind, inf, dtype)
    other = fitted(scalars, Features(tuple(scalars.column_names)), kind, inf, dtype)

    assert bits(scaler.moments) == bits(other.moments)
    assert scaler.stats.drop("dimension").equals(other.stats)
    again = Scaler.from_json(scaler.to_json())
    assert again.to_json() == scaler.to_json()
    assert bits(again.moments)["sum"] == bits(scaler.moments)["sum"]
    made = normalized(table, scaler, together).column("v").combine_chunks()
    made.validate(full=True)
    storage = made.storage if isinstance(made, pa.ExtensionArray) else made
    assert storage.is_null().to_pylist() == column.is_null().to_pylist()
    expected = normalized(scalars, other, together)
    for place, name in enumerate(expected.column_names):
        flat = (
            storage.drop_null()
            .flatten()
            .take(pa.array(range(place, len(storage.drop_null()) * size, size), pa.int64()))
        )
        there = expected.column(name).filter(storage.is_valid()).combine_chunks()
        assert flat.type == there.type
        assert raw(flat) == raw(there)


@given(st.lists(st.tuples(st.text(max_size=3), st.none() | st.integers(1, 4)), max_size=4))
def test_a_scaler_file_tells_vectors_from_columns_whatever_their_names(columns):
    sizes = dict(columns)
    features = Features(tuple(sizes), {name: size for name, size in sizes.items() if size})
    table = {"column": features.labels(), "dimension": features.dimensions()}

    again = json.loads(json.dumps(table))

    assert Features.of_labels(again["column"], again["dimension"]) == features
