"""How do we compare with what one would write for embeddings with NumPy?

    python -m benchmarks.embeddings --repeat 5
    python -m benchmarks.embeddings --scale 0.1 --repeat 2      # a quick look

The five lines of Polars have no expression for the columns of a vector. So embeddings are loaded as
a whole (`benchmarks/peers/vectors_in_memory.py`), or gone through in batches, twice
(`vectors_in_batches.py`). The table is 500,000 vectors of 768 float32. Runs alternate; what each
writes is checked against ours, value by value.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path

import numpy as np

from benchmarks import measure
from benchmarks.contestants import OF_VECTORS, ours, peer
from benchmarks.shapes import SHAPES
from benchmarks.tables import add_arguments, data_of

_ROWS = 20_000
_TOLERANCE = 1e-5


def difference(ours_: Path, theirs: Path) -> float:
    """Return the largest difference of any number of two outputs, infinity if one has more."""
    largest = 0.0
    for a, b in zip_longest(_vectors(ours_), _vectors(theirs)):
        if a is None or b is None or a.shape != b.shape:
            return float("inf")
        largest = max(largest, float(np.abs(a - b).max(initial=0.0)))
    return largest


def _vectors(path: Path) -> Iterator[np.ndarray]:
    """Yield the vectors of an output, so many at a time."""
    import pyarrow.dataset as ds

    from polar_etl.sources.base import cut

    batches = ds.dataset(path).to_batches(batch_size=_ROWS)
    tables = (ds.dataset(batch).to_table() for batch in batches)
    lengths = iter(lambda: _ROWS, 0)
    for table in cut(tables, lengths):
        flat = table["embedding"].combine_chunks().flatten()
        yield flat.to_numpy().reshape(len(table), -1).astype(np.float64)


def main() -> None:
    """Measure; exit with 1 where outputs differ."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--limits", default="4GB,512MB", metavar="A,B")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--json", type=Path, metavar="FILE")
    add_arguments(parser)
    arguments = parser.parse_args()
    data = data_of(arguments)
    source, scratch = SHAPES["vectors"].path("vectors", data), data.scratch("vectors")
    mine = [ours(source, scratch, limit) for limit in arguments.limits.split(",")]
    others = [peer(name, source, scratch) for name in OF_VECTORS]
    try:
        measure.warm(source)
        runs = measure.race([*mine, *others], arguments.repeat)
        apart = {
            other.name: difference(mine[0].output, other.output)
            for other in others
            if runs[mine[0].name][-1].ok and runs[other.name][-1].ok
        }
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    rows = [
        {
            **measure.row(one.name, runs[one.name]),
            "x the first": str(measure.ratio(runs[one.name], runs[mine[0].name]) or ""),
            "max |Δz|": f"{apart[one.name]:.1e}" if one.name in apart else "",
        }
        for one in (*mine, *others)
    ]
    print(f"\n### embeddings, scale {data.scale:g}\n\n{measure.markdown(rows)}")
    result = {"runs": measure.runs_as_json(runs), "largest_difference": apart}
    measure.write_json(arguments.json, {"scale": data.scale, "seed": data.seed, **result})
    if any(found > _TOLERANCE for found in apart.values()):
        sys.exit("Outputs differ.")


if __name__ == "__main__":
    main()
