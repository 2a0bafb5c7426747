"""How do we compare with what one would write in DuckDB, scikit-learn, pandas, Dask or Spark?

    python -m benchmarks.compare --table narrow --peers polars,duckdb,sklearn,pandas,dask,spark
    python -m benchmarks.compare --table wide --scale 0.02 --repeat 2   # a quick look

The code of each peer is in `benchmarks/peers`. Each runs in a process of its own, in turn with the
others. Its output is checked against ours, value by value; "x ours" is its wall time over ours,
round by round. Dask and Spark say how long their cluster took to start; "x ours, started" leaves
that out. "python" is ourselves, called from Python. Peers that are not installed are left out, with
a line that says so. Of a peer with worker processes or a JVM, "tree MB" counts all of them, "peak
MB" only the largest that it waited for.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
from dataclasses import replace
from pathlib import Path

from benchmarks import measure, plots
from benchmarks.agreement import Agreement, agreement
from benchmarks.contestants import PEERS, missing, ours, peer, scaler_of
from benchmarks.tables import TABLES, Data, add_arguments, data_of

_CHOICES = tuple(name for name in PEERS if name != "copy")


def compare(
    name: str, data: Data, peers: list[str], limit: str, repeat: int
) -> tuple[dict[str, list[measure.Run]], list[dict[str, str]], dict[str, object]]:
    """Measure one table; return its runs, the rows to show and the JSON object to keep."""
    source, scratch = data.path(name), data.scratch(name)
    mine = ours(source, scratch, limit)
    contestants = [mine, *(peer(other, source, scratch) for other in peers)]
    agreed: dict[str, Agreement] = {}
    try:
        measure.warm(source)
        runs = measure.race(contestants, repeat)
        if not runs[mine.name][-1].ok:
            sys.exit(f"polar-etl fails: {runs[mine.name][-1].reason}")
        for other in contestants[1:]:
            if runs[other.name][-1].ok:
                agreed[other.name] = agreement(mine.output, other.output, scaler_of(mine))
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    rows = [
        {
            **measure.row(one.name, runs[one.name]),
            "x ours": str(measure.ratio(runs[one.name], runs[mine.name]) or ""),
            **_started(runs[one.name], runs[mine.name]),
            "max |Δz|": str(agreed.get(one.name, "")),
        }
        for one in contestants
    ]
    result: dict[str, object] = {
        "table": name,
        "runs": measure.runs_as_json(runs),
        "startup": {key: [startup(run) for run in several] for key, several in runs.items()},
        "largest_difference": {key: found.largest for key, found in agreed.items()},
        "agrees": {key: found.ok for key, found in agreed.items()},
    }
    return runs, rows, result


def startup(run: measure.Run) -> float:
    """Return the seconds until the cluster of a peer was ready, if it printed them; else 0."""
    words = run.stdout.split()
    return float(words[1]) if words[:1] == ["startup"] else 0.0


def _started(runs: list[measure.Run], mine: list[measure.Run]) -> dict[str, str]:
    """Return the cells about a peer that starts a cluster; none for others."""
    seconds = statistics.median(map(startup, runs))
    without = [replace(run, wall=run.wall - startup(run)) for run in runs]
    ratio = measure.ratio(without, mine)
    return {"start-up s": f"{seconds:.1f}", "x ours, started": str(ratio or "")} if seconds else {}


def _peers(text: str) -> list[str]:
    names = text.split(",")
    unknown = sorted(set(names) - set(_CHOICES))
    if unknown:
        raise argparse.ArgumentTypeError(f"no {', '.join(unknown)} among {', '.join(_CHOICES)}")
    return names


def main() -> None:
    """Measure the peers that the command line names; exit with 1 where outputs differ."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--table", choices=list(TABLES), default="narrow")
    parser.add_argument("--peers", type=_peers, default=list(_CHOICES), metavar="A,B")
    parser.add_argument("--limit", default="4GB", help="memory limit of polar-etl")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--json", type=Path, metavar="FILE")
    plots.add_argument(parser)
    add_arguments(parser)
    arguments = parser.parse_args()
    data = data_of(arguments)
    peers = []
    for name in arguments.peers:
        if library := missing(name):
            print(f"{name}: left out, {library} is not installed.", file=sys.stderr)
        else:
            peers.append(name)
    runs, rows, result = compare(arguments.table, data, peers, arguments.limit, arguments.repeat)
    print(f"\n### {arguments.table}, scale {data.scale:g}\n\n{measure.markdown(rows)}")
    measure.write_json(arguments.json, {"scale": data.scale, "seed": data.seed, **result})
    if arguments.plot:
        title = f"{arguments.table}, scale {data.scale:g}"
        plots.races(arguments.plot, {title: runs}, startup)
    agrees = result["agrees"]
    assert isinstance(agrees, dict)
    if not all(agrees.values()):
        sys.exit("Outputs differ.")


if __name__ == "__main__":
    main()
