"""An encoder of static word embeddings, from the ``wordllama`` package: offline, without a neural network."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from cramer_peft.errors import EncoderError, require


class WordLlamaEncoder:
    """Means of static token embeddings, 256 wide, from the weights inside the ``wordllama`` wheel.

    It is fast and works offline. It does not see the order of words, and "no" counts like any other word.

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
            # The package's own folder holds the tokenizer beside the weights; named as the cache, it is used.
            self._model = package.WordLlama.load(cache_dir=folder, disable_download=True)
        except FileNotFoundError as error:
            raise EncoderError(f"the installed wordllama has no weights or tokenizer in its wheel: {error}.") from error
        self._table = torch.from_numpy(self._model.embedding).float()
        self.dim = self._table.shape[1]

    def tokens(self) -> tuple[Tensor, Any]:
        """Return the table of token vectors, (tokens, 256) float32, and the tokenizer that numbers the tokens."""
        return self._table, self._model.tokenizer

    def encode(self, texts: Sequence[str]) -> Tensor:
        """Return the vectors of ``texts``, (texts, 256) float32: the package's own bits, or zeros without a token."""
        if not texts:
            return torch.empty(0, self.dim)
        numbers, counts = self._numbers(texts)
        starts = counts.cumsum(0) - counts
        sums = functional.embedding_bag(numbers, self._table, starts, mode="sum")
        return sums / counts.clamp(min=1)[:, None]

    def _numbers(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Return the token numbers of all texts, one text after the other, and how many each text has."""
        tokenizer = self._model.tokenizer
        tokenize = getattr(tokenizer, "encode_batch_fast", tokenizer.encode_batch)  # keeps no offsets
        found = tokenize(list(texts), add_special_tokens=False)
        lengths = [sum(one.attention_mask) for one in found]  # without padding, which is on the right
        numbers = [number for one, length in zip(found, lengths, strict=True) for number in one.ids[:length]]
        most = len(self._table) - 1
        return torch.tensor(numbers, dtype=torch.long).clamp(max=most), torch.tensor(lengths, dtype=torch.long)
