"""One adapter: its configuration, encoder and generator. Requests go in, masks come out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import torch
from peft.utils.other import ModulesToSaveWrapper
from torch import Tensor, nn

from cramer_peft.config import RequestMaskConfig
from cramer_peft.context import BASE, LazyMasks, as_names, hidden_from_checkpoints
from cramer_peft.encoders import CachedEncoder, RequestEncoder, TunedEncoder, encoder_of_width, make_encoder
from cramer_peft.errors import ConfigError, EncoderError, RequestError
from cramer_peft.generator import RequestMaskGenerator
from cramer_peft.injection.plan import fingerprint_of_layers
from cramer_peft.injection.record import check_row_layouts
from cramer_peft.injection.row_features import describe_rows
from cramer_peft.mask_state import MaskState
from cramer_peft.masks import LayerTensors, Mask, compose, compose_rowwise
from cramer_peft.requests import (
    AdapterRequests,
    AllRequests,
    RequestBatch,
    Requests,
    Strength,
    batch_requests,
    batch_strength,
    can_be_looked_at,
    requests_by_adapter,
    requests_by_row,
    without_silent,
)
from cramer_peft.storage.adapter_files import StoredAdapter, adapter_tensors, save_adapter
from cramer_peft.storage.model_card import model_card, write_model_card


class AdapterHolder(Protocol):
    """The handle, as an adapter sees it; its encoders by adapter, tuned ones and frozen ones made or given so far."""

    model: nn.Module
    peft_config: dict[str, RequestMaskConfig]
    request_mask_generator: nn.ModuleDict
    request_mask_encoder: nn.ModuleDict
    request_encoders: dict[str, CachedEncoder]
    merged: bool

    def named_modules(self) -> Iterator[tuple[str, nn.Module]]:
        """Yield all modules by name."""


class Adapter:
    """One adapter of a handle, as ``masks.adapter(name)`` returns it: a view without state of its own.

    The modules stay where PEFT finds them, on the handle.

    Attributes:
        config: The configuration.
        generator: The trained part.
        tuned: The tuned copy of the encoder's parameters, or None if the encoder is frozen.

    Raises:
        ConfigError: If there is no adapter of that name.
    """

    def __init__(self, holder: AdapterHolder, name: str) -> None:
        if name not in holder.peft_config:
            raise ConfigError(f"there is no adapter {name!r}; there are {sorted(holder.peft_config)}.")
        self.name = name
        self.config = holder.peft_config[name]
        if not isinstance(self.config, RequestMaskConfig):
            raise ConfigError(
                f"adapter {name!r} is a {type(self.config).__name__} now: another PEFT method was put on this model "
                "under the same name, which replaced the configuration of the request masks. Load the masks again, and "
                "give the other adapter a name of its own (adapter_name=…)."
            )
        self.generator: RequestMaskGenerator = holder.request_mask_generator[name]  # type: ignore[assignment]
        tuned = holder.request_mask_encoder
        self.tuned: TunedEncoder | None = tuned[name] if name in tuned else None  # type: ignore[assignment]  # noqa: SIM401
        self._holder = holder

    # ---------------------------------------------------------------- encoder

    @property
    def encoder(self) -> CachedEncoder:
        """The encoder behind its cache, made when it is first needed.

        Raises:
            EncoderError: If the adapter has none.
        """
        encoders = self._holder.request_encoders
        if self.name not in encoders:
            config = self.config
            if config.encoder is None:
                raise EncoderError(
                    f"adapter {self.name!r} has no request encoder (request_dim={config.request_dim}): give requests "
                    "as vectors, name an encoder in its configuration, or call set_encoder(encoder)."
                )
            encoder = CachedEncoder(make_encoder(config.encoder, config.encoder_options))
            encoders[self.name] = encoder_of_width(encoder, config.request_dim)
        return encoders[self.name]

    def encode(self, texts: Sequence[str]) -> Tensor:
        """Return the vectors of ``texts``, (texts, request_dim) float32, on the CPU."""
        return self.encoder.encode(texts)

    def set_encoder(self, encoder: RequestEncoder) -> None:
        """Use ``encoder`` for texts.

        Raises:
            EncoderError: If its vectors are not as wide as the adapter expects, or the encoder is tuned.
        """
        if self.tuned is not None:
            raise EncoderError(f"adapter {self.name!r} has tuned its encoder: another one cannot take its place.")
        self._holder.request_encoders[self.name] = encoder_of_width(CachedEncoder(encoder), self.config.request_dim)
        self.config.encoder = encoder.name

    # ---------------------------------------------------------------- masks

    def masks(self, requests: AdapterRequests, strength: Strength = None) -> LazyMasks | None:
        """Return the masks of some requests, not made yet; None if no row has a request.

        Raises:
            RequestError: If a request or strength is unusable.
        """
        if isinstance(requests, MaskState):
            return self._masks_of_state(requests, strength)
        batch, make_vectors = self._batch(requests)
        if batch is None:
            return None
        generator = self.generator
        rows = batch.vectors.shape[0]
        scale = batch_strength(strength, self.config.strength, rows, batch.shared)
        if _is_zero(strength if strength is not None else self.config.strength):
            return None
        shared = batch.shared and (scale is None or scale.shape[0] == rows)
        return self._scaled_masks(lambda: generator(make_vectors()), rows, shared, scale, batch.active)

    def default_masks(self) -> LazyMasks | None:
        """Return the masks of the stored default request; None if there is none."""
        vector = self.generator.default_request
        masks = None if vector is None else self.masks(vector)
        if masks is not None:
            masks.mark_default()
        return masks

    def mask_state(self, requests: Requests, strength: Strength = None) -> MaskState:
        """Return the generator's outputs for ``requests``, one row each; with gradients on, with their graph."""
        batch, make_vectors = self._batch(requests)
        config, device = self.config, self.generator.head.weight.device
        if batch is None:
            rows = 1 if requests is None or isinstance(requests, str) else len(requests)
            texts: tuple[str | None, ...] = (None,) * rows
            vectors = torch.zeros(rows, self.generator.request_dim, device=device)
            active = torch.zeros(rows, dtype=torch.bool)
        else:
            rows, texts = len(batch.texts), batch.texts
            vectors = make_vectors()
            active = torch.ones(rows, dtype=torch.bool) if batch.active is None else batch.active
        given = batch_strength(strength, config.strength, rows, shared=False)
        return MaskState(
            tensors=self.generator(vectors),
            active=active.to(device),
            strength=(torch.ones(rows) if given is None else given).to(device),
            gate=config.gate,
            texts=texts,
            adapter=self.name,
            encoder=config.encoder,
            base_fingerprint=config.base_fingerprint,
        )

    def _batch(self, requests: Requests) -> tuple[RequestBatch | None, Callable[[], Tensor]]:
        """Return requests as one batch, and a function that gives their vectors on the generator's device.

        The vectors of a tuned encoder are made anew at each call, because they carry its graph.
        """
        request_dim, device = self.generator.request_dim, self.generator.head.weight.device
        tuned = self.tuned
        if tuned is None:
            batch = batch_requests(requests, request_dim, self.encode)
            batch = None if batch is None else without_silent(batch)
            ready = torch.zeros(0, request_dim) if batch is None else batch.vectors.to(device)
            return batch, lambda: ready
        batch = batch_requests(requests, request_dim, lambda texts: torch.zeros(len(texts), request_dim))
        given = torch.zeros(0, request_dim) if batch is None else batch.vectors.to(device)
        texts = {} if batch is None else {row: text for row, text in enumerate(batch.texts) if text is not None}

        def encode() -> Tensor:
            if not texts:
                return given
            rows = torch.tensor(list(texts), device=device)
            return given.index_copy(0, rows, tuned(list(texts.values())).to(given))

        return batch, encode

    def _masks_of_state(self, state: MaskState, strength: Strength) -> LazyMasks | None:
        state.check_fits(self.generator, self.config.base_fingerprint)
        rows, shared = len(state), len(state) == 1
        scale = state.strength if strength is None else batch_strength(strength, 1.0, rows, shared)
        if _is_zero(strength):
            return None
        weight = self.generator.head.weight
        tensors = {
            entry: {part: value.to(weight.device, weight.dtype) for part, value in parts.items()}
            for entry, parts in state.tensors.items()
        }
        return self._scaled_masks(lambda: tensors, rows, shared, scale, state.active)

    def _scaled_masks(
        self,
        make_tensors: Callable[[], dict[str, LayerTensors]],
        rows: int,
        shared: bool,
        scale: Tensor | None,
        active: Tensor | None,
    ) -> LazyMasks:
        form, device = self.generator.form, self.generator.head.weight.device
        active = None if active is None else active.to(device)
        if scale is not None:
            scale = scale.to(device)
            if not form.has_strength and can_be_looked_at(scale) and _is_partial(scale, active):
                raise RequestError(f"gate={form.name!r} has no strength: only 0 and 1 can be given.")
            active = scale != 0 if active is None else active & (scale != 0)
            scale = scale * active
            rows = max(rows, scale.shape[0])
        elif active is not None:
            scale = active.to(torch.float32)
        return self.lazy_masks(make_tensors, None if shared and rows == 1 else rows, scale, active)

    def lazy_masks(
        self,
        make_tensors: Callable[[], dict[str, LayerTensors]],
        rows: int | None,
        strength: Tensor | None,
        active: Tensor | None,
    ) -> LazyMasks:
        """Return masks of the generator's outputs that ``make_tensors`` gives, not made yet.

        ``rows`` is None for one request that serves a batch of any size; ``strength`` (rows,) is 0 for rows without a
        request; ``active`` (rows,) bool marks those that have one; None: all, at strength 1.
        """
        generator, model = self.generator, self._holder.model

        def make() -> dict[str, Mask]:
            with hidden_from_checkpoints():
                masks = generator.build(make_tensors(), strength, active, model.training)
            return masks if rows is not None else {e: mask.with_values(shared=True) for e, mask in masks.items()}

        device = generator.head.weight.device
        return LazyMasks(make, model, self._check_present, device, generator.form.draws_noise, rows, [self.name])

    def _check_present(self) -> None:
        generators = self._holder.request_mask_generator
        if self.name not in generators or generators[self.name] is not self.generator:
            raise ConfigError(
                f"adapter {self.name!r} was deleted inside a block of one of its requests: leave the block first."
            )

    def set_row_features(self, name: str, features: Tensor, check: bool = True) -> None:
        """Describe the rows of a target; see :meth:`RequestMaskModel.set_row_features`."""
        describe_rows(self.name, self.config, self.generator, name, features, check)

    # ---------------------------------------------------------------- stored default request

    def set_default_request(self, request: str | Tensor | None) -> None:
        """Store the request of calls that give none; on an error the earlier one stays."""
        stored = request.detach().float().tolist() if isinstance(request, Tensor) else request
        replace(self.config, default_request=stored)  # raises if the request is impossible
        before, self.config.default_request = self.config.default_request, stored
        try:
            self.fill_default_request()
        except BaseException:
            self.config.default_request = before
            raise

    def fill_default_request(self) -> None:
        """Encode the configuration's default request into the generator."""
        request, device = self.config.default_request, self.generator.head.weight.device
        if request is None:
            self.generator.default_request = None
        elif device.type != "meta":
            vector = self.encode([request])[0] if isinstance(request, str) else torch.tensor(request)
            self.generator.default_request = vector.to(device, torch.float32)

    # ---------------------------------------------------------------- modules

    def modules(self) -> list[nn.Module]:
        """Return the modules that belong to the adapter alone: its generator and its tuned encoder."""
        return [self.generator] if self.tuned is None else [self.generator, self.tuned]

    def requires_grad_(self, flag: bool) -> None:
        """Turn the gradients of the adapter's own modules on or off."""
        for module in self.modules():
            module.requires_grad_(flag)

    def remove(self) -> None:
        """Take the adapter's modules, encoder and configuration off the handle."""
        holder = self._holder
        del holder.request_mask_generator[self.name]
        if self.tuned is not None:
            del holder.request_mask_encoder[self.name]
        holder.request_encoders.pop(self.name, None)
        holder.peft_config.pop(self.name, None)

    def _saved_modules(self) -> list[tuple[str, nn.Module]]:
        """Return the adapter's copies of the modules in ``modules_to_save``, by name of their wrapper."""
        return [
            (name, module.modules_to_save[self.name])
            for name, module in self._holder.named_modules()
            if isinstance(module, ModulesToSaveWrapper)
            and self.name in module.modules_to_save
            and any(name.endswith(wanted) for wanted in self.config.modules_to_save or [])  # not another PEFT method's
        ]

    # ---------------------------------------------------------------- files

    def save(self, folder: Path) -> None:
        """Write the adapter's two files and a model card, each atomically."""
        if self.config.base_fingerprint is not None and not self._holder.merged:
            # The weights may have been trained or cast since injection, and the adapter fits those of now.
            current = fingerprint_of_layers(self._holder.model, self.name)
            self.config.base_fingerprint = current or self.config.base_fingerprint
        tensors = adapter_tensors(self.generator, self.tuned, self._saved_modules())
        save_adapter(folder, self.name, self.config, tensors)
        write_model_card(folder, self.model_card())

    def model_card(self) -> str:
        """Return the model card, as Markdown."""
        return model_card(self.config, self.generator, self._holder.model)

    def fill(self, stored: StoredAdapter) -> None:
        """Copy stored tensors into the adapter, which was injected from the same configuration."""
        self.generator.load_state_dict(stored.generator_tensors())
        if self.tuned is not None:
            self.tuned.load_state_dict(stored.encoder_tensors())
        for name, module in self._saved_modules():
            module.load_state_dict(stored.module_tensors(name))

    def swap_in(self, stored: StoredAdapter) -> None:
        """Fill the adapter with another one's values; on an error its own values are put back.

        The tensors stay the same objects, because compiled code holds them.
        """
        config, generator = self.config, self.generator
        before, request = (config.strength, config.default_request), generator.default_request
        owners = [*self.modules(), *(module for _, module in self._saved_modules())]
        kept = [(v, v.detach().clone()) for owner in owners for v in (*owner.parameters(), *owner.buffers())]
        try:
            if request is None or stored.config.default_request is None:
                empty = torch.zeros(generator.request_dim, device=generator.head.weight.device)
                generator.default_request = None if stored.config.default_request is None else empty
            self.fill(stored)
            config.strength, config.default_request = stored.config.strength, stored.config.default_request
        except BaseException:
            config.strength, config.default_request = before
            generator.default_request = request
            with torch.no_grad():
                for value, old in kept:
                    value.copy_(old)
            raise


