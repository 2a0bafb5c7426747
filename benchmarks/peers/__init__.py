"""The same job as others would write it: standardize every numeric column of a Parquet file.

Each module is a script, `python -m benchmarks.peers.NAME IN OUT`, short and idiomatic, tuned with
the documented options of its library. All use the population's deviation (ddof 0) and zstd.
"""
