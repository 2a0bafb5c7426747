"""scikit-learn: `StandardScaler.partial_fit` over PyArrow batches, then `transform` over them."""

import sys

import pyarrow as pa
import pyarrow.parquet as pq
from sklearn.preprocessing import StandardScaler

_BATCH_VALUES = 1 << 23


def main(source: str, out: str) -> None:
    """Standardize the columns of `source` into the file `out`."""
    file = pq.ParquetFile(source, memory_map=True)
    schema = file.schema_arrow
    rows = max(_BATCH_VALUES // len(schema), 1)
    scaler = StandardScaler(copy=False)
    for batch in file.iter_batches(rows):
        scaler.partial_fit(_matrix(batch))
    with pq.ParquetWriter(
        out, schema, compression="zstd", compression_level=1, use_dictionary=False
    ) as writer:
        for batch in file.iter_batches(rows):
            scaled = scaler.transform(_matrix(batch))
            columns = [pa.array(column, from_pandas=True) for column in scaled.T]
            writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=schema))


def _matrix(batch: pa.RecordBatch) -> object:
    """Return a batch column by column, NaN where a null is: scikit-learn skips NaN."""
    return batch.to_tensor(null_to_nan=True, row_major=False).to_numpy()


if __name__ == "__main__":
    main(*sys.argv[1:])
