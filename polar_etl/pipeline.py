"""The order of the steps: plan, fit, write, record. The only module that knows both passes."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from polar_etl.durable import is_regular, write_atomically
from polar_etl.errors import (
    InputError,
    RunFailedError,
    StateMismatchError,
    UsageError,
    describe,
)
from polar_etl.events import Listener, Warned, silent
from polar_etl.features import Features, value_type
from polar_etl.fitting import fit_files, refuse_infinities
from polar_etl.manifest import Manifest
from polar_etl.memory import PeakSampler, peak_of_process, resident_memory
from polar_etl.moments import Moments, merge_all
from polar_etl.parts import MOST_PARTS
from polar_etl.passes import Encoder
from polar_etl.plan import Plan, Shape, make_plan
from polar_etl.run import Run
from polar_etl.scaler import Scaler, library_versions, output_type
from polar_etl.sources.base import Source, SourceFile
from polar_etl.sources.schemas import has_variable_width, leaves, width
from polar_etl.standardize import InfPolicy
from polar_etl.stop import Stop
from polar_etl.workspace import Workspace
from polar_etl.writing import rehearse, write_parts

_DECAY_MS = 200
"""How long jemalloc keeps freed memory. At 1,000, its default, runs peak up to a third higher; at
0 they spend up to twice the time in the kernel, which takes back every buffer by itself."""
_INTERPRETER = 92 << 20
"""Bytes that Python, NumPy and PyArrow have in memory before a run (measured: 80 to 93 MB)."""
_LONG_TEXT = 112
"""Bytes beyond `NOMINAL_TEXT_WIDTH` that a text is taken to have when slabs are cut."""
_VALUE_COPIES, _TEXT_COPIES = 3.5, 8
"""How often rows that are decoded from inside a row group are held (measured: 2.2 to 3, 7)."""


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
    level: int
    """Level of zstd."""
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


@dataclass(frozen=True, slots=True)
class Limits:
    """What a run may use. Never changes the result."""

    memory: int
    """Bytes."""
    threads: int
    processes: bool = False
    """Whether threads may be those of forked processes."""


@dataclass(frozen=True, slots=True)
class Report:
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


def shape_of(schema: pa.Schema, files: Sequence[SourceFile], settings: Settings) -> Shape:
    """Return what a plan needs to know of a source's schema and footers."""
    features = settings.features
    vectors = Features.of(schema, tuple(schema.names), features.vectors).vectors
    numbers = {name: value_type(schema.field(name).type) for name in schema.names}
    read = {column.name: width(column.type) for column in schema}
    read |= {name: size * width(numbers[name]) for name, size in vectors.items()}
    written = read | {
        name: vectors.get(name, 1) * _output_width(numbers[name], settings.dtype)
        for name in features.columns
    }
    others = [name for name in read if name not in vectors]
    places = frozenset().union(*(file.from_arrow for file in files))
    arrow = [schema.names[place] for place in sorted(places)]
    normalized = set(features.columns)
    text = max((_text_bytes(file) for file in files), default=0)
    words = {schema.names[place] for file in files for place in file.words}
    word_bytes = max((file.word_bytes for file in files), default=0)
    nominal, output = sum(read.values()), sum(written.values())
    plain = sum(read[name] for name in read if name not in words)
    largest = max(files, key=lambda file: file.chunks, default=None)
    return Shape(
        rows=sum(file.rows for file in files),
        largest_group=max((max(f.group_rows, default=0) for f in files), default=0),
        even_group=_even_group(files),
        files=len(files),
        columns=len(schema) if largest is None else _leaf_columns(largest, len(schema)),
        normalized=len(features),
        row_bytes=plain + text + word_bytes,
        normalized_bytes=sum(read[name] for name in features.columns),
        output_bytes=output - nominal + plain + text + word_bytes,
        nominal_output_bytes=output + sum(_more_for_text(schema.field(n).type) for n in others),
        footer_chunks=0 if largest is None else largest.chunks,
        page_bytes=max((file.page_bytes for file in files), default=0),
        lookup_bytes=max((file.lookup_bytes for file in files), default=0),
        arrow_columns=sum(leaves(schema.field(name).type) for name in arrow),
        arrow_bytes=text + sum(read[n] for n in arrow if n not in vectors and n not in words),
        stream_bytes=_TEXT_COPIES * text
        + sum(
            _stream_bytes(schema.field(n).type)
            for n in arrow
            if n not in vectors and n not in words
        ),
        passed_bytes=text
        + sum(written[n] for n in others if n not in normalized and n not in words),
        normalized_arrow=sum(n in normalized for n in arrow),
        word_columns=len(words),
        word_bytes=word_bytes,
        dictionary_bytes=max((file.dictionary_bytes for file in files), default=0),
        vectors=tuple((size, max(width(numbers[name]), 4)) for name, size in vectors.items()),
        vector_bytes=sum(read[name] for name in vectors),
        vector_output_bytes=sum(written[name] for name in vectors),
    )


