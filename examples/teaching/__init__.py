"""Teach the request reader anew; see README.md."""
