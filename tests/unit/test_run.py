"""Columns in shares of about one size, side by side."""

from types import SimpleNamespace

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from polar_etl.run import Run
from tests.unit.arrays import TableColumns


def run_of(
    schema: pa.Schema,
    shares: int,
    opened: list | None = None,
    fails_at: int = -1,
    processes: int = 1,
) -> Run:
    opened = [] if opened is None else opened

    def columns(names, first, stop, how):
        if len(opened) == fails_at:
            raise OSError("no luck")
        opened.append(TableColumns(schema.empty_table().select(names)))
        return opened[-1]

    return Run(
        source=SimpleNamespace(schema=schema, columns=columns, files=[SimpleNamespace(rows=0)]),
        plan=SimpleNamespace(shares=shares, processes=processes, reading=None, keeps=False),
        sampler=None,
        stop=None,
        listen=None,
    )


KINDS = st.sampled_from([pa.int8(), pa.float64(), pa.string(), pa.list_(pa.float32(), 100)])


@given(st.lists(KINDS, max_size=30), st.integers(1, 8), st.integers(1, 8), st.floats(0, 1))
def test_every_column_is_in_one_share_and_in_order(kinds, shares, processes, driving):
    schema = pa.schema([(f"c{i}", kind) for i, kind in enumerate(kinds)])
    run = run_of(schema, shares, processes=min(processes, shares))

    found = run.cut(schema.names, driving)

    assert len(found) <= shares
    assert all(found)
    assert [name for names in found for name in names] == schema.names


@pytest.mark.parametrize("columns", [1, 2, 7, 100])
@pytest.mark.parametrize("shares", [1, 2, 4])
def test_shares_are_alike(columns, shares):
    schema = pa.schema([(f"c{i}", pa.float32()) for i in range(columns)])

    sizes = [len(names) for names in run_of(schema, shares).cut(schema.names, 0.1)]

    assert len(sizes) == min(columns, shares)
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("processes", [2, 4, 9])
@pytest.mark.parametrize("driving", [0.05, 0.15, 0.5])
def test_the_process_that_drives_gets_less_so_that_all_end_at_one_time(processes, driving):
    schema = pa.schema([(f"c{i}", pa.float32()) for i in range(10_000)])
    run = run_of(schema, 2 * processes, processes=processes)

    sizes = [len(names) for names in run.cut(schema.names, driving)]

    works = [sum(sizes[process::processes]) / 10_000 for process in range(processes)]
    assert max(works[1:]) - min(works[1:]) < 0.001
    assert works[0] > 0.2 / processes
    if works[0] > 0.26 / processes:
        assert works[0] + driving == pytest.approx(works[1], abs=0.001)
    else:
        assert works[0] + driving > works[1]


def test_all_are_closed_even_after_an_error():
    schema = pa.schema([(f"c{i}", pa.float32()) for i in range(4)])
    opened: list[TableColumns] = []
    with run_of(schema, 4, opened).shares_to_encode(schema.names, 0, 0):
        assert not any(columns.closed for columns in opened)
    assert [columns.closed for columns in opened] == [True] * 4

    opened = []
    with (
        pytest.raises(OSError, match="no luck"),
        run_of(schema, 4, opened, 2).shares_to_encode(schema.names, 0, 0),
    ):
        pass
    assert [columns.closed for columns in opened] == [True] * 2
