"""Metrics, tracks of requests, and what a method is measured by."""
