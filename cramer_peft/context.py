"""Request context: the masks that apply in the current call.

Each adapted model has one :class:`RequestContext`. A caller puts a request's masks into it for a block or a call, and
each masked layer asks it one question, :meth:`RequestContext.masks_for`.

The current masks are kept twice, because no single place serves every way to run a model. A plain attribute would
mix up the requests of threads. A ContextVar keeps threads and ``await`` apart, so eager code reads one. torch.compile
cannot trace it, and would break the graph at every layer; so compiled code reads a thread-local object, and stays one
graph. The price is that a compiled call must not await inside a request's block.
"""

from __future__ import annotations

import copy
import threading
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from cramer_peft.errors import CheckpointingError, MergeError, RequestError
from cramer_peft.masks import Mask

BASE = "__base__"  # PEFT's name, in adapter_names, for rows of the frozen model

# ---------------------------------------------------------------- masks of a request


class RequestMasks(ABC):
    """The masks of some requests, by entry, as the context holds them for a call."""

    for_recompute: bool  # True if a recompute inside backward may use them: they are those of its forward
    is_default: bool = False  # True if the caller gave no request, and they are those of the stored default request
    given: tuple[Any, Any] | None = None  # the requests and strength to make them of; None if they are made already

    @abstractmethod
    def get(self, entry: str) -> Mask | None:
        """Return the mask of one entry, or None if it stays frozen."""

    @abstractmethod
    def for_call(self) -> FixedMasks:
        """Return the masks to use in one call of the root module."""


class FixedMasks(RequestMasks):
    """Masks that are made already."""

    def __init__(self, masks: Mapping[str, Mask], for_recompute: bool = False, is_default: bool = False) -> None:
        self.masks = masks
        self.for_recompute = for_recompute
        self.is_default = is_default

    def get(self, entry: str) -> Mask | None:
        return self.masks.get(entry)

    def for_call(self) -> FixedMasks:
        return self


class NoMask(FixedMasks):
    """The masks of a call that explicitly has no request, so that not even a stored default request applies.

    It is a class, because torch 2.7 compiles a comparison with a single object without a guard on it.
    """

    def __init__(self, for_recompute: bool = False) -> None:
        super().__init__({}, for_recompute)


NO_MASK = NoMask()
NO_MASK_IN_RECOMPUTE = NoMask(for_recompute=True)


class LazyMasks(RequestMasks):
    """Masks that are made when a layer first needs them, anew for each forward.

    They are not kept for the next forward: a second backward through kept masks would fail, and nothing tells for
    certain that a parameter has changed since (an exchange of ``.data`` moves no version counter). A call of the root
    takes a set of its own (:meth:`for_call`). A model that is entered by another method has no such call: there a set
    ends when a layer asks for the second time, when backward has gone through it, or when gradients or the training
    mode are switched.

    ``model`` is the wrapped model, for its training flag: people call ``eval()`` on it, and not on the handle.
    ``check`` raises if the adapter is gone. ``rows`` is None if one request serves a batch of any size.
    """

    def __init__(
        self,
        make: Callable[[], dict[str, Mask]],
        model: nn.Module,
        check: Callable[[], None],
        device: torch.device,
        draws_noise: bool = False,
        rows: int | None = None,
        adapters: Sequence[str] = (),
    ) -> None:
        self.make, self.adapters = make, adapters
        self.device = device
        self.rows = rows
        self.for_recompute = in_backward()  # made inside backward, so meant for the recompute
        self._model = model
        self.check = check
        self._draws_noise = draws_noise
        self._current: dict[str, Mask] | None = None
        self._current_for: tuple[bool, ...] = ()
        self._used: set[str] = set()

    @classmethod
    def of_several(cls, make: Callable[[], dict[str, Mask]], masks: Sequence[LazyMasks]) -> LazyMasks:
        """Return the masks that ``make`` composes of those of several adapters."""

        def check() -> None:
            for each in masks:
                each.check()

        first, draws_noise = masks[0], any(each._draws_noise for each in masks)
        new = cls(make, first._model, check, first.device, draws_noise, adapters=[n for m in masks for n in m.adapters])
        new.is_default = all(each.is_default for each in masks)
        new.for_recompute = all(each.for_recompute for each in masks)
        return new

    def mark_default(self) -> None:
        """Mark the masks as the stored default request's; a recompute finds the same, unless they draw new noise."""
        self.is_default = True
        self.for_recompute = not (self._draws_noise and self._model.training)

    def get(self, entry: str) -> Mask | None:
        if not torch.compiler.is_compiling():
            self.check()
        mode = (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), self._model.training)
        if self._current is None or entry in self._used or mode != self._current_for:
            self._current, self._current_for, self._used = self.make(), mode, set()
            self._end_after_backward(self._current)
        self._used.add(entry)
        return self._current.get(entry)

    def for_call(self) -> FixedMasks:
        if not torch.compiler.is_compiling():
            self.check()
        return FixedMasks(self.make(), self.for_recompute, self.is_default)

    def _end_after_backward(self, masks: dict[str, Mask]) -> None:
        if torch.compiler.is_compiling():
            return

        def end(_: Tensor) -> None:
            if self._current is masks:
                self._current = None

        for mask in masks.values():
            for value in vars(mask).values():
                if isinstance(value, Tensor) and value.requires_grad:
                    value.register_hook(end)


