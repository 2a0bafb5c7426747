"""Files written past the page cache: the same bytes wherever, however pieces are cut."""

import errno
import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import cycle, pairwise
from pathlib import Path

import numpy as np
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from polar_etl.encoding.contents import Content, Readable, Wait
from polar_etl.storage.direct import DirectFile, Staging, staged_bytes

MIB = 1 << 20
RANDOM = np.random.default_rng(0).integers(0, 256, 5 * MIB, np.uint8).tobytes()


class Later:
    """Bytes that are there only when they are waited for."""

    def __init__(self, content: bytes) -> None:
        self._size, self._rest = len(content), content

    def __len__(self) -> int:
        return self._size

    def read_into(self, room: np.ndarray) -> Wait:
        content, self._rest = self._rest[: len(room)], self._rest[len(room) :]

        def fill() -> None:
            room[:] = np.frombuffer(content, np.uint8)

        return fill


def here(content: bytes) -> Content:
    """Return bytes that are there."""
    return Content([content])


def written(path: Path, contents: list[Readable]) -> tuple[bytes, int, str]:
    """Return what stands in a file afterwards, its size, and its hash, as they were told."""
    path.write_bytes(b"")
    with closing(Staging()) as staging, closing(DirectFile(path, staging)) as file:
        digest = append_all(file, contents)
    return path.read_bytes(), file.size, digest


def append_all(file: DirectFile, contents: list[Readable]) -> str:
    """Append contents, and return the hash of the file, which is on disk then."""
    for content in contents:
        file.append(content)
    return file.sync()


def expected(content: bytes) -> tuple[bytes, int, str]:
    return content, len(content), xxhash.xxh3_128_hexdigest(content)


@pytest.mark.parametrize("folder", ["disk", "memory"])
@pytest.mark.parametrize(
    "lengths",
    [
        [],
        [0],
        [1],
        [4096],
        [MIB],
        [MIB - 1, 2],
        [MIB, MIB],
        [3 * MIB + 5, 17],
        [100_000] * 30,
        [17] * 1000,
    ],
)
def test_pieces_of_any_length(tmp_path, folder, lengths):
    if folder == "memory":
        tmp_path = Path(f"/dev/shm/polar-etl-{os.getpid()}")
        if not os.access("/dev/shm", os.W_OK):
            pytest.skip("there is no file system in memory")
        tmp_path.mkdir()
    bounds = np.cumsum([0, *lengths]).tolist()
    content = RANDOM[: bounds[-1]]
    pieces = [content[low:high] for low, high in pairwise(bounds)]
    try:
        assert written(tmp_path / "x", [Content(pieces)]) == expected(content)
        assert written(tmp_path / "x", [Content([memoryview(p)]) for p in pieces]) == expected(
            content
        )
        assert written(tmp_path / "x", [Later(p) for p in pieces]) == expected(content)
    finally:
        if folder == "memory":
            (tmp_path / "x").unlink()
            tmp_path.rmdir()


@given(st.lists(st.integers(0, 700_000), max_size=12), st.data())
def test_kinds_of_pieces_mixed(tmp_path_factory, lengths, data):
    path = tmp_path_factory.mktemp("direct") / "x"
    kinds = [data.draw(st.sampled_from([here, Later])) for _ in lengths]
    content = RANDOM[: sum(lengths)]
    pieces, at = [], 0
    for kind, length in zip(kinds, lengths, strict=True):
        pieces.append(kind(content[at : at + length]))
        at += length
    assert written(path, pieces) == expected(content)


def test_files_that_are_written_in_turn_share_the_memory_they_are_written_from(tmp_path):
    paths = [tmp_path / str(number) for number in range(5)]
    for path in paths:
        path.write_bytes(b"")
    with closing(Staging(len(paths))) as staging:
        files = [DirectFile(path, staging) for path in paths]
        for low in range(0, len(RANDOM), 100_000):
            for kind, file in zip(cycle([here, Later]), files, strict=False):
                file.append(kind(RANDOM[low : low + 100_000]))
        assert [file.sync() for file in files] == [expected(RANDOM)[2]] * 5
        for file in files:
            file.close()
        assert [path.read_bytes() for path in paths] == [RANDOM] * 5
        assert sum(map(len, all_of(staging))) == staged_bytes(5)


