"""Column chunks of one page each, dictionaries aside, and what is decoded of them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import zstandard

from polar_etl.pages.files import RunKind
from polar_etl.pages.values import decompressor

Array = npt.NDArray[np.generic]
Bools = npt.NDArray[np.bool_]
Bytes = npt.NDArray[np.uint8]
Ints = npt.NDArray[np.int64]
Segment = zstandard.BufferSegment
"""Bytes of a page that was decompressed."""


class Kind(NamedTuple):
    """What columns have in common that are decoded together."""

    run: RunKind
    filed: bool = False
    """Whether PyArrow decodes all of them: there are dictionaries, or another compression."""

    @property
    def stored(self) -> np.dtype[np.generic]:
        """Dtype of the values in the file."""
        return self.run.stored

    @property
    def nullable(self) -> bool:
        """Whether levels stand before the values."""
        return self.run.nullable


class Chunks(NamedTuple):
    """Column chunks of one kind, as they stand in a row group."""

    raw: Bytes
    """Memory that holds them, with the room that page files need."""
    at: Ints
    """Where in it each begins."""
    data: Ints
    """Where the first page behind the dictionary begins; at `at` if there is none."""
    size: Ints
    """Bytes of each."""
    rows: int
    """Of each."""
    kind: Kind


class Decoded(NamedTuple):
    """Values of some chunks; both arrays have shape `(chunks, rows)`."""

    which: list[int]
    """Which of them."""
    values: Array
    """Anything where a null is."""
    valid: Bools | None
    """Which values are there; None if all are."""


def decompressed(
    raw: Bytes, begin: Ints, end: Ints, sizes: Ints
) -> zstandard.BufferWithSegmentsCollection | None:
    """Return the pages between `begin` and `end`; None if there is none, or one is damaged."""
    if not len(begin):
        return None
    segments = np.stack([begin, end - begin], axis=1).astype(np.uint64).tobytes()
    try:
        return decompressor().multi_decompress_to_buffer(
            zstandard.BufferWithSegments(raw.data, segments),
            decompressed_sizes=sizes.astype(np.uint64).tobytes(),
        )
    except zstandard.ZstdError:
        return None


def bytes_of(found: zstandard.BufferWithSegmentsCollection, index: int) -> Bytes:
    """Return one of the pages that were decompressed."""
    return np.frombuffer(memoryview(found[index]), np.uint8)  # type: ignore[arg-type]  # it is one
