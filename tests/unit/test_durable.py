"""Files that are there whole or not at all."""

import os

import pytest

from polar_etl.durable import make_directory, sync_directory, sync_file, write_atomically


def test_writing_creates_and_replaces(tmp_path):
    path = tmp_path / "x.json"

    write_atomically(path, b"one")
    write_atomically(path, b"two, longer")
    write_atomically(path, b"")

    assert path.read_bytes() == b""
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.json"]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "x.json"
    path.write_bytes(b"old")

    with pytest.raises(TypeError):
        write_atomically(path, "text is no bytes")

    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.json"]


def test_a_directory_is_not_replaced(tmp_path):
    (tmp_path / "x").mkdir()

    with pytest.raises(OSError, match="directory"):
        write_atomically(tmp_path / "x", b"new")

    assert [entry.name for entry in tmp_path.iterdir()] == ["x"]


def test_writing_through_a_symlink_replaces_the_link(tmp_path):
    (tmp_path / "target").write_bytes(b"untouched")
    (tmp_path / "link").symlink_to("target")

    write_atomically(tmp_path / "link", b"new")

    assert (tmp_path / "target").read_bytes() == b"untouched"
    assert not (tmp_path / "link").is_symlink()
    assert (tmp_path / "link").read_bytes() == b"new"


def test_writing_obeys_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        write_atomically(tmp_path / "x", b"")
    finally:
        os.umask(before)

    assert (tmp_path / "x").stat().st_mode & 0o777 == 0o640


def test_make_directory_tells_what_it_created_outermost_first(tmp_path):
    (tmp_path / "a").mkdir()

    created = make_directory(tmp_path / "a" / "b" / "c")

    assert created == [tmp_path / "a" / "b", tmp_path / "a" / "b" / "c"]
    assert (tmp_path / "a" / "b" / "c").is_dir()
    assert make_directory(tmp_path / "a" / "b" / "c") == []


def test_make_directory_refuses_a_file_in_the_way(tmp_path):
    (tmp_path / "a").write_bytes(b"")

    with pytest.raises(OSError, match="Not a directory"):
        make_directory(tmp_path / "a" / "b")


def test_syncing_follows_no_links(tmp_path):
    (tmp_path / "file").write_bytes(b"x")
    (tmp_path / "link").symlink_to("file")

    sync_file(tmp_path / "file")
    sync_directory(tmp_path)
    with pytest.raises(OSError, match="symbolic links"):
        sync_file(tmp_path / "link")
    with pytest.raises(NotADirectoryError):
        sync_directory(tmp_path / "file")
