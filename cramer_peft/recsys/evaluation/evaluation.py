"""Evaluates anything that scores a catalogue under requests: accuracy, control, and what it leaves alone."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cramer_peft.recsys.data.catalogue import Catalogue
from cramer_peft.recsys.data.split import Split, Stage, pad_histories, seen_mask
from cramer_peft.recsys.devices import brought_to
from cramer_peft.recsys.evaluation.metrics import hit_rate, mrr, ndcg, overlap, share, target_ranks, top_items
from cramer_peft.recsys.requests.attributes import AttributeRequest, RequestGenerator, match_scores, satisfies

# Scores (rows, items) of histories (rows, length) under one request text, or None, for each row.
Scorer = Callable[[Tensor, Sequence[str | None]], Tensor]


def frozen_scorer(backbone: Any) -> Scorer:
    """A scorer by a backbone as it is, whatever is asked."""

    def score(item_ids: Tensor, requests: Sequence[str | None]) -> Tensor:
        scores: Tensor = backbone(brought_to(backbone, item_ids))
        return scores

    return score


_BATCH = 256


@dataclass(frozen=True)
class EvaluationUsers:
    """The users of one stage of a split, ready to be scored.

    Attributes:
        catalogue: The items and their attributes.
        item_ids: Padded histories, (users, length).
        seen: Items of each whole history, (users, items) bool; they are never recommended.
        targets: The next item, (users,) int64.
    """

    catalogue: Catalogue
    item_ids: Tensor
    seen: Tensor
    targets: Tensor

    @classmethod
    def of(cls, catalogue: Catalogue, split: Split, stage: Stage, max_length: int) -> EvaluationUsers:
        """All users of a stage."""
        histories = split.history(stage)
        targets = split.test_target if stage == "test" else split.validation_target
        return cls(catalogue, pad_histories(histories, max_length), seen_mask(histories, len(catalogue)), targets)

    def score(self, scorer: Scorer, requests: Sequence[AttributeRequest] | None) -> Tensor:
        """Scores of all users, each under their own request; (users, items), on the CPU."""
        texts = [None] * len(self.item_ids) if requests is None else [request.text for request in requests]
        with torch.no_grad():
            return torch.cat(
                [
                    scorer(self.item_ids[start : start + _BATCH], texts[start : start + _BATCH]).cpu()
                    for start in range(0, len(texts), _BATCH)
                ]
            )


@dataclass(frozen=True)
class Tracks:
    """One request per user and question asked of a method.

    Attributes:
        truthful: True of the user's next item: names attributes that it has, or lacks.
        wanted: For one random attribute, whatever the next item.
        unwanted: Against one random attribute, whatever the next item.
        favourite: Against the attribute that is most frequent in the user's history.
        empty: Asks nothing.
    """

    truthful: tuple[AttributeRequest, ...]
    wanted: tuple[AttributeRequest, ...]
    unwanted: tuple[AttributeRequest, ...]
    favourite: tuple[AttributeRequest, ...]
    empty: tuple[AttributeRequest, ...]


def make_tracks(users: EvaluationUsers, requests: RequestGenerator, seed: int) -> Tracks:
    """Draw the requests of all tracks.

    Only ``truthful`` is handed anything of the target: its attributes, never its title.
    """
    catalogue, count = users.catalogue, len(users.targets)
    # a stream for each track, so that no other track depends on the targets
    truthful, wanted, unwanted, favourite, empty = (random.Random(5 * seed + number) for number in range(5))
    frequent = (users.seen.float() @ catalogue.item_attributes.float()).argmax(1).tolist()
    return Tracks(
        truthful=tuple(
            requests.truthful(catalogue.attribute_names(target), truthful) for target in users.targets.tolist()
        ),
        wanted=tuple(requests.counterfactual(wanted, "for") for _ in range(count)),
        unwanted=tuple(requests.counterfactual(unwanted, "against") for _ in range(count)),
        favourite=tuple(requests.against_attribute(catalogue.attributes[index], favourite) for index in frequent),
        empty=tuple(requests.empty(empty) for _ in range(count)),
    )


def evaluate(scorer: Scorer, users: EvaluationUsers, tracks: Tracks, frozen: Tensor, k: int = 10) -> dict[str, float]:
    """Metrics of one method, means over the users; the whole catalogue is ranked, seen items removed.

    Args:
        scorer: The method.
        users: Whom it is asked for.
        tracks: What it is asked.
        frozen: Scores of the frozen model, (users, items), to compare lists with.
        k: Length of the list.

    Returns:
        ``ndcg``, ``hr``, ``mrr``: of the next item under truthful requests, and ``ndcg:FAMILY`` for each
        family of requests. ``satisfaction``: share of the list that has the attribute asked for.
        ``violation``: share that has the attribute excluded. ``favourite``: share of the attribute most
        frequent in the history, when asked against. ``overlap_empty``: overlap with the frozen list when
        nothing is asked. ``overlap_blank``: the same for a blank text.
    """

    def top(requests: Sequence[AttributeRequest]) -> Tensor:
        return top_items(users.score(scorer, requests), users.seen, k)

    scores = users.score(scorer, tracks.truthful).masked_fill(users.seen, -torch.inf)
    ranks = target_ranks(scores, users.targets)
    gains = ndcg(ranks, k)
    frozen_top = top_items(frozen, users.seen, k)
    blank = [AttributeRequest(" ", (), (), "none")] * len(ranks)
    metrics = {
        "ndcg": float(gains.mean()),
        "hr": float(hit_rate(ranks, k).mean()),
        "mrr": float(mrr(ranks, k).mean()),
        "satisfaction": float(share(top(tracks.wanted), _fit(tracks.wanted, users.catalogue)).mean()),
        "violation": float(share(top(tracks.unwanted), _excluded(tracks.unwanted, users.catalogue)).mean()),
        "favourite": float(share(top(tracks.favourite), _excluded(tracks.favourite, users.catalogue)).mean()),
        "overlap_empty": float(overlap(top(tracks.empty), frozen_top).mean()),
        "overlap_blank": float(overlap(top(blank), frozen_top).mean()),
    }
    for family in sorted({request.family for request in tracks.truthful}):
        rows = torch.tensor([request.family == family for request in tracks.truthful])
        metrics[f"ndcg:{family}"] = float(gains[rows].mean())
    return metrics


def _fit(requests: Sequence[AttributeRequest], catalogue: Catalogue) -> Tensor:
    return satisfies(requests, catalogue.attributes, catalogue.item_attributes)


def _excluded(requests: Sequence[AttributeRequest], catalogue: Catalogue) -> Tensor:
    """Items that have an attribute which the request excludes, (requests, items) bool."""
    wanted_instead = [AttributeRequest(r.text, r.unwanted, (), r.family) for r in requests]
    return match_scores(wanted_instead, catalogue.attributes, catalogue.item_attributes) > 0
