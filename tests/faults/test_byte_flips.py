"""Any bytes as input: valid files with a few bytes changed, thousands of them.

The cases run in batches inside one process each. A process that dies tells by its last line which
case did it.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections import Counter
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support import cli, tables

OUTCOMES = {0, 4, 7}
"""Normalized, refused as unreadable, or refused because the footer asks for too much memory."""
DEFAULT_CASES, SLOW_CASES = 60, 1500
LIMIT = 1_000_000_000

BATCH = """
import json, os, resource, shutil, sys
import polar_etl as pe
from polar_etl.memory import peak_of_process
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
for line in sys.stdin:
    case, path, out = json.loads(line)
    print(json.dumps({"begin": case}), flush=True)
    before = sorted(os.listdir("."))
    said = ""
    try:
        pe.normalize(path, out, memory_limit=LARGEST, threads=1, inf="ignore")
        code = 0
        shutil.rmtree(out)
        shutil.rmtree(out + ".polar-etl")
    except pe.PolarEtlError as error:
        code, said = error.exit_code, str(error)
    except BaseException as error:
        code, said = -1, f"{type(error).__name__}: {error}"
    left = sorted(set(os.listdir(".")) - set(before))
    for name in left:
        shutil.rmtree(name, ignore_errors=True)
    end = {"end": case, "code": code, "said": said, "left": left}
    print(json.dumps(end), flush=True)
