"""Export for ``torch.export`` and ONNX: one module with tensors in and out, the request among the inputs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from cramer_peft.context import FixedMasks
from cramer_peft.errors import RequestError
from cramer_peft.model import RequestMaskModel


class RequestModule(nn.Module):
    """The adapted model with the request vectors as its last input.

    Call it as ``forward(*inputs, request)``, or as ``forward(*inputs, request, active)`` with ``with_active=True``.
    A vector of zeros is a request like any other; to leave rows to the frozen model, export with ``active``.

    Args:
        masks: The handle, or the ``PeftModel`` around it.
        with_active: True if the last input marks the rows that have a request, (rows,) bool.
        adapter_name: The adapter; None: the active one.
        method: Name of the wrapped model's method to run; it must return tensors.

    Raises:
        RequestError: If ``masks`` is neither.
    """

    def __init__(
        self, masks: Any, with_active: bool = False, adapter_name: str | None = None, method: str = "forward"
    ) -> None:
        super().__init__()
        tuner = masks if isinstance(masks, RequestMaskModel) else getattr(masks, "base_model", None)
        if not isinstance(tuner, RequestMaskModel):
            raise RequestError(
                f"RequestModule takes the handle that inject_request_masks returns, or the PeftModel around one; found "
                f"{type(masks).__name__}."
            )
        self.masks = tuner
        self.with_active = with_active
        self.adapter_name = adapter_name if adapter_name is not None else tuner.active_names()[0]
        self.method = method

    def forward(self, *inputs: Any) -> Any:
        """Run the model on its own inputs, then the request vectors, (rows, request_dim), and with ``with_active``
        the rows that have a request, (rows,) bool; returns the model's output.
        """
        count = 2 if self.with_active else 1
        own, given = inputs[:-count], inputs[-count:]
        masks = self._masks(given[0], given[1] if self.with_active else None)
        run = getattr(self.masks.model, self.method)
        context = self.masks.request_context
        if not torch.compiler.is_compiling():
            with context.using(masks):
                return run(*own)
        before = context.enter_compiled_call(masks)  # not every version of torch can trace a context manager
        try:
            return run(*own)
        finally:
            context.leave_compiled_call(before)

    def _masks(self, vectors: Tensor, active: Tensor | None) -> FixedMasks:
        adapter = self.masks.adapter(self.adapter_name)
        strength, scale = adapter.config.strength, None
        if active is not None:
            scale = active.to(torch.float32) * strength
        elif strength != 1:
            scale = torch.full((vectors.shape[0],), float(strength), device=vectors.device)
        return adapter.lazy_masks(lambda: adapter.generator(vectors), vectors.shape[0], scale, active).for_call()
