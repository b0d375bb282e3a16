"""Finds the modules that a configuration masks, before anything is touched."""

from __future__ import annotations

import difflib
import hashlib
import re
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from operator import attrgetter

from peft.tuners.tuners_utils import BaseTunerLayer, check_target_module_exists
from peft.utils.constants import DUMMY_TARGET_MODULES
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn
from torch.nn.parameter import is_lazy

from cramer_peft.config import RequestMaskConfig
from cramer_peft.errors import BaseModelMismatchError, Finding, FindingKind, TargetModuleError
from cramer_peft.injection.default_targets import DEFAULT_TARGET_MODULES
from cramer_peft.injection.fingerprint import update_digest
from cramer_peft.injection.frozen_statistics import statistics_kept
from cramer_peft.injection.outputs import described_modules, output_specs, output_targets
from cramer_peft.injection.weights import unusual_weights, weight_reader
from cramer_peft.layers.masked_layer import RequestMaskLayer, entry_name
from cramer_peft.layers.output import MaskedOutput, OutputTarget
from cramer_peft.layers.registry import registered_classes, wrapper_for
from cramer_peft.masks import FeatureSpec, LayerSpec, RowSpec, Spec


@dataclass(frozen=True)
class Target:
    """One module to mask, or the output of one."""

    name: str
    module: nn.Module
    parts: dict[str, Spec]
    wrapper: type[RequestMaskLayer]
    output: OutputTarget | None = None


@dataclass(frozen=True)
class InjectionPlan:
    """The changes that injecting a configuration into a model would make."""

    config: RequestMaskConfig
    targets: tuple[Target, ...]
    unmatched: tuple[Finding, ...] = ()  # names in target_modules of which others match

    @property
    def specs(self) -> dict[str, Spec]:
        """Widths of everything that is masked, by entry."""
        return {entry_name(target.name, part): spec for target in self.targets for part, spec in target.parts.items()}

    def parts_of(self, name: str) -> dict[str, Spec]:
        """Return the widths of the masked parts of one module."""
        return next(target.parts for target in self.targets if target.name == name)


def plan_injection(model: nn.Module, config: RequestMaskConfig) -> InjectionPlan:
    """Find the modules that ``config`` masks in ``model``, without touching either; fills in a copy of ``config``."""
    with statistics_kept(model):
        return _plan(model, config)


def _plan(model: nn.Module, config: RequestMaskConfig) -> InjectionPlan:
    modules = dict(own_modules(model))
    outputs = output_targets(modules, config) if config.target_outputs else {}
    described = described_modules(modules, config, outputs) if config.row_features else {}
    resolved = config.with_values(target_modules=_resolve_targets(model, modules, config, list(described)))
    matches = {name: module for name, module in modules.items() if name and check_target_module_exists(resolved, name)}
    if not matches and not (outputs and resolved.target_modules == DUMMY_TARGET_MODULES):
        raise _whole(_nothing_matches(modules, resolved))
    problems = _problems(matches, modules)
    if outputs:
        masked = {name for name, module in model.named_modules() if isinstance(module, RequestMaskLayer)} | set(matches)
        problems += [_twice(output.module) for output in outputs.values() if output.module in masked]
    if problems:
        raise TargetModuleError.of(
            "these modules cannot be masked:\n  "
            + "\n  ".join(finding.message for finding in problems)
            + "\nLeave them out of target_modules, or name "
            "them in exclude_modules.",
            *problems,
        )
    _check_saved_whole(matches, resolved)
    found = _masked_parts(matches, resolved, described)
    if outputs or described:
        specs, widths = output_specs(config, outputs)
        found += [
            Target(own.entry, modules[own.module], {"": specs[own.entry]}, MaskedOutput, own)
            for own in outputs.values()
        ]
        resolved.row_features = {**described, **widths} or None
    # Sorted, so that the generator's outputs mean the same in a model that lists its modules in another order.
    targets = tuple(sorted(found, key=attrgetter("name")))
    plan = InjectionPlan(resolved, targets)
    layout = {entry: _widths(spec) for entry, spec in plan.specs.items()}
    digest = fingerprint(targets)
    _check_base(config, layout, digest, targets)
    filled = resolved.with_values(masked_modules=layout, base_fingerprint=digest)
    # A saved adapter's modules have been compared one by one.
    given = config.target_modules if config.masked_modules is None else None
    return InjectionPlan(filled, targets, tuple(islice(_unmatched(modules, given), 20)) if given else ())


