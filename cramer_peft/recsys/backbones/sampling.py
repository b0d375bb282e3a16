"""Losses of the next item on a sample of the catalogue, for catalogues too large to score in training."""

from __future__ import annotations

import math
import random

import torch
from torch import Tensor
from torch.nn import functional

from cramer_peft.recsys.backbones.draws import integers

FULL_SOFTMAX_ITEMS = 20_000  # a step's scores of more items than that weigh more than all the rest of it
DEFAULT_NEGATIVES = 512


def negatives_for(num_items: int) -> int | None:
    """How many negatives a catalogue of this size is trained with; None: all items, no sample."""
    return None if num_items < FULL_SOFTMAX_ITEMS else DEFAULT_NEGATIVES


def sampled_softmax(states: Tensor, table: Tensor, targets: Tensor, negatives: int) -> Tensor:
    """Cross-entropy of the next items against a uniform sample that all positions share.

    A negative stands for ``num_items / negatives`` items, so the logarithm of that is added to its score (the logQ
    correction: Bengio & Senécal 2008; in this form Blanc & Rendle 2018). The softmax's sum is then estimated without
    bias, and the loss goes to that over all items as ``negatives`` grows. A negative that is a position's target does
    not count there. Nothing but the table and its gradient grows with the number of items.

    Args:
        states: What is multiplied with items, (n, width).
        table: Item embeddings, (items + 1, width); row 0 is the padding's.
        targets: Next items, (n,) int64, from 0.
        negatives: Size of the sample, drawn with torch's global generator, with replacement; several processes of one
            training draw the same.

    Returns:
        The mean over positions, a scalar.
    """
    right, wrong, same = _scores(states, table, targets, negatives)
    wrong = (wrong + math.log((len(table) - 1) / negatives)).masked_fill(same, -torch.inf)
    return (torch.cat([right, wrong], 1).logsumexp(1) - right[:, 0]).mean()


def gbce(states: Tensor, table: Tensor, targets: Tensor, negatives: int, calibration: float) -> Tensor:
    """Generalised binary cross-entropy of the next items and a uniform sample that all positions share.

    ``-(beta log sigmoid(s) + sum_j log(1 - sigmoid(s_j))) / (k + 1)``, s the target's score, s_j those of k negatives,
    beta of :func:`gbce_beta` (Petrov & Macdonald, gSASRec, RecSys 2023, arXiv 2308.07192, section 5). They draw
    negatives for each position; here all positions share them, so that no more than positions × negatives is kept. A
    negative that is a position's target does not count there.

    s is a score plus :func:`chance_logit`, the same for all items, which changes no ranking: a model that knows nothing
    then says 1 / items instead of 1 / 2. Without it the first steps push all items down at once, by gradients so large
    that Adam, which divides by their mean square, hardly moves for thousands of steps after.

    Args:
        states: What is multiplied with items, (n, width).
        table: Item embeddings, (items + 1, width); row 0 is the padding's.
        targets: Next items, (n,) int64, from 0.
        negatives: k, drawn as in :func:`sampled_softmax`.
        calibration: t, from 0 (plain binary cross-entropy, which overrates everything) to 1 (the sigmoid of s is the
            probability of the item, as a softmax over all items would give it).

    Returns:
        The mean over positions, a scalar.
    """
    right, wrong, same = _scores(states, table, targets, negatives)
    start = chance_logit(len(table) - 1)
    right, wrong = right + start, wrong + start
    beta = gbce_beta(negatives, len(table) - 1, calibration)
    rejected = functional.logsigmoid(-wrong).masked_fill(same, 0.0).sum(1)
    return -(beta * functional.logsigmoid(right[:, 0]) + rejected).mean() / (negatives + 1)


def chance_logit(num_items: int) -> float:
    """The logit of 1 / ``num_items``."""
    return -math.log(max(1, num_items - 1))


def gbce_beta(negatives: int, num_items: int, calibration: float) -> float:
    """The power of the target's probability in :func:`gbce`.

    ``beta = alpha (t (1 - 1 / alpha) + 1 / alpha)`` with the sampling rate ``alpha = k / (items - 1)``, which is
    ``1 - t (1 - alpha)``. The loss is least at ``sigmoid(s) = beta p / (beta p + alpha (1 - p))`` for an item of
    probability p: at p itself where t = 1 and so beta = alpha.

    Args:
        negatives: k.
        num_items: Items of the catalogue.
        calibration: t, from 0 to 1.
    """
    rate = min(1.0, negatives / max(1, num_items - 1))  # more negatives than items are no more than all
    return 1 - calibration * (1 - rate)


def sampled_loss(
    states: Tensor, table: Tensor, targets: Tensor, negatives: int, calibration: float | None = None
) -> Tensor:
    """:func:`gbce` where there is a ``calibration``, :func:`sampled_softmax` where it is None."""
    if calibration is None:
        return sampled_softmax(states, table, targets, negatives)
    return gbce(states, table, targets, negatives, calibration)


def with_negatives(targets: Tensor, num_items: int, negatives: int, rng: random.Random) -> tuple[Tensor, Tensor]:
    """Some items and a uniform sample of the others, with what to add to their scores so that they stand for all.

    Each drawn item stands for ``others / drawn`` items, so the logarithm of that is added to its score; the targets
    stand for themselves. Sums inside a softmax are then estimated without bias, and what is made of several of them,
    as a divergence, goes to that over all items as ``negatives`` grows. With as many negatives as there are others,
    nothing is added and it is that over all items.

    Args:
        targets: Items that must be there, (n,) int64, from 0; repeats count once.
        num_items: Of the catalogue.
        negatives: How many of the others to draw, without replacement.
        rng: What draws; numpy or torch would shuffle the whole catalogue.

    Returns:
        Items, (m,) int64: the targets, ascending, and those drawn; and what to add to the scores, (m,) float32.
    """
    own = targets.unique()
    known, others = set(own.tolist()), num_items - len(own)
    count = min(negatives, others)
    # any `count` of them that are no targets are a uniform sample, and there are no fewer than that among so many
    drawn = [item for item in rng.sample(range(num_items), count + len(own)) if item not in known][:count]
    added = torch.zeros(len(own) + count)
    added[len(own) :] = math.log(others / count) if count else 0.0
    return torch.cat([own, torch.tensor(drawn, dtype=torch.long)]), added


def _scores(states: Tensor, table: Tensor, targets: Tensor, negatives: int) -> tuple[Tensor, Tensor, Tensor]:
    """Scores of the targets, (n, 1), and of drawn items, (n, negatives), and where these are the targets, bool."""
    drawn = integers(len(table) - 1, negatives, states.device)
    # one look-up, because each has a gradient of the table's size
    items = functional.embedding(torch.cat([targets, drawn]) + 1, table)
    own, others = items[: len(targets)], items[len(targets) :]
    return (states * own).sum(1, keepdim=True), states @ others.T, targets[:, None] == drawn
