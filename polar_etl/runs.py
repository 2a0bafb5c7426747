"""Places in a dictionary, as Parquet stores them: in runs, each of one value or of packed bits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate, groupby, pairwise
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from polar_etl import thrift
from polar_etl.headers import UnusualError
from polar_etl.scratch import scratch

Bytes = bytes | memoryview
Octets = npt.NDArray[np.uint8]
Places = npt.NDArray[np.unsignedinteger[Any]]
Fields = npt.NDArray[np.uint64]

RUNS_PER_VALUE = 1 / 64
"""Runs per value up to which they are read here: one by one, in Python."""
FEW_RUNS = 1 / 1024
"""Runs per value up to which PyArrow takes as long (measured)."""
_TOGETHER = 1 << 14
"""Groups of eight places that are unpacked at a time, in the processor's cache."""
_WIDEST = 25
"""Bits of a place, at most: so many lie within four bytes wherever they begin."""


class _Run(NamedTuple):
    """Neighbouring places of a page: one value again and again, or bits in runs of one length."""

    places: int
    """How many there are."""
    value: int | None
    """What all of them are; None if there are bits."""
    heads: Octets
    """What tells of them, value included: pages with the same runs have the same bytes here."""
    start: int
    """Where the first header stands."""
    many: int
    """Runs of bits, each behind its own header."""
    stride: int
    """Bytes from one header to the next."""
    room: int
    """Places with those that fill up the last eight."""


def places_in(
    pages: Sequence[tuple[Bytes, int]], runs_per_value: float = RUNS_PER_VALUE
) -> Iterator[tuple[int, Places]]:
    """Yield the number of each page and its places, those of pages with the same runs first.

    They are this thread's scratch: good until the next ones are asked for, and in the processor's
    cache until then.

    Args:
        pages: Of each, its values, the byte with their width included, and how many there are.
        runs_per_value: Runs up to which they are read here.

    Raises:
        UnusualError: They come in many runs, are very wide, or are damaged.
    """
    alike: dict[tuple[int, int, bytes], list[int]] = {}
    for index, (content, count) in enumerate(pages):
        alike.setdefault((len(content), count, bytes(content[:2])), []).append(index)
    for (_, count, _), indices in alike.items():
        left = np.array(indices)
        table = np.array([np.frombuffer(pages[index][0], np.uint8) for index in indices])
        if not count:
            yield from ((index, np.empty(0, np.uint32)) for index in indices)
        while count and len(left):
            runs = _runs(table[0], count, 16 + count * runs_per_value)
            same = np.ones(len(table), np.bool_)
            for run in runs:
                same &= (_heads(table, run) == run.heads).all(axis=(1, 2))
            rows = _places(table if same.all() else table[same], runs)
            yield from zip(left[same].tolist(), (row[:count] for row in rows), strict=True)
            left, table = left[~same], table[~same]


