"""What signals do: they stop a run between two batches, and end everything else at once."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import FrameType

    from polar_etl.errors import InterruptedRunError
    from polar_etl.stop import Stop


class Signalled(BaseException):
    """A signal has come, and there is no run to be stopped.

    Not a KeyboardInterrupt: Python would end by SIGINT, whatever exit code we ask for, once one has
    passed through code that `exec` runs (dataclasses do).
    """


class Signals:
    """The first signal of a command, and who is to be told of it.

    Handlers stay from before the first large import to the end of the process: whenever a signal
    comes, there is an exit code that is documented, and nothing is left half-written.
    """

    def __init__(self) -> None:
        self._first = 0
        self._stop: Stop | None = None
        self._heeded: list[int] = []
        self.answered = False
        """Whether a run, or a message, has taken notice of the signal."""

    def begin(self) -> None:
        """Heed SIGINT, SIGTERM and, unless it is ignored as under nohup, SIGHUP."""
        self._first, self.answered = 0, False
        self._heeded = [signal.SIGINT, signal.SIGTERM]
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
            self._heeded.append(signal.SIGHUP)
        for number in self._heeded:
            signal.signal(number, self._handle)

    def end(self) -> None:
        """Ignore what comes from now on: the command is done and the process about to end."""
        for number in self._heeded:
            signal.signal(number, signal.SIG_IGN)

    @property
    def code(self) -> int:
        """The exit code that the first signal asks for; 0 if none has come."""
        return _code(self._first) if self._first else 0

    @contextlib.contextmanager
    def stopping(self, stop: Stop) -> Iterator[None]:
        """Ask `stop` at the first signal, instead of raising `Signalled`."""
        self._stop = stop
        try:
            if self._first:  # whatever was interrupted has taken no notice
                self._ask(stop)
            yield
        finally:
            self._stop = None

    def error(self) -> InterruptedRunError:
        """Return what to say of a command that was not stopped but ended."""
        from polar_etl.errors import InterruptedRunError, TerminatedRunError

        self.answered = True
        if self._first == signal.SIGINT:
            return InterruptedRunError("Interrupted: nothing was written.")
        return TerminatedRunError("Terminated: nothing was written.")

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if self._first:
            os._exit(_code(number))
        self._first = number
        if self._stop is None:
            raise Signalled
        self._ask(self._stop)

    def _ask(self, stop: Stop) -> None:
        self.answered = True
        stop.interrupt() if self._first == signal.SIGINT else stop.terminate()


def _code(number: int) -> int:
    return 130 if number == signal.SIGINT else 143


signals = Signals()
"""Those of this process, which has one command line."""
