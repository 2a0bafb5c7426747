"""Headers of many pages at one go, as far as they are written as most are.

What a page claims must be known before PyArrow sees it, which takes as much memory as it is told.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from polar_etl import thrift
from polar_etl.sources.alike import gathered
from polar_etl.thrift import I32, STRUCT

Bools = npt.NDArray[np.bool_]
Bytes = npt.NDArray[np.uint8]
Ints = npt.NDArray[np.int64]

DATA, DICTIONARY = 0, 2
"""Types of pages: of the first version, and dictionaries."""
LONGEST = 40
"""Bytes that are looked at of each header, at most; statistics stand behind them."""
_NUMBER = 0x15
"""Head of a number that is the next field of a Thrift struct."""
_HEADS = {
    (DATA, False): 0x2C,
    (DATA, True): 0x1C,
    (DICTIONARY, False): 0x4C,
    (DICTIONARY, True): 0x3C,
}
"""Head of the struct that is there for each type, and whether a checksum stands before it."""
_STRUCTS = {DATA: 5, DICTIONARY: 7}
"""Field of a header with what is said of each type."""
_RUNS = 3
"""Number of the encoding of levels in runs."""
_DIGITS = 5
"""Bytes of a 32-bit number, at most."""


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
        kind: `DATA` or `DICTIONARY`.
    """
    cursor = _Cursor(gathered(raw, at, LONGEST))
    cursor.expect(_NUMBER)
    usual = cursor.number() == kind
    cursor.expect(_NUMBER)
    size = cursor.number()
    cursor.expect(_NUMBER)
    stored = cursor.number()
    checked = cursor.head == _NUMBER
    cursor.skip_number(checked)
    usual &= cursor.head == np.where(checked, _HEADS[kind, True], _HEADS[kind, False])
    cursor.step()
    cursor.expect(_NUMBER)
    values = cursor.number()
    cursor.expect(_NUMBER)
    encoding = cursor.number()
    return Headers(usual & cursor.good, size, stored, values, encoding, checked)


@lru_cache
def header(kind: int, size: int, values: int, encoding: int) -> bytes:
    """Return the header of a page that is not compressed.

    Args:
        kind: `DATA` or `DICTIONARY`.
        size: Bytes of the page.
        values: How many it holds.
        encoding: Number of their encoding.
    """
    told = [(1, I32, thrift.as_number(values)), (2, I32, thrift.as_number(encoding))]
    levels = [(place, I32, thrift.as_number(_RUNS)) for place in (3, 4)] if kind == DATA else []
    sizes = [(place, I32, thrift.as_number(size)) for place in (2, 3)]
    page = (_STRUCTS[kind], STRUCT, thrift.as_struct([*told, *levels]))
    return thrift.as_struct([(1, I32, thrift.as_number(kind)), *sizes, page])


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
        value, more = np.zeros(len(self._all), np.int64), np.ones(len(self._all), np.bool_)
        for digit in range(_DIGITS):
            byte = self.head
            value |= np.where(more, (byte & 127) << (7 * digit), 0)
            self.step(more)
            more &= byte > 127
        self.good &= ~more & (value & 1 == 0)
        return value >> 1

    def skip_number(self, where: Bools) -> None:
        """Go on behind the head of a field and a number, in some rows."""
        self.step(where)
        more = where.copy()
        for _ in range(_DIGITS):
            byte = self.head
            self.step(more)
            more &= byte > 127
        self.good &= ~more
