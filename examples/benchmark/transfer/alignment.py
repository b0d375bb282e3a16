"""Place the items of another catalogue among a backbone's item embeddings, by their texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from benchmark.titles import TitleIndex
from cramer_peft.encoders import CachedEncoder, RequestEncoder
from cramer_peft.errors import DataError
from cramer_peft.recsys.backbones import SASRec
from cramer_peft.recsys.data.catalogue import Catalogue
from cramer_peft.recsys.data.splits import Split
from cramer_peft.recsys.requests.attribute_requests import phrase

RIDGES = (0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
_FOLDS = 5
_FEW = 5  # items met this often count half in the regression


@dataclass(frozen=True, eq=False)
class ItemAlignment:
    """The places of another catalogue's items among a source backbone's embeddings.

    Attributes:
        embeddings: (target items, width) float32.
        copied: Items that have the source's own embedding, because they are the same item, (target items,) bool.
        explained: Share of the variance of the source's embeddings that the texts explain, cross-validated. At 0 or
            less the texts explain nothing, and a request in words cannot mean the same in both domains.
        features: "attributes", or "titles and attributes": the better predictor.
        ridge: Strength of the regression's penalty, chosen by cross-validation.
    """

    embeddings: Tensor
    copied: Tensor
    explained: float
    features: str
    ridge: float


def align_items(
    source: SASRec,
    source_catalogue: Catalogue,
    source_split: Split,
    target_catalogue: Catalogue,
    encoder: RequestEncoder | CachedEncoder,
    same_items: bool = True,
) -> ItemAlignment:
    """Predict item embeddings from texts, by a ridge regression on the source's items.

    Items that few users have met count less in it, since their embeddings are mostly noise.

    Args:
        source: The source's backbone.
        source_catalogue: Its items.
        source_split: Its training histories tell how many users have met each item; targets are not looked at.
        target_catalogue: Items to place.
        encoder: Encodes titles and attributes.
        same_items: Whether equal titles are the same item, which then keeps the source's embedding: true of films in
            two data sets, not of films and games.

    Raises:
        DataError: If the backbone knows another number of items than the source's catalogue has.
    """
    if source.num_items != len(source_catalogue):
        raise DataError(
            f"the source backbone knows {source.num_items} items, its catalogue has {len(source_catalogue)}."
        )
    known = item_table(source)
    met = torch.bincount(torch.cat(list(source_split.train)), minlength=len(known)).float()
    weights = met / (met + _FEW)
    fits = []
    for name, features in _features(source_catalogue, encoder).items():
        fits += [(_explained(features, known, weights, ridge), name, ridge) for ridge in RIDGES]
    explained, name, ridge = max(fits)
    slopes = _ridge(_features(source_catalogue, encoder)[name], known, weights, ridge)
    embeddings = _features(target_catalogue, encoder)[name] @ slopes
    copied = torch.zeros(len(target_catalogue), dtype=torch.bool)
    if same_items:
        index = TitleIndex(source_catalogue)
        for item, title in enumerate(target_catalogue.titles):
            found = index.find(title)
            if len(found) == 1 and met[found[0]] >= 1:
                embeddings[item], copied[item] = known[found[0]], True
    return ItemAlignment(embeddings, copied, explained, name, ridge)


def item_table(backbone: SASRec) -> Tensor:
    """Return a copy of the item embeddings on the CPU, (items, width), without that of the padding."""
    weight: Tensor = backbone.bert.embeddings.word_embeddings.weight
    items: Tensor = weight[1:].detach().to("cpu", copy=True)
    return items


def _features(catalogue: Catalogue, encoder: RequestEncoder | CachedEncoder) -> dict[str, Tensor]:
    """Return text vectors of length 1, or 0 for an item without text; the last column is 1."""
    names = [" ".join(map(phrase, catalogue.attribute_names(item))) for item in range(len(catalogue))]
    titles, attributes = _vectors(catalogue.titles, encoder), _vectors(names, encoder)
    one = torch.ones(len(catalogue), 1)
    return {
        "attributes": torch.cat([attributes, one], dim=1),
        "titles and attributes": torch.cat([titles, attributes, one], dim=1),
    }


def _vectors(texts: Sequence[str], encoder: RequestEncoder | CachedEncoder) -> Tensor:
    vectors = torch.zeros(len(texts), encoder.dim)
    written = [index for index, text in enumerate(texts) if text.strip()]
    if written:
        vectors[written] = normalize(encoder.encode([texts[index] for index in written]).float().cpu(), dim=-1)
    return vectors


def _ridge(features: Tensor, targets: Tensor, weights: Tensor, ridge: float) -> Tensor:
    """Return slopes (columns, width) of a weighted regression; the last column's, the mean, has no penalty."""
    penalty = torch.full((features.shape[1],), ridge * float(weights.mean()), dtype=torch.float64)
    penalty[-1] = 1e-6
    left, right = features.double(), targets.double()
    weighted = left * weights.double()[:, None]
    slopes: Tensor = torch.linalg.solve(weighted.T @ left + penalty.diag(), weighted.T @ right)
    return slopes.to(targets.dtype)


def _explained(features: Tensor, targets: Tensor, weights: Tensor, ridge: float) -> float:
    """Return the share of the targets' variance that the regression explains on held-out folds."""
    fold = torch.randperm(len(features), generator=torch.Generator().manual_seed(0)) % _FOLDS
    error = total = 0.0
    for number in range(_FOLDS):
        inside, outside = fold != number, fold == number
        slopes = _ridge(features[inside], targets[inside], weights[inside], ridge)
        mean = (weights[inside, None] * targets[inside]).sum(0) / weights[inside].sum().clamp(min=1e-9)
        weight = weights[outside, None]
        error += float((weight * (features[outside] @ slopes - targets[outside]).square()).sum())
        total += float((weight * (targets[outside] - mean).square()).sum())
    return 1 - error / max(total, 1e-9)
