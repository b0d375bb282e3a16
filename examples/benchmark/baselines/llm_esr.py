"""LLM-ESR: item texts beside the item embeddings; requests are never read."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from benchmark.baselines.learning import (
    LearnedRanker,
    Learner,
    item_scores,
    mlp,
    scaled,
    states_after,
)
from benchmark.baselines.ranker import RankerTask
from cramer_peft.recsys.backbones import SASRec
from cramer_peft.recsys.requests.attribute_requests import item_text
from cramer_peft.recsys.requests.catalogue_encoder import text_encoder
from cramer_peft.recsys.training.request_batches import GeneratorOptions

_WIDTH = 128


class LLMESR(LearnedRanker):
    """Two views of a history by one frozen sequence model: item embeddings, and adapted text embeddings.

    The text embeddings of the items are made once, with the task's encoder. A linear layer brings them to the
    backbone's width; the scores of both views add up, which is the dot product of joined vectors. The loss is the
    next item's, at all positions. The text of a request makes no difference, only whether there is one.
    LLM-ESR's distillation between similar users is left out.
    """

    def __init__(self) -> None:
        super().__init__("LLM-ESR")

    def _make(self, task: RankerTask) -> Learner:
        return _TwoViews(
            task.backbone,
            text_encoder(task.encoder).encode(
                [item_text(task.catalogue, index) for index in range(len(task.catalogue))]
            ),
        )


class _TwoViews(Learner):
    texts: Tensor

    def __init__(self, backbone: SASRec, texts: Tensor) -> None:
        super().__init__(backbone)
        size = backbone.config.hidden_size
        self.register_buffer("texts", scaled(texts))
        self.inputs = nn.Linear(texts.shape[-1], size)
        self.outputs = mlp(texts.shape[-1], _WIDTH, size)

    def forward(self, item_ids: Tensor, vectors: Tensor, positions: Tensor | None = None) -> Tensor:
        states = states_after(self.backbone, item_ids, positions)
        semantic = states_after(self.backbone, item_ids, positions, items=self.inputs(self.texts))
        found: Tensor = item_scores(self.backbone, states) + semantic @ self.outputs(self.texts).T
        return found

    def loss(self, inputs: dict[str, Tensor], frozen: SASRec, options: GeneratorOptions) -> Tensor:
        scores = self(inputs["item_ids"], inputs["vectors"], inputs["positions"])
        known = inputs["known"]
        return functional.cross_entropy(scores[known], inputs["targets"][known])
