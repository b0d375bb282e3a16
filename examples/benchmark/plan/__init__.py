"""The plan of a benchmark: its cells, the time each will take, and those that fit a budget."""
