"""What the benchmark measures of a ranker: its tracks, further metrics, checks, and summaries with intervals."""