def _masked_parts(matches: dict[str, nn.Module], config: RequestMaskConfig, described: Container[str]) -> list[Target]:
    wanted = config.module_parts
    targets: list[Target] = []
    known: set[str] = set()
    for name, module in matches.items():
        wrapper = wrapper_for(module)
        assert wrapper is not None  # _refusal has named every module without one
        parts = dict(wrapper.part_specs(module))
        known.update(parts)
        if name in described:
            whole = parts[""]
            assert isinstance(whole, LayerSpec)
            parts = {"": RowSpec(whole.out_features)}
        if wanted is not None and "" not in parts:
            parts = {part: spec for part, spec in parts.items() if part in wanted}
        if not parts:
            message = f"module_parts={wanted} leaves nothing of {name!r} ({type(module).__name__})."
            raise TargetModuleError.of(message, Finding(FindingKind.UNKNOWN_PART, message, name))
        targets.append(Target(name, module, parts, wrapper))
    unknown = sorted(set(wanted or []) - known)
    if unknown:
        message = f"module_parts={unknown} are parts of no module to mask; the parts there are {sorted(known - {''})}."
        raise TargetModuleError.of(message, Finding(FindingKind.UNKNOWN_PART, message))
    return targets


def _widths(spec: Spec) -> list[int]:
    if isinstance(spec, RowSpec):
        return []  # their number may change
    return [spec.features] if isinstance(spec, FeatureSpec) else [spec.out_features, spec.in_features]


def fingerprint(targets: Sequence[Target]) -> str | None:
    """Return a digest of the names, shapes, dtypes and values of the masked weights; None on the meta device."""
    digest = hashlib.sha256()
    for target in targets:
        for weight in target.wrapper.fingerprint_weights(target.module):
            if weight.is_meta:
                return None
            update_digest(digest, target.name, weight)
    return "sha256:" + digest.hexdigest()


def fingerprint_of_layers(model: nn.Module, adapter_name: str) -> str | None:
    """Return the digest of the weights that an adapter masks, as they are now; None if they cannot be read whole."""
    layers = [m for m in model.modules() if isinstance(m, RequestMaskLayer) and adapter_name in m.request_mask_specs]
    layers = list({layer.module_name: layer for layer in layers}.values())
    if any(unusual_weights(layer.base_layer) for layer in layers if not isinstance(layer, MaskedOutput)):
        return None
    targets = [Target(layer.module_name, layer.base_layer, {}, type(layer)) for layer in layers]
    return fingerprint(sorted(targets, key=attrgetter("name")))


def own_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield modules by name: masked layers as the modules that they wrap, and nothing inside PEFT's own wrappers."""
    wrapped: list[str] = []
    for name, module in model.named_modules():
        if any(name.startswith(prefix) for prefix in wrapped):
            continue
        if isinstance(module, (BaseTunerLayer, AuxiliaryTrainingWrapper)):
            wrapped.append(name + ".")
        if not isinstance(module, MaskedOutput):
            yield name, module.base_layer if isinstance(module, RequestMaskLayer) else module


def _resolve_targets(
    model: nn.Module, modules: dict[str, nn.Module], config: RequestMaskConfig, described: list[str]
) -> list[str] | str:
    targets: list[str] | str | None = config.target_modules
    if described and isinstance(targets, str) and targets != DUMMY_TARGET_MODULES:
        named = _resolve_targets(model, modules, config, [])
        return "|".join([str(named), *map(re.escape, described)])
    if described:
        own = targets if isinstance(targets, list) else []
        return [*own, *(name for name in described if name not in own)]
    if targets is None and config.target_outputs:
        return str(DUMMY_TARGET_MODULES)  # PEFT's name for none
    if targets is None:
        return _default_targets(model, modules)
    if isinstance(targets, str) and targets.lower() == "all-linear":
        # A regular expression, since names in a list match as endings too: "proj" would take in "head.proj".
        return "|".join(re.escape(name) for name in _all_linear(model, modules))
    return targets


def _default_targets(model: nn.Module, modules: dict[str, nn.Module]) -> list[str]:
    found: list[str] = []
    for module in modules.values():
        model_type = getattr(getattr(module, "config", None), "model_type", None)
        if isinstance(model_type, str):
            found += [name for name in DEFAULT_TARGET_MODULES.get(model_type, []) if name not in found]
    if found:
        return found
    candidates = _all_linear(model, modules)
    raise _whole(
        f"target_modules is not set and the architecture of {type(model).__name__} is not known. Name the modules to "
        f"mask, usually the feed-forward and attention-output projections, or 'all-linear'. Candidates: "
        f"{_listed(candidates)}."
    )


