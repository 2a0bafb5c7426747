"""Standardize every column of a table larger than memory: resumable, exact, within a memory limit.

    import polar_etl as pe

    lf = pe.normalize("input.parquet", "out/", memory_limit="512MB")
    scaler = pe.fit("input.parquet")
    lf = pe.transform("new.parquet", "out2/", scaler=scaler)

Importing the package imports nothing else: the functions load what they need when they are first
used, and the namespace `polar_etl` of LazyFrames is registered as soon as Polars is there.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from polar_etl import _on_polars

__version__ = "0.1.0"

if TYPE_CHECKING:
    from polar_etl.api import Options, fit, normalize, transform
    from polar_etl.errors import (
        InputError,
        InterruptedRunError,
        MemoryLimitError,
        OutputLockedError,
        PolarEtlError,
        RunFailedError,
        StateMismatchError,
        UsageError,
    )
    from polar_etl.statistics.scaler import Scaler

_HOMES = {
    "Options": "api",
    "fit": "api",
    "normalize": "api",
    "transform": "api",
    "Scaler": "statistics.scaler",
}

__all__ = [
    "InputError",
    "InterruptedRunError",
    "MemoryLimitError",
    "Options",
    "OutputLockedError",
    "PolarEtlError",
    "RunFailedError",
    "Scaler",
    "StateMismatchError",
    "UsageError",
    "fit",
    "normalize",
    "transform",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES.get(name, 'errors')}"), name)


def __dir__() -> list[str]:
    return __all__


_on_polars.register_namespace()
