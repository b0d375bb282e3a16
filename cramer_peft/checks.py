"""Checks of a model and its masks: before injection (:func:`validate`) and after it (:func:`check_effect`)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cramer_peft.config import RequestMaskConfig
from cramer_peft.context import FixedMasks, RequestContext
from cramer_peft.encoders import CachedEncoder, RequestEncoder, TunedEncoder, make_encoder
from cramer_peft.errors import (
    BaseModelMismatchError,
    ConfigError,
    CramerError,
    EffectError,
    Finding,
    FindingKind,
    RequestError,
    TargetModuleError,
)
from cramer_peft.injection.plan import InjectionPlan, Target, plan_injection
from cramer_peft.injection.record import masked_layers, shared_storages, storage_address
from cramer_peft.layers.masked_layer import RequestMaskLayer
from cramer_peft.layers.output import MaskedOutput
from cramer_peft.masks import (
    FeatureMask,
    FeatureSpec,
    LayerSpec,
    Mask,
    Masks,
    RowColumnMask,
    RowSpec,
    Spec,
    compose_rowwise,
)
from cramer_peft.storage.adapter_files import check_encoder_weights


def validate(model: nn.Module, config: RequestMaskConfig, encoder: RequestEncoder | None = None) -> list[Finding]:
    """List the problems that :func:`cramer_peft.inject_request_masks` would meet, without touching anything.

    Args:
        model: The model to mask.
        config: The modules to mask and how.
        encoder: An encoder object, in place of the one that ``config`` names.

    Returns:
        The findings, the fatal ones first. Injection raises if and only if one is fatal, with one exception: if
        ``request_dim`` is given, injection does not need the encoder, and a missing one is first noticed at a text.

    Raises:
        ConfigError: If ``config`` is no :class:`RequestMaskConfig`.
    """
    if not isinstance(config, RequestMaskConfig):
        raise ConfigError(f"config must be a RequestMaskConfig, found {type(config).__name__}.")
    config = config.as_given()  # as injection does with a configuration that another model uses already
    if any(True for _ in masked_layers(model)):
        return [
            Finding(
                FindingKind.ALREADY_MASKED,
                f"{type(model).__name__} has request masks already: add_adapter on its handle, or unload() first.",
            )
        ]
    findings = _encoder_findings(config, encoder)
    try:
        plan = plan_injection(model, config)
    except TargetModuleError as error:
        found = error.findings or (Finding(FindingKind.UNSUPPORTED_MODULE, str(error)),)
        return [*found, *findings]
    except BaseModelMismatchError as error:
        return [Finding(FindingKind.OTHER_BASE_MODEL, str(error)), *findings]
    return findings + _notes(model, plan)


def _encoder_findings(config: RequestMaskConfig, encoder: RequestEncoder | None) -> list[Finding]:
    try:
        if encoder is None and config.encoder is not None:
            encoder = make_encoder(config.encoder, config.encoder_options)
        encoder = None if encoder is None else CachedEncoder(encoder).encoder  # raises if it is no encoder
        if encoder is not None and config.request_dim not in (None, encoder.dim):
            message = (
                f"request encoder {encoder.name!r} makes vectors of width {encoder.dim}, not {config.request_dim}."
            )
            return [Finding(FindingKind.ENCODER, message)]
        if encoder is not None:
            _try_encoder(config, encoder)
    except CramerError as error:
        return [Finding(FindingKind.ENCODER, str(error))]
    return []


def _try_encoder(config: RequestMaskConfig, encoder: RequestEncoder) -> None:
    """Run an encoder as injection does."""
    dataclasses.replace(config, request_dim=encoder.dim)  # raises if the stored default request is not as wide
    if config.encoder_tuning != "none":
        TunedEncoder(encoder, config.encoder_tuning)
        check_encoder_weights(config, encoder)
    if isinstance(config.default_request, str):
        CachedEncoder(encoder).encode([config.default_request])


def _notes(model: nn.Module, plan: InjectionPlan) -> list[Finding]:
    modules = dict(model.named_modules())
    shared = shared_storages(model)
    notes = list(plan.unmatched)
    for target in plan.targets:
        if target.output is None:
            notes += _tied(target, shared)
            notes += _rows(target, plan.config)
        kept = [part for part in target.parts if part in target.wrapper.unfoldable_parts()]
        if kept:
            masks = "its masks" if target.output else f"the masks of {kept}"
            message = f"{masks} have no place in a weight: after merging, calls go on applying them."
            name = target.output.spelled if target.output else target.name
            notes.append(Finding(FindingKind.NOT_MERGEABLE, message, name))
        if any(isinstance(modules.get(name), nn.TransformerEncoderLayer) for name in _ancestors(target.name)):
            message = "calls with a request take torch's unfused path here; the two differ by float rounding."
            notes.append(Finding(FindingKind.FUSED_PATH, message, target.name))
    if getattr(model, "is_gradient_checkpointing", False):
        message = "training needs use_reentrant=False and context_fn=masks.checkpoint_contexts, or is refused."
        notes.append(Finding(FindingKind.GRADIENT_CHECKPOINTING, message))
    return notes


def _ancestors(name: str) -> list[str]:
    pieces = name.split(".")
    return [".".join(pieces[:end]) for end in range(len(pieces))]


def _tied(target: Target, shared: set[int]) -> list[Finding]:
    storages = {storage_address(parameter) for parameter in target.module.parameters()}
    if not storages & shared:
        return []
    message = "shares a weight with another module: masks act on this one alone, and merging is refused."
    return [Finding(FindingKind.TIED_WEIGHTS, message, target.name)]


def _rows(target: Target, config: RequestMaskConfig) -> list[Finding]:
    batch_first = getattr(target.module, "batch_first", None)
    if batch_first is None or config.batch_dim == (0 if batch_first else 1):
        return []
    message = f"its rows are in dimension {0 if batch_first else 1}, by its own batch_first={batch_first}."
    return [Finding(FindingKind.ROWS_ELSEWHERE, message, target.name)]


# ---------------------------------------------------------------- effect


@dataclass(frozen=True)
class LayerEffect:
    """The effect of one masked layer in one run."""

    module: str
    mode: str  # "train" or "eval"
    calls: int  # how often the layer asked for its masks
    change: float  # largest change of the model's output, with random gates on this layer alone


_REGROUPED = (
    "the model mixes or regroups the rows of the batch before a masked layer (routed tokens, rows folded into other "
    "dimensions), so that a layer takes one row's request for another's. Leave those layers out by exclude_modules, "
    "set batch_dim or batch_folding, or give one request for the whole batch."
)


class _Probe(FixedMasks):
    """Random gates for one layer, gates of 1 for the others; counts how often that layer asks for its first part."""

    def __init__(self, masks: Masks, watched: str | None = None) -> None:
        super().__init__(masks)
        self.calls = 0
        self._watched = watched

    def get(self, entry: str) -> Mask | None:
        self.calls += entry == self._watched
        return super().get(entry)


def check_effect(
    model: nn.Module, context: RequestContext, call: Callable[[], Any], device: torch.device, rows: int, batch_dim: int
) -> list[LayerEffect]:
    """Run ``call`` with random gates on one masked layer at a time, in train and in eval mode; the model is put back.

    Then run it with gates for each of ``rows`` rows, and check that a row's output depends on its own gates alone; with
    one row this is left out.

    Raises:
        EffectError: If a layer is not called, or does not move the output; it names each. Also if the output of a
            row depends on another row's request.
    """
    if not context.enabled:
        raise EffectError("adapters are disabled, so that no mask has an effect: leave disable_adapter() first.")
    layers = list(masked_layers(model))
    effects: list[LayerEffect] = []
    for mode in ("train", "eval"):
        with _kept_as_it_was(model), torch.random.fork_rng(), torch.no_grad():
            model.train(mode == "train")
            specs = {layer.module_name: _specs(layer) for layer in layers}
            still = {e: _random_mask(spec, 0.0, device) for own in specs.values() for e, spec in own.items()}
            usual = _outputs(context, call, _Probe(still))
            for layer in layers:
                own = {e: _random_mask(spec, 1.0, device) for e, spec in specs[layer.module_name].items()}
                probe = _Probe({**still, **own}, watched=next(iter(own), None))
                moved = _outputs(context, call, probe)
                effects.append(LayerEffect(layer.module_name, mode, probe.calls, _distance(usual, moved)))
    _check_effects(effects)
    if rows > 1:
        try:
            _check_rows(model, context, call, device, rows, batch_dim)
        except RequestError as error:
            raise EffectError(
                f"requests for each row do not fit this model: {error} If you give one request for the whole "
                "batch alone, check_effect(…, rows=False) leaves this check out."
            ) from error
    return effects


def _check_rows(
    model: nn.Module, context: RequestContext, call: Callable[[], Any], device: torch.device, rows: int, batch_dim: int
) -> None:
    specs = {entry: spec for layer in masked_layers(model) for entry, spec in _specs(layer).items()}
    with _kept_as_it_was(model), torch.random.fork_rng(), torch.no_grad():
        model.eval()
        first, second = ({e: _random_mask(s, 1.0, device, rows) for e, s in specs.items()} for _ in range(2))
        usual = _outputs(context, call, _Probe(first))
        # An output's rows are in one of the dimensions that are as long, and in the same one for every row.
        possible = [{d for d in range(value.dim()) if value.shape[d] == rows} for value in usual]
        first_dim = batch_dim % usual[0].dim() if -usual[0].dim() <= batch_dim < usual[0].dim() else None
        if first_dim in possible[0]:  # further outputs, such as a state by layer, may hold them elsewhere
            possible[0] = {first_dim}
        checked = [bool(dims) for dims in possible]
        for row in range(rows):
            mixed = {e: compose_rowwise({0: first[e], 1: second[e]}, _owners(row, rows, device)) for e in specs}
            moved = _outputs(context, call, _Probe(mixed))
            for place, (before, after) in enumerate(zip(usual, moved, strict=True)):
                others = {d: _moved(before, after, d) - {row} for d in possible[place]}
                possible[place] = {d for d, found in others.items() if not found}
                if checked[place] and not possible[place]:
                    first_other = min(others[min(others)])
                    raise EffectError(
                        f"another request for row {row} moves the output of row {first_other}: {_REGROUPED}"
                    )


def _owners(row: int, rows: int, device: torch.device) -> Tensor:
    return (torch.arange(rows, device=device) == row).long()


def _moved(before: Tensor, after: Tensor, dim: int) -> set[int]:
    """Return where along ``dim`` two outputs differ by more than rounding."""
    if before.shape != after.shape:
        return set(range(before.shape[dim]))
    change = (before.float() - after.float()).abs().nan_to_num(0.0).movedim(dim, 0).flatten(1).amax(1)
    scale = before.float().abs().nan_to_num(0.0, 0.0, 0.0).max()
    return set((change > 1e-4 * scale.clamp_min(1e-6)).nonzero()[:, 0].tolist())


def _check_effects(effects: list[LayerEffect]) -> None:
    bad = [effect for effect in effects if not effect.calls or not effect.change > 0]
    if bad:
        listed = "\n  ".join(
            f"{effect.module!r} in {effect.mode} mode: "
            + ("is never called" if not effect.calls else "is called, and the output stays the same")
            for effect in bad
        )
        raise EffectError(
            f"masks on these modules have no effect on this example:\n  {listed}\nIts parent may read the weight "
            "directly: mask the parent, register a layer for it, or leave the module out by exclude_modules."
        )


def _specs(layer: RequestMaskLayer) -> dict[str, Spec]:
    if isinstance(layer, MaskedOutput):
        return {layer.module_name: FeatureSpec(_features_of(layer))}
    parts = layer.part_specs(layer.base_layer)
    return {layer.entry(part): parts[part] for part in layer.masked_parts()}


def _features_of(layer: MaskedOutput) -> int:
    for name in layer.request_mask_specs:
        spec: Spec = layer.context.generators[name].specs[layer.module_name]  # type: ignore[union-attr, index, assignment]
        features = spec.rows if isinstance(spec, RowSpec) else getattr(spec, "features", None)
        if features is not None:
            return int(features)
    raise EffectError(f"{layer.module_name!r}: call set_row_features first, without which no request can act.")


def _random_mask(spec: Spec, width: float, device: torch.device, rows: int | None = None) -> Mask:
    """Return gates drawn from an interval of ``width`` around 1, for ``rows`` or for a batch of any size."""

    def around_one(features: int) -> Tensor:
        return (1 + width * (torch.rand(rows or 1, features) - 0.5)).to(device)

    shared = rows is None
    if isinstance(spec, FeatureSpec):
        return FeatureMask(around_one(spec.features), shared=shared)
    assert isinstance(spec, LayerSpec)
    return RowColumnMask(around_one(spec.out_features), around_one(spec.in_features), gate_bias=True, shared=shared)


def _outputs(context: RequestContext, call: Callable[[], Any], probe: _Probe) -> list[Tensor]:
    with torch.random.fork_rng(), context.using(probe):
        torch.manual_seed(0)  # the same dropout in every run
        found = list(_tensors(call()))
    if not found:
        raise EffectError("the call returned no floating-point tensor: give check_effect a call= that returns scores.")
    return found


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value.to_padded_tensor(0.0) if value.is_nested else value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)
    elif is_dataclass(value) and not isinstance(value, type):
        for item in fields(value):
            yield from _tensors(getattr(value, item.name))


def _distance(usual: list[Tensor], moved: list[Tensor]) -> float:
    if [value.shape for value in usual] != [value.shape for value in moved]:
        return float("inf")
    pairs = [(a, b) for a, b in zip(usual, moved, strict=True) if a.numel()]
    return max((float((a.float() - b.float()).abs().nan_to_num(0.0).max()) for a, b in pairs), default=0.0)


@contextmanager
def _kept_as_it_was(model: nn.Module) -> Iterator[None]:
    training = [(module, module.training) for module in model.modules()]
    buffers = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    # A forward may also replace a buffer by a new tensor.
    held = [(module, dict(module._buffers)) for module in model.modules()]
    try:
        yield
    finally:
        for module, flag in training:
            module.training = flag
        for module, own in held:
            module._buffers.clear()
            module._buffers.update(own)
        for buffer, value in buffers:
            with torch.inference_mode(buffer.is_inference()), torch.no_grad():
                buffer.copy_(value)