def _all_linear(model: nn.Module, modules: dict[str, nn.Module]) -> list[str]:
    get_output = getattr(model, "get_output_embeddings", None)
    head = get_output() if callable(get_output) else None
    names = [
        name
        for name, module in modules.items()
        if name and _is_linear(module) and module is not head and not _inside_attention(name, modules)
    ]
    if not names:
        others = [name for name, module in modules.items() if name and wrapper_for(module) is not None]
        raise _whole(
            f"{type(model).__name__} has no linear module to mask. Others that can be named: "
            f"{_listed(others) or 'none'}; supported are {', '.join(registered_classes())}."
        )
    return names


def _is_linear(module: nn.Module) -> bool:
    wrapper = wrapper_for(module)
    return isinstance(module, nn.Linear) or (wrapper is not None and wrapper.linear)


def _inside_attention(name: str, modules: dict[str, nn.Module]) -> bool:
    return isinstance(modules.get(name.rpartition(".")[0]), nn.MultiheadAttention)


def _maskable(modules: dict[str, nn.Module]) -> list[str]:
    return [n for n, module in modules.items() if n and _is_linear(module) and not _inside_attention(n, modules)]


def _near(name: str, linear: list[str]) -> list[str]:
    endings = {ending for other in linear for ending in (other.rsplit(".", 1)[-1], ".".join(other.split(".")[-2:]))}
    return difflib.get_close_matches(name, sorted(endings), n=3, cutoff=0.5)


def _unmatched(modules: dict[str, nn.Module], targets: list[str] | str | None) -> Iterator[Finding]:
    """Yield the names of a list that are neither a module's name nor the end of one; PEFT passes over them."""
    for wanted in targets if isinstance(targets, list) else ():
        if not any(f".{name}".endswith(f".{wanted}") for name in modules):
            near = ", ".join(_near(wanted, _maskable(modules))) or "nothing"
            message = f"target_modules: {wanted!r} matches no module of this model; near: {near}."
            yield Finding(FindingKind.UNMATCHED_NAME, message)


def _nothing_matches(modules: dict[str, nn.Module], config: RequestMaskConfig) -> str:
    linear = _maskable(modules)
    wanted = [config.target_modules] if isinstance(config.target_modules, str) else list(config.target_modules or [])
    near = [close for name in wanted for close in _near(name, linear)]
    message = f"no module matches target_modules={config.target_modules!r}"
    if config.exclude_modules:
        message += f" with exclude_modules={config.exclude_modules!r}"
    if config.layers_to_transform is not None:
        message += f" and layers_to_transform={config.layers_to_transform!r}"
        if config.layers_pattern is None:
            message += " (name the module list that it counts in by layers_pattern)"
    if near:
        message += f". Near misses: {', '.join(dict.fromkeys(near))}"
    return f"{message}. Modules that can be masked: {_listed(linear)}."


def _whole(message: str) -> TargetModuleError:
    return TargetModuleError.of(message, Finding(FindingKind.NOTHING_MATCHES, message))


def _refusal(name: str, modules: dict[str, nn.Module]) -> Finding | None:
    """Return the reason why the module cannot be masked, or None."""
    module = modules[name]
    if MaskedOutput in map(type, module.children()):
        return _twice(name)
    if isinstance(module, BaseTunerLayer):
        message = (
            f"{name!r} is adapted by another PEFT method already ({type(module).__module__}.{type(module).__name__}): "
            "merge or unload that adapter first, or mask other layers."
        )
        return Finding(FindingKind.UNSUPPORTED_MODULE, message, name)
    wrapper = wrapper_for(module)
    if wrapper is None:
        message = (
            f"{name!r} is a {type(module).__name__}; supported are {', '.join(registered_classes())} and what is "
            "registered by cramer_peft.register_mask_layer."
        )
        return Finding(FindingKind.UNSUPPORTED_MODULE, message, name)
    if _inside_attention(name, modules):
        parent = name.rpartition(".")[0]
        message = (
            f"{name!r} is read directly by its parent nn.MultiheadAttention {parent!r}: a mask would have no "
            f"effect. Name the attention module, {parent!r}, which is masked whole (module_parts=['out'] for its "
            "output projection alone)."
        )
        return Finding(FindingKind.READ_BY_PARENT, message, name)
    reader = None if isinstance(module, nn.Embedding) else weight_reader(name, modules)
    if reader is not None:
        message = (
            f"{name!r}: its weight is read directly by {reader}, where a mask on the module would have no effect. "
            "Leave it out, or register a mask layer for the reader (cramer_peft.register_mask_layer)."
        )
        return Finding(FindingKind.READ_BY_PARENT, message, name)
    unusual = unusual_weights(module)
    if unusual is not None:
        message = f"{name!r} is a {type(module).__name__} whose weight is {unusual}: request masks cannot be put on it."
        return Finding(FindingKind.UNSUPPORTED_MODULE, message, name)
    if any(is_lazy(value) for value in module.parameters()):
        message = f"{name!r} is a {type(module).__name__} without weights yet: call the model once before that."
        return Finding(FindingKind.UNSUPPORTED_MODULE, message, name)
    if any(0 in _widths(spec) for spec in wrapper.part_specs(module).values()):
        message = f"{name!r} is a {type(module).__name__} without any features: there is nothing to mask."
        return Finding(FindingKind.UNSUPPORTED_MODULE, message, name)
    return None


