"""Measurements that answer one question per module; each says how to run it.

    python -m benchmarks.against_polars   five lines of Polars, and the copy floor, against us
    python -m benchmarks.compare          DuckDB, scikit-learn, pandas, Dask and Spark against us
    python -m benchmarks.scaling          time and peak against rows, columns, files, threads, limit
    python -m benchmarks.profile          where the time of one run goes
    python -m benchmarks.accuracy         the digits of mean and deviation that are right, by method
    python -m benchmarks.memory           the peak against the limit, on every shape
    python -m benchmarks.kernels          the arithmetic alone, NumPy tiles against Polars
    python -m benchmarks.durability       faults of every kind, and what durability costs

They need `pip install -e '.[benchmark]'` and run from the root of the repository.
"""
