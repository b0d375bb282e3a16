"""Hostile models: other people's ways to build, wrap, hook and change a module.

A new model is one entry of ``ZOO``: how it is made, what is masked, and what is refused, with the words of the error.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from accelerate import cpu_offload
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm
from torch.utils.checkpoint import checkpoint
from transformers.pytorch_utils import Conv1D

ROWS, LENGTH, WIDTH, HIDDEN = 3, 4, 8, 12


# ---------------------------------------------------------------- models


class Block(nn.Module):
    """Two linear layers, with something between them; most animals are one of these with a change."""

    def __init__(self, hidden: int = HIDDEN, between: nn.Module | None = None) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(WIDTH, hidden), nn.Linear(hidden, WIDTH)
        self.between = nn.Tanh() if between is None else between

    def forward(self, x: Tensor) -> Tensor:
        return x + self.b(self.between(self.a(x)))


class Around(nn.Module):
    """A model that hands its input to an inner one."""

    def __init__(self, inner: nn.Module, call: Callable[[nn.Module, Tensor], Any] = lambda inner, x: inner(x)) -> None:
        super().__init__()
        self.inner, self._call = inner, call

    def forward(self, x: Tensor) -> Any:
        return self._call(self.inner, x)


class Routed(nn.Module):
    """A mixture of experts: each gets the tokens that are sent to it, of whichever row."""

    def __init__(self) -> None:
        super().__init__()
        self.router, self.experts = nn.Linear(WIDTH, 2), nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.reshape(-1, WIDTH)
        chosen, out = self.router(tokens).argmax(-1), torch.zeros_like(tokens)
        for number, expert in enumerate(self.experts):
            here = (chosen == number).nonzero()[:, 0]
            out = out.index_add(0, here, expert(tokens[here]))
        return out.reshape(x.shape)


class Sorting(Block):
    """Sorts the rows before its layers, and puts them back."""

    def forward(self, x: Tensor) -> Tensor:
        order = x.mean((1, 2)).argsort()
        return super().forward(x[order])[order.argsort()]


class Selective(nn.Module):
    """Multiplies by a child's weight itself, as Mamba does with ``dt_proj``."""

    def __init__(self) -> None:
        super().__init__()
        self.project, self.step = nn.Linear(WIDTH, 4), nn.Linear(4, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return x * nn.functional.softplus(self.project(x) @ self.step.weight.T + self.step.bias)


class TiedScores(nn.Module):
    """Scores all items by the embedding that it also looks histories up in."""

    def __init__(self) -> None:
        super().__init__()
        self.items, self.layer = nn.Embedding(20, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, ids: Tensor) -> Tensor:
        return torch.tanh(self.layer(self.items(ids))) @ self.items.weight.T


class Named(nn.Module):
    """Calls layers by keyword, by their forward, and from a list."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.list = nn.Linear(WIDTH, WIDTH), nn.ModuleList([nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)])

    def forward(self, x: Tensor) -> dict[str, Any]:
        hidden = torch.tanh(self.a(input=x))
        for layer in self.list[:1]:
            hidden = layer.forward(hidden)
        return {"scores": (self.list[-1](hidden), None)}


class Answer(NamedTuple):
    scores: Tensor
    note: str


class Answering(Block):
    """Returns scores in a named tuple; another method returns them alone."""

    def score(self, x: Tensor) -> Tensor:
        return super().forward(x)

    def forward(self, x: Tensor) -> Any:
        return Answer(super().forward(x), "scores")


class OwnLinear(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) @ self.weight.T @ self.weight


class Quantised(Tensor):
    """Numbers of another kind behind a tensor's face."""


class Images(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv1d(LENGTH, 6, 3, padding=1), nn.Conv2d(1, 2, 3, padding=1, groups=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.two(torch.tanh(self.one(x))[:, None])


# ---------------------------------------------------------------- the table


@dataclass(frozen=True)
class Animal:
    """One model of the zoo.

    ``refuses`` has, by step (inject, rows, merge, train), the words that the error's message must hold, the name of the
    module first of all. ``after`` is what people do to a model that has masks; ``around`` applies throughout.
    """

    make: Callable[[], nn.Module] = Block
    targets: list[str] | str | None = field(default_factory=lambda: ["a", "b"])
    refuses: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    after: Callable[[nn.Module], object] = lambda model: None
    around: Callable[[], AbstractContextManager[object]] = nullcontext
    ids: bool = False
    dtype: torch.dtype = torch.float32
    exact: bool = True  # False: torch computes the frozen model by another kernel than the requested one
    sequence_first: bool = False


def block(change: Callable[[Any], object], **options: Any) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        model = Block(**options)
        change(model)
        return model

    return make


def tie(model: Block) -> None:
    model.b.weight = model.a.weight


def twice(model: Block) -> None:
    model.b = model.a


def with_quantised_weight() -> nn.Module:
    model = Block()
    model.a.weight = nn.Parameter(model.a.weight.detach().as_subclass(Quantised), requires_grad=False)
    return model


def quantised_by_torch() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.ao.quantization.quantize_dynamic(Block().eval(), {nn.Linear})


def in_jit(how: str) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        inner = Block().eval()
        return Around(torch.jit.script(inner) if how == "script" else torch.jit.trace(inner, torch.zeros(1, 4, WIDTH)))


def compiled(module: nn.Module) -> Any:
    return torch.compile(module, backend="eager")


def lora(model: nn.Module, name: str = "default") -> nn.Module:
    return get_peft_model(model, LoraConfig(target_modules=["a"], r=2, init_lora_weights=False), adapter_name=name)


def offload(model: nn.Module) -> nn.Module:
    return cpu_offload(model, execution_device=torch.device("cpu"))


def stateless(inner: nn.Module, x: Tensor) -> Any:
    return functional_call(inner, dict(inner.named_parameters()), (x,))


def attend(inner: nn.Module, x: Tensor) -> Any:
    return inner(x, x, x)


def checkpointed(inner: nn.Module, x: Tensor) -> Any:
    return checkpoint(inner, x, use_reentrant=False)


def encoder(batch_first: bool = True) -> nn.Module:
    return nn.TransformerEncoder(
        nn.TransformerEncoderLayer(WIDTH, 2, HIDDEN, batch_first=batch_first), 2, enable_nested_tensor=False
    )


@contextmanager
def global_hooks() -> Iterator[None]:
    def is_a(module: nn.Module) -> bool:
        return isinstance(module, nn.Linear) and module.out_features == HIDDEN

    handles = [
        register_module_forward_pre_hook(lambda module, args: (args[0] + 1,) if is_a(module) else None),
        register_module_forward_hook(lambda module, args, out: out * 2 if is_a(module) else None),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def plus_one(module: nn.Module, args: Any, kwargs: Any) -> Any:
    return tuple(value + 1 for value in args), {key: value + 1 for key, value in kwargs.items()}


ZOO = {
    "plain": Animal(),
    "changed in place": Animal(
        lambda: Block(between=nn.ReLU(inplace=True)),
    ),
    "double": Animal(dtype=torch.float64),
    "bfloat16": Animal(dtype=torch.bfloat16),
    # rows
    "routed": Animal(Routed, r"experts\.\d", {"rows": r"experts\.\d"}),
    "sorting": Animal(Sorting, refuses={"rows": "another request for row"}),
    "sequence first": Animal(options={"batch_dim": 1}, sequence_first=True),
    # weights
    "selective": Animal(Selective, ["project", "step"], {"inject": "'step'"}),
    "selective, without the child": Animal(Selective, ["project"]),
    "weight norm": Animal(block(lambda m: parametrizations.weight_norm(m.a)), refuses={"merge": "'a'"}),
    "weight norm by hooks": Animal(block(lambda m: weight_norm(m.a)), refuses={"merge": "'a'"}),
    "spectral norm": Animal(
        block(lambda m: parametrizations.spectral_norm(m.a)),
        refuses={"merge": "'a'"},
    ),
    "spectral norm by hooks": Animal(block(lambda m: spectral_norm(m.a)), refuses={"merge": "'a'"}),
    "pruned": Animal(block(lambda m: prune.random_unstructured(m.b, "weight", 0.3)), refuses={"merge": "'b'"}),
    "tied": Animal(block(tie, hidden=WIDTH), refuses={"merge": "'a'"}),
    "one module twice": Animal(block(twice, hidden=WIDTH)),
    "read embedding": Animal(TiedScores, ["items", "layer"], {"merge": "'items'"}, ids=True),
    "quantised": Animal(with_quantised_weight, refuses={"inject": "'a'.*[qQ]uantised"}),
    "quantised by torch": Animal(quantised_by_torch, refuses={"inject": "'a'"}),
    "lazy": Animal(block(lambda m: setattr(m, "a", nn.LazyLinear(HIDDEN))), refuses={"inject": "'a'"}),
    "own forward": Animal(block(lambda m: setattr(m, "a", OwnLinear(WIDTH, HIDDEN))), refuses={"inject": "'a'"}),
    "offloaded": Animal(lambda: offload(Block()), refuses={"inject": "'a'.*offloaded"}),
    "offloaded afterwards": Animal(
        after=offload,
        refuses={"merge": "'a'.*offloaded"},
    ),
    # outputs
    "output of the root": Animal(TiedScores, None, ids=True, options={"target_outputs": {"": {"features": 20}}}),
    "a field of an output": Animal(
        Answering, None, options={"target_outputs": {"": {"field": "scores", "features": WIDTH}}}
    ),
    "output of a method": Animal(
        lambda: Around(Answering(), lambda inner, x: inner.score(x)),
        None,
        options={"target_outputs": {"inner.score": {"features": WIDTH}}},
    ),
    "output of a module twice": Animal(
        lambda: Around(Block(), lambda inner, x: inner(inner(x))),
        None,
        options={"target_outputs": {"inner": {"features": WIDTH}}},
    ),
    # statistics
    "batch norm": Animal(lambda: Block(between=nn.BatchNorm1d(LENGTH))),
    "instance norm": Animal(lambda: Block(between=nn.InstanceNorm1d(LENGTH, track_running_stats=True))),
    # hooks
    "pre-hook": Animal(block(lambda m: m.a.register_forward_pre_hook(lambda m, args: args[0] + 1))),
    "pre-hook with keywords": Animal(block(lambda m: m.a.register_forward_pre_hook(plus_one, with_kwargs=True))),
    "hook": Animal(block(lambda m: m.a.register_forward_hook(lambda m, args, out: out * 2))),
    "hook with keywords": Animal(
        block(
            lambda m: m.b.register_forward_hook(
                lambda m, args, kwargs, out: out + args[0][..., :WIDTH], with_kwargs=True
            )
        )
    ),
    "backward hook": Animal(block(lambda m: m.a.register_full_backward_hook(lambda m, given, out: None))),
    "hooks on the root": Animal(block(lambda m: m.register_forward_hook(lambda m, args, out: out * 2))),
    "global hooks": Animal(around=global_hooks),
    # compiled, scripted, traced, called in unusual ways
    "compiled": Animal(block(lambda m: m.compile(backend="eager"))),
    "compiled inside": Animal(lambda: Around(compiled(Block()))),
    "compiled afterwards": Animal(after=lambda model: model.compile(backend="eager")),
    "compiled layer": Animal(block(lambda m: setattr(m, "a", compiled(m.a))), refuses={"inject": "'a'"}),
    "scripted": Animal(lambda: in_jit("script"), refuses={"inject": r"'inner\.a'"}),
    "traced": Animal(lambda: in_jit("trace"), refuses={"inject": r"'inner\.a'"}),
    "fx": Animal(lambda: torch.fx.symbolic_trace(Block())),
    "in keywords and lists": Animal(Named, "all-linear"),
    "stateless": Animal(lambda: Around(Block(), stateless)),
    "in DataParallel": Animal(lambda: nn.DataParallel(Block())),
    "checkpointed": Animal(lambda: Around(Block(), checkpointed), refuses={"train": r"'inner\.\w'.*checkpoint"}),
    # other layers
    "Conv1D": Animal(block(lambda m: setattr(m, "a", Conv1D(HIDDEN, WIDTH)))),
    "convolutions": Animal(Images, ["one", "two"]),
    "attention": Animal(
        lambda: Around(nn.MultiheadAttention(WIDTH, 2, batch_first=True), attend), ["inner"], exact=False
    ),
    "encoder": Animal(encoder, ["self_attn", "linear1", "linear2"], exact=False),
    "encoder, sequence first": Animal(
        lambda: encoder(False), ["self_attn", "linear1"], options={"batch_dim": 1}, sequence_first=True, exact=False
    ),
    "GRU": Animal(lambda: Around(nn.GRU(WIDTH, HIDDEN, num_layers=2, batch_first=True)), ["inner"]),
    # other adapters
    "LoRA below": Animal(lambda: lora(Block()), ["b"]),
    "LoRA on the same layer": Animal(lambda: lora(Block()), ["a"], {"inject": r"\.a'.*another PEFT method"}),
    "LoRA above": Animal(targets=["b"], after=lambda model: lora(model, "other")),
}
