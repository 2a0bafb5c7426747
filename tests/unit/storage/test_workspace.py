"""The output holds parts and nothing else; what is foreign is never touched."""

import os

import pytest

from polar_etl.errors import (
    OutputLockedError,
    RunFailedError,
    StateMismatchError,
    UsageError,
)
from polar_etl.storage.parts import part_name
from polar_etl.storage.workspace import Opening, Workspace

TEMPORARY = ".part-00003.parquet.0123abcd.tmp"


def tree(folder) -> set[str]:
    return {
        os.path.relpath(os.path.join(here, name), folder)
        for here, folders, names in os.walk(folder)
        for name in (*folders, *names)
    }


@pytest.fixture
def workspace(tmp_path):
    return Workspace.at(tmp_path / "out", None)


def finish(workspace, parts: int = 2) -> None:
    """Leave behind what a run leaves behind."""
    with workspace.opened(overwrite=False):
        workspace.manifest.write_bytes(b"manifest")
        workspace.scaler.write_bytes(b"scaler")
        for index in range(parts):
            (workspace.out / part_name(index)).write_bytes(b"part")


class TestPlaces:
    """Where things are."""

    def test_state_lies_beside_the_output(self, tmp_path, workspace):
        assert workspace.out == tmp_path / "out"
        assert workspace.state == tmp_path / "out.polar-etl"
        assert workspace.manifest.parent == workspace.scaler.parent == workspace.state
        assert tree(tmp_path) == set()

    def test_a_trailing_slash_and_dots_change_nothing(self, tmp_path, workspace):
        assert Workspace.at(f"{tmp_path}/out/", None) == workspace
        assert Workspace.at(f"{tmp_path}/x/../out/.", None) == workspace

    def test_a_relative_path_is_taken_from_here(self, tmp_path, workspace, monkeypatch):
        monkeypatch.chdir(tmp_path)

        assert Workspace.at("out", None) == workspace

    def test_the_state_can_lie_elsewhere(self, tmp_path):
        found = Workspace.at(tmp_path / "out", tmp_path / "elsewhere")

        assert found.state == tmp_path / "elsewhere"

    @pytest.mark.parametrize("state", ["out", "out/state", "."])
    def test_the_state_must_not_lie_in_the_output_or_above_it(self, tmp_path, state):
        with pytest.raises(UsageError, match="one in the other"):
            Workspace.at(tmp_path / "out", tmp_path / state)

    def test_the_output_must_not_be_a_file(self, tmp_path):
        (tmp_path / "out").write_bytes(b"")

        with pytest.raises(UsageError, match="is a file"):
            Workspace.at(tmp_path / "out", None)


