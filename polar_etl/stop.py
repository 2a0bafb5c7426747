"""How a running pipeline is asked to stop: between two batches, never inside one."""

from __future__ import annotations

from polar_etl.errors import InterruptedRunError, PolarEtlError, RunFailedError, TerminatedRunError
from polar_etl.memory import PeakSampler, format_size


class Stop:
    """Remembers the first reason to stop."""

    def __init__(self) -> None:
        self._error: PolarEtlError | None = None

    def interrupt(self) -> None:
        """Ask for a stop as Ctrl-C does."""
        self._error = self._error or InterruptedRunError("Interrupted: what is finished is safe.")

    def terminate(self) -> None:
        """Ask for a stop as SIGTERM does."""
        self._error = self._error or TerminatedRunError("Terminated: what is finished is safe.")

    def watch(self, sampler: PeakSampler) -> None:
        """Ask for a stop if the memory limit was crossed."""
        if sampler.exceeded and self._error is None:
            self._error = RunFailedError(
                f"The memory limit of {format_size(sampler.limit)} was crossed: "
                f"{format_size(sampler.peak)} were in use. Finished parts are safe. This is a "
                "fault of polar-etl: please report the output of 'polar-etl plan' for this input."
            )

    @property
    def requested(self) -> bool:
        """Whether no further batch may begin."""
        return self._error is not None

    def check(self) -> None:
        """Raise the reason to stop, if there is one."""
        if self._error is not None:
            raise self._error
