"""The record of everything that injection attaches to a model or changes on it, to undo it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor, nn

from cramer_peft.config import RequestMaskConfig
from cramer_peft.errors import ConfigError
from cramer_peft.injection.outputs import PlacedOutput, remove_outputs, remove_unused
from cramer_peft.layers import fused_encoder
from cramer_peft.layers.masked_layer import RequestMaskLayer

_HOOK_TABLES = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_ATTRIBUTES = ("forward", "peft_config", "_require_grads_hooks", "_require_grads_hook")


def locations(model: nn.Module) -> dict[int, list[tuple[nn.Module, str]]]:
    """Return, for each submodule (by id), every parent and attribute name under which it is registered."""
    found: dict[int, list[tuple[nn.Module, str]]] = defaultdict(list)
    for owner in model.modules():
        for name, child in owner._modules.items():
            if child is not None:
                found[id(child)].append((owner, name))
    return found


@dataclass
class ModelRecord:
    """A model as it was before the first injection, and the modules that have been replaced since."""

    requires_grad: dict[str, bool]
    training: dict[str, bool]
    attributes: dict[str, Any]
    hooks: set[int]
    foreign: dict[int, nn.Module]
    replaced: list[tuple[nn.Module, str, nn.Module]] = field(default_factory=list)
    placed: list[nn.Module] = field(default_factory=list)  # the masked layer in each of these places
    unfused: list[nn.Module] = field(default_factory=list)
    methods: list[tuple[nn.Module, str]] = field(default_factory=list)  # set on module objects, by name
    outputs: list[PlacedOutput] = field(default_factory=list)

    @classmethod
    def of(cls, model: nn.Module) -> ModelRecord:
        """Record ``model`` as it is now."""
        return cls(
            requires_grad={name: p.requires_grad for name, p in model.named_parameters()},
            training={name: module.training for name, module in model.named_modules()},
            attributes={name: model.__dict__[name] for name in _ATTRIBUTES if name in model.__dict__},
            hooks={key for module in model.modules() for table in _HOOK_TABLES for key in getattr(module, table)},
            foreign={id(m): m for m in model.modules() if isinstance(m, (BaseTunerLayer, AuxiliaryTrainingWrapper))},
        )

    def own_layers(self, model: nn.Module) -> Iterator[RequestMaskLayer | AuxiliaryTrainingWrapper]:
        """Yield the layers and ``modules_to_save`` that the masks put on ``model``, no other PEFT method's."""
        for module in model.modules():
            own = isinstance(module, (RequestMaskLayer, AuxiliaryTrainingWrapper))
            if own and id(module) not in self.foreign:
                yield module

    def freeze_foreign(self) -> None:
        """Freeze the layers and saved modules of other PEFT methods: the masks' own parameters alone are trained."""
        for module in self.foreign.values():
            module.requires_grad_(False)

    def foreign_kept(self) -> AbstractContextManager[None]:
        """Keep what other PEFT methods have active inside the block: PEFT switches all methods' modules at once."""
        return self._foreign_kept() if self.foreign else nullcontext()

    @contextmanager
    def _foreign_kept(self) -> Iterator[None]:
        names = ("_active_adapter", "_disable_adapters")
        kept = [(vars(m), {name: vars(m)[name] for name in names if name in vars(m)}) for m in self.foreign.values()]
        flags = [(p, p.requires_grad) for module in self.foreign.values() for p in module.parameters()]
        try:
            yield
        finally:
            for attributes, values in kept:
                attributes.update(values)
            for parameter, flag in flags:
                parameter.requires_grad_(flag)

    def replace(self, places: list[tuple[nn.Module, str]], new: nn.Module) -> None:
        """Put ``new`` at each of ``places``, and remember the module that was there."""
        for owner, name in places:
            self.replaced.append((owner, name, owner._modules[name]))  # type: ignore[arg-type]
            self.placed.append(new)
            setattr(owner, name, new)

    def check_in_place(self, model: nn.Module) -> None:
        """Check that every masked layer is in the model still: another one in its place would follow no request.

        Raises:
            ConfigError: If one is not; it names the first.
        """
        for (owner, name, _), layer in zip(self.replaced, self.placed, strict=True):
            if owner._modules.get(name) is not layer and all(module is not layer for module in model.modules()):
                raise ConfigError(
                    f"module {getattr(layer, 'module_name', name)!r} was replaced after request masks were put on it, "
                    f"by a {type(owner._modules.get(name)).__name__} that follows no request. Put the masked layer "
                    "back; to replace it, call unload() first and inject again."
                )

    def undo(self, model: nn.Module, adapter_name: str, kept: int) -> None:
        """Remove what a further adapter that failed halfway put on; ``kept`` modules had been replaced before it."""
        for owner, name, wrapper in list(_auxiliary(model)):
            others = set(wrapper._get_available_adapters()) - {adapter_name}
            if not others:
                setattr(owner, name, wrapper.original_module)
            else:
                wrapper.delete_adapter(adapter_name, [n for n in wrapper.active_adapters if n in others])
        for owner, name, module in reversed(self.replaced[kept:]):
            setattr(owner, name, module)
        del self.replaced[kept:], self.placed[kept:]
        for layer in masked_layers(model):
            layer.request_mask_specs.pop(adapter_name, None)
        remove_unused(self.outputs)

    def trained_modules(self, model: nn.Module) -> list[tuple[nn.Module, str, nn.Module]]:
        """Return parent, name and the active adapter's copy of each module in ``modules_to_save``."""
        return [
            (owner, name, wrapper.modules_to_save[wrapper.active_adapters[0]])
            for owner, name, wrapper in _auxiliary(model)
            if getattr(wrapper, "modules_to_save", None) and wrapper.active_adapters
        ]

    def restore(self, model: nn.Module) -> None:
        """Restore ``model`` to its recorded state: modules, flags, training mode, attributes; PEFT's hooks go."""
        remove_outputs(self.outputs)
        fused_encoder.remove(self.unfused)
        self.unfused.clear()
        for module, name in self.methods:
            vars(module).pop(name, None)
        self.methods.clear()
        for owner, name, wrapper in list(_auxiliary(model)):
            if id(wrapper) not in self.foreign:
                setattr(owner, name, wrapper.original_module)
        for owner, name, module in reversed(self.replaced):
            setattr(owner, name, module)
        self.replaced.clear()
        self.placed.clear()
        for name, parameter in model.named_parameters():
            if name in self.requires_grad:
                parameter.requires_grad_(self.requires_grad[name])
        for name, module in model.named_modules():
            module.training = self.training.get(name, module.training)
            _remove_peft_hooks(module, self.hooks)
        configs = model.__dict__.get("peft_config") or {}
        for name in _ATTRIBUTES:
            model.__dict__.pop(name, None)
        model.__dict__.update(self.attributes)
        above = {name: config for name, config in configs.items() if not isinstance(config, RequestMaskConfig)}
        if above and "peft_config" not in self.attributes:  # another method's, put on since, finds its own here
            model.__dict__["peft_config"] = above


