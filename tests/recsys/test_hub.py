"""A whole recommender on the hub, and the card that says what it hears and what was measured."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard

from cramer_peft import RequestMaskModel, inject_request_masks
from cramer_peft.errors import DataError, DownloadError
from cramer_peft.recsys.backbones.own import OwnBackbone
from cramer_peft.recsys.data.catalogue import SAID, Catalogue
from cramer_peft.recsys.masks import mask_backbone
from cramer_peft.recsys.recommender import RequestRecommender
from cramer_peft.storage.model_card import MARKER

HISTORY = [3, 7, 11]
pytest.importorskip("accelerate")


@pytest.fixture
def copied(trained: Path, tmp_path: Path) -> Path:
    """A recommender that was trained on data with requests, with its results."""
    return Path(shutil.copytree(trained, tmp_path / "copied"))


def test_a_recommender_comes_back_as_it_was_pushed(copied: Path, fake_hub) -> None:
    own = RequestRecommender.load(copied)
    address = own.push_to_hub("me/films", revision="v1", subfolder="a")
    assert address.startswith(f"{fake_hub.url}/me/films/commit/")
    assert fake_hub.private["me/films"]
    there = {name: data for name, data in fake_hub.files("me/films", "v1").items() if name != ".gitattributes"}
    here = {f"a/{path.relative_to(copied).as_posix()}": path for path in copied.rglob("*") if path.is_file()}
    assert set(there) == {*here, "a/README.md"}
    assert [name for name, path in here.items() if name.endswith(".json") and there[name] != path.read_bytes()] == []
    fake_hub.put("me/films", {"a/model.bin": b"", "a/backbone/pytorch_model.bin": b"", "b/catalogue.json": b""}, "v1")
    again = RequestRecommender.load("me/films", revision="v1", subfolder="a", local_files_only=False)
    assert not [name for name in fake_hub.downloads() if name.endswith(".bin") or name.startswith("b/")]
    fake_hub.asked.clear()
    cached = RequestRecommender.load("me/films", revision="v1", subfolder="a")
    assert fake_hub.asked == []
    for request in ("more horror please", "no comedy", None):
        answers = [recommender.recommend(HISTORY, request, k=30) for recommender in (own, again, cached)]
        assert answers[0] == answers[1] == answers[2]
    assert again.model_card() == own.model_card()
    with pytest.raises(DownloadError, match="Give another name"):
        RequestRecommender.load("me/films", local_files_only=False)


def test_without_being_asked_nothing_is_looked_up(fake_hub, copied: Path) -> None:
    RequestRecommender.load(copied).push_to_hub("me/films")
    fake_hub.asked.clear()
    with pytest.raises(DataError, match=r"'me/films' is no folder here.* local_files_only=False"):
        RequestRecommender.load("me/films")
    with pytest.raises(DataError, match="is not a recommender folder"):
        RequestRecommender.load("nowhere")
    Path("me").mkdir()
    shutil.move(copied, "me/films")
    assert RequestRecommender.load("me/films", local_files_only=False).folder == Path("me/films")
    assert fake_hub.asked == []


def test_items_that_were_added_are_pushed_too(
    untrained_masks: RequestMaskModel, catalogue: Catalogue, fake_hub
) -> None:
    flags = catalogue.item_attributes[:2].clone()
    new = Catalogue(("n1", "n2"), ("New one", "New two"), catalogue.attributes, flags)
    vectors = torch.randn(2, 16, generator=torch.Generator().manual_seed(0))
    grown = RequestRecommender(untrained_masks, catalogue).add_items(new, vectors)
    grown.push_to_hub("me/grown")
    again = RequestRecommender.load("me/grown", local_files_only=False)
    assert again.recommend(HISTORY, "more horror", k=20) == grown.recommend(HISTORY, "more horror", k=20)
    assert again.catalogue.titles[-2:] == ("New one", "New two")


def test_the_card_says_what_is_heard_and_was_measured(
    taught: RequestMaskModel, catalogue: Catalogue, copied: Path
) -> None:
    card = RequestRecommender(taught, catalogue).model_card("me/films", subfolder="a")
    read = ModelCard(card)
    assert read.data.library_name == "cramer-peft"
    assert "request-mask" in read.data.tags
    for fact in (
        MARKER,
        "A frozen SASRec over 40 items",
        "RequestRecommender.load('me/films', subfolder='a', local_files_only=False)",
        "`Action`, `Classic`, `Comedy`, `Drama`, `Horror`",
        "| You say `something with action` | `wanted: action` |",
        "| You say `nothing with classic` | `unwanted: classic` |",
        "Nothing of this version",
    ):
        assert fact in card
    card = RequestRecommender.load(copied).model_card()
    results = json.loads((copied / "training.json").read_text())["validation"]["truthful"]["adapted"]["ndcg"]
    rows = [line for line in card.splitlines() if line.startswith("| truthful | 30 | ndcg | 0.")]
    assert len(rows) == 1
    assert rows[0].endswith("| {value:.3f} [{low:.3f}, {high:.3f}] |".format(**results))
    assert "The validation users of `stated" in card
    said = sum(map(bool, RequestRecommender.load(copied).catalogue.texts[SAID]))
    assert said > 0
    assert f"At {said} items it holds\n  what people asked for in training" in card
    assert "wish 1" not in card


def test_its_code_runs(copied: Path, fake_hub, capsys: pytest.CaptureFixture[str]) -> None:
    own = RequestRecommender.load(copied)
    own.push_to_hub("me/films")
    card = fake_hub.files("me/films")["README.md"].decode()
    exec(card.split("```python\n")[1].split("```")[0], {})
    best = own.recommend([0, 1, 2], "something with action").items
    assert str([own.catalogue.titles[item] for item in best]) in capsys.readouterr().out


def test_figures_of_another_training_are_not_told(copied: Path) -> None:
    assert "| truthful |" in RequestRecommender.load(copied).model_card()
    recommender = RequestRecommender.load(copied)
    with torch.no_grad():
        next(recommender.masks.generator.parameters()).add_(1)
    assert "Nothing of this version" in recommender.model_card()
    shutil.rmtree(copied)
    assert "Nothing of this version" in recommender.model_card()


def test_an_evaluation_is_told_beside_the_validation(copied: Path) -> None:
    values = json.loads((copied / "training.json").read_text())
    results = {"options": {"data": "a|b`c", "stage": "test"}, "tracks": {"for": values["validation"]["for"]}}
    results["tracks"]["for"]["ratios"]["retention"] = None
    (copied / "evaluation.json").write_text(json.dumps(results))
    card = RequestRecommender.load(copied).model_card()
    assert "The test users of `a\\|b'c`" in card
    assert "retention |  | too few users |" in card
    assert "wordings that no training saw" in card
    for broken in ('{"options": {}}', '{"tracks": 3, "options": {"data": "x"}}', "[]", "{"):
        (copied / "evaluation.json").write_text(broken)
        recommender = RequestRecommender.load(copied)  # figures are no part of it
        with pytest.raises(DataError, match=r"evaluation\.json"):
            recommender.model_card()


def test_a_text_of_ones_own_stays(copied: Path, fake_hub) -> None:
    (copied / "README.md").write_text("# My films\n")
    own = RequestRecommender.load(copied)
    own.push_to_hub("me/films")
    assert fake_hub.files("me/films")["README.md"] == b"# My films\n"
    fake_hub.put("me/films", {"README.md": b"# Changed there"})
    own.push_to_hub("me/films")
    assert fake_hub.files("me/films")["README.md"] == b"# Changed there"


def test_titles_cannot_break_the_card(make_sasrec, hashing, catalogue: Catalogue) -> None:
    titles = ("`| {0} <script>\n---\n# x", *catalogue.titles[1:])
    odd = dataclasses.replace(catalogue, titles=titles, attributes=("--- {x}", *catalogue.attributes[1:]))
    masks = inject_request_masks(make_sasrec(), hashing())
    card = RequestRecommender(masks, odd).model_card()
    assert ModelCard(card).data.library_name == "cramer-peft"
    assert "\n# x" not in card
    vectors = inject_request_masks(make_sasrec(), hashing(encoder=None, encoder_options=None, request_dim=8))
    assert "none: requests are ready vectors" in RequestRecommender(vectors, odd).model_card()


class Popular(OwnBackbone):
    """A recommender that is no torch module inside, and has no files."""

    num_items, max_length = 40, 8

    def scores(self, item_ids: torch.Tensor) -> torch.Tensor:
        return torch.arange(40.0).expand(len(item_ids), 40)


def test_a_backbone_of_ones_own_stays_at_home(catalogue: Catalogue, hashing, fake_hub) -> None:
    masks = mask_backbone(Popular(), catalogue, hashing(init_weights=False))
    own = RequestRecommender(masks, catalogue)
    own.push_to_hub("me/own")
    assert not [name for name in fake_hub.files("me/own") if name.startswith("backbone/")]
    again = RequestRecommender.load("me/own", Popular(), local_files_only=False)
    assert again.recommend(HISTORY, "more horror").items == own.recommend(HISTORY, "more horror").items
    assert "load('me/own', backbone=backbone, local_files_only=False)" in own.model_card("me/own")
