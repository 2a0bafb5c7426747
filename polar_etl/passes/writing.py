"""The second pass: parts that are missing, written and recorded one by one."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import accumulate, groupby, islice
from typing import Any, NamedTuple, Self

from polar_etl.columns import listed
from polar_etl.encoding.part_format import PartFormat
from polar_etl.errors import UsageError
from polar_etl.events import BatchFinished, PassFinished, PassStarted, Warned
from polar_etl.executors.forked import Work
from polar_etl.memory import give_back
from polar_etl.pages.ahead import NONE_AHEAD, Ahead
from polar_etl.passes.run import Run, Share
from polar_etl.passes.tasks import EncodedSlab, Encoder, Place, Slab
from polar_etl.planning.batches import last_end
from polar_etl.planning.plan import Plan
from polar_etl.statistics.scaler import Scaler
from polar_etl.storage.direct import Staging
from polar_etl.storage.manifest import BatchRow, Manifest
from polar_etl.storage.parts import MOST_PARTS, PartWriter, Receipt, digest_of, part_name
from polar_etl.storage.workspace import Workspace

_GIVEN_BACK = 1 << 29
"""Decoded bytes after which memory between what is in use is given back to the system."""
_COMMITTED_AT_A_TIME = 2
"""Parts brought to disk side by side, while the next ones are written."""


def damage_of(workspace: Workspace, row: BatchRow) -> str | None:
    """Return what is wrong with a recorded part, None if it is as the manifest says."""
    receipt = row.receipt()
    path = workspace.out / receipt.name
    try:
        if path.is_symlink() or not path.is_file():
            return "missing"
        if path.stat().st_size != receipt.size:
            return f"{path.stat().st_size} bytes instead of {receipt.size}"
        return None if digest_of(path) == receipt.digest else "its hash differs"
    except OSError as error:
        return f"unreadable ({error.strerror})"


def write_parts(run: Run, encoder: Encoder, manifest: Manifest, workspace: Workspace) -> int:
    """Write all parts that are not there yet; return how many were there already.

    Args:
        run: Source and plan.
        encoder: Standardizes and encodes.
        manifest: Tells the finished parts, and is told the new ones.
        workspace: Where parts go.
    """
    intact = _intact_parts(run, manifest, workspace)
    missing = [index for index in range(run.plan.parts) if index not in intact]
    total = run.offsets[-1]
    done = total - sum(_part_rows(run.plan, index, total) for index in missing)
    started = time.perf_counter()
    run.listen(PassStarted("parts", total, done, run.row_bytes))
    for _, stretch in groupby(enumerate(missing), key=lambda pair: pair[1] - pair[0]):
        _write_stretch(run, encoder, manifest, workspace, [part for _, part in stretch])
        run.stop.check()
    run.listen(PassFinished("parts", time.perf_counter() - started))
    return len(intact)


def rehearse(run: Run, encoder: Encoder, names: Sequence[str]) -> None:
    """Do all for the columns `names` that writing parts does, but write nothing.

    So input that can't be used is found while there is nothing to lose.
    """
    total = run.offsets[-1]
    started = time.perf_counter()
    run.listen(PassStarted("check", total, 0, run.row_bytes_of(names)))
    with closing(run.map(_Slabs.of(encoder, names, range(run.plan.parts)))) as results:
        for place in (encoded.place for encoded in results):
            rss, peak = run.observe_memory()
            if place.ends:
                run.listen(BatchFinished("check", place.part, place.rows, 0, None, rss, peak))
    run.stop.check()
    run.listen(PassFinished("check", time.perf_counter() - started))


def _write_stretch(
    run: Run, encoder: Encoder, manifest: Manifest, workspace: Workspace, parts: Sequence[int]
) -> None:
    """Write some neighbouring parts, reading their rows in one go."""
    with (
        closing(run.map(_Slabs.of(encoder, listed(run.source.schema)[0], parts))) as results,
        PartsWriter(workspace, encoder.form, run.staging) as writer,
    ):
        try:
            for encoded in results:
                for written in writer.append(encoded):
                    _record(run, manifest, written)
                del encoded  # or it is held until the next one is there
                run.observe_memory()
        finally:  # whatever failed, parts that are on disk are finished work
            for written in writer.finish():
                _record(run, manifest, written)


@dataclass(frozen=True, eq=False)
class _Slabs:
    """The job to encode some columns of neighbouring parts."""

    scaler: Scaler
    level: int | None
    names: Sequence[str]
    parts: Sequence[int]
    encoder: Encoder | None = None
    """That of the scaler, where this process made the job; it is made anew in others."""

    @classmethod
    def of(cls, encoder: Encoder, names: Sequence[str], parts: Sequence[int]) -> _Slabs:
        """Return the job for this encoder."""
        return cls(encoder.scaler, encoder.form.level, names, parts, encoder)

    def __reduce__(self) -> tuple[Any, ...]:
        """Return how it is made again: a schema takes longer to send than to make."""
        return _Slabs, (self.scaler, self.level, self.names, self.parts)

    @contextmanager
    def begun(self, run: Run) -> Iterator[Work[Slab, EncodedSlab]]:
        """Return the work that it comes to."""
        encoder = self.encoder or Encoder.of(run.source.schema, self.scaler, self.level)
        total = run.offsets[-1]
        first, stop = (part * run.plan.part_rows for part in (self.parts[0], self.parts[-1] + 1))
        plan = run.plan
        if plan.deals_slabs:
            lengths = (place.rows for place in _places(plan, self.parts, total))
            opened = run.shares_in_turn(self.names, list(accumulate(lengths, initial=first)))
        else:
            rows = min(first, total), min(stop, total)
            opened = run.shares_to_encode(self.scaler.features, self.names, *rows)
        with opened as shares:
            many = len(shares) if plan.deals_slabs else plan.shares
            yield Work(
                encoder.encode_slab,
                lambda: _slabs(run, shares, self.parts),
                lane=lambda slab: slab.lane,
                in_flight=plan.in_flight * max(len(shares), many) // many,
            )


def _intact_parts(run: Run, manifest: Manifest, workspace: Workspace) -> set[int]:
    rows = manifest.batches("parts")
    damaged = {row.batch: reason for row in rows if (reason := damage_of(workspace, row))}
    for batch, reason in damaged.items():
        run.listen(Warned(f"{part_name(batch)} is damaged ({reason}): it is written again."))
    if damaged:
        manifest.forget_parts(list(damaged))
    return {row.batch for row in rows if row.batch not in damaged}


def _part_rows(plan: Plan, index: int, total: int) -> int:
    return min(plan.part_rows, max(total - index * plan.part_rows, 0))


def _slabs(run: Run, shares: Sequence[Share], parts: Sequence[int]) -> Iterator[Slab]:
    """Yield the slabs of some parts, share by share."""
    since, deals = 0, run.plan.deals_slabs
    for place, ahead, turn in (_by_turns if deals else _turns)(run, parts, len(shares)):
        if run.stop.requested:
            return
        for number in turn:
            since += place.rows * run.row_bytes // (1 if deals else len(shares))
            if since >= _GIVEN_BACK:  # in every process, so that long runs peak as short ones do
                give_back()
                since = 0
            yield Slab(
                place._replace(ends=deals or number == len(shares) - 1),
                columns=shares[number].columns,
                names=shares[number].names,
                lane=shares[number].lane,
                together=run.plan.together,
                ahead=ahead,
            )


def _turns(run: Run, parts: Sequence[int], shares: int) -> Iterator[tuple[Place, Ahead, range]]:
    """Yield slabs, the rows that are decoded with each, and which shares come next."""
    plan = run.plan
    several = plan.threads if plan.parts_at_a_time > 1 else max(shares, 1)
    for places, rest in _abreast(run, parts):
        for low in range(0, shares, several):
            soon = sum(place.rows for place in places)
            for place in places:
                soon -= place.rows
                yield place, Ahead(soon, rest), range(low, min(low + several, shares))


def _by_turns(run: Run, parts: Sequence[int], shares: int) -> Iterator[tuple[Place, Ahead, range]]:
    """Yield the same where each share has all columns of every so many-th slab."""
    for number, place in enumerate(_places(run.plan, parts, run.offsets[-1])):
        turn = number % shares
        yield place, NONE_AHEAD, range(turn, turn + 1)


def _abreast(run: Run, parts: Sequence[int]) -> Iterator[tuple[list[Place], int]]:
    """Yield the slabs of some parts, those together that go abreast, and the rows held behind."""
    plan, total = run.plan, run.offsets[-1]
    lengths = (rows for file in run.source.files for rows in file.group_rows)
    ends = list(accumulate(lengths, initial=0))
    later = _places(plan, parts, total)
    first, places = parts[0] * plan.part_rows, list(islice(later, plan.abreast))
    while places:
        stops = list(accumulate((place.rows for place in places), initial=first))[1:]
        first, rest = last_end(stops, ends, plan.rest)
        many = stops.index(first) + 1
        yield places[:many], rest
        places = [*places[many:], *islice(later, many)]


def _places(plan: Plan, parts: Sequence[int], total: int) -> Iterator[Place]:
    """Yield the slabs of some parts."""
    for part in parts:
        for rows, last in slab_lengths(plan, _part_rows(plan, part, total)):
            yield Place(part, rows, last, ends=False)


def slab_lengths(plan: Plan, rows: int) -> Iterator[tuple[int, bool]]:
    """Yield (rows, whether it is the last) of each slab of a part of `rows` rows."""
    while rows > plan.slab_rows:
        yield plan.slab_rows, False
        rows -= plan.slab_rows
    yield rows, True


class Written(NamedTuple):
    """A part that is on disk."""

    part: int
    receipt: Receipt
    seconds: float
    """Of all tasks that it took."""


class _Unfinished:
    """A part that is being written."""

    def __init__(self, writer: PartWriter) -> None:
        self.writer = writer
        self.seconds = 0.0


class PartsWriter:
    """Writes encoded slabs into parts, and brings parts to disk while others are written.

    On leaving the context unfinished parts are dropped.

    Args:
        workspace: Where parts go.
        form: How they are encoded.
        staging: The memory that they are written from.
    """

    def __init__(self, workspace: Workspace, form: PartFormat, staging: Staging) -> None:
        self._workspace, self._form = workspace, form
        self._scratch, self._staging = workspace.scratch, staging
        self._unfinished: dict[int, _Unfinished] = {}
        self._pool = ThreadPoolExecutor(_COMMITTED_AT_A_TIME, thread_name_prefix="polar-etl-disk")
        self._waiting: deque[tuple[int, Future[Receipt], float]] = deque()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()
        for part in self._unfinished.values():
            part.writer.abort()

    def append(self, encoded: EncodedSlab) -> Iterator[Written]:
        """Append the next share of a slab; yield the parts that are on disk by now.

        Raises:
            UsageError: The name of its part would not sort by number. Of files this is known before
                the run, of a stream only here.
        """
        place = encoded.place
        part = self._unfinished.get(place.part) or self._begin(place.part)
        part.writer.append(encoded.encoded)
        part.seconds += encoded.seconds
        if place.ends:
            part.writer.end_group(place.rows)
        if place.ends and place.last:
            del self._unfinished[place.part]
            self._waiting.append((place.part, self._pool.submit(part.writer.commit), part.seconds))
        while self._waiting and (
            self._waiting[0][1].done() or len(self._waiting) > 2 * _COMMITTED_AT_A_TIME
        ):
            yield self._next()

    def _begin(self, number: int) -> _Unfinished:
        """Return a new part."""
        if number >= MOST_PARTS:
            raise UsageError(
                f"More than {MOST_PARTS:,} parts would be needed, and their names would no longer "
                "sort by number: put more rows into a part (rows_per_part)."
            )
        name = part_name(number)
        writer = PartWriter(self._workspace.out, self._scratch, name, self._form, self._staging)
        self._unfinished[number] = _Unfinished(writer)
        return self._unfinished[number]

    def finish(self) -> Iterator[Written]:
        """Yield the parts that were not yielded yet, once they are on disk."""
        while self._waiting:
            yield self._next()

    def _next(self) -> Written:
        part, future, seconds = self._waiting.popleft()
        return Written(part, future.result(), seconds)


def _record(run: Run, manifest: Manifest, written: Written) -> None:
    part, receipt = written.part, written.receipt
    first_row = part * run.plan.part_rows
    offsets = run.offsets
    file = max((i for i in range(len(offsets) - 1) if offsets[i] <= first_row), default=0)
    rss, peak = run.observe_memory()
    manifest.record(
        BatchRow(
            pass_name="parts",
            batch=part,
            file=file,
            first_row=first_row - offsets[file],
            rows=receipt.rows,
            seconds=written.seconds,
            bytes_in=receipt.rows * run.row_bytes,
            bytes_out=receipt.size,
            part=receipt.name,
            digest=receipt.digest,
            rss=rss,
            peak=peak,
        )
    )
    run.listen(BatchFinished("parts", part, receipt.rows, receipt.size, receipt.name, rss, peak))
