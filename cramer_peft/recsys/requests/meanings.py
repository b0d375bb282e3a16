"""What words mean among the items of a catalogue, as vectors in the space of the items' features.

One rule serves attributes, titles, years, made-up sets and words: a thing asked for is a set of items, each more or
less a member, and its meaning is the linear function of the items' features that predicts the membership best (ridge
regression). Its scale is such that members lie 1 above the others on average. The meaning of a word that no item has is
predicted from its text vector, by a linear map that is fitted on the terms that items do have.
"""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional

from cramer_peft.recsys.requests.item_features import FLOORS, unit, whitened
from cramer_peft.recsys.requests.terms import Terms

_TEXT_WIDTH, _ATTRIBUTE_WIDTH = 64, 96
_LEAST_WORDS, _MOST_WORDS, _TERMS_A_NUMBER = 32, 512, 5  # width of the words' part
_SCALES = {"attributes": 2.0, "words": 2.0, "numbers": 2.0, "text": 1.0, "embedding": 1.0}  # larger: shrunk less
_FLOOR = 0.02
_RIDGE, _OPEN_RIDGE = 0.1, 1.0
_LEAST_PENALTY = 1e-6  # for items that do not differ
_OPEN_SHRINKAGE = 20.0  # of the meanings that the map is fitted on: what holds for words in general is coarse
_MOST_MEMBERS = 50.0  # a term of more items counts no more in the fit of the map
_LEAST_GAP = 0.02
_SHARE, _FEWEST = 0.01, 10  # of the items, those that an open word is taken to mean


class Meanings:
    """Features of the items, and the meanings of terms, sets of items and open words in their space.

    Args:
        terms: The terms of the items.
        vectors: Their text vectors, (terms, width) float32.
        attributes: The items' attributes, (items, attributes) bool.
        embeddings: The items' vectors in a backbone, (items, width) float; None: none.
        numbers: Which step of a number each item is on, (items, steps) float32; see :func:`steps_of`.
        described: Number of items, from the first, that decide on everything.
    """

    def __init__(
        self,
        terms: Terms,
        vectors: Tensor,
        attributes: Tensor,
        embeddings: Tensor | None,
        numbers: Tensor,
        described: int,
    ) -> None:
        items = len(attributes)
        self._described = described
        matrix = terms.matrix(items)
        having = torch.bincount(terms.columns[terms.items < described], minlength=len(terms.names)).float()
        rarity = (described / (1 + having)).log().clamp(min=0.1)
        self.rarity = rarity / rarity.max().clamp(min=1e-6) if len(rarity) else rarity
        by_item, floor = matrix.T.coalesce(), FLOORS["embedding"]
        parts = {
            "attributes": _narrow(attributes.float(), _ATTRIBUTE_WIDTH, described),
            "words": _word_part(by_item, rarity, described),
            "text": _text_part(by_item, rarity, vectors, described),
            "embedding": None if embeddings is None else unit(whitened(embeddings, floor, described), described),
            "numbers": numbers,
        }
        kept = [_SCALES[name] * part for name, part in parts.items() if part is not None and part.shape[1]]
        self.features = torch.cat(kept, dim=1)
        self._unnumbered = self.features.shape[1] - numbers.shape[1]
        own = self.features[:described]
        self._mean = own.mean(0)
        centred = own - self._mean
        self._spread = centred.T @ centred / described
        self._factor = self._factor_of(_RIDGE)
        self.of_terms = self._of_terms(matrix, self._factor)
        self._fit_map(vectors, having, self._of_terms(matrix, self._factor_of(_OPEN_SHRINKAGE)))

    @property
    def width(self) -> int:
        """Width of a meaning, as of the features."""
        return self.features.shape[1]

    def of_sets(self, members: Tensor) -> Tensor:
        """Return the meanings of sets of items, (sets, width); ``members`` are (sets, items) float in 0 … 1."""
        own = members[:, : self._described].float()
        sums = own.sum(1, keepdim=True)
        return self._solved(own @ self.features[: self._described], sums, self._factor)

    def _factor_of(self, ridge: float) -> Tensor:
        penalty = (ridge * self._spread.diagonal().mean()).clamp(min=_LEAST_PENALTY)
        factor: Tensor = torch.linalg.cholesky(self._spread + penalty * torch.eye(len(self._spread)))
        return factor

    def _of_terms(self, matrix: Tensor, factor: Tensor) -> Tensor:
        known = torch.zeros(matrix.shape[1], 1)
        known[: self._described] = 1
        return self._solved(torch.sparse.mm(matrix, self.features * known), torch.sparse.mm(matrix, known), factor)

    def _solved(self, totals: Tensor, sums: Tensor, factor: Tensor) -> Tensor:
        """Return ridge solutions, from the sums of the members' features (sets, width) and of memberships (sets, 1)."""
        shared = (totals - sums * self._mean) / self._described
        weights = torch.cholesky_solve(shared.T, factor).T
        average = (totals / sums.clamp(min=1e-6) - self._mean) * (sums > 0)
        gap = (weights * average).sum(1, keepdim=True)
        expected = (sums / self._described).clamp(max=1)  # of a membership that the features tell exactly
        return weights / gap.clamp(min=_LEAST_GAP * expected.clamp(min=1e-3))

    def _fit_map(self, vectors: Tensor, having: Tensor, meanings: Tensor) -> None:
        """Fit the map from text vectors to meanings, of which each counts alike whatever the number of its items."""
        if not len(vectors):
            width = vectors.shape[1]
            self._middle, self._length, self._map = torch.zeros(width), torch.ones(()), torch.zeros(width, self.width)
            return
        self._middle = vectors.mean(0)
        centred = vectors - self._middle
        self._length = centred.norm(dim=1).mean().clamp(min=1e-6)
        inputs = centred / self._length
        spread = ((meanings @ self._spread) * meanings).sum(1, keepdim=True).clamp(min=1e-12).sqrt()
        weight = having.clamp(min=0, max=_MOST_MEMBERS).sqrt()[:, None]
        square = inputs.T @ (weight * inputs)
        penalty = _OPEN_RIDGE * weight.mean() * len(inputs) / inputs.shape[1]
        system = square + penalty * torch.eye(len(square))
        self._map = torch.linalg.solve(system, inputs.T @ (weight * meanings / spread))

    def of_open(self, vectors: Tensor) -> Tensor:
        """Return the meanings of texts by their vectors, (texts, width)."""
        weights = (vectors - self._middle) / self._length @ self._map
        scores = weights @ self.features[: self._described].T - weights @ self._mean[:, None]
        count = min(scores.shape[1], max(_FEWEST, int(_SHARE * scores.shape[1])))
        best = scores.topk(count, dim=1).values.mean(1, keepdim=True)
        meanings: Tensor = weights / best.clamp(min=1e-6)
        return meanings

    @cached_property
    def _directions(self) -> Tensor:
        """The features without those of numbers, centred, each row of length 1."""
        return functional.normalize((self.features - self._mean)[:, : self._unnumbered], dim=1)

    def like(self, item: int) -> Tensor:
        """Return how much each item is like one, (items,) float32: 1 for itself, near 0 for most.

        Numbers do not count: films of one price are no more alike than others.
        """
        rows = self._directions
        # apart, because the last bits of a product may depend on the number of its rows
        parts = [part @ rows[item] for part in (rows[: self._described], rows[self._described :])]
        near = torch.cat(parts).clamp(0, 1) ** 3
        near[item] = 1
        return near


