"""Compare request masks with other methods on real data; see README.md."""
