"""Finds the outputs to mask and the targets whose rows are described, and puts masked outputs in place."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from cramer_peft.config import RequestMaskConfig
from cramer_peft.context import RequestContext
from cramer_peft.errors import ConfigError, Finding, FindingKind, TargetModuleError
from cramer_peft.layers.masked_layer import RowLayout
from cramer_peft.layers.output import MaskedOutput, OutputMethod, OutputTarget, RefuseOtherWays, hooked_modules
from cramer_peft.layers.registry import wrapper_for
from cramer_peft.masks import FeatureSpec, LayerSpec, RowSpec, Spec


def output_targets(modules: Mapping[str, nn.Module], config: RequestMaskConfig) -> dict[str, OutputTarget]:
    """Return the targets of ``target_outputs`` by their names there.

    Raises:
        TargetModuleError: If one is no module or method of the model, or its output cannot be masked.
    """
    given = config.target_outputs or []
    options = given if isinstance(given, dict) else {name: {} for name in given}
    found: dict[str, OutputTarget] = {}
    for name, own in options.items():
        target = _target(name, own, modules)
        if target.entry in {other.entry for other in found.values()}:
            raise _refused(name, "is named twice.")
        found[name] = target
    return found


def _target(name: str, options: dict[str, Any], modules: Mapping[str, nn.Module]) -> OutputTarget:
    owner, method = (name, "forward") if name in modules else (name.rpartition(".")[0], name.rpartition(".")[2])
    module = modules.get(owner)
    found = None if module is None else getattr(module, method, None)
    if module is None or not callable(found) or isinstance(found, nn.Module):
        near = difflib.get_close_matches(name, list(modules), n=3, cutoff=0.4)
        raise _refused(name, f"is no module of this model and no method of one. Near: {', '.join(near) or 'nothing'}.")
    if method != "forward" and (method.startswith("_") or hasattr(nn.Module, method)):
        raise _refused(name, "is no method that returns scores.")
    _check_runs(name, owner, module, method)
    try:
        parameters = inspect.signature(found).parameters
    except (TypeError, ValueError) as error:  # a function of torch that is kept as an attribute
        raise _refused(name, "is no method, but a function without a signature.") from error
    target = OutputTarget(owner, method, **options)
    if target.candidates is not None and target.candidates not in parameters:
        raise _refused(name, f"has no parameter {target.candidates!r} (candidates); there are {', '.join(parameters)}.")
    return target


def _check_runs(name: str, owner: str, module: nn.Module, method: str) -> None:
    """Check that a module has a method of its own whose result can be masked."""
    kind = type(module).__name__
    if isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward:
        last = f"{owner}.{len(module) - 1}".lstrip(".")
        raise _refused(name, f"is an nn.Sequential, whose output is that of its last module: name {last!r}.")
    if isinstance(module, (nn.Sequential, nn.ModuleList, nn.ModuleDict)):
        raise _refused(name, f"is a {kind}, which would run over the masked output as one of its own modules.")
    if method == "forward" and type(module).forward is nn.Module.forward:
        raise _refused(name, f"is a {kind} without a forward: name the method that returns scores.")


def _refused(name: str, problem: str) -> TargetModuleError:
    message = f"target_outputs: {repr(name) if name else 'the model itself'} {problem}"
    return TargetModuleError.of(message, Finding(FindingKind.UNSUPPORTED_MODULE, message, name))


def described_modules(
    modules: Mapping[str, nn.Module], config: RequestMaskConfig, outputs: Mapping[str, OutputTarget]
) -> dict[str, int | None]:
    """Return the modules, by name, that ``row_features`` names beside outputs, with the number of features if known."""
    spelled = {*outputs, *(target.entry for target in outputs.values())}
    found: dict[str, int | None] = {}
    for name, width in _row_widths(config).items():
        if name in spelled:
            continue
        matches = [other for other in modules if other and (other == name or other.endswith(f".{name}"))]
        if not matches:
            near = difflib.get_close_matches(name, [*modules, *spelled], n=3, cutoff=0.4)
            message = f"row_features: {name!r} is no module and no target output. Near: {', '.join(near) or 'nothing'}."
            raise TargetModuleError.of(message, Finding(FindingKind.NOTHING_MATCHES, message, name))
        for match in matches:
            _check_described(match, modules[match])
            found[match] = width
    return found


def _row_widths(config: RequestMaskConfig) -> dict[str, int | None]:
    """Return the number of features of each target of ``row_features``, None if it is not known, by name."""
    given = config.row_features or []
    return given if isinstance(given, dict) else dict.fromkeys(given)


def _check_described(name: str, module: nn.Module) -> None:
    wrapper = wrapper_for(module)
    if wrapper is None or not isinstance(wrapper.part_specs(module).get(""), LayerSpec):
        message = (
            f"row_features: {name!r} is a {type(module).__name__}, expected a module with one weight, such as an "
            "nn.Linear. For the output of any other module, name it in target_outputs, too."
        )
        raise TargetModuleError.of(message, Finding(FindingKind.UNSUPPORTED_MODULE, message, name))


def output_specs(
    config: RequestMaskConfig, outputs: Mapping[str, OutputTarget]
) -> tuple[dict[str, Spec], dict[str, int | None]]:
    """Return the spec of each output by entry, and the entries with row features with their number if known."""
    widths = _row_widths(config)
    specs: dict[str, Spec] = {}
    described: dict[str, int | None] = {}
    for name, target in outputs.items():
        named = next((key for key in (name, target.entry) if key in widths), None)
        if named is not None:
            specs[target.entry], described[target.entry] = RowSpec(), widths[named]
        elif target.features is not None:
            specs[target.entry] = FeatureSpec(target.features)
        else:
            raise _refused(
                name, "is masked by gates, whose number is not known: give {'features': n}, or name it in row_features."
            )
    return specs, described


class PlacedOutput:
    """A masked output on a model, and what it takes to remove it."""

    def __init__(self, model: nn.Module, module: nn.Module, target: OutputTarget, context: RequestContext) -> None:
        self.layer = MaskedOutput(module, target, context)
        self._module, self._method = module, target.method
        self._before: Any = vars(module).get(target.method)
        self._root, self._own = _root_forward(module, target.method), None
        module.add_module(target.child, self.layer)
        if self._root is not None:  # it gives the request, so the output is masked inside it
            self._root.wrap_model(lambda forward: OutputMethod(self.layer, forward))
        else:
            self._own = OutputMethod(self.layer, getattr(module, target.method))
            setattr(module, target.method, self._own)
        self._hooks = [
            child.register_forward_pre_hook(RefuseOtherWays(self.layer, name))
            for name, child in hooked_modules(model, module)
        ]

    def remove(self) -> None:
        """Put the module back as it was."""
        for hook in self._hooks:
            hook.remove()
        delattr(self._module, self.layer.target.child)
        if self._root is not None:
            self._root.unwrap_model()
        elif vars(self._module).get(self._method) is not self._own:
            return  # somebody has wrapped it since; without masks it only hands on
        elif self._before is None:
            vars(self._module).pop(self._method)
        else:
            setattr(self._module, self._method, self._before)


def _root_forward(module: nn.Module, method: str) -> Any:
    """Return the object that takes requests out of the root's calls, below a wrapper of accelerate; else None."""
    found = (vars(module).get(name) for name in ("forward", "_old_forward")) if method == "forward" else ()
    return next((forward for forward in found if hasattr(forward, "wrap_model")), None)


