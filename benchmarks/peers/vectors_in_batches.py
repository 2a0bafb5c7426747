"""Embeddings with PyArrow and NumPy: two passes over batches, the second one writes."""

import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

_ROWS = 8_192


def main(source: str, out: str) -> None:
    """Standardize the column `embedding` of `source` into the file `out`."""
    file = pq.ParquetFile(source, memory_map=True)
    rows, total, squares = 0, 0.0, 0.0
    for batch in file.iter_batches(_ROWS, columns=["embedding"]):
        x = _matrix(batch).astype(np.float64)
        rows, total, squares = rows + len(x), total + x.sum(axis=0), squares + (x * x).sum(axis=0)
    mean = total / rows
    std = np.sqrt(squares / rows - mean * mean)
    place = file.schema_arrow.get_field_index("embedding")
    with pq.ParquetWriter(
        out, file.schema_arrow, compression="zstd", compression_level=1, use_dictionary=False
    ) as writer:
        for batch in file.iter_batches(_ROWS):
            z = ((_matrix(batch) - mean) / std).astype(np.float32)
            vectors = pa.FixedSizeListArray.from_arrays(pa.array(z.ravel()), z.shape[1])
            field = file.schema_arrow.field(place)
            writer.write_batch(batch.set_column(place, field, vectors.cast(field.type)))


def _matrix(batch: pa.RecordBatch) -> np.ndarray:
    vectors = batch.column("embedding")
    return vectors.flatten().to_numpy().reshape(len(vectors), -1)


if __name__ == "__main__":
    main(*sys.argv[1:])
