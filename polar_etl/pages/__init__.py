"""Pages of Parquet files: their notation, and how they are read."""
