"""What a run is asked to do, and what it may use."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from polar_etl.features import Features
from polar_etl.statistics.standardize import InfPolicy


@dataclass(frozen=True, slots=True)
class Settings:
    """What shapes the result. Two runs with equal settings on one input give the same bytes."""

    features: Features
    """What is normalized."""
    ddof: int
    inf: InfPolicy
    dtype: str | None
    rows_per_part: int | None
    """None for the default, which follows from the schema."""
    part_bytes: int | None
    """Decoded bytes of a part, another way to say `rows_per_part`."""
    level: int | None
    """Level of zstd; None for what the values are worth."""
    scaler: str | None = None
    """Hash of the scaler to apply; None to fit one."""

    def facts(self) -> dict[str, object]:
        """Return the settings as a small JSON value."""
        return {
            "normalized columns": list(self.features.columns),
            "--ddof": self.ddof,
            "--inf": self.inf,
            "--dtype": self.dtype,
            "--rows-per-part": self.rows_per_part,
            "--part-size": self.part_bytes,
            "--compression-level": self.level,
            "--scaler": self.scaler,
        }


class Limits(NamedTuple):
    """What a run may use. Never changes the result."""

    memory: int
    """Bytes."""
    threads: int
    processes: bool = False
    """Whether threads may be those of forked processes."""
