"""Asks a ranker everything that the benchmark asks, user by user, and puts intervals around the means."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from benchmark.measures.control import attribute_shares, distinctness, spill_over
from benchmark.measures.falsifiers import Check, check_ceiling, check_shuffled, check_triple, shuffled
from benchmark.measures.sampled import drawn_negatives, sampled_ranks
from benchmark.measures.summary import summarise, sweep_interval
from benchmark.measures.tracks import REPLICA, BenchmarkTracks, replica_track
from cramer_peft.recsys.data.own_data import check_room
from cramer_peft.recsys.devices import brought_to
from cramer_peft.recsys.evaluation.evaluator import Block, Evaluator
from cramer_peft.recsys.evaluation.metrics import RANK_METRICS, expected_share, top_items
from cramer_peft.recsys.evaluation.tracks import (
    AGAINST,
    BLANK_TEXT,
    FOR,
    TRUTHFUL,
    BlindTracks,
    Track,
    history_counts,
    standard_tracks,
    truthful_track,
)
from cramer_peft.recsys.evaluation.users import EvaluationUsers, Scorer, batched_scores, drawn_rows
from cramer_peft.recsys.requests.attribute_requests import AttributeRequest
from cramer_peft.recsys.requests.matching import satisfies
from cramer_peft.recsys.requests.wordings import TEST_TEMPLATES, TRAIN_TEMPLATES

_SAMPLED = "replica, 100 negatives"
StrengthScorer = Callable[[Tensor, Sequence[str | None], float], Tensor]


def frozen_scorer(backbone: Any) -> Scorer:
    """Return a scorer by a backbone without masks, which ignores requests."""

    def score(item_ids: Tensor, requests: Sequence[str | None]) -> Tensor:
        scores: Tensor = backbone(brought_to(backbone, item_ids))
        return scores

    return score


@dataclass(frozen=True, eq=False)
class Setting(EvaluationUsers):
    """The users that a ranker is measured on, and what is asked of it.

    Attributes:
        seed: Seed of the requests.
        k: Length of the lists.
        unseen_attributes: Attributes that training could not name; None: it could name all.
        unseen_users: The users that training has not seen, (users,) bool; None: unknown.
        max_users: Most users measured, drawn by the seed; None: all.
        only: The only tracks asked; None: all.
    """

    seed: int
    k: int = 10
    unseen_attributes: tuple[str, ...] | None = None
    unseen_users: Tensor | None = None
    max_users: int | None = None
    only: frozenset[str] | None = None

    def __post_init__(self) -> None:
        check_room(self.histories, len(self.catalogue), self.k)

    def rows(self) -> Tensor:
        """Return the users measured, ascending."""
        return drawn_rows(len(self), self.max_users, self.seed)


@dataclass(frozen=True, eq=False)
class Measured:
    """The results of one method.

    Attributes:
        values: "track/metric" → float32 (users,), NaN where a user does not count.
        figures: ``users``, ``tracks``, ``strength``, ``attribute_shares``, ``spill_over``, ``checks``.
    """

    values: dict[str, Tensor]
    figures: dict[str, Any]


def make_tracks(setting: Setting) -> dict[str, Track]:
    """Make all tracks of a setting, by name; the same for every method.

    The truthful ones see the attributes of the next items, the others nothing of them.
    """
    catalogue, seed, users = setting.catalogue, setting.seed, len(setting)
    attributes, has = catalogue.attributes, catalogue.item_attributes
    true = has[setting.targets]
    blind = BenchmarkTracks(attributes, TEST_TEMPLATES, seed)
    counts = history_counts(setting.histories, has)
    named = standard_tracks(setting, TEST_TEMPLATES, seed)
    tracks = [
        blind.for_unwatched(counts),
        blind.against_unwatched(counts),
        *blind.paired(users),
        blind.shared(users),
        blind.irrelevant(users),
        blind.contradictory(users),
        blind.blank(users),
        replica_track(catalogue, setting.histories),
    ]
    if len(attributes) > 1:
        tracks.append(blind.mixed(users))
    named |= {track.name: track for track in tracks}
    familiar = BlindTracks(attributes, TRAIN_TEMPLATES, seed)
    named["seen wordings truthful"] = truthful_track(true, attributes, TRAIN_TEMPLATES, seed)
    named["seen wordings for"] = familiar.counterfactual_for(users)
    if setting.unseen_attributes is not None:
        seen = tuple(name for name in attributes if name not in setting.unseen_attributes)
        for label, among in (("unseen", setting.unseen_attributes), ("seen", seen)):
            columns = [attributes.index(name) for name in among]
            named[f"{label} attributes truthful"] = truthful_track(true[:, columns], among, TEST_TEMPLATES, seed)
            named[f"{label} attributes for"] = BlindTracks(among, TEST_TEMPLATES, seed).counterfactual_for(users)
    if int(named[TRUTHFUL].counts.sum()) > 1:
        named["truthful, shuffled"] = shuffled(named[TRUTHFUL], seed)
    if setting.only is not None:
        named = {name: track for name, track in named.items() if name in setting.only}
    return {name: track for name, track in named.items() if bool(track.counts.any())}


class _Measuring(Evaluator):
    """The evaluator, with the strength sweep, the paper's sampled ranking, and what the checks need."""

    frozen_rank_metrics: ClassVar[tuple[str, ...]] = ("ndcg",)

    def __init__(
        self,
        setting: Setting,
        frozen: Scorer,
        scorer: Scorer | None,
        strength: StrengthScorer | None,
        tracks: Mapping[str, Track],
    ) -> None:
        super().__init__(setting, frozen, scorer, tracks, setting.rows(), setting.k)
        self.setting, self.strength = setting, strength
        self.lists: dict[str, list[Tensor]] = defaultdict(list)
        self.different = 0
        blind = BenchmarkTracks(setting.catalogue.attributes, TEST_TEMPLATES, setting.seed)
        sweep = blind.strength_sweep(len(setting))
        self.sweep = sweep if strength is not None and setting.only is None else ()

    def measure(self, block: Block) -> None:
        super().measure(block)
        for alpha, track in self.sweep:
            self._strength(block, alpha, [track.requests[row] for row in block.rows.tolist()])

    def measure_track(
        self, name: str, track: Track, block: Block, requests: Sequence[AttributeRequest], scores: Tensor
    ) -> None:
        super().measure_track(name, track, block, requests, scores)
        flags = self.setting.catalogue.item_attributes
        if name == BLANK_TEXT:
            self.different += int((scores != block.frozen).any(1).sum())
        if name == REPLICA:
            self._sampled(block, track.counts[block.rows], scores)
        if name in ("shared", FOR, AGAINST):
            top = top_items(scores, block.seen, self.k)
            self.lists[name].append(top if name == "shared" else attribute_shares(top, flags))
        if name == FOR:
            self.lists["before"].append(attribute_shares(block.frozen_top, flags))

    def ranked(self, name: str, block: Block, counts: Tensor, ranks: Tensor, before: Tensor) -> None:
        if name != TRUTHFUL:
            return
        self.put("truthful/rank", block.rows, ranks, counts)
        unseen, ndcg = self.setting.unseen_users, RANK_METRICS["ndcg"]
        if unseen is not None:
            for label, chosen in (("unseen", unseen), ("seen", ~unseen)):
                own = counts & chosen[block.rows]
                self.put(f"{label} users truthful/ndcg", block.rows, ndcg(ranks, self.k), own)
                self.put(f"{label} users truthful/frozen_ndcg", block.rows, ndcg(before, self.k), own)

    def _sampled(self, block: Block, counts: Tensor, scores: Tensor) -> None:
        """Rank as the paper does: the target against 100 random items that the user has not met."""
        negatives = drawn_negatives(block.seen, block.targets, self.setting.seed * 1_000_003 + int(block.rows[0]))
        ranks = [sampled_ranks(given, block.targets, negatives) for given in (scores, block.frozen)]
        for metric, value in RANK_METRICS.items():
            self.put(f"{_SAMPLED}/{metric}", block.rows, value(ranks[0], self.k), counts)
        self.put(f"{_SAMPLED}/frozen_ndcg", block.rows, RANK_METRICS["ndcg"](ranks[1], self.k), counts)

    def _strength(self, block: Block, alpha: float, requests: Sequence[AttributeRequest]) -> None:
        strength, catalogue = self.strength, self.setting.catalogue
        assert strength is not None
        texts = [request.text for request in requests]
        scores = batched_scores(lambda item_ids, given: strength(item_ids, given, alpha), block.item_ids, texts)
        fits = satisfies(requests, catalogue.attributes, catalogue.item_attributes)
        self.put(f"strength {alpha:g}/satisfaction", block.rows, expected_share(scores, block.seen, fits, self.k))
        if alpha == 0:
            self.different += int((scores != block.frozen).any(1).sum())

    def result(self, reads: bool) -> Measured:
        """Measure all, and summarise."""
        values, rows = self.run(), self.rows
        if len(rows) > 1 and self.lists["shared"]:
            column = torch.full((len(self.setting),), torch.nan)
            column[rows] = distinctness(torch.cat(self.lists["shared"]))
            values["shared/distinctness"] = column
        if {"paired for/satisfaction", "paired against/violation"} <= values.keys():
            values["paired/contrast"] = values["paired for/satisfaction"] - values["paired against/violation"]
        checks = _checks(values, self.setting, reads, self.different)
        figures: dict[str, Any] = {
            "users": len(rows),
            "tracks": summarise(values, self.setting.seed),
            "checks": [{"name": check.name, "holds": check.holds, "detail": check.detail} for check in checks],
        }
        if self.sweep:
            figures["strength"] = sweep_interval(values, self.setting.seed)
        if self.lists[FOR] and self.lists[AGAINST]:
            figures |= self._shares_of_attributes(rows)
        return Measured(values, figures)

    def _shares_of_attributes(self, rows: Tensor) -> dict[str, Any]:
        """Return the attributes' shares before and after, and the effect of asking for one on the others."""
        before, after, against = (torch.cat(self.lists[name]) for name in ("before", FOR, AGAINST))
        names = self.setting.catalogue.attributes
        columns = {name: column for column, name in enumerate(names)}
        tracks = self.tracks
        asked = torch.tensor([columns[tracks["for"].requests[row].wanted[0]] for row in rows.tolist()])
        avoided = torch.tensor([columns[tracks["against"].requests[row].unwanted[0]] for row in rows.tolist()])
        matrix, _ = spill_over(before, after, asked)
        shares = {
            "attributes": list(names),
            "before": _plain(before.mean(0)),
            "for": _plain(_own(after, asked)),
            "against": _plain(_own(against, avoided)),
        }
        spill = {"attributes": list(names), "matrix": [_plain(row) for row in matrix]}
        return {"attribute_shares": shares, "spill_over": spill}


