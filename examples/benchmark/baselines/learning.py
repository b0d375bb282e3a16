"""Train baselines with the Trainer, batches and losses of a generator."""

from __future__ import annotations

import math
import tempfile
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import Trainer

from benchmark.baselines.ranker import BaselineRanker, RankerTask, frozen_copy
from cramer_peft import RequestMaskModel
from cramer_peft.encoders import RequestEncoder
from cramer_peft.errors import ConfigError
from cramer_peft.recsys.backbones import PADDING, SASRec
from cramer_peft.recsys.backbones.backbone import last_positions, prefixes
from cramer_peft.recsys.backbones.bert4rec import BERT4Rec
from cramer_peft.recsys.data.histories import HistoryWindows
from cramer_peft.recsys.training.generator_training import generator_arguments
from cramer_peft.recsys.training.request_batches import GeneratorOptions, RequestCollator, request_source
from cramer_peft.training import TemperatureCallback, minimal_edit_loss

_TOGETHER = 256  # texts encoded at a time


class Learner(nn.Module):
    """A copy of a backbone, and parameters that learn to steer it by request vectors.

    Args:
        backbone: The backbone; it is copied.
        tuned: Whether the copy is trained, too, with its dropout.
    """

    def __init__(self, backbone: SASRec, tuned: bool = False) -> None:
        super().__init__()
        self.tuned = tuned
        self.backbone = frozen_copy(backbone)
        self.backbone.requires_grad_(tuned)

    def train(self, mode: bool = True) -> Learner:
        super().train(mode)
        self.backbone.train(mode and self.tuned)  # a frozen backbone's dropout would only add noise
        return self

    @abstractmethod
    def forward(self, item_ids: Tensor, vectors: Tensor, positions: Tensor | None = None) -> Tensor:
        """Return scores after each row's last item, (rows, items), or at ``positions``, (rows, n, items).

        Args:
            item_ids: Padded histories, (rows, length).
            vectors: Request vectors, (rows, request_dim).
            positions: (rows, n) int64.
        """

    def loss(self, inputs: dict[str, Tensor], frozen: SASRec, options: GeneratorOptions) -> Tensor:
        """Return the loss of one batch of ``RequestCollator``: next item and minimal edit, as for a generator."""
        scores = self(inputs["item_ids"], inputs["vectors"], inputs["positions"])
        loss = scores.sum() * 0  # a batch may have no term of any loss
        fits, known = inputs["fits"], inputs["known"]
        if "edits" in inputs:
            known = known & inputs["edits"][:, None]
        if options.next_item_weight and bool(fits.any()):
            loss = loss + options.next_item_weight * functional.cross_entropy(scores[fits], inputs["targets"][fits])
        if options.edit_weight and bool(known.any()):
            with torch.no_grad():
                before = frozen(inputs["item_ids"], positions=inputs["positions"])
            match = inputs["match"][:, None].expand_as(before)
            edit = minimal_edit_loss(scores[known], before[known], match[known], options.kappa, options.floor)
            loss = loss + options.edit_weight * edit
        total: Tensor = loss
        return total


class LearnedRanker(BaselineRanker):
    """A baseline with a :class:`Learner`.

    Attributes:
        any_backbone: Whether the learner works on any backbone; the others read states inside SASRec or BERT4Rec.
    """

    any_backbone: ClassVar[bool] = False

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.learner: Learner | None = None
        self._encoder: RequestEncoder | None = None

    def _fit(self, task: RankerTask, frozen: SASRec) -> None:
        if not self.any_backbone and not isinstance(task.backbone, SASRec | BERT4Rec):
            raise ConfigError(
                f"{self.name} reads the states inside SASRec or BERT4Rec, found a backbone of type "
                f"{type(task.backbone).__name__}. Leave this baseline out, or use one of them."
            )
        torch.manual_seed(task.seed)
        learner = self._make(task).to(frozen.device)
        self.trainable = sum(parameter.numel() for parameter in learner.parameters() if parameter.requires_grad)
        train_learner(learner, task)
        self.learner, self._encoder = learner, task.encoder

    @abstractmethod
    def _make(self, task: RankerTask) -> Learner:
        """Return the learner before its training."""

    def _request_scores(self, histories: Tensor, texts: Sequence[str], frozen: Tensor) -> Tensor:
        assert self.learner is not None
        assert self._encoder is not None
        scores: Tensor = self.learner(histories, self._encoder.encode(texts).to(frozen.device))
        return scores

    def mean_scorer(self, texts: Sequence[str]) -> Callable[[Tensor], Tensor] | None:
        assert self.learner is not None
        assert self._encoder is not None
        learner, mean = self.learner, mean_vector(self._encoder, texts)
        return lambda item_ids: learner(item_ids, mean.to(item_ids.device).expand(len(item_ids), -1))


class _LearnerTrainer(Trainer):
    def __init__(self, *args: Any, frozen: SASRec, options: GeneratorOptions, **kwargs: Any) -> None:
        kwargs["args"]._n_gpu = min(kwargs["args"].n_gpu, 1)  # DataParallel would split what belongs together
        super().__init__(*args, **kwargs)
        self._frozen = frozen.to(self.args.device)
        self._options = options

    def compute_loss(self, model: nn.Module, inputs: dict[str, Tensor], return_outputs: bool = False, **_: Any) -> Any:
        loss = self.accelerator.unwrap_model(model).loss(inputs, self._frozen, self._options)
        return (loss, {}) if return_outputs else loss


