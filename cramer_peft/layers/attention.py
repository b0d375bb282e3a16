"""Masked ``nn.MultiheadAttention``.

The module is wrapped whole: it reads the weights of its projections directly and would never call a mask on one of
them. For the same reason attention under masks is computed here, step by step and as torch does it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from cramer_peft.errors import UnsupportedError
from cramer_peft.layers.masked_layer import PassthroughMaskLayer
from cramer_peft.layers.registry import register_mask_layer
from cramer_peft.masks import FeatureSpec, LayerSpec, Spec, WeightProjection

_INPUTS = ("q", "k", "v")


@register_mask_layer(nn.MultiheadAttention)
class MaskedMultiheadAttention(PassthroughMaskLayer):
    """A masked ``nn.MultiheadAttention``.

    Its parts are the projections ``q``, ``k``, ``v`` and ``out``, and ``heads``: one gate for each head's output,
    before the output projection. The rows are in dimension 0 or 1, by the module's own ``batch_first``.
    """

    linear = False

    @classmethod
    def part_specs(cls, base_layer: nn.Module) -> Mapping[str, Spec]:
        assert isinstance(base_layer, nn.MultiheadAttention)
        width = base_layer.embed_dim
        return {
            "q": LayerSpec(width, width),
            "k": LayerSpec(width, base_layer.kdim),
            "v": LayerSpec(width, base_layer.vdim),
            "heads": FeatureSpec(base_layer.num_heads),
            "out": LayerSpec(width, width),
        }

    @classmethod
    def masked_weight(cls, base_layer: nn.Module) -> Tensor:
        assert isinstance(base_layer, nn.MultiheadAttention)
        return base_layer.out_proj.weight

    @classmethod
    def fingerprint_weights(cls, base_layer: nn.Module) -> Sequence[Tensor]:
        assert isinstance(base_layer, nn.MultiheadAttention)
        return [*(weight for _, weight in _input_weights(base_layer)), base_layer.out_proj.weight]

    def masked_forward(
        self,
        masks: Mapping[str, Any],
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Compute attention under ``masks`` (part → mask); the other arguments and the results are torch's own."""
        base = self._attention
        self._check_inputs(query, key, value, attn_mask, is_causal)
        batched = query.dim() == 3
        batch_dim = 0 if base.batch_first and batched else 1
        if not batched:
            query, key, value = query.unsqueeze(1), key.unsqueeze(1), value.unsqueeze(1)
            key_padding_mask = None if key_padding_mask is None else key_padding_mask.unsqueeze(0)
        self._check_lengths(query, key, value, batch_dim)
        inputs = {"q": query, "k": key, "v": value}
        masks = {part: self.fitted(mask, inputs.get(part, query), batch_dim) for part, mask in masks.items()}
        # Sequence first, as torch does it, because the strides decide how a product is rounded.
        q, k, v = (self._projected(masks, part, inputs[part].movedim(batch_dim, 1)).transpose(0, 1) for part in _INPUTS)
        attended, weights = self._attend(q, k, v, attn_mask, key_padding_mask, need_weights, is_causal)
        output = self._output(masks, attended).movedim(0, batch_dim)
        if weights is not None and average_attn_weights:
            weights = weights.mean(1)
        if batched:
            return output, weights
        return output.squeeze(1), None if weights is None else weights.squeeze(0)

    def _attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        attn_mask: Tensor | None,
        key_padding_mask: Tensor | None,
        need_weights: bool,
        is_causal: bool,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend with projected q, k and v, (rows, length, E): (rows, heads, L, E / heads), and the weights."""
        # As in torch, the causal hint replaces the mask only if nothing else has to be added to the scores.
        causal = is_causal and key_padding_mask is None and not need_weights
        added = self._added_scores(None if causal else attn_mask, key_padding_mask, q, k)
        q, k, v = self._split(q), self._with_extra(self._split(k), "k"), self._with_extra(self._split(v), "v")
        dropout = self._attention.dropout if self._attention.training else 0.0
        if need_weights:
            return _attend_with_weights(q, k, v, added, dropout)
        return functional.scaled_dot_product_attention(q, k, v, added, dropout, causal), None

    def fold_parts(self, masks: Mapping[str, Any], row: int) -> dict[str, Tensor]:
        return {**self._folded_inputs(masks, row), **self._folded_output(masks, row)}

    @property
    def _attention(self) -> nn.MultiheadAttention:
        assert isinstance(self.base_layer, nn.MultiheadAttention)
        return self.base_layer

    def _check_inputs(self, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None, causal: bool) -> None:
        if query.is_nested or key.is_nested or value.is_nested:
            raise UnsupportedError(
                f"module {self.module_name!r}: masked attention does not take nested tensors. Pass padded tensors with "
                "key_padding_mask, or call it without a request."
            )
        dims = [x.dim() for x in (query, key, value)]
        if dims not in ([2] * 3, [3] * 3):
            raise UnsupportedError(
                f"module {self.module_name!r}: query, key and value have {dims} dimensions; expected 3 each, or 2 each "
                "without rows."
            )
        if causal and attn_mask is None:
            raise UnsupportedError(
                f"module {self.module_name!r}: is_causal=True needs attn_mask, as in torch: it only says that the mask "
                "given is the causal one. Pass nn.Transformer.generate_square_subsequent_mask(length)."
            )

    def _check_lengths(self, query: Tensor, key: Tensor, value: Tensor, batch_dim: int) -> None:
        if key.shape[:2] != value.shape[:2] or key.shape[batch_dim] != query.shape[batch_dim]:
            raise UnsupportedError(
                f"module {self.module_name!r}: query {tuple(query.shape)}, key {tuple(key.shape)} and value "
                f"{tuple(value.shape)} must have equal numbers of rows (dimension {batch_dim}), key and value equal "
                "lengths, too."
            )

    def _input_projections(self) -> dict[str, tuple[str, WeightProjection]]:
        """Return, per input, the name of the parameter that holds its weight, and its projection."""
        base = self._attention
        biases = [None] * 3 if base.in_proj_bias is None else base.in_proj_bias.chunk(3)
        weights = _input_weights(base)
        return {
            part: (name, WeightProjection(weight, bias))
            for part, (name, weight), bias in zip(_INPUTS, weights, biases, strict=True)
        }

    def _projected(self, masks: Mapping[str, Any], part: str, x: Tensor) -> Tensor:
        _, projection = self._input_projections()[part]
        output: Tensor = masks[part].apply(projection, x, 1) if part in masks else projection.base_forward(x)
        return output

    def _split(self, x: Tensor) -> Tensor:
        """Split (rows, length, E) into (rows, heads, length, E / heads)."""
        split: Tensor = x.unflatten(-1, (self._attention.num_heads, -1)).transpose(1, 2)  # type: ignore[no-untyped-call]
        return split

    def _with_extra(self, x: Tensor, part: str) -> Tensor:
        """Return ``x`` (rows, heads, S, E / heads) with the keys that ``add_bias_kv`` and ``add_zero_attn`` add."""
        base = self._attention
        extra = base.bias_k if part == "k" else base.bias_v
        if extra is not None:
            x = torch.cat([x, self._split(extra).expand(x.shape[0], -1, -1, -1)], 2)
        return functional.pad(x, (0, 0, 0, 1)) if base.add_zero_attn else x

    def _added_scores(
        self, attn_mask: Tensor | None, key_padding_mask: Tensor | None, q: Tensor, k: Tensor
    ) -> Tensor | None:
        """Return what is added to the attention scores, broadcastable to (rows, heads, L, S + extra keys)."""
        base, (rows, length, _), keys = self._attention, q.shape, k.shape[1]
        masks = []
        if attn_mask is not None:
            flat = attn_mask.dim() == 2
            self._check_mask("attn_mask", attn_mask, (length, keys) if flat else (rows * base.num_heads, length, keys))
            added = _additive(attn_mask, q.dtype)
            masks.append(added if flat else added.unflatten(0, (rows, base.num_heads)))
        if key_padding_mask is not None:
            self._check_mask("key_padding_mask", key_padding_mask, (rows, keys))
            masks.append(_additive(key_padding_mask, q.dtype)[:, None, None])
        if not masks:
            return None
        return functional.pad(sum(masks[1:], masks[0]), (0, (base.bias_k is not None) + base.add_zero_attn))

    def _check_mask(self, name: str, mask: Tensor, shape: tuple[int, ...]) -> None:
        if mask.shape != shape:
            raise UnsupportedError(
                f"module {self.module_name!r}: {name} has the shape {tuple(mask.shape)}, expected {shape}."
            )
        if mask.dtype != torch.bool and not mask.is_floating_point():
            raise UnsupportedError(
                f"module {self.module_name!r}: {name} has the dtype {mask.dtype}, expected bool or floating point."
            )

    def _output(self, masks: Mapping[str, Any], attended: Tensor) -> Tensor:
        """Apply the output projection: (rows, heads, L, E / heads) → (rows, L, E)."""
        if "heads" in masks:
            attended = masks["heads"].multiply(attended, 0, feature_dim=-3)
        flat = attended.transpose(1, 2).flatten(-2)
        base = self._attention
        projection = WeightProjection(base.out_proj.weight, base.out_proj.bias)
        output: Tensor = masks["out"].apply(projection, flat, 0) if "out" in masks else projection.base_forward(flat)
        return output

    def _folded_inputs(self, masks: Mapping[str, Any], row: int) -> dict[str, Tensor]:
        weights: dict[str, list[Tensor]] = {}  # in_proj_weight holds q, k and v, one after the other
        biases: list[Tensor] = []
        changed: set[str] = set()
        for part, (name, projection) in self._input_projections().items():
            weight, bias = projection.weight_matrix, projection.base_bias
            if part in masks:
                weight, bias = masks[part].fold(weight, bias, row)
                changed.add(name)
                if bias is not projection.base_bias:
                    changed.add("in_proj_bias")
            weights.setdefault(name, []).append(weight)
            biases += [] if bias is None else [bias]
        folded = {name: torch.cat(pieces) for name, pieces in weights.items() if name in changed}
        if "in_proj_bias" in changed:
            folded["in_proj_bias"] = torch.cat(biases)
        return folded

    def _folded_output(self, masks: Mapping[str, Any], row: int) -> dict[str, Tensor]:
        out_proj = self._attention.out_proj
        weight, bias = out_proj.weight, out_proj.bias
        if "out" in masks:
            weight, bias = masks["out"].fold(weight, bias, row)
        if "heads" in masks:
            heads = masks["heads"].row(row).to(weight.dtype)
            weight = weight * heads.repeat_interleave(self._attention.head_dim)
        folded = {} if weight is out_proj.weight else {"out_proj.weight": weight}
        if bias is not None and bias is not out_proj.bias:
            folded["out_proj.bias"] = bias
        return folded


def _input_weights(base: nn.MultiheadAttention) -> list[tuple[str, Tensor]]:
    """Return the weights of q, k and v, (E, width of the input), each with the name of the parameter that holds it."""
    if base.in_proj_weight is not None:
        return [("in_proj_weight", weight) for weight in base.in_proj_weight.chunk(3)]
    return [(name, getattr(base, name)) for name in ("q_proj_weight", "k_proj_weight", "v_proj_weight")]


def _additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    if mask.dtype == torch.bool:
        return torch.zeros_like(mask, dtype=dtype).masked_fill(mask, -math.inf)
    return mask.to(dtype)


def _attend_with_weights(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float) -> tuple[Tensor, Tensor]:
    scores = (q * math.sqrt(1.0 / q.shape[-1])) @ k.transpose(-2, -1)
    weights = functional.dropout((scores if mask is None else scores + mask).softmax(-1), dropout, dropout > 0)
    return weights @ v, weights
