"""One part: whole or not there, the same bytes for the same rows, checksums in every page."""

import errno
import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xxhash

from polar_etl.encoding.chunks import joined
from polar_etl.encoding.part_format import PartFormat
from polar_etl.storage import parts
from polar_etl.storage.direct import Staging
from polar_etl.storage.parts import PartWriter, digest_of, is_part_name, part_name
from tests.unit.arrays import encoded

ROWS = 5_000


def table(rows: int = ROWS) -> pa.Table:
    draw = np.random.default_rng(0)
    texts = pa.array([f"text {i % 7}" for i in range(rows)])
    return pa.table(
        {
            "x": draw.standard_normal(rows),
            "y": pa.array(draw.standard_normal(rows).astype("f4"), mask=draw.random(rows) < 0.2),
            "text": texts,
            "codes": texts.dictionary_encode(),
            "list": pa.array(
                [[i, None] if i % 3 else None for i in range(rows)], pa.list_(pa.int16())
            ),
            "record": pa.array([{"a": i, "b": {"c": str(i)}} for i in range(rows)]),
            "map": pa.array([[("k", i)] for i in range(rows)], pa.map_(pa.string(), pa.int64())),
            "vector": pa.array([[1.0, 2.0]] * rows, pa.list_(pa.float32(), 2)),
            "day": pa.array(range(rows), pa.date32()),
            "when": pa.array(range(rows), pa.timestamp("us", "UTC")),
            "flag": pa.array([None, True] * (rows // 2), pa.bool_()),
        }
    )


def form_of(data: pa.Table, level: int = 1) -> PartFormat:
    return PartFormat(data.schema, ("x", "y"), level)


@pytest.fixture
def folders(tmp_path):
    out, scratch = tmp_path / "out", tmp_path / "scratch"
    out.mkdir()
    scratch.mkdir()
    return out, scratch


def write(
    folders,
    data: pa.Table,
    name: str = part_name(0),
    *,
    level: int = 1,
    groups: int = 1,
    shares: int = 1,
):
    form = form_of(data, level)
    writer = PartWriter(*folders, name, form, Staging())
    size = -(-len(data) // groups)
    for first in range(0, len(data), max(size, 1)):
        append(writer, form, data.slice(first, size), shares)
    return writer.commit()


def append(writer: PartWriter, form: PartFormat, data: pa.Table, shares: int = 1) -> None:
    for share in encoded(form, data, shares):
        writer.append(share)
    writer.end_group(len(data))


def test_what_is_committed_reads_back_the_same(folders):
    data = table()

    write(folders, data)

    found = pq.read_table(folders[0] / part_name(0), page_checksum_verification=True)
    found.validate(full=True)
    assert found.schema.equals(data.schema)
    for name in data.column_names:
        # dictionaries come back in chunks of their own
        assert found[name].to_pylist() == data[name].to_pylist()


def test_a_receipt_tells_the_truth(folders):
    receipt = write(folders, table(), part_name(12), groups=3)

    path = folders[0] / part_name(12)
    assert (receipt.name, receipt.rows) == ("part-00012.parquet", ROWS)
    assert receipt.size == path.stat().st_size
    assert receipt.digest == xxhash.xxh3_128(path.read_bytes()).hexdigest() == digest_of(path)


def test_every_slab_is_a_row_group(folders):
    write(folders, table(), groups=3)

    metadata = pq.read_metadata(folders[0] / part_name(0))
    assert [metadata.row_group(i).num_rows for i in range(3)] == [1_667, 1_667, 1_666]
    assert metadata.num_row_groups == 3


@pytest.mark.parametrize("level", [-7, 1, 9])
def test_all_columns_are_zstd(folders, level):
    write(folders, table(), level=level)

    group = pq.read_metadata(folders[0] / part_name(0)).row_group(0)
    assert {group.column(i).compression for i in range(group.num_columns)} == {"ZSTD"}


def test_normalized_columns_have_neither_dictionary_nor_statistics(folders):
    write(folders, table())

    group = pq.read_metadata(folders[0] / part_name(0)).row_group(0)
    chunks = {group.column(i).path_in_schema: group.column(i) for i in range(group.num_columns)}
    for name in ("x", "y"):
        assert not chunks[name].has_dictionary_page
        assert chunks[name].statistics is None
    for name in ("text", "day"):
        assert chunks[name].statistics.has_min_max


def test_the_same_table_gives_the_same_bytes_in_any_shares(folders):
    digests = {
        write(folders, table(), part_name(i), shares=shares).digest
        for i, shares in enumerate((1, 1, 2, 5, 100))
    }

    assert len(digests) == 1


def test_other_values_give_other_bytes(folders):
    data = table()
    changed = data.set_column(0, "x", nudged(data["x"]))

    assert write(folders, data).digest != write(folders, changed, part_name(1)).digest


def nudged(column: pa.ChunkedArray) -> pa.Array:
    values = column.to_numpy().copy()
    values[-1] = np.nextafter(values[-1], np.inf)
    return pa.array(values)


def test_every_page_has_a_checksum(folders):
    """Change one byte of each column's data and see that reading it fails."""
    data = table().select(["x", "y", "text", "day"])
    write(folders, data)
    path = folders[0] / part_name(0)
    intact = path.read_bytes()
    group = pq.read_metadata(path).row_group(0)

    for index, name in enumerate(data.column_names):
        chunk = group.column(index)
        place = (
            chunk.dictionary_page_offset or chunk.data_page_offset
        ) + chunk.total_compressed_size
        damaged = bytearray(intact)
        damaged[place - 3] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(OSError, match=r"(?i)checksum|crc"):
            pq.read_table(path, columns=[name], page_checksum_verification=True)


def test_nothing_but_the_part_is_left(folders):
    write(folders, table())

    assert os.listdir(folders[0]) == ["part-00000.parquet"]
    assert os.listdir(folders[1]) == []


def test_there_is_no_part_before_the_commit(folders):
    form = form_of(table())
    writer = PartWriter(*folders, part_name(0), form, Staging())
    append(writer, form, table())

    assert os.listdir(folders[0]) == []
    writer.commit()
    assert os.listdir(folders[0]) == ["part-00000.parquet"]


@pytest.mark.parametrize("writes", [0, 1, 3])
def test_an_aborted_part_leaves_nothing(folders, writes):
    form = form_of(table())
    writer = PartWriter(*folders, part_name(0), form, Staging())
    for _ in range(writes):
        append(writer, form, table())

    writer.abort()
    writer.abort()

    assert os.listdir(folders[0]) == os.listdir(folders[1]) == []


def test_a_part_aborted_inside_a_row_group_leaves_nothing(folders):
    form = form_of(table())
    writer = PartWriter(*folders, part_name(0), form, Staging())
    append(writer, form, table())
    writer.append(encoded(form, table(), 5)[0])

    writer.abort()

    assert os.listdir(folders[0]) == os.listdir(folders[1]) == []


class Gone:
    """Content that can't be had."""

    def __len__(self) -> int:
        return 1 << 22

    def read_into(self, room: np.ndarray) -> None:
        raise OSError("it is gone")


def test_a_part_aborted_after_a_failure_leaves_nothing(folders):
    form = form_of(table())
    writer = PartWriter(*folders, part_name(0), form, Staging())
    append(writer, form, table())
    with pytest.raises(OSError, match="gone"):
        writer.append(joined([])._replace(content=Gone()))

    writer.abort()

    assert os.listdir(folders[0]) == os.listdir(folders[1]) == []


def test_a_format_that_parquet_does_not_know_leaves_nothing(folders):
    schema = pa.schema({"x": pa.float64(), "u": pa.dense_union([pa.field("a", pa.int8())])})

    writer = PartWriter(*folders, part_name(0), PartFormat(schema, ("x",), 1), Staging())
    with pytest.raises(pa.ArrowException):
        writer.commit()

    assert os.listdir(folders[0]) == os.listdir(folders[1]) == []


def test_an_earlier_part_stays_until_the_commit_and_is_replaced_whole(folders):
    before = write(folders, table(100))
    form = form_of(table())
    writer = PartWriter(*folders, part_name(0), form, Staging())
    append(writer, form, table())

    assert digest_of(folders[0] / part_name(0)) == before.digest
    after = writer.commit()

    assert digest_of(folders[0] / part_name(0)) == after.digest != before.digest


@pytest.mark.parametrize("writes", [0, 1])
def test_a_part_without_rows_can_be_read(folders, writes):
    form = form_of(table())
    writer = PartWriter(*folders, part_name(0), form, Staging())
    for _ in range(writes):
        append(writer, form, table(0))

    assert writer.commit().rows == 0
    assert pq.read_table(folders[0] / part_name(0)).schema.equals(table().schema)


def test_parts_obey_the_umask(folders):
    before = os.umask(0o027)
    try:
        write(folders, table(10))
    finally:
        os.umask(before)

    assert (folders[0] / part_name(0)).stat().st_mode & 0o777 == 0o640


def test_schema_metadata_is_kept(folders):
    data = table(10).replace_schema_metadata({"origin": "ü"})

    write(folders, data)

    assert pq.read_schema(folders[0] / part_name(0)).metadata[b"origin"] == "ü".encode()


@pytest.mark.parametrize(
    "name",
    ["part-00000.parquet", "part-12345.parquet", "part-123456.parquet", part_name(999_999_999)],
)
def test_names_of_parts(name):
    assert is_part_name(name)


@pytest.mark.parametrize(
    "name",
    [
        *("", "part-1.parquet", "part-00000.parquet.tmp", ".part-00000.parquet", "part-00000.pq"),
        *(
            "xpart-00000.parquet",
            "part-00000.parquet\n",
            "part-0000a.parquet",
            "../part-00000.parquet",
        ),
        *("part-00000xparquet", "PART-00000.parquet", "part--0001.parquet"),
    ],
)
def test_other_names(name):
    assert not is_part_name(name)


def test_names_of_parts_sort_in_row_order():
    names = [part_name(index) for index in range(0, 100_000, 777)]

    assert names == sorted(names)


@pytest.mark.parametrize("name", ["a.b", "list.element", "x ", "ü", "*"])
def test_odd_names_of_columns(folders, name):
    data = pa.table({"x": [1.0], name: ["text"], f"{name}.y": [[1, 2]]})

    form = PartFormat(data.schema, ("x",), 1)
    writer = PartWriter(*folders, part_name(0), form, Staging())
    append(writer, form, data)
    writer.commit()

    assert pq.read_table(folders[0] / part_name(0)).equals(data)


class Calls:
    """Which system calls a commit makes, and one of them that fails."""

    def __init__(self, monkeypatch, fails: str | None = None) -> None:
        self.made: list[str] = []
        self._fails = fails
        for name in ("fsync", "replace", "pwrite"):
            monkeypatch.setattr(os, name, self._watched(name, getattr(os, name)))
        monkeypatch.setattr(
            parts, "sync_directory", self._watched("fsync of the directory", lambda path: None)
        )

    def _watched(self, name, call):
        def watched(*arguments):
            self.made.append(name)
            if name == self._fails:
                raise OSError(errno.EIO, "no luck")
            return call(*arguments)

        return watched


def test_a_part_has_its_name_only_once_its_contents_are_on_disk(folders, monkeypatch):
    form = form_of(table())
    writer = PartWriter(*folders, part_name(0), form, Staging())
    append(writer, form, table())
    calls = Calls(monkeypatch)

    writer.commit()

    assert calls.made == ["pwrite", "fsync", "replace", "fsync of the directory"]


@pytest.mark.parametrize("call", ["pwrite", "fsync", "replace"])
def test_a_commit_that_fails_leaves_what_was_there(folders, monkeypatch, call):
    before = write(folders, table(100))
    form = form_of(table())
    writer = PartWriter(*folders, part_name(0), form, Staging())
    append(writer, form, table())
    calls = Calls(monkeypatch, call)

    with pytest.raises(OSError, match="no luck"):
        writer.commit()

    assert calls.made.count(call) == 1
    assert os.listdir(folders[0]) == [part_name(0)]
    assert os.listdir(folders[1]) == []
    assert digest_of(folders[0] / part_name(0)) == before.digest


@pytest.mark.parametrize("most", [1, 7, 1000])
def test_writes_that_are_cut_short_go_on(folders, monkeypatch, most):
    """A disk may take fewer bytes than it was given."""
    data = table(200)
    expected = write(folders, data, part_name(1))
    call = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda file, some, at: call(file, some[:most], at))

    assert write(folders, data).digest == expected.digest
    assert digest_of(folders[0] / part_name(0)) == expected.digest
