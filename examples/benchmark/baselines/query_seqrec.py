"""Query-SeqRec: the request is one more input of the sequence model."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

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
from cramer_peft.errors import ConfigError
from cramer_peft.recsys.backbones import SASRec

Join = Literal["token", "state"]
_WIDTH = 128


class QuerySeqRec(LearnedRanker):
    """The request as a token before the history, or joined to the sequence's state.

    Args:
        join: "token": the projected request vector comes first in the sequence. "state": a small network changes
            each state, given the state and the request vector.
        tuned: Whether the whole copy of the backbone is trained: an upper reference, no longer a frozen model.
    """

    def __init__(self, join: Join = "token", tuned: bool = False) -> None:
        if join not in ("token", "state"):
            raise ConfigError(f"join must be 'token' or 'state', found {join!r}.")
        super().__init__(f"Query-SeqRec, {join}{', fully fine-tuned' if tuned else ''}")
        self._join: Join = join
        self._tuned = tuned

    def _make(self, task: RankerTask) -> Learner:
        kind = _Token if self._join == "token" else _State
        return kind(task.backbone, task.encoder.dim, self._tuned)


class _Token(Learner):
    def __init__(self, backbone: SASRec, request_dim: int, tuned: bool) -> None:
        super().__init__(backbone, tuned)
        size = backbone.config.hidden_size
        self.project = nn.Sequential(nn.Linear(request_dim, _WIDTH), nn.GELU(), nn.Linear(_WIDTH, size))

    def forward(self, item_ids: Tensor, vectors: Tensor, positions: Tensor | None = None) -> Tensor:
        states = states_after(self.backbone, item_ids, positions, first=self.project(scaled(vectors)))
        return item_scores(self.backbone, states)


class _State(Learner):
    def __init__(self, backbone: SASRec, request_dim: int, tuned: bool) -> None:
        super().__init__(backbone, tuned)
        size = backbone.config.hidden_size
        self.join = mlp(size + request_dim, _WIDTH, size)

    def forward(self, item_ids: Tensor, vectors: Tensor, positions: Tensor | None = None) -> Tensor:
        states = states_after(self.backbone, item_ids, positions)
        request = per_position(scaled(vectors), states).expand(*states.shape[:-1], -1)
        joined = states + self.join(torch.cat([states, request.to(states)], dim=-1))
        return item_scores(self.backbone, joined)
