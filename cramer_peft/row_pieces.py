"""A gated linear layer, a few rows of the batch at a time, so that what lies between its passes stays in the cache.

``r * (W (c * x) + b)`` makes two passes over activations beside the product. Over a whole batch they go through main
memory, and ``c * x`` is one more tensor as large as the input; over a few rows they do neither. But the matrix library
may round a product of few rows in another way than one of all, and a row without a request must have the frozen
layer's bits. So it is tried out, once for each shape that comes often: only where the frozen product has the same bits
in pieces as whole, pieces are taken. Whether they are is then not to be seen in any number, whatever is asked.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

import torch
from torch import Tensor

from cramer_peft.row_weights import is_plain, is_plain_on_cpu

_AT_ONCE = 2**18  # entries of input and output of one piece, for each thread: 1 MB in float32
_TRIED_AT = 3  # how often a shape must have come before it is tried
_REMEMBERED = 1024  # shapes

_Key = tuple[object, ...]
# How often a shape has come; from _TRIED_AT on: whether its pieces have the bits of the whole.
_shapes: OrderedDict[_Key, int | bool] = OrderedDict()

Frozen = Callable[[Tensor], Tensor]
Gates = tuple[Tensor, Tensor]


def row_column_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, row: Tensor, column: Tensor, gate_bias: bool, frozen: Frozen
) -> Tensor | None:
    """``row * frozen(column * x)`` in pieces, or None where it is to be made in one: too small, or other bits.

    Args:
        x: (rows, …, in), or of any shape (…, in) where there is one mask for all.
        weight: The frozen weight, (out, in).
        bias: (out,), or None.
        row: Gates on the output, (rows, out), or (1, out) for all.
        column: Gates on the input, (rows, in), or (1, in).
        gate_bias: Whether ``row`` gates the bias, too.
        frozen: The frozen layer, which is the product with ``weight`` plus ``bias`` and no more.

    Returns:
        (rows, …, out)
    """
    if torch.is_grad_enabled() or not (is_plain_on_cpu(x, weight) and is_plain(row)):
        return None
    rows = max(row.shape[0], column.shape[0])
    vectors = x.numel() // max(x.shape[-1], 1)
    groups = rows if rows > 1 else vectors  # one mask for all: each vector by itself
    size = vectors * sum(weight.shape)
    # Not much less than the weight, which each piece reads once more.
    at_once = max(_AT_ONCE, weight.numel()) * torch.get_num_threads()
    if size <= at_once or not x.is_contiguous():
        return None
    step = max(1, at_once * groups // size)
    if step >= groups or not _same_bits(x, weight, bias, groups, step, frozen):
        return None
    gates = row.to(x.dtype).expand(rows, -1)[:, None], column.to(x.dtype).expand(rows, -1)[:, None]
    return _in_pieces(x, weight, bias, groups, step, gates, gate_bias)


def _in_pieces(
    x: Tensor, weight: Tensor, bias: Tensor | None, groups: int, step: int, gates: Gates | None, gate_bias: bool = True
) -> Tensor:
    """The layer on ``step`` of the ``groups`` at a time; without gates the frozen layer's product alone."""
    grouped = x.view(groups, -1, x.shape[-1])
    output = x.new_empty(*grouped.shape[:-1], weight.shape[0])
    room = x.new_empty(step, *grouped.shape[1:])
    ungated = bias if gates is not None and not gate_bias else None
    for start in range(0, groups, step):
        part = slice(start, start + step)
        given, made = grouped[part], output[part]
        row, column = (None, None) if gates is None else (_part(gate, part) for gate in gates)
        if column is not None:
            given = torch.mul(given, column, out=room[: len(given)])
        _product(given.flatten(0, 1), weight, bias, made.flatten(0, 1))
        if row is not None:
            made.mul_(row)
            if ungated is not None:
                made.add_((1 - row) * ungated)  # in the order in which the whole is made
    return output.view(*x.shape[:-1], weight.shape[0])


def _part(gate: Tensor, part: slice) -> Tensor:
    return gate if gate.shape[0] == 1 else gate[part]


def _product(x: Tensor, weight: Tensor, bias: Tensor | None, output: Tensor) -> None:
    if bias is None:
        torch.mm(x, weight.T, out=output)
    else:
        torch.addmm(bias, x, weight.T, out=output)


def _same_bits(x: Tensor, weight: Tensor, bias: Tensor | None, groups: int, step: int, frozen: Frozen) -> bool:
    """Whether the frozen product in pieces has the bits of the whole; False, too, while the shape is new."""
    vectors = x.numel() // x.shape[-1]
    key = (vectors, groups, step, weight.shape, weight.stride(), bias is None, x.dtype, torch.get_num_threads())
    known = _shapes.pop(key, 0)
    if known is not True and known is not False:
        known += 1
        if known >= _TRIED_AT:
            known = _is_same(x, weight, bias, groups, step, frozen)
    _shapes[key] = known
    if len(_shapes) > _REMEMBERED:
        _shapes.popitem(last=False)
    return known is True


def _is_same(x: Tensor, weight: Tensor, bias: Tensor | None, groups: int, step: int, frozen: Frozen) -> bool:
    # Random inputs, since those at hand may be all zeros; of a generator of its own, to leave the caller's alone.
    sample = torch.randn(x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(0))
    return torch.equal(frozen(sample), _in_pieces(sample, weight, bias, groups, step, None))
