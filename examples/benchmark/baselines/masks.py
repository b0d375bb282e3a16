"""Masks behind the baselines' interface: the paper's with its loss and with ours, ours, and one static mask."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from benchmark.baselines.learning import LearnedRanker, Learner, mean_vector
from benchmark.baselines.ranker import BaselineRanker, RankerTask, frozen_copy
from cramer_peft import RequestMaskConfig, RequestMaskModel
from cramer_peft.recsys.backbones import SASRec
from cramer_peft.recsys.data.catalogue import Catalogue
from cramer_peft.recsys.masks import mask_backbone
from cramer_peft.recsys.training.generator_training import train_generator
from cramer_peft.recsys.training.request_batches import GeneratorOptions


class MaskRanker(BaselineRanker):
    """Request masks on a copy of the backbone, trained by ``train_generator``.

    Args:
        name: The name in tables.
        config: Configuration of the masks; the encoder is the task's.
        paper_loss: Whether to train with the paper's losses, and requests true of the next item alone, at the task's
            budget.
    """

    def __init__(self, name: str, config: RequestMaskConfig, paper_loss: bool = False) -> None:
        super().__init__(name)
        self._config = config
        self._paper_loss = paper_loss
        self.masks: RequestMaskModel | None = None

    def _fit(self, task: RankerTask, frozen: SASRec) -> None:
        torch.manual_seed(task.seed)
        masks = mask_backbone(frozen_copy(task.backbone), task.catalogue, self._config, task.encoder)
        self.trainable = masks.get_nb_trainable_parameters()[0]
        train_generator(
            masks,
            task.catalogue,
            task.split,
            self.options(task.options),
            task.seed,
            task.progress,
            requests=task.requests,
            stated=task.said,
        )
        self.masks = masks

    @property
    def has_strength(self) -> bool:
        """True if requests can be given a strength; the paper's form, topk, has none."""
        return self._config.gate != "topk"

    def options(self, options: GeneratorOptions) -> GeneratorOptions:
        """Return a task's options with the paper's losses, or with the task's own."""
        return with_paper_loss(options) if self._paper_loss else replace(options, sparsity_weight=0.0)

    def _request_scores(self, histories: Tensor, texts: Sequence[str], frozen: Tensor) -> Tensor:
        assert self.masks is not None
        scores: Tensor = self.masks(histories, request=list(texts))
        return scores

    def mean_scorer(self, texts: Sequence[str]) -> Callable[[Tensor], Tensor] | None:
        assert self.masks is not None
        masks, mean = self.masks, mean_vector(self.masks, texts)
        return lambda item_ids: masks(item_ids, request=mean.expand(len(item_ids), -1))


def with_paper_loss(options: GeneratorOptions) -> GeneratorOptions:
    """Return options with the paper's losses and requests; their budget stays, and their sparsity weight, if any."""
    paper = GeneratorOptions.paper()
    return replace(
        paper,
        steps=options.steps,
        learning_rate=options.learning_rate,
        batch_size=options.batch_size,
        positions=options.positions,
        sparsity_weight=options.sparsity_weight or paper.sparsity_weight,
    )


def paper_gate(config: RequestMaskConfig | None = None) -> MaskRanker:
    """Return masks of the paper's form with its loss; in the tracks, trained on sentences about attributes."""
    return MaskRanker("paper's form", config or RequestMaskConfig.paper(), paper_loss=True)


def paper_gate_with_our_loss(config: RequestMaskConfig | None = None) -> MaskRanker:
    """Return masks of the paper's form, trained as ours are."""
    return MaskRanker("paper's form, our loss", config or RequestMaskConfig.paper())


def cramer(config: RequestMaskConfig | None = None) -> MaskRanker:
    """Return the paper's masks with the paper's loss, for the paper's own requests: see ``docs/paper.md``."""
    return MaskRanker("CRAMER", config or RequestMaskConfig.paper(), paper_loss=True)


def our_masks(config: RequestMaskConfig | None = None) -> MaskRanker:
    """Return the masks of this library, by default with the default configuration."""
    return MaskRanker("ours", config or RequestMaskConfig())


class StaticMask(LearnedRanker):
    """One learned mask for all requests: the generator's input is one learned vector.

    Args:
        request_dim: Width of the vector.
        config: Configuration of the masks; None: the default. Its encoder is not used. The form ``topk`` is trained
            with its noise, but without the sparsity loss.
    """

    any_backbone: ClassVar[bool] = True

    def __init__(self, request_dim: int = 16, config: RequestMaskConfig | None = None) -> None:
        super().__init__("one static mask")
        self._config = replace(
            (config or RequestMaskConfig()).copy(), encoder=None, encoder_options=None, request_dim=request_dim
        )

    def _make(self, task: RankerTask) -> Learner:
        return _Static(task.backbone, task.catalogue, self._config)


class _Static(Learner):
    def __init__(self, backbone: SASRec, catalogue: Catalogue, config: RequestMaskConfig) -> None:
        super().__init__(backbone)
        assert config.request_dim is not None
        self.masks = mask_backbone(self.backbone, catalogue, config)
        self.vector = nn.Parameter(torch.randn(config.request_dim))

    def train(self, mode: bool = True) -> _Static:
        super().train(mode)
        self.backbone.training = mode  # the form topk draws its noise in training mode only
        return self

    def forward(self, item_ids: Tensor, vectors: Tensor, positions: Tensor | None = None) -> Tensor:
        request = self.vector.expand(len(item_ids), -1)
        scores: Tensor = self.masks(item_ids, positions=positions, request=request)
        return scores
