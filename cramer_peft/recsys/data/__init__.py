"""Data sets, catalogues of items, users' histories and how they are split."""
