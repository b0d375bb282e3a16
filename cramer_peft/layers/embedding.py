"""Masked ``nn.Embedding``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor, nn

from cramer_peft.errors import UnsupportedError
from cramer_peft.layers.masked_layer import PassthroughMaskLayer
from cramer_peft.layers.registry import register_mask_layer
from cramer_peft.masks import FeatureMask, FeatureSpec, Spec


@register_mask_layer(nn.Embedding)
class MaskedEmbedding(PassthroughMaskLayer):
    """A masked ``nn.Embedding``: gates on the features of the vectors that are looked up.

    A vector at ``padding_idx`` that is zero stays zero. With ``max_norm`` the gates act after the lookup has
    renormalised. If the model also reads ``weight`` itself, for example to score all items, that use is not masked.
    """

    linear: ClassVar[bool] = False

    @classmethod
    def part_specs(cls, base_layer: nn.Module) -> Mapping[str, Spec]:
        assert isinstance(base_layer, nn.Embedding)
        return {"": FeatureSpec(base_layer.embedding_dim)}

    def masked_forward(self, masks: Mapping[str, Any], input: Tensor) -> Tensor:
        """Look up ids of any shape under ``masks``; a negative ``batch_dim`` counts from the end of the output."""
        mask: FeatureMask = masks[""]
        output = self.base_forward(input)
        return self.fitted(mask, output, self.batch_dim).multiply(output, self.batch_dim)

    def fold_parts(self, masks: Mapping[str, Any], row: int) -> dict[str, Tensor]:
        """Return the table with one row's gates on its features."""
        if self.base_layer.max_norm is not None:
            raise UnsupportedError(
                f"module {self.module_name!r}: its max_norm={self.base_layer.max_norm} would renormalise the merged "
                "weight at each lookup, and so undo the gates. Leave it out of target_modules to merge, or use the "
                "request without merging."
            )
        weight: Tensor = self.base_layer.weight  # type: ignore[assignment]
        return {"weight": weight * masks[""].row(row).to(weight.dtype)}
