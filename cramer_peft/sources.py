"""From requests, as people give them, to the gates in force: one adapter's, several adapters', each row its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Union

import torch
from torch import Tensor

from cramer_peft.active import GateInputs, GateSource, SeveralAdapters
from cramer_peft.errors import BaseModelMismatchError, ConfigError, RequestError
from cramer_peft.gates import LayerTensors
from cramer_peft.leftovers import masked_layers
from cramer_peft.requests import RequestBatch, Requests, Strength, batch_requests, batch_strength, without_silent
from cramer_peft.row_names import as_names
from cramer_peft.state import MaskState

if TYPE_CHECKING:
    from cramer_peft.handle.encoders import HandleEncoders

AdapterRequests = Union[Requests, MaskState]
AllRequests = Union[AdapterRequests, Mapping[str, AdapterRequests]]

BASE = "__base__"  # PEFT's name, in adapter_names, for rows of the frozen model


def gates_in_force(
    masks: HandleEncoders,
    requests: AllRequests,
    strength: Strength = None,
    adapter_names: Sequence[str] | None = None,
) -> GateSource | SeveralAdapters | None:
    """The gates of some requests, not made yet; None where there is nothing to mask.

    Args:
        masks: The handle.
        requests: As for :meth:`RequestMaskModel.request`.
        strength: As for :meth:`RequestMaskModel.request`.
        adapter_names: Name of each row's adapter, or ``"__base__"``; None: the active adapters, all together.
    """
    source = (
        _by_row(masks, requests, strength, list(as_names(adapter_names)))
        if adapter_names is not None
        else _together(masks, requests, strength)
    )
    if source is not None:
        source.asked = (requests, strength)  # for a call that says later whose each row is
    return source


def _together(masks: HandleEncoders, requests: AllRequests, strength: Strength) -> GateSource | SeveralAdapters | None:
    made: dict[str, GateSource] = {}
    for name, asked in _per_adapter(masks, requests).items():  # a loop: torch 2.6 traces no walrus in a comprehension
        source = adapter_source(masks, name, asked, strength)
        if source is not None:
            made[name] = source
    if len(made) < 2:
        return list(made.values())[0] if made else None  # noqa: RUF015 (torch 2.6 cannot trace next(iter(…)))
    counts = {name: source.inputs.rows for name, source in made.items() if not source.inputs.shared}
    if len(set(counts.values())) > 1:
        raise RequestError(f"the adapters' requests are for different numbers of rows: {counts}.")
    return SeveralAdapters(list(made.values()))


def default_gates(masks: HandleEncoders) -> GateSource | SeveralAdapters | None:
    """The gates of the active adapters' stored default requests; None where there are none."""
    sources = []
    for name in dict.fromkeys(masks.active_adapters):
        vector = masks.generator_of(name).default_request
        source = None if vector is None else adapter_source(masks, name, vector, None)
        if source is not None:
            source.mark_default()
            sources.append(source)
    if len(sources) > 1:
        return SeveralAdapters(sources)
    return sources[0] if sources else None


def default_gates_by_row(masks: HandleEncoders, names: Sequence[str]) -> SeveralAdapters | None:
    """The gates of each row's adapter's stored default request; None where there are none."""
    _check_names(masks, names)
    rows = [None if name == BASE else masks.generator_of(name).default_request for name in names]
    return _by_row(masks, rows, None, list(names))


def adapter_source(
    masks: HandleEncoders, name: str, requests: AdapterRequests, strength: Strength
) -> GateSource | None:
    """The gates of one adapter for some requests; None where there is nothing to mask."""
    if isinstance(requests, MaskState):
        return _source_of_state(masks, name, requests, strength)
    batch, vectors = request_vectors(masks, name, requests)
    if batch is None:
        return None
    generator, config = masks.generator_of(name), masks.peft_config[name]
    rows = batch.vectors.shape[0]
    scale = batch_strength(strength, config.strength, rows, batch.shared)
    if _is_zero(strength if strength is not None else config.strength):
        return None
    shared = batch.shared and (scale is None or scale.shape[0] == rows)
    return _source(masks, name, lambda: generator(vectors()), rows, shared, scale, batch.active)