def place_outputs(
    model: nn.Module,
    targets: Iterable[tuple[nn.Module, OutputTarget, Mapping[str, Spec]]],
    there: list[PlacedOutput],
    adapter_name: str,
    layout: RowLayout,
    context: RequestContext,
    active: Sequence[str],
) -> None:
    """Put masked outputs on the model for an adapter, or let it mask those that are ``there``; new ones join them.

    Raises:
        ConfigError: If another adapter masks another field or other rows of the same output.
    """
    layers = {output.layer.module_name: output.layer for output in there}
    for module, target, parts in targets:
        layer = layers.get(target.entry)
        if layer is None:
            there.append(PlacedOutput(model, module, target, context))
            layer = there[-1].layer
            layer.__dict__["_active_adapter"] = list(active)
        elif replace(layer.target, features=None) != replace(target, features=None):
            raise ConfigError(
                f"target_outputs: another adapter masks {target.entry!r} as {layer.target}, found {target}."
            )
        layer.update_layer(adapter_name, parts, layout)


def remove_unused(outputs: list[PlacedOutput]) -> None:
    """Remove the masked outputs, the last first, that no adapter masks."""
    for output in [output for output in reversed(outputs) if not output.layer.request_mask_specs]:
        output.remove()
        outputs.remove(output)


def remove_outputs(outputs: list[PlacedOutput]) -> None:
    """Remove all masked outputs, the last first."""
    while outputs:
        outputs.pop().remove()
