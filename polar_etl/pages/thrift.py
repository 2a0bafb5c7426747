"""Thrift's compact protocol, as far as Parquet's footers and page headers need it.

A struct becomes a dictionary from field number to value; what is inside of it can be left as bytes.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import NamedTuple

Bytes = bytes | memoryview

TRUE, FALSE, BYTE, I16, I32, I64, DOUBLE, BINARY, LIST, SET, MAP, STRUCT = range(1, 13)
MAGIC = b"PAR1"
"""What a Parquet file begins and ends with."""
_DEEPEST = 16
"""Structs within structs; Parquet's own are five deep."""


class Field(NamedTuple):
    """One field of a struct."""

    kind: int
    start: int
    """Where its value begins."""
    stop: int


def fields_of(data: Bytes, at: int = 0, depth: int = 0) -> tuple[dict[int, Field], int]:
    """Return the fields of the struct at `at`, and where it ends.

    Raises:
        ValueError: There is no struct.
    """
    found: dict[int, Field] = {}
    last = 0
    try:
        while data[at]:
            last, kind, at = head_of(data, at, last)
            stop = behind(data, at, kind, depth)
            found[last] = Field(kind, at, stop)
            at = stop
    except IndexError:
        raise ValueError("a Thrift struct breaks off") from None
    return found, at + 1


def field_at(data: Bytes, at: int, wanted: int) -> int:
    """Return where the value of field `wanted` of the struct at `at` begins.

    Raises:
        ValueError: There is no such field.
    """
    last = 0
    while data[at]:
        last, kind, at = head_of(data, at, last)
        if last == wanted:
            return at
        at = behind(data, at, kind)
    raise ValueError(f"a Thrift struct has no field {wanted}")


def end_of(data: Bytes, at: int, last: int) -> int:
    """Return where a struct ends, from behind the value of its field `last` on."""
    while data[at]:
        last, kind, at = head_of(data, at, last)
        at = behind(data, at, kind)
    return at + 1


def head_of(data: Bytes, at: int, last: int) -> tuple[int, int, int]:
    """Return number and kind of the field at `at`, behind field `last`, and where its value is."""
    head = data[at]
    if head > 15:
        return last + (head >> 4), head & 15, at + 1
    place, at = signed(data, at + 1)
    return place, head, at


def behind(data: Bytes, at: int, kind: int, depth: int = 0) -> int:
    """Return where the value at `at` ends."""
    if I16 <= kind <= I64:
        while data[at] > 127:
            at += 1
        return at + 1
    if kind == BINARY:
        length, at = varint(data, at)
        return at + length
    if kind in (TRUE, FALSE):
        return at
    if depth > _DEEPEST:
        raise ValueError("a Thrift struct is nested too deeply")
    if kind == STRUCT:
        return fields_of(data, at, depth + 1)[1]
    if kind in (LIST, SET):
        return items_of(data, at, depth)[1]
    if kind in (BYTE, DOUBLE):
        return at + (1 if kind == BYTE else 8)
    raise ValueError(f"Thrift type {kind} has no place in Parquet")


def items_of(data: Bytes, at: int, depth: int = 0) -> tuple[list[Field], int]:
    """Return the items of the list at `at`, and where it ends.

    Raises:
        ValueError: There is no list.
    """
    try:
        kind = data[at] & 15
        count, at = list_at(data, at)
        if count > len(data) - at:
            raise ValueError("a Thrift list is longer than what holds it")
        found = []
        for _ in range(count):
            stop = behind(data, at, kind, depth + 1) + (kind in (TRUE, FALSE))
            found.append(Field(kind, at, stop))
            at = stop
    except IndexError:
        raise ValueError("a Thrift list breaks off") from None
    return found, at


def list_at(data: Bytes, at: int) -> tuple[int, int]:
    """Return how many items the list at `at` has, and where the first one is."""
    count = data[at] >> 4
    return varint(data, at + 1) if count == 15 else (count, at + 1)


def varint(data: Bytes, at: int) -> tuple[int, int]:
    """Return the unsigned number at `at`, and where it ends."""
    value = shift = 0
    while (byte := data[at]) > 127:
        value |= (byte & 127) << shift
        shift += 7
        at += 1
        if shift > 63:
            raise ValueError("a Thrift number is too long")
    return value | byte << shift, at + 1


def signed(data: Bytes, at: int) -> tuple[int, int]:
    """Return the signed number at `at`, and where it ends."""
    value, at = varint(data, at)
    return value >> 1 ^ -(value & 1), at


def decoded(raw: bytes) -> int:
    """Return the signed number that `raw` is the whole of."""
    value = 0
    for byte in reversed(raw):
        value = value << 7 | byte & 127
    return value >> 1 ^ -(value & 1)


often = lru_cache(decoded)
"""The same, for numbers that most pages or chunks of a file have in common."""


def number(data: Bytes, field: Field) -> int:
    """Return the value of a field that holds a whole number."""
    return signed(data, field.start)[0]


def as_varint(value: int) -> bytes:
    r"""Return the unsigned number `value` as bytes.

    Example:
        >>> as_varint(300)
        b'\xac\x02'
    """
    if value < 1 << 7:
        return bytes((value,))
    if value < 1 << 14:
        return bytes((value & 127 | 128, value >> 7))
    if value < 1 << 21:
        return bytes((value & 127 | 128, value >> 7 & 127 | 128, value >> 14))
    low = bytes((value & 127 | 128, value >> 7 & 127 | 128, value >> 14 & 127 | 128))
    return low + as_varint(value >> 21)


def as_number(value: int) -> bytes:
    """Return the signed 64-bit number `value` as bytes."""
    return as_varint((value << 1 ^ value >> 63) & (1 << 64) - 1)


often_number = lru_cache(as_number)
"""The same, for numbers that most pages or chunks have in common."""


def head(place: int, last: int, kind: int) -> bytes:
    """Return the bytes before the value of field `place`, behind field `last`."""
    step = place - last
    return bytes([step << 4 | kind]) if 0 < step < 16 else bytes([kind]) + as_number(place)


def as_struct(values: Iterable[tuple[int, int, bytes]], behind: int = 0) -> bytes:
    """Return a struct of (number, kind, value as bytes), in order of their numbers.

    Args:
        values: Its fields.
        behind: Number of the field that stands before them; 0 if none does.
    """
    found, last = bytearray(), behind
    for place, kind, value in values:
        found += head(place, last, kind)
        found += value
        last = place
    found.append(0)
    return bytes(found)


def as_list(kind: int, items: list[bytes]) -> bytes:
    """Return a list of items of one kind."""
    return b"".join((list_head(kind, len(items)), *items))


def list_head(kind: int, count: int) -> bytes:
    """Return what stands before the items of a list of so many."""
    return bytes([count << 4 | kind]) if count < 15 else bytes([0xF0 | kind]) + as_varint(count)


def footer_end(length: int) -> bytes:
    """Return what stands behind a footer of so many bytes: its length, and the magic."""
    return length.to_bytes(4, "little") + MAGIC
