import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from cramer_peft import RequestMaskConfig, RequestMaskModel
from cramer_peft.errors import AdapterFileError, BaseModelMismatchError, DataError, RequestError
from cramer_peft.recsys.backbones import SASRec, load_backbone, save_backbone
from cramer_peft.recsys.data.catalogue import Catalogue
from cramer_peft.recsys.data.datasets import load_dataset
from cramer_peft.recsys.data.own_data import Columns
from cramer_peft.recsys.masks import mask_backbone
from cramer_peft.recsys.recommender import Answer, RequestRecommender, evaluate_recommender
from cramer_peft.recsys.requests.catalogue_encoder import without_cache
from cramer_peft.recsys.requests.hearing import HearingEncoder
from cramer_peft.recsys.requests.request_encoders import request_encoder

HISTORY = [3, 7, 11]
REQUESTS = ("more horror please", "no comedy", None)
pytest.importorskip("accelerate")


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_what_came_and_went() -> None:
    answer = Answer([5, 2, 9], [2, 4, 5], {})
    assert answer.came == [9]
    assert answer.went == [4]
    same = Answer([1, 2], [2, 1], {})
    assert same.came == same.went == []


def test_an_answer_is_the_models(masks: RequestMaskModel, catalogue: Catalogue) -> None:
    answer = RequestRecommender(masks, catalogue).recommend(HISTORY, "more horror please", strength=8.0, k=6)
    item_ids = torch.tensor([[item + 1 for item in HISTORY]])
    for items, request in ((answer.items, "more horror please"), (answer.frozen_items, None)):
        with torch.no_grad():
            scores = masks(item_ids, request=request, request_strength=8.0)[0]
        scores[HISTORY] = -torch.inf
        assert items == scores.topk(6).indices.tolist()
    assert answer.items != answer.frozen_items
    assert len(answer.came) == len(answer.went) > 0
    for name, pair in answer.shares.items():
        for share, items in zip(pair, (answer.frozen_items, answer.items), strict=True):
            assert share == pytest.approx(sum(name in catalogue.attribute_names(item) for item in items) / 6)
    there = {name for item in answer.items + answer.frozen_items for name in catalogue.attribute_names(item)}
    assert set(answer.shares) == there


def test_nothing_asked_is_the_frozen_list(masks: RequestMaskModel, catalogue: Catalogue) -> None:
    recommender = RequestRecommender(masks, catalogue)
    expected = recommender.recommend(HISTORY, "more horror please").frozen_items
    for request, strength in ((None, 1.0), ("", 1.0), (" \n", 1.0), ("more horror please", 0.0)):
        answer = recommender.recommend(HISTORY, request, strength=strength)
        assert answer.items == answer.frozen_items == expected
        assert all(before == after for before, after in answer.shares.values())


def test_a_long_history_counts_at_its_end_but_is_seen_whole(masks: RequestMaskModel, catalogue: Catalogue) -> None:
    recommender = RequestRecommender(masks, catalogue)
    long = list(range(20))
    answer = recommender.recommend(long, None, k=20)
    assert not set(answer.items) & set(long)
    recent = recommender.recommend(long[-8:], None, k=32)
    assert [item for item in recent.items if item not in long] == answer.items


def test_no_more_than_what_is_unseen(masks: RequestMaskModel, catalogue: Catalogue) -> None:
    answer = RequestRecommender(masks, catalogue).recommend(list(range(37)), "more horror", k=10)
    assert sorted(answer.items) == sorted(answer.frozen_items) == [37, 38, 39]


@pytest.mark.parametrize(
    ("history", "k", "message"),
    [
        ([], 10, r"histories\[0\] is empty"),
        ([3, 40], 10, "item index 40 is not in 0 … 39"),
        ([-1], 10, "item index -1"),
        (list(range(40)), 10, "0 unseen items"),
        ([3], 0, "k=0"),
        ([3], -1, "k=-1"),
    ],
)
def test_bad_questions(masks: RequestMaskModel, catalogue: Catalogue, history: list[int], k: int, message: str) -> None:
    with pytest.raises(DataError, match=message):
        RequestRecommender(masks, catalogue).recommend(history, "more horror", k=k)


def test_bad_strength(masks: RequestMaskModel, catalogue: Catalogue) -> None:
    with pytest.raises(RequestError, match="finite"):
        RequestRecommender(masks, catalogue).recommend(HISTORY, "more horror", strength=float("nan"))


