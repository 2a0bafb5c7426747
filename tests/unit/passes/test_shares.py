"""Columns in shares of about one size, and in the second pass where they are kept."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polar_etl.passes.shares import Team, cut, cut_again, dealt

WORK = st.dictionaries(st.text(max_size=3), st.sampled_from([1, 4, 8, 400]), max_size=30)
TEAMS = st.integers(1, 5).flatmap(
    lambda processes: st.builds(
        Team, st.just(processes), st.integers(processes, 12), st.floats(0, 0.5)
    )
)


def evenly(columns: int) -> dict[str, int]:
    return {f"c{i}": 4 for i in range(columns)}


def loads(portions, work, processes) -> list[float]:
    """Return what each process has of all work."""
    found = [0.0] * processes
    for some in portions:
        found[some.process] += sum(work[name] for name in some.names) / sum(work.values())
    return found


@given(WORK, TEAMS)
def test_every_column_is_in_one_portion_and_in_order(work, team):
    found = cut(work, team)

    assert len(found) <= team.shares
    assert all(some.names and some.process < team.processes for some in found)
    assert [name for some in found for name in some.names] == list(work)


@pytest.mark.parametrize("columns", [1, 2, 7, 100])
@pytest.mark.parametrize("shares", [1, 2, 4])
def test_shares_are_alike(columns, shares):
    sizes = [len(some.names) for some in cut(evenly(columns), Team(1, shares, 0.1))]

    assert len(sizes) == min(columns, shares)
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("processes", [2, 4, 9])
@pytest.mark.parametrize("driving", [0.05, 0.15, 0.5])
def test_the_process_that_drives_gets_less_so_that_all_end_at_one_time(processes, driving):
    work = evenly(10_000)

    works = loads(cut(work, Team(processes, 2 * processes, driving)), work, processes)

    assert max(works[1:]) - min(works[1:]) < 0.001
    assert works[0] > 0.2 / processes
    if works[0] > 0.26 / processes:
        assert works[0] + driving == pytest.approx(works[1], abs=0.001)
    else:
        assert works[0] + driving > works[1]


@given(WORK, TEAMS)
def test_runs_are_dealt_to_lanes_of_their_own_process(work, team):
    runs = cut(work, team)

    found = dealt(runs, team.processes)

    assert len(found) == min(len(runs), team.processes)
    owners = {name: some.process for some in found for name in some.names}
    assert owners == {name: some.process for some in runs for name in some.names}
    assert all(list(some.names) == [name for name in work if name in some.names] for some in found)


@given(WORK, TEAMS, st.data())
def test_every_column_is_in_one_portion_of_the_second_pass_too(work, team, data):
    kept = data.draw(st.sets(st.sampled_from(sorted(work)))) if work else set()
    before = cut({name: work[name] for name in work if name in kept}, team)

    found = cut_again(work, team, before, kept)

    assert all(some.names and some.process < team.processes for some in found)
    assert [name for some in found for name in some.names] == list(work)
    owners = {name: some.process for some in found for name in some.names}
    for some in before:  # only the first process is relieved
        assert some.process == 0 or all(owners[name] == some.process for name in some.names)


@pytest.mark.parametrize("columns", [50, 1000])
@pytest.mark.parametrize("others", [0, 3, 20])
def test_nearly_all_that_is_kept_is_found_again_and_all_end_at_one_time(columns, others):
    numbers = evenly(columns)
    work = numbers | {f"text{i}": 8 for i in range(others)}
    before = cut(numbers, Team(2, 6, 0.0))

    found = cut_again(work, Team(2, 6, 0.12), before, numbers.keys())

    owners = {name: some.process for some in found for name in some.names}
    stayed = sum(owners[name] == some.process for some in before for name in some.names)
    assert stayed >= 0.84 * columns
    took = [0.12 * sum(work.values()), 0.0]
    was = {name: some.process for some in before for name in some.names}
    for name, process in owners.items():
        took[process] += work[name] * (0.6 if was.get(name) == process else 1.0)
    assert max(took) <= 1.1 * min(took) + 16
    assert len(found) <= 12


def test_runs_with_much_to_do_are_cut():
    work = {"x": 4, **{f"text{i}": 8 for i in range(40)}}

    found = cut_again(work, Team(1, 6, 0.0), cut({"x": 4}, Team(1, 6, 0.0)), {"x"})

    assert len(found) == 6
    assert max(len(some.names) for some in found) <= 8
