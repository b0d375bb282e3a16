"""Methods of a wrapped Hugging Face model that would be wrong under masks, or refused by a raw error halfway."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

from peft import PeftModel
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor, nn

from cramer_peft.errors import MergeError, UnsupportedError
from cramer_peft.layers.masked_layer import RequestMaskLayer


class MethodOfModel:
    """A method set on one model object, in place of its class's; copies and pickles of the model keep it."""

    name: str

    def __init__(self, model: nn.Module) -> None:
        self._model = model

    def __reduce__(self) -> tuple[type[MethodOfModel], tuple[nn.Module]]:
        return type(self), (self._model,)

    def original(self, *args: Any, **kwargs: Any) -> Any:
        """Call the class's method."""
        return getattr(type(self._model), self.name)(self._model, *args, **kwargs)


class SaveOwnWeights(MethodOfModel):
    """Saves the frozen weights under their own names, which the masks lengthen."""

    name = "save_pretrained"

    def __call__(self, save_directory: Any, *args: Any, state_dict: Any = None, **kwargs: Any) -> Any:
        kind = type(self._model).__name__
        if any(layer.merged_adapters for _, layer in _layers(self._model) if isinstance(layer, RequestMaskLayer)):
            raise MergeError(f"{kind} holds a merged request: call unmerge() or merge_and_unload() before saving it.")
        # These write the tensors of another PEFT method's adapters alone, by the adapters' names.
        adapters = isinstance(self._model, PeftModel) or getattr(self._model, "_hf_peft_config_loaded", False)
        if not adapters and "state_dict" not in inspect.signature(getattr(type(self._model), self.name)).parameters:
            raise UnsupportedError(
                f"{kind}.save_pretrained takes no state_dict, so that the masked layers would be saved under names "
                "that nobody can load. Save the adapter by the handle's save_pretrained, or unload() the masks first."
            )
        state = self._model.state_dict() if state_dict is None else state_dict
        return self.original(save_directory, *args, state_dict=own_state(self._model, state, adapters), **kwargs)


class ResizeUnmasked(MethodOfModel):
    """Resizes the token embeddings if neither they nor the head are masked or trained as a whole."""

    name = "resize_token_embeddings"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        for find in ("get_input_embeddings", "get_output_embeddings"):
            layer = getattr(self._model, find)()
            if isinstance(layer, (RequestMaskLayer, AuxiliaryTrainingWrapper)):
                name = next(name for name, module in self._model.named_modules() if module is layer)
                raise UnsupportedError(
                    f"module {name!r} cannot be resized while an adapter is on it, whose generator was made for its "
                    "width. Resize the model first: unload(), resize_token_embeddings(…), and inject again."
                )
        return self.original(*args, **kwargs)


def own_state(model: nn.Module, state: dict[str, Tensor], masks_alone: bool = False) -> dict[str, Tensor]:
    """Return ``state`` of a wrapped model with the names and tensors that it has without its adapters.

    With ``masks_alone`` the modules that PEFT trains whole keep theirs.
    """
    own = dict(state)
    for name, layer in _layers(model):
        if masks_alone and not isinstance(layer, RequestMaskLayer):
            continue
        inner = "base_layer" if isinstance(layer, RequestMaskLayer) else "original_module"
        for key in [key for key in own if key.startswith(f"{name}.")]:
            value = own.pop(key)
            if key.startswith(f"{name}.{inner}."):
                own[f"{name}.{key.removeprefix(f'{name}.{inner}.')}"] = value
    return own


def set_pretrained_methods(model: nn.Module) -> list[tuple[nn.Module, str]]:
    """Set these methods on ``model`` and on models inside it that have masks; returns where, to be deleted again."""
    changed = []
    for module in model.modules():
        for method in (SaveOwnWeights, ResizeUnmasked):
            has_it = callable(getattr(type(module), method.name, None)) and method.name not in vars(module)
            if has_it and any(True for _ in _layers(module)):
                setattr(module, method.name, method(module))
                changed.append((module, method.name))
    return changed


def _layers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for name, module in model.named_modules():
        if isinstance(module, (RequestMaskLayer, AuxiliaryTrainingWrapper)):
            yield name, module
