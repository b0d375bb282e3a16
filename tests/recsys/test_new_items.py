import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from cramer_peft import RequestMaskConfig
from cramer_peft.errors import DataError, UnsupportedError
from cramer_peft.recsys.backbones import make_backbone, save_backbone
from cramer_peft.recsys.data.catalogue import Catalogue
from cramer_peft.recsys.data.columns import Columns
from cramer_peft.recsys.masks import mask_backbone
from cramer_peft.recsys.new_items import predicted_embeddings
from cramer_peft.recsys.recommender import RequestRecommender
from cramer_peft.recsys.requests.catalogue_encoder import item_embeddings
from cramer_peft.recsys.requests.request_encoders import request_encoder

pytest.importorskip("wordllama")
GENRES = ("Action", "Comedy", "Drama", "Horror")
NAMES = ["bert4rec", "gru4rec", "sasrec"]
HASHING: dict[str, Any] = {"encoder": "hashing", "encoder_options": {"dim": 16}}
REQUESTS = ["more horror please", "no comedy", "something scary", None]
HISTORIES = torch.tensor([[4, 8, 12, 3, 0, 0, 0, 0]]).expand(4, -1).contiguous()


def new_items(*genres: str, first: int = 0) -> Catalogue:
    ids = tuple(f"new{first + number}" for number in range(len(genres)))
    flags = torch.tensor([[name == genre for name in GENRES] for genre in genres], dtype=torch.bool)
    return Catalogue(ids, tuple(f"A {name} tale of the river" for name in genres), GENRES, flags.view(-1, 4))


def make(name: str, catalogue: Catalogue, seed: int = 0, **options: Any) -> RequestRecommender:
    """Random masks on an untrained backbone."""
    torch.manual_seed(seed)
    model = make_backbone(name, len(catalogue), max_length=8, hidden_size=16).eval().requires_grad_(False)
    config = RequestMaskConfig(**{"init_weights": False, **options})
    encoder = None if "encoder" in options else request_encoder(None, catalogue, model)
    return RequestRecommender(mask_backbone(model, catalogue, config, encoder), catalogue)


@torch.no_grad()
def scores_of(recommender: RequestRecommender) -> Tensor:
    found: Tensor = recommender.masks(HISTORIES, request=REQUESTS)
    return found


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("options", [{}, HASHING, {**HASHING, "gate": "topk"}], ids=["default", "hashing", "topk"])
def test_the_others_keep_their_scores_and_files_keep_all(
    name: str, options: dict[str, Any], catalogue: Catalogue, tmp_path: Path
) -> None:
    recommender = make(name, catalogue, **options)
    before, vectors = scores_of(recommender), recommender.masks.encode(["more horror please"])
    grown = recommender.add_items(new_items("Horror", "Comedy"))
    found = scores_of(grown)
    assert found.shape == (4, 42)
    assert torch.equal(found[:, :40], before)
    assert torch.equal(grown.masks.encode(["more horror please"]), vectors)
    assert (len(recommender.catalogue), len(grown.catalogue), grown.catalogue.described) == (40, 42, 40)
    assert torch.equal(scores_of(recommender), before)  # it is as it was
    grown.save(tmp_path)
    loaded = RequestRecommender.load(tmp_path)
    assert torch.equal(scores_of(loaded), found)
    again = loaded.add_items(new_items("Drama", first=2))
    assert torch.equal(scores_of(again)[:, :42], found)
    again.save(tmp_path)
    loaded = RequestRecommender.load(tmp_path)
    assert torch.equal(scores_of(loaded), scores_of(again))
    assert (len(loaded.catalogue), loaded.catalogue.described) == (43, 40)