def train_learner(learner: Learner, task: RankerTask) -> None:
    """Train with the optimiser, schedule, batches and requests of ``train_generator``; leave it in eval mode."""
    options, device = task.options, task.backbone.device
    masks = cast(RequestMaskModel, task.encoder)  # the collator takes a bare encoder, too
    source = request_source(masks, task.catalogue, options, task.requests, task.said)
    collator = RequestCollator(masks, task.catalogue, options, task.seed, source=source)
    handle = getattr(learner, "masks", None)
    with tempfile.TemporaryDirectory() as folder:
        arguments = generator_arguments(folder, options, task.seed, task.progress)
        _LearnerTrainer(
            model=learner,
            args=arguments,
            train_dataset=HistoryWindows(task.split.train, task.backbone.max_length),
            data_collator=collator,
            callbacks=[TemperatureCallback(handle)] if isinstance(handle, RequestMaskModel) else [],
            frozen=frozen_copy(task.backbone),
            options=options,
        ).train()
    learner.to(device).eval()  # the Trainer moves it to an accelerator if there is one
    learner.zero_grad(set_to_none=True)


def mean_vector(encoder: Any, texts: Sequence[str]) -> Tensor:
    """Return the mean of the vectors of texts, (request_dim,)."""
    return torch.cat(
        [encoder.encode(texts[start : start + _TOGETHER]) for start in range(0, len(texts), _TOGETHER)]
    ).mean(0)


def scaled(vectors: Tensor) -> Tensor:
    """Return request vectors at length sqrt(request_dim), as a generator takes them."""
    return functional.normalize(vectors, dim=-1) * math.sqrt(vectors.shape[-1])


def states_after(
    backbone: Any,
    item_ids: Tensor,
    positions: Tensor | None = None,
    first: Tensor | None = None,
    items: Tensor | None = None,
) -> Tensor:
    """Return a backbone's states after the last item, (rows, width), or at positions, (rows, n, width).

    Args:
        backbone: SASRec or BERT4Rec, which puts a mask token behind each part of a history.
        item_ids: Padded histories, (rows, length).
        positions: (rows, n) int64.
        first: A vector before each history, (rows, width), at the position of its first item.
        items: Embeddings of the items in place of the backbone's own, (items, width).
    """
    bert, n = backbone.bert, 1 if positions is None else positions.shape[1]
    if isinstance(backbone, BERT4Rec):
        sequence = item_ids if positions is None else prefixes(item_ids, positions)
        place = last_positions(sequence) + 1
        sequence = functional.pad(sequence, (0, 1)).scatter(1, place[:, None], backbone.mask_token)
        options = {"attention_mask": (sequence != PADDING).long()}
        first = None if first is None else first.repeat_interleave(n, 0)
    else:
        sequence, place, options = item_ids, last_positions(item_ids), {}
    hidden = _hidden(bert, sequence, first, items, options)
    rows = torch.arange(len(sequence), device=sequence.device)
    if positions is None:
        return hidden[rows, place]
    if isinstance(backbone, BERT4Rec):
        return hidden[rows, place].reshape(*positions.shape, -1)
    return hidden[rows[:, None], positions]


def _hidden(
    bert: Any, sequence: Tensor, first: Tensor | None, items: Tensor | None, options: dict[str, Tensor]
) -> Tensor:
    """Return the hidden states of each token of a sequence, (rows, length, width)."""
    table = bert.embeddings.word_embeddings.weight
    if first is None and items is None:
        plain: Tensor = bert(sequence, **options).last_hidden_state
        return plain
    if items is not None:  # the padding, and BERT4Rec's mask token, keep their own
        table = torch.cat([table[:1], items, table[1 + len(items) :]])
    embeddings = functional.embedding(sequence, table)
    if first is None:
        changed: Tensor = bert(inputs_embeds=embeddings, **options).last_hidden_state
        return changed
    # the items keep their positions; the vector before them shares the first
    places = torch.arange(sequence.shape[1], device=sequence.device)
    places = torch.cat([places[:1], places])[None]
    if options:
        options = {"attention_mask": functional.pad(options["attention_mask"], (1, 0), value=1)}
    joined = torch.cat([first.to(embeddings)[:, None], embeddings], dim=1)
    states: Tensor = bert(inputs_embeds=joined, position_ids=places, **options).last_hidden_state
    return states[:, 1:]


def item_scores(backbone: Any, states: Tensor) -> Tensor:
    """Return the backbone's scores of the items for states, (..., width) → (..., items)."""
    if isinstance(backbone, BERT4Rec):
        scores: Tensor = backbone.cls(states)
        return scores[..., 1 : backbone.num_items + 1]
    weight: Tensor = backbone.bert.embeddings.word_embeddings.weight
    return states @ weight[1:].T


def per_position(value: Tensor, states: Tensor) -> Tensor:
    """Return one value per row, (rows, width), with a dimension of positions if ``states`` has one."""
    return value if states.dim() == 2 else value[:, None]


def mlp(inputs: int, width: int, outputs: int) -> nn.Sequential:
    """Return a network with one hidden layer; its output starts at zero."""
    last = nn.Linear(width, outputs)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(nn.Linear(inputs, width), nn.GELU(), last)
