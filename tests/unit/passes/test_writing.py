"""Slabs to parts: in order, each on disk before it is told of, nothing left behind."""

import os
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from itertools import chain
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from polar_etl.encoding.part_format import PartFormat
from polar_etl.errors import UsageError
from polar_etl.passes.tasks import EncodedSlab, Place
from polar_etl.passes.writing import PartsWriter, Written
from polar_etl.storage.direct import Staging
from polar_etl.storage.parts import MOST_PARTS, PartWriter, part_name
from tests.unit.arrays import encoded

PATIENCE = 60  # seconds; only a deadlock waits so long
SCHEMA = pa.schema({"x": pa.float64(), "text": pa.string()})
FORM = PartFormat(SCHEMA, ("x",), 1)


@pytest.fixture
def folders(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "tmp").mkdir()
    return SimpleNamespace(out=tmp_path / "out", scratch=tmp_path / "tmp")


def slab(part: int, first: int, rows: int, *, last: bool, shares: int = 1) -> list[EncodedSlab]:
    values = [float(i) for i in range(first, first + rows)]
    table = pa.table({"x": values, "text": [str(x) for x in values]}, SCHEMA)
    found = encoded(FORM, table, shares)
    assert len(found) == shares
    return [
        EncodedSlab(
            Place(part, rows, last=last, ends=number == shares - 1),
            share,
            0.25,
        )
        for number, share in enumerate(found)
    ]


@contextmanager
def writer_of(folders, files: int = 1) -> Iterator[PartsWriter]:
    with (
        closing(Staging(files)) as staging,
        PartsWriter(folders, FORM, staging) as writer,
    ):
        yield writer


def append(writer: PartsWriter, shares: list[EncodedSlab]) -> list[Written]:
    """Append all shares of a slab, and return what was told of."""
    return [written for share in shares for written in writer.append(share)]


def listed(folders) -> tuple[list[str], list[str]]:
    return sorted(os.listdir(folders.out)), sorted(os.listdir(folders.scratch))


@pytest.mark.parametrize("shares", [1, 2])
def test_slabs_become_row_groups_of_parts(folders, shares):
    found: list[Written] = []
    with writer_of(folders) as writer:
        found += append(writer, slab(0, 0, 40, last=False, shares=shares))
        found += append(writer, slab(0, 40, 20, last=True, shares=shares))
        found += append(writer, slab(1, 60, 30, last=True, shares=shares))
        found += writer.finish()

    assert [(some.part, some.receipt.name, some.receipt.rows) for some in found] == [
        (0, part_name(0), 60),
        (1, part_name(1), 30),
    ]
    assert [some.seconds for some in found] == [0.5 * shares, 0.25 * shares]
    assert listed(folders) == ([part_name(0), part_name(1)], [])
    metadata = pq.read_metadata(folders.out / part_name(0))
    assert [metadata.row_group(i).num_rows for i in range(2)] == [40, 20]
    parts = [pq.read_table(folders.out / part_name(i)) for i in range(2)]
    assert pa.concat_tables(parts)["x"].to_pylist() == [float(i) for i in range(90)]


def test_parts_are_told_of_in_order_and_once_they_are_there(folders):
    told = []
    with writer_of(folders) as writer:
        for part in range(30):
            for written in append(writer, slab(part, part, 1, last=True)):
                assert (folders.out / written.receipt.name).exists()
                told.append(written.part)
        told += [written.part for written in writer.finish()]

    assert told == list(range(30))


def test_a_part_that_takes_long_does_not_let_later_ones_be_told_before(folders, monkeypatch):
    commit, second_done = PartWriter.commit, threading.Event()

    def slow(self):
        if self._final.name == part_name(0):
            assert second_done.wait(PATIENCE)
        receipt = commit(self)
        second_done.set()
        return receipt

    monkeypatch.setattr(PartWriter, "commit", slow)
    with writer_of(folders) as writer:
        told = append(writer, slab(0, 0, 1, last=True))
        told += append(writer, slab(1, 1, 1, last=True))
        told += writer.finish()

    assert [written.part for written in told] == [0, 1]


def test_no_more_than_a_few_parts_wait_for_the_disk(folders, monkeypatch):
    waiting = most = 0
    submitted = PartsWriter._next

    def counted(self):
        nonlocal most
        most = max(most, len(self._waiting))
        return submitted(self)

    monkeypatch.setattr(PartsWriter, "_next", counted)
    with writer_of(folders) as writer:
        for part in range(40):
            waiting += len(append(writer, slab(part, part, 1, last=True)))
        waiting += len(list(writer.finish()))

    assert waiting == 40
    assert most <= 5