@pytest.mark.parametrize("name", NAMES)
def test_new_items_follow_requests_at_once(name: str, catalogue: Catalogue) -> None:
    """Two new items that only differ in their attributes: the learned comparison tells them apart."""
    recommender = make(name, catalogue, init_weights=True)
    (keys,) = recommender.masks.generator.row_keys.values()
    assert keys is not None
    with torch.no_grad():
        keys.gains.copy_(torch.tensor([3.0, -3.0]))  # as training leaves them: towards what is wanted
    same = torch.zeros(2, 16)
    grown = recommender.add_items(new_items("Horror", "Comedy"), same)
    scores = scores_of(grown)
    frozen = scores[3]
    assert float((frozen[40] - frozen[41]).abs()) < 1e-5
    assert scores[0, 40] > scores[0, 41]  # "more horror please"
    assert scores[1, 40] > scores[1, 41]  # "no comedy"
    answer = grown.recommend([3, 7, 11], "more horror please", k=12, strength=4.0)
    assert 40 in answer.items
    assert 41 not in answer.items


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_items_at_the_end_change_nothing_before_them(data: st.DataObject, catalogue: Catalogue) -> None:
    name = data.draw(st.sampled_from(NAMES))
    titles = data.draw(st.lists(st.text(max_size=30), min_size=1, max_size=4))
    flags = torch.tensor(data.draw(st.lists(st.lists(st.booleans(), min_size=5, max_size=5), min_size=4, max_size=4)))
    embeddings = data.draw(st.sampled_from([None, 0.1, 1e3]))
    items = Catalogue(
        tuple(f"n{number}" for number in range(len(titles))),
        tuple(title.encode(errors="ignore").decode() for title in titles),
        catalogue.attributes,
        flags[: len(titles)],
    )
    recommender = make(name, catalogue, seed=data.draw(st.integers(0, 100)))
    before = scores_of(recommender)
    given_ones = None if embeddings is None else torch.full((len(titles), 16), embeddings)
    grown = recommender.add_items(items, given_ones)
    found = scores_of(grown)
    assert torch.equal(found[:, :40], before)
    assert bool(torch.isfinite(found).all())
    table = item_embeddings(grown.masks.model)
    assert table is not None
    assert given_ones is None or torch.equal(table[40:], given_ones)
    assert torch.equal(scores_of(recommender), before)


def test_a_new_item_counts_as_one_of_a_history(catalogue: Catalogue) -> None:
    vectors = torch.randn(2, 16, generator=torch.Generator().manual_seed(0))
    grown = make("sasrec", catalogue).add_items(new_items("Horror", "Comedy"), vectors)
    answer = grown.recommend([3, 41], None, k=42 - 2)
    assert sorted([*answer.items, 3, 41]) == list(range(42))
    assert grown.recommend([3, 40], None).items != grown.recommend([3, 41], None).items


@pytest.fixture
def priced(catalogue: Catalogue) -> Catalogue:
    texts = {"brand": ("Acme",) * 40, "size": ("XL",) * 40}
    return replace(catalogue, texts=texts, numbers={"price": torch.arange(40.0).double()})


def goods(**changes: Any) -> pd.DataFrame:
    columns = {"sku": [901, 902], "name": ["Bog", "Fen"], "kind": ["Horror > Drama", "Comedy"], "price": ["5,99 €", ""]}
    return pd.DataFrame({**columns, "size": ["9", "10"], "colour": ["red", "blue"], **changes})


