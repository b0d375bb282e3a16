"""Metrics of ranking, of lists and of control, over the whole catalogue, one value per user.

Everywhere ``scores`` and ``seen`` are (rows, items), ``seen`` is bool and marks items that are never recommended, and k
is the length of the list. A metric that is a ratio of means comes as its two parts. ``docs/protocol.md`` has the
formulas.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from cramer_peft.errors import DataError
from cramer_peft.recsys.evaluation.batches import by_rows


def target_ranks(scores: Tensor, targets: Tensor) -> Tensor:
    """Return the ranks of targets (rows,) int64, from 1, (rows,) float; ties share their middle, -inf ranks last."""
    own = scores.gather(1, targets[:, None])
    above = (scores > own).sum(1)
    same = (scores == own).sum(1) - 1
    ranks = 1 + above + same / 2
    return torch.where(torch.isfinite(own[:, 0]), ranks, torch.full_like(ranks, scores.shape[1]))


def unseen_ranks(scores: Tensor, seen: Tensor, targets: Tensor) -> Tensor:
    """Return :func:`target_ranks` of targets (rows,) int64 among the unseen items, (rows,) float."""
    return by_rows(_unseen_ranks, scores.shape[1], scores, seen, targets)


def _unseen_ranks(scores: Tensor, seen: Tensor, targets: Tensor) -> Tensor:
    return target_ranks(scores.masked_fill(seen, -torch.inf), targets)


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
    if scores.numel() and bool(scores.detach().amax().isnan()):  # without a second table
        row = int(scores.isnan().any(1).nonzero()[0])
        raise DataError(f"row {row} of the scores holds NaN: it cannot be ranked. Look at the model that gave it.")
    return scores


def finite_scores(scores: Tensor) -> Tensor:
    """Return a model's scores, (rows, items); raise a DataError if one is NaN or infinite: they cannot be ranked."""
    ends = torch.stack(scores.detach().aminmax()) if scores.numel() else scores.new_zeros(2)
    if not bool(ends.isfinite().all()):
        bad = ~scores.isfinite()
        row, item = bad.nonzero()[0].tolist()
        raise DataError(
            f"row {row} of the scores: found {scores[row, item].item()} for item {item} ({int(bad.sum())} scores of "
            f"{scores.numel()} are not finite), expected finite numbers. Lower the strength of the request, or look at "
            "the weights of the model."
        )
    return scores


def top_items(scores: Tensor, seen: Tensor, k: int = 10) -> Tensor:
    """Return the k best unseen items of each row, (rows, k) int64, best first; of equal scores the lower index first.

    So a shorter list is the beginning of a longer one. A DataError is raised if a row has fewer than k unseen items.
    """
    _check_room(seen, k)
    return by_rows(partial(_top_items, k), scores.shape[1], without_nan(scores), seen)


def _top_items(k: int, scores: Tensor, seen: Tensor) -> Tensor:
    left = scores.masked_fill(seen, -torch.inf)
    found = left.topk(min(k + 1, left.shape[1]), dim=1)  # the next one, too, tells whether the last place is tied
    items = found.indices[:, :k].clone()
    for row in _tied_ends(found.values, k):
        items[row] = _first_of_equals(left[row], seen[row], found.values[row, k - 1], k)
    items = items.sort(dim=1).values
    order = left.gather(1, items).sort(dim=1, descending=True, stable=True).indices
    return items.gather(1, order)


def _tied_ends(best: Tensor, k: int) -> list[int]:
    """Return the rows whose place k is shared with place k + 1; ``best`` are the scores of both and those before."""
    if not 0 < k < best.shape[1]:
        return []
    rows: list[int] = (best[:, k - 1] == best[:, k]).nonzero().flatten().tolist()
    return rows


def _first_of_equals(left: Tensor, seen: Tensor, last: Tensor, k: int) -> Tensor:
    """Return the k best items of a row (items,): all above the score ``last``, then the first ones that have it."""
    above = (left > last).nonzero().flatten()
    equal = ((left == last) & ~seen).nonzero().flatten()
    return torch.cat([above, equal[: k - len(above)]])


def _check_room(seen: Tensor, k: int) -> None:
    if int(seen.count_nonzero()) <= seen.shape[1] - k:
        return  # the same for each row
    unseen = by_rows(lambda piece: (~piece).sum(1), seen.shape[1], seen)
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
    return by_rows(partial(_expected_share, k), scores.shape[1], without_nan(scores), seen, flags)


def _expected_share(k: int, scores: Tensor, seen: Tensor, flags: Tensor) -> Tensor:
    left = scores.masked_fill(seen, -torch.inf)
    last = left.topk(k, dim=1).values[:, -1:]
    above, tied = left > last, (left == last) & ~seen
    room = k - above.sum(1)
    return ((flags & above).sum(1) + room * (flags & tied).sum(1) / tied.sum(1)) / k


def best_share(flags: Tensor, seen: Tensor, k: int = 10) -> Tensor:
    """Return the largest share of k unseen items that can be flagged, as a perfect filter reaches it; (rows,) float."""
    most = by_rows(lambda flags, seen: (flags & ~seen).sum(1), seen.shape[1], flags, seen)
    return most.clamp(max=k) / k


def ndcg_inside(scores: Tensor, seen: Tensor, fits: Tensor, targets: Tensor, k: int = 10) -> Tensor:
    """Return NDCG@k of each target (rows,) int64 among unseen items that ``fits`` (rows, items) bool marks."""
    inside = (fits.gather(1, targets[:, None]) & ~seen.gather(1, targets[:, None]))[:, 0]
    if not bool(inside.all()):
        row = int((~inside).nonzero()[0])
        raise DataError(
            f"row {row}: the target {int(targets[row])} does not satisfy the request or has been seen. "
            "Pass only the rows whose target satisfies the request."
        )
    return ndcg(by_rows(_ranks_inside, scores.shape[1], scores, seen, fits, targets), k)


def _ranks_inside(scores: Tensor, seen: Tensor, fits: Tensor, targets: Tensor) -> Tensor:
    return _unseen_ranks(scores, seen | ~fits, targets)
