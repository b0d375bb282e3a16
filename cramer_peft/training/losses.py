"""Losses for the generator, on scores and mask states of any model."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from cramer_peft.mask_state import MaskState


def minimal_edit_loss(
    scores: Tensor, frozen_scores: Tensor, match: Tensor, kappa: float = 8.0, floor: float | None = None
) -> Tensor:
    """Return the distance to the smallest edit of the frozen distribution that satisfies a request.

    ``p*(i) ∝ p_frozen(i) exp(kappa match(i))`` maximises ``E[match] - KL(p, p_frozen) / kappa``: it keeps
    the frozen model's odds among items that match equally well, and is p_frozen itself if ``match`` is
    constant. The loss of a row is KL(p* ‖ p_edited). (The project's own; see "The method" in the docs.)

    Requests need edits of very different sizes: leaving out a rare attribute moves little probability, asking for it
    moves nearly all. With ``floor``, each row's loss is divided by KL(p* ‖ p_frozen) + floor, so that all requests
    count alike: the loss is then the share of the needed edit that is still missing.

    Args:
        scores: Scores under the request, (rows, items).
        frozen_scores: Scores of the frozen model, (rows, items); no gradient flows into them.
        match: How well each item satisfies the request, (rows, items), for example from -1 to 1.
        kappa: Weight of a match, in nats.
        floor: Divide each row's loss by the edit that it needs plus this, in nats; None: do not divide.

    Returns:
        The loss, a scalar: the mean over the rows.
    """
    frozen = functional.log_softmax(frozen_scores.detach(), dim=-1)
    wanted = functional.log_softmax(frozen + kappa * match, dim=-1)
    remaining = _divergence(wanted, functional.log_softmax(scores, dim=-1))
    if floor is not None:
        remaining = remaining / (_divergence(wanted, frozen) + floor)
    return remaining.mean()


def _divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Return KL(p ‖ q) per row."""
    return (log_p.exp() * (log_p - log_q)).sum(-1)


class SparsityLoss:
    """The paper's regulariser of the form ``topk`` (CRAMER, ICML 2026, section "Loss").

    ``(1/d) sum_i KL(Bernoulli(sigmoid(z_i)) ‖ Bernoulli(k/d))`` over all d gate logits, averaged over the
    rows. It keeps the share of gates that want to be open near the share that is kept.

    Args:
        drop_ratio: Share of gates that is dropped; k = ceil((1 - drop_ratio) d).
    """

    def __init__(self, drop_ratio: float) -> None:
        self.drop_ratio = drop_ratio

    def __call__(self, state: MaskState) -> Tensor:
        """Return the loss, a scalar, of a mask state that carries its graph."""
        logits = torch.cat([value for parts in state.tensors.values() for value in parts.values()], dim=-1)
        total = logits.shape[-1]
        target = min(math.ceil((1 - self.drop_ratio) * total - 1e-9) / total, 1 - 1e-6)
        log_p, log_q = functional.logsigmoid(logits), functional.logsigmoid(-logits)
        divergence = log_p.exp() * (log_p - math.log(target)) + log_q.exp() * (log_q - math.log(1 - target))
        return divergence.mean()
