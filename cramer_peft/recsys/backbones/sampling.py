"""Next-item losses on a sample of the catalogue, for catalogues too large to score in training."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from cramer_peft.recsys.backbones.draws import integers

FULL_SOFTMAX_ITEMS = 20_000  # the scores of more items take more memory than the rest of a step
DEFAULT_NEGATIVES = 512


def negatives_for(num_items: int) -> int | None:
    """Return the number of negatives for a catalogue of this size; None: train on all items."""
    return None if num_items < FULL_SOFTMAX_ITEMS else DEFAULT_NEGATIVES


def sampled_softmax(states: Tensor, table: Tensor, targets: Tensor, negatives: int) -> Tensor:
    """Return the mean cross-entropy of the next items against a uniform sample that all positions share, a scalar.

    A negative stands for ``num_items / negatives`` items, so the logarithm of that is added to its score (logQ
    correction: Bengio & Senécal 2008; Blanc & Rendle 2018). A negative that is a position's target does not count
    there.
    """
    right, wrong, same = _scores(states, table, targets, negatives)
    wrong = (wrong + math.log((len(table) - 1) / negatives)).masked_fill(same, -torch.inf)
    return (torch.cat([right, wrong], 1).logsumexp(1) - right[:, 0]).mean()


def gbce(states: Tensor, table: Tensor, targets: Tensor, negatives: int, calibration: float) -> Tensor:
    """Return the generalised binary cross-entropy of the next items and a uniform sample that all positions share.

    ``-(beta log sigmoid(s) + sum_j log(1 - sigmoid(s_j))) / (k + 1)`` with the target's score s, the scores s_j of k
    negatives, and beta of :func:`gbce_beta` (Petrov & Macdonald, gSASRec, RecSys 2023, arXiv 2308.07192, section 5). A
    negative that is a position's target does not count there. To each score :func:`chance_logit` is added, so that an
    untrained model gives each item the probability 1 / items; from 1 / 2, Adam hardly moves for thousands of steps.
    ``calibration`` is t, from 0 (plain binary cross-entropy) to 1 (the sigmoid of s is the item's probability).
    """
    right, wrong, same = _scores(states, table, targets, negatives)
    start = chance_logit(len(table) - 1)
    right, wrong = right + start, wrong + start
    beta = gbce_beta(negatives, len(table) - 1, calibration)
    rejected = functional.logsigmoid(-wrong).masked_fill(same, 0.0).sum(1)
    return -(beta * functional.logsigmoid(right[:, 0]) + rejected).mean() / (negatives + 1)


def chance_logit(num_items: int) -> float:
    """Return the logit of 1 / ``num_items``."""
    return -math.log(max(1, num_items - 1))


def gbce_beta(negatives: int, num_items: int, calibration: float) -> float:
    """Return ``beta = 1 - t (1 - alpha)`` of :func:`gbce`, with ``alpha = k / (items - 1)`` and t = ``calibration``.

    The loss has its minimum at ``sigmoid(s) = beta p / (beta p + alpha (1 - p))`` for an item of probability p.
    """
    rate = min(1.0, negatives / max(1, num_items - 1))  # a sample cannot hold more than all items
    return 1 - calibration * (1 - rate)


def sampled_loss(
    states: Tensor, table: Tensor, targets: Tensor, negatives: int, calibration: float | None = None
) -> Tensor:
    """Return :func:`gbce`, or :func:`sampled_softmax` if ``calibration`` is None."""
    if calibration is None:
        return sampled_softmax(states, table, targets, negatives)
    return gbce(states, table, targets, negatives, calibration)


def with_negatives(
    targets: Tensor, num_items: int, negatives: int, rng: random.Random, drawn: Sequence[int] | None = None
) -> tuple[Tensor, Tensor]:
    """Return targets (n,) int64 and a uniform sample of other items, and terms to add to their scores.

    ``drawn`` are items in an order drawn evenly, of which the first that are no targets are taken; None: draws them.
    A drawn item stands for ``others / drawn`` items, so its term is the logarithm of that; a target's is 0. The result
    is the items (m,) int64, first the distinct targets, ascending, and the terms (m,) float32.
    """
    own = targets.unique()
    known, others = set(own.tolist()), num_items - len(own)
    count = min(negatives, others)
    if drawn is None:
        drawn = rng.sample(range(num_items), count + len(own))  # at least `count` of these are no targets
    taken = [item for item in drawn if item not in known][:count]  # any such items are a uniform sample
    added = torch.zeros(len(own) + len(taken))
    added[len(own) :] = math.log(others / len(taken)) if taken else 0.0
    return torch.cat([own, torch.tensor(taken, dtype=torch.long)]), added


def _scores(states: Tensor, table: Tensor, targets: Tensor, negatives: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the scores of the targets, (n, 1), and of drawn items, (n, negatives), and where these are equal, bool."""
    drawn = integers(len(table) - 1, negatives, states.device)
    # one look-up, because each look-up has a gradient of the table's size
    items = functional.embedding(torch.cat([targets, drawn]) + 1, table)
    own, others = items[: len(targets)], items[len(targets) :]
    return (states * own).sum(1, keepdim=True), states @ others.T, targets[:, None] == drawn
