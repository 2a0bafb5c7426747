"""What there is to do for a value of each column, beside what there is for a byte of a number."""

from __future__ import annotations

import pyarrow as pa

from polar_etl.columns import asked_once, listed, plain_width
from polar_etl.sources.base import Source
from polar_etl.sources.schemas import has_variable_width, width

_WORD = 18
"""A word, and its place: PyArrow decodes them, and they are counted and put in order (measured)."""
_TEXT, _LETTER = 44, 5
"""Other text, and each of its bytes: PyArrow decodes it, and encodes what is left (measured)."""
_TIME, _BOOLEAN = 24, 4
"""What PyArrow encodes besides (measured)."""


def work_of(source: Source) -> dict[str, int]:
    """Return what there is to do for a value of each column in the second pass."""
    names, kinds = listed(source.schema)
    words = frozenset.intersection(*[file.words for file in source.files] or [frozenset[int]()])
    text = [
        place
        for place, kind in enumerate(kinds)
        if not plain_width(kind) and has_variable_width(kind) and place not in words
    ]
    found = dict(zip(names, asked_once(_plain_work, kinds), strict=True))
    found |= {names[place]: _WORD for place in words}
    rows = sum(file.rows for file in source.files)
    letters = sum(file.variable_bytes for file in source.files) // max(rows * len(text), 1)
    return found | {names[place]: _TEXT + _LETTER * letters for place in text}


def _plain_work(kind: pa.DataType) -> int:
    if pa.types.is_boolean(kind):
        return _BOOLEAN
    return _TIME if pa.types.is_temporal(kind) else width(kind)