# ---------------------------------------------------------------- several adapters


def masks_together(adapters: Sequence[Adapter], requests: AllRequests, strength: Strength) -> LazyMasks | None:
    """Return the masks of the active adapters, all on every row; None if no row has a request."""
    made: dict[str, LazyMasks] = {}
    active = {adapter.name: adapter for adapter in adapters}
    for name, own in requests_by_adapter(requests, list(active)).items():
        masks = active[name].masks(own, strength)
        if masks is not None:
            made[name] = masks
    if len(made) > 1:
        counts = {name: masks.rows for name, masks in made.items() if masks.rows is not None}
        if len(set(counts.values())) > 1:
            raise RequestError(f"the adapters' requests are for different numbers of rows: {counts}.")
    return joined(list(made.values()))


def masks_by_row(
    holder: AdapterHolder, names: Sequence[str], requests: AllRequests, strength: Strength
) -> LazyMasks | None:
    """Return the masks of rows of the adapters ``names``, or of none ("__base__"); None if no row has a request."""
    names = as_names(names)
    check_row_names(holder, names)
    rows = requests_by_row(requests, len(names))
    numbers = {BASE: -1}
    made: list[LazyMasks] = []
    for name in dict.fromkeys(names):
        if name == BASE:
            continue
        own = [row if owner == name else None for row, owner in zip(rows, names, strict=True)]
        masks = Adapter(holder, name).masks(own, strength)
        if masks is not None:
            numbers[name] = len(made)
            made.append(masks)
    if not made:
        return None
    owners = torch.tensor([numbers.get(name, -1) for name in names], device=made[0].device)
    return joined(made, owners)


