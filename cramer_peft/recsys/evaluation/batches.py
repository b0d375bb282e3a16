"""How many rows are scored and measured together, so that memory does not grow with the catalogue.

A table of scores, (rows, items), has at most ``CELLS`` cells, unless one row is longer. What a metric needs beside the
table is computed for a few rows at a time.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

CELLS = 2**25  # of a table of scores: 128 MiB of float32
_PIECE = 2**21  # cells of what a metric needs beside the table; small memory is used again, large is fetched anew


def rows_together(items: int, most: int) -> int:
    """Return how many rows of ``items`` scores each are handled together: at most ``most``, at least 1."""
    return max(1, min(most, CELLS // max(1, items)))


def by_rows(measure: Callable[..., Tensor], items: int, *tables: Tensor) -> Tensor:
    """Return ``measure(*tables)``, computed for a few rows at a time.

    Args:
        measure: Gives a tensor with one entry per row, each from the same row of the tables alone.
        items: Cells that a row needs.
        tables: Tensors with equally many rows.

    Returns:
        The results, one under another.
    """
    rows = max(1, _PIECE // max(1, items))
    if len(tables[0]) <= rows:
        return measure(*tables)
    pieces = zip(*(table.split(rows) for table in tables), strict=True)
    return torch.cat([measure(*piece) for piece in pieces])
