"""An encoder that looks up vectors that were made elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from cramer_peft.errors import EncoderError


class PrecomputedEncoder:
    """Looks request vectors up by their exact text.

    Args:
        vectors: Text → vector, all of the same width.

    Raises:
        EncoderError: If there are no vectors, or one is not a vector of the same width as the others.
    """

    name = "precomputed"

    def __init__(self, vectors: Mapping[str, Tensor]) -> None:
        if not vectors:
            raise EncoderError("precomputed vectors are empty: give at least one text and its vector.")
        first = next(iter(vectors.values()))
        for text, vector in vectors.items():
            if vector.dim() != 1 or vector.shape != first.shape:
                raise EncoderError(
                    f"the precomputed vector of {text!r} has shape {tuple(vector.shape)}, expected "
                    f"{tuple(first.shape)} as the first one and one dimension."
                )
        self._vectors = dict(vectors)
        self.dim = int(first.shape[0])

    def encode(self, texts: Sequence[str]) -> Tensor:
        """Return the vectors of ``texts``, (texts, dim).

        Raises:
            EncoderError: If a text has no vector.
        """
        unknown = [text for text in texts if text not in self._vectors]
        if unknown:
            raise EncoderError(f"no precomputed vector for the text {unknown[0]!r} ({len(unknown)} texts have none).")
        return torch.stack([self._vectors[text] for text in texts])