def joined(masks: list[LazyMasks], owners: Tensor | None = None) -> LazyMasks | None:
    """Return the masks of several adapters as one; None if there are none.

    ``owners`` (rows,) is the index in ``masks`` of each row's adapter, -1 for none; None: all of them mask every row.
    """
    if not masks or (len(masks) == 1 and owners is None):
        return masks[0] if masks else None

    def make() -> dict[str, Mask]:
        made = [each.make() for each in masks]
        found: dict[str, dict[int, Mask]] = {}
        for number, own in enumerate(made):
            for entry, mask in own.items():
                found.setdefault(entry, {})[number] = mask
        if owners is None:
            return {entry: compose(list(own.values())) for entry, own in found.items()}
        return {entry: compose_rowwise(own, owners) for entry, own in found.items()}

    return LazyMasks.of_several(make, masks)


def check_row_names(holder: AdapterHolder, names: Sequence[str]) -> None:
    """Check that the adapters in ``adapter_names`` exist, and expect the rows where the active adapters do."""
    unknown = sorted(set(names) - set(holder.peft_config) - {BASE}, key=str)
    if unknown:
        raise ConfigError(f"adapter_names holds {unknown}; there are {sorted(holder.peft_config)} and {BASE!r}.")
    if len({(config.batch_dim, config.batch_folding) for config in holder.peft_config.values()}) > 1:
        check_row_layouts(holder.model, names)


def _is_partial(strength: Tensor, active: Tensor | None) -> bool:
    """Return True if a row that has a request has a strength other than 0 and 1."""
    partial = (strength != 0) & (strength != 1)
    return bool((partial if active is None else partial & active).any())


def _is_zero(strength: Strength) -> bool:
    return isinstance(strength, (int, float)) and strength == 0
