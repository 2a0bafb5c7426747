"""Headers of many pages at one go, as far as they are written as most are.

What a page claims must be known before PyArrow sees it, which takes as much memory as it is told.
"""

from __future__ import annotations

import re
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from polar_etl.footers.alike import gathered
from polar_etl.pages import thrift
from polar_etl.pages.headers import DATA, DICTIONARY, STRUCTS
from polar_etl.pages.thrift import STRUCT

Bools = npt.NDArray[np.bool_]
Bytes = npt.NDArray[np.uint8]
Ints = npt.NDArray[np.int64]

LONGEST = 40
"""Bytes that are looked at of each header, at most; statistics stand behind them."""
_NUMBER = 0x15
"""Head of a number that is the next field of a Thrift struct."""
_DIGITS = 5
"""Bytes of a 32-bit number, at most."""
_FEW = 1 << 7
"""Headers up to which reading them one by one takes less time."""
_V = rb"([\x80-\xff]{0,%d}[\x00-\x7f])" % (_DIGITS - 1)


def _usual(kind: int) -> re.Pattern[bytes]:
    """Return what a usual header begins with, up to the encoding."""
    alone, behind_checksum = (thrift.head(STRUCTS[kind], last, STRUCT) for last in (3, 4))
    number, *heads = map(re.escape, (thrift.as_number(kind), behind_checksum, alone))
    form = rb"\x15%b\x15%b\x15%b(?:\x15%b%b|%b)\x15%b\x15%b"
    return re.compile(form % (number, _V, _V, _V, *heads, _V, _V), re.DOTALL)


_USUAL = {kind: _usual(kind) for kind in (DATA, DICTIONARY)}


class Headers(NamedTuple):
    """What headers say of their pages; all arrays have shape `(pages,)`."""

    usual: Bools
    """Which of them are written as most are; of the others nothing is known."""
    size: Ints
    """Bytes of each page, decompressed."""
    stored: Ints
    """Bytes of it in the file."""
    values: Ints
    encoding: Ints
    """Number of the encoding of its values."""
    checked: Bools
    """Whether there is a checksum."""


def headers_at(raw: Bytes, at: Ints, kind: int) -> Headers:
    """Return the headers of pages of one type.

    Args:
        raw: Bytes that hold them, `LONGEST` behind the start of each at least.
        at: Where each begins.
        kind: `headers.DATA` or `headers.DICTIONARY`.
    """
    if len(at) <= _FEW:
        return _one_by_one(raw, at, kind)
    cursor = _Cursor(gathered(raw, at, LONGEST))
    cursor.expect(_NUMBER)
    usual = cursor.number() == kind
    cursor.expect(_NUMBER)
    size = cursor.number()
    cursor.expect(_NUMBER)
    stored = cursor.number()
    checked = cursor.head == _NUMBER
    cursor.skip_number(checked)
    head, behind_checksum = (thrift.head(STRUCTS[kind], last, STRUCT)[0] for last in (3, 4))
    usual &= cursor.head == np.where(checked, behind_checksum, head)
    cursor.step()
    cursor.expect(_NUMBER)
    values = cursor.number()
    cursor.expect(_NUMBER)
    encoding = cursor.number()
    return Headers(usual & cursor.good, size, stored, values, encoding, checked)


def _one_by_one(raw: Bytes, at: Ints, kind: int) -> Headers:
    """Return what `headers_at` does."""
    usual, memory = _USUAL[kind], raw.data
    numbers, checked = np.full((len(at), 4), -1, np.int64), np.zeros(len(at), np.bool_)
    for row, place in enumerate(at.tolist()):
        if found := usual.match(memory, place, place + LONGEST):
            numbers[row] = [*map(thrift.decoded, found.group(1, 2, 4, 5))]
            checked[row] = found[3] is not None
    size, stored, values, encoding = numbers.T
    return Headers(np.asarray((numbers >= 0).all(axis=1)), size, stored, values, encoding, checked)


class _Cursor:
    """A place in each of some rows of bytes."""

    def __init__(self, rows: Bytes) -> None:
        self._rows, self._at = rows, np.zeros(len(rows), np.int64)
        self._all = np.arange(len(rows))
        self.good = np.ones(len(rows), np.bool_)
        """Where all was as expected so far."""

    @property
    def head(self) -> Ints:
        """The byte at the place in each row."""
        return self._rows[self._all, self._at].astype(np.int64)

    def step(self, where: Bools | None = None) -> None:
        """Go on by a byte, in all rows or some."""
        self._at += 1 if where is None else where
        np.minimum(self._at, LONGEST - 1, out=self._at)

    def expect(self, head: int) -> None:
        """Go on behind a byte that must be this one."""
        self.good &= self.head == head
        self.step()

    def number(self) -> Ints:
        """Go on behind a number that is not negative, and return it."""
        value = self._digits(np.ones(len(self._all), np.bool_))
        self.good &= value & 1 == 0
        return value >> 1

    def skip_number(self, where: Bools) -> None:
        """Go on behind the head of a field and a number, in some rows."""
        self.step(where)
        self._digits(where)

    def _digits(self, where: Bools) -> Ints:
        """Go on behind the digits of a number, in some rows, and return it as it is written."""
        value, more = np.zeros(len(self._all), np.int64), where.copy()
        for digit in range(_DIGITS):
            byte = self.head
            value |= np.where(more, (byte & 127) << (7 * digit), 0)
            self.step(more)
            more &= byte > 127
        self.good &= ~more
        return value
