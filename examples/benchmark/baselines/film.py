"""FiLM after DPR: two experts, for and against, scale and shift the final state."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmark.baselines.learning import (
    LearnedRanker,
    Learner,
    item_scores,
    mlp,
    per_position,
    scaled,
    states_after,
)
from benchmark.baselines.ranker import RankerTask
from cramer_peft.recsys.backbones import SASRec
from cramer_peft.recsys.training.request_batches import GeneratorOptions


class ExpertFiLM(LearnedRanker):
    """FiLM on the final state: state * (1 + scale) + shift, summed over two experts that a router weighs.

    The router also learns from the attributes of the training requests which of them are for something and which
    against something, so that each expert gets its own kind. DPR trains in three stages; here they are one.

    Args:
        width: Width of each expert's hidden layer.
        router_weight: Weight of the router's own loss.
    """

    def __init__(self, width: int = 256, router_weight: float = 0.1) -> None:
        super().__init__("FiLM, experts for and against")
        self._width = width
        self._router_weight = router_weight

    def _make(self, task: RankerTask) -> Learner:
        return _Experts(task.backbone, task.encoder.dim, self._width, self._router_weight)


class _Experts(Learner):
    def __init__(self, backbone: SASRec, request_dim: int, width: int, router_weight: float) -> None:
        super().__init__(backbone)
        size = backbone.config.hidden_size
        self.router_weight = router_weight
        self.router = nn.Linear(request_dim, 2)
        self.experts = nn.ModuleList([mlp(request_dim, width, 2 * size) for _ in range(2)])

    def forward(self, item_ids: Tensor, vectors: Tensor, positions: Tensor | None = None) -> Tensor:
        states = states_after(self.backbone, item_ids, positions)
        request = scaled(vectors)
        weights = self.router(request).sigmoid()
        film = sum(weights[:, [number]] * expert(request) for number, expert in enumerate(self.experts))
        assert isinstance(film, Tensor)
        scale, shift = per_position(film, states).chunk(2, dim=-1)
        return item_scores(self.backbone, states * (1 + scale) + shift)

    def loss(self, inputs: dict[str, Tensor], frozen: SASRec, options: GeneratorOptions) -> Tensor:
        match = inputs["match"]
        kinds = torch.stack([(match > 0).any(1), (match < 0).any(1)], dim=1).to(match)
        routed = functional.binary_cross_entropy_with_logits(self.router(scaled(inputs["vectors"])), kinds)
        return super().loss(inputs, frozen, options) + self.router_weight * routed
