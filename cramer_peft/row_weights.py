"""A linear layer whose weight is another one for each row of the batch, made a few rows at a time.

``W * (1 + sum_k a_k b_k^T)`` is as large as W for each row, so that all of them at once would be the largest tensor in
the model; a few at a time stay in the processor's cache, and one batched product with them takes the place of the
frozen layer's. Only shapes decide how many, never requests: a row's bits do not depend on its neighbours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional

_AT_ONCE = 2**18  # entries of the weights made at once: 1 MB in float32
_WEIGHT_COST = 16  # positions of a row whose product with W takes about as long as making the row's weight


def worth_making(positions: int, terms: int) -> bool:
    """Whether a weight of its own for each row is faster than one product more for each term.

    Args:
        positions: Number of vectors in each row.
        terms: Number of terms of the mask.
    """
    return positions * (terms - 0.2) > _WEIGHT_COST


def usable(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether :func:`low_rank_linear` can run here: on the CPU, in one precision, with frozen parameters."""
    return (
        _is_on_cpu(x, weight)
        and not weight.requires_grad
        and not (bias is not None and bias.requires_grad)
        and (_may_trace() if torch.compiler.is_compiling() else is_plain(x))
    )


def is_plain_on_cpu(x: Tensor, weight: Tensor) -> bool:
    """Whether both are on the CPU, in one precision, and nothing traces or transforms what is done with ``x``."""
    return not torch.compiler.is_compiling() and _is_on_cpu(x, weight) and is_plain(x)


def _is_on_cpu(x: Tensor, weight: Tensor) -> bool:
    return (
        x.device.type == "cpu"
        and weight.device.type == "cpu"
        and type(weight) in (Tensor, nn.Parameter)  # not one that only looks like numbers of this type
        and x.dtype == weight.dtype
        and x.dtype in (torch.float32, torch.float64)
        and not torch.is_autocast_enabled("cpu")
    )


def _may_trace() -> bool:
    """Whether what is traced now may hold an operator of ours: no gradients, not a program to be run elsewhere."""
    exporting = getattr(torch.compiler, "is_exporting", None)  # torch 2.6 cannot tell
    return not torch.is_grad_enabled() and exporting is not None and not exporting()


def made_once(gate: Tensor) -> Tensor:
    """``gate``; in a compiled graph one that is written to memory, not made anew at each position that needs it."""
    if torch.compiler.is_compiling() and _may_trace() and gate.device.type == "cpu":
        gate = gate.contiguous()
        return gate.as_strided(gate.shape, gate.stride())  # the compiler's rule for this needs memory
    return gate


def is_plain(x: Tensor) -> bool:
    """Whether ``x`` holds numbers, so that one may look at them, and nobody transforms what is done with it."""
    return (
        type(x) is Tensor
        and torch._C._get_tracing_state() is None
        and not torch._C._functorch.is_functorch_wrapped_tensor(x)
        and forward_ad._current_level < 0
    )


def low_rank_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    a: Tensor,
    b: Tensor,
    active: Tensor | None,
    frozen: Callable[[Tensor], Tensor],
) -> Tensor:
    """``x`` times the weight of its row, plus the bias; a row whose mask is the identity is ``frozen``'s bit for bit.

    Args:
        x: (rows, …, in), or of any shape (…, in) where there is one mask for all.
        weight: The frozen weight, (out, in).
        bias: (out,), or None.
        a: Terms by output, (rows, terms, out), or (1, terms, out) for all.
        b: Terms by input, (rows, terms, in), or (1, terms, in).
        active: Rows that have a request, (rows,) bool; None: all.
        frozen: The frozen layer; called on all of ``x`` where a row's mask is the identity.

    Returns:
        (rows, …, out)
    """
    rows = max(a.shape[0], b.shape[0])  # one request at several strengths has one b
    a, b = a.to(x.dtype).expand(rows, -1, -1), b.to(x.dtype).expand(rows, -1, -1)
    if active is not None:  # not even a NaN in the terms reaches the others
        a = torch.where(active[:, None, None], a, 0.0)
    if torch.is_grad_enabled() and (x.requires_grad or a.requires_grad or b.requires_grad):
        output: Tensor = _LowRankLinear.apply(x, weight, bias, a, b, frozen)
        return output
    return _run(x, weight, bias, a, b, frozen)


def _run(
    x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, frozen: Callable[[Tensor], Tensor]
) -> Tensor:
    masked = (a != 0).flatten(1).any(1)
    count = int(masked.sum())
    if count == 0:
        return frozen(x)
    if a.shape[0] == 1:
        return functional.linear(x, _weights(weight, a.mT, b, None)[0], bias)
    output = _each_row(_by_rows(x, a), weight, bias, a, b).view(*x.shape[:-1], weight.shape[0])
    if count < a.shape[0]:
        rest = (~masked).nonzero()[:, 0]
        output.index_copy_(0, rest, frozen(x).index_select(0, rest))
    return output


