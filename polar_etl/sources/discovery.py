"""From what people type to a list of files."""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence
from pathlib import Path

from polar_etl.errors import InputError, UsageError, describe

_SUFFIXES = (".parquet", ".parq", ".pq")


def find_files(inputs: Sequence[str | os.PathLike[str]], apart_from: Sequence[Path]) -> list[str]:
    """Return the files that `inputs` name, in the order in which their rows are taken.

    Args:
        inputs: Files in the given order, directories (their Parquet files, sorted by path), and
            globs (sorted by path). Hidden files and those that begin with `_` are left out of
            directories.
        apart_from: Directories of the output. Files in them are left out of directories and
            globs, and refused where they are named.

    Raises:
        InputError: An input does not exist or holds no Parquet file.
        UsageError: An input lies in the output.
    """
    found: list[str] = []
    inside: dict[str, Path | None] = {}
    for item in inputs:
        text = os.fspath(item)
        if "\0" in text:
            raise UsageError(f"{describe(text)} can't be a path.")
        if Path(os.path.realpath(text)) in apart_from:
            raise UsageError(f"{describe(text)} is the output directory: choose another output.")
        files = _expand(text)
        inside |= {path: _folder_of(path, apart_from) for path in files}
        if len(files) != 1 or files[0] != text:
            others = [path for path in files if inside[path] is None]
            files = others or files[:1]  # which is refused below
        if not files:
            raise InputError(f"{describe(text)} holds no Parquet file ({', '.join(_SUFFIXES)}).")
        found += files
    if not found:
        raise UsageError("There is no input.")
    for path in found:
        if folder := inside[path]:
            raise UsageError(
                f"The input {describe(path)} lies in the output directory "
                f"{describe(str(folder))}: choose another output."
            )
    return found


def _folder_of(path: str, folders: Sequence[Path]) -> Path | None:
    real = os.path.realpath(path)
    return next((folder for folder in folders if real.startswith(os.path.join(folder, ""))), None)


def _expand(text: str) -> list[str]:
    if os.path.isdir(text):
        return sorted(_walk(text))
    if os.path.exists(text):
        return [text]
    if "://" in text:
        raise InputError(f"{describe(text)} is a URL: only local files can be read.")
    if glob.has_magic(text):
        return sorted(path for path in glob.glob(text, recursive=True) if os.path.isfile(path))
    raise InputError(f"{describe(text)} does not exist. Check the path; quote a glob.")


def _walk(folder: str) -> list[str]:
    found = []
    for here, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith((".", "_"))]
        found += [
            os.path.join(here, name)
            for name in names
            if name.lower().endswith(_SUFFIXES) and not name.startswith((".", "_"))
        ]
    return found
