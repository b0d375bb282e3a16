"""Files read and written by transformers, without its progress bars, which last for milliseconds and fill logs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def no_file_bars() -> Iterator[None]:
    """Turn off the progress bars of transformers inside the block."""
    from transformers.utils import logging  # whoever reads a model has imported it

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
