"""The layer that scores items: its scores, and the loss of the next item."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from cramer_peft.recsys.backbones.backbone import chosen_states
from cramer_peft.recsys.backbones.sampling import sampled_loss


def set_earlier_bias(head: nn.Linear, value: Any) -> None:
    """Give the layer that scores items one bias for all items, as backbones of earlier versions have; 0: none.

    Masks of that time multiply it, too, so a recommender's folder of then gives the same scores. It is a buffer that is
    not stored: set it again on a loaded model. Raises a ValueError if it is no finite number.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"head_bias is {value!r}, expected a finite number.")
    if value:
        del head.bias  # nn.Linear registers None as a parameter of that name
        bias = torch.full((head.out_features,), value, dtype=head.weight.dtype, device=head.weight.device)
        head.register_buffer("bias", bias, persistent=False)


def item_scores(head: nn.Linear, states: Tensor, items: Tensor | None = None) -> Tensor:
    """Return the scores of all items, (..., num_items), or of ``items``, (n,) int64 from 0, for states (..., width).

    Row 0 of ``head`` is the padding's. Masks of the layer itself do not act on the scores of ``items``.
    """
    if items is None:
        scores: Tensor = head(states)
        return scores[..., 1:]
    return nn.functional.linear(states, head.weight[items + 1], None if head.bias is None else head.bias[items + 1])


class ScoredStates:
    """The forward of a backbone whose states never look ahead and whose ``head`` scores items by products with them."""

    head: nn.Linear
    negatives: int | None = None  # items sampled for the loss, set while it is trained on samples
    calibration: float | None = None  # of gbce, set while that is the loss on samples

    def states(self, item_ids: Tensor) -> Tensor:
        """Return the state after each position, (rows, length, width)."""
        raise NotImplementedError

    def forward(
        self,
        item_ids: Tensor,
        labels: Tensor | None = None,
        positions: Tensor | None = None,
        items: Tensor | None = None,
    ) -> Tensor | dict[str, Tensor]:
        """Score the whole catalogue as a ``Backbone``, or ``items`` alone, (m,) int64 from 0.

        The loss is cross-entropy at all labelled positions, or :func:`sampled_loss` if ``negatives`` is set.
        """
        states = self.states(item_ids)
        if labels is None:
            return item_scores(self.head, chosen_states(states, item_ids, positions), items)
        states, labels = states[labels >= 0], labels[labels >= 0]
        if self.negatives is None:
            return {"loss": nn.functional.cross_entropy(item_scores(self.head, states), labels)}
        return {"loss": sampled_loss(states, self.head.weight, labels, self.negatives, self.calibration)}