def test_items_of_a_table_are_added_saved_and_recommended(priced: Catalogue, tmp_path: Path) -> None:
    recommender = make("sasrec", priced)
    save_backbone(recommender.masks.model, tmp_path, priced)
    recommender.save(tmp_path)
    trained = {"item_column": "sku", "title_column": "name", "attribute_column": "kind", "attribute_separator": ">"}
    (tmp_path / "training.json").write_text(json.dumps({"options": {"columns": trained}}))
    goods().to_csv(tmp_path / "new.csv", index=False)
    for table in (goods(), tmp_path / "new.csv"):
        grown = RequestRecommender.load(tmp_path).add_items(table)
        assert (grown.catalogue.item_ids[40:], grown.catalogue.titles[40:]) == (("901", "902"), ("Bog", "Fen"))
        assert [grown.catalogue.attribute_names(item) for item in (40, 41)] == [("Drama", "Horror"), ("Comedy",)]
        assert grown.catalogue.numbers.keys() == {"price"}
        assert grown.catalogue.numbers["price"][40:].nan_to_num(-1).tolist() == [5.99, -1]
        assert {name: column[40:] for name, column in grown.catalogue.texts.items()} == {
            "brand": ("", ""),
            "size": ("9", "10"),  # a text, as for the others
        }
    grown.save(tmp_path)
    loaded = RequestRecommender.load(tmp_path)
    assert loaded.recommend([3, 40], "horror", candidates=[40, 41]).items == [41]
    assert len(loaded.add_items(goods(sku=["903", "904"])).catalogue) == 44  # the columns of training are still known


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"price": ["5", "on request"]}, "items: column 'price': row 1 holds 'on request', which is not read as a"),
        ({"kind": ["Horror", "Horrer"]}, "'Horrer' are not in the catalogue.*Horror"),
        ({"sku": ["i3", "x"]}, "'i3' are in the catalogue"),
        ({"sku": ["x", ""]}, "row 1: column 'sku' is blank"),
    ],
)
def test_tables_that_cannot_be_added(priced: Catalogue, changes: dict[str, Any], message: str) -> None:
    columns = Columns(item_column="sku", title_column="name", attribute_column="kind")
    with pytest.raises(DataError, match=message):
        make("sasrec", priced, **HASHING).add_items(goods(**changes), columns=columns)


def test_without_a_folder_the_usual_names_count(catalogue: Catalogue) -> None:
    recommender = make("sasrec", catalogue, **HASHING)
    grown = recommender.add_items(goods(kind=["Horror", "Comedy"]).rename(columns={"kind": "genres"}))
    assert grown.catalogue.item_ids[40:] == ("901", "902")
    with pytest.raises(DataError, match="columns missing: genres; columns there: 'sku', 'name', 'kind'"):
        recommender.add_items(goods())


def test_no_items_are_no_change(catalogue: Catalogue) -> None:
    recommender = make("gru4rec", catalogue, **HASHING)
    assert recommender.add_items(new_items()) is recommender


@pytest.mark.parametrize(
    ("items", "embeddings", "message"),
    [
        (
            Catalogue(("i3", "x"), ("A", "B"), (), torch.zeros(2, 0, dtype=torch.bool)),
            None,
            "i3.* are in the catalogue",
        ),
        (Catalogue(("x",), ("A",), ("Horrer",), torch.ones(1, 1, dtype=torch.bool)), None, "Horrer.*nearest.*Horror"),
        (new_items("Horror"), torch.zeros(2, 16), r"found \(2, 16\), expected .*\(1, 16\)"),
        (new_items("Horror"), torch.zeros(1, 15), r"found \(1, 15\)"),
        (new_items("Horror"), torch.zeros(1, 16, dtype=torch.long), "expected a tensor of floats"),
        (new_items("Horror"), [[0.0] * 16], "found list"),
        (new_items("Horror"), torch.full((1, 16), torch.nan), "NaN or infinity"),
        (new_items("Horror"), torch.full((1, 16), torch.inf), "NaN or infinity"),
    ],
)
def test_what_is_refused_changes_nothing(items: Catalogue, embeddings: Any, message: str, catalogue: Catalogue) -> None:
    recommender = make("sasrec", catalogue, **HASHING)
    before, keys = scores_of(recommender), list(recommender.masks.state_dict())
    with pytest.raises(DataError, match=message):
        recommender.add_items(items, embeddings)
    assert torch.equal(scores_of(recommender), before)
    assert list(recommender.masks.state_dict()) == keys
    assert len(recommender.catalogue) == 40


