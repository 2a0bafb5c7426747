"""Which columns are normalized, which pass through, and why."""

from __future__ import annotations

import difflib
import fnmatch
import re
from collections.abc import Mapping, Sequence

import pyarrow as pa

from polar_etl.columns import asked_once, listed
from polar_etl.errors import UsageError, describe
from polar_etl.features import is_open_list, open_lists, value_type


def select(
    schema: pa.Schema, columns: Sequence[str] | None, exclude: Sequence[str] | None
) -> tuple[str, ...]:
    """Return the names of the columns to normalize, in schema order.

    Args:
        schema: The source's.
        columns: Names, globs, or regular expressions between `^` and `$`; None for all columns of
            numbers and of vectors whose type fixes their length. A pattern takes the columns of
            numbers, vectors and lists of numbers among those that it matches.
        exclude: The same, for columns that pass through after all.

    Raises:
        UsageError: A name or pattern matches nothing, or a column that was named holds no numbers.

    Example:
        >>> import pyarrow as pa
        >>> schema = pa.schema({"x1": pa.int8(), "x2": pa.float32(), "name": pa.string()})
        >>> select(schema, ["x*"], ["^x2$"])
        ('x1',)
    """
    numbers = asked_once(value_type, listed(schema)[1])
    numeric = [
        column.name
        for column, number in zip(schema, numbers, strict=True)
        if number is not None and _foreign_type(column) is None
    ]
    chosen = set(numeric).difference(open_lists(schema, numeric))
    names = dict.fromkeys(listed(schema)[0])
    if columns is not None:
        others, chosen = names.keys() - set(numeric), set()
        for pattern in columns:
            found = _matches(names, pattern)
            if pattern in others:
                raise UsageError(
                    f"Column {describe(pattern)} is {_kind(schema.field(pattern))}; only "
                    "integers, floats, decimals and vectors of them can be normalized."
                )
            chosen.update(found)
    for pattern in exclude or ():
        chosen.difference_update(_matches(names, pattern))
    return tuple(name for name in numeric if name in chosen)


def _matches(names: Mapping[str, object], pattern: str) -> list[str]:
    if pattern in names:
        return [pattern]
    if pattern.startswith("^") and pattern.endswith("$"):
        try:
            expression = re.compile(pattern)
        except (re.error, OverflowError, RecursionError) as error:
            raise UsageError(f"{describe(pattern)} is not a regular expression: {error}.") from None
        found = [name for name in names if expression.search(name)]
    elif any(sign in pattern for sign in "*?["):
        found = fnmatch.filter(names, pattern)
    else:
        found = []
    if not found:
        folded = {name.casefold(): name for name in reversed([*names][:100_000])}
        near = difflib.get_close_matches(pattern.casefold(), [*folded], n=1, cutoff=0.0)
        hint = f" Did you mean {describe(folded[near[0]])}?" if near else ""
        raise UsageError(f"No column is named or matched by {describe(pattern)}.{hint}")
    return found


def _foreign_type(column: pa.Field) -> str | None:
    """Return the extension type of a column if PyArrow does not know it.

    Its values, such as those of pandas.period, may look like integers and mean something else.
    """
    name = (column.metadata or {}).get(b"ARROW:extension:name")
    return None if name is None else name.decode(errors="replace")


def _kind(column: pa.Field) -> str:
    name = _foreign_type(column)
    return str(column.type) if name is None else f"of the extension type {describe(name)}"


def reason_to_pass(column: pa.Field) -> str:
    """Return why a column passes through unchanged."""
    if _foreign_type(column) is not None:
        return f"{_kind(column)}, not numeric"
    if is_open_list(column.type):
        return f"{column.type} fixes no length; --columns takes it where all lists have one length"
    return "not selected" if value_type(column.type) else f"{column.type} is not numeric"
