"""Gradient checkpoints run layers a second time inside backward: what may be in force there.

A request ends with its call or its block, so that a recompute would run under other gates, and torch would not
notice. Here is noted what has been in force in calls with gradients. A recompute is let through where nothing else
than what it finds can have been in force in its forward, or where it brought its own gates with it.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

REQUEST, DEFAULT, NOTHING = "a request", "the stored default request", "nothing"


def in_backward() -> bool:
    """Whether this runs inside backward, as a checkpoint's recompute does."""
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


def unseen_by_checkpoints() -> AbstractContextManager[object]:
    """Hides what is saved for backward inside from the checkpoint around it.

    A non-reentrant checkpoint expects its recompute to save the same tensors as its forward did. The gates of a
    stored default request are made inside the region in one and outside in the other, by turns.
    """
    if torch.compiler.is_compiling() or not _hooks_may_be_set():
        return nullcontext()
    # detach: a hook that returns the very tensor would keep an output alive by its own graph.
    return torch.autograd.graph.saved_tensors_hooks(torch.Tensor.detach, lambda value: value)


def _hooks_may_be_set() -> bool:
    top = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", None)
    return top is None or top(True) is not None  # torch 2.6 cannot tell


class Seen:
    """What has been in force in calls with gradients, since the model was made or copied.

    It is never forgotten, since nobody can tell whether a backward is still to come.
    """

    def __init__(self) -> None:
        self._kinds: set[str] = set()

    def note(self, kind: str) -> None:
        """Note that ``kind`` is in force, if gradients are on."""
        if not torch.compiler.is_compiling() and torch.is_grad_enabled():
            self._kinds.add(kind)

    def only(self, kind: str) -> bool:
        """Whether nothing else than ``kind`` has been in force."""
        return self._kinds <= {kind}
