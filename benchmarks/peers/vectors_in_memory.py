"""Embeddings with Polars and NumPy: all of them in memory."""

import sys

import numpy as np
import polars as pl


def main(source: str, out: str) -> None:
    """Standardize the column `embedding` of `source` into the file `out`."""
    frame = pl.read_parquet(source)
    x = frame["embedding"].to_numpy()
    z = (x - x.mean(axis=0, dtype=np.float64)) / x.std(axis=0, dtype=np.float64)
    vectors = pl.Series("embedding", z.astype(np.float32))
    frame.with_columns(vectors).write_parquet(out, compression="zstd", compression_level=1)


if __name__ == "__main__":
    main(*sys.argv[1:])
