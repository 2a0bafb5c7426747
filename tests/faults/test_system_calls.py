"""Killed at, or failing in, any system call that changes the disk: nothing is ever lost.

The calls of an undisturbed run are counted; then the run is repeated once per call, with the fault
injected there. By default a fixed choice of calls is taken, with `-m slow` every one.

strace counts the calls of each thread on its own, so the Nth call of a kind is the one of whichever
thread comes to its Nth first.
"""

from __future__ import annotations

import shlex
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest
from support import cli, tables, tracing, trees

import polar_etl as pe

HOW = ("--rows-per-part", 300, "--threads", 1, "--quiet")
COMMAND = ("normalize", "data", "out", *HOW)
DEFAULT_KILLS, DEFAULT_ERRORS = 8, 8


class Scene:
    """A folder with the input, its undisturbed result, and the calls that the run made."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.out = folder / "out"
        table = tables.mixed(800)
        tables.write(folder / "data" / "1.parquet", table.slice(0, 500), row_group_size=200)
        tables.write(folder / "data" / "2.parquet", table.slice(500))
        pe.normalize(folder / "data", self.out, rows_per_part=300)
        self.expected = trees.result(self.out)
        self._calls: dict[tuple[str, ...], list[tracing.Call]] = {}
        self.clean()

    def clean(self) -> None:
        for path in (self.out, trees.state_of(self.out)):
            shutil.rmtree(path, ignore_errors=True)

    def calls(self, names: tuple[str, ...]) -> list[tracing.Call]:
        """Return the calls of these names that an undisturbed run makes."""
        while names not in self._calls:
            self.clean()
            found = tracing.census(self.folder, *COMMAND, names=names)
            assert trees.result(self.out) == self.expected
            self.clean()
            # a run whose byte code is all cached opens the same files every time
            if not any(".pyc." in call.text for call in found):
                self._calls[names] = found
        return self._calls[names]

    def assert_invariants(self, where: str) -> list[tuple[object, ...]]:
        """Check what must hold at any time; return the batches that count as finished."""
        parts, digests = self.expected[0], {}
        for name in trees.names(self.out) if self.out.exists() else ():
            if name.startswith("part-"):
                assert (self.out / name).read_bytes() == parts[name], (
                    f"{name} is not whole: {where}"
                )
                digests[name] = len(parts[name])
        rows = trees.rows_as_found(self.out)
        for row in rows:
            part, size = row[trees.COLUMNS.index("part")], row[trees.COLUMNS.index("bytes_out")]
            if part is not None:
                assert digests.get(part) == size, f"the manifest runs ahead with {part}: {where}"
        return rows

    def assert_resumes(self, rows: list[tuple[object, ...]], where: str) -> None:
        """Check that the same command ends well and keeps what was finished."""
        resumed = cli.run(*COMMAND, cwd=self.folder)
        assert resumed.code == 0, f"can't be resumed after {where}: {resumed}"
        resumed.mannered()
        assert trees.result(self.out) == self.expected, where
        after = trees.batch_rows(self.out)
        again = [row for row in rows if row not in after]
        assert not again, f"computed again after {where}: {again}"
        assert trees.leftovers(self.out) == [], where


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    tracing.require()
    return Scene(tmp_path_factory.mktemp("scene"))


@pytest.fixture(autouse=True)
def _clean(scene):
    scene.clean()


def moments_to_kill(calls: list[tracing.Call]) -> list[tuple[str, int]]:
    """Return every (name, N) that is reached, in the order in which a run comes to them."""
    return list(dict.fromkeys((call.name, call.nth) for call in calls))


def spread(items: list, wanted: int) -> list:
    """Return about `wanted` of `items`: evenly spread, and the last of every kind."""
    step = max(len(items) // wanted, 1)
    kinds = {item[0]: item for item in items}
    chosen = {*items[::step], *kinds.values()}
    return [item for item in items if item in chosen]


def kill_and_resume(scene: Scene, name: str, nth: int) -> bool:
    outcome, where = tracing.disturbed(scene.folder, name, str(nth), "signal=SIGKILL", *COMMAND)
    where = f"SIGKILL at {name} number {nth}: {where}"
    killed = outcome.code in (-9, 137)
    assert killed or outcome.code == 0, f"{where}: {outcome}"
    scene.assert_resumes(scene.assert_invariants(where), where)
    scene.clean()
    return killed


def survive(scene: Scene, moments: list[tuple[str, int]]) -> tuple[int, list[str]]:
    """Kill at each of these moments; return how often that hit, and what went wrong.

    On a busy machine the last call of a kind may not come: then the one before it is taken.
    """
    killed, failures = 0, []
    for name, nth in moments:
        scene.clean()
        try:
            killed += kill_and_resume(scene, name, nth) or (
                nth > 1 and kill_and_resume(scene, name, nth - 1)
            )
        except AssertionError as error:
            failures.append(str(error)[:1500])
            killed += 1
    return killed, failures


def test_the_census_knows_the_order_of_commit(scene):
    calls = scene.calls(tracing.CHANGING)
    counts = Counter(call.name for call in calls)
    assert counts["rename"] >= 4
    assert counts["fsync"] >= 8
    assert counts["mkdir"] >= 2
    for part in ("part-00000.parquet", "part-00002.parquet"):
        (named,) = [
            i
            for i, c in enumerate(calls)
            if c.name == "rename" and f'{part}"' in c.text.split(",")[-1]
        ]
        before = [c for c in calls[:named] if part in c.text]
        assert [c.name for c in before][-1] == "fsync", "contents are not on disk before the rename"
        thread = calls[named].thread  # another one may record an earlier part meanwhile
        mine = [c for c in calls[named + 1 :] if c.thread == thread]
        after = [c for c in mine if c.name in ("fsync", "fdatasync", "rename")]
        assert after[0].name == "fsync", "the new name is not on disk before the next step"
        assert "/out>" in after[0].text


@pytest.mark.parametrize("third", range(3))
def test_killed_at_chosen_calls(scene, third):
    chosen = spread(moments_to_kill(scene.calls(tracing.CHANGING)), DEFAULT_KILLS)[third::3]
    killed, failures = survive(scene, chosen)
    assert not failures, "\n\n".join(failures)
    assert killed > 0.8 * len(chosen)


@pytest.mark.slow
def test_killed_at_every_call(scene):
    every = moments_to_kill(scene.calls(tracing.CHANGING))
    killed, failures = survive(scene, every)
    assert not failures, "\n\n".join(failures)
    assert killed > 0.9 * len(every)


@pytest.mark.slow
def test_killed_again_and_again_while_resuming(scene):
    for number in range(40):
        name, nth = (("pwrite64", "fsync", "fdatasync", "write")[number % 4], 1 + number % 5)
        tracing.disturbed(scene.folder, name, str(nth), "signal=SIGKILL", *COMMAND)
        rows = scene.assert_invariants(f"{name} {nth}")
    scene.assert_resumes(rows, "forty kills")


def overwriting(scene: Scene) -> tuple[object, ...]:
    """Put an output of other settings there; return the command that overwrites it."""
    scene.clean()
    cli.run(*COMMAND, "--ddof", 1, cwd=scene.folder).expect(0)
    return (*COMMAND, "--overwrite")


def assert_replaced(scene: Scene, command: Sequence[object], where: str) -> None:
    done = cli.run(*command, cwd=scene.folder)
    assert done.code == 0, f"{where}: {done}"
    assert trees.result(scene.out) == scene.expected, where
    assert trees.leftovers(scene.out) == [], where


def calls_that_overwrite(scene: Scene) -> list[tuple[str, int]]:
    calls = tracing.census(scene.folder, *overwriting(scene))
    assert trees.result(scene.out) == scene.expected
    return moments_to_kill(calls)


def kill_overwriting(scene: Scene, moments: list[tuple[str, int]]) -> list[str]:
    failures = []
    for name, nth in moments:
        command = overwriting(scene)
        _, where = tracing.disturbed(scene.folder, name, str(nth), "signal=SIGKILL", *command)
        try:
            assert_replaced(scene, command, f"SIGKILL at {name} number {nth}: {where}")
        except AssertionError as error:
            failures.append(str(error)[:1500])
    return failures


def test_overwriting_is_killed_at_chosen_calls(scene):
    failures = kill_overwriting(scene, spread(calls_that_overwrite(scene), DEFAULT_KILLS))
    assert not failures, "\n\n".join(failures)


@pytest.mark.slow
def test_overwriting_is_killed_at_every_call(scene):
    failures = kill_overwriting(scene, calls_that_overwrite(scene))
    assert not failures, "\n\n".join(failures)


@pytest.mark.parametrize(("name", "nth"), [("ftruncate", 1), ("pwrite64", 1), ("pwrite64", 5)])
def test_overwriting_fails_and_the_command_to_go_on_works(scene, name, nth):
    command = overwriting(scene)
    failed, where = tracing.disturbed(scene.folder, name, str(nth), "error=ENOSPC", *command)
    failed.expect(1)
    line = next(line for line in failed.stderr.splitlines() if line.startswith("To go on: "))
    assert_replaced(scene, shlex.split(line.removeprefix("To go on: "))[1:], where)


ERRORS = {
    "write": ("ENOSPC", "EIO", "EDQUOT"),
    "pwrite64": ("ENOSPC", "EIO", "EDQUOT"),
    "fsync": ("EIO", "ENOSPC"),
    "fdatasync": ("EIO", "ENOSPC"),
    "rename": ("EIO", "ENOSPC", "EDQUOT"),
    "mkdir": ("ENOSPC", "EDQUOT", "EIO"),
    "ftruncate": ("EIO", "ENOSPC"),
    "openat": ("EMFILE", "ENOSPC", "EIO", "EDQUOT"),
}


def failures_to_inject(scene: Scene) -> list[tuple[str, int, str]]:
    """Return every (name, N, error), for calls on our directories only."""
    ours = (f"{scene.out}/", f"{scene.out}>", f'{scene.out}"', str(trees.state_of(scene.out)))
    first: dict[tuple[str, int], tracing.Call] = {}
    for call in scene.calls(tuple(ERRORS)):
        first.setdefault((call.name, call.nth), call)
    found = [key for key, call in first.items() if any(path in call.text for path in ours)]
    return [(name, nth, error) for name, nth in found for error in ERRORS[name]]


def fail_and_resume(scene: Scene, name: str, nth: int, error: str) -> None:
    outcome, where = tracing.disturbed(scene.folder, name, str(nth), f"error={error}", *COMMAND)
    where = f"{error} at {name} number {nth}: {where}"
    assert outcome.code in (0, 1, 4), f"{where}: {outcome}"
    if "write(2<" not in where:  # there the message itself was lost
        outcome.mannered()
    if outcome.code == 1 and "write(2<" not in where:
        assert "To go on: polar-etl normalize data out" in outcome.stderr, where
    rows = scene.assert_invariants(where)
    assert trees.leftovers(scene.out) == [], f"{where}: {outcome}"
    if "manifest" not in where and scene.out.exists():
        parts = {name for name in trees.names(scene.out) if name.startswith("part-")}
        told = {row[trees.COLUMNS.index("part")] for row in rows} - {None}
        assert parts == told, f"parts that no row tells of: {where}"
    if outcome.code == 0:
        assert trees.result(scene.out) == scene.expected, where
    scene.assert_resumes(rows, where)
    scene.clean()


@pytest.mark.parametrize("third", range(3))
def test_failing_in_chosen_calls(scene, third):
    every = failures_to_inject(scene)
    step = max(len(every) // DEFAULT_ERRORS, 1)
    step += step % 2 == 0  # so that all the kinds of errors have their turn
    failures = []
    for name, nth, error in every[::step][third::3]:
        scene.clean()
        try:
            fail_and_resume(scene, name, nth, error)
        except AssertionError as failure:
            failures.append(f"{name} {nth} {error}: {str(failure)[:1500]}")
    assert not failures, "\n\n".join(failures)


@pytest.mark.slow
def test_failing_in_every_call(scene):
    failures = []
    for name, nth, error in failures_to_inject(scene):
        scene.clean()
        try:
            fail_and_resume(scene, name, nth, error)
        except AssertionError as failure:
            failures.append(f"{name} {nth} {error}: {str(failure)[:1500]}")
    assert not failures, "\n\n".join(failures)


@pytest.mark.parametrize("name", ["fsync", "fdatasync"])
def test_a_disk_that_never_syncs_again(scene, name):
    outcome, where = tracing.disturbed(scene.folder, name, "3+", "error=EIO", *COMMAND)
    outcome.expect(1)
    rows = scene.assert_invariants(where)
    assert trees.leftovers(scene.out) == [], where
    scene.assert_resumes(rows, where)


def test_a_failed_sync_is_not_tried_again(scene):
    sync = next(
        call
        for call in scene.calls(tracing.CHANGING)
        if call.name == "fsync" and "part-00000.parquet" in call.text
    )
    log = scene.folder / "sync.log"
    before = ["strace", "-f", "-y", "-qq", "-o", str(log), "-e", "trace=fsync"]
    inject = ["-e", f"inject=fsync:error=EIO:when={sync.nth}"]
    cli.run(*COMMAND, cwd=scene.folder, before=[*before, *inject]).expect(1)
    lines = [line for line in log.read_text().splitlines() if "part-" in line]
    failed = [line for line in lines if "INJECTED" in line]
    for line in failed:
        path = line.split("<")[1].split(">")[0]
        assert sum(path in other for other in lines) == 1, lines
