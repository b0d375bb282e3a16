"""Requests in natural language: their wordings, their meaning, and their vectors."""
