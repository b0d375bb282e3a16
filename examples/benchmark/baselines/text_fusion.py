"""BLaIR behind the baselines' interface: the similarity of texts is added to the frozen scores."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize

from benchmark.baselines.ranker import BaselineRanker, RankerTask
from cramer_peft.recsys.backbones import SASRec
from cramer_peft.recsys.evaluation.text_fusion import WEIGHTS, TextFusion
from cramer_peft.recsys.evaluation.tracks import TRUTHFUL, mixed_tracks
from cramer_peft.recsys.evaluation.users import BATCH, EvaluationUsers
from cramer_peft.recsys.requests.attribute_requests import RequestGenerator
from cramer_peft.recsys.requests.catalogue_encoder import text_encoder
from cramer_peft.recsys.requests.wordings import TRAIN_TEMPLATES


class FusionRanker(BaselineRanker):
    """:class:`~cramer_peft.recsys.evaluation.text_fusion.TextFusion`, its weight tuned on validation users.

    BLaIR's gamma * cos + (1 - gamma) * f ranks as f + weight * cos does with weight = gamma / (1 - gamma).

    Attributes:
        fusion: The fusion; None before ``fit``.
    """

    def __init__(self) -> None:
        super().__init__("text fusion")
        self.fusion: MeanFusion | None = None

    @property
    def gamma(self) -> float | None:
        """The tuned gamma; None before ``fit``."""
        return None if self.fusion is None else self.fusion.weight / (1 + self.fusion.weight)

    def _fit(self, task: RankerTask, frozen: SASRec) -> None:
        fusion = MeanFusion(frozen, text_encoder(task.encoder), task.catalogue)
        users = EvaluationUsers.of(task.catalogue, task.split, "validation", frozen.max_length)
        if task.asked is None:
            requests = RequestGenerator(task.catalogue.attributes, TRAIN_TEMPLATES)
            truthful = mixed_tracks(users, requests, task.seed)[TRUTHFUL].requests
            fusion.tune(users, [request.text for request in truthful])
        else:
            fusion.tune(users, task.asked, (0.0, *WEIGHTS))
        self.fusion = fusion

    def _request_scores(self, histories: Tensor, texts: Sequence[str], frozen: Tensor) -> Tensor:
        assert self.fusion is not None
        return self.fusion(histories, texts)

    def mean_scorer(self, texts: Sequence[str]) -> Callable[[Tensor], Tensor] | None:
        assert self.fusion is not None
        return self.fusion.mean_scorer(texts)


class MeanFusion(TextFusion):
    """A fusion that has scores under a mean request, too."""

    def mean_scorer(self, texts: Sequence[str]) -> Callable[[Tensor], Tensor]:
        """Return a scorer with each item's mean similarity to the texts."""
        parts = [normalize(self._encoder.encode(texts[at : at + BATCH]), dim=-1) for at in range(0, len(texts), BATCH)]
        added = self.weight * (torch.cat(parts).mean(0) @ self._items.T)

        def score(item_ids: Tensor) -> Tensor:
            scores: Tensor = self._backbone(item_ids)
            return scores + added.to(scores)

        return score
