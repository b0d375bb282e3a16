"""How well items match requests about attributes.

Everywhere ``catalogue_attributes`` is the vocabulary, in the order of the columns of ``item_attributes``, which is
bool of shape (items, attributes). Results are on its device. Each function raises a DataError if a request names an
attribute that is not in the vocabulary, an attribute repeats there, or ``item_attributes`` has another type or width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from cramer_peft.recsys.data.catalogue import check_item_attributes
from cramer_peft.recsys.requests.attribute_requests import AttributeRequest, check_attributes, columns_of


def match_scores(
    requests: Sequence[AttributeRequest], catalogue_attributes: Sequence[str], item_attributes: Tensor
) -> Tensor:
    """Score how well each item matches each request, (requests, items) float32 in -1 … 1.

    It is the share of the wanted attributes that the item has minus the share of the unwanted ones; of none, 0.
    """
    wanted, unwanted = _attribute_counts(requests, catalogue_attributes, item_attributes)
    weights = _shares(wanted) - _shares(unwanted)
    return weights @ item_attributes.to(torch.float32).T


def satisfies(
    requests: Sequence[AttributeRequest], catalogue_attributes: Sequence[str], item_attributes: Tensor
) -> Tensor:
    """Mark the items that have every wanted attribute and no unwanted one of a request, (requests, items) bool."""
    wanted, unwanted = _attribute_counts(requests, catalogue_attributes, item_attributes)
    has = item_attributes.to(torch.float32).T
    # one product counts the wanted attributes that are missing and the unwanted ones that are there
    failures = wanted @ (1 - has) + unwanted @ has
    return failures == 0


def excludes(
    requests: Sequence[AttributeRequest], catalogue_attributes: Sequence[str], item_attributes: Tensor
) -> Tensor:
    """Mark the items that have an attribute which a request excludes, (requests, items) bool."""
    _, unwanted = _attribute_counts(requests, catalogue_attributes, item_attributes)
    return unwanted @ item_attributes.to(torch.float32).T > 0


def satisfied_by(
    requests: Sequence[AttributeRequest], catalogue_attributes: Sequence[str], item_attributes: Tensor, items: Tensor
) -> Tensor:
    """Compute :func:`satisfies` for some items of each request, (requests, n) int64, alone; (requests, n) bool."""
    wanted, unwanted = _attribute_counts(requests, catalogue_attributes, item_attributes)
    has = item_attributes[items].to(torch.float32)
    surplus = has @ (wanted - unwanted)[:, :, None]  # exact: these are whole numbers
    return surplus.squeeze(-1) == wanted.sum(dim=1, keepdim=True)


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
