"""Checks answers of the server against the model, called for one of them at a time: ``python -m serve.check``.

The rows of a batch are independent, but a score may differ in its last bits with the shape of the batch, so a list
counts as right if it is the reference's, or if at each place the reference scores its item as high as its own,
within ``TOLERANCE``. A list of someone else's call is not.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from cramer_peft.recsys.data.histories import pad_histories
from cramer_peft.recsys.recommender import RequestRecommender

from .ranking import best_items

TOLERANCE = 1e-4


def check(recommender: RequestRecommender, answers: Iterable[dict[str, Any]]) -> dict[str, int]:
    """Count the answers that are right.

    Args:
        recommender: What the server serves.
        answers: Calls, ``history`` by item ids, each with the ids in ``items`` that were answered.

    Returns:
        How many were ``equal`` to the reference, ``close`` (scores within the tolerance), ``wrong``.
    """
    counts = {"equal": 0, "close": 0, "wrong": 0}
    for answer in answers:
        counts[_verdict(recommender, answer)] += 1
    return counts


def _verdict(recommender: RequestRecommender, answer: dict[str, Any]) -> str:
    catalogue = recommender.catalogue
    history = torch.tensor([catalogue.index_of(item_id) for item_id in answer["history"]])
    inputs = pad_histories([history], int(recommender.masks.model.max_length))  # type: ignore[arg-type]
    with torch.no_grad():
        scores = recommender.masks(inputs, request=answer["request"])[0]
    scores[history] = -torch.inf
    (expected,) = best_items(scores[None], [answer["k"]])
    found = [catalogue.index_of(item_id) for item_id in answer["items"]]
    if found == expected:
        return "equal"
    if len(found) != len(expected) or len(set(found)) < len(found):
        return "wrong"
    return "close" if torch.allclose(scores[found], scores[expected], rtol=0, atol=TOLERANCE) else "wrong"


def main() -> None:
    """Print the counts, as JSON, for a recommender's folder and a file with an answer in each line."""
    torch.set_num_threads(1)
    folder, answers = map(Path, sys.argv[1:])
    with answers.open(encoding="utf-8") as lines:
        print(json.dumps(check(RequestRecommender.load(folder), map(json.loads, lines))))


if __name__ == "__main__":
    main()
