"""How well items match requests about attributes.

Everywhere ``catalogue_attributes`` is the vocabulary, in the order of the columns of ``item_attributes``, which is
bool of shape (items, attributes). Results are on its device. Each function raises a DataError if a request names an
attribute that is not in the vocabulary, an attribute repeats there, or ``item_attributes`` has another type or width.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from cramer_peft.recsys.data.catalogue import check_item_attributes
from cramer_peft.recsys.requests.attribute_requests import AttributeRequest, check_attributes, columns_of

_PIECE = 2**24  # numbers that are computed for some items together, so that memory does not grow with the items


def match_scores(
    requests: Sequence[AttributeRequest], catalogue_attributes: Sequence[str], item_attributes: Tensor
) -> Tensor:
    """Score how well each item matches each request, (requests, items) float32 in -1 … 1.

    It is the share of the wanted attributes that the item has minus the share of the unwanted ones; of none, 0.
    """
    wanted, unwanted = _attribute_counts(requests, catalogue_attributes, item_attributes)
    weights = _shares(wanted) - _shares(unwanted)
    scores = weights.new_empty(len(requests), len(item_attributes))
    for items, product in _products(weights, item_attributes):
        scores[:, items] = product
    return scores


def satisfies(
    requests: Sequence[AttributeRequest], catalogue_attributes: Sequence[str], item_attributes: Tensor
) -> Tensor:
    """Mark the items that have every wanted attribute and no unwanted one of a request, (requests, items) bool."""
    wanted, unwanted = _attribute_counts(requests, catalogue_attributes, item_attributes)
    fits = torch.empty(len(requests), len(item_attributes), dtype=torch.bool, device=wanted.device)
    needed = wanted.sum(1, keepdim=True)
    for items, surplus in _products(*_named(wanted - unwanted, item_attributes)):
        fits[:, items] = surplus == needed  # exact: these are whole numbers
    return fits


def excludes(
    requests: Sequence[AttributeRequest], catalogue_attributes: Sequence[str], item_attributes: Tensor
) -> Tensor:
    """Mark the items that have an attribute which a request excludes, (requests, items) bool."""
    _, unwanted = _attribute_counts(requests, catalogue_attributes, item_attributes)
    excluded = torch.empty(len(requests), len(item_attributes), dtype=torch.bool, device=unwanted.device)
    for items, found in _products(*_named(unwanted, item_attributes)):
        excluded[:, items] = found > 0
    return excluded


def satisfied_by(
    requests: Sequence[AttributeRequest], catalogue_attributes: Sequence[str], item_attributes: Tensor, items: Tensor
) -> Tensor:
    """Compute :func:`satisfies` for some items of each request, (requests, n) int64, alone; (requests, n) bool."""
    wanted, unwanted = _attribute_counts(requests, catalogue_attributes, item_attributes)
    has = item_attributes[items].to(torch.float32)
    surplus = has @ (wanted - unwanted)[:, :, None]  # exact: these are whole numbers
    return surplus.squeeze(-1) == wanted.sum(dim=1, keepdim=True)


def _named(weights: Tensor, item_attributes: Tensor) -> tuple[Tensor, Tensor]:
    """Return the columns of both of the attributes that a request gives a weight."""
    columns = weights.any(0).nonzero().flatten()
    return weights[:, columns], item_attributes[:, columns]


def _products(weights: Tensor, item_attributes: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Yield weights (requests, attributes) times the attributes of some items after others, (requests, n) float32."""
    size = max(1, _PIECE // max(1, sum(weights.shape)))
    for start in range(0, len(item_attributes), size):
        items = slice(start, start + size)
        yield items, weights @ item_attributes[items].to(torch.float32).T


def _shares(counts: Tensor) -> Tensor:
    return counts / counts.sum(dim=1, keepdim=True).clamp(min=1)


def _attribute_counts(
    requests: Sequence[AttributeRequest], catalogue_attributes: Sequence[str], item_attributes: Tensor
) -> tuple[Tensor, Tensor]:
    """Count how often each request wants and rejects each attribute; (requests, attributes) each."""
    columns = columns_of(catalogue_attributes)
    items = item_attributes.shape[0] if item_attributes.dim() else 0
    check_item_attributes(item_attributes, (items, len(columns)))
    for request in requests:
        check_attributes((*request.wanted, *request.unwanted), columns)
    device = item_attributes.device
    wanted = _count_matrix([request.wanted for request in requests], columns, device)
    unwanted = _count_matrix([request.unwanted for request in requests], columns, device)
    return wanted, unwanted


def _count_matrix(named: Sequence[Sequence[str]], columns: Mapping[str, int], device: torch.device) -> Tensor:
    cells = [(row, columns[name]) for row, names in enumerate(named) for name in names]
    index = torch.tensor(cells, dtype=torch.long, device=device).reshape(-1, 2)
    counts = torch.zeros(len(named), len(columns), device=device, dtype=torch.float32)
    ones = torch.ones(len(cells), device=device, dtype=torch.float32)
    return counts.index_put((index[:, 0], index[:, 1]), ones, accumulate=True)
