"""Requests on the handle: put in force, kept as mask states, stored as a default, brought back for checkpoints."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace

import torch
from torch import Tensor
from typing_extensions import Self

from cramer_peft.active import GateSource, PinnedGates, SeveralAdapters
from cramer_peft.carrier import NO_GATES_AGAIN
from cramer_peft.errors import MergeError
from cramer_peft.gates import PartGate
from cramer_peft.handle.encoders import HandleEncoders
from cramer_peft.requests import Requests, Strength, batch_strength
from cramer_peft.row_names import names_in_force
from cramer_peft.sources import AllRequests, default_gates, default_gates_by_row, gates_in_force, request_vectors
from cramer_peft.state import MaskState


class HandleRequests(HandleEncoders):
    """Requests, and the gates that they give."""

    @contextmanager
    def request(
        self, requests: AllRequests, strength: Strength = None, adapter_names: Sequence[str] | None = None
    ) -> Iterator[Self]:
        """Put requests in force for everything that runs inside the block, by whatever method.

        Args:
            requests: One text, vector or mask state for the whole batch; or, one per row, a sequence of
                texts, vectors and None, a (rows, request_dim) tensor, or a :class:`MaskState` of several
                rows. None and blank texts leave a row to the frozen model. Where several adapters are
                active, all of them get the requests; a dictionary gives each its own, by adapter name.
            strength: Scales the masks' deviation from the identity: one number, or one per row. None: the
                configuration's, or the mask state's own.
            adapter_names: Name of each row's adapter, ``"__base__"`` for the frozen model; None: the active
                adapters.

        Raises:
            RequestError: If a request or strength is unusable; or, in a masked layer, if there are not as
                many requests as rows.
            ConfigError: If ``adapter_names`` names an adapter that is not there.
        """
        with self.carrier.carrying(self.gate_source(requests, strength, adapter_names)):
            yield self

    def mask_state(self, requests: Requests, strength: Strength = None, adapter_name: str | None = None) -> MaskState:
        """What the gates of ``requests`` are made from, to keep, save, add up or look at.

        With gradients on, the tensors carry the graph back to the generator.

        Args:
            requests: As for :meth:`request`; one row each.
            strength: As for :meth:`request`.
            adapter_name: Whose; None: the active one's.
        """
        name = self._named(adapter_name)
        generator, config = self.generator_of(name), self.peft_config[name]
        batch, make_vectors = request_vectors(self, name, requests)
        rows = len(batch.texts) if batch else _rows_of(requests)
        device = generator.head.weight.device
        vectors = make_vectors() if batch else torch.zeros(rows, generator.request_dim, device=device)
        given = batch_strength(strength, config.strength, rows, shared=False)
        active = torch.ones(rows, dtype=torch.bool) if batch else torch.zeros(rows, dtype=torch.bool)
        return MaskState(
            tensors=generator(vectors),
            active=(active if batch is None or batch.active is None else batch.active).to(device),
            strength=(torch.ones(rows) if given is None else given).to(device),
            gate=config.gate,
            texts=batch.texts if batch else (None,) * rows,
            adapter=name,
            encoder=config.encoder,
            base_fingerprint=config.base_fingerprint,
        )

    def gates(self, requests: AllRequests, strength: Strength = None) -> dict[str, PartGate]:
        """The gates that ``requests`` give each masked module or part, by name; empty without a request."""
        source = self.gate_source(requests, strength)
        return source.make() if source is not None else {}

    def gate_source(
        self, requests: AllRequests, strength: Strength = None, adapter_names: Sequence[str] | None = None
    ) -> GateSource | SeveralAdapters | None:
        """The gates of some requests, not made yet; None where there is nothing to mask."""
        self._check_alive()
        if self._merged is not None and not (requests is None and adapter_names is None):
            raise MergeError("a request is merged into the weights: call unmerge() before giving another.")
        return gates_in_force(self, requests, strength, adapter_names)

    def set_default_request(self, request: str | Tensor | None, adapter_name: str | None = None) -> None:
        """Store the request of every call that gives none; it is saved with the adapter.

        Args:
            request: A text, a (request_dim,) vector, or None to have none again.
            adapter_name: Whose; None: the active one's.

        Raises:
            ConfigError: If the text is blank or the vector is not of request_dim finite numbers.
            EncoderError: If the encoder fails on the text. The request that was stored stays.
        """
        name = self._named(adapter_name)
        stored = request.detach().float().tolist() if isinstance(request, Tensor) else request
        config = self.peft_config[name]
        replace(config, default_request=stored)  # raises where it is impossible
        before, config.default_request = config.default_request, stored
        try:
            self._fill_default_request(name)
        except BaseException:
            config.default_request = before
            raise

    def _layers_activated(self, names: list[str]) -> None:
        """PEFT sets active adapters on the layers too, one by one; the handle goes by what they say."""
        self.active_adapter = names
        self._sync_default()

    def _fill_default_request(self, name: str) -> None:
        config, generator = self.peft_config[name], self.generator_of(name)
        request, device = config.default_request, generator.head.weight.device
        if request is None:
            generator.default_request = None
        elif device.type != "meta":
            vector = self.encoder(name).encode([request])[0] if isinstance(request, str) else torch.tensor(request)
            generator.default_request = vector.to(device, torch.float32)
        self._sync_default()

    def _sync_default(self) -> None:
        stored = any(self.generator_of(name).default_request is not None for name in self.active_adapters)
        self.carrier.default = self._default_source if stored else None

    def _default_source(self) -> GateSource | SeveralAdapters | None:
        if self._merged is not None:
            return None
        names = names_in_force(self.carrier)
        if names is not None:  # for what generate calls outside the root, such as an encoder
            return default_gates_by_row(self, names.names)
        return default_gates(self)

    def checkpoint_contexts(self) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        """The ``context_fn`` of non-reentrant checkpoints: brings the request back for the recompute.

        ``model.gradient_checkpointing_enable({"use_reentrant": False, "context_fn": masks.checkpoint_contexts})``,
        or ``torch.utils.checkpoint.checkpoint(…, use_reentrant=False, context_fn=masks.checkpoint_contexts)``.
        """
        current = self.carrier.current() if self.adapters_enabled else None
        if current is None:
            return nullcontext(), self.carrier.carrying(NO_GATES_AGAIN, note=False)
        pinned = current.for_forward()
        again = PinnedGates(pinned.gates, for_recompute=True)
        return self.carrier.carrying(pinned, note=False), self.carrier.carrying(again, note=False)


def _rows_of(requests: Requests) -> int:
    return 1 if requests is None or isinstance(requests, str) else len(requests)
