"""The manifest: which batches of both passes are finished, and what they were computed from.

A SQLite database in write-ahead mode with full synchronization: a row that was committed survives
a power cut, and a row is committed only after the part that it names is on disk.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from polar_etl.durable import is_regular, replacing
from polar_etl.errors import StateMismatchError, describe
from polar_etl.events import PassName
from polar_etl.statistics.moments import Moments
from polar_etl.storage.parts import Receipt, is_part_name

FORMAT = "polar-etl manifest 2"
COMPANIONS = ("-wal", "-shm", "-journal")
"""What SQLite appends to the name of a database for the files that it keeps beside it."""

_TABLES = """
CREATE TABLE facts (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE batches (
    pass TEXT NOT NULL, batch INTEGER NOT NULL, file INTEGER NOT NULL, first_row INTEGER NOT NULL,
    rows INTEGER NOT NULL, seconds REAL NOT NULL, bytes_in INTEGER NOT NULL,
    bytes_out INTEGER NOT NULL, part TEXT, digest TEXT, rss INTEGER NOT NULL, peak INTEGER NOT NULL,
    PRIMARY KEY (pass, batch)
);
CREATE TABLE moments (file INTEGER PRIMARY KEY, rows INTEGER NOT NULL, state BLOB NOT NULL);
"""


_JOURNAL_END = bytes.fromhex("d9d505f920a163d7")
"""How a journal ends that names another file, which SQLite would then delete."""


class BatchRow(NamedTuple):
    """One finished batch."""

    pass_name: PassName
    batch: int
    file: int
    """Index of the file that the batch begins in."""
    first_row: int
    """First row, counted from the start of that file."""
    rows: int
    seconds: float
    bytes_in: int
    """Decoded bytes that were read."""
    bytes_out: int
    """Bytes of the part's file; 0 in the pass that collects moments."""
    part: str | None
    digest: str | None
    rss: int
    peak: int

    def receipt(self) -> Receipt:
        """Return what the manifest says of the batch's part."""
        return Receipt(self.part or "", self.rows, self.bytes_out, self.digest or "")


_DAMAGE = {
    sqlite3.SQLITE_ERROR,
    sqlite3.SQLITE_CORRUPT,
    sqlite3.SQLITE_NOTADB,
    sqlite3.SQLITE_FORMAT,
    sqlite3.SQLITE_SCHEMA,
    sqlite3.SQLITE_CONSTRAINT,
    sqlite3.SQLITE_MISMATCH,
    sqlite3.SQLITE_TOOBIG,
}
"""What SQLite says of a file's contents; its other errors are those of the system around it."""

_HINTS = {
    sqlite3.SQLITE_CANTOPEN: " (too many open files, or its directory is gone or read-only)",
    sqlite3.SQLITE_READONLY: " (it could be opened for reading only)",
    sqlite3.SQLITE_BUSY: " (another program is using it)",
}
"""What SQLite leaves unsaid."""


def _connect(path: Path) -> sqlite3.Connection:
    """Return a connection to the database at `path`, which must exist."""
    return sqlite3.connect(f"{path.absolute().as_uri()}?mode=rw", uri=True)


def _forbids_writing(path: Path) -> bool:
    """Tell whether a database asks by its header for a newer SQLite to write it."""
    with path.open("rb") as file:
        return file.read(19)[18:] > b"\2"


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn errors of SQLite into damage of the manifest, or into an error of the system.

    Raises:
        StateMismatchError: The manifest is damaged.
        OSError: Disk, rights, memory or open files are to blame.
    """
    try:
        yield
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR)
        if code & 0xFF in _DAMAGE or (code == sqlite3.SQLITE_READONLY and _forbids_writing(path)):
            raise _damaged(path, str(error)) from None
        reason = f"{error}{_HINTS.get(code & 0xFF, '')}"
        raise OSError(f"the manifest can't be read or written: {reason}") from None
    except UnicodeDecodeError:  # of a message that quotes the damage
        raise _damaged(path, "it holds text that is not UTF-8") from None


def _refuse_strange_files(path: Path) -> None:
    """Refuse what SQLite must not open: links, pipes, and journals of several databases.

    Raises:
        StateMismatchError: A file of the manifest is none of ours.
    """
    for suffix in ("", *COMPANIONS):
        file = path.with_name(path.name + suffix)
        if (os.path.lexists(file) or not suffix) and not is_regular(file):
            raise _damaged(path, f"{file.name} is not a regular file")
    journal = path.with_name(f"{path.name}-journal")
    if journal.exists():
        with journal.open("rb") as opened:
            opened.seek(max(journal.stat().st_size - len(_JOURNAL_END), 0))
            if opened.read() == _JOURNAL_END:
                raise _damaged(path, "its journal names another file")


class Manifest:
    """An open manifest. Only the driving thread of a run writes it."""

    def __init__(self, connection: sqlite3.Connection, path: Path) -> None:
        self._connection = connection
        self._path = path

    @classmethod
    @contextmanager
    def create(cls, path: Path, facts: dict[str, object]) -> Iterator[Manifest]:
        """Create the manifest at `path`, where there is none, with the given facts.

        It appears there whole: its tables and facts are brought to disk under another name.
        """
        with (
            replacing(path, 0o600) as temporary,
            _explained(path),
            closing(sqlite3.connect(temporary)) as connection,
        ):
            connection.execute("PRAGMA synchronous = OFF")  # `replacing` brings it to disk
            connection.execute("PRAGMA journal_mode = OFF")
            connection.executescript(_TABLES)
            connection.executemany(
                "INSERT INTO facts VALUES (?, ?)",
                [(k, json.dumps(v)) for k, v in {"format": FORMAT, **facts}.items()],
            )
            connection.commit()
        with cls.open(path) as manifest:
            yield manifest

    @classmethod
    @contextmanager
    def open(cls, path: Path, *, read_only: bool = False) -> Iterator[Manifest]:
        """Open the manifest at `path`; `read_only` promises that nothing will be recorded.

        Raises:
            StateMismatchError: It is no manifest, or a damaged one.
        """
        _refuse_strange_files(path)
        with _explained(path), closing(_connect(path)) as connection:
            connection.execute("PRAGMA trusted_schema = OFF")
            connection.execute("PRAGMA synchronous = EXTRA")
            manifest = cls(connection, path)
            manifest._refuse_other_tables()
            if manifest.fact("format") != FORMAT:
                raise _damaged(path, "its format is another one")
            try:
                yield manifest
            finally:
                if not read_only:
                    with suppress(sqlite3.Error):  # one file again, which a read-only disk can show
                        connection.execute("PRAGMA journal_mode = DELETE")

    def _refuse_other_tables(self) -> None:
        """Refuse views and triggers: code that would run when the tables are used."""
        found = self._connection.execute("SELECT sql FROM sqlite_schema WHERE sql IS NOT NULL")
        expected = {statement.strip() for statement in _TABLES.split(";")} - {""}
        if {statement for (statement,) in found} != expected:
            raise _damaged(self._path, "it holds other tables")

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        self._connection.execute("PRAGMA journal_mode = WAL")
        with self._connection as transaction:
            yield transaction

    def fact(self, name: str) -> Any:
        """Return a recorded fact, None where there is none."""
        row = self._connection.execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()
        try:
            return None if row is None else json.loads(row[0])
        except (ValueError, TypeError):
            raise _damaged(self._path, f"the fact {name} is no JSON") from None

    def number(self, name: str) -> int:
        """Return a recorded fact that is a whole number, 0 where there is none."""
        value = self.fact(name)
        if value is None:
            return 0
        if type(value) is not int or value < 0:
            raise _damaged(self._path, f"the fact {name} is no whole number")
        return value

    def set_fact(self, name: str, value: object) -> None:
        """Record a fact, durably."""
        with self._transaction() as transaction:
            transaction.execute(
                "INSERT OR REPLACE INTO facts VALUES (?, ?)", (name, json.dumps(value))
            )

    def record(self, row: BatchRow) -> None:
        """Record a finished batch, durably. Its part must be on disk already."""
        with self._transaction() as transaction:
            self._insert(transaction, row)

    def record_moments(
        self, rows: Sequence[BatchRow], states: Mapping[int, tuple[int, Moments]]
    ) -> None:
        """Record finished batches of the first pass with the moments of their files so far.

        Args:
            rows: The batches.
            states: By file: how many rows are covered from its start on, and their moments.
        """
        with self._transaction() as transaction:
            for row in rows:
                self._insert(transaction, row)
            transaction.executemany(
                "INSERT OR REPLACE INTO moments VALUES (?, ?, ?)",
                [
                    (file, covered, _pack(file, covered, state))
                    for file, (covered, state) in states.items()
                ],
            )

    @staticmethod
    def _insert(transaction: sqlite3.Connection, row: BatchRow) -> None:
        transaction.execute(
            "INSERT OR REPLACE INTO batches VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            row,
        )

    def forget_parts(self, batches: list[int]) -> None:
        """Strike out batches whose part is missing or damaged."""
        with self._transaction() as transaction:
            transaction.executemany(
                "DELETE FROM batches WHERE pass = 'parts' AND batch = ?", [(b,) for b in batches]
            )

    def batches(self, pass_name: PassName) -> list[BatchRow]:
        """Return the finished batches of a pass, in order."""
        rows = self._connection.execute(
            "SELECT * FROM batches WHERE pass = ? ORDER BY batch", (pass_name,)
        ).fetchall()
        found = [BatchRow(*row) for row in rows]
        for row in found:
            self._check(row)
        return found

    def _check(self, row: BatchRow) -> None:
        whole = (row.batch, row.file, row.first_row, row.rows, row.bytes_out, row.rss, row.peak)
        if not all(type(value) is int and value >= 0 for value in whole):
            raise _damaged(self._path, f"batch {describe(str(row.batch))} holds impossible numbers")
        if row.pass_name == "parts" and not is_part_name(str(row.part)):
            raise _damaged(self._path, f"{describe(str(row.part))} is not the name of a part")

    def moments(self, width: int) -> dict[int, tuple[int, Moments]]:
        """Return by file how many rows are covered, and their moments."""
        rows = self._connection.execute("SELECT file, rows, state FROM moments").fetchall()
        if not all(type(number) is int for file, covered, _ in rows for number in (file, covered)):
            raise _damaged(self._path, "moments of impossible rows")
        try:
            return {
                file: (covered, _unpack(file, covered, state, width))
                for file, covered, state in rows
            }
        except (ValueError, TypeError) as error:
            raise _damaged(self._path, f"moments can't be read: {error}") from None


def _pack(file: int, rows: int, moments: Moments) -> bytes:
    """Return moments as the bytes of their fields, after a hash of all that the row says."""
    body = b"".join(getattr(moments, field.name).tobytes() for field in fields(moments))
    return _digest(file, rows, body) + body


def _unpack(file: int, rows: int, state: bytes, width: int) -> Moments:
    digest, body = state[:16], state[16:]
    if digest != _digest(file, rows, body):
        raise ValueError("their hash differs")
    expected = Moments.empty(width)
    models = {field.name: getattr(expected, field.name) for field in fields(expected)}
    if len(body) != sum(model.nbytes for model in models.values()):
        raise ValueError("they are of another number of columns")
    found, start = {}, 0
    for name, model in models.items():
        found[name] = np.frombuffer(body, model.dtype, width, start)
        start += model.nbytes
    return Moments(**found)


def _digest(file: int, rows: int, body: bytes) -> bytes:
    return hashlib.blake2b(b"%d %d " % (file, rows) + body, digest_size=16).digest()


def _damaged(path: Path, reason: str) -> StateMismatchError:
    return StateMismatchError(
        f"The manifest {describe(str(path))} can't be used: {describe(reason)[1:-1]}. "
        "Start anew with --overwrite."
    )