def request_vectors(
    masks: HandleEncoders, name: str, requests: Requests
) -> tuple[RequestBatch | None, Callable[[], Tensor]]:
    """Requests in one form, and what gives their vectors on the generator's device when gates are made.

    The vectors of a tuned encoder are made anew each time, since they carry its graph.
    """
    generator = masks.generator_of(name)
    device = generator.head.weight.device
    tuned = masks.tuned_encoder(name)
    if tuned is None:
        batch = batch_requests(requests, generator.request_dim, masks.encoder_of(name))
        batch = None if batch is None else without_silent(batch)
        if batch is None:
            return None, lambda: torch.zeros(0, generator.request_dim, device=device)
        ready = batch.vectors.to(device)
        return batch, lambda: ready
    batch = batch_requests(requests, generator.request_dim, lambda t: torch.zeros(len(t), generator.request_dim))
    if batch is None:
        return None, lambda: torch.zeros(0, generator.request_dim, device=device)
    texts = {row: text for row, text in enumerate(batch.texts) if text is not None}
    given = batch.vectors.to(device)

    def encode() -> Tensor:
        if not texts:
            return given
        rows = torch.tensor(list(texts), device=device)
        return given.index_copy(0, rows, tuned(list(texts.values())).to(given))

    return batch, encode


def _per_adapter(masks: HandleEncoders, requests: AllRequests) -> dict[str, AdapterRequests]:
    active = masks.active_names()
    if isinstance(requests, Mapping):
        unknown = sorted(set(requests) - set(active))
        if unknown:
            raise RequestError(f"requests were given for {unknown}; the active adapters are {active}.")
        return dict(requests)
    if isinstance(requests, MaskState) and len(active) > 1:
        if requests.adapter not in active:
            raise RequestError(
                f"the mask state is of adapter {requests.adapter!r}; the active adapters are {active}. Name the one it "
                "is for: request={name: state}."
            )
        return {requests.adapter: requests}
    return dict.fromkeys(active, requests)


def _by_row(
    masks: HandleEncoders, requests: AllRequests, strength: Strength, names: list[str]
) -> SeveralAdapters | None:
    _check_names(masks, names)
    rows = _row_requests(requests, len(names))
    distinct = [name for name in dict.fromkeys(names) if name != BASE]
    _check_layouts(masks, distinct)
    sources: list[GateSource] = []
    owners = {BASE: -1}
    for name in distinct:
        own = [row if owner == name else None for row, owner in zip(rows, names, strict=True)]
        source = adapter_source(masks, name, own, strength)
        if source is not None:
            owners[name] = len(sources)
            sources.append(source)
    if not sources:
        return None
    device = sources[0].device
    return SeveralAdapters(sources, torch.tensor([owners.get(name, -1) for name in names], device=device))


def _check_names(masks: HandleEncoders, names: Sequence[str]) -> None:
    unknown = sorted(set(names) - set(masks.peft_config) - {BASE}, key=str)
    if unknown:
        raise ConfigError(f"adapter_names holds {unknown}; there are {sorted(masks.peft_config)} and {BASE!r}.")


def _check_layouts(masks: HandleEncoders, names: Sequence[str]) -> None:
    """Refuse adapters that expect a layer's rows elsewhere than the active ones do, by whom the layer goes."""
    if len({(config.batch_dim, config.batch_folding) for config in masks.peft_config.values()}) < 2:
        return
    for layer in masked_layers(masks.model):
        for name in names:
            _, own = layer.request_mask_specs.get(name, (None, layer.layout))
            if own != layer.layout:
                raise ConfigError(
                    f"module {layer.module_name!r}: adapter {name!r} expects its rows by batch_dim={own.batch_dim}, "
                    f"batch_folding={own.folding!r}, the active adapters {masks.active_adapters} by "
                    f"batch_dim={layer.layout.batch_dim}, batch_folding={layer.layout.folding!r}. Name adapters of one "
                    "layout in adapter_names, and make one of them active by set_adapter(name)."
                )


def _row_requests(requests: AllRequests, rows: int) -> list[str | Tensor | None]:
    if isinstance(requests, (MaskState, Mapping)):
        raise RequestError(
            "adapter_names says whose each row is: give texts, vectors or None, one for each row or one for all, "
            f"not a {type(requests).__name__}."
        )
    if requests is None or isinstance(requests, str) or (isinstance(requests, Tensor) and requests.dim() == 1):
        return [requests] * rows
    if not isinstance(requests, Sequence) and not (isinstance(requests, Tensor) and requests.dim() > 1):
        found = f"shape {tuple(requests.shape)}" if isinstance(requests, Tensor) else type(requests).__name__
        raise RequestError(
            "with adapter_names, requests are one for all rows, or a sequence or tensor with one for each row; found "
            f"{found}."
        )
    given = list(requests)
    if len(given) != rows:
        raise RequestError(f"adapter_names names {rows} rows, but {len(given)} requests were given.")
    return given


