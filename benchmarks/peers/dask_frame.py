"""Dask: a DataFrame over row groups on a local cluster of two workers."""

import sys
import time


def main(source: str, out: str) -> None:
    """Standardize the columns of `source` into the directory `out`."""
    started = time.perf_counter()
    import dask
    import dask.dataframe as dd
    from distributed import Client, LocalCluster

    cluster = LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None)
    with cluster, Client(cluster):
        print("startup", time.perf_counter() - started)
        frame = dd.read_parquet(source, split_row_groups=True)
        mean, std = dask.compute(frame.mean(), frame.std(ddof=0))
        scaled = frame.map_partitions(
            lambda chunk: ((chunk - mean) / std).astype(chunk.dtypes), meta=frame.dtypes.to_dict()
        )
        scaled.to_parquet(
            out,
            name_function=lambda number: f"part-{number:05}.parquet",
            write_index=False,
            compression="zstd",
            compression_level=1,
            use_dictionary=False,
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
