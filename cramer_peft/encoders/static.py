"""The static word embeddings of the ``wordllama`` package: offline, no network to run."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cramer_peft._extras import require
from cramer_peft.errors import EncoderError


class WordLlamaEncoder:
    """Means of static token embeddings, 256 wide, from the weights inside the ``wordllama`` wheel.

    It is fast and offline, and does not see word order: "no" and "not" weigh like any other word.

    Raises:
        MissingExtraError: If ``wordllama`` is not installed (extra ``wordllama``; it needs numpy 2).
    """

    name = "wordllama"

    def __init__(self) -> None:
        handlers = list(logging.root.handlers), logging.root.level
        package = require("wordllama", extra="wordllama")
        # Its import configures the root logger, which is the application's to configure.
        logging.root.handlers[:], logging.root.level = handlers
        folder = Path(str(package.__file__)).parent
        try:
            # Named as its cache, the package's own folder gives the tokenizer beside the weights.
            self._model = package.WordLlama.load(cache_dir=folder, disable_download=True)
        except FileNotFoundError as error:
            raise EncoderError(f"the installed wordllama has no weights or tokenizer in its wheel: {error}.") from error
        self.dim = int(self._model.embedding.shape[1])

    def tokens(self) -> tuple[Tensor, Any]:
        """The table of token vectors, (tokens, 256) float32, and the tokenizer that numbers them."""
        return torch.from_numpy(self._model.embedding).float(), self._model.tokenizer

    def encode(self, texts: Sequence[str]) -> Tensor:
        """Vectors of ``texts``, (texts, 256) float32; NaN where a text has no token."""
        return torch.from_numpy(self._model.embed(list(texts)))