def measure(
    setting: Setting,
    frozen: Scorer,
    scorer: Scorer | None = None,
    strength: StrengthScorer | None = None,
    tracks: Mapping[str, Track] | None = None,
    reads: bool = True,
) -> Measured:
    """Measure one method.

    Args:
        setting: The users and the questions.
        frozen: The frozen model.
        scorer: The method; None: the frozen model itself.
        strength: The method at a given strength; None: it has none.
        tracks: The tracks; None: those of :func:`make_tracks`.
        reads: Check that shuffled requests erase its gain.

    Raises:
        DataError: If scores cannot be ranked or a user has too few unseen items.
    """
    tracks = make_tracks(setting) if tracks is None else tracks
    return _Measuring(setting, frozen, scorer, strength, tracks).result(reads)


def _own(shares: Tensor, columns: Tensor) -> Tensor:
    """Return each attribute's mean share over the users who named it, (attributes,); NaN if nobody did."""
    count = torch.bincount(columns, minlength=shares.shape[1])
    own = shares.gather(1, columns[:, None])[:, 0]
    return torch.zeros(shares.shape[1]).index_add_(0, columns, own) / count


def _plain(values: Tensor) -> list[float | None]:
    """Return numbers for JSON, None for NaN."""
    return [None if value != value else value for value in values.tolist()]


def _checks(values: Mapping[str, Tensor], setting: Setting, reads: bool, different: int) -> list[Check]:
    checks = []
    if reads and "truthful, shuffled/ndcg" in values:
        keys = ("truthful/ndcg", "truthful, shuffled/ndcg", "truthful/frozen_ndcg")
        own, other, before = (values[key][~values[key].isnan()] for key in keys)
        checks.append(check_shuffled(own, other, before, seed=setting.seed))
    pairs = [
        (value, values[key.replace("/satisfaction", "/best_satisfaction")])
        for key, value in values.items()
        if key.endswith("/satisfaction") and key.replace("/satisfaction", "/best_satisfaction") in values
    ]
    if pairs:
        satisfaction, best = (torch.cat(column) for column in zip(*pairs, strict=True))
        counted = ~satisfaction.isnan()
        checks.append(check_ceiling(satisfaction[counted], best[counted]))
    if "blank/overlap" in values or any(key.startswith("strength 0/") for key in values):
        name = "blank requests and strength 0 give the frozen scores"
        checks.append(Check(name, different == 0, f"{different} rows differ"))
    if "truthful/rank" in values:
        ranks = values["truthful/rank"]
        checks.append(check_triple(ranks[~ranks.isnan()], setting.k))
    return checks
