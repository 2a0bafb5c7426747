"""Sources that exist as footers only: enough for a plan."""

import pyarrow as pa

from polar_etl.api import Options
from polar_etl.planning.shapes import Shape, shape_of
from polar_etl.sources.base import SourceFile


def shape(
    rows: int,
    columns: int,
    group_rows: int,
    *,
    files: int = 1,
    kind: pa.DataType | None = None,
    page_bytes: int = 1 << 20,
    text_bytes: int = 0,
    from_arrow: int = 0,
    dictionary_bytes: int = 0,
) -> Shape:
    """Return the shape of `files` equal files, with a column of text if it has bytes.

    PyArrow decodes the text, and as many of the other columns as `from_arrow` tells. In each row
    group every column of numbers has a dictionary of `dictionary_bytes`.
    """
    kind = kind or pa.float32()
    schema = pa.schema([(f"c{i}", kind) for i in range(columns)])
    if text_bytes:
        schema = schema.append(pa.field("text", pa.string()))
    by_arrow = {*range(min(from_arrow, columns)), *range(columns, len(schema))}
    whole, rest = divmod(rows, group_rows)
    groups = (group_rows,) * whole + ((rest,) if rest else ())
    file = SourceFile(
        path="/data.parquet",
        size=rows * columns * 4 + text_bytes,
        mtime_ns=0,
        footer="",
        group_rows=groups,
        chunks=len(schema) * len(groups),
        variable_bytes=text_bytes,
        page_bytes=page_bytes,
        from_arrow=frozenset(by_arrow),
        lookup_bytes=dictionary_bytes,
        number_dictionaries=dictionary_bytes * columns,
    )
    held = file.held_chunks * files
    return shape_of(schema, (file,) * files, Options().settings(schema), held)


def embeddings(
    *, whole: bool, group: int = 20_000, text: bool = False, exclude: str | None = None
) -> Shape:
    """Return the shape of 200,000 vectors of 768 numbers beside a key, and perhaps text."""
    columns = [("key", pa.int64()), ("v", pa.list_(pa.float32(), 768))]
    schema = pa.schema([*columns, ("t", pa.string())][: 3 if text else 2])
    file = SourceFile(
        path="/data.parquet",
        size=1 << 30,
        mtime_ns=0,
        footer="",
        group_rows=(group,) * (200_000 // group),
        chunks=len(schema) * (200_000 // group),
        variable_bytes=20 * 200_000 if text else 0,
        page_bytes=1 << 20,
        from_arrow=frozenset(range(1, len(schema))),
        whole_vectors=frozenset({1} if whole else ()),
    )
    return shape_of(schema, (file,), Options(exclude=exclude).settings(schema))
