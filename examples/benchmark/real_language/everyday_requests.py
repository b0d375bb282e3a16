"""Measure on everyday requests whether a recommender moves pairs of items apart as people would.

The file has lines of a request and two items, tab-separated, with a header: ``request``, ``more_id`` and ``less_id``. A
pair is right if the first item gains on the second: in the mean over users of the items' log-probabilities, with the
request less without it.

    python -m benchmark.real_language.everyday_requests --adapter FOLDER --pairs pairs.tsv --data FOLDER
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from cramer_peft.recsys import RequestRecommender
from cramer_peft.recsys.data.histories import pad_histories
from cramer_peft.recsys.data.own_data import load_own_data

USERS = 100  # whose histories the requests are asked with


def gains(recommender: RequestRecommender, histories: Sequence[Tensor], requests: Sequence[str]) -> dict[str, Tensor]:
    """Return request → what it adds to each item's mean log-probability, (items,) float."""
    masks = recommender.masks
    inputs = pad_histories(histories, int(masks.model.max_length))  # type: ignore[arg-type]
    with torch.no_grad():
        frozen = masks(inputs, request=None).log_softmax(-1).mean(0)
        return {text: masks(inputs, request=text).log_softmax(-1).mean(0) - frozen for text in requests}


def main() -> None:
    """Print the share of right pairs, the requests that move nothing, and the wrong pairs with what was heard."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adapter", type=Path, required=True)
    parser.add_argument("--pairs", type=Path, required=True)
    parser.add_argument("--data", required=True)
    options = parser.parse_args()
    recommender = RequestRecommender.load(options.adapter)
    histories = load_own_data(options.data).split.history("test")[:USERS]
    with options.pairs.open(encoding="utf-8", newline="") as file:
        pairs = list(csv.DictReader(file, delimiter="\t"))
    moved = gains(recommender, histories, list(dict.fromkeys(pair["request"] for pair in pairs)))
    index = recommender.catalogue.index_of
    wrong = [
        pair
        for pair in pairs
        if not moved[pair["request"]][index(pair["more_id"])] > moved[pair["request"]][index(pair["less_id"])]
    ]
    still = [text for text, own in moved.items() if not bool(own.any())]
    print(f"{1 - len(wrong) / len(pairs):.3f} of {len(pairs)} pairs are right")
    print(f"{len(still)} of {len(moved)} requests move nothing: {'; '.join(still)}")
    titles = recommender.catalogue.titles
    for pair in wrong:
        more, less = titles[index(pair["more_id"])], titles[index(pair["less_id"])]
        print(f"wrong: {pair['request']!r} should prefer {more} to {less}; {recommender.hear(pair['request'])}")


if __name__ == "__main__":
    main()
