"""Keeps the running statistics of a frozen model as they are while its masks are trained.

Batch normalisation and spectral normalisation change their buffers in each forward in training mode. The frozen model
would drift, although none of its parameters is trained. Modules that do so stay in eval mode, whoever calls
``train()``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.utils.parametrizations import _SpectralNorm
from torch.nn.utils.spectral_norm import SpectralNorm

from cramer_peft.injection.pretrained_methods import MethodOfModel


class StayInEval(MethodOfModel):
    """The ``train`` of a module that stays in eval mode."""

    name = "train"

    def __call__(self, mode: bool = True) -> nn.Module:
        return self._model


def freeze_statistics(model: nn.Module) -> list[tuple[nn.Module, str]]:
    """Put the modules that keep running statistics into eval mode, for good; returns where, to be deleted again."""
    changed = []
    for module in _modules_with_statistics(model):
        if "train" not in vars(module):
            module.training = False
            module.train = StayInEval(module)  # type: ignore[method-assign, assignment]
            changed.append((module, "train"))
    return changed


def statistics_kept(model: nn.Module) -> AbstractContextManager[None]:
    """Let the block read weights: in training mode, that of spectral normalisation moves its statistics when read."""
    modules = _modules_with_statistics(model)
    return _in_eval(modules) if modules else nullcontext()


@contextmanager
def _in_eval(modules: list[nn.Module]) -> Iterator[None]:
    modes = [(module, module.training) for module in modules]
    for module in modules:
        module.training = False
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def _modules_with_statistics(model: nn.Module) -> list[nn.Module]:
    found: list[nn.Module] = []
    trained_whole: tuple[str, ...] = ()  # modules_to_save: their statistics are trained and saved with the adapter
    for name, module in model.named_modules():
        if isinstance(module, AuxiliaryTrainingWrapper):
            trained_whole += (f"{name}.",)
        if name.startswith(trained_whole):
            continue
        keeps = isinstance(module, _NormBase) and module.track_running_stats
        hooks = module._forward_pre_hooks
        iterates = len(hooks) > 0 and any(isinstance(hook, SpectralNorm) for hook in hooks.values())
        if keeps or iterates or isinstance(module, _SpectralNorm):
            found.append(module)
    return found
