"""What is finished is recorded durably, and a damaged record is refused."""

import os
import resource
import sqlite3
import struct
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from polar_etl.errors import StateMismatchError
from polar_etl.statistics.moments import Moments
from polar_etl.storage.manifest import FORMAT, BatchRow, Manifest
from polar_etl.storage.parts import Receipt
from tests.unit.exact import bits, moments_of

FACTS = {"input": {"files": [{"path": "ü", "size": 1}]}, "rows": 7, "none": None}
PART = BatchRow(
    pass_name="parts",
    batch=3,
    file=1,
    first_row=100,
    rows=50,
    seconds=0.25,
    bytes_in=4_000,
    bytes_out=900,
    part="part-00003.parquet",
    digest="ab" * 16,
    rss=10,
    peak=20,
)
BATCH = PART._replace(pass_name="moments", batch=0, bytes_out=0, part=None, digest=None)


@pytest.fixture
def path(tmp_path):
    found = tmp_path / "manifest.db"
    with Manifest.create(found, FACTS):
        pass
    return found


def change(path, statement, *values):
    """Do to the database what nobody should."""
    connection = sqlite3.connect(path)
    with connection:
        connection.execute(statement, values)
    connection.close()


def test_facts_survive(path):
    with Manifest.open(path) as manifest:
        assert {name: manifest.fact(name) for name in FACTS} == FACTS
        assert manifest.fact("format") == FORMAT
        assert manifest.fact("no such fact") is None
        manifest.set_fact("rows", 8)
        manifest.set_fact("new", [1, 2])
    with Manifest.open(path, read_only=True) as manifest:
        assert (manifest.fact("rows"), manifest.fact("new")) == (8, [1, 2])


def test_batches_survive_in_order(path):
    rows = [PART._replace(batch=i, part=f"part-{i:05d}.parquet") for i in (5, 0, 3)]
    with Manifest.open(path) as manifest:
        assert manifest.batches("parts") == []
        for row in rows:
            manifest.record(row)
        manifest.record(BATCH)
    with Manifest.open(path) as manifest:
        assert manifest.batches("parts") == sorted(rows, key=lambda row: row.batch)
        assert manifest.batches("moments") == [BATCH]


def test_a_batch_recorded_twice_stands_there_once(path):
    with Manifest.open(path) as manifest:
        manifest.record(PART)
        manifest.record(PART._replace(digest="cd" * 16))

        assert [row.digest for row in manifest.batches("parts")] == ["cd" * 16]


def test_a_receipt_is_what_the_part_said(path):
    with Manifest.open(path) as manifest:
        manifest.record(PART)

        (row,) = manifest.batches("parts")
    assert row.receipt() == Receipt("part-00003.parquet", 50, 900, "ab" * 16)


def test_parts_can_be_forgotten_and_moments_stay(path):
    with Manifest.open(path) as manifest:
        for index in range(4):
            manifest.record(PART._replace(batch=index))
        manifest.record(BATCH)
        manifest.forget_parts([0, 2])
    with Manifest.open(path) as manifest:
        assert [row.batch for row in manifest.batches("parts")] == [1, 3]
        assert manifest.batches("moments") == [BATCH]


def test_moments_survive_bit_for_bit(path):
    state = moments_of([0.1, 1e300, np.nan], [5e-324, np.inf, -0.0], [None, 1.0, None])
    with Manifest.open(path) as manifest:
        manifest.record_moments([BATCH], {BATCH.file: (10, Moments.empty(3))})
        manifest.record_moments([BATCH._replace(batch=1)], {BATCH.file: (20, state)})
        manifest.record_moments([BATCH._replace(batch=2, file=5)], {5: (30, state)})
    with Manifest.open(path) as manifest:
        found = manifest.moments(3)
        assert len(manifest.batches("moments")) == 3
    assert {file: rows for file, (rows, _) in found.items()} == {1: 20, 5: 30}
    assert bits(found[1][1]) == bits(found[5][1]) == bits(state)


def test_a_manifest_that_was_not_closed_keeps_what_was_recorded(path, tmp_path):
    copy = tmp_path / "copy.db"
    with Manifest.open(path) as manifest:
        manifest.record(PART)
        for suffix in ("", "-wal"):  # what a power cut would leave
            source = path.with_name(path.name + suffix)
            if source.exists():
                copy.with_name(copy.name + suffix).write_bytes(source.read_bytes())
    with Manifest.open(copy) as manifest:
        assert manifest.batches("parts") == [PART]


