"""Descriptions of column chunks that differ in nothing but names, and numbers of as many digits.

The footers of wide tables hold little else. Reading them at one go takes a fraction of the time.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from polar_etl.pages.thrift import BINARY, I16, I64, Field, fields_of, varint

Bytes = npt.NDArray[np.uint8]
Ints = npt.NDArray[np.int64]

_META, _PATH, _STATISTICS = 3, 3, 12
"""Fields of `ColumnChunk`, and of its `ColumnMetaData`."""
_NUMBERS = frozenset((5, 6, 7, 9, 10, 11, 14, 15))
"""Fields of `ColumnMetaData` that may be other numbers: counts, sizes, places."""
_SAME, _DIGIT, _ANY = 0xFF, 0x80, 0x00
"""Bits of a byte that must be as they are in the first chunk; of a digit of a number the one that
says whether more follow."""


class Alike(NamedTuple):
    """Chunks that are described like another one."""

    many: int
    stop: int
    """Where the last one ends."""
    numbers: dict[int, Ints]
    """By field of `ColumnMetaData`: its value in each chunk."""


def alike(footer: bytes, start: int, at: int, paths: Sequence[bytes]) -> Alike:
    """Return some chunks that are described as another one is, up to the first that is not.

    Args:
        footer: The footer.
        start: Where the `ColumnChunk` of the other one stands.
        at: Where the first one stands.
        paths: How the name of each is written: the list, with the head of its field.

    Raises:
        ValueError: It is no chunk.
    """
    data = np.frombuffer(footer, np.uint8)
    chunk, end = fields_of(footer, start)
    meta, _ = fields_of(footer, chunk[_META].start)
    head = meta[_PATH].start - 1 - start
    tail = end - meta[_PATH].stop
    lengths = np.fromiter(map(len, paths), np.int64, len(paths))
    stops = at + np.cumsum(lengths + head + tail)
    lengths, stops = lengths[stops <= len(data)], stops[stops <= len(data)]
    tails = stops - tail
    names = tails - lengths
    numbers = [field for place, field in chunk.items() if place != _META]
    numbers += [field for place, field in meta.items() if place in _NUMBERS]
    if _STATISTICS in meta:
        numbers += fields_of(footer, meta[_STATISTICS].start)[0].values()
    model, must = data[start:end], must_be_same(footer, start, end, numbers)
    behind = gathered(data, tails, tail)
    same = fit(gathered(data, names - head, head), model[:head], must[:head])
    same &= fit(behind, model[-tail:], must[-tail:])
    same &= _stand_at(data, names, b"".join(paths[: len(names)]), lengths)
    many = len(same) if same.all() else int(same.argmin())
    first = meta[_PATH].stop
    found = {
        place: values_of(behind[:many, field.start - first : field.stop - first])
        for place, field in meta.items()
        if place in _NUMBERS
    }
    return Alike(many, int(stops[many - 1]) if many else at, found)


def gathered(data: Bytes, at: Ints, length: int) -> Bytes:
    """Return so many bytes from each of some places on, shape `(places, length)`."""
    everywhere = np.ndarray((max(len(data) - length + 1, 0),), f"V{length}", data, 0, (1,))
    return everywhere[at].view(np.uint8).reshape(-1, length)


def must_be_same(data: bytes, start: int, end: int, others: Iterable[Field]) -> Bytes:
    """Return which bits are the same where some fields have other values of as many bytes.

    Args:
        data: What holds the fields.
        start: The first byte that matters.
        end: Behind the last one.
        others: The fields: numbers and binary ones.
    """
    found = np.full(end - start, _SAME, np.uint8)
    for kind, first, stop in others:
        if I16 <= kind <= I64:
            found[first - start : stop - start] = _DIGIT
        elif kind == BINARY:
            found[varint(data, first)[1] - start : stop - start] = _ANY
    return found


def fit(rows: Bytes, model: Bytes, must: Bytes) -> npt.NDArray[np.bool_]:
    """Return which rows are like the model in the bits that must be the same."""
    return np.asarray(~((rows ^ model) & must).any(axis=1))


def _stand_at(data: Bytes, places: Ints, names: bytes, lengths: Ints) -> npt.NDArray[np.bool_]:
    """Tell which of some names stand where they are expected.

    Args:
        data: The bytes.
        places: Where each is expected.
        names: All of them, one behind the other.
        lengths: Bytes of each; none is empty.
    """
    if not len(places):
        return np.ones(0, np.bool_)
    first = np.cumsum(lengths) - lengths
    at = np.arange(len(names)) + np.repeat(places - first, lengths)
    return np.logical_and.reduceat(data[at] == np.frombuffer(names, np.uint8), first)


def values_of(digits: Bytes) -> Ints:
    """Return the signed numbers whose digits are the rows."""
    found = np.zeros(len(digits), np.uint64)
    for place in range(digits.shape[1]):
        found |= (digits[:, place] & 127).astype(np.uint64) << np.uint64(7 * place)
    return signed_of(found)


def signed_of(found: npt.NDArray[np.uint64]) -> Ints:
    """Return the signed numbers that Thrift writes as these unsigned ones."""
    return (found >> np.uint64(1)).astype(np.int64) ^ -(found & np.uint64(1)).astype(np.int64)
