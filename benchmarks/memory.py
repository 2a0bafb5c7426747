"""How does the peak compare with the limit, and with what the plan projected?

    python -m benchmarks.memory --tables narrow,bigrg --limits 300MB,512MB,1GB --scale 0.1

"kernel peak" is the high-water mark that the kernel kept of the process (VmHWM), "tree peak" the
largest sum over the process tree, sampled every 5 ms. As root, everything runs a second time inside
a control group of exactly the limit, in which the kernel kills what needs more; so do the five
lines of Polars.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path

from benchmarks import measure
from benchmarks.cgroup import limited
from benchmarks.contestants import normalize, peer
from benchmarks.tables import add_arguments, data_of, table_names

_TIMEOUT = 1800.0
_REFUSED = 7


def _megabytes(size: object) -> str:
    return f"{size / 1e6:.0f}" if isinstance(size, (int, float)) else ""


def _summary(run: measure.Run) -> dict[str, object]:
    """Return the last line that polar-etl printed with `--json`."""
    try:
        found = json.loads(measure.last_line(run.stdout))
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def under_limit(source: Path, scratch: Path, limit: str) -> dict[str, object]:
    """Plan and run polar-etl under a limit; return projected and measured peaks in bytes."""
    plan = measure.run(
        (sys.executable, "-m", "polar_etl", "plan", str(source), "--memory-limit", limit, "--json")
    )
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    run = measure.run(normalize(source, scratch / "out", limit), timeout=_TIMEOUT)
    summary = _summary(run)
    return {
        "exit_code": run.exit_code,
        "limit": _summary(plan).get("memory_limit"),
        "projected": _summary(plan).get("projected_peak"),
        "kernel_peak": summary.get("measured_peak"),
        "tree_peak": run.tree_peak,
        "wall": run.wall,
        "message": "" if run.ok else run.reason,
    }


def in_group(command: tuple[str, ...], scratch: Path, limit: int) -> dict[str, object] | None:
    """Run a command inside a control group; None where none can be made."""
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    with limited(limit) as group:
        if group is None:
            return None
        run = measure.run(command, cgroup_procs=group.procs, timeout=_TIMEOUT)
        return {
            "exit_code": run.exit_code,
            "kills": group.kills(),
            "group_peak": group.peak(),
            "tree_peak": run.tree_peak,
            "wall": run.wall,
        }


def _plain_row(name: str, limit: str, found: dict[str, object]) -> dict[str, str]:
    peak, most = found["kernel_peak"], found["limit"]
    both = isinstance(peak, int) and isinstance(most, int)
    exit_code = found["exit_code"]
    return {
        "table": name,
        "limit": limit,
        "projected MB": _megabytes(found["projected"]),
        "kernel peak MB": _megabytes(peak),
        "tree peak MB": _megabytes(found["tree_peak"]) if exit_code == 0 else "",
        "peak / limit": f"{peak / most:.2f}" if both else "",  # type: ignore[operator]
        "wall s": f"{found['wall']:.1f}",
        "exit": "refused" if exit_code == _REFUSED else str(exit_code),
    }


def _group_row(name: str, limit: str, who: str, found: dict[str, object]) -> dict[str, str]:
    return {
        "table": name,
        "group of": limit,
        "who": who,
        "tree peak MB": _megabytes(found["tree_peak"]),
        "group peak MB": _megabytes(found["group_peak"]),
        "kills": str(found["kills"]),
        "exit": str(found["exit_code"]),
        "wall s": f"{found['wall']:.1f}",
    }


def main() -> None:
    """Measure every table under every limit, outside and inside a control group."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--tables", type=table_names, default=["narrow", "wide", "bigrg"], metavar="A,B"
    )
    parser.add_argument("--limits", default="300MB,512MB,1GB")
    parser.add_argument("--json", type=Path, metavar="FILE")
    add_arguments(parser)
    parser.set_defaults(scale=0.1)
    arguments = parser.parse_args()
    data = data_of(arguments)
    plain, grouped = [], []
    kept: list[dict[str, object]] = []
    for name in arguments.tables:
        source, scratch = data.path(name), data.scratch(name)
        lines = peer("polars", source, scratch.parent)
        commands = {"the five lines": (*lines.command[:-1], str(scratch / "out.parquet"))}
        for limit in arguments.limits.split(","):
            print(f"{name} {limit}", file=sys.stderr)
            found = under_limit(source, scratch, limit)
            plain.append(_plain_row(name, limit, found))
            kept.append({"table": name, "who": "polar-etl", **found})
            if found["exit_code"] == _REFUSED or not isinstance(found["limit"], int):
                print(f"  {found['message']}", file=sys.stderr)
                continue
            commands["polar-etl"] = normalize(source, scratch / "out", limit)
            for who, command in commands.items():
                inside = in_group(command, scratch, found["limit"])
                if inside:
                    grouped.append(_group_row(name, limit, who, inside))
                    kept.append({"table": name, "who": who, "group": limit, **inside})
        shutil.rmtree(scratch, ignore_errors=True)
    print(f"\n### polar-etl under a limit, scale {data.scale:g}\n\n{measure.markdown(plain)}")
    if grouped:
        print(f"\n### Inside a control group of the limit\n\n{measure.markdown(grouped)}")
    elif any(row["exit"] == "0" for row in plain):
        print("\nNo control group could be made: run as root to see what the kernel kills.")
    measure.write_json(arguments.json, {"scale": data.scale, "seed": data.seed, "runs": kept})


if __name__ == "__main__":
    main()
