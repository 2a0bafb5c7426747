"""The columns of a file, as the schema elements of its footer describe them."""

from __future__ import annotations

import re
from typing import NamedTuple

from polar_etl.pages.thrift import fields_of, list_at, number, often, varint

PHYSICAL = ("BOOLEAN", "INT32", "INT64", "INT96", "FLOAT", "DOUBLE", "BYTE_ARRAY",
            "FIXED_LEN_BYTE_ARRAY")  # fmt: skip
"""Parquet's own types, by number."""
_SCALAR = re.compile(rb"\x15([\x00-\x0e])\x25([\x00\x02])\x18")
"""A schema element of a scalar without logical type, up to its name."""
_OPTIONAL = 1
_LONGEST_KEPT = 1 << 16
"""Bytes of a schema, at most, that is kept in case that the next file has the same."""


class FooterColumn(NamedTuple):
    """A column, as the schema elements of a footer describe it."""

    leaves: int
    path: bytes
    """How its chunks are named; empty if it is no scalar."""
    physical: int
    """Number of the type that its values are stored as."""
    nullable: bool

    @property
    def is_scalar(self) -> bool:
        """Whether each row has one value at most."""
        return bool(self.path)


_recent: list[tuple[bytes, tuple[FooterColumn, ...]]] = []
"""The last schema: the files of an input have the same."""


def columns_at(footer: bytes, at: int) -> tuple[tuple[FooterColumn, ...], int]:
    """Return the columns that the list of schema elements at `at` describes, and where it ends.

    Raises:
        ValueError: It contradicts itself.
    """
    for raw, columns in _recent:
        if footer.startswith(raw, at):
            return columns, at + len(raw)
    nodes, stop = _nodes(footer, at)
    columns = _columns(nodes)
    if stop - at <= _LONGEST_KEPT:
        _recent[:] = [(footer[at:stop], columns)]
    return columns, stop


class _Node(NamedTuple):
    """A `SchemaElement`."""

    physical: int | None
    """Number of the type that it is stored as; None if others are beneath it."""
    repetition: int | None
    name: bytes
    """With its length before it."""
    children: int


def _nodes(footer: bytes, at: int) -> tuple[list[_Node], int]:
    """Return the list of schema elements at `at`, depth first, and where it ends."""
    count, at = list_at(footer, at)
    if count > len(footer) - at:
        raise ValueError("it has not the bytes for so many columns")
    found = []
    for _ in range(count):
        node, at = _node(footer, at)
        found.append(node)
    return found, at


def _node(footer: bytes, at: int) -> tuple[_Node, int]:
    usual = _SCALAR.match(footer, at)
    if usual:
        length, start = varint(footer, usual.end())
        stop = start + length
        if not footer[stop]:
            kind, repeated = usual.groups()
            return _Node(often(kind), often(repeated), footer[usual.end() : stop], 0), stop + 1
    fields, stop = fields_of(footer, at)
    physical, repetition, children = (
        number(footer, fields[place]) if place in fields else None for place in (1, 3, 5)
    )
    name = fields[4]
    return _Node(physical, repetition, footer[name.start : name.stop], children or 0), stop


def _columns(nodes: list[_Node]) -> tuple[FooterColumn, ...]:
    children = [node.children for node in nodes]
    found: list[FooterColumn] = []
    place = 1
    while place < len(nodes):
        first, place, leaves = place, place + 1, 1
        if children[first]:
            place = _behind_subtree(children, first)
            leaves = children[first:place].count(0)
        found.append(_column(nodes[first], leaves))
    if children[0] != len(found):
        raise ValueError("its root has not the columns that there are")
    return tuple(found)


def _behind_subtree(children: list[int], place: int) -> int:
    left = 1
    while left:
        left += children[place] - 1
        place += 1
    return place


def _column(node: _Node, leaves: int) -> FooterColumn:
    if node.children or node.physical is None or node.repetition not in (0, _OPTIONAL):
        return FooterColumn(leaves, b"", 0, True)
    if not 0 <= node.physical < len(PHYSICAL):
        raise ValueError("there is no such type")
    return FooterColumn(1, b"\x19\x18" + node.name, node.physical, node.repetition == _OPTIONAL)
