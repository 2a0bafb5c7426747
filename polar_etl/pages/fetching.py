"""Bytes of a file where they are wanted: now, for many columns at a time, or later."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from polar_etl.scratch import scratch

Span = tuple[int, int]
"""From where to where in a file."""


@dataclass(frozen=True, slots=True)
class Stretch:
    """Bytes of a file that are not read yet."""

    file: int
    """Its descriptor."""
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start

    def read_into(self, room: memoryview) -> bool:
        """Read them into as much room, and tell whether the file has all of them."""
        return os.preadv(self.file, [room], self.start) == len(self)


class Fetched(NamedTuple):
    """Bytes of spans of a file, good until the next ones are fetched."""

    memory: memoryview
    """All of them, with room before and behind."""
    spans: list[list[memoryview]]
    """Those of each column; fewer where the file ends."""


def fetched(
    wanted: Sequence[Sequence[Span]], file: int, *, before: int = 0, behind: int = 0
) -> Fetched:
    """Return the bytes of some spans of a file for each of some columns.

    Neighbours are read together: the first spans of all columns, mostly, then the second ones.

    Args:
        wanted: The spans of each column.
        file: Descriptor of the file.
        before: Bytes of room before all of them.
        behind: Bytes of room behind all of them.
    """
    most = max(map(len, wanted), default=0)
    places = [
        (*spans[turn], column)
        for turn in range(most)
        for column, spans in enumerate(wanted)
        if turn < len(spans)
    ]
    size = sum(stop - start for start, stop, _ in places)
    memory = scratch("fetched", before + size + behind).data
    buffer = memory[before:]
    found: list[list[memoryview]] = [[] for _ in wanted]
    first = 0
    while first < len(places):
        start, stop, _ = places[first]
        after = first + 1
        while after < len(places) and places[after][0] == stop:
            stop, after = places[after][1], after + 1
        there = buffer[: stop - start]
        there = there[: os.preadv(file, [there], start)]
        buffer = buffer[stop - start :]
        for low, high, column in places[first:after]:
            found[column].append(there[low - start : high - start])
        first = after
    return Fetched(memory, found)