class TestOpening:
    """Creates what is missing, refuses what is foreign."""

    def test_creates_both_directories(self, workspace):
        with workspace.opened(overwrite=False) as opening:
            assert not opening.resumed
            assert workspace.out.is_dir()
            assert workspace.state.stat().st_mode & 0o777 == 0o700
            assert workspace.scratch.is_dir()

    def test_creates_missing_parents(self, tmp_path):
        deep = Workspace.at(tmp_path / "a" / "b" / "out", tmp_path / "c" / "state")

        with deep.opened(overwrite=False):
            assert deep.out.is_dir()

    def test_takes_an_empty_directory(self, workspace):
        workspace.out.mkdir()

        with workspace.opened(overwrite=False) as opening:
            assert not opening.resumed

    def test_finds_an_earlier_run(self, workspace):
        finish(workspace)

        with workspace.opened(overwrite=False) as opening:
            assert opening.resumed
            assert workspace.part_files() == [part_name(0), part_name(1)]

    def test_holds_the_lock(self, workspace):
        with (
            workspace.opened(overwrite=False),
            pytest.raises(OutputLockedError),
            workspace.opened(overwrite=True),
        ):
            pass

    def test_removes_unfinished_parts_of_an_earlier_run(self, workspace):
        finish(workspace)
        (workspace.scratch / TEMPORARY).write_bytes(b"half")
        (workspace.scratch / "mine.txt").write_bytes(b"kept")

        with workspace.opened(overwrite=False):
            assert os.listdir(workspace.scratch) == ["mine.txt"]

    @pytest.mark.parametrize("overwrite", [False, True])
    def test_sweeps_what_killed_runs_have_left_half_written(self, workspace, overwrite):
        finish(workspace)
        half = [
            workspace.state / ".manifest.db.89abcdef.tmp",
            workspace.state / ".scaler.json.01234567.tmp",
            workspace.out / TEMPORARY,
        ]
        for path in half:
            path.write_bytes(b"half")
        (workspace.state / ".mine.json.01234567.tmp").write_bytes(b"kept")

        with workspace.opened(overwrite=overwrite):
            assert not any(path.exists() for path in half)
            assert (workspace.state / ".mine.json.01234567.tmp").exists()

    @pytest.mark.parametrize("overwrite", [False, True])
    @pytest.mark.parametrize("name", ["notes.txt", ".hidden", "data.parquet", "part-1.parquet"])
    def test_refuses_foreign_files_and_leaves_no_trace(self, tmp_path, workspace, name, overwrite):
        workspace.out.mkdir()
        (workspace.out / name).write_bytes(b"precious")
        before = tree(tmp_path)

        with (
            pytest.raises(StateMismatchError, match="no manifest knows"),
            workspace.opened(overwrite=overwrite),
        ):
            pass

        assert tree(tmp_path) == before
        assert (workspace.out / name).read_bytes() == b"precious"

    def test_refuses_parts_that_no_manifest_knows(self, tmp_path, workspace):
        workspace.out.mkdir()
        (workspace.out / part_name(0)).write_bytes(b"precious")

        with (
            pytest.raises(StateMismatchError, match="--overwrite"),
            workspace.opened(overwrite=False),
        ):
            pass

        assert tree(tmp_path) == {"out", f"out/{part_name(0)}"}

    def test_refuses_a_state_directory_that_is_a_symlink(self, tmp_path, workspace):
        (tmp_path / "elsewhere").mkdir()
        (tmp_path / "elsewhere" / "manifest.db").write_bytes(b"precious")
        workspace.state.symlink_to("elsewhere")
        mode = (tmp_path / "elsewhere").stat().st_mode

        with (
            pytest.raises(StateMismatchError, match="symbolic link"),
            workspace.opened(overwrite=True),
        ):
            pass

        assert tree(tmp_path / "elsewhere") == {"manifest.db"}
        assert (tmp_path / "elsewhere").stat().st_mode == mode
        assert not workspace.out.exists()

    def test_replaces_scratch_that_is_a_symlink(self, tmp_path, workspace):
        finish(workspace)
        (tmp_path / "elsewhere").mkdir()
        (tmp_path / "elsewhere" / TEMPORARY).write_bytes(b"precious")
        scratch = workspace.scratch
        scratch.rmdir()
        scratch.symlink_to(tmp_path / "elsewhere")

        with workspace.opened(overwrite=False):
            assert scratch.is_dir()
            assert not scratch.is_symlink()

        assert tree(tmp_path / "elsewhere") == {TEMPORARY}

    def test_what_can_not_be_created_is_a_failed_run(self, tmp_path):
        (tmp_path / "file").write_bytes(b"")
        nowhere = Workspace.at(tmp_path / "file" / "out", None)

        with (
            pytest.raises(RunFailedError, match="can't be written"),
            nowhere.opened(overwrite=False),
        ):
            pass
        assert tree(tmp_path) == {"file"}

    def test_a_failure_before_the_run_rolls_back_what_was_created(self, tmp_path):
        (tmp_path / "file").write_bytes(b"")
        nowhere = Workspace.at(tmp_path / "file" / "out", tmp_path / "a" / "b")

        with pytest.raises(RunFailedError), nowhere.opened(overwrite=False):
            pass
        assert tree(tmp_path) == {"file"}

    def test_a_failure_inside_keeps_what_was_done(self, workspace):
        def run():
            with workspace.opened(overwrite=False):
                (workspace.out / part_name(0)).write_bytes(b"part")
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            run()

        assert workspace.part_files() == [part_name(0)]


