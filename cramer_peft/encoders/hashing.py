"""An encoder without a model: it hashes words and pairs of words. It is for tests, since it knows no meaning."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from cramer_peft.encoders.encoder import one_form
from cramer_peft.errors import EncoderError


class HashingEncoder:
    """Adds up a fixed random vector for each word and pair of neighbours, then normalises to length 1.

    Args:
        dim: Width of the vectors.
    """

    name = "hashing"

    def __init__(self, dim: int = 64) -> None:
        if not isinstance(dim, int) or isinstance(dim, bool) or dim < 1:
            raise EncoderError(f"dim must be a whole number of at least 1, found {dim!r}.")
        self.dim = dim

    def encode(self, texts: Sequence[str]) -> Tensor:
        """Return the vectors of ``texts``, (texts, dim) float32; equal texts give equal vectors in every process."""
        return torch.stack([self._vector(text) for text in texts])

    def _vector(self, text: str) -> Tensor:
        words = re.findall(r"\w+", one_form(text).lower()) or [text]
        features = words + [" ".join(pair) for pair in pairwise(words)]
        total = torch.zeros(self.dim)
        for feature in features:
            seed = int.from_bytes(hashlib.sha256(feature.encode()).digest()[:8], "little") >> 1
            total += torch.randn(self.dim, generator=torch.Generator().manual_seed(seed))
        return torch.nn.functional.normalize(total, dim=0)
