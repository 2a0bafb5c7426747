"""What footers of Parquet files say: which columns there are, and where their chunks stand."""