def all_of(staging: Staging) -> list[memoryview]:
    """Take all pieces of memory that there are."""
    taken = [staging.take()]
    return taken + [staging.take() for _ in range(len(staging.memory) // len(taken[0]) - 1)]


def test_who_wants_more_memory_than_there_is_waits_until_some_is_given_back():
    with closing(Staging()) as staging:
        first, *_ = all_of(staging)
        with ThreadPoolExecutor(1) as pool:
            taken = pool.submit(staging.take)
            assert not taken.done()
            staging.give(first)
            assert taken.result() is first


def test_an_error_is_told_to_the_file_that_it_is_of(tmp_path, monkeypatch):
    call = os.pwrite
    paths = [tmp_path / "good", tmp_path / "bad"]
    for path in paths:
        path.write_bytes(b"")

    def full(file, content, place):
        if file == bad._descriptor:
            raise OSError(errno.ENOSPC, "no space")
        return call(file, content, place)

    monkeypatch.setattr(os, "pwrite", full)
    with (
        closing(Staging(2)) as staging,
        closing(DirectFile(paths[0], staging)) as good,
        closing(DirectFile(paths[1], staging)) as bad,
    ):
        good.append(here(RANDOM[:MIB]))
        with pytest.raises(OSError, match="no space"):
            append_all(bad, [here(RANDOM[:MIB])])
        assert append_all(good, [here(RANDOM[:MIB])]) == expected(2 * RANDOM[:MIB])[2]
    assert [path.stat().st_size for path in paths] == [2 * MIB, 0]


def test_content_that_never_comes_fails_its_file(tmp_path):
    """Pieces behind it don't wait for their turn forever."""
    path = tmp_path / "x"
    path.write_bytes(b"")
    with (
        closing(Staging()) as staging,
        closing(DirectFile(path, staging)) as file,
        pytest.raises(RuntimeError, match="never"),
    ):
        append_all(file, [Never(5 * MIB), here(RANDOM[: MIB - 1])])


def test_a_file_that_is_dropped_waits_for_what_is_under_way(tmp_path):
    """Or it would come to where another file is staged by then."""
    path = tmp_path / "x"
    path.write_bytes(b"")
    with closing(Staging()) as staging:
        with closing(DirectFile(path, staging)) as file:
            file.append(Later(RANDOM[:1000]))
            file.append(Never(1000))
        assert bytes(staging.take()[:1000]) == RANDOM[:1000]
    assert path.read_bytes() == b""


class Never:
    """Bytes that never come."""

    def __init__(self, size: int) -> None:
        self._size = size

    def __len__(self) -> int:
        return self._size

    def read_into(self, room: np.ndarray) -> Wait:
        def fail() -> None:
            raise RuntimeError("they never come")

        return fail


def test_a_file_system_that_knows_no_such_way(tmp_path, monkeypatch):
    call = os.open

    def refused(path, flags, *rest):
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, "no such way")
        return call(path, flags, *rest)

    monkeypatch.setattr(os, "open", refused)
    assert written(tmp_path / "x", [here(RANDOM)]) == expected(RANDOM)


def test_a_disk_that_wants_another_alignment(tmp_path, monkeypatch):
    call, refused = os.pwrite, []

    def once(file, content, place):
        if not refused:
            refused.append(len(content))
            raise OSError(errno.EINVAL, "another alignment")
        return call(file, content, place)

    monkeypatch.setattr(os, "pwrite", once)
    assert written(tmp_path / "x", [here(RANDOM)]) == expected(RANDOM)
    assert refused


def test_other_errors_are_told(tmp_path, monkeypatch):
    def full(file, content, place):
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(OSError, match="no space"):
        written(tmp_path / "x", [here(RANDOM)])


def test_links_are_not_followed(tmp_path):
    (tmp_path / "real").write_bytes(b"")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with pytest.raises(OSError, match="symbolic links"):
        DirectFile(tmp_path / "link", Staging())
