"""polar-etl itself, as a program in Python calls it, in 4 GB."""

import sys

import polar_etl as pe


def main(source: str, out: str) -> None:
    """Standardize `source` into `out`."""
    pe.normalize(source, out, memory_limit="4GB")


if __name__ == "__main__":
    main(*sys.argv[1:])
