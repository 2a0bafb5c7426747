"""Spark: a DataFrame in local mode with two threads."""

import sys
import time


def main(source: str, out: str) -> None:
    """Standardize the columns of `source` into the directory `out`."""
    started = time.perf_counter()
    from pyspark.sql import SparkSession
    from pyspark.sql import functions as f

    spark = (
        SparkSession.builder.master("local[2]")
        .config("spark.driver.memory", "8g")
        .config("spark.ui.enabled", "false")
        .config("spark.sql.parquet.compression.codec", "zstd")
        .getOrCreate()
    )
    spark.range(1).count()
    print("startup", time.perf_counter() - started)
    frame = spark.read.parquet(source)
    names = frame.columns
    stats = frame.agg(*map(f.avg, names), *map(f.stddev_pop, names)).first()
    scaled = [
        ((f.col(name) - stats[i]) / stats[len(names) + i]).cast(kind).alias(name)
        for i, (name, kind) in enumerate(frame.dtypes)
    ]
    frame.select(*scaled).write.parquet(out)
    spark.stop()


if __name__ == "__main__":
    main(*sys.argv[1:])
