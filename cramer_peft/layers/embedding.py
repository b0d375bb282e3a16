"""Masked ``nn.Embedding``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor, nn

from cramer_peft.errors import UnsupportedError
from cramer_peft.gates import FeatureGate, FeatureSpec, Spec
from cramer_peft.layers.passthrough import PassthroughMaskLayer
from cramer_peft.layers.registry import register_mask_layer


@register_mask_layer(nn.Embedding)
class MaskedEmbedding(PassthroughMaskLayer):
    """A masked ``nn.Embedding``: gates on the features of what is looked up.

    A vector at ``padding_idx`` that is zero stays zero. With ``max_norm``, the gates act after the lookup has
    renormalised. Where the model reads ``weight`` itself, to score all items say, that use is not masked.
    """

    linear: ClassVar[bool] = False

    @classmethod
    def part_specs(cls, base_layer: nn.Module) -> Mapping[str, Spec]:
        assert isinstance(base_layer, nn.Embedding)
        return {"": FeatureSpec(base_layer.embedding_dim)}

    def masked_forward(self, gates: Mapping[str, Any], input: Tensor) -> Tensor:
        """The lookup under ``gates``.

        Args:
            gates: Gates of the part ``""``.
            input: Ids of any shape. A negative ``batch_dim`` counts from the end of the output, as in other
                layers.

        Raises:
            RequestError: If there are not as many requests as rows.
        """
        gate: FeatureGate = gates[""]
        output: Tensor = self.base_layer(input)
        return self.fitted(gate, output, self.batch_dim).multiply(output, self.batch_dim)

    def fold_parts(self, gates: Mapping[str, Any], row: int) -> dict[str, Tensor]:
        """The table with one row's gates on its features.

        Raises:
            UnsupportedError: If the module has a ``max_norm``.
        """
        if self.base_layer.max_norm is not None:
            raise UnsupportedError(
                f"module {self.module_name!r}: its max_norm={self.base_layer.max_norm} would renormalise the merged "
                "weight at each lookup, so that it would no longer give what the gates give. Leave it out of "
                "target_modules to merge, or use the request without merging."
            )
        weight: Tensor = self.base_layer.weight  # type: ignore[assignment]
        return {"weight": weight * gates[""].row(row).to(weight.dtype)}
