"""What goes wrong with a file that is read, said so that a person can mend it."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from polar_etl.errors import InputError, PolarEtlError, RunFailedError, describe
from polar_etl.pages.headers import LongValueError

_TRANSIENT = {errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ESTALE, errno.EINTR}
"""Errors of the system that say nothing about the file."""


@contextmanager
def explained(path: str) -> Iterator[None]:
    """Turn whatever goes wrong with a file that is read into an error that says so.

    Raises:
        InputError: The file can't be read.
        RunFailedError: It can't be read just now.
    """
    try:
        yield
    except Exception as error:
        raise _explanation(path, error) from None


def _explanation(path: str, error: Exception) -> Exception:
    """Return what to raise: errors of ours and of memory as they are."""
    if isinstance(error, (PolarEtlError, MemoryError)):
        return error
    if isinstance(error, OSError) and error.errno in _TRANSIENT:
        return RunFailedError(f"{describe(path)} can't be read just now: {error.strerror}.")
    if isinstance(error, LongValueError):
        return InputError(f"{describe(path)} can't be handled: {error}; 1 GiB is too much for one.")
    reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
    if isinstance(error, FileNotFoundError):
        reason = "there is no such file"
    return InputError(
        f"{describe(path)} can't be read as Parquet: {describe(reason, 300)[1:-1]}. "
        "Check that the file is complete and not damaged or encrypted."
    )
