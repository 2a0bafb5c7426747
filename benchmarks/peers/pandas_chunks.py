"""pandas: two loops over chunks, whose moments are merged with Chan's formula."""

import sys

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

_CHUNK_VALUES = 1 << 23


def main(source: str, out: str) -> None:
    """Standardize the columns of `source` into the file `out`."""
    file = pq.ParquetFile(source, memory_map=True)
    schema = file.schema_arrow
    rows = max(_CHUNK_VALUES // len(schema), 1)
    count = mean = m2 = pd.Series(0.0, index=schema.names)
    for batch in file.iter_batches(rows):
        chunk = batch.to_pandas(split_blocks=True).astype("float64")
        n, centre = chunk.count(), chunk.mean()
        delta, total = centre - mean, count + n
        m2 = m2 + chunk.var(ddof=0) * n + delta**2 * count * n / total
        mean, count = mean + delta * n / total, total
    std = (m2 / count) ** 0.5
    with pq.ParquetWriter(
        out, schema, compression="zstd", compression_level=1, use_dictionary=False
    ) as writer:
        for batch in file.iter_batches(rows):
            scaled = (batch.to_pandas(split_blocks=True) - mean) / std
            writer.write_table(pa.Table.from_pandas(scaled, schema, preserve_index=False))


if __name__ == "__main__":
    main(*sys.argv[1:])