# ---------------------------------------------------------------- recomputation in backward

# Gradient checkpointing runs layers a second time inside backward. By then the call or the block of the request has
# usually ended, so the layers would use other masks than in the forward, and torch would not notice. The context
# therefore remembers what kinds of calls with gradients it has seen. It allows a recompute only if the masks that it
# finds must be those of the forward: no other kind of call was seen, or `checkpoint_contexts` has brought them back.
_REQUEST, _DEFAULT, _NOTHING = "a request", "the stored default request", "nothing"


def in_backward() -> bool:
    """Return True inside backward, where a checkpoint's recompute runs."""
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


def hidden_from_checkpoints() -> AbstractContextManager[object]:
    """Hide tensors that are saved for backward inside the block from a checkpoint around it.

    A non-reentrant checkpoint expects its recompute to save the same tensors as its forward. The masks of a stored
    default request may be made inside the checkpoint in one of the two, and outside in the other.
    """
    if torch.compiler.is_compiling():
        return nullcontext()
    top = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", None)  # torch 2.6 does not have it
    if top is not None and top(True) is None:
        return nullcontext()
    # Detached, because an output that its own graph holds would never be freed.
    return torch.autograd.graph.saved_tensors_hooks(torch.Tensor.detach, lambda value: value)


# ---------------------------------------------------------------- the context


@dataclass(frozen=True)
class RowNames:
    """The adapter of each row of a batch, as given by ``adapter_names``."""

    names: tuple[str, ...]
    beams: int = 1  # rows that ``generate`` makes of each, side by side

    def repeated(self, times: int | None = None) -> list[str]:
        """Return the names with each ``times`` side by side; None: once for each beam."""
        return [name for name in self.names for _ in range(self.beams if times is None else times)]


def as_names(names: Sequence[str]) -> tuple[str, ...]:
    """Return ``adapter_names`` as a tuple, or raise :class:`RequestError` if it is no sequence of names."""
    if isinstance(names, str) or not hasattr(names, "__iter__"):
        raise RequestError(f"adapter_names must be a list with one name for each row, found {names!r}.")
    return tuple(names)


# The open blocks of each model, the innermost last; each block is a tuple of its own, with its masks or names inside.
_Blocks = Mapping["RequestContext", tuple[tuple[Any], ...]]
# One variable for all models: context variables are never freed, so none is made per model.
_MASKS: ContextVar[_Blocks] = ContextVar("cramer_peft_masks", default=MappingProxyType({}))
# PEFT removes adapter_names= from a call before the model sees it, and enters a context manager with it instead.
_NAMES: ContextVar[_Blocks] = ContextVar("cramer_peft_names", default=MappingProxyType({}))


def _open(variable: ContextVar[_Blocks], context: RequestContext, value: RequestMasks | RowNames) -> tuple[Any]:
    block, blocks = (value,), variable.get()
    variable.set({**blocks, context: (*blocks.get(context, ()), block)})
    return block


