"""Errors for people: what was expected, what was found, what to do.

Every error of the package is a `PolarEtlError`, carries the exit code that the command line
answers with, and survives pickling (its only constructor argument is the message).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import ClassVar

_USER = re.compile(r"(:/{1,2})\S*@")
_QUERY = re.compile(r"(:/{1,2}[^\s?]*\?)[^\s'\"]*")


def redacted(text: str) -> str:
    """Return `text` without what may be credentials in its URLs.

    Example:
        >>> redacted("s3://key:secret@bucket/x?token=1 is no file")
        's3://***@bucket/x?*** is no file'
    """
    return _QUERY.sub(r"\1***", _USER.sub(r"\1***@", text))


class PolarEtlError(Exception):
    """Base of all errors raised on purpose by polar-etl."""

    exit_code: ClassVar[int] = 1
    """What the command line exits with when this error ends a run."""

    def __init__(self, message: str = "") -> None:
        super().__init__(redacted(message))


class RunFailedError(PolarEtlError):
    """The run stopped half-way for a reason outside the data; the same command resumes it."""

    exit_code = 1


class UsageError(PolarEtlError, ValueError):
    """An argument makes no sense: nothing was read or written."""

    exit_code = 2


class InputError(PolarEtlError, ValueError):
    """The input is unreadable, damaged, or does not satisfy what was asked of it."""

    exit_code = 4


class StateMismatchError(PolarEtlError):
    """The state beside the output belongs to another input, other settings, or is damaged."""

    exit_code = 5


class OutputLockedError(PolarEtlError):
    """Another run holds the output."""

    exit_code = 6


class MemoryLimitError(PolarEtlError, MemoryError):
    """The memory limit is too small for the plan; raised before any work."""

    exit_code = 7


class InterruptedRunError(PolarEtlError):
    """The run was asked to stop by a signal, and did so cleanly."""

    exit_code = 130


class TerminatedRunError(InterruptedRunError):
    """The run was asked to stop by SIGTERM or SIGHUP, and did so cleanly."""

    exit_code = 143


def describe(value: object, limit: int = 120) -> str:
    r"""Return `value` quoted for a terminal: control characters escaped, long text cut.

    Example:
        >>> print(describe("red \x1b[31m"))
        'red \x1b[31m'
    """
    text = repr(redacted(str(value)))
    return text if len(text) <= limit else f"{text[:limit]}…{text[0]}"


def describe_some(names: Sequence[str], most: int = 5) -> str:
    """Return the first of `names` for a terminal, and how many more there are.

    Example:
        >>> print(describe_some(["a", "b", "c"], 2))
        'a', 'b' and 1 more
    """
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(describe(name) for name in names[:most]) + more