def _runs(content: Octets, count: int, most: float) -> list[_Run]:
    """Return the runs of one page, so many at most."""
    found: list[_Run] = []
    try:
        width, raw = int(content[0]), content.data
        if width > _WIDEST:
            raise UnusualError("its dictionary is very large")
        at, left = 1, count
        while left:
            head, start = thrift.varint(raw, at)
            if head & 1 and width:
                groups = min(head >> 1, -(-left // 8))  # the last run may tell of any number
                run = _run_of_bits(content, at, start - at, groups * width, left)
            else:
                stop = start + (0 if head & 1 else -(-width // 8))
                if stop > len(content):
                    raise UnusualError("its places break off")
                value = int.from_bytes(raw[start:stop], "little")
                many = min((head >> 1) * (8 if head & 1 else 1), left)
                run = _Run(many, value, content[at:stop], at, 1, stop - at, many)
            found.append(run)
            at += run.many * run.stride
            left -= run.places
            if not run.places:
                raise UnusualError("its places are damaged")
            if len(found) > most:
                raise UnusualError("its places come in many runs")
    except UnusualError:
        raise
    except (IndexError, ValueError, ZeroDivisionError):
        raise UnusualError("its places are damaged") from None
    return found


def _run_of_bits(content: Octets, at: int, head: int, length: int, left: int) -> _Run:
    """Return a run of bits, with those behind it that are as long.

    Most writers cut bits into runs of one length, so their headers stand at even distances.

    Args:
        content: A page.
        at: Where the header of the run stands.
        head: Bytes of the header.
        length: Bytes of the run.
        left: Places that the page still has.
    """
    width, stride = int(content[0]), head + length
    many = -(-left * width // (8 * length))
    for byte in range(at, at + head):
        alike = content[byte::stride][:many] == content[byte]
        many = len(alike) if alike.all() else int(np.argmin(alike))
    end = at + many * stride
    if end > len(content) and many > 1:
        many, end = many - 1, end - stride
    room = many * length // width * 8
    places = min(room, left)
    if 8 * (len(content) - at - head) < places * width and end > len(content):
        raise UnusualError("its places break off")
    return _Run(places, None, content[at : at + head], at, many, stride, room)


def _heads(table: Octets, run: _Run) -> Octets:
    """Return what stands in each page where the headers of a run are; `(pages, runs, bytes)`."""
    if run.many == 1:
        return table[:, None, run.start : run.start + len(run.heads)]
    runs = table[:, run.start : run.start + run.many * run.stride]
    return runs.reshape(len(table), run.many, run.stride)[:, :, : len(run.heads)]


def _places(table: Octets, runs: Sequence[_Run]) -> Iterator[Places]:
    """Yield the places in pages that have the same runs; the last run may tell of too many."""
    width = int(table[0, 0])
    bounds = list(accumulate((run.room for run in runs), initial=0))
    length = bounds[-1]
    some = max(8 * _TOGETHER // max(length, 1), 1)
    kind = np.dtype("u1" if width <= 8 else "u2" if width <= 16 else "u4")
    for first in range(0, len(table), some):
        rows = table[first : first + some]
        memory = scratch("places", kind.itemsize * len(rows) * length)
        found: Places = memory.view(kind).reshape(len(rows), length)
        bounded = zip(runs, pairwise(bounds), strict=True)
        for value, neighbours in groupby(bounded, key=lambda one: one[0].value):
            these = list(neighbours)
            (_, (start, _)), (_, (_, stop)) = these[0], these[-1]
            if value is None:  # the last run is shorter than the others, but unpacked with them
                _unpack([_bits(rows, run) for run, _ in these], width, found[:, start:stop])
            else:
                found[:, start:stop] = value
        yield from found


def _bits(table: Octets, run: _Run) -> Octets:
    """Return the bits of a run in each page, without headers; shape `(pages, runs, bytes)`."""
    size = run.many * run.stride
    bits = table[:, run.start : run.start + size]
    if bits.shape[1] < size:  # some writers leave out the end of the last run
        bits = np.pad(bits, ((0, 0), (0, size - bits.shape[1])))
    return bits.reshape(len(table), run.many, run.stride)[:, :, len(run.heads) :]


def _unpack(runs: Sequence[Octets], width: int, room: Places) -> None:
    """Write places of `width` bits each, of neighbouring runs, into `room`: `(pages, places)`."""
    pages, groups = len(room), room.shape[1] // 8
    data = scratch("bits", pages * groups * width + 8)  # windows reach beyond the last group
    table = data[:-8].reshape(pages, -1)
    done = 0
    for bits in runs:
        stop = done + bits.shape[1] * bits.shape[2]
        table[:, done:stop].reshape(bits.shape)[...] = bits
        done = stop
    if width > 16:
        _in_fours(data, width, room)
    else:
        unpacked = _in_bytes if width <= 8 else _in_pairs
        room[...] = unpacked(data, width, pages * groups).reshape(room.shape)


def _in_bytes(data: Octets, width: int, groups: int) -> Places:
    """Return places of up to 8 bits: eight of them are read at once, and moved apart in halves."""
    fields: Fields = np.ndarray((groups,), "<u8", data.data, 0, (width,)).copy()
    for many in (4, 2, 1) if width < 8 else ():
        _move_apart(fields, many * width, 16 * many)
    return fields.view(np.uint8)


def _in_pairs(data: Octets, width: int, groups: int) -> Places:
    """Return places of 9 to 16 bits, in the same way by fours."""
    fields: Fields = np.empty((groups, 2), "<u8")
    fields[:, 0] = np.ndarray((groups,), "<u8", data.data, 0, (width,))
    later: Fields = np.ndarray((groups,), "<u8", data.data, width >> 1, (width,))
    np.right_shift(later, np.uint64(4 * (width & 1)), out=fields[:, 1])
    for many in (2, 1) if width < 16 else ():
        _move_apart(fields, many * width, 32 * many)
    return fields.view("<u2")


def _move_apart(fields: Fields, width: int, lane: int) -> None:
    """Move the second of two fields of `width` bits in each lane to its second half."""
    half = lane // 2
    first = sum(((1 << width) - 1) << at for at in range(0, 64, lane))
    later = fields << np.uint64(half - width)
    later &= np.uint64(first << half)
    fields &= np.uint64(first)
    fields |= later


def _in_fours(data: Octets, width: int, room: Places) -> None:
    """Write places of up to 25 bits: the first of each eight at one go, then the second."""
    pages, groups = len(room), room.shape[1] // 8
    by_eight = room.reshape(pages, groups, 8)  # a view, as one axis becomes two
    for place in range(8):
        bit = place * width
        windows: Places = np.ndarray(
            (pages, groups), "<u4", data.data, bit >> 3, (groups * width, width)
        )
        np.right_shift(windows, bit & 7, out=by_eight[:, :, place])
    room &= np.uint32((1 << width) - 1)
