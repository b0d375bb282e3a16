"""Text fusion: a baseline that adds text similarity to the frozen model's scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from cramer_peft.recsys.data.catalogue import Catalogue
from cramer_peft.recsys.data.histories import seen_mask
from cramer_peft.recsys.devices import brought_to
from cramer_peft.recsys.evaluation.batches import rows_together
from cramer_peft.recsys.evaluation.metrics import ndcg, unseen_ranks
from cramer_peft.recsys.evaluation.users import BATCH, EvaluationUsers
from cramer_peft.recsys.requests.attribute_requests import item_text

WEIGHTS = (1.0, 2.0, 5.0, 10.0, 20.0, 40.0)


class _Encoder(Protocol):
    def encode(self, texts: Sequence[str]) -> Tensor: ...


class TextFusion:
    """Scores items by f(item) + weight * cos(request, item text), the form of BLaIR; f is the frozen model."""

    def __init__(self, backbone: nn.Module, encoder: _Encoder, catalogue: Catalogue, weight: float = 10.0) -> None:
        self._backbone = backbone
        self._encoder = encoder
        self._items = normalize(
            encoder.encode([item_text(catalogue, index) for index in range(len(catalogue))]), dim=-1
        )
        self.weight = weight

    def __call__(self, item_ids: Tensor, requests: Sequence[str | None]) -> Tensor:
        """Return the scores, (rows, items), on the backbone's device."""
        return self._fused(*self._parts(item_ids, requests), self.weight)

    def _parts(self, item_ids: Tensor, requests: Sequence[str | None]) -> tuple[Tensor, Tensor, Tensor]:
        """Return the frozen scores (rows, items), the rows with a request, and their similarities (asked, items)."""
        scores: Tensor = self._backbone(brought_to(self._backbone, item_ids))
        asked = [row for row, request in enumerate(requests) if request is not None and request.strip()]
        index = torch.tensor(asked, dtype=torch.long, device=scores.device)
        if not asked:
            return scores, index, scores[:0]
        vectors = normalize(self._encoder.encode([str(requests[row]) for row in asked]), dim=-1)
        return scores, index, (vectors @ self._items.T).to(scores)

    @staticmethod
    def _fused(scores: Tensor, asked: Tensor, similarity: Tensor, weight: float) -> Tensor:
        return scores.index_add(0, asked, weight * similarity) if len(asked) else scores

    @torch.no_grad()
    def tune(self, users: EvaluationUsers, texts: Sequence[str | None], weights: Sequence[float] | None = None) -> None:
        """Set the weight with the best NDCG@10 of the validation users who have a text; the first if nobody has one.

        Args:
            users: Validation users.
            texts: The request of each user, or None.
            weights: The candidates; None: ``WEIGHTS``.
        """
        ranks: dict[float, list[Tensor]] = {weight: [] for weight in (WEIGHTS if weights is None else weights)}
        asking = [row for row, text in enumerate(texts) if text is not None]
        size = rows_together(len(users.catalogue), BATCH)
        for start in range(0, len(asking), size):  # scores of all users at once may not fit into memory
            rows = asking[start : start + size]
            seen = seen_mask([users.histories[row] for row in rows], len(users.catalogue))
            parts = self._parts(users.item_ids[rows], [texts[row] for row in rows])
            for weight, found in ranks.items():
                found.append(unseen_ranks(self._fused(*parts, weight).cpu(), seen, users.targets[rows]))
        self.weight = max(ranks, key=lambda weight: float(ndcg(torch.cat(ranks[weight])).mean()) if asking else 0.0)
