"""Which process works on which columns: arithmetic on what there is to do for each."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Mapping, Sequence
from itertools import accumulate, chain, groupby
from typing import NamedTuple

_KEPT_WORK = 0.6
"""What there is to do for a column that need not be decoded, as a part of what there was."""


class Portion(NamedTuple):
    """Columns that are worked on in step, in order."""

    process: int
    names: tuple[str, ...]


class Team(NamedTuple):
    """Who works."""

    processes: int
    shares: int
    """Portions that columns are cut into, about: processes have every so many-th one."""
    driving: float
    """What the first process has to do besides, as a part of all work on columns."""


def cut(work: Mapping[str, int], team: Team) -> list[Portion]:
    """Return columns in runs of neighbours, so that all processes end at one time.

    Args:
        work: What there is to do for each column, in order.
        team: Who does it.

    Example:
        >>> [some.names for some in cut({"a": 4, "b": 4, "c": 8}, Team(1, 2, 0.0))]
        [('a', 'b'), ('c',)]
    """
    ends = list(accumulate(work.values()))
    bounds = list(accumulate(_sizes(team)))
    found: list[list[str]] = [[] for _ in bounds]
    for name, end in zip(work, ends, strict=True):
        place = bisect_left(bounds, (end - 0.5) / max(ends[-1], 1) * bounds[-1])
        found[place].append(name)
    some = [tuple(names) for names in found if names]
    return [Portion(at % team.processes, names) for at, names in enumerate(some)]


def dealt(runs: Sequence[Portion], lanes: int) -> list[Portion]:
    """Return a portion for each of so many lanes, which have every so many-th run.

    Args:
        runs: Columns in runs of neighbours; all those of a lane are of one process.
        lanes: How many there are.

    Example:
        >>> runs = [Portion(0, ("a",)), Portion(1, ("b",)), Portion(0, ("c", "d"))]
        >>> dealt(runs, 2)
        [Portion(process=0, names=('a', 'c', 'd')), Portion(process=1, names=('b',))]
    """
    hands = [runs[lane::lanes] for lane in range(min(lanes, len(runs)))]
    return [
        Portion(some[0].process, tuple(chain.from_iterable(run.names for run in some)))
        for some in hands
    ]


def _sizes(team: Team) -> list[float]:
    """Return how large each share is."""
    processes, shares, driving = team
    if processes == 1:
        return [1.0] * shares
    least = 0.25 / processes
    own = max((1 - driving * (processes - 1)) / processes, least)
    other = (1 - own) / (processes - 1)
    many = [len(range(process, shares, processes)) for process in range(processes)]
    return [
        (other if share % processes else own) / many[share % processes] for share in range(shares)
    ]


def cut_again(
    work: Mapping[str, int], team: Team, before: Sequence[Portion], kept: Collection[str]
) -> list[Portion]:
    """Return columns in runs of neighbours, as many as may be in the process that has kept them.

    Args:
        work: What there is to do for each column that is not kept, in order.
        team: Who does it.
        before: Who had which columns, some of these.
        kept: Those that are kept.

    Example:
        >>> before = [Portion(0, ("a",)), Portion(1, ("b",))]
        >>> cut_again({"a": 4, "text": 4, "b": 4}, Team(2, 2, 0.5), before, {"a", "b"})
        [Portion(process=0, names=('a',)), Portion(process=1, names=('text', 'b'))]
    """
    owners = {name: some.process for some in before for name in some.names if name in kept}
    loads = [team.driving * sum(work.values()), *[0.0] * (team.processes - 1)]
    for name, process in owners.items():
        loads[process] += _KEPT_WORK * work[name]
    most = max(sum(work.values()) / team.shares, 1)
    last = 0
    for name in work:
        if name not in owners:
            least = loads.index(min(loads))
            owners[name] = last if loads[last] < loads[least] + most else least
            loads[owners[name]] += work[name]
        last = owners[name]
    _relieve(owners, loads, work, [some.names for some in before if some.process == 0], kept)
    return _runs(work, owners, most)


def _relieve(
    owners: dict[str, int],
    loads: list[float],
    work: Mapping[str, int],
    portions: Sequence[Sequence[str]],
    kept: Collection[str],
) -> None:
    """Take columns from the first process as long as it has more to do than others.

    They come from the ends of its portions, so that these stay runs of neighbours.
    """
    left = [[name for name in names if name in kept] for names in portions]
    while left := [names for names in left if names]:
        for names in left:
            name, least = names.pop(), loads.index(min(loads))
            if loads[0] - _KEPT_WORK * work[name] < loads[least] + work[name]:
                return
            owners[name] = least
            loads[0] -= _KEPT_WORK * work[name]
            loads[least] += work[name]


def _runs(work: Mapping[str, int], owners: Mapping[str, int], most: float) -> list[Portion]:
    """Return runs of neighbours with one owner, those with too much to do in several."""
    found = []
    for process, names in groupby(work, key=owners.__getitem__):
        some = {name: work[name] for name in names}
        parts = Team(1, max(round(sum(some.values()) / most), 1), 0.0)
        found += [Portion(process, part.names) for part in cut(some, parts)]
    return found
