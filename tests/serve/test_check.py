"""The check of answers against the model called one at a time."""

import torch
from serve.check import check

from cramer_peft.recsys.recommender import RequestRecommender


def test_right_and_wrong_lists(recommender: RequestRecommender) -> None:
    ids = recommender.catalogue.item_ids
    items = [ids[i] for i in recommender.recommend([20, 30], "more horror", k=5).items]
    other = [ids[i] for i in recommender.recommend([20, 30], "less war", k=5).items]
    assert items != other
    call = {"history": ["i20", "i30"], "request": "more horror", "k": 5}
    wrong = [other, items[:4], [*items[:4], items[0]], items[::-1]]
    answers = [{**call, "items": found} for found in (items, *wrong)]
    assert check(recommender, answers) == {"equal": 1, "close": 0, "wrong": 4}


def test_equal_scores_may_change_places(recommender: RequestRecommender) -> None:
    with torch.no_grad():
        for parameter in recommender.masks.model.parameters():
            parameter.zero_()
    call = {"history": ["i20"], "request": None, "k": 3}
    found = [{**call, "items": items} for items in (["i0", "i1", "i2"], ["i50", "i0", "i2"], ["i0", "i0", "i1"])]
    assert check(recommender, found) == {"equal": 1, "close": 1, "wrong": 1}
