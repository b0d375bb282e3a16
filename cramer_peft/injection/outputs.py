"""Finds the outputs to mask and the targets whose rows are described, and puts masked outputs in place."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from cramer_peft.config import RequestMaskConfig
from cramer_peft.context import RequestContext
from cramer_peft.errors import Finding, FindingKind, TargetModuleError
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
    return {name: _target(name, own, modules) for name, own in options.items()}


def _target(name: str, options: dict[str, Any], modules: Mapping[str, nn.Module]) -> OutputTarget:
    owner, method = (name, "forward") if name in modules else (name.rpartition(".")[0], name.rpartition(".")[2])
    module = modules.get(owner)
    found = None if module is None else getattr(module, method, None)
    if module is None or not callable(found) or isinstance(found, nn.Module):
        near = difflib.get_close_matches(name, list(modules), n=3, cutoff=0.4)
        raise _refused(name, f"is no module of this model and no method of one. Near: {', '.join(near) or 'nothing'}.")
    if method != "forward" and (method.startswith("_") or hasattr(nn.Module, method)):
        raise _refused(name, "is no method that returns scores.")
    if isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward:
        last = f"{owner}.{len(module) - 1}".lstrip(".")
        raise _refused(name, f"is an nn.Sequential, whose output is that of its last module: name {last!r}.")
    if type(module).forward is nn.Module.forward:
        raise _refused(name, f"is a {type(module).__name__}, which returns nothing.")
    target = OutputTarget(owner, method, **options)
    if target.candidates is not None and target.candidates not in inspect.signature(found).parameters:
        names = ", ".join(inspect.signature(found).parameters)
        raise _refused(name, f"has no parameter {target.candidates!r} (candidates); there are {names}.")
    return target


def _refused(name: str, problem: str) -> TargetModuleError:
    message = f"target_outputs: {name!r} {problem}"
    return TargetModuleError.of(message, Finding(FindingKind.UNSUPPORTED_MODULE, message, name))


def described_modules(
    modules: Mapping[str, nn.Module], config: RequestMaskConfig, outputs: Mapping[str, OutputTarget]
) -> dict[str, int | None]:
    """Return the modules, by name, that ``row_features`` names beside outputs, with the number of features if known."""
    given = config.row_features or []
    widths = given if isinstance(given, dict) else dict.fromkeys(given)
    spelled = {*outputs, *(target.entry for target in outputs.values())}
    found: dict[str, int | None] = {}
    for name, width in widths.items():
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
    given = config.row_features or []
    widths = given if isinstance(given, dict) else dict.fromkeys(given)
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


def find_outputs(model: nn.Module) -> list[MaskedOutput]:
    """Return the masked outputs in ``model``."""
    return [module for module in model.modules() if isinstance(module, MaskedOutput)]


class PlacedOutput:
    """A masked output on a model, and what it takes to remove it."""

    def __init__(self, module: nn.Module, target: OutputTarget, context: RequestContext) -> None:
        self.layer = MaskedOutput(module, target, context)
        self._module, self._method = module, target.method
        self._before: Any = vars(module).get(target.method)
        module.add_module(target.child, self.layer)
        root = self._before if hasattr(self._before, "wrap_model") else None
        if root is not None:  # the handle's own forward gives the request, so the output is masked inside it
            root.wrap_model(lambda forward: OutputMethod(self.layer, forward))
        else:
            setattr(module, target.method, OutputMethod(self.layer, getattr(module, target.method)))
        self._hooks = [
            child.register_forward_pre_hook(RefuseOtherWays(self.layer, name)) for name, child in hooked_modules(module)
        ]

    def remove(self) -> None:
        """Put the module back as it was."""
        for hook in self._hooks:
            hook.remove()
        delattr(self._module, self.layer.target.child)
        if hasattr(self._before, "wrap_model"):
            self._before.unwrap_model()
        elif self._before is None:
            vars(self._module).pop(self._method, None)
        else:
            setattr(self._module, self._method, self._before)


def remove_outputs(placed: Sequence[PlacedOutput]) -> None:
    """Remove masked outputs, the last first."""
    for output in reversed(placed):
        output.remove()
