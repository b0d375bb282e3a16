"""Asks a ranker everything that the protocol asks, user by user, and puts intervals around the means.

Users are taken in blocks, so that memory does not grow with their number times that of the items.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cramer_peft.errors import DataError
from cramer_peft.recsys.data.catalogue import Catalogue
from cramer_peft.recsys.data.split import pad_histories, seen_mask
from cramer_peft.recsys.evaluation.control import attribute_shares, best_share, distinctness, ndcg_inside, spill_over
from cramer_peft.recsys.evaluation.evaluation import Scorer
from cramer_peft.recsys.evaluation.falsifiers import Check, check_ceiling, check_shuffled, check_triple, shuffled
from cramer_peft.recsys.evaluation.metrics import expected_share, hit_rate, mrr, ndcg, overlap, target_ranks, top_items
from cramer_peft.recsys.evaluation.summary import summarise, sweep_interval
from cramer_peft.recsys.evaluation.tracks import (
    STRENGTHS,
    BlindTracks,
    Track,
    history_counts,
    replica_track,
    truthful_track,
)
from cramer_peft.recsys.requests.attributes import AttributeRequest, match_scores, satisfies
from cramer_peft.recsys.requests.wordings import TEST_TEMPLATES, TRAIN_TEMPLATES

BLOCK, BATCH = 1024, 256
NEGATIVES = 100
OWN = "own requests"  # a data set's
_DRIFT = ("empty", "irrelevant", "contradictory", "blank")
_SAMPLED = "replica, 100 negatives"
StrengthScorer = Callable[[Tensor, Sequence[str | None], float], Tensor]


@dataclass(frozen=True, eq=False)
class Setting:
    """What a ranker is measured on.

    Attributes:
        catalogue: The items.
        histories: Per test user the items before the target.
        targets: The next item, (users,) int64.
        max_length: Longest history that the backbone reads.
        seed: Of the requests.
        k: Length of the lists.
        unseen_attributes: Attributes that training could not name; None: it could name all.
        unseen_users: Which users training has not seen, (users,) bool; None: nothing is said of them.
        max_users: Most users measured, drawn by the seed; None: all.
        only: The only tracks asked; None: all.
    """

    catalogue: Catalogue
    histories: tuple[Tensor, ...]
    targets: Tensor
    max_length: int
    seed: int
    k: int = 10
    unseen_attributes: tuple[str, ...] | None = None
    unseen_users: Tensor | None = None
    max_users: int | None = None
    only: frozenset[str] | None = None

    def __post_init__(self) -> None:
        longest = max(map(len, self.histories))
        if len(self.catalogue) - longest < self.k:
            raise DataError(
                f"a history holds {longest} of the {len(self.catalogue)} items: fewer than {self.k} are left to "
                "recommend. Give a larger catalogue or shorter histories."
            )

    def rows(self) -> Tensor:
        """Indices of the users measured, rising."""
        users = len(self.targets)
        if self.max_users is None or users <= self.max_users:
            return torch.arange(users)
        order = torch.randperm(users, generator=torch.Generator().manual_seed(self.seed))
        return order[: self.max_users].sort().values


@dataclass(frozen=True, eq=False)
class Measured:
    """What was measured.

    Attributes:
        values: "track/metric" → float32 (users,), NaN where a user does not count.
        figures: ``users``, ``tracks``, ``strength``, ``attribute_shares``, ``spill_over``, ``checks``.
    """

    values: dict[str, Tensor]
    figures: dict[str, Any]


def make_tracks(setting: Setting) -> dict[str, Track]:
    """All tracks of a setting, by name; the same for every method.

    The truthful ones are handed the attributes of the next items, the others nothing that comes next.
    """
    catalogue, seed, users = setting.catalogue, setting.seed, len(setting.targets)
    attributes, has = catalogue.attributes, catalogue.item_attributes
    true = has[setting.targets]
    blind = BlindTracks(attributes, TEST_TEMPLATES, seed)
    counts = history_counts(setting.histories, has)
    tracks = [
        truthful_track(true, attributes, TEST_TEMPLATES, seed),
        blind.counterfactual_for(users),
        blind.counterfactual_against(users),
        blind.against_favourite(counts),
        blind.for_unwatched(counts),
        blind.against_unwatched(counts),
        *blind.paired(users),
        blind.shared(users),
        blind.empty(users),
        blind.irrelevant(users),
        blind.contradictory(users),
        blind.blank(users),
        replica_track(catalogue, setting.histories),
    ]
    if len(attributes) > 1:
        tracks.append(blind.mixed(users))
    named = {track.name: track for track in tracks}
    familiar = BlindTracks(attributes, TRAIN_TEMPLATES, seed)
    named["seen wordings truthful"] = truthful_track(true, attributes, TRAIN_TEMPLATES, seed)
    named["seen wordings for"] = familiar.counterfactual_for(users)
    if setting.unseen_attributes is not None:
        seen = tuple(name for name in attributes if name not in setting.unseen_attributes)
        for label, among in (("unseen", setting.unseen_attributes), ("seen", seen)):
            named[f"{label} attributes truthful"] = truthful_track(true, attributes, TEST_TEMPLATES, seed, among)
            named[f"{label} attributes for"] = BlindTracks(attributes, TEST_TEMPLATES, seed, among).counterfactual_for(
                users
            )
    if int(named["truthful"].counts.sum()) > 1:
        named["truthful, shuffled"] = shuffled(named["truthful"], seed)
    if setting.only is not None:
        named = {name: track for name, track in named.items() if name in setting.only}
    return {name: track for name, track in named.items() if bool(track.counts.any())}


class _Values:
    """Collects values per user, block by block."""

    def __init__(self, users: int) -> None:
        self._users = users
        self._columns: dict[str, Tensor] = {}

    def put(self, key: str, rows: Tensor, values: Tensor, counts: Tensor | None = None) -> None:
        column = self._columns.setdefault(key, torch.full((self._users,), torch.nan))
        values = values.float()
        column[rows] = values if counts is None else torch.where(counts, values, torch.nan)

    def done(self) -> dict[str, Tensor]:
        """Columns in which somebody counts."""
        return {key: column for key, column in self._columns.items() if not bool(column.isnan().all())}


@dataclass(frozen=True, eq=False)
class _Block:
    """Some users, with the frozen model's answers."""

    rows: Tensor
    item_ids: Tensor
    seen: Tensor
    targets: Tensor
    frozen: Tensor
    frozen_top: Tensor


