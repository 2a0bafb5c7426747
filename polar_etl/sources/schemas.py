"""Arrow schemas: what can be handled, how wide it is, and how two of them differ."""

from __future__ import annotations

from itertools import accumulate, pairwise

import pyarrow as pa

from polar_etl.columns import asked_once, listed, plain_width
from polar_etl.errors import InputError, describe

NOMINAL_TEXT_WIDTH = 16
"""Bytes taken for one value of variable width where only the schema may be asked."""


def leaves(kind: pa.DataType) -> int:
    """Return how many Parquet columns hold a column of this type."""
    if plain_width(kind):
        return 1
    if isinstance(kind, pa.BaseExtensionType):
        return leaves(kind.storage_type)
    if pa.types.is_map(kind):
        return leaves(kind.key_type) + leaves(kind.item_type)
    if pa.types.is_struct(kind):
        return sum(leaves(kind.field(i).type) for i in range(kind.num_fields))
    if _is_list(kind):
        return leaves(kind.value_type)
    return 1


def leaf_ranges(schema: pa.Schema) -> tuple[range, ...]:
    """Return the indices of the Parquet columns that each column consists of."""
    bounds = accumulate(asked_once(leaves, listed(schema)[1]), initial=0)
    return tuple(range(start, stop) for start, stop in pairwise(bounds))


def has_variable_width(kind: pa.DataType) -> bool:
    """Tell whether values of this type take more or fewer bytes each."""
    if isinstance(kind, pa.BaseExtensionType):
        return has_variable_width(kind.storage_type)
    return _fixed_width(kind) is None


def width(kind: pa.DataType) -> int:
    """Return the decoded bytes of one value, nominal ones where the width varies."""
    if isinstance(kind, pa.BaseExtensionType):
        return width(kind.storage_type)
    return _fixed_width(kind) or NOMINAL_TEXT_WIDTH * leaves(kind)


def _fixed_width(kind: pa.DataType) -> int | None:
    if found := plain_width(kind):
        return found
    if pa.types.is_fixed_size_list(kind) and (inner := _fixed_width(kind.value_type)):
        return int(inner * kind.list_size)
    if pa.types.is_dictionary(kind):
        return None
    try:
        return max(int(kind.bit_width) // 8, 1)
    except ValueError:
        return None


def _is_list(kind: pa.DataType) -> bool:
    return bool(
        pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    )


def checked_schema(path: str, schema: pa.Schema) -> pa.Schema:
    """Return `schema` if its columns can be told apart by name.

    Raises:
        InputError: There is no column, or two have one name.
    """
    if not schema.names:
        raise InputError(f"{describe(path)} has no columns: there is nothing to normalize.")
    seen: set[str] = set()
    for name in schema.names:
        if name in seen:
            raise InputError(
                f"{describe(path)} has two columns named {describe(name)}: rename one of them."
            )
        seen.add(name)
    return schema


def difference(expected: pa.Schema, found: pa.Schema, limit: int = 5) -> str:
    """Return in words how `found` differs from `expected` in names, types or order; "" if not."""
    if expected.names == found.names and all(
        a.type.equals(b.type) for a, b in zip(expected, found, strict=True)
    ):
        return ""
    before, after = set(expected.names), set(found.names)
    notes = [f"column {describe(name)} is missing" for name in expected.names if name not in after]
    notes += [f"column {describe(name)} is new" for name in found.names if name not in before]
    for name in expected.names:
        if name in after and not expected.field(name).type.equals(found.field(name).type):
            types = f"{expected.field(name).type}, found {found.field(name).type}"
            notes.append(f"column {describe(name)}: expected {types}")
    if not notes:
        notes = ["the columns stand in another order"]
    more = f" and {len(notes) - limit} more differences" if len(notes) > limit else ""
    return "; ".join(notes[:limit]) + more
