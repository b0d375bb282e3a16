"""The evaluator of every command: it scores users under requests and keeps one value per user, track and metric.

Users are measured in blocks, so memory does not grow with users times items, nor with the items but for one row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor

from cramer_peft.recsys.data.histories import pad_histories, seen_mask
from cramer_peft.recsys.data.own_data import LIST_LENGTH
from cramer_peft.recsys.evaluation import metrics
from cramer_peft.recsys.evaluation.batches import by_rows, rows_together
from cramer_peft.recsys.evaluation.tracks import ACCURACY, CONTROL, FAVOURITE, OVERLAP, Track
from cramer_peft.recsys.evaluation.users import EvaluationUsers, Scorer, batched_scores
from cramer_peft.recsys.requests.attribute_requests import AttributeRequest
from cramer_peft.recsys.requests.matching import excludes, satisfies

BLOCK = 1024  # users measured together, at most; see rows_together


@dataclass(frozen=True, eq=False)
class Block:
    """Some users with the frozen model's scores and lists."""

    rows: Tensor  # (n,) int64
    item_ids: Tensor  # padded histories, (n, length)
    seen: Tensor  # (n, items) bool
    targets: Tensor  # next items, (n,) int64
    frozen: Tensor  # (n, items)
    frozen_top: Tensor  # (n, k)

    @cached_property
    def frozen_ranks(self) -> Tensor:
        """Ranks of the next items by the frozen model, (n,) float."""
        return metrics.unseen_ranks(self.frozen, self.seen, self.targets)


class Evaluator:
    """Asks a scorer (None: the frozen model) all tracks and keeps one value per user, track and metric.

    ``tracks`` hold requests of all users; those measured are ``rows``, ascending (None: all). Lists have length ``k``.
    """

    frozen_rank_metrics: ClassVar[tuple[str, ...]] = tuple(metrics.RANK_METRICS)

    def __init__(
        self,
        users: EvaluationUsers,
        frozen: Scorer,
        scorer: Scorer | None,
        tracks: Mapping[str, Track],
        rows: Tensor | None = None,
        k: int = LIST_LENGTH,
    ) -> None:
        self.users, self.frozen, self.scorer, self.tracks, self.k = users, frozen, scorer, tracks, k
        self.rows = torch.arange(len(users)) if rows is None else rows
        self._columns: dict[str, Tensor] = {}

    @torch.no_grad()
    def run(self) -> dict[str, Tensor]:
        """Return "track/metric" → float32 (users,), NaN where a user does not count, if anybody does."""
        for rows in self.rows.split(rows_together(len(self.users.catalogue), BLOCK)):
            self.measure(self.block(rows))  # not kept while the next one is made
        return {key: column for key, column in self._columns.items() if not bool(column.isnan().all())}

    def block(self, rows: Tensor) -> Block:
        """Return some users, (n,) int64, as a block."""
        histories = [self.users.histories[row] for row in rows.tolist()]
        item_ids = pad_histories(histories, self.users.max_length)
        seen = seen_mask(histories, len(self.users.catalogue))
        frozen = batched_scores(self.frozen, item_ids, [None] * len(rows))
        return Block(rows, item_ids, seen, self.users.targets[rows], frozen, metrics.top_items(frozen, seen, self.k))

    def measure(self, block: Block) -> None:
        """Ask and measure all tracks for some users."""
        for name, track in self.tracks.items():
            requests = [track.requests[row] for row in block.rows.tolist()]
            self.measure_track(name, track, block, requests, self._scores(block, requests))

    def _scores(self, block: Block, requests: Sequence[AttributeRequest]) -> Tensor:
        if self.scorer is None:
            return block.frozen
        return batched_scores(self.scorer, block.item_ids, [request.text for request in requests])

    def measure_track(
        self, name: str, track: Track, block: Block, requests: Sequence[AttributeRequest], scores: Tensor
    ) -> None:
        """Measure one track for some users."""
        counts = track.counts[block.rows]
        if OVERLAP in track.metrics:
            top = metrics.top_items(scores, block.seen, self.k)
            self.put(f"{name}/overlap", block.rows, metrics.overlap(top, block.frozen_top), counts)
        if ACCURACY in track.metrics:
            self._accuracy(name, block, counts, scores)
        if CONTROL in track.metrics:
            self._control(name, track, block, requests, scores)

    def put(self, key: str, rows: Tensor, values: Tensor, counts: Tensor | None = None) -> None:
        """Keep values of some users; NaN for those who do not count."""
        column = self._columns.setdefault(key, torch.full((len(self.users),), torch.nan))
        values = values.float()
        column[rows] = values if counts is None else torch.where(counts, values, torch.nan)

    def _accuracy(self, name: str, block: Block, counts: Tensor, scores: Tensor) -> None:
        ranks, before = metrics.unseen_ranks(scores, block.seen, block.targets), block.frozen_ranks
        for metric, value in metrics.RANK_METRICS.items():
            self.put(f"{name}/{metric}", block.rows, value(ranks, self.k), counts)
        for metric in self.frozen_rank_metrics:
            self.put(f"{name}/frozen_{metric}", block.rows, metrics.RANK_METRICS[metric](before, self.k), counts)
        self.ranked(name, block, counts, ranks, before)

    def ranked(self, name: str, block: Block, counts: Tensor, ranks: Tensor, before: Tensor) -> None:
        """Take the ranks of the targets, (n,), and the frozen model's; for subclasses that measure more."""

    def _control(
        self, name: str, track: Track, block: Block, requests: Sequence[AttributeRequest], scores: Tensor
    ) -> None:
        vocabulary = self.users.catalogue.attributes, self.users.catalogue.item_attributes
        counts, fits = track.counts[block.rows], satisfies(requests, *vocabulary)
        if any(request.wanted for request in requests):
            self._shares(name, "satisfaction", block, fits, counts, scores)
            self.put(f"{name}/best_satisfaction", block.rows, metrics.best_share(fits, block.seen, self.k), counts)
        if any(request.unwanted for request in requests):
            metric = "share" if name == FAVOURITE else "violation"
            self._shares(name, metric, block, excludes(requests, *vocabulary), counts, scores)
        if ACCURACY in track.metrics:
            return  # the target of a truthful request always satisfies it, so retention would say nothing
        own = block.targets[:, None]
        inside = (fits.gather(1, own) & ~block.seen.gather(1, own))[:, 0] & counts
        if bool(inside.any()):
            for label, given in (("", scores), ("frozen_", block.frozen)):
                values = self._ndcg_inside(given, block, fits, inside.nonzero().flatten())
                self.put(f"{name}/{label}inside_ndcg", block.rows[inside], values)

    def _ndcg_inside(self, scores: Tensor, block: Block, fits: Tensor, inside: Tensor) -> Tensor:
        def measure(rows: Tensor) -> Tensor:
            return metrics.ndcg_inside(scores[rows], block.seen[rows], fits[rows], block.targets[rows], self.k)

        return by_rows(measure, scores.shape[1], inside)  # the rows are copied, so only a few at a time

    def _shares(self, name: str, metric: str, block: Block, flags: Tensor, counts: Tensor, scores: Tensor) -> None:
        for label, given in (("", scores), ("frozen_", block.frozen)):
            value = metrics.expected_share(given, block.seen, flags, self.k)
            self.put(f"{name}/{label}{metric}", block.rows, value, counts)
