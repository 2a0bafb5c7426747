"""A reader: go through a normalized table batch by batch, as a training loop does."""

import sys

import pyarrow.dataset as ds


def main(source: str) -> None:
    """Read all of `source`."""
    for _ in ds.dataset(source).to_batches():
        pass


if __name__ == "__main__":
    main(*sys.argv[1:])
