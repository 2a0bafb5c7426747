"""A reader: sum every column of a normalized table on the streaming engine."""

import sys

import polars as pl


def main(source: str) -> None:
    """Read all of `source`."""
    pl.scan_parquet(source).select(pl.all().sum()).collect(engine="streaming")


if __name__ == "__main__":
    main(*sys.argv[1:])
