"""What does it cost to compress numbers that hardly shrink, and who pays for it?

    python -m benchmarks.levels --tables narrow,nulls --levels 1,3

Writes each table by default and at some levels of zstd, in turn, and then has Polars and PyArrow
read what was written.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks import measure
from benchmarks.contestants import ours
from benchmarks.measure import Contestant
from benchmarks.tables import Data, add_arguments, data_of, table_names

_LIMIT = "4GB"
_READERS = {"Polars": "polars_sum", "PyArrow": "pyarrow_batches"}


def compare(name: str, data: Data, levels: Sequence[str], repeat: int) -> list[dict[str, str]]:
    """Measure one table; return the rows to show."""
    source, scratch = data.path(name), data.scratch(name)
    writers = [
        ours(source, scratch, _LIMIT),
        *(ours(source, scratch, _LIMIT, "--compression-level", level) for level in levels),
    ]
    try:
        measure.warm(source)
        written = measure.race(writers, repeat)
        readers = {
            (writer.name, library): _reader(module, writer, scratch)
            for writer in writers
            for library, module in _READERS.items()
        }
        read = measure.race([*readers.values()], repeat)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    default = written[writers[0].name]
    return [
        {
            **measure.row(writer.name, written[writer.name]),
            "to the default": str(measure.ratio(written[writer.name], default) or ""),
            **{
                f"{library} reads, s": measure.row("", read[reader.name])["wall s"]
                for (written_by, library), reader in readers.items()
                if written_by == writer.name
            },
        }
        for writer in writers
    ]


def _reader(module: str, writer: Contestant, scratch: Path) -> Contestant:
    folder = scratch / f"{module} {writer.name}".replace(" ", "-")
    command = (sys.executable, "-m", f"benchmarks.peers.{module}", str(writer.output))
    return Contestant(f"{module} of {writer.name}", command, folder, folder)


def main() -> None:
    """Measure the tables that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tables", type=table_names, default=["narrow", "nulls"], metavar="A,B")
    parser.add_argument("--levels", default="1,3", help="such as 1,3")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--json", type=Path, metavar="FILE")
    add_arguments(parser)
    arguments = parser.parse_args()
    data, results = data_of(arguments), {}
    for name in arguments.tables:
        rows = results[name] = compare(name, data, arguments.levels.split(","), arguments.repeat)
        print(f"\n### {name}, scale {data.scale:g}\n\n{measure.markdown(rows)}", flush=True)
    measure.write_json(arguments.json, {"scale": data.scale, "seed": data.seed, "tables": results})


if __name__ == "__main__":
    main()
