"""Match the titles of dialogues to the items of a catalogue."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmark.real_language.requests_file import RedialRequest
from benchmark.titles import TitleIndex
from cramer_peft.errors import DataError
from cramer_peft.recsys.data.catalogue import Catalogue


@dataclass(frozen=True)
class MatchReport:
    """Counts of the requests and titles that were matched to a catalogue.

    Each request is counted in one of the first five fields.

    Args:
        kept: Requests whose target is in the catalogue and not in their history, which is long enough.
        target_unknown: No item has the target's title and year.
        target_ambiguous: Several items have them.
        target_seen: The target is in the history, so it cannot be recommended.
        short_history: Too few titles of the history are in the catalogue.
        targets_matched: Requests whose target is one item, whether they are kept or not.
        history_titles: Titles in all histories.
        history_matched: Those of them that are one item.
        history_ambiguous: Those that may be several items.
    """

    kept: int
    target_unknown: int
    target_ambiguous: int
    target_seen: int
    short_history: int
    targets_matched: int
    history_titles: int
    history_matched: int
    history_ambiguous: int

    @property
    def requests(self) -> int:
        """Number of requests that were matched to the catalogue."""
        return self.kept + self.target_unknown + self.target_ambiguous + self.target_seen + self.short_history

    @property
    def target_rate(self) -> float:
        """Share of the targets that are one item of the catalogue."""
        return self.targets_matched / self.requests

    @property
    def history_rate(self) -> float:
        """Share of the titles in histories that are one item of the catalogue; 0 if there are none."""
        return self.history_matched / max(self.history_titles, 1)


@dataclass(frozen=True, eq=False)
class MatchedRequests:
    """The requests that a catalogue can answer, row by row.

    Args:
        histories: Per row an int64 tensor of shape ``(n,)``: distinct item indices in the dialogue's order.
        requests: The utterances, a text for each row.
        targets: Int64, shape ``(rows,)``; never in the row's history.
        dialogues: Each row's dialogue. Rows of one dialogue are not independent: draw whole dialogues in a bootstrap.
        report: Counts of what was kept and what was left out.
    """

    histories: tuple[Tensor, ...]
    requests: tuple[str, ...]
    targets: Tensor
    dialogues: tuple[str, ...]
    report: MatchReport

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.requests)


def match_requests(
    requests: Sequence[RedialRequest],
    catalogue: Catalogue,
    years: Sequence[int | None] | None = None,
    min_history: int = 1,
) -> MatchedRequests:
    """Turn requests about titles into requests about a catalogue's items.

    Titles are matched by :class:`~benchmark.titles.TitleIndex`; one that may mean several items is not matched.
    Titles of a history that are not matched are left out of it, and of several that are one item the first is kept.

    Args:
        requests: Return value of ``read_redial``.
        catalogue: The items to recommend from.
        years: The year of each item, or None, for example from ``read_years``; by default from titles and ids.
        min_history: Items that a history must have for its request to be kept; 0 keeps requests without any, which
            :func:`~cramer_peft.recsys.data.histories.pad_histories` refuses.

    Raises:
        DataError: If there are no requests, ``min_history`` is negative, the years do not fit the catalogue, or
            nothing is kept.
    """
    if not requests:
        raise DataError("requests: found none, expected at least one.")
    if min_history < 0:
        raise DataError(f"min_history: found {min_history}, expected 0 or more.")
    index = TitleIndex(catalogue, years)
    counts: defaultdict[str, int] = defaultdict(int)
    kept: list[tuple[list[int], RedialRequest, int]] = []
    for request in requests:
        found = [index.find(title) for title in request.history]
        counts["history_titles"] += len(found)
        counts["history_matched"] += sum(len(items) == 1 for items in found)
        counts["history_ambiguous"] += sum(len(items) > 1 for items in found)
        history = list(dict.fromkeys(items[0] for items in found if len(items) == 1))
        target = index.find(request.target)
        counts["targets_matched"] += len(target) == 1
        outcome = _outcome(target, history, min_history)
        counts[outcome] += 1
        if outcome == "kept":
            kept.append((history, request, target[0]))
    report = MatchReport(**{name: counts[name] for name in MatchReport.__dataclass_fields__})
    if not kept:
        raise DataError(f"No request can be kept with this catalogue of {len(catalogue)} items: {report}.")
    return MatchedRequests(
        histories=tuple(torch.tensor(history, dtype=torch.long) for history, _, _ in kept),
        requests=tuple(request.request for _, request, _ in kept),
        targets=torch.tensor([target for _, _, target in kept], dtype=torch.long),
        dialogues=tuple(request.dialogue for _, request, _ in kept),
        report=report,
    )


def _outcome(target: tuple[int, ...], history: list[int], min_history: int) -> str:
    if not target:
        return "target_unknown"
    if len(target) > 1:
        return "target_ambiguous"
    if target[0] in history:
        return "target_seen"
    return "short_history" if len(history) < min_history else "kept"
