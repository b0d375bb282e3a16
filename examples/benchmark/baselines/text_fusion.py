"""BLaIR behind the baselines' interface: the similarity of texts is added to the frozen scores."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from benchmark.baselines.ranker import BaselineRanker, RankerTask
from cramer_peft.recsys.backbones import SASRec
from cramer_peft.recsys.evaluation.text_fusion import TextFusion
from cramer_peft.recsys.evaluation.tracks import TRUTHFUL, mixed_tracks
from cramer_peft.recsys.evaluation.users import EvaluationUsers
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
        self.fusion: TextFusion | None = None

    @property
    def gamma(self) -> float | None:
        """The tuned gamma; None before ``fit``."""
        return None if self.fusion is None else self.fusion.weight / (1 + self.fusion.weight)

    def _fit(self, task: RankerTask, frozen: SASRec) -> None:
        fusion = TextFusion(frozen, text_encoder(task.encoder), task.catalogue)
        users = EvaluationUsers.of(task.catalogue, task.split, "validation", frozen.max_length)
        requests = RequestGenerator(task.catalogue.attributes, TRAIN_TEMPLATES)
        fusion.tune(users, mixed_tracks(users, requests, task.seed)[TRUTHFUL].requests)
        self.fusion = fusion

    def _request_scores(self, histories: Tensor, texts: Sequence[str], frozen: Tensor) -> Tensor:
        assert self.fusion is not None
        return self.fusion(histories, texts)