def masked_layers(model: nn.Module) -> Iterator[RequestMaskLayer]:
    """Yield the masked layers of ``model``."""
    for module in model.modules():
        if isinstance(module, RequestMaskLayer):
            yield module


def check_row_layouts(model: nn.Module, names: Sequence[str]) -> None:
    """Check that adapters expect the rows of each layer where the active adapters do, whose layout the layer uses."""
    for layer in masked_layers(model):
        for name in dict.fromkeys(names):
            _, own = layer.request_mask_specs.get(name, (None, layer.layout))
            if own != layer.layout:
                raise ConfigError(
                    f"module {layer.module_name!r}: adapter {name!r} expects its rows by batch_dim={own.batch_dim}, "
                    f"batch_folding={own.folding!r}, the active adapters {layer.active_adapters} by "
                    f"batch_dim={layer.layout.batch_dim}, batch_folding={layer.layout.folding!r}. Name adapters of one "
                    "layout in adapter_names, and make one of them active by set_adapter(name)."
                )


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
    # PeftModel puts a hook on the input embeddings of a model that checkpoints gradients, its own or the one of
    # transformers, and never removes it.
    name = f"{getattr(hook, '__module__', '')}.{getattr(hook, '__qualname__', '')}"
    return name.startswith("peft.") or (name.startswith("transformers.") and "enable_input_require_grads" in name)


def storage_address(tensor: Tensor) -> int | None:
    """Return the address of a tensor's storage; None if it has none (on the meta device, or a class like torchao's)."""
    try:
        return None if tensor.is_meta else tensor.untyped_storage().data_ptr()
    except RuntimeError:  # a subclass that holds its numbers in other tensors
        return None


def shared_storages(model: nn.Module) -> set[int]:
    """Return the addresses of storages that parameters of several modules share (tied weights)."""
    holders: dict[int, set[int]] = defaultdict(set)
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            address = storage_address(parameter)
            if address is not None:
                holders[address].add(id(module))
    return {storage for storage, modules in holders.items() if len(modules) > 1}
