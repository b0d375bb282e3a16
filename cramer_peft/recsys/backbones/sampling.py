"""The next item's cross-entropy on a sample of the catalogue, for catalogues too large to score in training."""

from __future__ import annotations

import math

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
    num_items = len(table) - 1
    drawn = integers(num_items, negatives, states.device)
    # one look-up, because each has a gradient of the table's size
    items = functional.embedding(torch.cat([targets, drawn]) + 1, table)
    own, others = items[: len(targets)], items[len(targets) :]
    wrong = states @ others.T + math.log(num_items / negatives)
    wrong = wrong.masked_fill(targets[:, None] == drawn, -torch.inf)
    right = (states * own).sum(1, keepdim=True)
    return (torch.cat([right, wrong], 1).logsumexp(1) - right[:, 0]).mean()
