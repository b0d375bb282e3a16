"""What every masked layer does, whatever module it wraps."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from cramer_peft.carrier import RequestCarrier
from cramer_peft.errors import CheckpointingError, RequestError, UnsupportedError
from cramer_peft.gates import LayerGate, LayerSpec


class RequestMaskLayer(nn.Module, BaseTunerLayer):
    """A frozen module whose weight is masked while a request is in force.

    It holds no parameters of its own: the gates come from the adapter's generator, by way of the
    carrier. Without a request, or with adapters disabled, the call goes straight to the frozen module.

    Args:
        base_layer: The frozen module.
        module_name: Its name in the model, under which the gates are found and errors name it.
        carrier: Where the current request's gates come from.
    """

    adapter_layer_names = ()
    other_param_names = ("request_mask_specs",)

    def __init__(self, base_layer: nn.Module, module_name: str, carrier: RequestCarrier) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.module_name = module_name
        self.carrier = carrier
        self.request_mask_specs: dict[str, tuple[LayerSpec, int]] = {}
        self.merged_adapters: list[str] = []
        self._disable_adapters = False
        spec = self.spec(base_layer)
        self.in_features, self.out_features = spec.in_features, spec.out_features
        self.train(base_layer.training)

    @classmethod
    @abstractmethod
    def spec(cls, base_layer: nn.Module) -> LayerSpec:
        """Widths of ``base_layer``."""

    @abstractmethod
    def project(self, x: Tensor) -> Tensor:
        """The frozen weight alone, without the bias: (…, in) → (…, out)."""

    @classmethod
    def masked_weight(cls, base_layer: nn.Module) -> Tensor:
        """The frozen weight as (out_features, in_features), however ``base_layer`` stores it."""
        weight: Tensor = base_layer.weight  # type: ignore[assignment]
        return weight

    @property
    def weight_matrix(self) -> Tensor:
        """The frozen weight, (out_features, in_features)."""
        return self.masked_weight(self.base_layer)

    @property
    def base_bias(self) -> Tensor | None:
        """The frozen bias, (out_features,), or None."""
        return getattr(self.base_layer, "bias", None)

    def base_forward(self, x: Tensor) -> Tensor:
        """The frozen module on ``x``."""
        output: Tensor = self.base_layer(x)
        return output

    def update_layer(self, adapter_name: str, spec: LayerSpec, batch_dim: int) -> None:
        """Let the adapter ``adapter_name`` mask this layer."""
        self.request_mask_specs[adapter_name] = (spec, batch_dim)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        adapter = self._adapter_in_force()
        source = self.carrier.current() if adapter is not None else None
        self._refuse_recompute(has_request=source is not None)
        gates = source.gates_of(self.module_name) if source is not None else None
        if gates is None or source is None or adapter is None:
            return self.base_layer(x, *args, **kwargs)
        _, batch_dim = self.request_mask_specs[adapter]
        if not source.inputs.shared:
            self._check_rows(x, source.inputs.rows, batch_dim)
        return gates.apply(self, x, batch_dim)

    def fold(self, gates: LayerGate, row: int) -> tuple[Tensor, Tensor | None]:
        """Weight (out, in) and bias with one row's gates folded in, as new tensors."""
        return gates.fold(self.weight_matrix, self.base_bias, row)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        raise UnsupportedError("request masks differ from request to request: there is no one mask to merge.")

    def unmerge(self) -> None:
        return None

    def _get_available_adapters(self) -> set[str]:
        return set(self.request_mask_specs)

    def _adapter_in_force(self) -> str | None:
        if self._disable_adapters:
            return None
        names: list[str] = self.active_adapters  # type: ignore[assignment]
        for name in names:
            if name in self.request_mask_specs:
                return name
        return None

    def _check_rows(self, x: Tensor, rows: int, batch_dim: int) -> None:
        if not -x.dim() <= batch_dim < x.dim() - 1:
            raise RequestError(
                f"module {self.module_name!r}: its input of shape {tuple(x.shape)} has no batch dimension {batch_dim} "
                "beside the features. Set batch_dim in RequestMaskConfig, or give one request for the whole batch."
            )
        if x.shape[batch_dim] != rows:
            raise RequestError(
                f"module {self.module_name!r}: found {x.shape[batch_dim]} rows in dimension {batch_dim} of its input "
                f"of shape {tuple(x.shape)}, but {rows} requests were given. Give one request for each row, or one for "
                "the whole batch; if the rows are in another dimension, set batch_dim in RequestMaskConfig."
            )

    def _refuse_recompute(self, has_request: bool) -> None:
        """Refuse to run inside backward, where a checkpoint would silently use other gates."""
        if torch.compiler.is_compiling() or not (has_request or self.carrier.used_with_gradients):
            return
        if torch._C._current_graph_task_id() != -1:
            raise CheckpointingError(
                f"module {self.module_name!r} was run again inside backward: gradient checkpointing recomputes it when "
                "its request has ended. Turn gradient checkpointing off while training request masks "
                "(model.gradient_checkpointing_disable(), TrainingArguments(gradient_checkpointing=False))."
            )
