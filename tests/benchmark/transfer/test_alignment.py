from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from benchmark.transfer.alignment import ItemAlignment, align_items, item_table

from cramer_peft import HashingEncoder
from cramer_peft.errors import DataError
from cramer_peft.recsys.backbones import SASRec
from cramer_peft.recsys.data.catalogue import Catalogue
from cramer_peft.recsys.data.splits import Split

pytest.importorskip("accelerate")

KINDS = ("Action", "Comedy", "Puzzle")  # the source knows the first two

GAMES, LENGTH = 24, 8


def test_items_are_put_beside_those_with_the_same_attributes(
    alignment: ItemAlignment, sasrec: SASRec, catalogue: Catalogue
) -> None:
    known = item_table(sasrec)
    means = torch.stack([known[catalogue.item_attributes[:, catalogue.attributes.index(k)]].mean(0) for k in KINDS[:2]])
    distances = torch.cdist(alignment.embeddings[3:], means)
    kinds = torch.arange(3, GAMES) % 3
    assert (distances[kinds == 0].argmin(1) == 0).all()
    assert (distances[kinds == 1].argmin(1) == 1).all()
    assert alignment.explained > 0.05


def test_the_same_item_keeps_its_embedding(
    alignment: ItemAlignment, sasrec: SASRec, catalogue: Catalogue, split: Split, games: Catalogue, text: HashingEncoder
) -> None:
    assert alignment.copied.nonzero().flatten().tolist() == [0]
    assert torch.equal(alignment.embeddings[0], item_table(sasrec)[catalogue.find_title("Action tale 4")])
    apart = align_items(sasrec, catalogue, split, games, text, same_items=False)
    assert not apart.copied.any()
    assert torch.equal(apart.embeddings[1:], alignment.embeddings[1:])


def test_a_backbone_for_other_items_is_refused(
    make_sasrec: Callable[..., SASRec], catalogue: Catalogue, split: Split, games: Catalogue, text: HashingEncoder
) -> None:
    with pytest.raises(DataError, match="knows 7 items"):
        align_items(make_sasrec(num_items=7), catalogue, split, games, text)
