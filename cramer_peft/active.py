"""The gates of a request in force: made when a layer first needs them, at most once per forward."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cramer_peft.gates import Gate, LayerGate, LayerTensors

LayerGates = dict[str, LayerGate]


@dataclass(frozen=True)
class GateInputs:
    """What the gates of one batch are built from, beside the layers' tensors.

    Attributes:
        rows: Number of requests.
        shared: Whether one request stands for a batch of any size.
        scale: Strength per row, 0 where there is no request; None: 1 everywhere. (rows,)
        active: Rows that have a request; None: all have. (rows,) bool
    """

    rows: int
    shared: bool
    scale: Tensor | None
    active: Tensor | None


class GateSource:
    """Gives each masked layer its gates.

    Without gradients the gates are made once and kept while the generator's parameters stay as they
    are. With gradients they are made anew for each forward, since a second backward through kept ones
    would fail: the root's call asks for a fresh set that it keeps for that call (:meth:`for_forward`);
    where another method is the entry point, a set ends when a layer asks twice or when backward has
    gone through it.
    """

    def __init__(
        self,
        make_tensors: Callable[[], dict[str, LayerTensors]],
        gate: Gate,
        inputs: GateInputs,
        generator: nn.Module,
        model: nn.Module,
    ) -> None:
        self.inputs = inputs
        self._make_tensors = make_tensors
        self._gate = gate
        self._generator = generator
        self._model = model  # its training flag, since people call eval() on the model that they know
        self._kept: LayerGates | None = None
        self._kept_for: tuple[int | bool, ...] = ()
        self._lazy: LayerGates | None = None
        self._asked: set[str] = set()

    def make(self) -> LayerGates:
        """A fresh set of gates for all layers."""
        return self._gate.build(self._make_tensors(), self.inputs.scale, self.inputs.active, self._model.training)

    def for_forward(self) -> PinnedGates:
        """The gates for one call of the root module."""
        if torch.compiler.is_compiling() or torch.is_grad_enabled():
            return PinnedGates(self.make(), self.inputs)
        return PinnedGates(self._keep(), self.inputs)

    def gates_of(self, layer: str) -> LayerGate | None:
        """The gates of one layer, or None where this adapter does not mask it."""
        if not torch.is_grad_enabled():
            return self._keep().get(layer)
        if self._lazy is None or layer in self._asked:
            self._lazy, self._asked = self.make(), set()
            self._end_after_backward(self._lazy)
        self._asked.add(layer)
        return self._lazy.get(layer)

    def _keep(self) -> LayerGates:
        versions = tuple(0 if p.is_inference() else p._version for p in self._generator.parameters())
        state = (self._model.training, *versions)
        if self._kept is None or self._kept_for != state:
            self._kept, self._kept_for = self.make(), state
        return self._kept

    def _end_after_backward(self, gates: LayerGates) -> None:
        if torch.compiler.is_compiling():
            return

        def end(_: Tensor) -> None:
            if self._lazy is gates:
                self._lazy = None

        for gate in gates.values():
            for value in vars(gate).values():
                if isinstance(value, Tensor) and value.requires_grad:
                    value.register_hook(end)


class PinnedGates:
    """Gates already made, for the duration of one call."""

    def __init__(self, gates: LayerGates, inputs: GateInputs) -> None:
        self.inputs = inputs
        self._gates = gates

    def for_forward(self) -> PinnedGates:
        return self

    def gates_of(self, layer: str) -> LayerGate | None:
        """The gates of one layer, or None where this adapter does not mask it."""
        return self._gates.get(layer)
