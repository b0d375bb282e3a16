"""The trained part: from a request vector to what the gates are made of."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from cramer_peft.config import RequestMaskConfig
from cramer_peft.gates import Gate, Spec, make_gate


class RequestMaskGenerator(nn.Module):
    """Maps request vectors to the gate inputs of every masked layer at once.

    Without a width this is the paper's single linear layer, z = W e + b (CRAMER, ICML 2026, section
    "Generator"); with one, a hidden layer that all masked layers share comes first.

    Args:
        request_dim: Width of the request vectors.
        specs: Widths of the masked layers, by name; their order is the order of the outputs.
        gate: The form of the mask, which says how many outputs each layer needs.
        width: Width of the hidden layer, or None for none.
        identity: Whether every mask starts at the identity (where the form can).
        normalize: Whether to scale each request vector to length sqrt(request_dim) first.
    """

    head: nn.Linear
    default_request: Tensor | None

    def __init__(
        self,
        request_dim: int,
        specs: Mapping[str, Spec],
        gate: Gate,
        width: int | None,
        identity: bool = True,
        normalize: bool = True,
    ) -> None:
        super().__init__()
        self.request_dim = request_dim
        self.specs = dict(specs)
        self.gate = gate
        self.normalize = normalize
        self.trunk = nn.Identity() if width is None else nn.Sequential(nn.Linear(request_dim, width), nn.GELU())
        total = sum(gate.layer_size(spec) for spec in self.specs.values())
        self.head = nn.Linear(request_dim if width is None else width, total)
        # The request of calls that give none; a buffer, so that it moves and is saved with the adapter.
        self.register_buffer("default_request", None)
        gate.init_head(self.head, self.specs, identity)

    def forward(self, vectors: Tensor) -> dict[str, dict[str, Tensor]]:
        """Gate inputs per layer and part, each (rows, …), for ``vectors`` of shape (rows, request_dim)."""
        weight = self.head.weight
        # Not in half precision, where the empty vector of a row without a request would become 0 / 0.
        vectors = vectors.to(weight.device, torch.promote_types(weight.dtype, torch.float32))
        if self.normalize:
            vectors = functional.normalize(vectors, dim=-1) * self.request_dim**0.5
        return self.gate.split(self.head(self.trunk(vectors.to(weight.dtype))), self.specs)


def make_generator(config: RequestMaskConfig, specs: Mapping[str, Spec]) -> RequestMaskGenerator:
    """The generator that a configuration describes, on torch's default device."""
    assert config.request_dim is not None  # filled in at injection
    generator = RequestMaskGenerator(
        config.request_dim,
        specs,
        make_gate(config),
        config.generator_width,
        identity=config.init_weights,
        normalize=config.normalize_requests,
    )
    if config.default_request is not None:
        request = config.default_request
        generator.default_request = (
            torch.zeros(config.request_dim) if isinstance(request, str) else torch.tensor(request)
        )
    return generator
