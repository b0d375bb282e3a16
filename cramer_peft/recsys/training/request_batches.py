"""Batches of a generator's training: windows of histories with simulated requests."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cramer_peft import RequestMaskModel
from cramer_peft.errors import ConfigError
from cramer_peft.recsys.backbones.sampling import with_negatives
from cramer_peft.recsys.data.catalogue import Catalogue
from cramer_peft.recsys.data.histories import NO_LABEL, pad_histories
from cramer_peft.recsys.requests.attribute_requests import BLANK, AttributeRequest
from cramer_peft.recsys.requests.catalogue_encoder import CatalogueEncoder, without_cache
from cramer_peft.recsys.requests.concepts import Concept, ConceptGenerator, concept_match
from cramer_peft.recsys.requests.matching import match_scores, satisfied_by
from cramer_peft.recsys.requests.sources import (
    ATTRIBUTES,
    CATALOGUE,
    HISTORY,
    STATED,
    AttributeSource,
    Drawn,
    EmptySource,
    HistorySource,
    MixedSource,
    PhraseSource,
    RequestSource,
    SaidSource,
    Weights,
    Window,
    check_weights,
)
from cramer_peft.recsys.requests.wordings import TRAIN_TEMPLATES
from cramer_peft.training import SHARE, Processes

_CONCEPT_ITEMS = 8192  # of a larger catalogue, made-up sets hold items of a sample of so many, drawn for each batch
_LIMITS: dict[str, tuple[int, float]] = {
    **dict.fromkeys(("steps", "batch_size", "positions"), (1, 1e9)),
    **dict.fromkeys(("random_share", "empty_share", "concept_share", "concept_until"), (0, 1)),
    **dict.fromkeys(("learning_rate", "edit_weight", "next_item_weight", "sparsity_weight", "kappa"), (0, 1e9)),
}


@dataclass(frozen=True)
class GeneratorOptions:
    """Options of a generator's training.

    Attributes:
        steps: Optimiser steps.
        learning_rate: Peak of AdamW's learning rate, after 50 warm-up steps, then a cosine to 0.
        batch_size: Histories per step, each with its own request.
        positions: Positions of each history that the losses use.
        random_share: Share of requests about random attributes, whatever the history and the next item.
        empty_share: Share of requests that ask nothing. The rest are true of a next item.
        edit_weight: Weight of the minimal-edit loss, at all positions used.
        next_item_weight: Weight of the next item's cross-entropy, where the item satisfies a true request.
        kappa: Parameter of the minimal-edit loss.
        floor: Parameter of the minimal-edit loss; None leaves its rows on their own scales.
        sparsity_weight: Weight of the paper's sparsity loss (form ``topk`` only).
        attributes: The attributes that requests may name, such as those not held out for a test; None: all.
        concept_share: Share of requests, of all kinds, that a made-up set of items replaces, so that a generator learns
            to steer anywhere. Only a ``CatalogueEncoder`` has vectors for such sets; others ignore the share.
        concept_until: Share of the steps, from the first, that have such sets.
        against_by_frequency: True: a random request asks against an attribute as often as items have it. False: against
            all attributes equally often, most of which few items have.
    """

    steps: int = 1500
    learning_rate: float = 3e-3
    batch_size: int = 64
    positions: int = 8
    random_share: float = 0.4
    empty_share: float = 0.2
    edit_weight: float = 1.0
    next_item_weight: float = 0.1
    kappa: float = 12.0
    floor: float | None = None
    sparsity_weight: float = 0.0
    attributes: tuple[str, ...] | None = None
    concept_share: float = 0.8
    concept_until: float = 0.4
    against_by_frequency: bool = True

    def __post_init__(self) -> None:
        for name, (low, high) in _LIMITS.items():
            value = getattr(self, name)
            if not low <= value <= high:
                raise ConfigError(f"{name}: found {value!r}, expected a number from {low} to {high:g}. Change it.")
        if self.random_share + self.empty_share > 1 + 1e-9:
            raise ConfigError(
                f"random_share + empty_share: found {self.random_share} + {self.empty_share}, expected at most 1 "
                "together. Lower one."
            )

    @classmethod
    def paper(cls, **overrides: Any) -> GeneratorOptions:
        """Return the paper's losses: next item and sparsity (weight 0.3), on requests true of the next item."""
        settings = {"random_share": 0.0, "empty_share": 0.0, "edit_weight": 0.0, "next_item_weight": 1.0}
        return cls(**{**settings, "sparsity_weight": 0.3, "concept_share": 0.0, **overrides})


