"""The two directories of a run: `out/` with nothing but parts, and the state beside it."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from polar_etl.durable import is_temporary, make_directory, sweep, sync_directory
from polar_etl.errors import RunFailedError, StateMismatchError, UsageError, describe
from polar_etl.storage.lock import OutputLock, directory_lock
from polar_etl.storage.manifest import COMPANIONS
from polar_etl.storage.parts import is_part_name

_STAGED = ".staged"
_URL = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]+:/")


class Opening(NamedTuple):
    """What was there when a run began, and what it has created."""

    created: tuple[Path, ...]
    """Directories that were missing, outermost first."""
    manifest: Path
    """Where the manifest of this run is, or is to be created."""
    resumed: bool
    """Whether it is there, begun by an earlier run."""


@dataclass(frozen=True, slots=True)
class Workspace:
    """Paths of one output. Everything in `state` is ours; in `out`, only files named like parts."""

    out: Path
    state: Path

    @classmethod
    def at(cls, out: str | os.PathLike[str], state_dir: str | os.PathLike[str] | None) -> Workspace:
        """Return the workspace of the output directory `out`; nothing is created.

        Raises:
            UsageError: `out` is a file or a URL, or one directory lies inside the other.
        """
        for path in (out, state_dir):
            if path is not None and _URL.match(os.fspath(path)):
                raise UsageError(f"{describe(str(path))} is a URL: only local directories will do.")
        if Path(out).is_symlink():
            raise UsageError(f"{describe(str(out))} is a symbolic link; name the directory itself.")
        folder = Path(os.path.realpath(out))
        if not folder.name:
            raise UsageError("The root directory can't be the output: name one below it.")
        state = (
            Path(os.path.abspath(state_dir))
            if state_dir is not None
            else folder.with_name(f"{folder.name}.polar-etl")
        )
        if folder.exists() and not folder.is_dir():
            raise UsageError(f"{describe(str(folder))} is a file; the output must be a directory.")
        if state == folder or folder in state.parents or state in folder.parents:
            raise UsageError("The output and the state directory must not lie one in the other.")
        return cls(folder, state)

    @property
    def manifest(self) -> Path:
        """Path of the manifest."""
        return self.state / "manifest.db"

    @property
    def draft(self) -> Path:
        """Path of the manifest of a run that is to replace an earlier one: see `promote`."""
        return self.state / "draft.db"

    @property
    def scaler(self) -> Path:
        """Path of the fitted scaler."""
        return self.state / "scaler.json"

    @property
    def scratch(self) -> Path:
        """Directory of unfinished parts, on the filesystem of `out`."""
        if self.state.stat().st_dev == self.out.stat().st_dev:
            return self.state / "tmp"
        return self.out

    @property
    def staged(self) -> Workspace:
        """The same, but for parts that replace earlier ones when all of them are there."""
        return replace(self, out=self.scratch / _STAGED)

    @contextmanager
    def opened(
        self, *, overwrite: bool, goes_on: Callable[[Path], bool] = lambda _: False
    ) -> Iterator[Opening]:
        """Create what is missing, hold the lock, and yield what was found and created.

        Args:
            overwrite: Whether an earlier run is replaced.
            goes_on: Tells of a manifest whether the run that overwrites goes on with it.

        Raises:
            OutputLockedError: Another run holds the lock.
            StateMismatchError: The output holds files that no manifest knows.
            RunFailedError: A directory can't be created or written.
        """
        try:
            if self.state.is_symlink():
                raise StateMismatchError(
                    f"{describe(str(self.state))} is a symbolic link: remove it, or use another "
                    "--state-dir."
                )
            created = make_directory(self.state)
            if self.state in created:
                self.state.chmod(0o700)
            with OutputLock(self.state / "lock"), ExitStack() as stack:
                try:
                    created += make_directory(self.out)
                    stack.enter_context(directory_lock(self.out))
                    self._refuse_directories()
                    manifest, resumed = self._found(overwrite, goes_on)
                    self._prepare_scratch()
                    self._sweep()
                except BaseException:
                    self._remove_created(created)
                    raise
                yield Opening(tuple(created), manifest, resumed)
        except OSError as error:
            raise RunFailedError(
                f"The output {describe(str(self.out))} can't be written: {error}. "
                "Finished parts are safe."
            ) from error

    def _found(self, overwrite: bool, goes_on: Callable[[Path], bool]) -> tuple[Path, bool]:
        """Return where the manifest is to be, and whether it is there; make room for a new one."""
        if overwrite:
            for path in (self.draft, self.manifest):
                if path.exists() and goes_on(path):
                    return path, True
        _remove(_family(self.draft))
        if self.manifest.exists() and not overwrite:
            return self.manifest, True
        self._refuse_foreign_files(parts_are_foreign=not overwrite)
        if self.manifest.exists() or self.part_files():
            return self.draft, False
        self._clear()
        return self.manifest, False

    def take_over(self, staged: Workspace) -> None:
        """Drop the earlier run, and put staged parts in the place of its own."""
        self._clear()
        for name in staged.part_files():
            os.replace(staged.out / name, self.out / name)
        sync_directory(self.out)
        self._drop_staged()

    def promote(self) -> None:
        """Drop the earlier run, and put the draft in the place of its manifest.

        A run that is to replace another one comes here when it has read all of its input once:
        until then input that can't be used leaves the earlier output as it was.
        """
        if any(path.exists() for path in _family(self.draft)[1:]):
            raise RunFailedError("The manifest could not be closed.")
        self._clear()
        os.replace(self.draft, self.manifest)
        sync_directory(self.state)

    def discard(self, opening: Opening) -> None:
        """Leave the directories as they were before `opening`."""
        if self.draft.exists() or self.staged.out.exists():
            _remove(_family(self.draft))
            self._sweep()
            self._remove_created(list(opening.created))
        elif not opening.resumed:
            self._clear()
            self._sweep()
            self._remove_created(list(opening.created))
            self._remove_files()

    def part_files(self) -> list[str]:
        """Return the names of the finished parts on disk."""
        if not self.out.is_dir():
            return []
        return sorted(name for name in os.listdir(self.out) if is_part_name(name))

    def _prepare_scratch(self) -> None:
        scratch = self.scratch
        if scratch != self.out:
            if os.path.lexists(scratch) and (scratch.is_symlink() or not scratch.is_dir()):
                scratch.unlink()
            scratch.mkdir(mode=0o700, exist_ok=True)

    def _sweep(self) -> None:
        """Remove what killed runs have left half-written."""
        for folder in {self.out, self.scratch}:
            sweep(folder, is_part_name)
        names = {self.manifest.name, self.draft.name, self.scaler.name}
        sweep(self.state, names.__contains__)
        self._drop_staged()

    def _drop_staged(self) -> None:
        staged = self.staged
        if staged.out.is_dir() and not staged.out.is_symlink():
            sweep(staged.out, is_part_name)
            _remove([staged.out / name for name in staged.part_files()])
            staged.out.rmdir()

    @property
    def _files(self) -> list[Path]:
        """Files of the state directory that begin and end with a run; the manifest goes first."""
        return [*_family(self.manifest), self.scaler]

    def _refuse_directories(self) -> None:
        """Refuse directories where files of ours belong: whatever is in them is not ours."""
        for path in (*self._files, *_family(self.draft)):
            if path.is_dir() and not path.is_symlink():
                raise StateMismatchError(
                    f"{describe(str(path))} is a directory, and a file of the state belongs there: "
                    "remove it, or use another --state-dir."
                )

    def _refuse_foreign_files(self, *, parts_are_foreign: bool) -> None:
        names = sorted(os.listdir(self.out))
        found = [
            name
            for name in names
            if name != _STAGED
            and not is_temporary(name, is_part_name)
            and (parts_are_foreign or not is_part_name(name))
        ]
        if found:
            raise StateMismatchError(
                f"{describe(str(self.out))} holds files that no manifest knows, such as "
                f"{describe(found[0])}. Write to a new directory, or use --overwrite to replace "
                "parts of an earlier run."
            )
        if parts_are_foreign and os.path.lexists(self.scaler):
            raise StateMismatchError(
                f"{describe(str(self.scaler))} belongs to no run: use another --state-dir, or "
                "--overwrite to replace it."
            )

    def _clear(self) -> None:
        """Remove manifest first, then parts, so that no manifest ever names a missing part."""
        _remove(self._files)
        sync_directory(self.state)
        for name in self.part_files():
            (self.out / name).unlink()

    def _remove_files(self) -> None:
        """Remove our files from the state directory."""
        _remove([*self._files, *_family(self.draft), self.state / "lock"])
        with suppress(OSError):
            (self.state / "tmp").rmdir()

    def _remove_created(self, created: list[Path]) -> None:
        if self.state in created:
            self._remove_files()
        for folder in reversed(created):
            with suppress(OSError):
                folder.rmdir()


def _family(database: Path) -> list[Path]:
    """Return a database and the files that SQLite keeps beside it."""
    return [database.with_name(database.name + suffix) for suffix in ("", *COMPANIONS)]


def _remove(paths: list[Path]) -> None:
    for path in paths:
        path.unlink(missing_ok=True)