def test_round_trip(
    masks: RequestMaskModel, catalogue: Catalogue, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = RequestRecommender(masks, catalogue)
    expected.masks.save_pretrained(bundle / "adapter")  # the fixtures' masks are random each time
    monkeypatch.chdir(bundle / "adapter")
    for folder in (bundle, bundle / "adapter", Path(".."), Path(".")):
        loaded = RequestRecommender.load(folder)
        assert loaded.catalogue.titles == catalogue.titles
        assert not any(module.training for module in (*loaded.masks.model.modules(), loaded.masks.generator))
        for request in REQUESTS:
            assert loaded.recommend(HISTORY, request) == expected.recommend(HISTORY, request)
    assert sorted(entry.name for entry in bundle.iterdir()) == ["adapter", "backbone", "catalogue.json"]


def test_the_encoder_that_knows_the_catalogue_is_made_anew(
    sasrec: SASRec, catalogue: Catalogue, tmp_path: Path
) -> None:
    pytest.importorskip("wordllama")
    save_backbone(sasrec, tmp_path)
    encoder = request_encoder(None, catalogue, sasrec)
    config = RequestMaskConfig(init_weights=False, encoder="hashing")  # the encoder that is given counts
    masks = mask_backbone(sasrec, catalogue, config, encoder)
    RequestRecommender(masks, catalogue).save(tmp_path)
    stored = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (stored["encoder"], stored["request_dim"]) == ("catalogue-3", encoder.dim)
    loaded = RequestRecommender.load(tmp_path)
    assert isinstance(without_cache(loaded.masks.encoder()), HearingEncoder)
    texts = ["more horror please", "no comedy", "drama but no horror", "surprise me"]
    assert torch.equal(loaded.masks.encode(texts), masks.encode(texts))
    item_ids = torch.tensor([[item + 1 for item in HISTORY]]).expand(4, -1)
    with torch.no_grad():
        expected, found = (its(item_ids, request=texts) for its in (masks, loaded.masks))
        frozen = masks(item_ids, request=None)
    assert torch.equal(found, expected)
    assert torch.equal(found[3], frozen[3])
    assert not torch.allclose(found[:3], frozen[:3])
    for text in texts:
        assert loaded.recommend(HISTORY, text) == RequestRecommender(masks, catalogue).recommend(HISTORY, text)


@pytest.mark.parametrize("part", ["backbone", "catalogue.json"])
def test_a_missing_part(bundle: Path, part: str) -> None:
    (shutil.rmtree if (bundle / part).is_dir() else os.remove)(bundle / part)
    with pytest.raises(DataError, match=rf"not a recommender folder: {part} is missing"):
        RequestRecommender.load(bundle / "adapter")


def test_a_missing_adapter(bundle: Path, tmp_path: Path) -> None:
    shutil.rmtree(bundle / "adapter")
    with pytest.raises(DataError, match="adapter is missing"):
        RequestRecommender.load(bundle)
    (bundle / "adapter").mkdir()
    with pytest.raises(AdapterFileError, match="does not exist"):
        RequestRecommender.load(bundle)
    with pytest.raises(DataError, match="nowhere is not a recommender folder"):
        RequestRecommender.load(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_truncated_adapter(bundle: Path, name: str) -> None:
    truncate(bundle / "adapter" / name)
    with pytest.raises(AdapterFileError, match=name):
        RequestRecommender.load(bundle)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_truncated_backbone(bundle: Path, name: str) -> None:
    truncate(bundle / "backbone" / name)
    with pytest.raises(DataError, match="holds no readable backbone"):
        RequestRecommender.load(bundle)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_an_incomplete_backbone(bundle: Path, name: str) -> None:
    (bundle / "backbone" / name).unlink()
    with pytest.raises(DataError, match="holds no readable backbone"):
        RequestRecommender.load(bundle)


def test_a_backbone_of_other_weights(bundle: Path, catalogue: Catalogue, make_sasrec: Callable[..., SASRec]) -> None:
    save_backbone(make_sasrec(seed=9, hidden_size=64), bundle)
    with pytest.raises(BaseModelMismatchError):
        RequestRecommender.load(bundle)


def test_a_backbone_that_lacks_weights(
    bundle: Path, catalogue: Catalogue, edit_json: Callable[..., None], make_sasrec: Callable[..., SASRec]
) -> None:
    edit_json(bundle / "backbone" / "config.json", num_hidden_layers=3)
    with pytest.raises(DataError, match=r"holds no SASRec: weights missing .*layer\.2"):
        load_backbone(bundle / "backbone", catalogue)
    edit_json(bundle / "backbone" / "config.json", num_hidden_layers=1)
    with pytest.raises(DataError, match=r"holds no SASRec: weights missing or not expected: .*layer\.1"):
        load_backbone(bundle / "backbone", catalogue)
    edit_json(bundle / "backbone" / "config.json", num_hidden_layers=2, hidden_size=32)
    with pytest.raises(DataError, match="holds no readable backbone"):
        load_backbone(bundle / "backbone", catalogue)


def test_another_catalogue(bundle: Path) -> None:
    small = Catalogue(("a", "b"), ("A", "B"), ("x",), torch.ones(2, 1, dtype=torch.bool))
    small.save(bundle / "catalogue.json")
    with pytest.raises(DataError, match="the backbone knows 40 items, the catalogue has 2"):
        RequestRecommender.load(bundle)


def test_a_corrupt_catalogue(bundle: Path) -> None:
    truncate(bundle / "catalogue.json")
    with pytest.raises(DataError, match="not a JSON file"):
        RequestRecommender.load(bundle)


def test_backbone_files_are_transformers_own(bundle: Path, catalogue: Catalogue, sasrec: SASRec, users: object) -> None:
    assert json.loads((bundle / "backbone" / "config.json").read_text())["architectures"] == ["SASRec"]
    loaded = load_backbone(bundle / "backbone", catalogue)
    item_ids = torch.tensor([[1, 2, 3]])
    plain = SASRec.from_pretrained(bundle / "backbone").eval()
    assert torch.equal(loaded(item_ids), plain(item_ids))
    assert not loaded.training


def test_what_evaluation_refuses(trained: Path, stated: Path, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="trained with the protocol 'leave-one-out', found 'temporal'"):
        evaluate_recommender(trained, str(stated), protocol="temporal", say=lambda _: None)
    with pytest.raises(DataError, match="or others: give the data that it was trained on"):
        evaluate_recommender(trained, str(stated), columns=Columns(min_attribute_items=20), say=lambda _: None)
    with pytest.raises(DataError, match="is not a recommender folder"):
        evaluate_recommender(tmp_path, str(stated), say=lambda _: None)


def turned(catalogue: Catalogue) -> Catalogue:
    """The same items in the other direction."""
    ids, titles = catalogue.item_ids[::-1], catalogue.titles[::-1]
    return Catalogue(ids, titles, catalogue.attributes, catalogue.item_attributes.flip(0))


def digests(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("catalogue_digest.json"))


def test_a_catalogue_in_another_order_is_refused(bundle: Path, catalogue: Catalogue) -> None:
    assert digests(bundle) == ["adapter/catalogue_digest.json", "backbone/catalogue_digest.json"]
    turned(catalogue).save(bundle / "catalogue.json")
    for part in ("backbone", "adapter"):
        with pytest.raises(DataError, match=rf"{part}/catalogue_digest\.json: item_ids: .*in another order"):
            RequestRecommender.load(bundle)
        (bundle / part / "catalogue_digest.json").unlink()
    RequestRecommender.load(bundle)  # as a folder of an earlier version, where nothing tells


def test_titles_of_other_items_are_refused(bundle: Path, catalogue: Catalogue) -> None:
    Catalogue(catalogue.item_ids, catalogue.titles[::-1], catalogue.attributes, catalogue.item_attributes).save(
        bundle / "catalogue.json"
    )
    with pytest.raises(DataError, match=r"adapter/catalogue_digest\.json: content: .*other titles"):
        RequestRecommender.load(bundle)


def test_saving_beside_a_backbone_of_another_order_is_refused(
    bundle: Path, catalogue: Catalogue, sasrec: SASRec
) -> None:
    loaded = RequestRecommender.load(bundle)
    before = {path: path.read_bytes() for path in bundle.rglob("*") if path.is_file()}
    with pytest.raises(DataError, match="item_ids"):
        RequestRecommender(loaded.masks, turned(catalogue)).save(bundle)
    assert {path: path.read_bytes() for path in bundle.rglob("*") if path.is_file()} == before
    save_backbone(sasrec, bundle)  # nothing says of which items: the digest of the earlier one goes
    assert digests(bundle) == ["adapter/catalogue_digest.json"]
    save_backbone(sasrec, bundle, turned(catalogue))
    with pytest.raises(DataError, match="item_ids"):
        load_backbone(bundle / "backbone", catalogue)


def test_a_catalogue_of_another_size(masks: RequestMaskModel) -> None:
    with pytest.raises(DataError, match="catalogue: found 1 items, but the backbone scores 40"):
        RequestRecommender(masks, Catalogue(("a",), ("A",), ("x",), torch.ones(1, 1, dtype=torch.bool)))


def test_folders_may_be_texts(bundle: Path, catalogue: Catalogue, sasrec: SASRec, tmp_path: Path) -> None:
    loaded = RequestRecommender.load(str(bundle / "adapter"))
    save_backbone(sasrec, str(tmp_path / "again"), catalogue)
    load_backbone(str(tmp_path / "again" / "backbone"), catalogue)
    loaded.save(str(tmp_path / "again"))
    assert (tmp_path / "again" / "adapter" / "adapter_config.json").exists()
    for place in (None, 5, b"folder", ["folder"]):
        uses = (RequestRecommender.load, loaded.save, load_dataset, catalogue.save, Catalogue.load)
        for use in (
            *uses,
            lambda folder: save_backbone(sasrec, folder),
            lambda folder: load_backbone(folder, catalogue),
        ):
            with pytest.raises(DataError, match="expected a"):
                use(place)  # type: ignore[operator]


@pytest.mark.parametrize(
    "history",
    [
        (3, 7, 11),
        np.array(HISTORY),
        np.array(HISTORY, dtype=np.uint8),
        [np.int64(item) for item in HISTORY],
        torch.tensor(HISTORY, dtype=torch.int32),
        [torch.tensor(item) for item in HISTORY],
        range(3, 12, 4),
    ],
)
def test_a_history_of_whole_numbers_of_any_kind(masks: RequestMaskModel, catalogue: Catalogue, history: object) -> None:
    recommender = RequestRecommender(masks, catalogue)
    found = recommender.recommend(history, "more horror", k=np.int64(4))  # type: ignore[arg-type]
    assert found == recommender.recommend(HISTORY, "more horror", k=4)


@pytest.mark.parametrize(
    "history",
    [
        [3.0, 7.0],
        [3.9],
        [True, False],
        ["3"],
        "37",
        b"37",
        [None],
        None,
        7,
        {3, 7},
        {3: 1.0},
        np.array([3.0]),
        np.array([True]),
        torch.tensor([3.5]),
        torch.tensor([[3]]),
        torch.tensor([True]),
        [2**80],
        [-(2**80)],
    ],
)
def test_a_history_of_anything_else(masks: RequestMaskModel, catalogue: Catalogue, history: object) -> None:
    with pytest.raises(DataError, match="history"):
        RequestRecommender(masks, catalogue).recommend(history, "more horror")  # type: ignore[arg-type]


@pytest.mark.parametrize("k", [10.0, True, "3", None, [3]])
def test_a_length_that_is_no_whole_number(masks: RequestMaskModel, catalogue: Catalogue, k: object) -> None:
    with pytest.raises(DataError, match=r"k: found .*, expected a whole number"):
        RequestRecommender(masks, catalogue).recommend(HISTORY, "more horror", k=k)  # type: ignore[arg-type]


@pytest.mark.parametrize("request_", ["more \udcff horror", "\ud83d", 5, b"more horror", ["a", 5], {"more": "horror"}])
def test_requests_that_are_no_text(masks: RequestMaskModel, catalogue: Catalogue, request_: object) -> None:
    recommender = RequestRecommender(masks, catalogue)
    before = recommender.recommend(HISTORY, "more horror")
    with pytest.raises(RequestError):
        recommender.recommend(HISTORY, request_)  # type: ignore[arg-type]
    assert recommender.recommend(HISTORY, "more horror") == before


@pytest.mark.parametrize("strength", [1e38, -1e38, 3e38, 10**38])
def test_scores_that_are_not_finite_are_never_ranked(
    masks: RequestMaskModel, catalogue: Catalogue, strength: float
) -> None:
    recommender = RequestRecommender(masks, catalogue)
    with pytest.raises(DataError, match=r"scores? .*not finite.*Lower the strength"):
        recommender.recommend(HISTORY, "more horror", strength=strength)
    assert recommender.recommend(HISTORY, None, strength=strength).items  # nothing is asked, so nothing is scaled
    with torch.no_grad():
        next(masks.model.parameters())[5] = torch.nan
    with pytest.raises(DataError, match="look at the weights of the model"):
        recommender.recommend([4], None)


@pytest.mark.parametrize("strength", ["2", [1.0, 2.0], 1j, float("inf")])
def test_other_strengths(masks: RequestMaskModel, catalogue: Catalogue, strength: object) -> None:
    with pytest.raises(RequestError):
        RequestRecommender(masks, catalogue).recommend(HISTORY, "more horror", strength=strength)  # type: ignore[arg-type]
