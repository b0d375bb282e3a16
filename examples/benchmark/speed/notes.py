"""Notes of the rows that could not be measured, and why; the rest of the table stays."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

_LENGTH = 400  # of a reason


class Notes:
    """Rows that are left out of a table.

    Attributes:
        found: One ``{"row", "reason"}`` each.
    """

    def __init__(self) -> None:
        self.found: list[dict[str, str]] = []

    def add(self, row: str, reason: str) -> None:
        """Note that ``row`` is left out."""
        self.found.append({"row": row, "reason": reason})

    @contextlib.contextmanager
    def instead_of(self, row: str) -> Iterator[None]:
        """Note an error inside the block, and go on."""
        try:
            yield
        except Exception as error:
            self.add(row, reason_of(error))
            if torch.cuda.is_available():
                with contextlib.suppress(Exception):  # work that the error left on the device
                    torch.cuda.synchronize()


def reason_of(error: BaseException) -> str:
    """Return the first and the last of a chain of errors, on one line."""
    first = error
    while first.__context__ is not None and not first.__suppress_context__:
        first = first.__context__
    shown = [first] if first is error else [first, error]
    return "; then ".join(" ".join(f"{type(one).__name__}: {one}".split())[:_LENGTH] for one in shown)
