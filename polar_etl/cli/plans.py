"""How a plan is shown."""

from __future__ import annotations

from collections import Counter
from typing import Any

from polar_etl.api import Prepared
from polar_etl.errors import describe
from polar_etl.memory import format_size
from polar_etl.planning.batches import extents
from polar_etl.planning.plan import Plan
from polar_etl.planning.selection import reason_to_pass

_SHOWN = 5


def moment_batches(ready: Prepared) -> int:
    """Return the batches of the first pass; there is none where nothing is normalized."""
    if not ready.settings.features:
        return 0
    groups, many = [file.group_rows for file in ready.source.files], len(ready.settings.features)
    return sum(1 for rows in groups for _ in extents(rows, 0, ready.plan, many))


def plan_fields(ready: Prepared) -> dict[str, Any]:
    """Return the plan as a JSON object."""
    source, plan, settings = ready.source, ready.plan, ready.settings
    chosen = set(settings.features.columns)
    rows = sum(file.rows for file in source.files)
    return {
        "files": len(source.files),
        "rows": rows,
        "columns": len(source.schema),
        "row_groups": sum(len(file.group_rows) for file in source.files),
        "normalized_columns": len(chosen),
        "vectors": dict(settings.features.vectors),
        "passed_columns": {
            column.name: reason_to_pass(column)
            for column in source.schema
            if column.name not in chosen
        },
        "batches": moment_batches(ready) + plan.parts,
        "parts": plan.parts,
        "parts_at_a_time": plan.parts_at_a_time,
        "rows_per_part": plan.part_rows,
        "row_group_rows": plan.slab_rows,
        "threads": plan.threads,
        "processes": plan.processes,
        "memory_limit": plan.limit,
        "projected_peak": plan.projected,
        "bill": dict(plan.bill),
        "bytes_in": sum(file.size for file in source.files),
    }


def _workers(plan: Plan) -> str:
    apart = f" in {plan.processes} processes" if plan.processes > 1 else ""
    return f"{plan.threads} threads{apart}"


def _at_a_time(parts: int) -> str:
    return f", {parts} at a time" if parts > 1 else ""


def plan_lines(ready: Prepared) -> list[str]:
    """Return the plan as text."""
    fields = plan_fields(ready)
    passed: dict[str, str] = fields["passed_columns"]
    lines = [
        f"input       {fields['files']} files, {fields['rows']:,} rows, {fields['columns']:,} "
        f"columns, {fields['row_groups']} row groups, {format_size(fields['bytes_in'])}",
        f"normalize   {fields['normalized_columns']:,} columns",
    ]
    vectors: dict[str, int] = fields["vectors"]
    shown = [f"{describe(name)} of {size:,} dimensions" for name, size in vectors.items()]
    if shown:
        more = f" and {len(shown) - _SHOWN} more" if len(shown) > _SHOWN else ""
        lines.append(f"            {', '.join(shown[:_SHOWN])}{more}")
    lines.append(f"pass on     {len(passed):,} columns")
    for reason, count in Counter(passed.values()).most_common():
        names = [describe(name) for name, why in passed.items() if why == reason]
        more = f" and {count - _SHOWN} more" if count > _SHOWN else ""
        lines.append(f"            {', '.join(names[:_SHOWN])}{more}: {reason}")
    lines += [
        f"batches     {fields['batches']}, of which {fields['parts']} write parts of "
        f"{fields['rows_per_part']:,} rows{_at_a_time(fields['parts_at_a_time'])}",
        f"memory      projected peak {format_size(ready.plan.projected)} of "
        f"{format_size(ready.plan.limit)}, {_workers(ready.plan)}",
    ]
    lines += [f"  {format_size(size):>8}  {name}" for name, size in ready.plan.bill]
    return lines
