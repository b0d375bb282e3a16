"""Made-up sets of items as requests. They teach a generator to steer anywhere, not only to the attributes it knows."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

_SMALLEST, _LARGEST_SHARE = 15, 0.4


@dataclass(frozen=True)
class Concept:
    """A set of items that is wanted and one that is not, (items,) bool or None each."""

    wanted: Tensor | None
    unwanted: Tensor | None

    def among(self, items: Tensor | None) -> Concept:
        """Return the concept over some items, (n,) int64, in their order; None: over all."""
        if items is None:
            return self
        return Concept(*(None if side is None else side[items] for side in (self.wanted, self.unwanted)))


class ConceptGenerator:
    """Draws sets of items near each other by text, embedding (None: none) or both, (items, width) each."""

    def __init__(
        self, texts: Tensor, embeddings: Tensor | None, rng: random.Random, generator: torch.Generator
    ) -> None:
        self._text = functional.normalize(texts, dim=-1)
        self._embedding = self._text if embeddings is None else functional.normalize(embeddings, dim=-1)
        self._rng, self._generator = rng, generator

    def __call__(self, among: Tensor | None = None) -> Concept:
        """Draw a wanted set, an unwanted set, or one of each, of the items ``among``, (n,) int64; None: of all."""
        kind = self._rng.choices(("for", "against", "mixed"), (5, 3, 2))[0]
        return Concept(
            None if kind == "against" else self._members(among),
            None if kind == "for" else self._members(among),
        )

    def _members(self, among: Tensor | None) -> Tensor:
        """Draw a set, (items,) bool, not empty."""
        texts, embeddings = (v if among is None else v[among] for v in (self._text, self._embedding))
        items = len(texts)
        largest = max(_SMALLEST + 1, int(_LARGEST_SHARE * items))
        size = min(items, int(math.exp(self._rng.uniform(math.log(_SMALLEST), math.log(largest)))))
        members = torch.zeros(items, dtype=torch.bool)
        for _ in range(self._rng.choice((1, 1, 2, 3))):
            members[self._nearness(self._rng.randrange(items), texts, embeddings).topk(size).indices] = True
        kept = members & (torch.rand(items, generator=self._generator) < self._rng.choice((1.0, 0.8)))
        chosen = kept if bool(kept.any()) else members
        if among is None:
            return chosen
        everywhere = torch.zeros(len(self._text), dtype=torch.bool)
        everywhere[among[chosen]] = True
        return everywhere

    def _nearness(self, item: int, texts: Tensor, embeddings: Tensor) -> Tensor:
        by_embedding = self._rng.choice((0.0, 0.0, 0.3, 1.0))
        noise = self._rng.choice((0.0, 0.1, 0.3))
        drawn = torch.randn(len(texts), generator=self._generator)  # drawn in any case: later draws depend on it
        near = torch.zeros_like(drawn)
        for weight, vectors in ((1 - by_embedding, texts), (by_embedding, embeddings)):
            if weight:
                near += weight * (vectors @ vectors[item])
        return near + noise * drawn if noise else near


def concept_match(concepts: Sequence[Concept], items: int) -> Tensor:
    """Return 1 for wanted items, -1 for unwanted ones, 0 for both or neither, (concepts, items) float32."""
    match = torch.zeros(len(concepts), items)
    for row, concept in zip(match, concepts, strict=True):
        if concept.wanted is not None:
            row += concept.wanted
        if concept.unwanted is not None:
            row -= concept.unwanted.float()
    return match
