"""What both passes of a run share: columns opened side by side, and closed whatever happens."""

from types import SimpleNamespace

import pyarrow as pa
import pytest

from polar_etl.features import Features
from polar_etl.passes.run import Run
from polar_etl.passes.shares import Portion
from polar_etl.sources.base import SourceFile
from tests.unit.arrays import TableColumns

SCHEMA = pa.schema([(f"c{i}", pa.float32()) for i in range(4)])
FILE = SourceFile("", 0, 0, "", (), 0, 0, 0)
FEATURES = Features(tuple(SCHEMA.names))


def run_of(
    opened: list[TableColumns],
    fails_at: int = -1,
    *,
    processes: int = 1,
    schema: pa.Schema = SCHEMA,
    keeps: bool = False,
    deals_rows: bool = False,
) -> Run:
    def columns(names, first, stop, how):
        if len(opened) == fails_at:
            raise OSError("no luck")
        opened.append(TableColumns(schema.empty_table().select(names)))
        return opened[-1]

    return Run(
        source=SimpleNamespace(schema=schema, columns=columns, files=[FILE]),
        plan=SimpleNamespace(
            shares=4,
            processes=processes,
            threads=processes,
            reading=None,
            keeps=keeps,
            deals_rows=deals_rows,
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


@pytest.mark.parametrize("last", [pa.float32(), pa.int32()])
@pytest.mark.parametrize("keeps", [False, True])
def test_processes_take_turns_at_columns(last, keeps):
    """A portion each in the first pass; in the second, of which the output is in order, several."""
    schema = SCHEMA.set(3, pa.field("c3", last))
    run = run_of([], processes=2, schema=schema, keeps=keeps)

    assert run.portions(FEATURES) == [Portion(0, ("c0", "c2")), Portion(1, ("c1", "c3"))]
    with run.shares_to_encode(FEATURES, SCHEMA.names, 0, 0) as shares:
        assert [share.lane % 2 for share in shares] == [0, 1, 0, 1]
        assert [name for share in shares for name in share.names] == SCHEMA.names


def test_threads_that_have_rows_by_turns_have_all_columns_of_them():
    asked: list[tuple[list[str], int, int]] = []

    def columns(names, first, stop, how):
        asked.append((list(names), first, stop))
        return TableColumns(pa.table({name: [0.0] * (stop - first) for name in names}))

    run = run_of([], processes=2, deals_rows=True)
    run.source.columns = columns
    assert [some.names for some in run.portions(FEATURES)] == [FEATURES.columns]
    with run.shares_in_turn(FEATURES.columns, [0, 10, 30]) as shares:
        assert [share.lane for share in shares] == [0, 1]
        for lane, rows in ((0, 10), (1, 20), (0, 5)):
            shares[lane].columns.next(rows)

    assert asked == [(SCHEMA.names, 0, 10), (SCHEMA.names, 10, 30), (SCHEMA.names, 30, 35)]
