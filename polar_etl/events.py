"""What a run tells while it goes: frozen values, and the one method that listens to them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

PassName = Literal["moments", "parts", "check"]
"""The two passes, collecting moments and writing parts, and what comes between them where parts of
an earlier run are to be replaced: reading what no pass has read yet."""


@dataclass(frozen=True, slots=True)
class PassStarted:
    """A pass begins."""

    pass_name: PassName
    rows: int
    """Rows that the pass covers in all."""
    resumed_rows: int
    """Rows that an earlier run has finished already."""
    bytes_per_row: float
    """Decoded bytes of one row, for showing a rate."""


@dataclass(frozen=True, slots=True)
class BatchFinished:
    """A batch is recorded in the manifest, or was checked."""

    pass_name: PassName
    batch: int
    rows: int
    bytes_out: int
    part: str | None
    """Name of the part, None where none is written."""
    rss: int
    """Resident bytes of the process tree just after the batch."""
    peak: int
    """Largest resident bytes seen so far."""


@dataclass(frozen=True, slots=True)
class PassFinished:
    """All batches of a pass are done."""

    pass_name: PassName
    seconds: float


@dataclass(frozen=True, slots=True)
class Warned:
    """Something that the user should know and that does not stop the run."""

    message: str


Event = PassStarted | BatchFinished | PassFinished | Warned


class Listener(Protocol):
    """Anything that can be called with an event; called from the driving thread only."""

    def __call__(self, event: Event, /) -> None:
        """Take notice of `event`."""


def silent(event: Event, /) -> None:
    """Ignore every event: the listener of those who do not listen."""
