"""Columns of vectors of one file, as Arrow has them, read by ourselves where that is possible."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa

from polar_etl.columns import array_of
from polar_etl.features import value_type
from polar_etl.pages.values import Chunk, stored_dtype
from polar_etl.pages.vectors import VectorReader, is_usual_chunk
from polar_etl.sources.by_arrow import ParquetFile
from polar_etl.vectors import vectors_of

_ENCODINGS = frozenset(("PLAIN", "RLE", "RLE_DICTIONARY", "PLAIN_DICTIONARY", "BIT_PACKED"))
"""Those of vectors, and of their levels, that are decoded here."""


def vector_reader(
    file: ParquetFile, place: int, groups: Sequence[int], descriptor: int
) -> VectorReader | None:
    """Return what reads a column of vectors, None if PyArrow must.

    Args:
        file: The file.
        place: Of the column, which is one of `file.vectors`.
        groups: Row groups that are read, one at least.
        descriptor: Of the file.
    """
    chunks = _chunks(file, place, groups)
    return VectorReader(chunks, descriptor) if chunks else None


def are_whole(file: ParquetFile, place: int, descriptor: int) -> bool:
    """Tell whether all vectors of a column are there and can be read here.

    The footer tells that none has a null, and how many numbers there are; the first page of each
    row group, how they are encoded.

    Args:
        file: The file.
        place: Of the column.
        descriptor: Of the file.
    """
    groups = [group for group, rows in enumerate(file.group_rows) if rows]
    chunks = _chunks(file, place, groups)
    if file.vectors[place] < 2 or not chunks:
        return False  # a null vector counts as one number
    leaf = file.leaves[place][0]
    found = [file.footer().row_group(group).column(leaf) for group in groups]
    return all(
        chunk.statistics is not None
        and chunk.statistics.has_null_count
        and not chunk.statistics.null_count
        and _ENCODINGS.issuperset(chunk.encodings)
        for chunk in found
    ) and all(is_usual_chunk(chunk, descriptor) for chunk in chunks)


def _chunks(file: ParquetFile, place: int, groups: Sequence[int]) -> list[Chunk]:
    """Return where the numbers of a column of vectors stand; nothing if one may not be there."""
    leaves, layout = file.leaves[place], file.layout
    if layout is None or len(leaves) != 1:
        return []
    if not all(layout.tells_of(group, leaves[0]) for group in groups):
        return []
    found = list(_possible_chunks(file, place, groups))
    return found if len(found) == len(groups) else []


def _possible_chunks(file: ParquetFile, place: int, groups: Sequence[int]) -> Iterator[Chunk]:
    """Yield where the numbers stand, up to the first row group in which not all can be there."""
    leaf, size = file.leaves[place][0], file.vectors[place]
    footer, kind = file.footer(), value_type(file.schema.field(place).type)
    leaf_schema = footer.schema.column(leaf)
    stored = kind and stored_dtype(kind, leaf_schema.physical_type)
    if stored is None or leaf_schema.max_repetition_level != 1:
        return
    for group in groups:
        found = footer.row_group(group).column(leaf)
        numbers = file.group_rows[group] * size
        start, data = found.dictionary_page_offset, found.data_page_offset
        if found.num_values != numbers:
            return
        yield Chunk(
            start=start or data,
            stop=(start or data) + found.total_compressed_size,
            rows=numbers,
            codec=found.compression,
            nullable=True,
            stored=stored,
            data=data,
            size=size,
            level=leaf_schema.max_definition_level,
        )


def read_vectors(reader: VectorReader, rows: int, kind: pa.DataType, size: int) -> pa.ChunkedArray:
    """Return the next rows of a column of vectors.

    Args:
        reader: Reads it.
        rows: How many.
        kind: Type of the column.
        size: Numbers in each vector.

    Raises:
        UnusualError: PyArrow must read them.
    """
    numbers = value_type(kind)
    assert numbers is not None
    dtype = np.dtype(numbers.to_pandas_dtype())
    room = np.frombuffer(pa.allocate_buffer(rows * size * dtype.itemsize), dtype)
    done = 0
    for some in reader.vectors(rows):
        room[done : done + len(some)] = some
        done += len(some)
    return pa.chunked_array([vectors_of(kind, array_of(room, None), size, None)], kind)
