"""The CPU kernel of ``low_rank``: a linear layer that has a weight of its own for each row of the batch.

``W * (1 + sum_k a_k b_k^T)`` is as large as W for each row. So the weights of a few rows at a time, which fit into the
processor's cache, are made and multiplied by in one batched product. How many depends on shapes and never on requests,
so that a row's bits do not depend on its neighbours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from cramer_peft.masks.tracing import is_plain, may_hold_own_operators

_AT_ONCE = 2**18  # entries of the weights made at once: 1 MB in float32
_WEIGHT_COST = 16  # making a row's weight takes about as long as the product of W with so many positions


def is_faster(positions: int, terms: int) -> bool:
    """Return True if a weight for each row of so many positions costs less than one more product for each term."""
    return positions * (terms - 0.2) > _WEIGHT_COST


def is_usable(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Return True if :func:`low_rank_linear` can run here: on the CPU, in one precision, with frozen parameters."""
    return (
        x.device.type == "cpu"
        and weight.device.type == "cpu"
        and type(weight) in (Tensor, nn.Parameter)  # a quantized subclass may only claim this dtype
        and x.dtype == weight.dtype
        and x.dtype in (torch.float32, torch.float64)
        and not torch.is_autocast_enabled("cpu")
        and not weight.requires_grad
        and not (bias is not None and bias.requires_grad)
        and (may_hold_own_operators() if torch.compiler.is_compiling() else is_plain(x))
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
    """Multiply ``x`` (rows, …, in) by the weight of its row and add the bias: (rows, …, out).

    A row whose mask is the identity is taken from ``frozen``, the frozen layer, bit for bit. ``weight`` is (out, in),
    ``a`` (rows, terms, out) and ``b`` (rows, terms, in); with 1 row ``x`` has any shape (…, in). ``active`` (rows,)
    bool marks the rows that have a request; None: all.
    """
    rows = max(a.shape[0], b.shape[0])  # one request at several strengths has one b
    a, b = a.to(x.dtype).expand(rows, -1, -1), b.to(x.dtype).expand(rows, -1, -1)
    if active is not None:  # selected, because 0 * NaN would reach the other rows
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
    output = x.new_empty(*x.shape[:-1], weight.shape[0])  # no view: the model may change it in place
    _each_row(_by_rows(x, a), weight, bias, a, b, _by_rows(output, a))
    if count < a.shape[0]:
        rest = (~masked).nonzero()[:, 0]
        output.index_copy_(0, rest, frozen(x).index_select(0, rest))
    return output


def _by_rows(x: Tensor, a: Tensor) -> Tensor:
    """Reshape (rows, …, features) to (rows, positions, features), with as many rows as ``a`` has."""
    return x.reshape(a.shape[0], -1, x.shape[-1])


class _WeightBlocks:
    """The weights of a few rows at a time, written into one block of memory that is used again.

    The shorter side lies inside, which is faster to make and to multiply by: (rows, out, in), or *turned*.
    """

    def __init__(self, weight: Tensor, a: Tensor, b: Tensor) -> None:
        out_features, in_features = weight.shape
        self.turned = in_features > out_features
        self.stored = (weight.T if self.turned else weight).contiguous()
        self.left, self.right = (b.mT, a) if self.turned else (a.mT, b)
        self.at_once = min(a.shape[0], max(1, _AT_ONCE // max(weight.numel(), 1)))
        self._room = weight.new_empty(self.at_once, *self.stored.shape)

    def __iter__(self) -> Iterator[tuple[slice, Tensor]]:
        """Yield a slice of rows and the memory for their weights."""
        rows = self.left.shape[0]
        for start in range(0, rows, self.at_once):
            part = slice(start, min(start + self.at_once, rows))
            yield part, self._room[: part.stop - part.start]

    def weights(self, part: slice, room: Tensor) -> Tensor:
        """Return the weights of ``part`` as (rows, out, in)."""
        made = _weights(self.stored, self.left[part], self.right[part], room)
        return made.mT if self.turned else made


def _each_row(x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, output: Tensor) -> None:
    """Multiply (rows, positions, in) by each row's weight, into ``output`` (rows, positions, out)."""
    parts = _WeightBlocks(weight, a, b)
    for part, room in parts:
        made = parts.weights(part, room).mT
        if bias is None:
            torch.bmm(x[part], made, out=output[part])
        else:
            torch.baddbmm(bias, x[part], made, out=output[part])


class _LowRankLinear(torch.autograd.Function):
    """The kernel with gradients; the rows' weights are made anew in backward, so that none is kept."""

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
        output = _run(x, weight, bias, a, b, frozen)
        return output.clone() if output._is_view() else output  # a view could not be changed in place

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, a, b = ctx.saved_tensors
        if torch.is_grad_enabled():  # gradients of gradients are wanted
            gradients = _traced_gradients(grad, x, weight, a, b)
        else:
            gradients = _gradients(grad, x, weight, a, b, ctx.needs_input_grad[0])
        return gradients[0], None, None, gradients[1], gradients[2], None


def _gradients(
    grad: Tensor, x: Tensor, weight: Tensor, a: Tensor, b: Tensor, of_x: bool
) -> tuple[Tensor | None, Tensor, Tensor]:
    """Compute the gradients of x, a and b."""
    g, flat = _by_rows(grad, a), _by_rows(x, a)
    parts = _WeightBlocks(weight, a, b)
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
    """Compute the same gradients by operations that have gradients themselves."""
    wanted = [value for value in (x, a, b) if value.requires_grad]
    weights = weight * (1 + a.mT @ b)
    output = torch.bmm(_by_rows(x, a), weights.mT).reshape(grad.shape)
    found = iter(torch.autograd.grad(output, wanted, grad, create_graph=True))
    return tuple(next(found) if value.requires_grad else None for value in (x, a, b))


def _weights(weight: Tensor, left: Tensor, right: Tensor, room: Tensor | None) -> Tensor:
    """Write ``weight * (1 + left @ right)`` for each row to ``room``."""
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
    """Run :func:`low_rank_linear` for an ``nn.Linear``, as one operator of a compiled graph."""
    return low_rank_linear(x, weight, bias, a, b, active, lambda given: functional.linear(given, weight, bias))


@traced_low_rank_linear.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, active: Tensor | None) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0])
