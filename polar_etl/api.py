"""The public functions. Defaults live here and nowhere else."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import pyarrow as pa

from polar_etl import pipeline
from polar_etl.errors import UsageError
from polar_etl.events import Listener, silent
from polar_etl.features import Features
from polar_etl.memory import limit_in_force, parse_size
from polar_etl.passes.streaming import fit_stream, write_stream
from polar_etl.pipeline import Control, Report
from polar_etl.planning import shapes
from polar_etl.planning.plan import Plan
from polar_etl.planning.planner import make_plan
from polar_etl.planning.selection import select
from polar_etl.planning.settings import Limits, Settings
from polar_etl.sources.discovery import find_files
from polar_etl.sources.first_look import Room
from polar_etl.sources.parquet import ParquetSource
from polar_etl.sources.streams import StreamSource
from polar_etl.statistics.scaler import Scaler
from polar_etl.statistics.standardize import InfPolicy
from polar_etl.storage.workspace import Workspace

if TYPE_CHECKING:
    import polars as pl

StrPath = str | os.PathLike[str]
Paths = StrPath | Sequence[StrPath]
DTypeName = Literal["float32", "float64"]
CheckInput = Literal["footer", "full"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """All that can be set, with its defaults."""

    columns: str | Sequence[str] | None = None
    """Names, globs or `^regex$` of the columns to normalize; None: all of numbers and vectors."""
    exclude: str | Sequence[str] | None = None
    """The same, for columns that pass through."""
    ddof: int = 0
    """0: population deviation; 1: sample deviation."""
    inf: InfPolicy = "error"
    """What to do with infinite values."""
    dtype: DTypeName | None = None
    """Output type; None: float32 from float32 and float16, float64 from everything else."""
    memory_limit: str | int | None = None
    """Such as "512MB", "2GiB" or "50%"; None: half of what the process may use."""
    threads: int | None = None
    """None: as many as the processor has for this process."""
    processes: bool | None = None
    """Whether forked processes may share the work of large tables, instead of threads of this one:
    faster, most of all for many columns. None: if this process has no other thread of Python's,
    which might hold a lock that a forked process would wait for."""
    rows_per_part: int | None = None
    """Rows of a part; None: one row group, about 32 MiB (more for wide tables)."""
    part_size: str | int | None = None
    """Decoded bytes of a part, instead of `rows_per_part`."""
    compression_level: int | None = None
    """Level of zstd, -7 to 22; None: 1, but -1 for numbers that shrink by less than an eighth: what
    repeats is found, and the rest left as it is, which is written and read faster."""
    state_dir: StrPath | None = None
    """Where manifest and scaler are kept; None: `OUT.polar-etl` beside the output."""
    overwrite: bool = False
    """Whether an earlier run's output is replaced: once all of the input could be read, or, by a
    stream, at once."""
    check_input: CheckInput = "footer"
    """What tells whether the input is still the same when a run resumes: path, size, mtime and
    footer of every file, or "full", their whole contents too."""

    def __post_init__(self) -> None:
        """Refuse what makes no sense; keep patterns as tuples, also where one stood alone.

        Raises:
            UsageError: A value is out of its range.
        """
        for name in ("columns", "exclude"):
            object.__setattr__(self, name, _patterns(name, getattr(self, name)))
        for name in ("ddof", "threads", "rows_per_part", "compression_level"):
            value = getattr(self, name)
            whole = type(value) is int or (value is None and name != "ddof")
            _require(whole, f"{name} must be a whole number, found {value!r}.")
        _require(
            self.processes is None or isinstance(self.processes, bool),
            f"processes is no bool, but {self.processes!r}.",
        )
        _require(self.ddof in (0, 1), f"ddof must be 0 or 1, found {self.ddof}.")
        _require(self.inf in ("error", "ignore", "null"), f"inf can't be {self.inf!r}.")
        _require(self.dtype in (None, "float32", "float64"), f"dtype can't be {self.dtype!r}.")
        _require(
            self.check_input in ("footer", "full"), f"check_input can't be {self.check_input!r}."
        )
        _require(self.threads is None or self.threads >= 1, "threads must be at least 1.")
        _require(
            self.rows_per_part is None or self.rows_per_part >= 1,
            "rows_per_part must be at least 1.",
        )
        _require(
            self.rows_per_part is None or self.part_size is None,
            "Give rows_per_part or part_size, not both.",
        )
        _require(
            self.compression_level is None or -7 <= self.compression_level <= 22,
            "compression_level must be -7 to 22.",
        )

    def limits(self) -> Limits:
        """Return the memory limit in bytes and the number of threads."""
        cores = len(os.sched_getaffinity(0))
        alone = threading.active_count() == 1
        forks = alone if self.processes is None else self.processes
        return Limits(limit_in_force(self.memory_limit), self.threads or cores, forks)

    def settings(self, schema: pa.Schema, scaler: Scaler | None = None) -> Settings:
        """Return what shapes the result, for a source of this schema."""
        columns = scaler.columns if scaler else select(schema, self.columns, self.exclude)
        return Settings(
            features=Features.of(schema, columns, {}),
            ddof=self.ddof if scaler is None else scaler.ddof,
            inf=self.inf if scaler is None else scaler.inf,
            dtype=self.dtype if scaler is None else scaler.dtype,
            rows_per_part=self.rows_per_part,
            part_bytes=None if self.part_size is None else parse_size(self.part_size),
            level=self.compression_level,
            scaler=None if scaler is None else scaler.digest(),
        )


def _patterns(name: str, given: object) -> tuple[str, ...] | None:
    """Return the patterns of an option."""
    if given is None:
        return None
    found = (given,) if isinstance(given, str) else given
    _require(isinstance(found, Iterable), f"{name} must be names or patterns, found {given!r}.")
    assert isinstance(found, Iterable)
    patterns = tuple(found)
    wrong = [item for item in patterns if not isinstance(item, str)]
    _require(not wrong, f"{name} must be text, found {wrong[:1]}.")
    return patterns


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise UsageError(message)


@dataclass(frozen=True, slots=True)
class Prepared:
    """A run that is planned and not begun."""

    source: ParquetSource
    settings: Settings
    plan: Plan


def prepare(
    inputs: Paths,
    options: Options,
    *,
    scaler: Scaler | None = None,
    workspace: Workspace | None = None,
    only_fits: bool = False,
) -> Prepared:
    """Read the footers, choose columns, and plan; no data is read and nothing is written.

    Args:
        inputs: The files.
        options: What was asked for.
        scaler: The one that is given.
        workspace: Where the output goes, which is no input.
        only_fits: Whether there is none.

    Raises:
        InputError: An input is missing or no Parquet, or schemas differ.
        UsageError: A column does not exist or is not numeric.
        MemoryLimitError: The memory limit is too small.
    """
    base = pipeline.memory_before_a_run()
    limits = options.limits()
    apart = [workspace.out, workspace.state] if workspace else []
    many = [inputs] if isinstance(inputs, (str, os.PathLike)) else inputs
    opened = ParquetSource.open(find_files(many, apart), Room(limits.memory, base))
    source, settings = _settled(opened, options, scaler)
    plan = pipeline.plan_run(source, settings, limits, base, only_fits=only_fits)
    return Prepared(source, settings, plan)


AnySource = TypeVar("AnySource", ParquetSource, StreamSource)


def _settled(
    source: AnySource, options: Options, scaler: Scaler | None
) -> tuple[AnySource, Settings]:
    """Return the source with the lengths of its lists, and what shapes the result."""
    schema = source.schema
    if scaler:
        scaler.require(schema)
    settings = options.settings(schema, scaler)
    columns = settings.features.columns
    source = source.with_lengths(columns, scaler.vectors if scaler else {})
    if source.lengths:
        settings = replace(settings, features=Features.of(schema, columns, source.lengths))
    return source, settings


def run(
    inputs: Paths,
    out: StrPath,
    options: Options,
    control: Control,
    *,
    scaler: Scaler | None = None,
) -> Report:
    """Normalize `inputs` into `out`, with a given scaler or one that is fitted first."""
    workspace = Workspace.at(out, options.state_dir)
    ready = prepare(inputs, options, scaler=scaler, workspace=workspace)
    return pipeline.normalize(
        ready.source,
        workspace,
        ready.settings,
        ready.plan,
        control,
        scaler=scaler,
        overwrite=options.overwrite,
        check_contents=options.check_input == "full",
    )


def normalize(
    inputs: Paths, out: StrPath, *, listener: Listener = silent, **options: Any
) -> pl.LazyFrame:
    """Standardize every numeric column of Parquet files and return a LazyFrame over the result.

    Calling it again resumes a run that was interrupted; a finished one is not repeated.

    Args:
        inputs: A file, a directory, a glob, or several of them, of one schema.
        out: Directory of the parts; must be new, empty, or of an earlier run.
        listener: Is called with every event of the run.
        **options: Fields of `Options`.

    Raises:
        PolarEtlError: One of its leaves says what is wrong and what to do.

    Example:
        >>> import polars as pl, polar_etl as pe, tempfile, pathlib
        >>> here = pathlib.Path(tempfile.mkdtemp())
        >>> frame = pl.DataFrame({"x": [1.0, 2.0, 3.0], "y": list("abc")})
        >>> frame.write_parquet(here / "in.parquet")
        >>> pe.normalize(here / "in.parquet", here / "out").collect()["x"].round(3).to_list()
        [-1.225, 0.0, 1.225]
    """
    paths = _paths(inputs)
    if paths is None:
        raise UsageError(
            f"normalize reads its input twice, so it takes paths, found {type(inputs).__name__}. "
            "Use fit and transform for a stream, or LazyFrame.polar_etl.normalize()."
        )
    run(paths, out, _options(options), Control(listener))
    return _scan(out)


def fit(source: Any, *, listener: Listener = silent, **options: Any) -> Scaler:
    """Collect the moments of every numeric column and return the scaler.

    Args:
        source: Parquet files as for `normalize`, or a LazyFrame, or anything with
            `__arrow_c_stream__`, which is read once, in batches.
        listener: Is called with every event of the run.
        **options: Fields of `Options`.

    Raises:
        InputError: The input can't be read, or holds infinite values and `inf` is "error".

    Example:
        >>> import polars as pl, polar_etl as pe
        >>> pe.fit(pl.LazyFrame({"x": [1.0, 2.0, 3.0]})).stats["mean"].item()
        2.0
    """
    chosen = _options(options)
    if (paths := _paths(source)) is not None:
        ready = prepare(paths, chosen, only_fits=True)
        return pipeline.fit(ready.source, ready.settings, ready.plan, Control(listener))
    stream, settings = _settled(StreamSource.of(source), chosen, None)
    moments = fit_stream(stream, settings.features, _stream_plan(stream, settings, chosen))
    scaler = pipeline.scaler_of(stream.schema, settings, [moments], ["the stream"])
    pipeline.warn_of_oddities(scaler, listener)
    return scaler


def transform(
    source: Any, out: StrPath, *, scaler: Scaler, listener: Listener = silent, **options: Any
) -> pl.LazyFrame:
    """Apply a fitted scaler and return a LazyFrame over the parts in `out`.

    Args:
        source: As for `fit`. Files are resumed like `normalize` resumes them; a stream is not.
            Infinite values in it become null if the scaler says so, and pass otherwise.
        out: Directory of the parts.
        scaler: Says how, and decides on `ddof`, `inf`, `dtype` and the columns.
        listener: Is called with every event of the run.
        **options: Fields of `Options` that the scaler does not decide on.

    Raises:
        PolarEtlError: One of its leaves says what is wrong and what to do.
    """
    decided = sorted(options.keys() & {"columns", "exclude", "ddof", "inf", "dtype"})
    _require(not decided, f"The scaler decides on {', '.join(decided)}: leave it out, or fit anew.")
    chosen = _options(options)
    if (paths := _paths(source)) is not None:
        run(paths, out, chosen, Control(listener), scaler=scaler)
        return _scan(out)
    stream, settings = _settled(StreamSource.of(source), chosen, scaler)
    plan = _stream_plan(stream, settings, chosen)
    workspace = Workspace.at(out, chosen.state_dir)
    write_stream(
        stream, scaler, plan, workspace, chosen.compression_level, overwrite=chosen.overwrite
    )
    return _scan(out)


def _options(given: dict[str, Any]) -> Options:
    known = [item.name for item in fields(Options)]
    for name in given:
        _require(name in known, f"There is no option {name!r}, only {', '.join(known)}.")
    return Options(**given)


def _paths(source: Any) -> list[StrPath] | None:
    """Return the paths that `source` consists of, None if it is something else."""
    if isinstance(source, (str, os.PathLike)):
        return [source]
    if hasattr(source, "__arrow_c_stream__") or not isinstance(source, (Sequence, Iterator)):
        return None
    items = list(source)
    return items if all(isinstance(item, (str, os.PathLike)) for item in items) else None


def _stream_plan(stream: StreamSource, settings: Settings, options: Options) -> Plan:
    """Return a plan for rows that nobody has counted: the memory of the stream is its own."""
    shape = shapes.shape_of(stream.schema, (), settings)
    limits = options.limits()
    return make_plan(
        shape,
        limit=max(limits.memory, 1 << 62),
        base=0,
        threads=limits.threads,
        rows_per_part=shapes.part_rows(settings, shape.nominal_output_bytes),
    )


def _scan(out: StrPath) -> pl.LazyFrame:
    import polars as pl

    return pl.scan_parquet(Path(out))
