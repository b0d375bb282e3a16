"""Requests in natural language: wordings, what they ask, and how they become vectors."""
