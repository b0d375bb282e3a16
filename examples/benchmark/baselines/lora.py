"""Text-to-LoRA: a hypernetwork writes a LoRA for each request, on the layers inside and on the scoring layer."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from benchmark.baselines.learning import LearnedRanker, Learner, scaled
from benchmark.baselines.ranker import RankerTask, frozen_copy
from cramer_peft import RequestMaskConfig, inject_request_masks
from cramer_peft.recsys.backbones import SASRec, config_for

_LAYERS = [*SASRec.default_targets, "head", "predictions.decoder"]  # the last two score the items, one in each kind


class RequestLoRA(LearnedRanker):
    """W x + B A x with A and B made from the request, one request for each row of a batch.

    A trunk reads the request vector beside a learned embedding of the layer; layers of one shape share the head
    that writes A and B. B starts at zero.

    Args:
        rank: Rank of each update.
        width: Width of the trunk.
        config: Selects the layers, by ``target_modules`` and related fields; None: the feed-forward and attention
            output layers and the one that scores the items.
    """

    def __init__(self, rank: int = 4, width: int = 64, config: RequestMaskConfig | None = None) -> None:
        super().__init__("request-generated LoRA")
        self._rank = rank
        self._width = width
        self._config = config or RequestMaskConfig(request_dim=1, target_modules=_LAYERS)

    def _make(self, task: RankerTask) -> Learner:
        config = config_for(task.backbone, self._config)
        return _Hypernetwork(task.backbone, task.encoder, config, self._rank, self._width)


class _Hypernetwork(Learner):
    def __init__(self, backbone: SASRec, encoder: Any, config: RequestMaskConfig, rank: int, width: int) -> None:
        super().__init__(backbone)
        layers = _masked_linears(backbone, config)
        self.rank = rank
        self.shapes = list(layers.values())
        self.layers = nn.Embedding(len(layers), width)
        self.trunk = nn.Sequential(nn.Linear(encoder.dim + width, width), nn.GELU(), nn.Linear(width, width), nn.GELU())
        self.heads = nn.ModuleDict({_key(shape): _head(width, rank, shape) for shape in self.shapes})
        self._updates: list[tuple[Tensor, Tensor]] | None = None
        for number, name in enumerate(layers):
            self.backbone.get_submodule(name).register_forward_hook(_Update(self._updates_of, number))

    def forward(self, item_ids: Tensor, vectors: Tensor, positions: Tensor | None = None) -> Tensor:
        self._updates = self._write(scaled(vectors))
        try:
            scores: Tensor = self.backbone(item_ids, positions=positions)
        finally:
            self._updates = None
        return scores

    def _updates_of(self, number: int) -> tuple[Tensor, Tensor] | None:
        return None if self._updates is None else self._updates[number]

    def _write(self, request: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Return A (rows, rank, in) and B (rows, out, rank) for each layer."""
        updates = []
        for number, (outputs, inputs) in enumerate(self.shapes):
            layer: Tensor = self.layers.weight[number].expand(len(request), -1)
            written = self.heads[_key((outputs, inputs))](self.trunk(torch.cat([request, layer], dim=-1)))
            a, b = written.split([self.rank * inputs, outputs * self.rank], dim=-1)
            updates.append((a.unflatten(-1, (self.rank, inputs)), b.unflatten(-1, (outputs, self.rank))))
        return updates


class _Update:
    """A forward hook that adds a layer's update if there is one."""

    def __init__(self, updates: Any, number: int) -> None:
        self._updates = updates
        self._number = number

    def __call__(self, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        found = self._updates(self._number)
        if found is None:
            return output
        a, b = found
        times = len(args[0]) // len(a)  # BERT4Rec computes a row for each position
        a, b = (value if times == 1 else value.repeat_interleave(times, 0) for value in (a, b))
        inputs = args[0] if args[0].dim() == 3 else args[0][:, None]  # the head only sees the last position
        change: Tensor = (inputs @ a.transpose(1, 2)) @ b.transpose(1, 2)
        return output + change.reshape(output.shape)


def _masked_linears(backbone: SASRec, config: RequestMaskConfig) -> dict[str, tuple[int, int]]:
    """Return names and (out, in) of the modules that the configuration would mask."""
    masks = inject_request_masks(frozen_copy(backbone), config)
    layout = masks.peft_config[masks.active_adapters[0]].masked_modules
    assert layout is not None  # filled in by the injection
    return {name: (shape[0], shape[1]) for name, shape in layout.items()}


def _head(width: int, rank: int, shape: tuple[int, int]) -> nn.Linear:
    outputs, inputs = shape
    head = nn.Linear(width, rank * (outputs + inputs))
    with torch.no_grad():
        head.weight[rank * inputs :] = 0  # B
        head.bias[rank * inputs :] = 0
        head.bias[: rank * inputs].uniform_(-1 / math.sqrt(inputs), 1 / math.sqrt(inputs))
    return head


def _key(shape: tuple[int, int]) -> str:
    return f"{shape[0]}x{shape[1]}"