def test_an_adapter_with_a_gate_for_each_item_is_refused(catalogue: Catalogue) -> None:
    for options, name in (({"target_modules": ["head"]}, "head"), ({"row_features": ["head"]}, "head")):
        recommender = make("sasrec", catalogue, **HASHING, **options)
        with pytest.raises(UnsupportedError, match=f"masks '{name}', by numbers for each item"):
            recommender.add_items(new_items("Horror"))


def test_a_backbone_that_cannot_grow_is_refused_by_name(
    make_untrained: Callable[[str], Any], catalogue: Catalogue
) -> None:
    class Fixed(type(make_untrained("gru4rec"))):  # type: ignore[misc]
        append_items = property()  # as a class that lacks it

    model = Fixed(40, max_length=8, hidden_size=16).eval()
    masks = mask_backbone(model, catalogue, RequestMaskConfig(**HASHING))
    with pytest.raises(UnsupportedError, match="Fixed has no method append_items"):
        RequestRecommender(masks, catalogue).add_items(new_items("Horror"))


def test_two_adapters_are_refused(catalogue: Catalogue) -> None:
    recommender = make("sasrec", catalogue, **HASHING)
    recommender.masks.add_adapter("other", RequestMaskConfig(target_modules=["output.dense"], **HASHING))
    with pytest.raises(UnsupportedError, match=r"'default', 'other'.* expected one"):
        recommender.add_items(new_items("Horror"))


def test_the_backbone_in_the_folder_is_replaced_only_by_one_of_more_items(catalogue: Catalogue, tmp_path: Path) -> None:
    recommender = make("sasrec", catalogue, **HASHING)
    grown = recommender.add_items(new_items("Horror"))
    bare = make_backbone("sasrec", 40, max_length=8, hidden_size=16).eval().requires_grad_(False)
    save_backbone(bare, tmp_path, catalogue)
    masks = mask_backbone(bare, catalogue, RequestMaskConfig(init_weights=False, **HASHING))
    RequestRecommender(masks, catalogue).save(tmp_path)
    grown.save(tmp_path)
    assert torch.equal(scores_of(RequestRecommender.load(tmp_path)), scores_of(grown))
    assert json.loads((tmp_path / "catalogue.json").read_text())["described_items"] == 40
    with pytest.raises(DataError, match="item_ids"):
        recommender.save(tmp_path)  # the backbone there knows more items
    other = recommender.add_items(new_items("Drama", "Comedy", first=7))
    files = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(DataError, match="item_ids"):
        other.save(tmp_path)  # and other ones
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == files


def test_a_linear_map_from_texts_is_found() -> None:
    generator = torch.Generator().manual_seed(0)
    texts, weights = torch.randn(300, 20, generator=generator), torch.randn(20, 8, generator=generator)
    noise = torch.randn(300, 8, generator=generator)
    clean = texts @ weights + 3
    found = predicted_embeddings(texts[:280], clean[:280], texts[280:])
    torch.testing.assert_close(found, clean[280:], atol=1e-2, rtol=1e-2)
    found = predicted_embeddings(texts[:280], (clean + noise)[:280], texts[280:])
    assert float((found - clean[280:]).square().mean()) < 0.2  # of a variance of 20
    unrelated = predicted_embeddings(texts[:280], noise[:280], texts[280:])
    assert float(unrelated.square().mean()) < 0.15  # near the mean: shrunk, since the texts say nothing


@pytest.mark.parametrize("rows", [1, 2, 5])
@pytest.mark.parametrize("texts", [torch.zeros(5, 6), torch.ones(5, 6), torch.randn(5, 6)])
def test_few_items_or_texts_that_say_nothing(rows: int, texts: Tensor) -> None:
    embeddings = torch.randn(rows, 3).half()
    found = predicted_embeddings(texts[:rows], embeddings, texts[:2])
    assert found.shape == (2, 3)
    assert found.dtype == torch.float16
    assert bool(torch.isfinite(found).all())
    if rows == 1 or len(texts.unique(dim=0)) == 1:
        torch.testing.assert_close(found, embeddings.float().mean(0).half().expand(2, 3), atol=1e-3, rtol=1e-2)
