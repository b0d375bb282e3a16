"""Data sets, catalogues of items, histories of users, and splits."""
