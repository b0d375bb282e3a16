"""Lists for millions of rows: Parquet in, Parquet out."""