def _by_rows(x: Tensor, a: Tensor) -> Tensor:
    """(rows, …, features) → (rows, positions, features), with as many rows as ``a`` has."""
    return x.reshape(a.shape[0], -1, x.shape[-1])


class _Parts:
    """The weights of a few rows at a time, and where they are put.

    They lie with the shorter side inside, which is faster to make and to multiply by: (rows, out, in), or *turned*.
    """

    def __init__(self, weight: Tensor, a: Tensor, b: Tensor) -> None:
        out_features, in_features = weight.shape
        self.turned = in_features > out_features
        self.stored = (weight.T if self.turned else weight).contiguous()
        self.left, self.right = (b.mT, a) if self.turned else (a.mT, b)
        self.at_once = min(a.shape[0], max(1, _AT_ONCE // max(weight.numel(), 1)))
        self._room = weight.new_empty(self.at_once, *self.stored.shape)

    def __iter__(self) -> Iterator[tuple[slice, Tensor]]:
        """Some rows, and room for their weights."""
        rows = self.left.shape[0]
        for start in range(0, rows, self.at_once):
            part = slice(start, min(start + self.at_once, rows))
            yield part, self._room[: part.stop - part.start]

    def weights(self, part: slice, room: Tensor) -> Tensor:
        """Their weights as (rows, out, in)."""
        made = _weights(self.stored, self.left[part], self.right[part], room)
        return made.mT if self.turned else made


def _each_row(x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor) -> Tensor:
    """(rows, positions, in) → (rows, positions, out)."""
    output = x.new_empty(*x.shape[:-1], weight.shape[0])
    parts = _Parts(weight, a, b)
    for part, room in parts:
        made = parts.weights(part, room).mT
        if bias is None:
            torch.bmm(x[part], made, out=output[part])
        else:
            torch.baddbmm(bias, x[part], made, out=output[part])
    return output


class _LowRankLinear(torch.autograd.Function):
    """The same with gradients: of the weights, which are made anew in backward, none is kept."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        a: Tensor,
        b: Tensor,
        frozen: Callable[[Tensor], Tensor],
    ) -> Tensor:
        ctx.save_for_backward(x, weight, a, b)
        return _run(x, weight, bias, a, b, frozen)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, a, b = ctx.saved_tensors
        if torch.is_grad_enabled():  # somebody wants gradients of gradients
            gradients = _traced_gradients(grad, x, weight, a, b)
        else:
            gradients = _gradients(grad, x, weight, a, b, ctx.needs_input_grad[0])
        return gradients[0], None, None, gradients[1], gradients[2], None


def _gradients(
    grad: Tensor, x: Tensor, weight: Tensor, a: Tensor, b: Tensor, of_x: bool
) -> tuple[Tensor | None, Tensor, Tensor]:
    """Gradients of x, a and b."""
    g, flat = _by_rows(grad, a), _by_rows(x, a)
    parts = _Parts(weight, a, b)
    to_x = torch.empty_like(flat) if of_x else None
    to_left, to_right = torch.empty_like(parts.left), torch.empty_like(parts.right)
    for part, room in parts:
        if to_x is not None:
            torch.bmm(g[part], parts.weights(part, room), out=to_x[part])
        outer, inner = (flat[part], g[part]) if parts.turned else (g[part], flat[part])
        change = torch.bmm(outer.mT, inner, out=room).mul_(parts.stored)
        to_left[part] = change @ parts.right[part].mT
        to_right[part] = parts.left[part].mT @ change
    to_a, to_b = (to_right, to_left.mT) if parts.turned else (to_left.mT, to_right)
    return None if to_x is None else to_x.view(x.shape), to_a, to_b


def _traced_gradients(grad: Tensor, x: Tensor, weight: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor | None, ...]:
    """The same gradients, by operations that have gradients themselves."""
    wanted = [value for value in (x, a, b) if value.requires_grad]
    weights = weight * (1 + a.mT @ b)
    output = torch.bmm(_by_rows(x, a), weights.mT).reshape(grad.shape)
    found = iter(torch.autograd.grad(output, wanted, grad, create_graph=True))
    return tuple(next(found) if value.requires_grad else None for value in (x, a, b))


def _weights(weight: Tensor, left: Tensor, right: Tensor, room: Tensor | None) -> Tensor:
    """``weight * (1 + left @ right)`` for each row, written to ``room``."""
    change = torch.bmm(left, right, out=room)
    return torch.addcmul(weight, change, weight, out=change)


@torch.library.custom_op(
    "cramer_peft::low_rank_linear",
    mutates_args=(),
    schema="(Tensor x, Tensor weight, Tensor? bias, Tensor a, Tensor b, Tensor? active) -> Tensor",
)
def traced_low_rank_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, active: Tensor | None
) -> Tensor:
    """:func:`low_rank_linear` of an ``nn.Linear``, as one operator of a compiled graph."""
    return low_rank_linear(x, weight, bias, a, b, active, lambda given: functional.linear(given, weight, bias))


@traced_low_rank_linear.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, active: Tensor | None) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0])