def _text_part(by_item: Tensor, rarity: Tensor, vectors: Tensor, described: int) -> Tensor:
    """Return the mean text vector of each item's terms, the rarer the more, whitened and narrowed."""
    means = torch.sparse.mm(by_item, rarity[:, None] * functional.normalize(vectors, dim=1))
    total = torch.sparse.mm(by_item, rarity[:, None]).clamp(min=1e-6)
    return _narrow(means / total, _TEXT_WIDTH, described)


def _word_part(by_item: Tensor, rarity: Tensor, described: int) -> Tensor:
    """Return the sum of a random code for each term that an item has, the rarer the larger (Achlioptas 2003)."""
    count = by_item.shape[1]
    width = min(_MOST_WORDS, max(_LEAST_WORDS, count // _TERMS_A_NUMBER)) if count else 0
    generator = torch.Generator().manual_seed(0)
    codes = torch.randn(count, width, generator=generator) / max(width, 1) ** 0.5
    return unit(torch.sparse.mm(by_item, rarity[:, None] * codes), described)


def _narrow(rows: Tensor, width: int, described: int) -> Tensor:
    """Return rows whitened, along their ``width`` directions of the largest variance."""
    if not rows.shape[1]:
        return rows
    even = whitened(rows, _FLOOR, described)
    if even.shape[1] > width:
        own = rows[:described].double() - rows[:described].double().mean(0)
        directions = torch.linalg.eigh(own.T @ own)[1][:, -width:].float()
        even = torch.cat([part @ directions for part in (even[:described], even[described:])])
    return unit(even, described)
