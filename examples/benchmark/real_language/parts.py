"""The rows of the dialogues, split into a part for choices and a part for the test."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from benchmark.measures.tracks import hold_out
from benchmark.real_language.matching import MatchedRequests
from cramer_peft.errors import DataError
from cramer_peft.recsys.data.histories import pad_histories, seen_mask


@dataclass(frozen=True, eq=False)
class RedialPart:
    """Rows of one part of the dialogues, ready to be scored.

    Attributes:
        item_ids: Padded histories, (rows, length) int64.
        seen: Items of each whole history, (rows, items) bool; they are never recommended.
        targets: The item that was recommended and liked, (rows,) int64.
        requests: The seeker's words before it, a text for each row.
        dialogues: Each row's dialogue.
    """

    item_ids: Tensor
    seen: Tensor
    targets: Tensor
    requests: tuple[str, ...]
    dialogues: tuple[str, ...]

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.requests)


@dataclass(frozen=True, eq=False)
class RedialParts:
    """The rows for choices and those for the test; no dialogue is in both.

    Attributes:
        validation: Rows that every choice is made on.
        test: Rows to be looked at once.
        without_history: Rows left out because too few titles of their history are known.
    """

    validation: RedialPart
    test: RedialPart
    without_history: int


def split_dialogues(
    matched: MatchedRequests, num_items: int, max_length: int, test_share: float = 0.7, seed: int = 0
) -> RedialParts:
    """Split rows by dialogue, and leave out those without a history.

    Args:
        matched: Requests whose titles were found in the catalogue.
        num_items: Items of the catalogue.
        max_length: Longest history that the backbone reads.
        test_share: Share of the dialogues that the test gets.
        seed: Seed of the draw of dialogues.

    Raises:
        DataError: If fewer than two dialogues have rows with a history, or an argument is impossible.
    """
    rows = [row for row, history in enumerate(matched.histories) if len(history)]
    left_out = len(matched) - len(rows) + matched.report.short_history
    known = sorted({matched.dialogues[row] for row in rows})
    if len(known) < 2:
        raise DataError(f"{len(known)} dialogue(s) have rows with a history, expected two or more to split.")
    kept, _ = hold_out(known, test_share, seed)
    kept_names = set(kept)

    def part(wanted: bool) -> RedialPart:
        chosen = [row for row in rows if (matched.dialogues[row] in kept_names) == wanted]
        histories = [matched.histories[row] for row in chosen]
        return RedialPart(
            pad_histories(histories, max_length),
            seen_mask(histories, num_items),
            matched.targets[chosen],
            tuple(matched.requests[row] for row in chosen),
            tuple(matched.dialogues[row] for row in chosen),
        )

    return RedialParts(part(True), part(False), left_out)
