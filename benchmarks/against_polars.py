"""How do we compare with the five lines of Polars, and with the copy floor?

    python -m benchmarks.against_polars --tables narrow,wide --repeat 5
    python -m benchmarks.against_polars --scale 0.02 --repeat 2      # a quick look

The five lines are `benchmarks/peers/polars_lines.py`: no checkpoint, no limit, no fsync. The copy
floor reads what they wrote once and writes it once, at zstd level 1, without any arithmetic. Runs
alternate; ratios of wall time are taken round by round, and the median is shown with the extremes.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

from benchmarks import measure, plots
from benchmarks.agreement import agreement
from benchmarks.contestants import ours, peer, scaler_of
from benchmarks.tables import Data, add_arguments, data_of, limits_of, table_names


def compare(
    name: str, data: Data, limits: tuple[str, ...], repeat: int
) -> tuple[dict[str, list[measure.Run]], list[dict[str, str]], dict[str, object]]:
    """Measure one table; return its runs, the rows to show and the JSON object to keep."""
    source, scratch = data.path(name), data.scratch(name)
    lines = peer("polars", source, scratch)
    normalized = scratch / "normalized.parquet"
    try:
        scratch.mkdir(parents=True)
        _normalize_once(source, normalized)
        floor = peer("copy", normalized, scratch)
        polar_etl = [ours(source, scratch, limit) for limit in limits]
        measure.warm(source)
        contestants = [*polar_etl, lines, floor]
        runs = measure.race(contestants, repeat)
        agreed = {}
        if runs[lines.name][-1].ok:
            for one in polar_etl:
                if runs[one.name][-1].ok:
                    agreed[one.name] = agreement(one.output, lines.output, scaler_of(one))
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    rows, ratios = [], {}
    for one in contestants:
        to = {
            f"to {against.name}": measure.ratio(runs[one.name], runs[against.name])
            for against in (lines, floor)
        }
        ratios[one.name] = {key: found and found.median for key, found in to.items()}
        rows.append(
            {
                **measure.row(one.name, runs[one.name]),
                **{key: str(found or "") for key, found in to.items()},
                "max |Δz|": str(agreed.get(one.name, "")),
            }
        )
    result = {
        "runs": measure.runs_as_json(runs),
        "ratios": ratios,
        "largest_difference": {key: found.largest for key, found in agreed.items()},
        "agrees": all(found.ok for found in agreed.values()),
    }
    return runs, rows, result


def _normalize_once(source: Path, out: Path) -> None:
    made = measure.run([*peer("polars", source, out.parent).command[:-1], str(out)])
    if not made.ok:
        sys.exit(f"The five lines of Polars fail: {made.reason}")


def main() -> None:
    """Measure the tables that the command line names; exit with 1 where outputs differ."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tables", type=table_names, default=["narrow", "wide"], metavar="A,B")
    parser.add_argument("--limits", help="such as 4GB,512MB; default: those of each table")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--json", type=Path, metavar="FILE")
    plots.add_argument(parser)
    add_arguments(parser)
    arguments = parser.parse_args()
    data = data_of(arguments)
    races, results = {}, {}
    for name in arguments.tables:
        limits = tuple(arguments.limits.split(",")) if arguments.limits else limits_of(name)
        print(f"{name}:", file=sys.stderr)
        races[name], rows, results[name] = compare(name, data, limits, arguments.repeat)
        print(f"\n### {name}, scale {data.scale:g}\n\n{measure.markdown(rows)}", flush=True)
    measure.write_json(arguments.json, {"scale": data.scale, "seed": data.seed, "tables": results})
    if arguments.plot:
        plots.races(arguments.plot, races)
    if not all(result["agrees"] for result in results.values()):
        sys.exit("Outputs differ.")


if __name__ == "__main__":
    main()
