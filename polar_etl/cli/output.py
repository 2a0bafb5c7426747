"""How results, messages and progress are shown: results on stdout, the rest on stderr."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import logging
import os
import shlex
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from polar_etl.errors import InterruptedRunError, PolarEtlError, RunFailedError, redacted
from polar_etl.events import BatchFinished, Event, PassFinished, PassStarted, Warned
from polar_etl.memory import format_size

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer as Buffer
    from rich.progress import Progress, TaskID

logger = logging.getLogger("polar_etl")
_SECONDS_BETWEEN_LINES = 5.0
_TITLES = {
    "moments": "Collecting moments",
    "check": "Checking the input",
    "parts": "Writing parts",
}


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return json.dumps(
            {
                "message_type": "log",
                "level": record.levelname.lower(),
                "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z"),
                "message": record.getMessage(),
            }
        )


class _Lasting(io.FileIO):
    """A file that takes everything, also when its terminal or its reader is gone."""

    def write(self, content: Buffer, /) -> int:
        try:
            return super().write(content) or 0
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.fileno())
            return memoryview(content).nbytes


def outlive_stderr() -> None:
    """Let messages and bars go nowhere, rather than end the run, once stderr is closed."""
    lasting = io.BufferedWriter(_Lasting(2, "w", closefd=False))
    encoding = sys.stderr.encoding
    sys.stderr = io.TextIOWrapper(lasting, encoding, "backslashreplace", line_buffering=True)


def unshown(error: OSError) -> RunFailedError:
    """Return what to say where stdout takes nothing."""
    return RunFailedError(f"Nothing could be shown on stdout: {error.strerror}.")


def forget_stdout() -> None:
    """Let what is still to be written to stdout go nowhere."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def configure_logging(level: str, form: str, quiet: bool) -> None:
    """Send messages to stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonFormatter() if form == "json" else logging.Formatter("%(message)s"))
    logger.handlers[:] = [handler]
    logger.setLevel(logging.ERROR if quiet else level.upper())
    logger.propagate = False


def resume_command() -> str:
    """Return the command that was given, ready to be given again.

    `--overwrite` stays: it goes on with a run that it has begun, and replaces any other.
    """
    return redacted(" ".join(["polar-etl", *map(_quoted, sys.argv[1:])]))


def _quoted(word: str) -> str:
    """Quote a word for a shell, without control characters in it."""
    if word.isprintable():
        return shlex.quote(word)
    escaped = word.replace("\\", "\\\\").replace("'", "\\'")
    return f"$'{printable(escaped)}'"


def printable(text: str) -> str:
    """Return `text` with everything a terminal would obey written as escapes of its bytes."""
    return "".join(
        char
        if char.isprintable() or char == "\n"
        else "".join(f"\\x{byte:02x}" for byte in char.encode("utf-8", "surrogateescape"))
        for char in text
    )


@dataclass(eq=False)
class Output:
    """Renders one command's output, as text or as JSON Lines."""

    as_json: bool
    quiet: bool
    log_format: str = "text"
    _closed: bool = False
    _failed: OSError | None = None

    def result(self, fields: Mapping[str, Any], lines: list[str]) -> None:
        """Show the result: `fields` as the JSON summary, or `lines` as text."""
        if self.as_json:
            self.line({"message_type": "summary", **fields})
        else:
            self._print(printable("\n".join(lines)))

    def answer(self, fields: Mapping[str, Any], lines: list[str]) -> None:
        """Show a result that is all a command is for.

        Raises:
            RunFailedError: It can't be written, although somebody reads.
        """
        self.result(fields, lines)
        if self._failed is not None and self._failed.errno != errno.EPIPE:
            raise unshown(self._failed)

    def line(self, fields: Mapping[str, Any]) -> None:
        """Write one line of JSON to stdout."""
        self._print(json.dumps(fields, default=str))

    def error(self, error: PolarEtlError, *, resumable: bool) -> None:
        """Show an error on stderr, with the command that resumes the run if one does."""
        hint = f"\nTo go on: {resume_command()}" if resumable else ""
        if not resumable and isinstance(error, InterruptedRunError):
            hint = " Give the same command again."
        text = f"{error}{hint}"
        as_json = self.as_json or self.log_format == "json"
        if as_json:
            fields = {"message_type": "error", "code": error.exit_code, "message": str(error)}
            if resumable:
                fields["resume"] = resume_command()
            text = json.dumps(fields)
        print(text if as_json else printable(f"error: {text}"), file=sys.stderr, flush=True)

    def _print(self, text: str) -> None:
        if self._closed:
            return
        try:
            print(text, flush=True)
        except (OSError, ValueError) as error:  # nobody reads any more: the run goes on
            self._closed = True
            self._failed = error if isinstance(error, OSError) else None
            forget_stdout()


