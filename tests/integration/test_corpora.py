"""Real data, and the files that other implementations of Parquet were tested with."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from support import cli, tables, trees

DATA = Path(
    os.environ.get("POLAR_ETL_TEST_DATA") or Path(__file__).resolve().parents[3] / "shared" / "data"
)
FLIGHTS = DATA / "flights" / "flights.parquet"
CORPUS = DATA / "parquet-testing"

needs_flights = pytest.mark.skipif(
    not FLIGHTS.is_file(),
    reason="flights/flights.parquet not found: set POLAR_ETL_TEST_DATA to the test data",
)
needs_corpus = pytest.mark.skipif(
    not CORPUS.is_dir(),
    reason="parquet-testing/ not found: set POLAR_ETL_TEST_DATA to the test data",
)


@pytest.fixture(scope="module")
def flights(tmp_path_factory):
    """A folder with the finished out/ of the flights, in several parts."""
    folder = tmp_path_factory.mktemp("flights")
    cli.run("normalize", FLIGHTS, "out", "--rows-per-part", 100_000, cwd=folder).expect(0)
    return folder


@needs_flights
def test_flights_are_normalized(flights):
    source, found = pq.read_table(FLIGHTS), tables.read(flights / "out")
    assert found.column_names == source.column_names
    assert found.num_rows == source.num_rows
    normalized = json.loads(trees.scaler_bytes(flights / "out"))["table"]["column"]
    assert len(normalized) > 5
    for name in source.column_names:
        if name not in normalized:
            assert found[name].equals(source[name]), name
            continue
        values = pc.cast(source[name], pa.float64())
        assert found[name].is_null().equals(source[name].is_null()), name
        mean, std = tables.statistics(flights / "out", name)
        numbers, z = values.drop_null().to_numpy(), found[name].drop_null().to_numpy()
        assert mean == pytest.approx(np.mean(numbers), rel=1e-12)
        if std == 0:
            assert not z.any(), name
            continue
        tables.assert_bits(z, (numbers - mean) / std)
        assert abs(z.mean()) < 1e-9, name
        assert abs(z.std() - 1) < 1e-9, name


@needs_flights
def test_flights_keep_their_bytes_in_little_memory(flights, tmp_path):
    refused = cli.run("plan", FLIGHTS, "--memory-limit", "1MB", cwd=tmp_path).expect(7)
    least = refused.stderr.split("--memory-limit ")[1].split()[0]
    how = ("--rows-per-part", 100_000, "--threads", 1, "--memory-limit", least)
    cli.run("normalize", FLIGHTS, "out", *how, cwd=tmp_path).expect(0)
    assert trees.result(tmp_path / "out") == trees.result(flights / "out")


BATCH = """
import json, sys
from pathlib import Path
import polar_etl as pe
for line in sys.stdin:
    path, out = json.loads(line)
    try:
        pe.normalize(path, out)
        answer = [0, ""]
    except pe.PolarEtlError as error:
        answer = [error.exit_code, str(error)]
    except Exception as error:
        answer = [-1, f"{type(error).__name__}: {error}"]
    print(json.dumps(answer), flush=True)
"""


def corpus_files() -> list[Path]:
    if not CORPUS.is_dir():
        return []
    return sorted(
        path
        for folder in ("data", "bad_data")
        for path in (CORPUS / folder).rglob("*.parquet*")
        if path.suffix in (".parquet", ".encrypted")
    )


@needs_corpus
def test_every_file_of_the_corpus_is_normalized_or_refused_in_one_sentence(tmp_path):
    files = corpus_files()
    assert len(files) > 80
    outs = [tmp_path / f"{number:03d}" / "out" for number in range(len(files))]
    for out in outs:
        out.parent.mkdir()
    lines = "".join(
        json.dumps([str(path), str(out)]) + "\n" for path, out in zip(files, outs, strict=True)
    )
    done = subprocess.run(
        [sys.executable, "-c", BATCH],
        input=lines,
        capture_output=True,
        text=True,
        env=cli.environment(),
        timeout=240,
        check=False,
    )
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0, (
        files[min(len(answers), len(files) - 1)],
        done.returncode,
        done.stderr,
    )
    wrong = []
    for path, out, (code, message) in zip(files, outs, answers, strict=True):
        if code == 0:
            groups = pq.read_metadata(path)
            rows = sum(groups.row_group(i).num_rows for i in range(groups.num_row_groups))
            if sum(pq.read_metadata(part).num_rows for part in out.iterdir()) != rows:
                wrong.append((path.name, "another number of rows"))
        elif code != 4 or path.name not in message or "\n" in message:
            wrong.append((path.name, code, message))
        elif list(out.parent.iterdir()):
            wrong.append((path.name, "left behind", sorted(trees.names(out.parent))))
    assert not wrong
    good = [path for path, (code, _) in zip(files, answers, strict=True) if code == 0]
    assert len(good) >= 60
    assert not [
        path for path in good if path.suffix == ".encrypted" and "plaintext" not in path.name
    ]


SAMPLE = (
    "data/alltypes_plain.parquet",
    "data/nulls.snappy.parquet",
    "data/float16_nonzeros_and_nans.parquet",
    "data/int32_decimal.parquet",
    "data/nested_structs.rust.parquet",
    "data/datapage_v1-corrupt-checksum.parquet",
    "data/encrypt_columns_and_footer.parquet.encrypted",
    "bad_data/PARQUET-1481.parquet",
    "bad_data/ARROW-GH-41321.parquet",
    "bad_data/ARROW-RS-GH-6229-LEVELS.parquet",
)


@needs_corpus
@pytest.mark.parametrize("name", SAMPLE)
def test_files_of_the_corpus_from_the_command_line(run_process, tmp_path, name):
    done = run_process("normalize", CORPUS / name, "out").expect(0, 4)
    if done.code == 4:
        assert trees.tree(tmp_path) == {}
        assert len(done.stderr.strip().splitlines()) == 1
        assert Path(name).name in done.stderr
    else:
        run_process("verify", "out").expect(0)
        assert tables.read(tmp_path / "out").num_rows == pq.read_metadata(CORPUS / name).num_rows


@needs_corpus
def test_corrupt_checksums_are_noticed(run_cli):
    for name in ("datapage_v1-corrupt-checksum", "rle-dict-uncompressed-corrupt-checksum"):
        run_cli("normalize", CORPUS / "data" / f"{name}.parquet", "out").expect(4)


@needs_corpus
def test_decimals_of_the_corpus(run_cli, tmp_path):
    for number, name in enumerate(("int32_decimal", "int64_decimal", "fixed_length_decimal")):
        out = f"out{number}"
        run_cli("normalize", CORPUS / "data" / f"{name}.parquet", out).expect(0)
        values = np.arange(1.0, 25.0)
        expected = (values - values.mean()) / values.std()
        tables.assert_bits(tables.read(tmp_path / out)["value"].to_numpy(), expected)