def _close(variable: ContextVar[_Blocks], context: RequestContext, block: tuple[Any], failed: bool) -> None:
    """Remove a block. Not by a token, because generators that hold blocks open may end in any order, or elsewhere.

    Raises:
        RequestError: If the block was not the innermost one here; only a warning if an error ends the block.
    """
    blocks = dict(variable.get())
    open_here = blocks.pop(context, ())
    innermost = bool(open_here) and open_here[-1] is block
    rest = open_here[:-1] if innermost else tuple(each for each in open_here if each is not block)
    if rest:
        blocks[context] = rest
    variable.set(blocks)
    if not innermost:
        message = (
            "a request's block ended while another one was open inside it, or in another context than it was "
            "opened in, as generators do that yield inside a block. Calls in between may have followed another "
            "request: give request= at each call instead."
        )
        if not failed:
            raise RequestError(message)
        warnings.warn(message, RuntimeWarning, stacklevel=2)


class _CompiledState:
    """The masks that compiled code of one thread reads."""

    def __init__(self) -> None:
        self.masks: RequestMasks | None = None
        # Stays True when a graph break lets a layer run eagerly in the middle of a compiled call.
        self.in_compiled_call = False


class _Local(threading.local):
    def __init__(self) -> None:
        # Made before the first use in each thread: torch.compile would recompile if the attribute appeared later. It is
        # an object, because attributes that compiled code sets on a thread-local itself are lost at a graph break.
        self.compiled = _CompiledState()
        # The number of a backward, and the default request's masks for its recomputes.
        self.recomputing: tuple[int, RequestMasks | None] = (-1, None)


_COPIED = ("default", "enabled", "activated", "generators")


