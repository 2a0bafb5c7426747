"""Parquet's runs: small whole numbers, each run of one value or of packed bits.

Levels are stored that way, and the places in a dictionary that a page of values refers to.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from polar_etl import thrift
from polar_etl.headers import UnusualError
from polar_etl.scratch import scratch

Bools = npt.NDArray[np.bool_]
Bytes = bytes | memoryview
Octets = npt.NDArray[np.uint8]
Places = npt.NDArray[np.uint32]

_RUNS_PER_VALUE = 1 / 64
"""Runs, or bytes of levels, per value up to which they are read here: one by one, in Python."""
FEW_RUNS = 1 / 1024
"""Runs per value up to which PyArrow takes as long to look values up (measured)."""
_TOGETHER = 1 << 15
"""Groups of eight places that are unpacked at a time, in the processor's cache."""
_WIDEST = 25
"""Bits of a place, at most: so many lie within four bytes wherever they begin."""


def valid_in(levels: Bytes, rows: int) -> Bools | None:
    """Return which rows are not null, from definition levels of one bit; None if all are there.

    Raises:
        UnusualError: They come in many runs, or are damaged.
    """
    found = np.empty(rows, np.bool_)
    at = done = 0
    try:
        if len(levels) > 64 + rows * _RUNS_PER_VALUE and not _is_one_run(levels):
            raise UnusualError("its levels come in many runs")
        while done < rows:
            head, at = thrift.varint(levels, at)
            count = head >> 1
            if head & 1:
                bits = np.frombuffer(levels[at : at + count], np.uint8)
                at += count
                run = np.unpackbits(bits, bitorder="little")[: rows - done].view(np.bool_)
                found[done : done + len(run)] = run
                count = len(run)
            else:
                if count >= rows and levels[at] == 1:
                    return None
                found[done : done + count] = levels[at]
                at += 1
            if not count:
                raise UnusualError("its levels are damaged")
            done += count
    except UnusualError:
        raise
    except (IndexError, ValueError):
        raise UnusualError("its levels are damaged") from None
    return None if found.all() else found


def _is_one_run(levels: Bytes) -> bool:
    head, at = thrift.varint(levels, 0)
    return bool(head & 1) and at + (head >> 1) == len(levels)


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


def places_in(
    pages: Sequence[tuple[Bytes, int]], runs_per_value: float = _RUNS_PER_VALUE
) -> list[Places]:
    """Return the places that pages hold, those with the same runs unpacked together.

    Args:
        pages: Of each, its values, the byte with their width included, and how many there are.
        runs_per_value: Runs up to which they are read here.

    Raises:
        UnusualError: They come in many runs, are very wide, or are damaged.
    """
    alike: dict[tuple[int, int, bytes], list[int]] = {}
    for index, (content, count) in enumerate(pages):
        alike.setdefault((len(content), count, bytes(content[:2])), []).append(index)
    found: list[Places] = [np.empty(0, np.uint32)] * len(pages)
    for (_, count, _), indices in alike.items():
        left = np.array(indices)
        table = np.array([np.frombuffer(pages[index][0], np.uint8) for index in indices])
        while count and len(left):
            runs = _runs(table[0], count, 16 + count * runs_per_value)
            same = np.ones(len(table), np.bool_)
            for run in runs:
                same &= (_heads(table, run) == run.heads).all(axis=1)
            rows = _places(table if same.all() else table[same], runs)
            for index, row in zip(left[same].tolist(), rows, strict=True):
                found[index] = row[:count]
            left, table = left[~same], table[~same]
    return found


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
                run = _Run(many, value, content[at:stop], at, 1, stop - at)
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
    alike = content[at::stride] == content[at]
    many = len(alike) if alike.all() else int(np.argmin(alike))
    many = min(many, -(-left * width // (8 * length))) if head == 1 else 1
    end = at + many * stride
    if end > len(content) and many > 1:
        many, end = many - 1, end - stride
    places = min(many * length // width * 8, left)
    if 8 * (len(content) - at - head) < places * width and end > len(content):
        raise UnusualError("its places break off")
    return _Run(places, None, content[at : at + head], at, many, stride)


def _heads(table: Octets, run: _Run) -> Octets:
    """Return what stands in each page where the headers of a run are."""
    if len(run.heads) > 1 or run.many == 1:
        return table[:, run.start : run.start + len(run.heads)]
    return table[:, run.start : run.start + run.many * run.stride : run.stride]


def _places(table: Octets, runs: Sequence[_Run]) -> Places:
    """Return the places in pages that have the same runs; the last run may tell of too many."""
    width = int(table[0, 0])
    parts: list[Places] = []
    for run in runs:
        if run.value is not None:
            parts.append(np.full((len(table), run.places), run.value, np.uint32))
            continue
        bits = table[:, run.start : run.start + run.many * run.stride]
        if bits.shape[1] < run.many * run.stride:  # some writers leave out the end of the last run
            bits = np.pad(bits, ((0, 0), (0, run.many * run.stride - bits.shape[1])))
        bits = bits.reshape(len(table), run.many, run.stride)[:, :, len(run.heads) :]
        parts.append(_unpacked(bits, width)[:, : run.places])
    return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)


def _unpacked(bits: Octets, width: int) -> Places:
    """Return places of `width` bits each, shape `(pages, places)`; groups of eight are bytes."""
    data = scratch("bits", bits.size + 4)  # windows of four bytes reach beyond the last group
    data[:-4].reshape(bits.shape)[...] = bits
    found = np.empty((bits.size // width, 8), np.uint32)
    for first in range(0, len(found), _TOGETHER):
        groups = found[first : first + _TOGETHER]
        by_place = scratch("places", groups.nbytes).view(np.uint32).reshape(8, -1)
        for place, row in enumerate(by_place):
            at = 8 * first * width + place * width
            windows = np.ndarray(len(groups), "<u4", data.data, at >> 3, (width,))
            np.right_shift(windows, at & 7, out=row)
        by_place &= np.uint32((1 << width) - 1)
        groups[...] = by_place.T
    return found.reshape(len(bits), -1)
