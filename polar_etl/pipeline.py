"""The order of the steps: plan, fit, write, record. The only module that knows both passes."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa

from polar_etl.columns import by_column, listed
from polar_etl.durable import is_regular, write_atomically
from polar_etl.errors import (
    InputError,
    RunFailedError,
    StateMismatchError,
    UsageError,
    describe,
    describe_some,
)
from polar_etl.events import Listener, Warned, silent
from polar_etl.features import value_type
from polar_etl.memory import (
    PeakSampler,
    free_memory,
    peak_of_process,
    resident_memory,
    reuse_freed_blocks,
)
from polar_etl.passes.fitting import fit_files, refuse_infinities
from polar_etl.passes.run import Run
from polar_etl.passes.tasks import Encoder
from polar_etl.passes.writing import rehearse, write_parts
from polar_etl.planning.plan import Plan
from polar_etl.planning.planner import make_plan
from polar_etl.planning.settings import Limits, Settings
from polar_etl.planning.shapes import part_rows, shape_of
from polar_etl.sources.base import Source
from polar_etl.statistics.blocks import block_rows
from polar_etl.statistics.moments import Moments, merge_all
from polar_etl.statistics.scaler import Scaler
from polar_etl.statistics.scaler_file import library_versions
from polar_etl.stop import Stop
from polar_etl.storage.changes import file_difference, refuse_changes
from polar_etl.storage.manifest import Manifest
from polar_etl.storage.parts import MOST_PARTS
from polar_etl.storage.workspace import Workspace

_DECAY_MS = 200
"""How long jemalloc keeps freed memory, in arenas made from now on. At 1,000, its default, runs
peak up to a third higher; at 0 they spend up to twice the time in the kernel, which takes back
every buffer by itself."""
_INTERPRETER = 80 << 20
"""Bytes that Python, NumPy and PyArrow have in memory before a run (measured: 73 to 80 MB)."""
_SPARE = 0.8
"""Share of the memory which nobody uses that numbers may be kept in."""


class Report(NamedTuple):
    """What a run did."""

    rows: int
    columns: int
    normalized_columns: int
    batches: int
    """Batches of both passes, all runs together."""
    resumed_batches: int
    """Those that an earlier run had finished."""
    parts: int
    bytes_in: int
    """Bytes of the input files."""
    bytes_out: int
    """Bytes of all parts."""
    seconds: float
    memory_limit: int
    projected_peak: int
    measured_peak: int
    output: str
    nothing_to_do: bool


@dataclass(eq=False)
class Control:
    """Who watches a run and who may stop it."""

    listen: Listener = silent
    stop: Stop = field(default_factory=Stop)


def plan_run(
    source: Source, settings: Settings, limits: Limits, base: int, *, only_fits: bool = False
) -> Plan:
    """Return the plan for a run, see `make_plan`.

    Args:
        source: What is read.
        settings: What shapes the result.
        limits: What the run may use.
        base: Bytes that the process uses already.
        only_fits: Whether nothing is written.
    """
    shape = shape_of(source.schema, source.files, settings, source.held_chunks)
    return make_plan(
        shape,
        limit=limits.memory,
        base=base,
        threads=limits.threads,
        rows_per_part=part_rows(settings, shape.nominal_output_bytes),
        processes=limits.processes,
        spare=0 if only_fits or settings.scaler else int(_SPARE * free_memory()),
    )


def memory_before_a_run() -> int:
    """Return the resident bytes of this process, or what it usually has if that is more.

    So the smallest limit that a refusal names does not differ from run to run.
    """
    return max(resident_memory(), _INTERPRETER)


@contextmanager
def _running(source: Source, plan: Plan, control: Control) -> Iterator[Run]:
    """Watch memory and set PyArrow's allocator for as long as a run lasts.

    jemalloc gives memory back in time: with mimalloc, PyArrow's default, the same run peaks a
    quarter higher and spends twice the time in the kernel (measured).
    """
    reuse_freed_blocks()
    pool = pa.default_memory_pool()
    with suppress(NotImplementedError):
        pa.set_memory_pool(pa.jemalloc_memory_pool())
        pa.jemalloc_set_decay_ms(_DECAY_MS)
        pa.allocate_buffer(1)  # now the first arena is this thread's: it keeps memory as before
    try:
        with (
            PeakSampler(plan.limit) as sampler,
            closing(Run(source, plan, sampler, control.stop, control.listen)) as run,
        ):
            yield run
    except MemoryError as error:
        raise RunFailedError(f"Memory ran out: {error}. Finished parts are safe.") from None
    except pa.ArrowException as error:
        raise RunFailedError(f"{describe(str(error))[1:-1]}. Finished parts are safe.") from None
    except RuntimeError as error:
        if "new thread" not in str(error):
            raise
        raise RunFailedError(
            "No thread could be started: more processes or address space must be allowed "
            "(see ulimit). Finished parts are safe."
        ) from None
    finally:
        pa.set_memory_pool(pool)


def fit(source: Source, settings: Settings, plan: Plan, control: Control) -> Scaler:
    """Return the scaler of a source; nothing is written.

    Raises:
        InputError: The source holds infinite values and `settings.inf` is "error".
    """
    with _running(source, plan, control) as run:
        files = fit_files(run, settings.features, None)
    scaler = scaler_of(source.schema, settings, files, [file.path for file in source.files])
    warn_of_oddities(scaler, control.listen)
    return scaler


def scaler_of(
    schema: pa.Schema, settings: Settings, files: list[Moments], paths: list[str]
) -> Scaler:
    """Return the scaler of the moments of some files, merged in their order.

    Raises:
        InputError: There are infinite values and `settings.inf` is "error".
    """
    columns = settings.features.columns
    if settings.inf == "error":
        refuse_infinities(paths, settings.features.labels(), files)
    dtypes = by_column(lambda kind: str(value_type(kind)), schema)
    return Scaler(
        columns=columns,
        dtypes=tuple(dtypes[name] for name in columns),
        moments=merge_all(files, len(settings.features)),
        ddof=settings.ddof,
        inf=settings.inf,
        dtype=settings.dtype,
        vectors=settings.features.vectors,
    )


def normalize(
    source: Source,
    workspace: Workspace,
    settings: Settings,
    plan: Plan,
    control: Control,
    *,
    scaler: Scaler | None = None,
    overwrite: bool = False,
    check_contents: bool = False,
) -> Report:
    """Fit and write what is missing of an output, or only write when there is a scaler.

    Raises:
        InputError: The input can't be decoded or holds infinite values; what this run created
            is removed again.
        UsageError: There would be too many parts for names that sort by number.
        StateMismatchError: The output belongs to another input or other settings.
        OutputLockedError: Another run is writing the output.
        RunFailedError: Disk or memory failed; the same call resumes.
        InterruptedRunError: `control.stop` asked for it; the same call resumes.
    """
    started = time.perf_counter()
    rows = sum(file.rows for file in source.files)
    if plan.parts > MOST_PARTS:
        raise UsageError(
            f"{plan.parts:,} parts are more than {MOST_PARTS:,}, beyond which their names would "
            f"no longer sort by number. Use --rows-per-part {-(-rows // MOST_PARTS)} or more."
        )
    facts = {
        "input": source.fingerprint(full=check_contents),
        "settings": settings.facts(),
        "versions": library_versions(),
        "plan": {
            "rows of a part": plan.part_rows,
            "rows of a row group": plan.slab_rows,
            "rows of a block": block_rows(len(settings.features)),
        },
        "overwrites": overwrite,
        "projected_peak": plan.projected,
        "memory_limit": plan.limit,
        "parts": plan.parts,
        "rows": rows,
    }
    features = settings.features
    names, _ = listed(source.schema)

    def goes_on(path: Path) -> bool:
        return _is_interrupted(path, facts, len(features))

    with workspace.opened(overwrite=overwrite, goes_on=goes_on) as opening:
        try:
            with _running(source, plan, control) as run, ExitStack() as stack:
                path = opening.manifest
                manifest = stack.enter_context(
                    Manifest.open(path) if opening.resumed else Manifest.create(path, facts)
                )
                if opening.resumed:
                    refuse_changes(manifest, facts)
                    for name in ("projected_peak", "memory_limit", "parts", "rows"):
                        manifest.set_fact(name, facts[name])
                before = len(manifest.batches("moments"))
                read: set[str] = set()
                if scaler is None:
                    files = fit_files(run, features, manifest)
                    paths = [file.path for file in source.files]
                    scaler = scaler_of(source.schema, settings, files, paths)
                    read.update(features.columns)
                encoder = Encoder.of(source.schema, scaler, settings.level)
                if path == workspace.draft:
                    rehearse(run, encoder, [name for name in names if name not in read])
                    stack.close()
                    workspace.promote()
                    manifest = stack.enter_context(Manifest.open(workspace.manifest))
                _keep_scaler(workspace, manifest, scaler)
                warn_of_oddities(scaler, control.listen)
                present = write_parts(run, encoder, manifest, workspace)
                report = _report(run, workspace, settings, manifest, before + present)
                manifest.set_fact("finished", True)
        except InputError:
            workspace.discard(opening)
            raise
    return report._replace(seconds=time.perf_counter() - started)


def _is_interrupted(path: Path, facts: dict[str, object], width: int) -> bool:
    """Tell whether a manifest is of this very run, begun with --overwrite and not finished.

    So the same command resumes it; whatever is damaged in it is begun anew.
    """
    try:
        with Manifest.open(path, read_only=True) as manifest:
            if not manifest.fact("overwrites") or manifest.fact("finished"):
                return False
            refuse_changes(manifest, facts)
            manifest.moments(width), manifest.batches("moments"), manifest.batches("parts")
    except StateMismatchError:
        return False
    return True


def _report(
    run: Run, workspace: Workspace, settings: Settings, manifest: Manifest, present: int
) -> Report:
    """Return what a run that wrote all parts did; `present` batches were there before it."""
    run.stop.check()
    run.observe_memory()
    moments, parts = manifest.batches("moments"), manifest.batches("parts")
    return Report(
        rows=run.offsets[-1],
        columns=len(run.source.schema),
        normalized_columns=len(settings.features.columns),
        batches=len(moments) + len(parts),
        resumed_batches=present,
        parts=len(parts),
        bytes_in=sum(file.size for file in run.source.files),
        bytes_out=sum(row.bytes_out for row in parts),
        seconds=0.0,
        memory_limit=run.plan.limit,
        projected_peak=run.plan.projected,
        measured_peak=max(run.sampler.peak, peak_of_process()),
        output=str(workspace.out),
        nothing_to_do=present == len(moments) + len(parts),
    )


def _keep_scaler(workspace: Workspace, manifest: Manifest, scaler: Scaler) -> None:
    """Write the scaler into the state directory, if it is not there.

    Raises:
        StateMismatchError: It is not the one that earlier parts were written with, or was changed.
    """
    content = scaler.to_json().encode()
    digest = hashlib.blake2b(content, digest_size=16).hexdigest()
    if manifest.fact("scaler") is None:
        manifest.set_fact("scaler", digest)
    elif manifest.fact("scaler") != digest:
        raise StateMismatchError(
            "The manifest is damaged: its moments make another scaler than the one that parts "
            "were written with. Start anew with --overwrite."
        )
    path = workspace.scaler
    if not is_regular(path):
        write_atomically(path, content, 0o600)
    elif difference := file_difference(path, content):
        raise StateMismatchError(
            f"{describe(str(path))} is not the scaler of the earlier run: {difference}. Remove it, "
            "and the same command writes it again; or start anew with --overwrite."
        )


def warn_of_oddities(scaler: Scaler, listen: Listener) -> None:
    """Tell of columns whose numbers need a second look."""
    labels = scaler.features.labels()
    constant = [name for name, flat in zip(labels, scaler.is_constant(), strict=True) if flat]
    if constant:
        listen(Warned(f"Constant, so 0 in the output: {describe_some(constant)}."))
    infinite = scaler.moments.variance(scaler.ddof) == float("inf")
    huge = [name for name, over in zip(labels, infinite, strict=True) if over]
    if huge:
        listen(Warned(f"Variance beyond Float64 (the output is right): {describe_some(huge)}."))
