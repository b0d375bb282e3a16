"""Runs a frozen module's hooks around its masked forward.

A mask acts on the weight, so it belongs where the weight is used: after the module's forward pre-hooks and before its
forward hooks. Then a request gives what its merged weight gives. ``nn.Module.__call__`` cannot do that: it would run
the module's own forward, and to exchange that for one call would race between threads.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

from torch import nn
from torch.nn.modules import module as torch_module
from torch.utils.hooks import BackwardHook


def call_with_hooks(module: nn.Module, forward: Callable[..., Any], args: Any, kwargs: dict[str, Any]) -> Any:
    """Run ``forward`` as ``module(*args, **kwargs)`` would run the module's own, with the hooks of the module."""
    after = [*torch_module._global_forward_hooks.items(), *module._forward_hooks.items()]
    called: set[int] = set()
    try:
        args, kwargs = _before(module, args, kwargs)
        backward = [*torch_module._global_backward_hooks.values(), *module._backward_hooks.values()]
        before = [*torch_module._global_backward_pre_hooks.values(), *module._backward_pre_hooks.values()]
        watch = BackwardHook(module, backward, before) if backward or before else None
        if watch is not None:
            args = watch.setup_input_hook(args)
        result = _with_weights(module, forward, args, kwargs)
        for number, hook in after:
            called.add(number)
            changed = _call_after(module, number, hook, args, kwargs, result)
            result = result if changed is None else changed
        return result if watch is None else watch.setup_output_hook(result)
    except Exception:
        always = {**torch_module._global_forward_hooks_always_called, **module._forward_hooks_always_called}
        for number, hook in after:
            if number in always and number not in called:
                with suppress(Exception):  # as in torch, the first error counts
                    _call_after(module, number, hook, args, kwargs, None)
        raise


def _before(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    for number, hook in (*torch_module._global_forward_pre_hooks.items(), *module._forward_pre_hooks.items()):
        if number in module._forward_pre_hooks_with_kwargs:
            changed = hook(module, args, kwargs)
            args, kwargs = (args, kwargs) if changed is None else changed
        else:
            changed = hook(module, args)
            args = args if changed is None else changed if isinstance(changed, tuple) else (changed,)
    return args, kwargs


def _with_weights(module: nn.Module, forward: Callable[..., Any], args: Any, kwargs: dict[str, Any]) -> Any:
    """Run ``forward`` while the weights are there: accelerate brings offloaded ones for a call of ``module`` alone."""
    hook: Any = vars(module).get("_hf_hook")
    if hook is None:
        return forward(*args, **kwargs)
    args, kwargs = hook.pre_forward(module, *args, **kwargs)
    return hook.post_forward(module, forward(*args, **kwargs))


def _call_after(module: nn.Module, number: int, hook: Any, args: Any, kwargs: dict[str, Any], result: Any) -> Any:
    with_kwargs = number in module._forward_hooks_with_kwargs or (
        number in torch_module._global_forward_hooks_with_kwargs
    )
    return hook(module, args, kwargs, result) if with_kwargs else hook(module, args, result)
