"""Files written past the page cache: the same bytes wherever, however pieces are cut."""

import errno
import os
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from polar_etl.direct import DirectFile, Staging

MIB = 1 << 20
RANDOM = np.random.default_rng(0).integers(0, 256, 5 * MIB, np.uint8).tobytes()


class Later:
    """Bytes that are read when they are asked for."""

    def __init__(self, content: bytes) -> None:
        self._rest = content

    def __len__(self) -> int:
        return len(self._rest)

    def read_into(self, room: np.ndarray) -> None:
        room[:] = np.frombuffer(self._rest[: len(room)], np.uint8)
        self._rest = self._rest[len(room) :]


def written(path: Path, pieces: list) -> tuple[bytes, int, str]:
    """Return what stands in a file afterwards, its size, and its hash, as they were told."""
    path.write_bytes(b"")
    file = DirectFile(path, Staging())
    try:
        file.append(pieces)
        digest = file.sync()
    finally:
        file.close()
    return path.read_bytes(), file.size, digest


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
        assert written(tmp_path / "x", pieces) == expected(content)
        assert written(tmp_path / "x", [memoryview(p) for p in pieces]) == expected(content)
        assert written(tmp_path / "x", [Later(p) for p in pieces]) == expected(content)
    finally:
        if folder == "memory":
            (tmp_path / "x").unlink()
            tmp_path.rmdir()


@given(st.lists(st.integers(0, 700_000), max_size=12), st.data())
def test_kinds_of_pieces_mixed(tmp_path_factory, lengths, data):
    path = tmp_path_factory.mktemp("direct") / "x"
    kinds = [data.draw(st.sampled_from([bytes, memoryview, Later])) for _ in lengths]
    content = RANDOM[: sum(lengths)]
    pieces, at = [], 0
    for kind, length in zip(kinds, lengths, strict=True):
        pieces.append(kind(content[at : at + length]))
        at += length
    assert written(path, pieces) == expected(content)


@pytest.mark.parametrize("size", [4096, MIB])
def test_files_that_are_written_in_turn_share_the_memory_they_are_written_from(tmp_path, size):
    """One piece for each, and those that wait for the disk."""
    staging, taken = Staging(size), set()
    take = staging.take

    def noting():
        memory = take()
        taken.add(id(memory))
        return memory

    staging.take = noting
    paths = [tmp_path / str(number) for number in range(5)]
    for path in paths:
        path.write_bytes(b"")
    files = [DirectFile(path, staging) for path in paths]
    for low in range(0, len(RANDOM), 100_000):
        for file in files:
            file.append([RANDOM[low : low + 100_000]])
    assert [file.sync() for file in files] == [expected(RANDOM)[2]] * 5
    for file in files:
        file.close()
    staging.close()
    assert [path.read_bytes() for path in paths] == [RANDOM] * 5
    assert len(taken) <= len(files) + 4


def test_an_error_is_told_to_the_file_that_it_is_of(tmp_path, monkeypatch):
    call, staging = os.write, Staging(4096)
    paths = [tmp_path / "good", tmp_path / "bad"]
    for path in paths:
        path.write_bytes(b"")
    good, bad = (DirectFile(path, staging) for path in paths)

    def full(file, content):
        if file == bad._descriptor:
            raise OSError(errno.ENOSPC, "no space")
        return call(file, content)

    monkeypatch.setattr(os, "write", full)
    good.append([bytes(4096)])
    bad.append([bytes(4096)])
    good.append([bytes(4096)])
    with pytest.raises(OSError, match="no space"):
        bad.sync()
    good.sync()
    for file in (good, bad):
        file.close()
    assert [path.stat().st_size for path in paths] == [2 * 4096, 0]


def test_a_file_system_that_knows_no_such_way(tmp_path, monkeypatch):
    call = os.open

    def refused(path, flags, *rest):
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, "no such way")
        return call(path, flags, *rest)

    monkeypatch.setattr(os, "open", refused)
    assert written(tmp_path / "x", [RANDOM]) == expected(RANDOM)


def test_a_disk_that_wants_another_alignment(tmp_path, monkeypatch):
    call, refused = os.write, []

    def once(file, content):
        if not refused:
            refused.append(len(content))
            raise OSError(errno.EINVAL, "another alignment")
        return call(file, content)

    monkeypatch.setattr(os, "write", once)
    assert written(tmp_path / "x", [RANDOM]) == expected(RANDOM)
    assert refused


def test_other_errors_are_told(tmp_path, monkeypatch):
    def full(file, content):
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="no space"):
        written(tmp_path / "x", [RANDOM])


def test_links_are_not_followed(tmp_path):
    (tmp_path / "real").write_bytes(b"")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with pytest.raises(OSError, match="symbolic links"):
        DirectFile(tmp_path / "link", Staging())