class TestOverwriting:
    """Replaces parts, manifest and scaler of an earlier run, and nothing else, when told to."""

    def test_keeps_the_earlier_run_until_it_is_promoted(self, workspace):
        finish(workspace)
        workspace.manifest.with_name("manifest.db-wal").write_bytes(b"log")
        before = tree(workspace.out)

        with workspace.opened(overwrite=True) as opening:
            assert (opening.manifest, opening.resumed) == (workspace.draft, False)
            assert tree(workspace.out) == before
            assert workspace.manifest.exists()
            workspace.draft.write_bytes(b"draft")
            workspace.promote()
            assert os.listdir(workspace.out) == []
            assert workspace.manifest.read_bytes() == b"draft"
            assert not workspace.draft.exists()
            assert not workspace.manifest.with_name("manifest.db-wal").exists()
            assert not workspace.scaler.exists()

    def test_is_discarded_and_the_earlier_run_is_as_it_was(self, tmp_path, workspace):
        finish(workspace)
        (workspace.state / "lock").touch()
        before = tree(tmp_path)

        with workspace.opened(overwrite=True) as opening:
            workspace.draft.write_bytes(b"draft")
            workspace.discard(opening)

        assert tree(tmp_path) == before
        assert workspace.manifest.read_bytes() == b"manifest"

    @pytest.mark.parametrize("name", ["draft", "manifest"])
    def test_goes_on_with_what_it_began(self, workspace, name):
        finish(workspace)
        workspace.draft.write_bytes(b"draft")
        path = getattr(workspace, name)

        with workspace.opened(overwrite=True, goes_on=path.__eq__) as opening:
            assert (opening.manifest, opening.resumed) == (path, True)
            assert path.exists()

    def test_a_draft_with_a_log_is_not_promoted(self, workspace):
        finish(workspace)

        with workspace.opened(overwrite=True):
            workspace.draft.write_bytes(b"draft")
            workspace.draft.with_name("draft.db-wal").write_bytes(b"log")
            with pytest.raises(RunFailedError):
                workspace.promote()

        assert workspace.manifest.read_bytes() == b"manifest"

    def test_removes_parts_that_no_manifest_knows(self, workspace):
        workspace.out.mkdir()
        (workspace.out / part_name(7)).write_bytes(b"part")

        with workspace.opened(overwrite=True) as opening:
            opening.manifest.write_bytes(b"draft")
            workspace.promote()
            assert os.listdir(workspace.out) == []

    def test_touches_nothing_when_a_foreign_file_is_there(self, workspace):
        finish(workspace)
        (workspace.out / "notes.txt").write_bytes(b"precious")
        before = tree(workspace.out)

        with pytest.raises(StateMismatchError), workspace.opened(overwrite=True):
            pass

        assert tree(workspace.out) == before
        assert workspace.manifest.read_bytes() == b"manifest"

    def test_keeps_other_files_of_the_state_directory(self, workspace):
        finish(workspace)
        (workspace.state / "run.log").write_bytes(b"precious")

        with workspace.opened(overwrite=True):
            assert (workspace.state / "run.log").read_bytes() == b"precious"

    def test_removes_a_symlink_and_not_its_target(self, tmp_path, workspace):
        finish(workspace, parts=0)
        (tmp_path / "target").write_bytes(b"precious")
        (workspace.out / part_name(0)).symlink_to(tmp_path / "target")

        with workspace.opened(overwrite=True) as opening:
            opening.manifest.write_bytes(b"draft")
            workspace.promote()
            assert os.listdir(workspace.out) == []

        assert (tmp_path / "target").read_bytes() == b"precious"


class TestDiscarding:
    """A run that found nothing to do right leaves no trace."""

    def test_removes_all(self, tmp_path, workspace):
        finish(workspace)

        workspace.discard(Opening((workspace.state, workspace.out), workspace.manifest, False))

        assert tree(tmp_path) == set()

    def test_keeps_foreign_files(self, tmp_path, workspace):
        finish(workspace)
        (workspace.out / "notes.txt").write_bytes(b"precious")

        workspace.discard(Opening((workspace.state, workspace.out), workspace.manifest, False))

        assert tree(tmp_path) == {"out", "out/notes.txt"}


def test_part_files_are_sorted_and_only_parts(workspace):
    assert workspace.part_files() == []
    workspace.out.mkdir()
    for name in (part_name(10), part_name(2), "x.parquet", TEMPORARY):
        (workspace.out / name).write_bytes(b"")

    assert workspace.part_files() == [part_name(2), part_name(10)]