class RequestCollator:
    """Gives each window of a batch a request and the positions that the losses use, first those that satisfy it.

    The draws depend on ``seed`` and the number of batches before; all processes draw for the whole batch and return
    their own rows. Requests are matched with the next items and ``negatives`` others alone, if that is not None.
    ``source`` gives the requests; None: sentences about attributes.
    """

    def __init__(
        self,
        masks: RequestMaskModel,
        catalogue: Catalogue,
        options: GeneratorOptions,
        seed: int,
        processes: Processes | None = None,
        negatives: int | None = None,
        source: RequestSource | None = None,
    ) -> None:
        self._masks = masks
        self._catalogue = catalogue
        self._options = options
        self._source = request_source(masks, catalogue, options) if source is None else source
        self._tuned = isinstance(masks, RequestMaskModel) and masks.adapter().tuned is not None
        self._seed, self._batches = seed, 0
        self._processes = Processes() if processes is None else processes
        self._negatives = negatives
        self._random, self._generator = random.Random(), torch.Generator()
        self._encoder = _catalogue_encoder(masks)
        self._concepts: ConceptGenerator | None = None
        if self._encoder is not None:
            described = self._encoder.texts, self._encoder.embeddings
            self._concepts = ConceptGenerator(*described, self._random, self._generator)

    def start_at(self, batches: int) -> None:
        """Continue with the batch after the first ``batches``."""
        self._batches = batches

    def __call__(self, windows: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Return a batch of R rows (of this process), P positions and I items.

        ``item_ids`` (R, length), ``vectors`` (R, request_dim), ``positions`` and ``targets`` (R, P) int64; ``known``
        (R, P) bool: there is a next item; ``fits`` (R, P) bool: it satisfies a true request; ``match`` (R, I): how well
        items match. If items are sampled: ``items`` (I,) int64 and the terms ``added`` (I,) of their scores. If some
        rows have no smallest edit: ``edits`` (R,) bool, False for them. If the encoder is tuned: ``texts`` in place of
        ``vectors``.
        """
        item_ids, labels = (torch.stack([window[name] for window in windows]) for name in ("item_ids", "labels"))
        requests, concepts, noise, drawn = self._draw(item_ids, labels)
        known = labels >= 0
        fits = self._fits(requests, concepts, labels) & known
        positions = (noise + known + fits).topk(min(self._options.positions, known.shape[1]), dim=1).indices
        looked_at = {"positions": positions, "known": known.gather(1, positions), "fits": fits.gather(1, positions)}
        looked_at["targets"], sample = self._sample(labels.gather(1, positions), drawn)
        share = self._processes.share(len(windows))
        batch = {
            "item_ids": item_ids[share.rows],
            **self._wishes(requests[share.rows], concepts[share.rows], sample.get("items")),
            **{name: value[share.rows] for name, value in looked_at.items()},
            **sample,
        }
        return batch if self._processes.count == 1 else {**batch, SHARE: share.as_tensor()}

    def _sample(self, targets: Tensor, drawn: Sequence[int] | None) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the columns of the next items, (rows, positions), among the items scored, and those items."""
        if self._negatives is None:
            return targets, {}
        known = targets >= 0
        items, added = with_negatives(targets[known], len(self._catalogue), self._negatives, self._random, drawn)
        columns = torch.full_like(targets, NO_LABEL)
        columns[known] = targets[known].unique(return_inverse=True)[1]  # the targets come first, in this order
        return columns, {"items": items, "added": added}

    def _draw(
        self, item_ids: Tensor, labels: Tensor
    ) -> tuple[list[Drawn], list[Concept | None], Tensor, list[int] | None]:
        """Draw what is random in the next batch: requests, concepts, noise for positions, items.

        The windows of sources with histories of their own are written into ``item_ids`` and ``labels``. The items are
        those that concepts are made of, beside the labels; None: all.
        """
        self._random.seed(f"{self._seed} {self._batches}")
        self._generator.manual_seed(self._random.getrandbits(63))
        early = self._batches < self._options.concept_until * self._options.steps
        concept_share = self._options.concept_share if early else 0.0
        self._batches += 1
        requests = [self._source.draw(window, self._random) for window in _windows(item_ids, labels)]
        for row, request in enumerate(requests):
            if request.window is not None:
                sides = [torch.as_tensor(own, dtype=torch.long) for own in request.window]
                items, following = pad_histories(sides, item_ids.shape[1])
                item_ids[row], labels[row] = items, torch.where(items > 0, following - 1, NO_LABEL)
        noise = torch.rand(labels.shape, generator=self._generator)
        if self._concepts is None:
            return requests, [None] * len(requests), noise, None
        known = labels >= 0
        chosen = [self._random.random() < concept_share for _ in requests]
        drawn: list[int] | None = None
        among: Tensor | None = None
        count = max(_CONCEPT_ITEMS, 2 * (self._negatives or 0))
        if self._negatives is not None and count < len(self._catalogue) // 2:
            drawn = self._random.sample(range(len(self._catalogue)), count)
            among = torch.cat([labels[known], torch.tensor(drawn)]).unique()
        return requests, [self._concepts(among) if own else None for own in chosen], noise, drawn

    def _fits(self, requests: Sequence[Drawn], concepts: Sequence[Concept | None], labels: Tensor) -> Tensor:
        """Mark the next items of each row, (rows, length), that satisfy its true request or wanted-only concept."""
        items = labels.clamp(min=0)
        plain = [request.match if isinstance(request.match, AttributeRequest) else BLANK for request in requests]
        fits = satisfied_by(plain, self._catalogue.attributes, self._catalogue.item_attributes, items)
        fits &= torch.tensor([request.true for request in requests])[:, None]
        for row, (request, concept) in enumerate(zip(requests, concepts, strict=True)):
            if concept is not None:
                never = concept.wanted is None or concept.unwanted is not None
                fits[row] = False if never else concept.wanted[items[row]]  # type: ignore[index]
            elif request.position is not None:
                fits[row, request.position % int((labels[row] >= 0).sum())] = True
            elif request.true and not isinstance(request.match, AttributeRequest):
                fits[row] = True if request.match is None else request.match(items[row]) >= 1
        return fits

    def _wishes(
        self, requests: Sequence[Drawn], concepts: Sequence[Concept | None], items: Tensor | None
    ) -> dict[str, Any]:
        """Return each row's vector or text, and how well all items, or ``items``, match it; concepts come first."""
        flags = self._catalogue.item_attributes if items is None else self._catalogue.item_attributes[items]
        match = torch.zeros(len(requests), len(flags))
        asked = {
            row: request.match
            for row, (request, concept) in enumerate(zip(requests, concepts, strict=True))
            if concept is None and isinstance(request.match, AttributeRequest)
        }
        match[list(asked)] = match_scores(list(asked.values()), self._catalogue.attributes, flags)
        for row, (request, concept) in enumerate(zip(requests, concepts, strict=True)):
            if concept is not None:
                match[row] = concept_match([concept.among(items)], len(flags))[0]
            elif row not in asked and request.match is not None:
                match[row] = request.match(items)  # type: ignore[operator]
        wishes: dict[str, Any] = {"match": match}
        edits = torch.tensor([c is not None or r.match is not None for r, c in zip(requests, concepts, strict=True)])
        if not bool(edits.all()):
            wishes["edits"] = edits
        if self._tuned:
            return {**wishes, "texts": [request.text for request in requests]}
        return {**wishes, "vectors": self._vectors(requests, concepts)}

    def _vectors(self, requests: Sequence[Drawn], concepts: Sequence[Concept | None]) -> Tensor:
        plain = [row for row, concept in enumerate(concepts) if concept is None]
        read = self._masks.encode([requests[row].text for row in plain])
        vectors = read.new_empty(len(requests), read.shape[1])
        vectors[plain] = read
        made_up = [row for row, concept in enumerate(concepts) if concept is not None]
        if made_up and self._encoder is not None:
            sets = [(concept.wanted, concept.unwanted) for concept in concepts if concept is not None]
            vectors[made_up] = self._encoder.concepts(sets)
        return vectors


def request_source(
    masks: Any,
    catalogue: Catalogue,
    options: GeneratorOptions,
    requests: Weights | None = None,
    stated: Iterable[tuple[Sequence[int] | Tensor, str, int]] = (),
) -> MixedSource:
    """Return what a generator is trained on.

    Args:
        masks: The adapted backbone, or a bare encoder, whose features tell which items are alike.
        catalogue: The items.
        options: Shares of requests of each kind.
        requests: The weight of each source, by name or as an object; None: "stated" and "attributes" alike, or what
            there is of them.
        stated: The requests that the data states: (history, text, item).

    Raises:
        ConfigError: If a source is unknown or its weight impossible.
        DataError: If a source has no request.
    """
    stated = list(stated)
    if requests is None:
        there = {STATED: bool(stated), ATTRIBUTES: bool(catalogue.attributes) or not stated}
        requests = {name: 1.0 for name, known in there.items() if known}
    check_weights(requests)
    features = getattr(_catalogue_encoder(masks), "features", None)
    make: dict[str, Callable[[], RequestSource]] = {
        STATED: lambda: SaidSource(stated, len(catalogue), features),
        ATTRIBUTES: lambda: AttributeSource(
            catalogue,
            TRAIN_TEMPLATES,
            options.attributes,
            options.against_by_frequency,
            options.random_share,
            options.empty_share,
        ),
        CATALOGUE: lambda: PhraseSource(catalogue, TRAIN_TEMPLATES, options.random_share),
        HISTORY: lambda: HistorySource(catalogue),
    }
    parts: list[tuple[RequestSource, float]] = []
    silent = 0.0
    for source, weight in requests.items():
        made = make[source]() if isinstance(source, str) else source
        share = 0.0 if isinstance(made, AttributeSource) else options.empty_share  # that one has its own
        silent += share * weight
        parts.append((made, (1 - share) * weight))
    return MixedSource([*parts, (EmptySource(TRAIN_TEMPLATES["none"]), silent)] if silent else parts)


def _windows(item_ids: Tensor, labels: Tensor) -> Iterable[Window]:
    known = labels >= 0
    counts = known.sum(1).tolist()
    rows = ((values[known]).split(counts) for values in (item_ids - 1, labels))
    return (Window(items.tolist(), following.tolist()) for items, following in zip(*rows, strict=True))


def _catalogue_encoder(masks: Any) -> CatalogueEncoder | None:
    """Return the encoder of an adapted backbone, or a bare encoder, if it is a ``CatalogueEncoder``."""
    encoder = without_cache(masks.encoder() if isinstance(masks, RequestMaskModel) else masks)
    return encoder if isinstance(encoder, CatalogueEncoder) else None
