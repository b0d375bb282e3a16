"""The gates of a request in force: made when a layer first needs them, at most once per forward."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from cramer_peft.gates import Gate, LayerTensors, PartGate, by_owner, compose
from cramer_peft.recompute import in_backward, unseen_by_checkpoints

Gates = dict[str, PartGate]


class GatesInForce(Protocol):
    """What the carrier hands to the layers.

    Attributes:
        for_recompute: Whether it gives a checkpoint's recompute inside backward what its forward had.
        is_default: Whether it is of a stored default request, which nobody has given for this call.
    """

    for_recompute: bool
    is_default: bool

    def gates_of(self, entry: str) -> PartGate | None:
        """The gates of one part of a layer, or None where it is not masked."""

    def for_forward(self) -> Any:
        """The same, made once for one call of the root module."""


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


def _nothing() -> None:
    pass


class GateSource:
    """Gives each masked layer its gates.

    Without gradients the gates are made once and kept while the trained parameters (``watched``) stay as
    they are. With gradients they are made anew for each forward, since a second backward through kept ones
    would fail: the root's call asks for a fresh set that it keeps for that call (:meth:`for_forward`);
    where another method is the entry point, a set ends when a layer asks twice or when backward has
    gone through it.
    """

    def __init__(
        self,
        make_tensors: Callable[[], dict[str, LayerTensors]],
        gate: Gate,
        inputs: GateInputs,
        watched: Sequence[Tensor],
        model: nn.Module,
        check: Callable[[], None] | None = None,
    ) -> None:
        self.inputs = inputs
        self._check = _nothing if check is None else check  # raises where the adapter is gone
        self.asked: tuple[Any, Any] | None = None  # the requests and strength that it was made of
        self.for_recompute = in_backward()  # where the recompute itself has put it in force
        self.is_default = False
        self._make_tensors = make_tensors
        self._gate = gate
        self._watched = watched
        self._model = model  # its training flag, since people call eval() on the model that they know
        self._kept: Gates | None = None
        self._kept_for: tuple[int | bool, ...] = ()
        self._lazy: Gates | None = None
        self._asked: set[str] = set()

    @property
    def device(self) -> torch.device:
        """Where the gates are made."""
        return self._watched[0].device

    def make(self) -> Gates:
        """A fresh set of gates for all layers."""
        inputs = self.inputs
        with unseen_by_checkpoints():
            gates = self._gate.build(self._make_tensors(), inputs.scale, inputs.active, self._model.training)
        if inputs.shared:
            gates = {entry: gate.with_values(shared=True) for entry, gate in gates.items()}
        return gates

    def for_forward(self) -> PinnedGates:
        """The gates for one call of the root module."""
        if torch.compiler.is_compiling():
            return PinnedGates(self.make(), self.for_recompute, self.is_default)
        self._check()
        if torch.is_grad_enabled():
            return PinnedGates(self.make(), self.for_recompute, self.is_default)
        return PinnedGates(self._keep(), self.for_recompute, self.is_default)

    def mark_default(self) -> None:
        """Mark it as of a stored default request: it is there in a recompute too, unless it draws noise."""
        self.is_default = True
        self.for_recompute = not (self._gate.draws_noise and self._model.training)

    def gates_of(self, entry: str) -> PartGate | None:
        """The gates of one part of a layer, or None where this adapter does not mask it."""
        if not torch.compiler.is_compiling():
            self._check()
        if not torch.is_grad_enabled():
            return self._keep().get(entry)
        if self._lazy is None or entry in self._asked:
            self._lazy, self._asked = self.make(), set()
            self._end_after_backward(self._lazy)
        self._asked.add(entry)
        return self._lazy.get(entry)

    def _keep(self) -> Gates:
        versions = tuple(0 if p.is_inference() else p._version for p in self._watched)
        state = (self._model.training, *versions)
        if self._kept is None or self._kept_for != state:
            self._kept, self._kept_for = self.make(), state
        return self._kept

    def _end_after_backward(self, gates: Gates) -> None:
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
    """Gates already made, for the duration of one call.

    Attributes:
        for_recompute: Whether they were brought back for a checkpoint's recompute inside backward.
        is_default: Whether they are of a stored default request.
    """

    def __init__(self, gates: Gates, for_recompute: bool = False, is_default: bool = False) -> None:
        self.gates = gates
        self.for_recompute = for_recompute
        self.is_default = is_default

    def for_forward(self) -> PinnedGates:
        return self

    def gates_of(self, entry: str) -> PartGate | None:
        """The gates of one part of a layer, or None where it is not masked."""
        return self.gates.get(entry)


class SeveralAdapters:
    """The gates of several adapters at once.

    Args:
        sources: One per adapter.
        owner: Which adapter masks each row, (rows,), by its place in ``sources``, -1 for none; None: all
            mask every row together, see :func:`cramer_peft.gates.compose`.
    """

    def __init__(self, sources: Sequence[GateSource], owner: Tensor | None = None) -> None:
        self.asked: tuple[Any, Any] | None = None
        self.for_recompute = all(source.for_recompute for source in sources)
        self.is_default = all(source.is_default for source in sources)
        self._sources = list(sources)
        self._owner = owner

    def make(self) -> Gates:
        """A fresh set of gates for all layers."""
        return self._together([source.make() for source in self._sources])

    def for_forward(self) -> PinnedGates:
        """The gates for one call of the root module."""
        gates = self._together([source.for_forward().gates for source in self._sources])
        return PinnedGates(gates, self.for_recompute, self.is_default)

    def gates_of(self, entry: str) -> PartGate | None:
        """The gates of one part of a layer, or None where no adapter masks it."""
        found = [({entry: gate} if gate is not None else {}) for gate in (s.gates_of(entry) for s in self._sources)]
        return self._together(found).get(entry)

    def _together(self, made: list[Gates]) -> Gates:
        entries = dict.fromkeys(entry for gates in made for entry in gates)
        together: Gates = {}
        for entry in entries:
            masking = {number: gates[entry] for number, gates in enumerate(made) if entry in gates}
            if self._owner is None:
                together[entry] = compose(list(masking.values()))
            else:
                together[entry] = by_owner(masking, self._owner)
        return together
