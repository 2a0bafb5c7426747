"""Bytes of a file where they are wanted: now, for many columns at a time, or later."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

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


def fetched(wanted: Sequence[Sequence[Span]], file: int) -> list[list[memoryview]]:
    """Return the bytes of some spans of a file for each of some columns.

    They are good until the next call, and fewer where the file ends. Neighbours are read together:
    the first spans of all columns, mostly, then the second ones.
    """
    most = max(map(len, wanted), default=0)
    places = [
        (*spans[turn], column)
        for turn in range(most)
        for column, spans in enumerate(wanted)
        if turn < len(spans)
    ]
    buffer = scratch("fetched", sum(stop - start for start, stop, _ in places)).data
    found: list[list[memoryview]] = [[] for _ in wanted]
    first = 0
    while first < len(places):
        start, stop, _ = places[first]
        behind = first + 1
        while behind < len(places) and places[behind][0] == stop:
            stop, behind = places[behind][1], behind + 1
        there = buffer[: stop - start]
        there = there[: os.preadv(file, [there], start)]
        buffer = buffer[stop - start :]
        for low, high, column in places[first:behind]:
            found[column].append(there[low - start : high - start])
        first = behind
    return found
