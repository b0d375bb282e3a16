"""Metrics of ranking, of lists and of control, over the whole catalogue, one value per user.

Everywhere ``scores`` and ``seen`` are (rows, items), ``seen`` is bool and marks items that are never recommended, and k
is the length of the list. A metric that is a ratio of means comes as its two parts. ``docs/protocol.md`` has the
formulas.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from cramer_peft.errors import DataError


def target_ranks(scores: Tensor, targets: Tensor) -> Tensor:
    """Return the ranks of targets (rows,) int64, from 1, (rows,) float; ties share their middle, -inf ranks last."""
    own = scores.gather(1, targets[:, None])
    above = (scores > own).sum(1)
    same = (scores == own).sum(1) - 1
    ranks = 1 + above + same / 2
    return torch.where(torch.isfinite(own[:, 0]), ranks, torch.full_like(ranks, scores.shape[1]))


def hit_rate(ranks: Tensor, k: int = 10) -> Tensor:
    """Return HR@k per row: 1 if the target is among the first k, else 0."""
    return (ranks <= k).float()


def ndcg(ranks: Tensor, k: int = 10) -> Tensor:
    """Return NDCG@k per row with one relevant item: 1 / log2(1 + rank) if rank ≤ k, else 0."""
    return torch.where(ranks <= k, 1 / torch.log2(1 + ranks), torch.zeros_like(ranks))


def mrr(ranks: Tensor, k: int = 10) -> Tensor:
    """Return MRR@k per row: 1 / rank if rank ≤ k, else 0."""
    return torch.where(ranks <= k, 1 / ranks, torch.zeros_like(ranks))


RANK_METRICS: dict[str, Callable[[Tensor, int], Tensor]] = {"ndcg": ndcg, "hr": hit_rate, "mrr": mrr}


def without_nan(scores: Tensor) -> Tensor:
    """Return scores (rows, items) of any kind; raise a DataError if one is NaN. Items to leave out may hold -inf."""
    if bool(scores.isnan().any()):
        row = int(scores.isnan().any(1).nonzero()[0])
        raise DataError(f"row {row} of the scores holds NaN: it cannot be ranked. Look at the model that gave it.")
    return scores


def finite_scores(scores: Tensor) -> Tensor:
    """Return a model's scores, (rows, items); raise a DataError if one is NaN or infinite: they cannot be ranked."""
    bad = ~scores.isfinite()
    if bool(bad.any()):
        row, item = bad.nonzero()[0].tolist()
        raise DataError(
            f"row {row} of the scores: found {scores[row, item].item()} for item {item} ({int(bad.sum())} scores of "
            f"{scores.numel()} are not finite), expected finite numbers. Lower the strength of the request, or look at "
            "the weights of the model."
        )
    return scores


def top_items(scores: Tensor, seen: Tensor, k: int = 10) -> Tensor:
    """Return the k best unseen items of each row, (rows, k) int64, best first; raise a DataError if there are fewer."""
    _check_room(seen, k)
    return without_nan(scores).masked_fill(seen, -torch.inf).topk(k, dim=1).indices


def _check_room(seen: Tensor, k: int) -> None:
    unseen = (~seen).sum(1)
    if bool((unseen < k).any()):
        row = int((unseen < k).nonzero()[0])
        raise DataError(f"row {row} has {int(unseen[row])} unseen items, expected {k} or more to recommend from.")


def share(top: Tensor, flags: Tensor) -> Tensor:
    """Return the share of each row's top items (rows, k) that ``flags``, (rows, items) bool, mark; (rows,) float."""
    return flags.gather(1, top).float().mean(1)


def overlap(top: Tensor, reference: Tensor) -> Tensor:
    """Return overlap@k per row: the share of the items ``top``, (rows, k), that are in ``reference``, (rows, k)."""
    return (top[:, :, None] == reference[:, None, :]).any(2).float().mean(1)


def expected_share(scores: Tensor, seen: Tensor, flags: Tensor, k: int = 10) -> Tensor:
    """Return the share of each row's top k that ``flags`` mark, the mean over all orders of ties, (rows,) float.

    So a model cannot gain by scoring all items alike.
    """
    _check_room(seen, k)
    left = without_nan(scores).masked_fill(seen, -torch.inf)
    last = left.topk(k, dim=1).values[:, -1:]
    above, tied = left > last, (left == last) & ~seen
    room = k - above.sum(1)
    return ((flags & above).sum(1) + room * (flags & tied).sum(1) / tied.sum(1)) / k


def best_share(flags: Tensor, seen: Tensor, k: int = 10) -> Tensor:
    """Return the largest share of k unseen items that can be flagged, as a perfect filter reaches it; (rows,) float."""
    return (flags & ~seen).sum(1).clamp(max=k) / k


def ndcg_inside(scores: Tensor, seen: Tensor, fits: Tensor, targets: Tensor, k: int = 10) -> Tensor:
    """Return NDCG@k of each target (rows,) int64 among unseen items that ``fits`` (rows, items) bool marks."""
    candidates = fits & ~seen
    inside = candidates.gather(1, targets[:, None])[:, 0]
    if not bool(inside.all()):
        row = int((~inside).nonzero()[0])
        raise DataError(
            f"row {row}: the target {int(targets[row])} does not satisfy the request or has been seen. "
            "Pass only the rows whose target satisfies the request."
        )
    return ndcg(target_ranks(scores.masked_fill(~candidates, -torch.inf), targets), k)