def test_parts_that_are_written_side_by_side(folders):
    def slabs() -> list[list[EncodedSlab]]:
        return [slab(part, 10 * part, 10, last=True, shares=2) for part in range(4)]

    with writer_of(folders, 4) as writer:
        in_turn = chain.from_iterable(zip(*slabs(), strict=True))
        told = append(writer, list(in_turn))
        told += writer.finish()
    with writer_of(SimpleNamespace(out=folders.scratch, scratch=folders.scratch)) as writer:
        alone = [written for shares in slabs() for written in append(writer, shares)]
        alone += writer.finish()

    assert [some.part for some in told] == [0, 1, 2, 3]
    assert [some.receipt for some in told] == [some.receipt for some in alone]
    assert [some.seconds for some in told] == [0.5] * 4


def test_of_parts_side_by_side_those_that_lack_a_share_are_dropped(folders):
    with writer_of(folders, 2) as writer:
        one, other = (slab(part, 0, 5, last=True, shares=2) for part in (0, 1))
        append(writer, [one[0], other[0], one[1]])

    assert listed(folders) == ([part_name(0)], [])


def test_unfinished_parts_are_dropped(folders):
    with writer_of(folders) as writer:
        append(writer, slab(0, 0, 5, last=True))
        append(writer, slab(1, 5, 5, last=False))

    assert listed(folders) == ([part_name(0)], [])


def test_parts_whose_names_would_not_sort_are_refused(folders):
    with writer_of(folders) as writer:
        append(writer, slab(MOST_PARTS - 1, 0, 5, last=True))
        with pytest.raises(UsageError, match="rows_per_part"):
            append(writer, slab(MOST_PARTS, 5, 5, last=True))

    assert listed(folders) == ([part_name(MOST_PARTS - 1)], [])
    assert part_name(MOST_PARTS) < part_name(MOST_PARTS - 1)


def test_a_part_that_lacks_a_share_is_unfinished(folders):
    with writer_of(folders) as writer:
        told = append(writer, slab(0, 0, 5, last=True, shares=2))
        told += append(writer, slab(1, 5, 5, last=True, shares=2)[:1])
        told += writer.finish()
        assert [written.part for written in told] == [0]
        assert listed(folders)[0] == [part_name(0)]

    assert listed(folders) == ([part_name(0)], [])


@pytest.mark.parametrize("shares", [1, 2])
def test_shares_do_not_change_the_bytes(folders, shares):
    with writer_of(folders) as writer:
        told = append(writer, slab(0, 0, 40, last=False))
        told += append(writer, slab(0, 40, 20, last=True))
        told += append(writer, slab(1, 0, 40, last=False, shares=shares))
        told += append(writer, slab(1, 40, 20, last=True, shares=shares))
        told += writer.finish()

    whole, shared = (written.receipt for written in told)
    assert shared.digest == whole.digest


@pytest.mark.parametrize("slabs", [0, 1])
def test_a_part_without_rows_has_no_row_group(folders, slabs):
    with writer_of(folders) as writer:
        for _ in range(slabs):
            append(writer, slab(0, 0, 3, last=False))
        told = append(writer, slab(0, 3, 0, last=True))
        told += writer.finish()

    (written,) = told
    assert written.receipt.rows == 3 * slabs
    assert pq.read_metadata(folders.out / part_name(0)).num_row_groups == slabs


def test_an_error_drops_what_is_unfinished_and_keeps_what_was_committed(folders):
    def write() -> None:
        with writer_of(folders) as writer:
            append(writer, slab(0, 0, 5, last=True))
            append(writer, slab(1, 5, 5, last=False))
            raise KeyError("outside")

    with pytest.raises(KeyError, match="outside"):
        write()

    assert listed(folders) == ([part_name(0)], [])


def test_a_commit_that_fails_is_an_error_and_leaves_nothing(folders, monkeypatch):
    def fails(source: object, target: object) -> None:
        raise OSError("no luck")

    monkeypatch.setattr(os, "replace", fails)

    def write() -> None:
        with writer_of(folders) as writer:
            append(writer, slab(0, 0, 5, last=True))
            append(writer, slab(1, 5, 5, last=False))
            list(writer.finish())

    with pytest.raises(OSError, match="no luck"):
        write()

    assert listed(folders) == ([], [])
