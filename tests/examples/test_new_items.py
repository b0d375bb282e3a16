from __future__ import annotations

import pytest
import torch
from new_items import gain, measured, taken_out
from training_profile import made_up

from cramer_peft import RequestMaskConfig
from cramer_peft.recsys.backbones import SASRec
from cramer_peft.recsys.masks import mask_backbone
from cramer_peft.recsys.recommender import RequestRecommender

pytest.importorskip("wordllama")


def test_what_is_taken_out_is_nowhere_in_training() -> None:
    catalogue, whole = made_up(users=9, items=40, attributes=4, events=8)
    known, new, split = taken_out(catalogue, whole.train, 0.25, seed=1)
    assert (len(known), len(new)) == (30, 10)
    assert {*known.item_ids, *new.item_ids} == {*catalogue.item_ids}
    left = [[item for item in row.tolist() if catalogue.item_ids[item] in known.item_ids] for row in whole.train]
    left = [row for row in left if len(row) >= 3]
    found = [
        torch.cat([train, ends]).tolist()
        for train, ends in zip(split.train, torch.stack([split.validation_target, split.test_target], 1), strict=True)
    ]
    for row, items in zip(found, left, strict=True):
        assert [known.item_ids[item] for item in row] == [catalogue.item_ids[item] for item in items]
    for part in (known, new):
        for item, item_id in enumerate(part.item_ids):
            assert part.attribute_names(item) == catalogue.attribute_names(catalogue.index_of(item_id))


def test_new_and_old_items_are_ranked_among_their_own() -> None:
    catalogue, split = made_up(users=9, items=40, attributes=4, events=8)
    backbone = SASRec(SASRec.configure(40)).eval()
    recommender = RequestRecommender(mask_backbone(backbone, catalogue, RequestMaskConfig()), catalogue)
    found = measured(recommender, 10, split, "validation", 5, seed=0)
    assert found.shape[1] == 6
    assert 0 < len(found) <= 9
    assert torch.equal(found[:, 0], found[:, 1])  # an untrained generator changes nothing
    assert bool((found[:, [2, 5]] >= found[:, [0, 3]]).all())
    assert gain(torch.tensor([0.2, 0.6, 0.7])) == pytest.approx(0.8)
