"""The users of an evaluation, and how they are scored, in batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from cramer_peft import RequestMaskModel
from cramer_peft.recsys.data.catalogue import Catalogue
from cramer_peft.recsys.data.histories import pad_histories, seen_mask
from cramer_peft.recsys.data.splits import Split, Stage
from cramer_peft.recsys.devices import brought_to
from cramer_peft.recsys.evaluation.metrics import finite_scores, without_nan

BATCH = 256  # users scored together, at most; see rows_together

# Scores (rows, items) of histories (rows, length) under one request text, or None, for each row.
Scorer = Callable[[Tensor, Sequence[str | None]], Tensor]


@dataclass(frozen=True, eq=False)
class EvaluationUsers:
    """The users of one stage of a split."""

    catalogue: Catalogue
    histories: tuple[Tensor, ...]  # per user the items before the target, (n,) int64
    targets: Tensor  # the next items, (users,) int64
    max_length: int  # of the histories that the backbone reads

    @classmethod
    def of(cls, catalogue: Catalogue, split: Split, stage: Stage, max_length: int) -> EvaluationUsers:
        """Return all users of a stage."""
        return EvaluationUsers(catalogue, split.history(stage), split.target(stage), max_length)

    def some(self, rows: Tensor) -> EvaluationUsers:
        """Return some of the users, by their places, (n,) int64."""
        histories = tuple(self.histories[row] for row in rows.tolist())
        return EvaluationUsers(self.catalogue, histories, self.targets[rows], self.max_length)

    @cached_property
    def item_ids(self) -> Tensor:
        """Padded histories, (users, max_length)."""
        return pad_histories(self.histories, self.max_length)

    @cached_property
    def seen(self) -> Tensor:
        """Items of each whole history, (users, items) bool; they are never recommended.

        This is for few users or a small catalogue; :meth:`seen_by` gives the rows of some users.
        """
        return self.seen_by(slice(None))

    def seen_by(self, rows: slice) -> Tensor:
        """Return the rows of :attr:`seen` of some users, (rows, items) bool, computed for them alone."""
        return seen_mask(self.histories[rows], len(self.catalogue))

    def __len__(self) -> int:
        """Return the number of users."""
        return len(self.targets)


def mask_scorer(masks: RequestMaskModel, strength: float | None = None) -> Scorer:
    """Return a scorer by request masks, the frozen model if all requests are None; strength None: the default."""

    def score(item_ids: Tensor, requests: Sequence[str | None]) -> Tensor:
        request = None if all(text is None for text in requests) else list(requests)
        scores: Tensor = masks(brought_to(masks, item_ids), request=request, request_strength=strength)
        return finite_scores(scores)

    return score


@torch.no_grad()
def score_histories(model: nn.Module, item_ids: Tensor) -> Tensor:
    """Return the scores of the whole catalogue after each history, (rows, items), in batches and in eval mode."""
    training = model.training
    model.eval()
    try:
        return _joined(len(item_ids), (model(batch) for batch in item_ids.split(BATCH)))
    finally:
        model.train(training)


def batched_scores(scorer: Scorer, item_ids: Tensor, texts: Sequence[str | None]) -> Tensor:
    """Return a scorer's scores, computed in batches, (rows, items) float32 on the CPU."""
    starts = range(0, len(item_ids), BATCH)
    parts = (scorer(item_ids[start : start + BATCH], texts[start : start + BATCH]) for start in starts)
    return _joined(len(item_ids), (without_nan(part.float().cpu()) for part in parts))


def _joined(rows: int, parts: Iterable[Tensor]) -> Tensor:
    """Return parts of a table one under another, without keeping them beside it; ``rows`` are those of all."""
    table, start = torch.empty(0), 0
    for part in parts:
        if len(part) == rows:
            return part
        table = table if start else part.new_empty(rows, *part.shape[1:])
        table[start : start + len(part)] = part
        start += len(part)
    return table


def drawn_rows(count: int, most: int | None, seed: int) -> Tensor:
    """Return the rows of all users, or of ``most`` users drawn at random, ascending, int64."""
    if most is None or most >= count:
        return torch.arange(count)
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))[:most].sort().values