@contextlib.contextmanager
def progress(output: Output, limit: int) -> Iterator[Any]:
    """Yield a listener that shows progress: bars on a terminal, now and then a line elsewhere."""
    plain = output.as_json or output.log_format == "json" or not logger.isEnabledFor(logging.INFO)
    if plain or not sys.stderr.isatty() or os.environ.get("TERM") == "dumb":
        yield _Lines(output, limit)
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    with Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),  # takes what 80 columns leave for it
        TextColumn("{task.percentage:>3.0f}%"),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(compact=True),
        TextColumn("{task.fields[memory]}"),
        console=Console(stderr=True),
        expand=True,
    ) as shown:
        yield _Bars(shown, limit)


@dataclass(eq=False)
class _Rate:
    """Rows and bytes per second of a pass."""

    rows: int
    row_bytes: float
    done: int
    began_with: int
    started: float = field(default_factory=time.monotonic)

    def text(self) -> str:
        seconds = max(time.monotonic() - self.started, 1e-6)
        rows = (self.done - self.began_with) / seconds
        return f"{rows:,.0f} rows/s, {format_size(rows * self.row_bytes)}/s"

    def remaining(self) -> float:
        seconds = time.monotonic() - self.started
        return seconds * (self.rows - self.done) / max(self.done - self.began_with, 1)


def _rate(event: PassStarted) -> _Rate:
    return _Rate(event.rows, event.bytes_per_row, event.resumed_rows, event.resumed_rows)


@dataclass(eq=False)
class _Lines:
    """One plain line every few seconds; with JSON, one line per batch on stdout."""

    output: Output
    limit: int
    _current: _Rate | None = None
    _last: float = field(default_factory=time.monotonic)

    def __call__(self, event: Event, /) -> None:
        """Take notice of `event`."""
        match event:
            case Warned():
                logger.warning("warning: %s", event.message)
            case PassStarted():
                self._current = _rate(event)
                logger.debug("%s: %s rows", _TITLES[event.pass_name], event.rows)
            case BatchFinished():
                self._batch(event)
            case PassFinished():
                logger.debug("%s: done in %.1f s", _TITLES[event.pass_name], event.seconds)

    def _batch(self, event: BatchFinished) -> None:
        assert self._current is not None
        self._current.done += event.rows
        if self.output.as_json and not self.output.quiet:
            self.output.line(
                {
                    "message_type": "status",
                    "pass": event.pass_name,
                    "batch": event.batch,
                    "part": event.part,
                    "rows_done": self._current.done,
                    "rows": self._current.rows,
                    "rss": event.rss,
                    "peak": event.peak,
                }
            )
        elif time.monotonic() - self._last >= _SECONDS_BETWEEN_LINES:
            self._last = time.monotonic()
            share = 100 * self._current.done / max(self._current.rows, 1)
            logger.info(
                "%s: %.0f%%, %s, %.0f s left, memory %s of %s",
                _TITLES[event.pass_name],
                share,
                self._current.text(),
                self._current.remaining(),
                format_size(event.rss),
                format_size(self.limit),
            )


@dataclass(eq=False)
class _Bars:
    """A bar per pass."""

    shown: Progress
    limit: int
    _rates: dict[str, _Rate] = field(default_factory=dict)
    _tasks: dict[str, TaskID] = field(default_factory=dict)

    def __call__(self, event: Event, /) -> None:
        """Take notice of `event`."""
        match event:
            case Warned():
                self.shown.console.print(f"warning: {event.message}", markup=False)
            case PassStarted():
                self._rates[event.pass_name] = _rate(event)
                self._tasks[event.pass_name] = self.shown.add_task(
                    _TITLES[event.pass_name],
                    total=event.rows,
                    completed=event.resumed_rows,
                    rate="",
                    memory="",
                )
            case BatchFinished():
                rate = self._rates[event.pass_name]
                rate.done += event.rows
                self.shown.update(
                    self._tasks[event.pass_name],
                    completed=rate.done,
                    rate=rate.text(),
                    memory=f"{format_size(event.rss)} of {format_size(self.limit)}",
                )
            case PassFinished():
                pass