def test_reading_only_changes_nothing(path):
    before = path.read_bytes()
    with Manifest.open(path, read_only=True) as manifest:
        assert manifest.fact("rows") == 7

    assert path.read_bytes() == before


@pytest.mark.parametrize("read_only", [False, True])
def test_a_closed_manifest_is_one_file(path, read_only):
    with Manifest.open(path, read_only=read_only) as manifest:
        manifest.batches("parts")

    assert [entry.name for entry in path.parent.iterdir()] == ["manifest.db"]
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_manifest_that_can_not_be_created_is_not_there(tmp_path):
    with (
        pytest.raises(TypeError, match="serializable"),
        Manifest.create(tmp_path / "manifest.db", {"fact": object()}),
    ):
        pass

    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_no_damage(path):
    def fill():
        with Manifest.open(path) as manifest:
            manifest._connection.execute("PRAGMA max_page_count = 1")
            manifest.set_fact("long", "x" * 100_000)

    with pytest.raises(OSError, match="full"):
        fill()
    with Manifest.open(path) as manifest:
        assert manifest.fact("long") is None


def test_a_header_that_forbids_writing_is_damage(path):
    content = bytearray(path.read_bytes())
    content[18] = 0xFF
    path.write_bytes(content)

    with Manifest.open(path) as manifest:
        assert manifest.fact("rows") == 7
    with pytest.raises(StateMismatchError, match="--overwrite"), Manifest.open(path) as manifest:
        manifest.set_fact("rows", 8)


def test_too_many_open_files_are_no_damage(path):
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, limits[1]))
    try:
        with pytest.raises(OSError, match="too many open files"), Manifest.open(path):
            pass
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