def _problems(matches: dict[str, nn.Module], modules: dict[str, nn.Module]) -> list[Finding]:
    """Return the reasons why modules cannot be masked, alone or inside another one that can."""
    refused = {name: finding for name in matches if (finding := _refusal(name, modules))}
    found = []
    for name in matches:
        outer = next((other for other in matches if name.startswith(other + ".") and other not in refused), None)
        if outer is not None:
            message = f"{name!r} lies inside {outer!r}, which is masked whole: name one of the two."
            found.append(Finding(FindingKind.NESTED_TARGET, message, name))
        elif name in refused:
            found.append(refused[name])
    return found


def _twice(name: str) -> Finding:
    message = (
        f"{name!r} would be masked both as a module and as an output: name it in target_modules or in target_outputs. "
        "For row values on top of gates, use row_features without target_outputs, in an adapter of its own."
    )
    return Finding(FindingKind.NESTED_TARGET, message, name)


def _check_saved_whole(matches: dict[str, nn.Module], config: RequestMaskConfig) -> None:
    """Refuse to train a module whole that is masked, or lies inside one: PEFT would do so, or fail halfway."""
    for name, module in matches.items():
        inside = [f"{name}.base_layer"] + [f"{name}.base_layer.{child}" for child, _ in module.named_modules() if child]
        for wanted in config.modules_to_save or []:
            found = next((place for place in [name, *inside] if place.endswith(wanted)), None)
            if found is not None:
                message = (
                    f"modules_to_save={wanted!r} takes in {found.replace('.base_layer', '')!r}, which is masked: a "
                    "module is masked or trained whole, not both. Names there match as endings; leave it out of one."
                )
                raise TargetModuleError.of(message, Finding(FindingKind.NESTED_TARGET, message, name))


def _check_base(
    config: RequestMaskConfig, layout: dict[str, list[int]], digest: str | None, targets: Sequence[Target]
) -> None:
    if config.masked_modules is not None and config.masked_modules != layout:
        differences = describe_difference(config.masked_modules, layout)
        raise BaseModelMismatchError(f"the adapter was made for other modules than this model has: {differences}.")
    if config.base_fingerprint is not None and digest is not None and config.base_fingerprint != digest:
        weights = (weight for target in targets for weight in target.wrapper.fingerprint_weights(target.module))
        dtypes = ", ".join(sorted({str(weight.dtype).removeprefix("torch.") for weight in weights}))
        raise BaseModelMismatchError(
            f"the adapter was made for another base model: the masked weights' fingerprint is {digest}, the adapter "
            f"expects {config.base_fingerprint}. Here they are {dtypes}: there they had another dtype or other values. "
            "Load the base model it was trained on, in its dtype; to use it with this one nevertheless, pass "
            "check_base=False (or set base_fingerprint=None in its configuration)."
        )


def describe_difference(expected: dict[str, list[int]], found: dict[str, list[int]]) -> str:
    """Describe the differences of two layouts."""
    missing = [name for name in expected if name not in found]
    extra = [name for name in found if name not in expected]
    shapes = [
        f"{name} has {found[name]}, expected {shape}"
        for name, shape in expected.items()
        if name in found and found[name] != shape
    ]
    parts = []
    if missing:
        parts.append(f"missing {_listed(missing)}")
    if extra:
        parts.append(f"unexpected {_listed(extra)}")
    if shapes:
        parts.append("; ".join(shapes[:5]))
    return "; ".join(parts) or "the same modules in another order"


def _listed(names: list[str], limit: int = 20) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