class _Measuring:
    def __init__(
        self,
        setting: Setting,
        frozen: Scorer,
        scorer: Scorer | None,
        strength: StrengthScorer | None,
        tracks: Mapping[str, Track],
    ) -> None:
        self.setting, self.frozen, self.scorer, self.strength, self.tracks = setting, frozen, scorer, strength, tracks
        self.values = _Values(len(setting.targets))
        self.lists: dict[str, list[Tensor]] = defaultdict(list)
        self.different = 0
        sweep = BlindTracks(setting.catalogue.attributes, TEST_TEMPLATES, setting.seed).strength_sweep(
            len(setting.targets)
        )
        self.sweep = sweep if strength is not None and setting.only is None else ()

    @torch.no_grad()
    def run(self) -> None:
        """Ask all users."""
        for block in self.blocks():
            self.block(block)

    def blocks(self) -> Iterator[_Block]:
        setting = self.setting
        for rows in setting.rows().split(BLOCK):
            histories = [setting.histories[row] for row in rows.tolist()]
            item_ids, seen = (
                pad_histories(histories, setting.max_length),
                seen_mask(histories, len(setting.catalogue)),
            )
            frozen = _scores(self.frozen, item_ids, [None] * len(rows))
            yield _Block(rows, item_ids, seen, setting.targets[rows], frozen, top_items(frozen, seen, setting.k))

    def block(self, block: _Block) -> None:
        for name, track in self.tracks.items():
            requests = [track.requests[row] for row in block.rows.tolist()]
            scores = self._answer(block, requests)
            self._track(name, block, requests, track.counts[block.rows], scores)
        for alpha, track in self.sweep:
            self._strength(block, alpha, [track.requests[row] for row in block.rows.tolist()])

    def _answer(self, block: _Block, requests: Sequence[AttributeRequest]) -> Tensor:
        if self.scorer is None:
            return block.frozen
        return _scores(self.scorer, block.item_ids, [request.text for request in requests])

    def _track(
        self, name: str, block: _Block, requests: Sequence[AttributeRequest], counts: Tensor, scores: Tensor
    ) -> None:
        top = top_items(scores, block.seen, self.setting.k)
        if name in _DRIFT:
            self.values.put(f"{name}/overlap", block.rows, overlap(top, block.frozen_top), counts)
            if name == "blank":
                self.different += int((scores != block.frozen).any(1).sum())
            return
        if "truthful" in name or name in ("replica", OWN):
            self._accuracy(name, block, counts, scores)
        if name == OWN:
            return  # nobody knows what they are made of
        if name == "replica":
            self._sampled(block, counts, scores)
            return
        if not name.endswith("shuffled"):
            self._control(name, block, requests, counts, scores)
        if name == "shared":
            self.lists["shared"].append(top)
        if name in ("for", "against"):
            self.lists[name].append(attribute_shares(top, self.setting.catalogue.item_attributes))
        if name == "for":
            self.lists["before"].append(attribute_shares(block.frozen_top, self.setting.catalogue.item_attributes))

    def _accuracy(self, name: str, block: _Block, counts: Tensor, scores: Tensor) -> None:
        k = self.setting.k
        ranks = target_ranks(scores.masked_fill(block.seen, -torch.inf), block.targets)
        before = target_ranks(block.frozen.masked_fill(block.seen, -torch.inf), block.targets)
        for metric, value in (("ndcg", ndcg), ("hr", hit_rate), ("mrr", mrr)):
            self.values.put(f"{name}/{metric}", block.rows, value(ranks, k), counts)
        self.values.put(f"{name}/frozen_ndcg", block.rows, ndcg(before, k), counts)
        if name == "truthful":
            self.values.put("truthful/rank", block.rows, ranks, counts)
        if name == "truthful" and self.setting.unseen_users is not None:
            for label, chosen in (("unseen", self.setting.unseen_users), ("seen", ~self.setting.unseen_users)):
                own = counts & chosen[block.rows]
                self.values.put(f"{label} users truthful/ndcg", block.rows, ndcg(ranks, k), own)
                self.values.put(f"{label} users truthful/frozen_ndcg", block.rows, ndcg(before, k), own)

    def _sampled(self, block: _Block, counts: Tensor, scores: Tensor) -> None:
        """The paper's ranking: the target against 100 random items that the user has not met."""
        generator = torch.Generator().manual_seed(self.setting.seed * 1_000_003 + int(block.rows[0]))
        candidates = torch.rand(scores.shape, generator=generator)
        candidates = candidates.masked_fill(block.seen, -1).scatter_(1, block.targets[:, None], -1)
        negatives = candidates.topk(min(NEGATIVES, scores.shape[1] - 1), dim=1)
        ranks = []
        for given in (scores, block.frozen):
            drawn = given.gather(1, negatives.indices).masked_fill(negatives.values < 0, -torch.inf)
            listed = torch.cat([given.gather(1, block.targets[:, None]), drawn], dim=1)
            ranks.append(target_ranks(listed, torch.zeros(len(listed), dtype=torch.long)))
        for metric, value in (("ndcg", ndcg), ("hr", hit_rate), ("mrr", mrr)):
            self.values.put(f"{_SAMPLED}/{metric}", block.rows, value(ranks[0], self.setting.k), counts)
        self.values.put(f"{_SAMPLED}/frozen_ndcg", block.rows, ndcg(ranks[1], self.setting.k), counts)

    def _control(
        self, name: str, block: _Block, requests: Sequence[AttributeRequest], counts: Tensor, scores: Tensor
    ) -> None:
        catalogue, k, put = self.setting.catalogue, self.setting.k, self.values.put
        fits = satisfies(requests, catalogue.attributes, catalogue.item_attributes)
        if any(request.wanted for request in requests):
            put(f"{name}/satisfaction", block.rows, expected_share(scores, block.seen, fits, k), counts)
            put(f"{name}/frozen_satisfaction", block.rows, expected_share(block.frozen, block.seen, fits, k), counts)
            put(f"{name}/best_satisfaction", block.rows, best_share(fits, block.seen, k), counts)
        if any(request.unwanted for request in requests):
            excluded = _excluded(requests, catalogue)
            label = "share" if name == "against favourite" else "violation"
            put(f"{name}/{label}", block.rows, expected_share(scores, block.seen, excluded, k), counts)
            put(f"{name}/frozen_{label}", block.rows, expected_share(block.frozen, block.seen, excluded, k), counts)
        if "truthful" in name:
            return  # there the target always fits: retention is a question to requests that know nothing of it
        inside = (fits & ~block.seen).gather(1, block.targets[:, None])[:, 0] & counts
        if not bool(inside.any()):
            return
        rest = block.seen[inside], fits[inside], block.targets[inside], k
        put(f"{name}/inside_ndcg", block.rows[inside], ndcg_inside(scores[inside], *rest))
        put(f"{name}/frozen_inside_ndcg", block.rows[inside], ndcg_inside(block.frozen[inside], *rest))

    def _strength(self, block: _Block, alpha: float, requests: Sequence[AttributeRequest]) -> None:
        strength = self.strength
        assert strength is not None
        texts = [request.text for request in requests]
        scores = _scores(lambda item_ids, asked: strength(item_ids, asked, alpha), block.item_ids, texts)
        fits = satisfies(requests, self.setting.catalogue.attributes, self.setting.catalogue.item_attributes)
        value = expected_share(scores, block.seen, fits, self.setting.k)
        self.values.put(f"strength {alpha:g}/satisfaction", block.rows, value)
        if alpha == 0:
            self.different += int((scores != block.frozen).any(1).sum())

    def result(self, reads: bool) -> Measured:
        rows = self.setting.rows()
        if len(rows) > 1 and self.lists["shared"]:
            self.values.put("shared/distinctness", rows, distinctness(torch.cat(self.lists["shared"])))
        values = self.values.done()
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
        if self.lists["for"] and self.lists["against"]:
            figures |= self._shares(rows)
        return Measured(values, figures)

    def _shares(self, rows: Tensor) -> dict[str, Any]:
        """Shares of the attributes before and after, and what asking for one does to the others."""
        before, after, against = (torch.cat(self.lists[name]) for name in ("before", "for", "against"))
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
        setting: On what.
        frozen: The frozen model.
        scorer: The method; None: the frozen model itself.
        strength: The method at a given strength; None: it has none.
        tracks: By :func:`make_tracks`; None: made here.
        reads: Whether shuffled requests must erase its gain.

    Raises:
        DataError: If scores cannot be ranked or a user has too few unseen items.
    """
    measuring = _Measuring(setting, frozen, scorer, strength, make_tracks(setting) if tracks is None else tracks)
    measuring.run()
    return measuring.result(reads)


def measure_values(
    setting: Setting, frozen: Scorer, scorer: Scorer | None, tracks: Mapping[str, Track]
) -> dict[str, Tensor]:
    """The values of :func:`measure` alone: "track/metric" → float32 (users,), NaN where a user does not count."""
    measuring = _Measuring(setting, frozen, scorer, None, tracks)
    measuring.run()
    return measuring.values.done()


def _scores(scorer: Scorer, item_ids: Tensor, texts: Sequence[str | None]) -> Tensor:
    starts = range(0, len(item_ids), BATCH)
    parts = [scorer(item_ids[start : start + BATCH], texts[start : start + BATCH]).cpu() for start in starts]
    return torch.cat(parts)


def _excluded(requests: Sequence[AttributeRequest], catalogue: Catalogue) -> Tensor:
    turned = [AttributeRequest(request.text, request.unwanted, (), request.family) for request in requests]
    return match_scores(turned, catalogue.attributes, catalogue.item_attributes) > 0


def _own(shares: Tensor, columns: Tensor) -> Tensor:
    """For each attribute its mean share over the users who named it, (attributes,); NaN where nobody did."""
    count = torch.bincount(columns, minlength=shares.shape[1])
    own = shares.gather(1, columns[:, None])[:, 0]
    return torch.zeros(shares.shape[1]).index_add_(0, columns, own) / count


def _plain(values: Tensor) -> list[float | None]:
    """Numbers for JSON, null for NaN."""
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


__all__ = [
    "NEGATIVES",
    "OWN",
    "STRENGTHS",
    "Measured",
    "Setting",
    "StrengthScorer",
    "make_tracks",
    "measure",
    "measure_values",
]
