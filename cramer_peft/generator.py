"""The generator, the trained part: it maps a request vector to the numbers that masks are made of."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn import functional

from cramer_peft.config import RequestMaskConfig
from cramer_peft.errors import UnsupportedError
from cramer_peft.masks import LayerTensors, LowRankForm, MaskForm, ScaleForm, SignedForm, Spec, TopKForm


class RequestMaskGenerator(nn.Module):
    """Maps request vectors to the numbers that the masks of all masked layers are made of.

    Without a width this is the paper's single linear layer, z = W e + b (CRAMER, ICML 2026, section
    "Generator"); with one, a hidden layer that all masked layers share comes first. The order of ``specs`` is that of
    the outputs. ``identity`` starts every mask at the identity, if the form can.
    """

    head: nn.Linear
    default_request: Tensor | None

    def __init__(
        self,
        request_dim: int,
        specs: Mapping[str, Spec],
        form: MaskForm,
        width: int | None,
        identity: bool = True,
        normalize: bool = True,
    ) -> None:
        super().__init__()
        self.request_dim = request_dim
        self.specs = dict(specs)
        self.form = form
        self.normalize = normalize  # to length sqrt(request_dim)
        # Entry, part and shape of each piece of the output, in order.
        self._pieces = [
            (entry, part, shape) for entry, spec in specs.items() for part, shape in form.parts(spec).items()
        ]
        self._sizes = [math.prod(shape) for _, _, shape in self._pieces]
        self.trunk = nn.Identity() if width is None else nn.Sequential(nn.Linear(request_dim, width), nn.GELU())
        self.head = nn.Linear(request_dim if width is None else width, sum(self._sizes))
        # The request of calls that give none; a buffer, so that it moves and is saved with the adapter.
        self.register_buffer("default_request", None)
        form.init_head(self.head, self.specs, identity)

    def forward(self, vectors: Tensor) -> dict[str, LayerTensors]:
        """Return the tensors of each entry by part, each (rows, …), for ``vectors`` of shape (rows, request_dim)."""
        weight = self.head.weight
        if isinstance(weight, DTensor):  # inside a call of the handle, fully_shard has gathered it
            raise UnsupportedError(
                "the generator is sharded (DTensor): give requests to the handle that was given to fully_shard, as "
                "masks(x, request=…). Blocks, merging and mask states need a handle that is not sharded."
            )
        # In float32 at least: in half precision the zeros of a row without a request would be normalised to 0 / 0.
        vectors = vectors.to(weight.device, torch.promote_types(weight.dtype, torch.float32))
        if self.normalize:
            vectors = functional.normalize(vectors, dim=-1) * self.request_dim**0.5
        return self.split(self.head(self.trunk(vectors.to(weight.dtype))))

    def split(self, flat: Tensor) -> dict[str, LayerTensors]:
        """Cut an output of shape (rows, total) into the tensors of each entry, by part."""
        tensors: dict[str, LayerTensors] = {}
        for (entry, part, shape), piece in zip(self._pieces, flat.split(self._sizes, dim=-1), strict=True):
            # Contiguous, because kernels are chosen by strides, and a row's bits must not depend on its neighbours.
            tensors.setdefault(entry, {})[part] = piece.reshape(-1, *shape).contiguous()
        return tensors


def make_form(config: RequestMaskConfig) -> MaskForm:
    """Return the form of mask that a configuration describes."""
    if config.gate == LowRankForm.name:
        assert config.rank is not None
        return LowRankForm(config.rank)
    gate_bias = bool(config.gate_bias)
    if config.gate == TopKForm.name:
        assert config.drop_ratio is not None
        assert config.temperature_start is not None
        return TopKForm(config.drop_ratio, config.temperature_start, gate_bias)
    return ScaleForm(gate_bias) if config.gate == ScaleForm.name else SignedForm(gate_bias)


def make_generator(config: RequestMaskConfig, specs: Mapping[str, Spec]) -> RequestMaskGenerator:
    """Return the generator that a configuration describes, on torch's default device."""
    assert config.request_dim is not None  # filled in at injection
    generator = RequestMaskGenerator(
        config.request_dim,
        specs,
        make_form(config),
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
