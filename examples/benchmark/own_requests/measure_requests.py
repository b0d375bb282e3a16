"""Ask a ranker each user's own request, another's, one mean request for all, and none; rank in two ways."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmark.measures.sampled import drawn_negatives, sampled_ranks
from cramer_peft.recsys.data.histories import pad_histories, seen_mask
from cramer_peft.recsys.devices import brought_to
from cramer_peft.recsys.evaluation.batches import rows_together
from cramer_peft.recsys.evaluation.metrics import RANK_METRICS, expected_share, unseen_ranks
from cramer_peft.recsys.evaluation.users import BATCH, Scorer, without_nan

MEAN, NONE = "mean request", "no request"  # beside the tracks OWN and SHUFFLED
SAMPLED = ", 100 negatives"
LENGTHS = (10, 20)  # of the lists


@dataclass(frozen=True, eq=False)
class RequestScorer:
    """A method, as it is asked.

    Attributes:
        scores: Scores (rows, items) of padded histories under a text or None for each row.
        mean: The same under one mean request for everybody; None: the method has none.
    """

    scores: Scorer
    mean: Callable[[Tensor], Tensor] | None


@dataclass(frozen=True, eq=False)
class AskedUsers:
    """The users measured.

    Attributes:
        histories: Per user the items before the target, (n,) int64.
        targets: The next items, (users,) int64.
        rows: The users measured, (n,) int64, ascending.
        tracks: Name → the text of each user, or None.
        probes: Sentence → the same, by which only the share of ``flags`` in the lists is measured.
        flags: The items with the probed attribute, (items,) bool; None: there are no probes.
    """

    histories: Sequence[Tensor]
    targets: Tensor
    rows: Tensor
    tracks: Mapping[str, Sequence[str | None]]
    probes: Mapping[str, str]
    flags: Tensor | None


@torch.no_grad()
def request_values(
    users: AskedUsers, backbone: torch.nn.Module, scorer: RequestScorer | None, seed: int
) -> dict[str, Tensor]:
    """Return "track/metric@k" → float32 (users,), NaN for users who are not measured or have no request.

    The tracks are those of ``users``, beside ``MEAN`` and ``NONE``; each stands for ranks in the whole catalogue and,
    with ``SAMPLED`` behind its name, among 100 random unseen items, the same for all methods.

    Args:
        users: The users.
        backbone: The frozen model.
        scorer: The method; None: the frozen model alone.
        seed: Of the negatives.
    """
    values: dict[str, Tensor] = {}

    def put(key: str, rows: Tensor, found: Tensor) -> None:
        values.setdefault(key, torch.full((len(users.targets),), torch.nan))[rows] = found.float()

    items, length = int(backbone.num_items), int(backbone.max_length)  # type: ignore[arg-type]
    for rows in users.rows.split(rows_together(items, BATCH)):
        histories = [users.histories[row] for row in rows.tolist()]
        item_ids = brought_to(backbone, pad_histories(histories, length))
        seen, targets = seen_mask(histories, items), users.targets[rows]
        negatives = drawn_negatives(seen, targets, seed * 1_000_003 + int(rows[0]))
        scored = _scored(users, rows, item_ids, backbone, scorer)
        for track, (counts, scores) in scored.items():
            ranks = {
                track: unseen_ranks(scores, seen, targets),
                track + SAMPLED: sampled_ranks(scores, targets, negatives),
            }
            for name, found in ranks.items():
                put(f"{name}/rank", rows[counts], found[counts])
                for metric, value in RANK_METRICS.items():
                    for k in LENGTHS:
                        put(f"{name}/{metric}@{k}", rows[counts], value(found, k)[counts])
        if users.flags is not None:
            flags = users.flags.expand(len(rows), -1)
            put(f"probe: {NONE}/share", rows, expected_share(scored[NONE][1], seen, flags, LENGTHS[0]))
            for name, text in users.probes.items() if scorer is not None else ():
                scores = without_nan(scorer.scores(item_ids, [text] * len(rows)).float().cpu())  # type: ignore[union-attr]
                put(f"probe: {name}/share", rows, expected_share(scores, seen, flags, LENGTHS[0]))
    return values


def _scored(
    users: AskedUsers, rows: Tensor, item_ids: Tensor, backbone: torch.nn.Module, scorer: RequestScorer | None
) -> dict[str, tuple[Tensor, Tensor]]:
    """Return, for each track, the rows that count and the scores of all."""
    everybody = torch.ones(len(rows), dtype=torch.bool)
    scored = {NONE: (everybody, without_nan(backbone(item_ids).float().cpu()))}
    if scorer is None:
        return scored
    for name, given in users.tracks.items():
        texts = [given[row] for row in rows.tolist()]
        counts = torch.tensor([text is not None for text in texts])
        if bool(counts.any()):
            scored[name] = counts, without_nan(scorer.scores(item_ids, texts).float().cpu())
    if scorer.mean is not None:
        scored[MEAN] = everybody, without_nan(scorer.mean(item_ids).float().cpu())
    return scored
