"""Metrics, tracks of requests, the evaluator that every command uses, and its results."""
