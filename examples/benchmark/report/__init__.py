"""The report of a benchmark: seeds pooled, tables, aims, pictures."""
