"""The base class of the forms of a mask: the outputs that a form needs of the generator, and the masks they become."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor, nn

from cramer_peft.masks.mask import FeatureSpec, LayerSpec, Mask, Spec

LayerTensors = dict[str, Tensor]


class MaskForm(ABC):
    """One form of mask, by name."""

    name: ClassVar[str]
    has_strength: ClassVar[bool] = True
    draws_noise: ClassVar[bool] = False  # in training mode

    @abstractmethod
    def parts(self, spec: Spec) -> dict[str, tuple[int, ...]]:
        """Return names and shapes (without the rows) of the generator outputs that one entry needs."""

    @abstractmethod
    def init_head(self, head: nn.Linear, specs: Mapping[str, Spec], identity: bool) -> None:
        """Initialise the generator's last layer; with ``identity`` so that every mask starts at 1."""

    @abstractmethod
    def build(
        self,
        tensors: Mapping[str, LayerTensors],
        strength: Tensor | None,
        active: Tensor | None,
        training: bool,
    ) -> dict[str, Mask]:
        """Build the masks of all entries from the tensors that :meth:`parts` names, each with rows first.

        ``strength`` (rows,) is 0 for rows without a request, None if it is 1 everywhere. ``active`` (rows,) bool marks
        the rows that have one, None if all have. ``training`` draws noise, if the form has any.
        """


def row_column_parts(spec: Spec) -> dict[str, tuple[int, ...]]:
    """Return the parts of a form that has one number for each row and column of a weight, or each feature."""
    if isinstance(spec, FeatureSpec):
        return {"row_logits": (spec.features,)}
    assert isinstance(spec, LayerSpec)
    return {"row_logits": (spec.out_features,), "column_logits": (spec.in_features,)}


def init_zero_or_random(head: nn.Linear, identity: bool) -> None:
    """Fill a linear layer with zeros, or with random values that move the masks well away from the identity."""
    if identity:
        nn.init.zeros_(head.weight)
        nn.init.zeros_(head.bias)
    else:
        nn.init.normal_(head.weight, std=0.5 / math.sqrt(head.in_features))
        nn.init.normal_(head.bias, std=0.3)
