"""One module of tensors in and tensors out, for ``torch.export`` and ONNX: the request is an input."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from cramer_peft.active import GateInputs, GateSource
from cramer_peft.errors import RequestError
from cramer_peft.model import RequestMaskModel


class RequestModule(nn.Module):
    """The adapted model with the request vectors as its last input, and which rows have one.

    ``forward(*inputs, request)``, or ``forward(*inputs, request, active)`` with ``with_active=True``. A vector of
    zeros is a request, too (the generator's answer to it); to leave rows to the frozen model, export with ``active``.

    Args:
        masks: The handle, or the ``PeftModel`` around it.
        with_active: Whether the last input says which rows have a request, (rows,) bool.
        adapter_name: Whose masks; None: the active adapter's.
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
        """Run the model under requests.

        Args:
            inputs: The model's own inputs, then the request vectors, (rows, request_dim), and with ``with_active``
                the rows that have a request, (rows,) bool.

        Returns:
            What the model returns.
        """
        count = 2 if self.with_active else 1
        own, given = inputs[:-count], inputs[-count:]
        source = self._source(given[0], given[1] if self.with_active else None)
        run = getattr(self.masks.model, self.method)
        carrier = self.masks.carrier
        gates = source.for_forward()
        if not torch.compiler.is_compiling():
            with carrier.carrying(gates):
                return run(*own)
        before = carrier.enter_compiled_call(gates)  # not every version of torch can trace a context manager
        try:
            return run(*own)
        finally:
            carrier.leave_compiled_call(before)

    def _source(self, vectors: Tensor, active: Tensor | None) -> GateSource:
        generator = self.masks.generator_of(self.adapter_name)
        strength = self.masks.peft_config[self.adapter_name].strength
        scale = None
        if active is not None:
            scale = active.to(torch.float32) * strength
        elif strength != 1:
            scale = torch.full((vectors.shape[0],), float(strength), device=vectors.device)
        inputs = GateInputs(vectors.shape[0], False, scale, active)
        return GateSource(
            lambda: generator(vectors), generator.gate, inputs, list(generator.parameters()), self.masks.model
        )