print(json.dumps({"peak": peak_of_process()}), flush=True)
""".replace("LARGEST", str(LIMIT))


def seeds(folder: Path) -> dict[str, bytes]:
    """Return small valid files of many kinds."""
    numbers = tables.floats(300, 3, "float64")
    mixed = tables.mixed(200)
    decimals = pa.table(
        {
            "d": pa.array([Decimal(i) / 100 for i in range(100)], pa.decimal128(9, 2)),
            "t": pa.array([datetime(2020, 1, 1, tzinfo=UTC)] * 100),
            "i": pa.array(range(100), pa.uint8()),
        }
    )
    kinds: dict[str, tuple[pa.Table, dict]] = {
        "plain": (numbers, {"use_dictionary": False, "compression": "none"}),
        "dictionary": (mixed, {"compression": "snappy", "row_group_size": 70}),
        "zstd": (mixed, {"compression": "zstd", "data_page_version": "2.0"}),
        "gzip": (decimals, {"compression": "gzip", "write_page_checksum": True}),
        "split": (
            numbers,
            {
                "use_dictionary": False,
                "column_encoding": "BYTE_STREAM_SPLIT",
                "compression": "lz4",
            },
        ),
        "delta": (
            decimals.select(["i"]),
            {"use_dictionary": False, "column_encoding": {"i": "DELTA_BINARY_PACKED"}},
        ),
        "no stored schema": (
            mixed.select(["x", "text", "list", "struct"]),
            {"store_schema": False},
        ),
    }
    found = {}
    for name, (table, how) in kinds.items():
        path = folder / "seed.parquet"
        pq.write_table(table, path, **how)
        found[name] = path.read_bytes()
        path.unlink()
    return found


def mutated(content: bytes, draw: random.Random) -> bytes:
    """Return `content` with something wrong, more often in the footer than elsewhere."""
    changed = bytearray(content)
    footer = int.from_bytes(content[-8:-4], "little") + 8
    for _ in range(draw.choice((1, 1, 1, 2, 5))):
        low = len(changed) - footer if draw.random() < 0.5 else 0
        at = draw.randrange(max(low, 0), len(changed))
        kind = draw.randrange(6)
        if kind == 0:
            changed[at] ^= 1 << draw.randrange(8)
        elif kind == 1:
            changed[at] = draw.choice((0, 0x7F, 0x80, 0xFF))
        elif kind == 2:
            changed[at] = draw.randrange(256)
        elif kind == 3:
            del changed[at : at + draw.randrange(1, 9)]
        elif kind == 4:
            changed[at:at] = draw.randbytes(draw.randrange(1, 9))
        else:
            length = draw.randrange(1, 9)
            changed[at : at + length] = b"\xff" * length
        if len(changed) < 12:
            break
    return bytes(changed)


def run_batch(folder: Path, cases: list[tuple[str, bytes]]) -> list[str]:
    """Normalize every case and return what went wrong."""
    (folder / "cases").mkdir(exist_ok=True)
    lines = {}
    for number, (name, content) in enumerate(cases):
        path = folder / "cases" / f"{number}.parquet"
        path.write_bytes(content)
        lines[name] = json.dumps([name, str(path), f"out-{number}"])
    wrong, counts = [], Counter()
    waiting = list(lines)
    while waiting:
        done = subprocess.run(
            [sys.executable, "-c", BATCH],
            input="\n".join(lines[name] for name in waiting),
            cwd=folder,
            env=cli.environment(),
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        answers = [json.loads(line) for line in done.stdout.splitlines()]
        for answer in answers:
            if "end" in answer:
                counts[answer["code"]] += 1
                waiting.remove(answer["end"])
                said = answer["said"]
                if answer["code"] not in OUTCOMES:
                    wrong.append(f"{answer['end']}: {answer['code']} {said[:300]}")
                elif said and not said.isprintable():
                    wrong.append(f"{answer['end']}: raw control characters in {said[:300]!r}")
                elif answer["left"]:
                    wrong.append(f"{answer['end']}: left behind {answer['left']}")
            elif answer.get("peak", 0) > LIMIT:
                wrong.append(f"peak of {answer['peak']} bytes")
        if done.returncode != 0:
            assert any(answer.get("begin") == waiting[0] for answer in answers), done
            began = waiting[0]
            last = done.stderr.strip().splitlines()[-1:] or [""]
            wrong.append(f"{began}: the process died with {done.returncode}: {last[0][:300]}")
            waiting.remove(began)
            for path in folder.glob("out-*"):
                subprocess.run(["rm", "-rf", str(path)], check=True)
        elif "panicked" in done.stderr or "Traceback" in done.stderr:
            wrong.append(done.stderr[:500])
    assert counts[0] + counts[4] + counts[7] + len(wrong) >= len(cases), counts
    return wrong


def fuzz(folder: Path, kind: str, cases: int, seed: int) -> list[str]:
    content = seeds(folder)[kind]
    draw = random.Random(f"{kind} {seed}")
    named = [(f"{kind} {seed} {n}", mutated(content, draw)) for n in range(cases)]
    return run_batch(folder, named)


KINDS = ("plain", "dictionary", "zstd", "gzip", "split", "delta", "no stored schema")


@pytest.mark.parametrize("kind", KINDS)
def test_flipped_bytes(tmp_path, kind):
    wrong = fuzz(tmp_path, kind, DEFAULT_CASES, seed=0)
    assert not wrong, "\n".join(wrong)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 4))
@pytest.mark.parametrize("kind", KINDS)
def test_many_flipped_bytes(tmp_path, kind, seed):
    wrong = fuzz(tmp_path, kind, SLOW_CASES, seed)
    assert not wrong, "\n".join(wrong)


def test_valid_files_are_normalized(run_cli, tmp_path):
    """The seeds themselves, so that the fuzzer does not fuzz what is refused anyway."""
    for number, content in enumerate(seeds(tmp_path).values()):
        (tmp_path / f"{number}.parquet").write_bytes(content)
        run_cli("normalize", f"{number}.parquet", f"out{number}").expect(0)


@pytest.mark.parametrize("kind", ["plain", "zstd"])
def test_every_truncation(tmp_path, kind):
    content = seeds(tmp_path)[kind]
    lengths = sorted({*range(40), *range(0, len(content), max(len(content) // 60, 1))})
    wrong = run_batch(tmp_path, [(f"cut at {n}", content[:n]) for n in lengths])
    assert not wrong, "\n".join(wrong)


def test_every_length_of_the_footer(tmp_path):
    content = seeds(tmp_path)["plain"]
    cases = []
    for length in (0, 1, 7, 8, 100, len(content), len(content) + 1, 2**31 - 1, 2**31, 2**32 - 1):
        cases.append(
            (f"footer {length}", content[:-8] + length.to_bytes(4, "little") + content[-4:])
        )
    for magic in (b"PARE", b"\0\0\0\0", b"PAR2", b"1RAP"):
        cases.append((f"magic {magic!r}", content[:-4] + magic))
    wrong = run_batch(tmp_path, cases)
    assert not wrong, "\n".join(wrong)


def test_junk(tmp_path):
    draw = random.Random("junk")
    cases = [(f"junk {n}", draw.randbytes(draw.randrange(2000))) for n in range(60)]
    cases += [
        (f"framed {n}", b"PAR1" + junk[:-8] + junk[-4:] + b"PAR1")
        for n, (_, junk) in enumerate(cases)
    ]
    wrong = run_batch(tmp_path, cases)
    assert not wrong, "\n".join(wrong)


def test_a_decompression_bomb_stays_within_the_limit(tmp_path):
    """16,000,000 equal rows in a few kilobytes, in one row group that claims to be small."""
    rows = 16_000_000
    table = pa.table({"x": pa.array([1.5]).take(pa.array([0] * 1)).cast(pa.float64())})
    whole = pa.Table.from_arrays(
        [
            pa.DictionaryArray.from_arrays(
                pa.array(bytearray(rows), pa.int8()), table["x"].chunk(0)
            ).cast(pa.float64())
        ],
        names=["x"],
    )
    pq.write_table(whole, tmp_path / "in.parquet", row_group_size=rows, compression="zstd")
    assert (tmp_path / "in.parquet").stat().st_size < 100_000
    done = cli.run(
        "normalize", "in.parquet", "out", "--memory-limit", "400MB", "--json", cwd=tmp_path
    )
    done.expect(0, 4, 7)
    if done.code == 0:
        assert done.summary["measured_peak"] <= 400_000_000
