"""Who takes part: polar-etl and its peers, as commands that write to a folder of their own."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

from benchmarks.measure import Contestant

PEERS = {
    "python": ("in_python", "polar_etl", "out"),
    "polars": ("polars_lines", "polars", "out.parquet"),
    "duckdb": ("duckdb_copy", "duckdb", "out.parquet"),
    "sklearn": ("sklearn_partial_fit", "sklearn", "out.parquet"),
    "pandas": ("pandas_chunks", "pandas", "out.parquet"),
    "dask": ("dask_frame", "dask.dataframe", "out"),
    "spark": ("spark_local", "pyspark", "out"),
    "copy": ("polars_copy", "polars", "out.parquet"),
}
"""By name: module in `benchmarks.peers`, what must be importable, and what it writes."""
OF_VECTORS = {
    "vectors in memory": ("vectors_in_memory", "polars", "out.parquet"),
    "vectors in batches": ("vectors_in_batches", "pyarrow", "out.parquet"),
}
"""The same, for embeddings."""


def ours(source: Path, scratch: Path, limit: str, *more: str) -> Contestant:
    """Return `polar-etl normalize` under a memory limit, with more options."""
    name = " ".join(("polar-etl", limit, *more))
    folder = scratch / name.replace(" ", "-")
    command = (*normalize(source, folder / "out", limit), *more)
    return Contestant(name, command, folder, folder / "out")


def normalize(source: Path, out: Path, limit: str) -> tuple[str, ...]:
    """Return the command `polar-etl normalize`, which prints its summary as JSON."""
    cli = (sys.executable, "-m", "polar_etl", "normalize")
    return (*cli, str(source), str(out), "--memory-limit", limit, "--json", "--quiet")


def scaler_of(contestant: Contestant) -> Path:
    """Return the scaler that a finished run of `ours` leaves."""
    return contestant.folder / "out.polar-etl" / "scaler.json"


def peer(name: str, source: Path, scratch: Path) -> Contestant:
    """Return a peer by its name in `PEERS` or `OF_VECTORS`."""
    module, _, output = (PEERS | OF_VECTORS)[name]
    folder = scratch / name.replace(" ", "-")
    words = (sys.executable, "-m", f"benchmarks.peers.{module}", str(source), str(folder / output))
    return Contestant(name, words, folder, folder / output)


def missing(name: str) -> str | None:
    """Return the library that a peer needs and that is not there."""
    library = PEERS[name][1]
    try:
        return None if find_spec(library) else library
    except ModuleNotFoundError:
        return library
