from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from benchmark.transfer.alignment import ItemAlignment, item_table
from benchmark.transfer.target_backbone import adapt_backbone

from cramer_peft.errors import DataError
from cramer_peft.recsys.backbones import SASRec
from cramer_peft.recsys.data.splits import Split
from cramer_peft.recsys.training.backbone_training import BackboneOptions

pytest.importorskip("accelerate")

GAMES, LENGTH = 24, 8


def test_only_the_items_are_learned(
    sasrec: SASRec, alignment: ItemAlignment, played: Split, quick: BackboneOptions
) -> None:
    before = {name: tensor.clone() for name, tensor in sasrec.state_dict().items()}
    target = adapt_backbone(sasrec, alignment, played, quick)
    after = target.state_dict()
    table = "bert.embeddings.word_embeddings.weight"
    assert set(after) == set(before)
    changed = [name for name in before if not torch.equal(after[name], before[name])]
    assert table in changed
    assert all(torch.equal(after[name], after[table]) for name in changed)  # tied to it, where there are others
    assert not torch.equal(item_table(target), alignment.embeddings)
    assert torch.equal(after[table][0], before[table][0])
    assert all(torch.equal(tensor, before[name]) for name, tensor in sasrec.state_dict().items())
    assert (target.num_items, target.max_length, target.training) == (GAMES, LENGTH, False)
    assert type(target) is SASRec


def test_items_can_be_held_where_they_were_put(
    sasrec: SASRec, alignment: ItemAlignment, played: Split, quick: BackboneOptions
) -> None:
    moved = [
        float((item_table(adapt_backbone(sasrec, alignment, played, quick, pull)) - alignment.embeddings).norm())
        for pull in (0.0, 1e4)
    ]
    assert moved[1] < 0.7 * moved[0]


def test_an_alignment_of_other_items_is_refused(
    sasrec: SASRec, alignment: ItemAlignment, played: Split, quick: BackboneOptions
) -> None:
    short = replace(alignment, embeddings=alignment.embeddings[:5])
    with pytest.raises(DataError, match="found 5 aligned items"):
        adapt_backbone(sasrec, short, played, quick)
    with pytest.raises(DataError, match="pull=-1"):
        adapt_backbone(sasrec, alignment, played, quick, pull=-1)