@pytest.mark.parametrize("read_only", [False, True])
class TestDamage:
    """Whatever stands there instead of a manifest: one error, with the remedy."""

    def read(self, path, read_only, width):
        with Manifest.open(path, read_only=read_only) as manifest:
            manifest.batches("moments")
            manifest.batches("parts")
            manifest.moments(width)
            for name in FACTS:
                manifest.fact(name)

    def refuse(self, path, read_only, width=1):
        with pytest.raises(StateMismatchError, match="--overwrite"):
            self.read(path, read_only, width)

    def test_absent(self, tmp_path, read_only):
        self.refuse(tmp_path / "absent.db", read_only)
        assert not (tmp_path / "absent.db").exists()

    @pytest.mark.parametrize("content", [b"", b"SQLite format 3\0", b"x" * 10_000, b"{}"])
    def test_no_database(self, path, read_only, content):
        path.write_bytes(content)

        self.refuse(path, read_only)

    def test_another_database(self, tmp_path, read_only):
        change(tmp_path / "other.db", "CREATE TABLE facts (x)")

        self.refuse(tmp_path / "other.db", read_only)

    def test_a_symlink(self, path, tmp_path, read_only):
        (tmp_path / "link.db").symlink_to(path)

        self.refuse(tmp_path / "link.db", read_only)

    def test_a_directory(self, tmp_path, read_only):
        (tmp_path / "folder.db").mkdir()

        self.refuse(tmp_path / "folder.db", read_only)

    def test_pages_overwritten(self, path, read_only):
        content = bytearray(path.read_bytes())
        content[100:] = b"\xff" * (len(content) - 100)
        path.write_bytes(content)

        self.refuse(path, read_only)

    def test_cut_short(self, path, read_only):
        path.write_bytes(path.read_bytes()[:5_000])

        self.refuse(path, read_only)

    @pytest.mark.parametrize(
        "value", ['"polar-etl manifest 1"', "no json", '""', "null", b"\xff\xfe"]
    )
    def test_another_format(self, path, read_only, value):
        change(path, "UPDATE facts SET value = ? WHERE name = 'format'", value)

        self.refuse(path, read_only)

    @pytest.mark.parametrize("value", ["no json", "{", b"\x00\xff"])
    def test_facts_that_are_no_json(self, path, read_only, value):
        change(path, "UPDATE facts SET value = ? WHERE name = 'input'", value)

        self.refuse(path, read_only)

    @pytest.mark.parametrize("table", ["facts", "batches", "moments"])
    def test_a_table_is_gone(self, path, read_only, table):
        change(path, f"DROP TABLE {table}")

        self.refuse(path, read_only)

    @pytest.mark.parametrize(
        "name",
        [
            *("../part-00001.parquet", "/etc/passwd", "part-1.parquet", "part-00001.parquet\n", ""),
            *("part-00001.parquet/../x", ".part-00001.parquet", "part-00001.txt", None, 7, "x\0y"),
        ],
    )
    def test_a_part_of_an_impossible_name(self, path, read_only, name):
        with Manifest.open(path) as manifest:
            manifest.record(PART)
        change(path, "UPDATE batches SET part = ?", name)

        self.refuse(path, read_only)

    @pytest.mark.parametrize("column", ["batch", "file", "first_row", "rows", "bytes_out"])
    @pytest.mark.parametrize("value", [-1, 1.5, "many", b"1"])
    def test_an_impossible_number(self, path, read_only, column, value):
        with Manifest.open(path) as manifest:
            manifest.record(PART)
        change(path, f"UPDATE batches SET {column} = ?", value)

        self.refuse(path, read_only)

    @pytest.mark.parametrize("state", [b"", b"PK\x03\x04", b"x" * 500, "text", 7])
    def test_moments_that_are_none(self, path, read_only, state):
        with Manifest.open(path) as manifest:
            manifest.record_moments([BATCH], {BATCH.file: (10, Moments.empty(1))})
        change(path, "UPDATE moments SET state = ?", state)

        self.refuse(path, read_only)

    def test_moments_cut_short(self, path, read_only):
        with Manifest.open(path) as manifest:
            manifest.record_moments([BATCH], {BATCH.file: (10, Moments.empty(1))})
        change(path, "UPDATE moments SET state = substr(state, 1, 100)")

        self.refuse(path, read_only)

    @pytest.mark.parametrize("change_to", ["file = 2", "rows = 9", "state = zeroblob(112)"])
    def test_moments_of_other_rows(self, path, read_only, change_to):
        with Manifest.open(path) as manifest:
            manifest.record_moments([BATCH], {BATCH.file: (10, Moments.empty(1))})
        change(path, f"UPDATE moments SET {change_to}")

        self.refuse(path, read_only)

    @pytest.mark.parametrize(
        "statement",
        [
            "CREATE VIEW more AS SELECT 1",
            "CREATE TRIGGER more AFTER INSERT ON facts BEGIN DELETE FROM batches; END",
            "CREATE TABLE more (x)",
            "ALTER TABLE facts ADD COLUMN more GENERATED ALWAYS AS (hex(zeroblob(9)))",
        ],
    )
    def test_code_in_the_schema(self, path, read_only, statement):
        change(path, statement)

        self.refuse(path, read_only)

    @pytest.mark.parametrize("suffix", ["-wal", "-shm", "-journal"])
    @pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo, partial(os.symlink, "nowhere")])
    def test_a_companion_that_is_no_file(self, path, read_only, suffix, make):
        make(path.with_name(path.name + suffix))

        self.refuse(path, read_only)

    def test_a_message_of_sqlite_that_is_no_text(self, path, read_only):
        content = path.read_bytes()
        path.write_bytes(
            content.replace(b"bytes_in INTEGER NOT NULL", b"bytes_in \xffNTEGER NOT N\xffLL")
        )

        self.refuse(path, read_only)

    def test_a_journal_that_names_another_file(self, path, tmp_path, read_only):
        """SQLite deletes the file that such a journal names."""
        precious = tmp_path / "precious"
        precious.write_text("precious")
        name, magic = os.fsencode(precious), bytes.fromhex("d9d505f920a163d7")
        pages = path.stat().st_size // 4096
        header = magic + struct.pack(">5I", 0, 1, pages, 512, 4096)
        end = struct.pack(">I", 2**30 // 4096 + 1) + name
        end += struct.pack(">2I", len(name), sum(name)) + magic
        path.with_name("manifest.db-journal").write_bytes(header.ljust(512, b"\0") + end)

        self.refuse(path, read_only)

        assert precious.read_text() == "precious"

    def test_moments_of_another_width(self, path, read_only):
        with Manifest.open(path) as manifest:
            manifest.record_moments([BATCH], {BATCH.file: (10, Moments.empty(2))})

        self.refuse(path, read_only, width=3)
