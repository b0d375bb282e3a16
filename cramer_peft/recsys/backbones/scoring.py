"""The layer that scores items: its constant bias, its scores, and the loss of the next item."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from cramer_peft.recsys.backbones.backbone import chosen_states
from cramer_peft.recsys.backbones.sampling import sampled_loss


def set_constant_bias(head: nn.Linear, value: float) -> None:
    """Give the layer that scores items one bias for all items, a buffer that changes no ranking; 0: none.

    A row gate multiplies an item's score, so it has little effect near 0. With a bias b that it multiplies too, it also
    adds: (1 + z)(s + b) is s + z·s + z·b. The buffer is not stored: set it again on a loaded model.
    """
    checked_bias(value)
    if "bias" in dict(head.named_parameters(recurse=False)):
        raise ValueError("the layer has a bias of its own, which row gates multiply already.")
    if value:
        del head.bias  # nn.Linear registers None as a parameter of that name
        bias = torch.full((head.out_features,), value, dtype=head.weight.dtype, device=head.weight.device)
        head.register_buffer("bias", bias, persistent=False)


def checked_bias(value: Any) -> float:
    """Return a configuration's ``head_bias``; raise a ValueError if it is not a finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"head_bias is {value!r}, expected a finite number.")
    return value


@contextmanager
def without_constant_bias(model: Any) -> Iterator[None]:
    """Take the items' common bias off a backbone's scoring layer while it is trained.

    It cancels in a softmax and only costs it precision.
    """
    learned, head = hasattr(model, "item_bias"), getattr(model, "head", None)
    fixed = dict(head.named_buffers(recurse=False)).get("bias") if isinstance(head, nn.Linear) else None
    if learned:
        model.item_bias.data -= model.head_bias
    if head is not None and fixed is not None:
        head.bias = None
    try:
        yield
    finally:
        if learned:
            model.item_bias.data += model.head_bias
        if head is not None and fixed is not None:
            head.bias = fixed.to(head.weight)


def item_scores(head: nn.Linear, states: Tensor, items: Tensor | None = None) -> Tensor:
    """Return the scores of all items, (..., num_items), or of ``items``, (n,) int64 from 0, for states (..., width).

    Row 0 of ``head`` is the padding's. Masks of the layer do not act on the scores of ``items``.
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
        """Score the whole catalogue as a ``Backbone``, or ``items``, (m,) int64 from 0, without masks of the head.

        The loss is cross-entropy at all labelled positions, or :func:`sampled_loss` if ``negatives`` is set.
        """
        states = self.states(item_ids)
        if labels is None:
            return item_scores(self.head, chosen_states(states, item_ids, positions), items)
        states, labels = states[labels >= 0], labels[labels >= 0]
        if self.negatives is None:
            return {"loss": nn.functional.cross_entropy(item_scores(self.head, states), labels)}
        return {"loss": sampled_loss(states, self.head.weight, labels, self.negatives, self.calibration)}