def _output_width(numbers: pa.DataType, asked: str | None) -> int:
    return 4 if output_type(str(numbers), asked) == "float32" else 8


def _more_for_text(kind: pa.DataType) -> int:
    """Return what a value of variable width counts for more where slabs are cut: it may be long."""
    return _LONG_TEXT * leaves(kind) if has_variable_width(kind) else 0


def _stream_bytes(kind: pa.DataType) -> int:
    """Return what decoding one value takes; Parquet's own types are four bytes wide at least."""
    copies = _TEXT_COPIES if has_variable_width(kind) else _VALUE_COPIES
    return int(copies * max(width(kind), 4))


def _even_group(files: Sequence[SourceFile]) -> int:
    """Return the rows that all row groups have, leaving out the last of all; 0 if they differ."""
    groups = [rows for file in files for rows in file.group_rows]
    return groups[0] if groups and all(rows == groups[0] for rows in groups[:-1]) else 0


def _text_bytes(file: SourceFile) -> int:
    """Return decoded bytes per row of columns of variable width, with room for dictionaries."""
    return 3 * file.variable_bytes // max(file.rows, 1)


def _leaf_columns(file: SourceFile, columns: int) -> int:
    return file.chunks // len(file.group_rows) if file.group_rows else columns


def plan_run(source: Source, settings: Settings, limits: Limits, base: int) -> Plan:
    """Return the plan for a run, see `make_plan`."""
    shape = shape_of(source.schema, source.files, settings)
    return make_plan(
        shape,
        limit=limits.memory,
        base=base,
        threads=limits.threads,
        rows_per_part=rows_per_part(settings, shape),
        processes=limits.processes,
    )


