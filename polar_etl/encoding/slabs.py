"""How many rows a row group of the output has."""

from __future__ import annotations

_MIB = 1 << 20


def slab_rows(output_bytes: int, vector_bytes: int = 0) -> int:
    """Return the rows of an output row group, from the bytes of an output row alone.

    About 32 MiB; more for wide tables, up to 1 GiB: what there is to do and to say for each column
    chunk would take longer than its values, if these were few. Those of vectors are not.

    Example:
        >>> slab_rows(200), slab_rows(4_000), slab_rows(40_000), slab_rows(400_000)
        (167680, 16384, 8192, 2048)
        >>> slab_rows(4_000, vector_bytes=4_000)
        8192
    """
    size = max(output_bytes, 1)
    wide = max(output_bytes - vector_bytes, 0) / size
    rows = max(
        32 * _MIB // size,
        min(int(16_384 * wide), 64 * _MIB // size),
        min(int(8_192 * wide), 320 * _MIB // size),
        min(int(2_048 * wide), 1024 * _MIB // size),
        1,
    )
    rows = min(rows, 1 << 20)
    return rows - rows % 256 if rows > 256 else rows
