"""The baseline that adds text similarity to the frozen model's scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from cramer_peft.recsys.catalogue import Catalogue
from cramer_peft.recsys.evaluation import EvaluationUsers, Scorer, Tracks
from cramer_peft.recsys.metrics import ndcg, target_ranks
from cramer_peft.recsys.requests import item_text

WEIGHTS = (1.0, 2.0, 5.0, 10.0, 20.0, 40.0)


class _Encoder(Protocol):
    def encode(self, texts: Sequence[str]) -> Tensor: ...


class TextFusion:
    """Scores f(item) + weight * cos(request, item text): the form of BLaIR, with a static encoder.

    An item's text is its title and attributes. Rows without a request get f alone.

    Args:
        backbone: The frozen model, f.
        encoder: Encodes requests and items alike.
        catalogue: The items.
        weight: Of the similarity.
    """

    def __init__(self, backbone: nn.Module, encoder: _Encoder, catalogue: Catalogue, weight: float = 10.0) -> None:
        self._backbone = backbone
        self._encoder = encoder
        self._items = normalize(
            encoder.encode([item_text(catalogue, index) for index in range(len(catalogue))]), dim=-1
        )
        self.weight = weight

    def __call__(self, item_ids: Tensor, requests: Sequence[str | None]) -> Tensor:
        """Scores, (rows, items)."""
        scores: Tensor = self._backbone(item_ids)
        asked = [row for row, request in enumerate(requests) if request is not None and request.strip()]
        if not asked:
            return scores
        vectors = normalize(self._encoder.encode([str(requests[row]) for row in asked]), dim=-1)
        similarity = (vectors @ self._items.T).to(scores)
        return scores.index_add(0, torch.tensor(asked, device=scores.device), self.weight * similarity)

    def tune(self, users: EvaluationUsers, tracks: Tracks) -> None:
        """Set the weight to the one of ``WEIGHTS`` with the best NDCG@10 on validation users' truthful requests."""

        def quality(weight: float) -> float:
            self.weight = weight
            return next_item_ndcg(self, users, tracks)

        self.weight = max(WEIGHTS, key=quality)


def next_item_ndcg(scorer: Scorer, users: EvaluationUsers, tracks: Tracks) -> float:
    """NDCG@10 of the next item under truthful requests."""
    scores = users.score(scorer, tracks.truthful).masked_fill(users.seen, -torch.inf)
    return float(ndcg(target_ranks(scores, users.targets)).mean())
