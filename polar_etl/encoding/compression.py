"""Pages compressed with zstd, as hard as is worth it.

Of normally distributed floats zstd leaves 0.92 in single and 0.96 in double precision, by coding
their bytes anew. That takes an eighth of a run, and readers twice the time (measured), so numbers
are left as they are where compression saves less than an eighth, as file systems do.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import zstandard

Bytes = bytes | memoryview

LEVEL = 1
"""Of zstd, for what is worth compressing."""
_FASTEST = -1
"""For all else: repeated values are found, but bytes are not coded anew."""
_WORTH = 7 / 8
"""What compression must leave of a page at most."""
_SHORTEST = 1 << 13
"""Bytes of a page below which a look at a sample takes as long as compressing the page."""
_SAMPLED, _SHORTEST_SAMPLE = 64, 1 << 10
"""A sample is so small a part of a page, but no shorter than so many bytes."""


def compressed(pages: Sequence[Bytes], level: int | None) -> list[memoryview]:
    """Return pages as frames of zstd: many at one go, as each call waits for the interpreter once.

    Args:
        pages: What is to be compressed.
        level: Of zstd; None for what each page is worth, which its bytes alone decide.
    """
    if level is not None:
        return _at_level(pages, level)
    worth = _worth(pages)
    quick = [at for at, found in enumerate(worth) if not found]
    found = dict(zip(quick, _at_level([pages[at] for at in quick], _FASTEST), strict=True))
    noise = [at for at in quick if len(found[at]) > _WORTH * len(pages[at])]
    if len(noise) < len(quick):  # frames share their memory: others would be kept with these
        found = {at: memoryview(bytes(found[at])) for at in noise}
    rest = [at for at in range(len(pages)) if at not in found]
    found |= zip(rest, _at_level([pages[at] for at in rest], LEVEL), strict=True)
    return [found[at] for at in range(len(pages))]


def worthwhile_level(content: Bytes) -> int:
    """Return the level of zstd that content is worth, as far as a sample tells.

    Example:
        >>> import random
        >>> worthwhile_level(bytes(1 << 16)), worthwhile_level(random.Random(0).randbytes(1 << 16))
        (1, -1)
    """
    return LEVEL if _worth([content])[0] else _FASTEST


def _worth(pages: Sequence[Bytes]) -> list[bool]:
    """Return which pages are worth compressing, as far as their middle tells."""
    worth = [True] * len(pages)
    long = [at for at, page in enumerate(pages) if len(page) >= _SHORTEST]
    samples = [_sample(pages[at]) for at in long]
    for at, sample, frame in zip(long, samples, _frames(samples, LEVEL), strict=True):
        worth[at] = len(frame) <= _WORTH * len(sample)
    return worth


def _sample(page: Bytes) -> Bytes:
    middle = len(page) // 2
    return page[middle : middle + max(len(page) // _SAMPLED, _SHORTEST_SAMPLE)]


def _at_level(pages: Sequence[Bytes], level: int) -> list[memoryview]:
    return [memoryview(frame) for frame in _frames(pages, level)]


def _frames(pages: Sequence[Bytes], level: int) -> list[Any]:
    """Return pages as frames, which have a length and can be looked at as memory."""
    if len(pages) < 2 or not any(pages):
        return [_compressor(level).compress(page) for page in pages]
    together = _compressor(level).multi_compress_to_buffer(pages)  # type: ignore[arg-type]
    return [together[i] for i in range(len(pages))]


class _Local(threading.local):
    """What each thread has for itself."""

    def __init__(self) -> None:
        self.compressors: dict[int, zstandard.ZstdCompressor] = {}


_local = _Local()


def _compressor(level: int) -> zstandard.ZstdCompressor:
    found = _local.compressors.get(level)
    if found is None:
        found = _local.compressors[level] = zstandard.ZstdCompressor(level=level)
    return found
