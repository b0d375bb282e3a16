"""What injection attaches to a model and changes on it, recorded so that it can all be undone."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn

from cramer_peft.layers import fastpath
from cramer_peft.layers.base import RequestMaskLayer

_HOOK_TABLES = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_ATTRIBUTES = ("forward", "peft_config", "_require_grads_hooks", "_require_grads_hook")


def locations(model: nn.Module) -> dict[int, list[tuple[nn.Module, str]]]:
    """For each submodule (by id), every parent and attribute name that it is registered under."""
    found: dict[int, list[tuple[nn.Module, str]]] = defaultdict(list)
    for owner in model.modules():
        for name, child in owner._modules.items():
            if child is not None:
                found[id(child)].append((owner, name))
    return found


@dataclass
class ModelRecord:
    """A model as it was before the first injection, and where modules have been replaced since."""

    requires_grad: dict[str, bool]
    training: dict[str, bool]
    attributes: dict[str, Any]
    hooks: set[int]
    replaced: list[tuple[nn.Module, str, nn.Module]] = field(default_factory=list)
    unfused: list[nn.Module] = field(default_factory=list)

    @classmethod
    def of(cls, model: nn.Module) -> ModelRecord:
        """Record ``model`` as it is now."""
        return cls(
            requires_grad={name: p.requires_grad for name, p in model.named_parameters()},
            training={name: module.training for name, module in model.named_modules()},
            attributes={name: model.__dict__[name] for name in _ATTRIBUTES if name in model.__dict__},
            hooks={key for module in model.modules() for table in _HOOK_TABLES for key in getattr(module, table)},
        )

    def replace(self, places: list[tuple[nn.Module, str]], new: nn.Module) -> None:
        """Put ``new`` at every one of ``places``, remembering what was there."""
        for owner, name in places:
            self.replaced.append((owner, name, owner._modules[name]))  # type: ignore[arg-type]
            setattr(owner, name, new)

    def undo(self, model: nn.Module, adapter_name: str, kept: int) -> None:
        """Take off what a further adapter that failed halfway has put on.

        Args:
            model: The model.
            adapter_name: Name of that adapter.
            kept: How many modules had been replaced before it.
        """
        for owner, name, wrapper in list(_auxiliary(model)):
            others = set(wrapper._get_available_adapters()) - {adapter_name}
            if not others:
                setattr(owner, name, wrapper.original_module)
            else:
                wrapper.delete_adapter(adapter_name, [n for n in wrapper.active_adapters if n in others])
        for owner, name, module in reversed(self.replaced[kept:]):
            setattr(owner, name, module)
        del self.replaced[kept:]
        for layer in masked_layers(model):
            layer.request_mask_specs.pop(adapter_name, None)

    def trained_modules(self, model: nn.Module) -> list[tuple[nn.Module, str, nn.Module]]:
        """Parent, name and trained copy of each module of ``modules_to_save``, of the active adapter."""
        return [
            (owner, name, wrapper.modules_to_save[wrapper.active_adapters[0]])
            for owner, name, wrapper in _auxiliary(model)
            if getattr(wrapper, "modules_to_save", None) and wrapper.active_adapters
        ]

    def restore(self, model: nn.Module) -> None:
        """Make ``model`` what it was: modules, flags, training mode, attributes, PEFT's own hooks."""
        fastpath.remove(self.unfused)
        self.unfused.clear()
        for owner, name, wrapper in list(_auxiliary(model)):
            setattr(owner, name, wrapper.original_module)
        for owner, name, module in reversed(self.replaced):
            setattr(owner, name, module)
        self.replaced.clear()
        for name, parameter in model.named_parameters():
            if name in self.requires_grad:
                parameter.requires_grad_(self.requires_grad[name])
        for name, module in model.named_modules():
            module.training = self.training.get(name, module.training)
            _remove_peft_hooks(module, self.hooks)
        for name in _ATTRIBUTES:
            model.__dict__.pop(name, None)
        model.__dict__.update(self.attributes)


def masked_layers(model: nn.Module) -> Iterator[RequestMaskLayer]:
    """The masked layers of ``model``."""
    for module in model.modules():
        if isinstance(module, RequestMaskLayer):
            yield module


def _auxiliary(model: nn.Module) -> Iterator[tuple[nn.Module, str, AuxiliaryTrainingWrapper]]:
    for owner in list(model.modules()):
        for name, child in list(owner._modules.items()):
            if isinstance(child, AuxiliaryTrainingWrapper):
                yield owner, name, child


def _remove_peft_hooks(module: nn.Module, kept: set[int]) -> None:
    for table in _HOOK_TABLES:
        hooks = getattr(module, table)
        for key in [key for key, hook in hooks.items() if key not in kept and _is_from_peft(hook)]:
            del hooks[key]


def _is_from_peft(hook: Any) -> bool:
    # Where a model checkpoints gradients, PeftModel puts a hook on the input embeddings that it never takes
    # off: its own, or that of transformers.
    name = f"{getattr(hook, '__module__', '')}.{getattr(hook, '__qualname__', '')}"
    return name.startswith("peft.") or (name.startswith("transformers.") and "enable_input_require_grads" in name)
