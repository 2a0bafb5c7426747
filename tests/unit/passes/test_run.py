"""What both passes of a run share: columns opened side by side, and closed whatever happens."""

from types import SimpleNamespace

import pyarrow as pa
import pytest

from polar_etl.features import Features
from polar_etl.passes.run import Run
from tests.unit.arrays import TableColumns

SCHEMA = pa.schema([(f"c{i}", pa.float32()) for i in range(4)])
FEATURES = Features(tuple(SCHEMA.names))


def run_of(
    opened: list[TableColumns], fails_at: int = -1, processes: int = 1, schema: pa.Schema = SCHEMA
) -> Run:
    def columns(names, first, stop, how):
        if len(opened) == fails_at:
            raise OSError("no luck")
        opened.append(TableColumns(schema.empty_table().select(names)))
        return opened[-1]

    return Run(
        source=SimpleNamespace(schema=schema, columns=columns, files=[SimpleNamespace(rows=0)]),
        plan=SimpleNamespace(
            shares=4, processes=processes, threads=processes, reading=None, keeps=False
        ),
        sampler=None,
        stop=None,
        listen=None,
    )


def test_all_are_closed_even_after_an_error():
    opened: list[TableColumns] = []
    with run_of(opened).shares_to_encode(FEATURES, SCHEMA.names, 0, 0):
        assert not any(columns.closed for columns in opened)
    assert [columns.closed for columns in opened] == [True] * 4

    opened = []
    with (
        pytest.raises(OSError, match="no luck"),
        run_of(opened, 2).shares_to_encode(FEATURES, SCHEMA.names, 0, 0),
    ):
        pass
    assert [columns.closed for columns in opened] == [True] * 2


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_every_share_has_a_lane_that_tells_its_process(processes):
    run = run_of([], processes=processes)
    with run.shares_to_observe(FEATURES, 0) as shares:
        assert len({share.lane for share in shares}) == len(shares)
        assert [share.lane % processes for share in shares] == [
            some.process for some in run.portions(FEATURES)
        ]


@pytest.mark.parametrize(("last", "expected"), [(pa.float32(), 2), (pa.int32(), 4)])
def test_columns_of_one_kind_are_observed_in_a_portion_for_each_thread(last, expected):
    schema = SCHEMA.set(3, pa.field("c3", last))
    portions = run_of([], processes=2, schema=schema).portions(FEATURES)

    assert len(portions) == expected
    assert {some.process for some in portions} == {0, 1}
    assert [name for some in portions for name in some.names] == list(FEATURES.columns)
