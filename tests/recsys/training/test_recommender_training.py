"""Training of a whole recommender on own data."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cramer_peft.errors import ConfigError, DataError
from cramer_peft.recsys.backbones import make_backbone, save_backbone
from cramer_peft.recsys.data.own_data import Columns, load_own_data
from cramer_peft.recsys.evaluation.tracks import OWN, SHUFFLED
from cramer_peft.recsys.recommender import RequestRecommender, evaluate_recommender
from cramer_peft.recsys.requests.sources import SaidSource
from cramer_peft.recsys.training.generator_training import generator_options
from cramer_peft.recsys.training.recommender_training import TrainOptions, mask_config, train_recommender
from cramer_peft.recsys.training.request_batches import GeneratorOptions
from cramer_peft.training import Checkpoints

pytest.importorskip("accelerate")
FEW = GeneratorOptions(steps=2, batch_size=4)
HASHING: dict[str, Any] = {"encoder": "hashing", "encoder_options": {"dim": 16}}


@pytest.mark.parametrize("protocol", ["leave-one-out", "temporal"])
@pytest.mark.parametrize("backbone", ["sasrec", "bert4rec", "gru4rec"])
def test_each_backbone_from_files_to_answers(backbone: str, protocol: Any, stated: Path, tmp_path: Path) -> None:
    options = TrainOptions(
        str(stated), tmp_path, backbone, None, protocol, config=HASHING, epochs=1, generator=FEW, progress=False
    )
    result = train_recommender(options, say=lambda _: None)
    loaded = RequestRecommender.load(tmp_path)
    assert loaded.masks.model.name == backbone
    assert loaded.recommend([1, 2, 3], "horror") == result.recommender.recommend([1, 2, 3], "horror")
    again = evaluate_recommender(tmp_path, str(stated), "validation", say=lambda _: None)
    assert {name: track.as_dict() for name, track in again.items()} == {
        name: track.as_dict() for name, track in result.tracks.items()
    }
    written = json.loads((tmp_path / "training.json").read_text())
    assert written["options"]["backbone"] == backbone
    assert written["options"]["protocol"] == protocol
    assert written["validation"].keys() == result.tracks.keys()
    assert str(stated.parent) not in json.dumps(written)


def test_a_checkpoint_is_used_again(trained: Path, stated: Path, tmp_path: Path) -> None:
    said: list[str] = []
    for given in (trained, trained / "backbone"):
        options = TrainOptions(
            str(stated), tmp_path, checkpoint=given, config=HASHING, generator=FEW, progress=False, users=4
        )
        train_recommender(options, say=said.append)
    assert not any("training the backbone" in line for line in said)
    first = RequestRecommender.load(trained).masks.model.state_dict()
    assert first.keys() == RequestRecommender.load(tmp_path).masks.model.state_dict().keys()
    with pytest.raises(ConfigError, match="holds 'sasrec'"):
        train_recommender(replace(options, backbone="gru4rec"), say=said.append)
    save_backbone(make_backbone("gru4rec", 7), tmp_path)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="the backbone knows 7 items"):
        train_recommender(replace(options, checkpoint=tmp_path), say=said.append)


def test_a_checkpoint_of_other_items_is_refused_before_any_training(
    trained: Path, stated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cramer_peft.recsys.training.recommender_training.train_generator", None)
    (tmp_path / "x.inter").write_text((stated / "x.inter").read_text())
    header, *lines = (stated / "x.item").read_text().splitlines()
    (tmp_path / "x.item").write_text("\n".join([header, *lines[1:], lines[0]]) + "\n")
    options = TrainOptions(str(tmp_path), tmp_path / "out", config=HASHING, generator=FEW, progress=False)
    old = Path(shutil.copytree(trained, tmp_path / "old"))
    (old / "backbone" / "catalogue_digest.json").unlink()  # then the catalogue beside it tells
    for given in (trained, trained / "backbone", str(trained), old, old / "backbone"):
        with pytest.raises(DataError, match=r"item_ids: .*40 items in use.*in another order"):
            train_recommender(replace(options, checkpoint=given), say=lambda _: None)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="give the data that it was trained on"):
        evaluate_recommender(str(trained), tmp_path, say=lambda _: None)
    assert not (tmp_path / "out").exists()


def test_paths_may_be_texts(stated: Path, tmp_path: Path) -> None:
    options = TrainOptions(
        stated,  # type: ignore[arg-type]
        str(tmp_path / "out"),  # type: ignore[arg-type]
        config=HASHING,
        epochs=1,
        generator=FEW,
        progress=False,
        checkpoints=Checkpoints(str(tmp_path / "kept")),  # type: ignore[arg-type]
        users=3,
    )
    train_recommender(options, say=lambda _: None)
    assert RequestRecommender.load(str(tmp_path / "out")).recommend([1], "horror").items


def test_settings_of_the_masks() -> None:
    assert mask_config({"gate": "scale"}).gate == "scale"
    with pytest.raises(ConfigError, match=r"unknown fields gait.*There are: .*gate"):
        mask_config({"gait": "scale"})
    with pytest.raises(ConfigError, match="gate"):
        mask_config({"gate": "wide"})
    assert generator_options(make_backbone("bert4rec", 3)).positions == 2
    assert generator_options(make_backbone("sasrec", 3)) == GeneratorOptions()


# --- a folder that holds a recommender already


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if not path.is_dir()}


@pytest.fixture
def working(trained: Path, tmp_path: Path) -> Path:
    """A recommender that works, with files of the user's own."""
    folder = Path(shutil.copytree(trained, tmp_path / "working"))
    (folder / "notes.txt").write_text("mine")
    (folder / "adapter" / "README.md").write_text("my own words on this adapter")
    return folder


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, OSError])
@pytest.mark.parametrize(
    "place",
    ["train_backbone", "save_backbone", "train_generator", "RequestRecommender.save", "evaluate_masks", "write_json"],
)
def test_training_again_without_success_changes_nothing(
    place: str, error: type[BaseException], working: Path, stated: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error("in the middle")

    before = files(working)
    monkeypatch.setattr(f"cramer_peft.recsys.training.recommender_training.{place}", fail)
    options = TrainOptions(str(stated), working, "gru4rec", config=HASHING, epochs=1, generator=FEW, progress=False)
    with pytest.raises(error, match="in the middle"):
        train_recommender(options, say=lambda _: None)
    assert files(working) == before
    RequestRecommender.load(working)


def test_training_again_replaces_what_was_trained_and_nothing_else(working: Path, stated: Path) -> None:
    parts = ("model-00001-of-00002.safetensors", "model.safetensors.index.json")
    for name in parts:  # of an earlier backbone that was very large
        (working / "backbone" / name).write_text("stale")
    options = TrainOptions(str(stated), working, "gru4rec", config=HASHING, epochs=1, generator=FEW, progress=False)
    train_recommender(options, say=lambda _: None)
    assert RequestRecommender.load(working).masks.model.name == "gru4rec"
    assert (working / "notes.txt").read_text() == "mine"
    assert (working / "adapter" / "README.md").read_text() == "my own words on this adapter"
    names = ["catalogue_digest.json", "config.json", "model.safetensors"]
    assert sorted(path.name for path in (working / "backbone").iterdir()) == names
    assert not list(working.glob(".*"))


def test_a_failed_training_into_a_new_folder_leaves_none(
    stated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("cramer_peft.recsys.training.recommender_training.train_generator", fail)
    options = TrainOptions(str(stated), tmp_path / "a" / "b", config=HASHING, epochs=1, progress=False)
    with pytest.raises(KeyboardInterrupt):
        train_recommender(options, say=lambda _: None)
    assert list(tmp_path.iterdir()) == []


def test_what_the_data_states_is_learnt(stated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts: list[str] = []
    draw = SaidSource.draw
    monkeypatch.setattr(SaidSource, "draw", lambda *given: texts.append((made := draw(*given)).text) or made)
    said: list[str] = []
    options = TrainOptions(str(stated), tmp_path, config=HASHING, epochs=1, generator=FEW, progress=False)
    tracks = train_recommender(options, say=said.append).tracks
    data = load_own_data(stated)
    assert any("of 10 users (33%) state a request, such as 'wish" in line for line in said)
    assert texts
    assert set(texts) <= {text for _, text, _ in data.said()}
    assert {OWN, SHUFFLED} <= tracks.keys()
    texts.clear()
    train_recommender(replace(options, requests={"attributes": 1}), say=said.append)
    assert not texts
    assert json.loads((tmp_path / "training.json").read_text())["options"]["requests"] == {"attributes": 1}


def test_data_without_attributes(stated: Path, tmp_path: Path) -> None:
    columns = Columns(min_attribute_items=99)
    options = TrainOptions(
        str(stated), tmp_path, columns=columns, config=HASHING, epochs=1, generator=FEW, progress=False
    )
    trained = train_recommender(options, say=lambda _: None)
    assert trained.data.catalogue.attributes == ()
    assert trained.tracks.keys() == {"empty", OWN, SHUFFLED}
    assert evaluate_recommender(tmp_path, stated, say=lambda _: None).keys() <= {"empty", OWN, SHUFFLED}
    for given in ({"catalogue": 2, "history": 1}, {SaidSource([([1, 2], "loud", 3)], 40): 1}):
        train_recommender(replace(options, requests=given), say=lambda _: None)
    with pytest.raises(DataError, match="no attribute is on 99 or more items"):
        train_recommender(replace(options, requests={"stated": 1, "attributes": 1}), say=lambda _: None)
    with pytest.raises(ConfigError, match="found 'telepathy', expected one of"):
        train_recommender(replace(options, requests={"telepathy": 1}), say=lambda _: None)


def test_requests_that_the_data_does_not_state(folder: Path, tmp_path: Path) -> None:
    options = TrainOptions(str(folder), tmp_path, config=HASHING, requests={"stated": 1}, progress=False)
    with pytest.raises(DataError, match="no text with a history before it is left"):
        train_recommender(options, say=lambda _: None)