def _source_of_state(masks: HandleEncoders, name: str, state: MaskState, strength: Strength) -> GateSource | None:
    check_state(masks, name, state)
    rows, shared = len(state), len(state) == 1
    scale = state.strength if strength is None else batch_strength(strength, 1.0, rows, shared)
    if _is_zero(strength):
        return None
    weight = masks.generator_of(name).head.weight
    tensors = {
        entry: {part: value.to(weight.device, weight.dtype) for part, value in parts.items()}
        for entry, parts in state.tensors.items()
    }
    return _source(masks, name, lambda: tensors, rows, shared, scale, state.active)


def _source(
    masks: HandleEncoders,
    name: str,
    make_tensors: Callable[[], dict[str, LayerTensors]],
    rows: int,
    shared: bool,
    scale: Tensor | None,
    active: Tensor | None,
) -> GateSource:
    generator = masks.generator_of(name)
    device = generator.head.weight.device
    scale = None if scale is None else scale.to(device)
    active = None if active is None else active.to(device)
    if scale is not None:
        if not generator.gate.has_strength and not torch.compiler.is_compiling() and _is_partial(scale, active):
            raise RequestError(f"gate={generator.gate.name!r} has no strength: only 0 and 1 can be given.")
        active = scale != 0 if active is None else active & (scale != 0)
        scale = scale * active
        rows = max(rows, scale.shape[0])
    elif active is not None:
        scale = active.to(torch.float32)
    tuned = masks.tuned_encoder(name)
    watched = chain(generator.parameters(), () if tuned is None else tuned.parameters())
    inputs = GateInputs(rows, shared and rows == 1, scale, active)

    def check() -> None:
        if name not in masks.request_mask_generator or masks.request_mask_generator[name] is not generator:
            raise ConfigError(
                f"adapter {name!r} was deleted while a request of it was in force: leave the request's block first."
            )

    return GateSource(make_tensors, generator.gate, inputs, list(watched), masks.model, check)


def _is_partial(scale: Tensor, active: Tensor | None) -> bool:
    """Whether a row that has a request has a strength other than 0 and 1."""
    partial = (scale != 0) & (scale != 1)
    return bool((partial if active is None else partial & active).any())


def _is_zero(strength: Strength) -> bool:
    return isinstance(strength, (int, float)) and strength == 0


def check_state(masks: HandleEncoders, name: str, state: MaskState) -> None:
    """Check that a mask state is one of an adapter.

    Raises:
        RequestError: If it has another form or other layers.
        BaseModelMismatchError: If it was made for another base model.
    """
    generator, config = masks.generator_of(name), masks.peft_config[name]
    if state.gate != config.gate:
        raise RequestError(f"the mask state has gate={state.gate!r}, the adapter {config.gate!r}.")
    expected = {
        f"{entry}.{part}": _any_rank(shape)
        for entry, spec in generator.specs.items()
        for part, shape in generator.gate.parts(spec).items()
    }
    found = {
        f"{entry}.{part}": _any_rank(tuple(value.shape[1:]))
        for entry, parts in state.tensors.items()
        for part, value in parts.items()
    }
    if found != expected:
        key = sorted(set(expected.items()) ^ set(found.items()), key=str)[0][0]
        differing = {key for key in expected.keys() | found.keys() if expected.get(key) != found.get(key)}
        raise RequestError(
            f"the mask state does not fit the adapter: {len(differing)} tensors differ, for example "
            f"{key!r} (the adapter has {expected.get(key)}, the state {found.get(key)})."
        )
    known = state.base_fingerprint, config.base_fingerprint
    if None not in known and known[0] != known[1]:
        raise BaseModelMismatchError(
            f"the mask state was made for another base model: it expects {known[0]}, the masked weights are "
            f"{known[1]}. dataclasses.replace(state, base_fingerprint=None) overrides this."
        )


def _any_rank(shape: tuple[int, ...]) -> tuple[int | str, ...]:
    """The shape without the number of low-rank terms: states that were added up have more of them."""
    return ("terms", *shape[1:]) if len(shape) == 2 else shape
