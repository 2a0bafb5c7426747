"""DuckDB: one aggregation, then `COPY` of a projection."""

import sys

import duckdb


def main(source: str, out: str) -> None:
    """Standardize the columns of `source` into the file `out`."""
    db = duckdb.connect()
    table = db.read_parquet(source)
    names = [f'"{name}"' for name in table.columns]
    wanted = [f"{function}({name})" for function in ("avg", "stddev_pop") for name in names]
    (stats,) = table.aggregate(", ".join(wanted)).fetchall()
    means, stds = stats[: len(names)], stats[len(names) :]
    scaled = ", ".join(
        f"(({name} - {mean!r}::DOUBLE) / {std!r}::DOUBLE)::{kind} AS {name}"
        for name, kind, mean, std in zip(names, table.types, means, stds, strict=True)
    )
    db.execute(
        f"COPY (SELECT {scaled} FROM read_parquet('{source}')) TO '{out}' "
        "(FORMAT parquet, COMPRESSION zstd, COMPRESSION_LEVEL 1)"
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
