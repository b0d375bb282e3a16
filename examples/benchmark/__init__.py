"""The benchmark: what is run, how it is measured, and what is shown of it."""