def rows_per_part(settings: Settings, shape: Shape) -> int | None:
    """Return how many rows of a part were asked for, directly or as bytes; None if neither."""
    if settings.rows_per_part is None and settings.part_bytes is not None:
        return max(settings.part_bytes // max(shape.nominal_output_bytes, 1), 1)
    return settings.rows_per_part


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
    pool = pa.default_memory_pool()
    with suppress(NotImplementedError):
        pa.set_memory_pool(pa.jemalloc_memory_pool())
        pa.jemalloc_set_decay_ms(_DECAY_MS)
    try:
        with PeakSampler(plan.limit) as sampler:
            yield Run(source, plan, sampler, control.stop, control.listen)
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
    return Scaler(
        columns=columns,
        dtypes=tuple(str(value_type(schema.field(name).type)) for name in columns),
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
        "plan": {"rows of a part": plan.part_rows, "rows of a row group": plan.slab_rows},
        "overwrites": overwrite,
        "projected_peak": plan.projected,
        "memory_limit": plan.limit,
        "parts": plan.parts,
        "rows": rows,
    }
    features = settings.features

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
                    _refuse_changes(manifest, facts)
                    for name in ("projected_peak", "memory_limit", "parts", "rows"):
                        manifest.set_fact(name, facts[name])
                before = len(manifest.batches("moments"))
                read: set[str] = set()
                if scaler is None:
                    files = fit_files(run, features, manifest)
                    paths = [file.path for file in source.files]
                    scaler = scaler_of(source.schema, settings, files, paths)
                    read.update(features.columns)
                if path == workspace.draft:
                    encoder = Encoder.of(source.schema, scaler, settings.level)
                    rehearse(run, encoder, [n for n in source.schema.names if n not in read])
                    stack.close()
                    workspace.promote()
                    manifest = stack.enter_context(Manifest.open(workspace.manifest))
                report = _write(run, workspace, settings, manifest, scaler, before)
                manifest.set_fact("finished", True)
        except InputError:
            workspace.discard(opening)
            raise
    return replace(report, seconds=time.perf_counter() - started)


def _is_interrupted(path: Path, facts: dict[str, object], width: int) -> bool:
    """Tell whether a manifest is of this very run, begun with --overwrite and not finished.

    So the same command resumes it; whatever is damaged in it is begun anew.
    """
    try:
        with Manifest.open(path, read_only=True) as manifest:
            if not manifest.fact("overwrites") or manifest.fact("finished"):
                return False
            _refuse_changes(manifest, facts)
            manifest.moments(width), manifest.batches("moments"), manifest.batches("parts")
    except StateMismatchError:
        return False
    return True


def _write(
    run: Run,
    workspace: Workspace,
    settings: Settings,
    manifest: Manifest,
    scaler: Scaler,
    before: int,
) -> Report:
    """Write what is missing of the output; `before` batches of moments were there already."""
    _keep_scaler(workspace, manifest, scaler, run.listen)
    warn_of_oddities(scaler, run.listen)
    encoder = Encoder.of(run.source.schema, scaler, settings.level)
    present = write_parts(run, encoder, manifest, workspace)
    run.stop.check()
    run.observe_memory()
    moments, parts = manifest.batches("moments"), manifest.batches("parts")
    return Report(
        rows=run.offsets[-1],
        columns=len(run.source.schema),
        normalized_columns=len(settings.features.columns),
        batches=len(moments) + len(parts),
        resumed_batches=before + present,
        parts=len(parts),
        bytes_in=sum(file.size for file in run.source.files),
        bytes_out=sum(row.bytes_out for row in parts),
        seconds=0.0,
        memory_limit=run.plan.limit,
        projected_peak=run.plan.projected,
        measured_peak=max(run.sampler.peak, peak_of_process()),
        output=str(workspace.out),
        nothing_to_do=before + present == len(moments) + len(parts),
    )


def _keep_scaler(
    workspace: Workspace, manifest: Manifest, scaler: Scaler, listen: Listener
) -> None:
    """Write the scaler into the state directory, also over one that was changed there.

    Raises:
        StateMismatchError: It is not the one that earlier parts were written with.
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
    if is_regular(path):
        if path.stat().st_size == len(content) and path.read_bytes() == content:
            return
        listen(Warned("scaler.json in the state directory was changed: it is written again."))
    write_atomically(path, content, 0o600)


def warn_of_oddities(scaler: Scaler, listen: Listener) -> None:
    """Tell of columns whose numbers need a second look."""
    labels = scaler.features.labels()
    constant = [name for name, flat in zip(labels, scaler.is_constant(), strict=True) if flat]
    if constant:
        listen(Warned(f"Constant, so 0 in the output: {_some(constant)}."))
    infinite = scaler.moments.variance(scaler.ddof) == float("inf")
    huge = [name for name, over in zip(labels, infinite, strict=True) if over]
    if huge:
        listen(Warned(f"Variance beyond Float64 (the output is right): {_some(huge)}."))


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(describe(name) for name in names[:5]) + more


def _refuse_changes(manifest: Manifest, facts: dict[str, object]) -> None:
    """Raise an error that says what differs between the earlier run and this one.

    Raises:
        StateMismatchError: Input, settings, versions or what shapes the parts differ.
    """
    for kind in ("input", "settings", "versions", "plan"):
        if found := list(_differences(manifest.fact(kind), facts[kind])):
            more = f" and {len(found) - 5} more differences" if len(found) > 5 else ""
            raise StateMismatchError(
                f"The output was begun with other {kind}: {'; '.join(found[:5])}{more}. Repeat the "
                "earlier command, write to another directory, or start anew with --overwrite."
            )


def _identities(items: list[Any]) -> list[str]:
    """Return what tells the items of a list: the path of a file, or the item itself."""
    return [str(item.get("path")) if isinstance(item, dict) else str(item) for item in items]


def _only_in_one(before: list[str], now: list[str]) -> tuple[list[str], list[str]]:
    """Return what is in the first list alone, and what is in the second alone."""
    both = set(before) & set(now)
    return [name for name in before if name not in both], [x for x in now if x not in both]


def _differences(before: object, now: object, name: str = "") -> Iterator[str]:
    """Yield what differs; what only the earlier run has recorded is not asked for."""
    if isinstance(before, dict) and isinstance(now, dict):
        label = f"{name} {now['path']}" if "path" in now else name
        for key in now:
            old = before.get(key, "not recorded")
            if old != now[key]:
                yield from _differences(old, now[key], f"{label} {key}".strip())
    elif isinstance(before, list) and isinstance(now, list):
        names, others = _identities(before), _identities(now)
        gone, new = _only_in_one(names, others)
        if gone or new:
            lost = [f"without {_some(gone)}"] if gone else []
            yield f"{name} are now {', '.join(lost + ([f'with {_some(new)}'] if new else []))}"
        elif len(names) != len(others):
            yield f"{len(names)} {name}, now {len(others)}"
        elif names != others:
            yield f"{name} are now in another order"
        else:
            for old, item in zip(before, now, strict=True):
                yield from _differences(old, item, name)
    elif before != now:
        yield f"{describe(name)[1:-1]} was {describe(str(before))}, now {describe(str(now))}"
