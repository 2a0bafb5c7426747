"""Any order of runs, kills, damage and looking, against a simple model of what must be there.

The model knows the parts of an undisturbed run, which of them were damaged since the last run, and
which batches were recorded. Kills hit a process of its own just after a random event.
"""

from __future__ import annotations

import fcntl
import multiprocessing
import os
import shutil
import signal
import tempfile
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import Phase, settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
)
from support import tables, trees

import polar_etl as pe
from polar_etl.inspection import status_of, verify
from polar_etl.storage.parts import part_name
from polar_etl.storage.workspace import Workspace

HOW = {"rows_per_part": 150, "threads": 2}
FILES, ROWS = 2, 500
PARTS = -(-FILES * ROWS // HOW["rows_per_part"])
EVENTS = 6 + FILES + 2 * PARTS
PART = trees.COLUMNS.index("part")

processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(["polar_etl.api", "polar_etl.pipeline"])


def run_and_die(source: str, out: str, event: int, overwrite: bool) -> None:
    """Normalize, and be killed when so many events have come."""
    seen = 0

    def listen(_: object) -> None:
        nonlocal seen
        seen += 1
        if seen == event:
            os.kill(os.getpid(), signal.SIGKILL)

    pe.normalize(source, out, listener=listen, overwrite=overwrite, **HOW)


def damage(path: Path, how: str) -> None:
    content = path.read_bytes()
    path.unlink()
    if how == "cut":
        path.write_bytes(content[: len(content) // 2])
    elif how == "flipped":
        middle = len(content) // 2
        path.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    elif how == "longer":
        path.write_bytes(content + b"\0")
    elif how == "link":
        path.symlink_to("/etc/hostname")


class Outputs(RuleBasedStateMachine):
    """One output directory, and what is known of it."""

    @initialize(event=st.integers(1, EVENTS))
    def begin(self, event):
        self.folder = Path(tempfile.mkdtemp(prefix="polar-etl-machine-"))
        for number in range(FILES):
            table = tables.mixed(ROWS, seed=number)
            tables.write(self.folder / "data" / f"{number}.parquet", table, row_group_size=200)
        self.source, self.out = self.folder / "data", self.folder / "out"
        pe.normalize(self.source, self.folder / "usual", **HOW)
        self.expected = trees.result(self.folder / "usual")
        self.workspace = Workspace.at(self.out, None)
        self.finished = False
        self.damaged: set[str] = set()
        self.rows: list[tuple[object, ...]] = []
        self.run_and_be_killed(event, overwrite=False)

    def teardown(self):
        if hasattr(self, "folder"):
            shutil.rmtree(self.folder)

    def check_run(self) -> None:
        """Check what a run that came to its end has left."""
        assert trees.result(self.out) == self.expected
        assert trees.leftovers(self.out) == []
        kept = [row for row in self.rows if row[PART] not in self.damaged]
        now = trees.batch_rows(self.out)
        assert [row for row in kept if row not in now] == [], "computed again"
        self.finished = True
        self.damaged, self.rows = set(), now

    @rule()
    def run(self):
        pe.normalize(self.source, self.out, **HOW)
        self.check_run()

    @rule(event=st.integers(1, EVENTS), overwrite=st.booleans())
    def run_and_be_killed(self, event, overwrite):
        before = self.rows, self.finished
        if overwrite:  # until all input is read, the earlier output stays as it is, damage too
            self.rows = []
        target = (str(self.source), str(self.out), event, overwrite)
        process = processes.Process(target=run_and_die, args=target)
        process.start()
        process.join()
        if process.exitcode == 0:  # it had little to do
            self.check_run()
            return
        assert process.exitcode == -signal.SIGKILL
        now = trees.rows_as_found(self.out)
        lost = [row for row in self.rows if row not in now]
        assert {row[PART] for row in lost} <= self.damaged, "finished batches are lost"
        known = {row[PART] for row in now}
        repaired = {name for name in self.damaged if self.is_whole(name)}
        self.damaged = {name for name in self.damaged - repaired if name in known}
        self.finished, self.rows = (now, True) == before, now
        if len([row for row in now if row[PART]]) == PARTS and not self.damaged:
            self.finished = status_of(self.workspace).finished

    def named(self) -> trees.Tree:
        """Return what bears a final name; what is half-written may be swept at any time."""
        found = trees.tree(self.out)
        return {name: content for name, content in found.items() if not name.startswith(".")}

    def is_whole(self, name: str) -> bool:
        path = self.out / name
        return (
            not path.is_symlink()
            and path.is_file()
            and (path.read_bytes() == self.expected[0][name])
        )

    @rule(
        index=st.integers(0, PARTS - 1),
        how=st.sampled_from(["gone", "cut", "flipped", "longer", "link"]),
    )
    def damage_a_part(self, index, how):
        path = self.out / part_name(index)
        if path.is_file() and not path.is_symlink():
            damage(path, how)
            self.damaged.add(path.name)

    @rule()
    def lose_the_scaler(self):
        self.workspace.scaler.unlink(missing_ok=True)

    @rule(text=st.sampled_from(["", "{}"]))
    def change_the_scaler(self, text):
        self.workspace.scaler.unlink(missing_ok=True)
        self.workspace.scaler.write_text(text)
        with pytest.raises(pe.StateMismatchError, match=r"scaler\.json"):
            pe.normalize(self.source, self.out, **HOW)
        self.workspace.scaler.unlink()
        self.rows = trees.rows_as_found(self.out)

    @rule(where=st.sampled_from(["state", "scratch", "out"]))
    def leave_something_half_written(self, where):
        folder = getattr(self.workspace, where)
        name = "scaler.json" if where == "state" else part_name(0)
        (folder / f".{name}.0123abcd.tmp").write_bytes(b"half")

    @rule()
    def look(self):
        status, verdict = status_of(self.workspace), verify(self.workspace)
        recorded = {row[PART] for row in self.rows if row[PART]}
        assert status.parts == PARTS
        assert status.parts_done == len(recorded)
        assert status.finished == self.finished
        told = {problem.partition(":")[0] for problem in verdict.problems}
        assert told >= self.damaged & recorded
        scaler = self.workspace.scaler
        wrong = not scaler.exists() or scaler.read_bytes() != self.expected[1]
        if recorded:
            assert wrong == any("scaler.json" in problem for problem in verdict.problems)
        assert bool(told) == bool(self.damaged & recorded or len(recorded) < PARTS or wrong)

    @rule()
    def run_with_other_settings(self):
        before = self.named()
        with pytest.raises(pe.StateMismatchError, match="ddof"):
            pe.normalize(self.source, self.out, ddof=1, **HOW)
        assert self.named() == before

    @rule()
    def run_beside_another_one(self):
        before = trees.tree(self.out)
        with open(self.workspace.state / "lock", "a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            with pytest.raises(pe.OutputLockedError):
                pe.normalize(self.source, self.out, overwrite=True, **HOW)
        assert trees.tree(self.out) == before

    @invariant()
    def what_bears_a_name_is_whole(self):
        if not hasattr(self, "out") or not self.out.exists():
            return
        for name in self.workspace.part_files():
            assert name in self.damaged or self.is_whole(name), f"{name} is not whole"
        for row in self.rows:
            name = row[PART]
            assert name is None or name in self.damaged or self.is_whole(name), "it runs ahead"


class TestOutputs(Outputs.TestCase):
    """Dozens of steps by default, tens of thousands in the nightly profile."""

    settings = settings(
        max_examples=settings.default.max_examples // 6,
        stateful_step_count=12,
        phases=[Phase.generate],  # shrinking takes minutes: what failed is printed as it is
    )
