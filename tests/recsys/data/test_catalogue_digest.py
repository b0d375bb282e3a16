import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cramer_peft import RequestMaskModel
from cramer_peft.errors import DataError
from cramer_peft.recsys.data.catalogue import Catalogue
from cramer_peft.recsys.data.catalogue_digest import DIGEST_FILE, check_count, check_digest, write_digest
from cramer_peft.recsys.data.splits import Split
from cramer_peft.recsys.training.backbone_training import train_backbone
from cramer_peft.recsys.training.generator_training import train_generator

FLAGS = torch.tensor([[True, False], [False, True], [True, True]])
SHOP = Catalogue(("a", "b", "c"), ("Ann", "Bob", "Cyd"), ("new", "old"), FLAGS)
TURNED = Catalogue(("c", "b", "a"), ("Cyd", "Bob", "Ann"), ("new", "old"), FLAGS.flip(0))
OTHER_ITEM = replace(SHOP, item_ids=("a", "b", "d"))
JOINED = Catalogue(("a", "bc"), ("Ann", "Bob"), ("new", "old"), FLAGS[:2])
SPLIT = Catalogue(("ab", "c"), ("Ann", "Bob"), ("new", "old"), FLAGS[:2])
RETITLED = replace(SHOP, titles=("Bob", "Ann", "Cyd"))
REGROUPED = replace(SHOP, item_attributes=~FLAGS)


@pytest.mark.parametrize("content", [True, False])
@pytest.mark.parametrize("other", [TURNED, OTHER_ITEM, JOINED])
def test_other_items_or_another_order_are_refused(other: Catalogue, content: bool, tmp_path: Path) -> None:
    write_digest(tmp_path, SHOP, content)
    check_digest(tmp_path, SHOP)
    with pytest.raises(DataError, match=rf"{DIGEST_FILE}: item_ids: found the digest \w{{12}}…, expected .*trained on"):
        check_digest(tmp_path, other)


@pytest.mark.parametrize("other", [RETITLED, REGROUPED])
def test_titles_and_attributes_matter_to_adapters_alone(other: Catalogue, tmp_path: Path) -> None:
    write_digest(tmp_path, SHOP, content=False)
    check_digest(tmp_path, other)
    write_digest(tmp_path, SHOP, content=True)
    with pytest.raises(DataError, match=r"content: found the digest .*other titles or attributes"):
        check_digest(tmp_path, other)


def test_digests_are_those_of_the_stored_catalogue(tmp_path: Path) -> None:
    SHOP.save(tmp_path / "catalogue.json")
    assert Catalogue.load(tmp_path / "catalogue.json").digests == SHOP.digests
    assert SPLIT.digests["item_ids"] != JOINED.digests["item_ids"]
    assert SHOP.digests["item_ids"] == "8210654a6fd3d117dd34a2e73cf4b10bfe9edc0b09f3942e908ec6087b694655"


def test_weights_of_earlier_versions_are_known_by_their_catalogue_if_any(tmp_path: Path) -> None:
    check_digest(tmp_path, TURNED)
    own = tmp_path / "catalogue.json"
    check_digest(tmp_path, TURNED, own)
    SHOP.save(own)
    check_digest(tmp_path, RETITLED, own)
    with pytest.raises(DataError, match=r"catalogue\.json: item_ids"):
        check_digest(tmp_path, TURNED, own)
    write_digest(tmp_path, TURNED, content=False)  # nearer to the weights than the catalogue
    check_digest(tmp_path, TURNED, own)


@pytest.mark.parametrize("stored", [{}, {"item_ids": None}, {"item_ids": 3}, {"item_ids": ["x"], "content": {}}])
def test_a_digest_that_is_none(stored: dict[str, object], tmp_path: Path) -> None:
    (tmp_path / DIGEST_FILE).write_text(json.dumps(stored))
    with pytest.raises(DataError, match="item_ids: found the digest"):
        check_digest(tmp_path, SHOP)
    (tmp_path / DIGEST_FILE).write_text(json.dumps({**SHOP.digests, "prices": "x"}))
    with pytest.raises(DataError, match=r"prices: .*other fields"):
        check_digest(tmp_path, SHOP)
    (tmp_path / DIGEST_FILE).write_text("{")
    with pytest.raises(DataError, match="not a JSON file"):
        check_digest(tmp_path, SHOP)


class Scores:
    """A backbone of three items."""

    num_items = 3


def test_numbers_of_items_that_differ() -> None:
    check_count(Scores(), SHOP, [torch.tensor([0, 2]), torch.tensor([], dtype=torch.long)])
    check_count(object(), SHOP)  # a model that does not say
    with pytest.raises(DataError, match="found 2 items, but the backbone scores 3"):
        check_count(Scores(), JOINED)
    with pytest.raises(DataError, match="the item index 3, but the catalogue has 3 items"):
        check_count(Scores(), SHOP, [torch.tensor([0]), torch.tensor([1, 3])])


def test_training_refuses_a_catalogue_of_another_size(masks: RequestMaskModel, split: Split) -> None:
    with pytest.raises(DataError, match="found 3 items, but the backbone scores 40"):
        train_generator(masks, SHOP, split)
    with pytest.raises(DataError, match="the catalogue has 3 items"):
        train_backbone("sasrec", SHOP, split)