class RequestContext:
    """Tells the layers of one adapted model which masks apply in the current call."""

    def __init__(self) -> None:
        self._local = _Local()
        self._seen: set[str] = set()  # never emptied, because any earlier call may still have its backward
        self.default: Callable[[], RequestMasks | None] | None = None  # gives the stored default request's masks
        self.enabled = True
        self.activated: Callable[[list[str]], None] | None = None  # called with the names, at set_adapter
        self.generators = nn.ModuleDict()  # by adapter, for reports on a layer

    def masks_for(self, module_name: str, entries: Mapping[str, str], disabled: bool) -> dict[str, Mask]:
        """Return the masks that apply to a layer in the current call, by part; empty if it stays frozen.

        ``entries`` has the entry of each of its parts.

        Raises:
            CheckpointingError: In a recompute inside backward that may have other masks than its forward.
        """
        masks = None if disabled else self.current()
        if not torch.compiler.is_compiling():
            if torch._C._current_graph_task_id() == -1:
                self.note(masks)
            else:
                self._check_recompute(masks, module_name)
        found: dict[str, Mask] = {}
        if masks is not None:
            for part, entry in entries.items():
                mask = masks.get(entry)
                if mask is not None:
                    found[part] = mask
        return found

    def stated(self) -> RequestMasks | None:
        """Return the masks set for the current call, a :class:`NoMask` if explicitly none, None if nothing was set."""
        if torch.compiler.is_compiling() or self._local.compiled.in_compiled_call:
            return self._local.compiled.masks
        blocks = _MASKS.get().get(self)
        return blocks[-1][0] if blocks else None

    def current(self) -> RequestMasks | None:
        """Return the masks that apply in the current call, those of a stored default included; None without any."""
        masks = self.stated()
        if masks is None and self.default is not None:
            masks = self._default_in_backward(self.default) if in_backward() else self.default()
        return None if isinstance(masks, NoMask) else masks

    def has_fixed_masks(self) -> bool:
        """Return True inside a call whose masks, or whose lack of masks, were decided by its own inputs."""
        return isinstance(self.stated(), FixedMasks)

    def check_no_request(self, before: str) -> None:
        """Check that no request's block is open here."""
        if not isinstance(self.stated(), (NoMask, type(None))):
            raise MergeError(f"a request's block is open here, whose masks would stay: leave it before {before}.")

    def is_masking(self) -> bool:
        """Return True if a layer that is called here will be masked."""
        return self.enabled and self.current() is not None

    def is_masking_entry(self, entry: str, adapters: Container[str]) -> bool:
        """Return True if an entry that ``adapters`` mask is masked here; no masks are made to find out."""
        masks = self.current() if self.enabled else None
        found = masks.adapters if isinstance(masks, LazyMasks) else ()
        return any(name in adapters for name in found) or (isinstance(masks, FixedMasks) and entry in masks.masks)

    @contextmanager
    def using(self, masks: RequestMasks | None, note: bool = True) -> Iterator[None]:
        """Make ``masks`` apply inside the block; None: no request, whatever applies outside.

        ``note`` is False inside a checkpoint's contexts, whose masks come back in the recompute.
        """
        if note:
            self.note(masks)
        stated = NO_MASK if masks is None else masks
        if torch.compiler.is_compiling():
            before = self.enter_compiled_call(stated)
            try:
                yield
            finally:
                self.leave_compiled_call(before)
            return
        compiled = self._local.compiled
        outer, compiled.masks = compiled.masks, stated
        block, failed = _open(_MASKS, self, stated), True
        try:
            yield
            failed = False
        finally:
            try:
                _close(_MASKS, self, block, failed)
            finally:
                # Not `outer`: interleaved blocks on one thread (asyncio) may end in any order.
                blocks = _MASKS.get().get(self)
                compiled.masks = outer if compiled.in_compiled_call else blocks[-1][0] if blocks else None

    def enter_compiled_call(self, masks: RequestMasks) -> tuple[RequestMasks | None, bool]:
        """Make ``masks`` apply on this thread for a compiled call; returns the earlier state, to restore it later."""
        compiled = self._local.compiled
        outer = (compiled.masks, compiled.in_compiled_call)
        compiled.masks, compiled.in_compiled_call = masks, True
        return outer

    def leave_compiled_call(self, outer: tuple[RequestMasks | None, bool]) -> None:
        """Restore the state that :meth:`enter_compiled_call` returned."""
        self._local.compiled.masks, self._local.compiled.in_compiled_call = outer

    @contextmanager
    def naming_rows(self, names: Sequence[str], beams: int = 1) -> Iterator[None]:
        """Give each row of the calls inside the block its own adapter."""
        block, failed = _open(_NAMES, self, RowNames(as_names(names), beams)), True
        try:
            yield
            failed = False
        finally:
            _close(_NAMES, self, block, failed)

    def row_names(self) -> RowNames | None:
        """Return the adapter of each row, as given for the current call, or None."""
        blocks = None if torch.compiler.is_compiling() else _NAMES.get().get(self)
        return blocks[-1][0] if blocks else None

    # ---------------------------------------------------------------- recomputation

    def note(self, masks: RequestMasks | None) -> None:
        """Remember the kind of a call with gradients, for recomputes in its backward."""
        if torch.compiler.is_compiling() or not torch.is_grad_enabled():
            return
        if masks is not None and not isinstance(masks, NoMask):
            self._seen.add(_DEFAULT if masks.is_default else _REQUEST)
        elif self.default is not None:
            self._seen.add(_NOTHING)

    def _default_in_backward(self, default: Callable[[], RequestMasks | None]) -> RequestMasks | None:
        """Return the default request's masks, made once for all recomputes of one backward."""
        backward = torch._C._current_graph_task_id()
        if self._local.recomputing[0] != backward:
            self._local.recomputing = (backward, default())
        return self._local.recomputing[1]

    def _check_recompute(self, masks: RequestMasks | None, module_name: str) -> None:
        if not self._allows_recompute(masks):
            raise CheckpointingError(
                f"module {module_name!r} was run again inside backward: gradient checkpointing recomputes it when "
                "its request has ended. Give non-reentrant checkpoints the context that brings it back "
                "(model.gradient_checkpointing_enable({'use_reentrant': False, 'context_fn': "
                "masks.checkpoint_contexts})), or turn gradient checkpointing off while training request masks "
                "(model.gradient_checkpointing_disable(), TrainingArguments(gradient_checkpointing=False))."
            )

    def _allows_recompute(self, masks: RequestMasks | None) -> bool:
        if masks is None:
            stated = self.stated()
            if isinstance(stated, NoMask) and stated.for_recompute:
                return True
            # With a stored default, finding none means that masks were turned off here; the forward may have had them.
            return self.default is None and self._seen <= {_NOTHING}
        return masks.for_recompute and (not masks.is_default or self._seen <= {_DEFAULT})

    # ---------------------------------------------------------------- copies

    def __deepcopy__(self, memo: dict[int, Any]) -> RequestContext:
        new = memo[id(self)] = RequestContext()  # a copied model starts without any request
        new.__setstate__({name: copy.deepcopy(getattr(self, name), memo) for name in _COPIED})
        return new

    def __reduce__(self) -> tuple[type[RequestContext], tuple[()], dict[str, Any]]:
        # Thread-locals cannot be pickled, and a request is not part of a model.
        return RequestContext, (), {name: getattr(self, name) for name in _COPIED}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
