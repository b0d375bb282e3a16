"""What every masked layer does, whatever module it wraps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from typing_extensions import Self

from cramer_peft.carrier import RequestCarrier
from cramer_peft.errors import CheckpointingError, RequestError, UnsupportedError
from cramer_peft.gates import LayerGate, LayerSpec, PartGate, RowGates, Spec
from cramer_peft.recompute import in_backward

AnyGate = TypeVar("AnyGate", bound=RowGates)


@dataclass(frozen=True)
class RowLayout:
    """Where the rows of the batch are in a layer's input.

    Attributes:
        batch_dim: Dimension that holds them.
        folding: What to do where it is several times as long as there are requests: None refuses,
            ``"rows_first"`` repeats each request for neighbours, ``"rows_last"`` repeats all in turn.
    """

    batch_dim: int = 0
    folding: str | None = None


class RequestMaskLayer(nn.Module, BaseTunerLayer):
    """A frozen module whose weights or features are masked while a request is in force.

    It holds no parameters of its own: the gates come from the adapter's generator, by way of the
    carrier. Without a request, or with adapters disabled, the call goes straight to the frozen module.

    A module has one or more gated *parts*; the part ``""`` is the whole of a module with one. A subclass
    for a module with one weight gives :meth:`spec` and :meth:`project`; one with several parts gives
    :meth:`part_specs`, :meth:`masked_forward` and :meth:`fold_parts`.

    Args:
        base_layer: The frozen module.
        module_name: Its name in the model, under which the gates are found and errors name it.
        carrier: Where the current request's gates come from.
    """

    adapter_layer_names = ("generators",)
    other_param_names = ("request_mask_specs",)
    linear: ClassVar[bool] = True  # whether target_modules="all-linear" takes it in
    feature_dim: int = -1

    def __init__(self, base_layer: nn.Module, module_name: str, carrier: RequestCarrier) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.module_name = module_name
        self.carrier = carrier
        self.request_mask_specs: dict[str, tuple[dict[str, Spec], RowLayout]] = {}
        self.merged_adapters: list[str] = []
        self.merged_gates: dict[str, PartGate] = {}
        self._disable_adapters = False
        self.in_features, self.out_features = self.widths(base_layer)
        self.train(base_layer.training)

    # ---------------------------------------------------------------- what subclasses say

    @classmethod
    def spec(cls, base_layer: nn.Module) -> LayerSpec:
        """Widths of ``base_layer``'s weight, for a module with one."""
        raise NotImplementedError(f"{cls.__name__} must define spec, or part_specs.")

    @classmethod
    def part_specs(cls, base_layer: nn.Module) -> Mapping[str, Spec]:
        """What is gated, by part; ``""`` is the whole of a module with one part."""
        return {"": cls.spec(base_layer)}

    @classmethod
    def widths(cls, base_layer: nn.Module) -> tuple[int, int]:
        """``in_features`` and ``out_features``, which PEFT expects of every wrapped layer."""
        spec = next(iter(cls.part_specs(base_layer).values()))
        return (spec.in_features, spec.out_features) if isinstance(spec, LayerSpec) else (spec.features, spec.features)

    @classmethod
    def unfoldable_parts(cls) -> tuple[str, ...]:
        """Parts whose gates have no place in a weight: a merged layer goes on multiplying by them."""
        return ()

    @classmethod
    def masked_weight(cls, base_layer: nn.Module) -> Tensor:
        """The frozen weight as (out_features, in_features), however ``base_layer`` stores it."""
        weight: Tensor = base_layer.weight  # type: ignore[assignment]
        return weight

    @classmethod
    def fingerprint_weights(cls, base_layer: nn.Module) -> Sequence[Tensor]:
        """The frozen tensors that tell one base model from another."""
        return [cls.masked_weight(base_layer)]

    def project(self, x: Tensor) -> Tensor:
        """The frozen weight alone, without the bias: (…, in) → (…, out)."""
        raise NotImplementedError(f"{type(self).__name__} must define project, or masked_forward.")

    def masked_forward(self, gates: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """The module under ``gates`` (part → gates); a part that is not there stays frozen."""
        x = args[0] if args else kwargs.pop("input", None)
        return self.fitted(gates[""], x, self.batch_dim).apply(self, x, self.batch_dim)

    def fold_parts(self, gates: Mapping[str, Any], row: int) -> dict[str, Tensor]:
        """New tensors for the parameters of ``base_layer`` (by name) that hold one row's gates."""
        weight, bias = self.fold(gates[""], row)
        changed = {"weight": self.stored_weight(weight)}
        if bias is not None and bias is not self.base_bias:
            changed["bias"] = bias
        return changed

    def stored_weight(self, weight: Tensor) -> Tensor:
        """An (out_features, in_features) weight in the form in which ``base_layer`` stores it."""
        return weight

    # ---------------------------------------------------------------- what all share

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
        """Whether the frozen module is a product with its weight, a bias and no more: no hook, no other forward."""
        return False

    def base_forward(self, x: Tensor) -> Tensor:
        """The frozen module on ``x``."""
        output: Tensor = self.base_layer(x)
        return output

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        self.put_merged_gates(self.merged_gates)  # no buffers, and they must follow to the device
        return self

    def put_merged_gates(self, gates: Mapping[str, PartGate]) -> None:
        """Multiply by ``gates`` (part → gates) in every call; they are moved to where the module is."""
        device = next((value.device for value in self.base_layer.parameters()), None)
        self.merged_gates = {part: gate._map(lambda value: value.to(device)) for part, gate in gates.items()}

    def update_layer(self, adapter_name: str, specs: Mapping[str, Spec], layout: RowLayout) -> None:
        """Let the adapter ``adapter_name`` mask this layer's parts ``specs``."""
        self.request_mask_specs[adapter_name] = (dict(specs), layout)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        source = None if self._disable_adapters else self.carrier.current()
        self._refuse_recompute(source)
        if source is None:
            if self.merged_gates:
                return self.masked_forward(self.merged_gates, *args, **kwargs)
            return self.base_layer(*args, **kwargs)
        gates = {}
        for part in self.gated_parts():
            gate = source.gates_of(self.entry(part))
            if gate is not None:
                gates[part] = gate
        if not gates:
            return self.base_layer(*args, **kwargs)
        return self.masked_forward(gates, *args, **kwargs)

    def entry(self, part: str) -> str:
        """Under which name the gates of a part are found."""
        return entry_name(self.module_name, part)

    def gated_parts(self) -> list[str]:
        """The parts that some adapter masks."""
        return list(dict.fromkeys(part for specs, _ in self.request_mask_specs.values() for part in specs))

    @property
    def layout(self) -> RowLayout:
        """Where the active adapters expect the rows."""
        names: list[str] = self.active_adapters  # type: ignore[assignment]
        for name in names:
            if name in self.request_mask_specs:
                return self.request_mask_specs[name][1]
        return next((layout for _, layout in self.request_mask_specs.values()), RowLayout())

    @property
    def batch_dim(self) -> int:
        """Dimension of the input that holds the rows."""
        return self.layout.batch_dim

    def fold(self, gates: LayerGate, row: int) -> tuple[Tensor, Tensor | None]:
        """Weight (out, in) and bias with one row's gates folded in, as new tensors."""
        return gates.fold(self.weight_matrix, self.base_bias, row)

    def set_adapter(self, adapter_names: str | list[str], inference_mode: bool = False) -> None:
        super().set_adapter(adapter_names, inference_mode=inference_mode)
        if self.carrier.activated is not None:
            names: list[str] = self.active_adapters  # type: ignore[assignment]
            self.carrier.activated(list(names))

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        raise UnsupportedError("merge by the handle's merge_request or merge_adapter, which see the whole model.")

    def unmerge(self) -> None:
        raise UnsupportedError("unmerge by the handle's unmerge, which sees the whole model.")

    @property
    def generators(self) -> nn.ModuleDict:
        """The generators of the adapters that mask this layer, by name: a view, for PEFT's reports on a layer."""
        view: nn.ModuleDict = self.__dict__.setdefault("_view", nn.ModuleDict())  # no submodule: it owns nothing
        found = self.carrier.generators
        for name in set(view) - set(self.request_mask_specs):
            del view[name]
        view.update({name: found[name] for name in self.request_mask_specs if name in found})
        return view

    def _get_available_adapters(self) -> set[str]:
        return set(self.request_mask_specs)

    def fitted(self, gate: AnyGate, x: Tensor, batch_dim: int) -> AnyGate:
        """``gate`` with as many rows as ``x`` has along ``batch_dim``.

        Raises:
            RequestError: If there are not as many requests as rows, and the configuration says of no folding.
        """
        if gate.shared:
            return gate
        if not -x.dim() <= batch_dim < x.dim() - (1 if x.is_floating_point() else 0):
            raise RequestError(
                f"module {self.module_name!r}: its input of shape {tuple(x.shape)} has no batch dimension {batch_dim} "
                "beside the features. Set batch_dim in RequestMaskConfig, or give one request for the whole batch."
            )
        found, rows = x.shape[batch_dim], gate.rows
        if found == rows:
            return gate
        folding = self.layout.folding
        if folding is not None and found % rows == 0:
            times = found // rows
            if folding == "rows_first":
                return gate.map_rows(lambda value: value.repeat_interleave(times, 0))
            return gate.map_rows(lambda value: value.repeat(times, *[1] * (value.dim() - 1)))
        raise RequestError(
            f"module {self.module_name!r}: found {found} rows in dimension {batch_dim} of its input "
            f"of shape {tuple(x.shape)}, but {rows} requests were given. Give one request for each row, or one for "
            "the whole batch; if the rows are in another dimension, set batch_dim in RequestMaskConfig; if the model "
            "folds beams or positions into that dimension, set batch_folding."
        )

    def _refuse_recompute(self, source: Any) -> None:
        """Refuse to run inside backward, where a checkpoint would silently use other gates."""
        if torch.compiler.is_compiling():
            return
        if not in_backward():
            self.carrier.note(source)
        elif not self.carrier.allows_recompute(source):
            raise CheckpointingError(
                f"module {self.module_name!r} was run again inside backward: gradient checkpointing recomputes it when "
                "its request has ended. Give non-reentrant checkpoints the context that brings it back "
                "(model.gradient_checkpointing_enable({'use_reentrant': False, 'context_fn': "
                "masks.checkpoint_contexts})), or turn gradient checkpointing off while training request masks "
                "(model.gradient_checkpointing_disable(), TrainingArguments(gradient_checkpointing=False))."
            )


def entry_name(module_name: str, part: str) -> str:
    """Under which name a part's gates are kept: the module's, and the part's where it has several."""
    return f"{module_name}.{part}" if part else module_name
