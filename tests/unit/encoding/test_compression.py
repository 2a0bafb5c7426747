"""Compression: every page comes back, and is as small as level 1 makes it where that is worth it."""

import numpy as np
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from polar_etl.encoding.compression import compressed, worthwhile_level

PAGE = 1 << 16


def noise(size: int = PAGE, seed: int = 0) -> bytes:
    return np.random.default_rng(seed).standard_normal(size // 4).astype(np.float32).tobytes()


def repeats(size: int = PAGE) -> bytes:
    return (np.arange(size // 4, dtype=np.float32) % 50).tobytes()


def misleading() -> bytes:
    """Return a page that a look at its middle takes for noise."""
    return repeats()[: PAGE // 2] + noise(PAGE // 4) + repeats()[: PAGE // 4]


KINDS = [b"", b"x", noise(), noise(seed=1), noise(1 << 12), repeats(), repeats(400), misleading()]
LISTS = st.lists(st.sampled_from(KINDS), max_size=6)


def at_level_1(page: bytes) -> bytes:
    return zstandard.ZstdCompressor(level=1).compress(page)


@given(LISTS, st.sampled_from([None, -7, 1, 3, 19]))
def test_every_page_comes_back(pages, level):
    frames = compressed(pages, level)

    assert [zstandard.decompress(frame) for frame in frames] == pages


@given(LISTS, st.sampled_from([None, 1]))
def test_a_frame_depends_on_its_page_alone(pages, level):
    alone = [compressed([page], level)[0] for page in pages]

    assert [bytes(frame) for frame in compressed(pages, level)] == [bytes(one) for one in alone]


@given(LISTS)
def test_what_shrinks_by_an_eighth_is_as_small_as_level_1_makes_it(pages):
    for page, frame in zip(pages, compressed(pages, None), strict=True):
        assert len(frame) > 7 / 8 * len(page) or bytes(frame) == at_level_1(page)


@pytest.mark.parametrize("page", [repeats(), repeats(400), misleading()])
def test_repeats_are_compressed(page):
    assert bytes(compressed([page], None)[0]) == at_level_1(page)


def test_noise_is_left_as_it_is():
    (frame,) = compressed([noise()], None)

    assert noise() in bytes(frame)
    assert noise() not in at_level_1(noise())


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_any_bytes_will_do(kind):
    assert zstandard.decompress(compressed([kind(noise())], None)[0]) == noise()


def test_the_level_of_content_is_known_from_a_sample():
    assert worthwhile_level(noise()) == -1
    assert worthwhile_level(repeats()) == worthwhile_level(b"") == 1
