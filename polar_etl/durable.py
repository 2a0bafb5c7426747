"""Files that are on disk when we say so: fsync, then rename, then fsync of the directory."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from polar_etl.errors import UsageError, describe

_TEMPORARY = re.compile(r"\.(.+)\.[0-9a-f]{8}\.tmp", re.DOTALL)


def sync_file(path: Path) -> None:
    """Wait until the contents of `path` are on disk. A failure is final: never call it again."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_directory(path: Path) -> None:
    """Wait until the names in the directory `path` are on disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def is_regular(path: Path) -> bool:
    """Tell whether `path` itself is a regular file: no link to one, no pipe, no directory."""
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except FileNotFoundError:
        return False


def require_place(path: Path, apart_from: Iterable[Path] = ()) -> None:
    """Check that a file may be created at `path`, or replaced there, before long work for it.

    Raises:
        UsageError: It is one of the files `apart_from`, or a directory, device or pipe, or its
            folder does not exist.
    """
    if os.path.realpath(path) in {os.path.realpath(other) for other in apart_from}:
        raise UsageError(f"{describe(str(path))} is read, too: choose another file to write.")
    if path.exists() and not path.is_file():
        raise UsageError(f"{describe(str(path))} is not a regular file: choose another.")
    if not path.parent.is_dir():
        raise UsageError(f"{describe(str(path.parent))} is no directory: create it first.")


def make_directory(path: Path) -> list[Path]:
    """Create `path` and what is missing above it, durably; return the created, outermost first."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    for folder in reversed(missing):
        folder.mkdir()
        sync_directory(folder.parent)
    return missing[::-1]


def create_temporary(folder: Path, name: str, mode: int = 0o666) -> Path:
    """Create an empty file in `folder` that is to be called `name` when it is whole."""
    temporary = folder / f".{name}.{os.urandom(4).hex()}.tmp"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    os.close(os.open(temporary, flags, mode))
    return temporary


def is_temporary(name: str, of: Callable[[str], bool]) -> bool:
    """Tell whether `name` is one that `create_temporary` gives to a file that `of` accepts."""
    match = _TEMPORARY.fullmatch(name)
    return match is not None and of(match.group(1))


def sweep(folder: Path, of: Callable[[str], bool]) -> None:
    """Remove what a killed process has left of files that `of` accepts by their name."""
    for name in os.listdir(folder):
        if is_temporary(name, of):
            (folder / name).unlink()


@contextmanager
def replacing(path: Path, mode: int = 0o666) -> Iterator[Path]:
    """Yield an empty file that becomes `path`, whole and durable, when the block ends well."""
    temporary = create_temporary(path.parent, path.name, mode)
    try:
        yield temporary
        sync_file(temporary)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def write_atomically(path: Path, content: bytes, mode: int = 0o666) -> None:
    """Write `content` to `path`: afterwards the file is the old one or the new one, whole."""
    with replacing(path, mode) as temporary:
        temporary.write_bytes(content)
