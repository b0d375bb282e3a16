"""The base class of all masked layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, TypeVar

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.nn.modules import module as torch_module
from typing_extensions import Self

from cramer_peft.context import RequestContext
from cramer_peft.errors import RequestError, UnsupportedError
from cramer_peft.layers.hooks import call_with_hooks
from cramer_peft.masks import BatchMask, FeatureSpec, LayerMask, LayerSpec, Mask, Spec
from cramer_peft.masks.tracing import trace_refusal

AnyMask = TypeVar("AnyMask", bound=BatchMask)


@dataclass(frozen=True)
class RowLayout:
    """The place of the batch's rows in a layer's input; :class:`RequestMaskConfig` explains ``batch_folding``."""

    batch_dim: int = 0
    folding: str | None = None


class RequestMaskLayer(nn.Module, BaseTunerLayer):
    """A frozen module whose weights or features are masked in calls with a request.

    It has no parameters of its own: the context gives it the masks that the adapter's generator makes. Without a
    request, or with adapters disabled, it only calls the frozen module.

    A module has one or more masked *parts*; the part ``""`` is the whole of a module with one. A subclass
    for a module with one weight gives :meth:`spec` and :meth:`project`; one with several parts gives
    :meth:`part_specs`, :meth:`masked_forward` and :meth:`fold_parts`.

    Args:
        base_layer: The frozen module.
        module_name: Its name in the model, under which the masks are found and errors name it.
        context: Tells which masks apply in the current call.
    """

    adapter_layer_names = ("generators",)
    other_param_names = ("request_mask_specs",)
    linear: ClassVar[bool] = True  # True if target_modules="all-linear" includes it
    plain_class: ClassVar[type[nn.Module] | None] = None  # its forward is only a product with a weight
    feature_dim: int = -1

    def __init__(self, base_layer: nn.Module, module_name: str, context: RequestContext) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.module_name = module_name
        self.context = context
        self.request_mask_specs: dict[str, tuple[dict[str, Spec], RowLayout]] = {}
        self.merged_adapters: list[str] = []
        self.merged_masks: dict[str, Mask] = {}
        self._disable_adapters = False
        self.in_features, self.out_features = self.widths(base_layer)
        self.train(base_layer.training)

    # ---------------------------------------------------------------- what subclasses define

    @classmethod
    def spec(cls, base_layer: nn.Module) -> LayerSpec:
        """Return the widths of ``base_layer``'s weight, for a module with one."""
        raise NotImplementedError(f"{cls.__name__} must define spec, or part_specs.")

    @classmethod
    def part_specs(cls, base_layer: nn.Module) -> Mapping[str, Spec]:
        """Return the widths of each part that can be masked; ``""`` is the whole of a module with one part."""
        return {"": cls.spec(base_layer)}

    @classmethod
    def widths(cls, base_layer: nn.Module) -> tuple[int, int]:
        """Return ``in_features`` and ``out_features``, which PEFT expects of every wrapped layer."""
        spec = next(iter(cls.part_specs(base_layer).values()))
        if isinstance(spec, LayerSpec):
            return spec.in_features, spec.out_features
        return (spec.features, spec.features) if isinstance(spec, FeatureSpec) else (0, 0)

    @classmethod
    def unfoldable_parts(cls) -> tuple[str, ...]:
        """Return the parts that no weight can hold when a request is merged: the layer multiplies by their masks."""
        return ()

    @classmethod
    def masked_weight(cls, base_layer: nn.Module) -> Tensor:
        """Return the frozen weight as (out_features, in_features), however ``base_layer`` stores it."""
        weight: Tensor = base_layer.weight  # type: ignore[assignment]
        return weight

    @classmethod
    def fingerprint_weights(cls, base_layer: nn.Module) -> Sequence[Tensor]:
        """Return the frozen tensors that tell one base model from another."""
        return [cls.masked_weight(base_layer)]

    def project(self, x: Tensor) -> Tensor:
        """Apply the frozen weight alone, without the bias: (…, in) → (…, out)."""
        raise NotImplementedError(f"{type(self).__name__} must define project, or masked_forward.")

    def masked_forward(self, masks: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Run the module under ``masks`` (part → mask); a part without a mask stays frozen."""
        x = args[0] if args else kwargs.pop("input", None)
        layout = self.layout
        return self.fitted(masks[""], x, layout.batch_dim).apply(self, x, layout.batch_dim)

    def fold_parts(self, masks: Mapping[str, Any], row: int) -> dict[str, Tensor]:
        """Return new tensors for the parameters of ``base_layer`` (by name) that hold one row's masks."""
        weight, bias = self.fold(masks[""], row)
        changed = {"weight": self.stored_weight(weight)}
        if bias is not None and bias is not self.base_bias:
            changed["bias"] = bias
        return changed

    def stored_weight(self, weight: Tensor) -> Tensor:
        """Return an (out_features, in_features) weight in the form in which ``base_layer`` stores it."""
        return weight

    # ---------------------------------------------------------------- the call

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if torch._C._get_tracing_state() is not None or (args and isinstance(args[0], torch.fx.Proxy)):
            self._check_trace()
        masks = self.context.masks_for(self.module_name, self._entries, self._disable_adapters)
        if not masks:
            masks = self.merged_masks  # the masks of a merged request that no weight can hold; mostly empty
        if not masks:
            return self.base_layer(*args, **kwargs)
        if _has_hooks(self.base_layer):
            return call_with_hooks(self.base_layer, partial(self.masked_forward, masks), args, kwargs)
        return self.masked_forward(masks, *args, **kwargs)

    def _check_trace(self) -> None:
        """Refuse a trace that would not follow the requests of later calls."""
        if not self.context.has_fixed_masks() and not self._disable_adapters:
            raise trace_refusal(f"module {self.module_name!r}")

    def fitted(self, mask: AnyMask, x: Tensor, batch_dim: int) -> AnyMask:
        """Return ``mask`` with as many rows as ``x`` has along ``batch_dim``.

        Raises:
            RequestError: If there are not as many requests as rows, and the configuration sets no folding.
        """
        if mask.shared:
            return mask
        if not -x.dim() <= batch_dim < x.dim() - (1 if x.is_floating_point() else 0):
            raise RequestError(
                f"module {self.module_name!r}: its input of shape {tuple(x.shape)} has no batch dimension {batch_dim} "
                "beside the features. Set batch_dim in RequestMaskConfig, or give one request for the whole batch."
            )
        found, rows = x.shape[batch_dim], mask.rows
        if found == rows:
            return mask
        folding = self.layout.folding
        if folding is not None and found % rows == 0:
            times = found // rows
            if folding == "rows_first":
                return mask.map_rows(lambda value: value.repeat_interleave(times, 0))
            return mask.map_rows(lambda value: value.repeat(times, *[1] * (value.dim() - 1)))
        raise RequestError(
            f"module {self.module_name!r}: found {found} rows in dimension {batch_dim} of its input "
            f"of shape {tuple(x.shape)}, but {rows} requests were given. Give one request for each row, or one for "
            "the whole batch; if the rows are in another dimension, set batch_dim in RequestMaskConfig; if the model "
            "folds beams or positions into that dimension, set batch_folding."
        )

    # ---------------------------------------------------------------- the frozen module

    @property
    def weight_matrix(self) -> Tensor:
        """The frozen weight, (out_features, in_features)."""
        return self.masked_weight(self.base_layer)

    @property
    def base_bias(self) -> Tensor | None:
        """The frozen bias, (out_features,), or None."""
        return getattr(self.base_layer, "bias", None)

    @property
    def is_product(self) -> bool:
        """True if the frozen module's forward only multiplies by its weight and adds its bias."""
        base, plain = self.base_layer, self.plain_class
        return plain is not None and type(base).forward is plain.forward and "forward" not in base.__dict__

    def base_forward(self, x: Tensor) -> Tensor:
        """Run the frozen module's forward on ``x``; its hooks run around the masked call."""
        forward = getattr(self.base_layer, "_old_forward", self.base_layer.forward)  # accelerate's own brings weights
        output: Tensor = forward(x)
        return output

    def fold(self, mask: LayerMask, row: int) -> tuple[Tensor, Tensor | None]:
        """Return weight (out, in) and bias with one row's mask folded in, as new tensors."""
        return mask.fold(self.weight_matrix, self.base_bias, row)

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        self.put_merged_masks(self.merged_masks)  # they are no buffers, so they are moved here
        return self

    def put_merged_masks(self, masks: Mapping[str, Mask]) -> None:
        """Multiply by ``masks`` (part → mask) in every call; they are moved to where the module is."""
        device = next((value.device for value in self.base_layer.parameters()), None)
        self.merged_masks = {part: mask.map_tensors(lambda value: value.to(device)) for part, mask in masks.items()}

    # ---------------------------------------------------------------- adapters

    def update_layer(self, adapter_name: str, specs: Mapping[str, Spec], layout: RowLayout) -> None:
        """Let the adapter ``adapter_name`` mask the parts ``specs`` of this layer."""
        self.request_mask_specs[adapter_name] = (dict(specs), layout)

    @property
    def _entries(self) -> dict[str, str]:
        """The entry of each part that some adapter masks."""
        entries: dict[str, str] = {}
        for specs, _ in self.request_mask_specs.values():
            for part in specs:
                entries[part] = entry_name(self.module_name, part)
        return entries

    def entry(self, part: str) -> str:
        """Return the name under which the mask of a part is found."""
        return entry_name(self.module_name, part)

    def masked_parts(self) -> list[str]:
        """Return the parts that some adapter masks."""
        return list(self._entries)

    @property
    def layout(self) -> RowLayout:
        """The row layout of the active adapters."""
        names: list[str] = self.active_adapters  # type: ignore[assignment]
        for name in names:
            if name in self.request_mask_specs:
                return self.request_mask_specs[name][1]
        return next((layout for _, layout in self.request_mask_specs.values()), RowLayout())

    @property
    def batch_dim(self) -> int:
        """Dimension of the input that holds the rows."""
        return self.layout.batch_dim

    def set_adapter(self, adapter_names: str | list[str], inference_mode: bool = False) -> None:
        super().set_adapter(adapter_names, inference_mode=inference_mode)
        if self.context.activated is not None:
            names: list[str] = self.active_adapters  # type: ignore[assignment]
            self.context.activated(list(names))

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        raise UnsupportedError("merge by the handle's merge_request or merge_adapter, which see the whole model.")

    def unmerge(self) -> None:
        raise UnsupportedError("unmerge by the handle's unmerge, which sees the whole model.")

    @property
    def generators(self) -> nn.ModuleDict:
        """The generators of the adapters that mask this layer, by name; PEFT's reports read them."""
        view: nn.ModuleDict = self.__dict__.setdefault("_view", nn.ModuleDict())  # no submodule: the handle owns them
        found = self.context.generators
        for name in set(view) - set(self.request_mask_specs):
            del view[name]
        view.update({name: found[name] for name in self.request_mask_specs if name in found})
        return view

    def _get_available_adapters(self) -> set[str]:
        return set(self.request_mask_specs)


class PassthroughMaskLayer(RequestMaskLayer):
    """A masked layer that also gives the frozen module's attributes, for modules whose attributes models read."""

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "base_layer":  # not set yet in a copy or pickle that is being filled
                raise
            return getattr(self.base_layer, name)


def _has_hooks(module: nn.Module) -> bool:
    """Return True if a call of ``module`` runs anything beside its forward."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or torch_module._global_forward_hooks
        or torch_module._global_forward_pre_hooks
        or torch_module._global_backward_hooks
        or torch_module._global_backward_pre_hooks
        or "_hf_hook" in vars(module)
    )


def entry_name(module_name: str, part: str) -> str:
    """Return the name under which a part's mask is kept: the module's, and the part's if it has several."""
    return f"{module_name}.{part}" if part else module_name
