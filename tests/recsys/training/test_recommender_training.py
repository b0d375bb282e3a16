"""Training and evaluation on a user's own data, by their commands."""

import json
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from cramer_peft.errors import ConfigError, DataError
from cramer_peft.recsys.backbones import make_backbone
from cramer_peft.recsys.commands import app as cli
from cramer_peft.recsys.data.own_data import Columns, OwnData, load_own_data
from cramer_peft.recsys.data.split import pad_histories, seen_mask
from cramer_peft.recsys.evaluation.assessment import OWN, assess
from cramer_peft.recsys.evaluation.metrics import ndcg, overlap, share, target_ranks, top_items
from cramer_peft.recsys.recommender import RequestRecommender, save_backbone
from cramer_peft.recsys.requests.wordings import TRAIN_TEMPLATES
from cramer_peft.recsys.training.generator_training import GeneratorOptions
from cramer_peft.recsys.training.recommender_training import (
    TrainOptions,
    evaluate_recommender,
    generator_options,
    mask_config,
    train_recommender,
)

pytest.importorskip("accelerate")
pytestmark = pytest.mark.filterwarnings("ignore:'pin_memory' argument:UserWarning")

FEW = GeneratorOptions(steps=2, batch_size=4)
HASHING: dict[str, Any] = {"encoder": "hashing", "encoder_options": {"dim": 16}}
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs ``cramer-peft`` as its entry point does; exit code, output, errors."""
    monkeypatch.setenv("COLUMNS", "80")

    def run_main(*arguments: object) -> tuple[int, str, str]:
        capfd.readouterr()
        monkeypatch.setattr(sys, "argv", ["cramer-peft", *map(str, arguments)])
        with warnings.catch_warnings(), pytest.raises(SystemExit) as caught:
            cli.main()
        return int(caught.value.code or 0), *capfd.readouterr()

    return run_main


def later(line: str) -> str:
    """A line with a time at which no other user does anything: the data's own times are positions."""
    user, item, time = line.split("\t")
    return f"{user}\t{item}\t{100 * int(time) + int(user[1:])}"


@pytest.fixture(scope="module")
def stated(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same data with requests at every other interaction of the first ten users."""
    path = tmp_path_factory.mktemp("stated")
    (path / "x.item").write_text((folder / "tales.item").read_text())
    header, *lines = (folder / "tales.inter").read_text().splitlines()
    asked = [
        f"wish {number}" if int(line.split("\t")[0][1:]) < 10 and number % 2 else " "
        for number, line in enumerate(lines)
    ]
    rows = [f"{later(line)}\t{text}" for line, text in zip(lines, asked, strict=True)]
    (path / "x.inter").write_text("\n".join([header + "\trequest:token_seq", *rows]) + "\n")
    return path


@pytest.fixture(scope="module")
def trained(stated: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("trained") / "out"
    options = TrainOptions(str(stated), output, config=HASHING, epochs=1, generator=FEW, progress=False)
    train_recommender(options, say=lambda _: None)
    return output


# --- data


def test_own_requests_belong_to_their_targets(stated: Path, folder: Path) -> None:
    data = load_own_data(stated)
    _, *lines = (stated / "x.inter").read_text().splitlines()
    for stage, place in (("test", -1), ("validation", -2)):
        texts = data.own_requests(stage)  # type: ignore[arg-type]
        assert texts is not None
        for user, text in enumerate(texts):
            own = [line for line in lines if line.startswith(f"u{user}\t")]
            assert text == (own[place].split("\t")[3].strip() or None)
        assert 0 < sum(text is not None for text in texts) < 10
    assert load_own_data(folder).own_requests("test") is None


def test_own_requests_by_time(stated: Path) -> None:
    data = load_own_data(stated, "temporal")
    texts = data.own_requests("test")
    assert texts is not None
    assert len(texts) == len(data.split.test_target)
    assert "test" in data.describe()


def test_requests_that_are_no_text(stated: Path, tmp_path: Path) -> None:
    for name in ("x.item", "x.inter"):
        text = (stated / name).read_text().replace("request:token_seq", "request:float")
        (tmp_path / name).write_text(text.replace("wish ", ""))
    with pytest.raises(DataError, match="'request' has type float, expected text"):
        load_own_data(tmp_path).own_requests("test")


def test_data_that_cannot_work(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="found 'random', expected one of leave-one-out, temporal"):
        load_own_data(folder, "random")  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"no attribute is on 99 or more items.*--attribute-column"):
        load_own_data(folder, columns=Columns(min_attribute_items=99))
    with pytest.raises(DataError, match="Name another one with attribute_column"):
        load_own_data(folder, columns=Columns(attribute_column="colour"))
    with pytest.raises(DataError, match="Did you mean 'movielens-1m'"):
        load_own_data("movielens-m1")


# --- assessment


@pytest.fixture
def data(stated: Path) -> OwnData:
    return load_own_data(stated)


def test_values_are_those_of_the_metrics(data: OwnData, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    items = len(data.catalogue)
    weights, own = torch.randn(items + 1, items, generator=generator), torch.randn(items, generator=generator)

    def frozen(item_ids: torch.Tensor) -> torch.Tensor:
        return weights[item_ids].sum(1)

    def adapted(item_ids: torch.Tensor, requests: Any) -> torch.Tensor:
        return frozen(item_ids) + own * torch.tensor([float(len(text.strip())) for text in requests])[:, None]

    monkeypatch.setattr("cramer_peft.recsys.evaluation.measure.BLOCK", 7)
    results = assess(frozen, adapted, data, "test", TRAIN_TEMPLATES, 8)
    assert set(results) == {"truthful", "for", "against", "against favourite", "empty", OWN}
    texts = data.own_requests("test")
    assert texts is not None
    rows = [row for row, text in enumerate(texts) if text]
    histories = data.split.history("test")
    seen, inputs = seen_mask(histories, items), pad_histories(histories, 8)
    scores = adapted(inputs, [text or "" for text in texts])
    ranks = target_ranks(scores.masked_fill(seen, -torch.inf), data.split.test_target)
    assert results[OWN].users == len(rows)
    assert results[OWN].adapted["ndcg"].estimate == pytest.approx(float(ndcg(ranks)[rows].mean()), abs=1e-6)
    change = results[OWN].adapted["ndcg"].estimate - results[OWN].frozen["ndcg"].estimate
    assert results[OWN].change["ndcg"].estimate == pytest.approx(change, abs=1e-6)
    for name in ("for", "against", "against favourite"):
        assert set(results[name].ratios) >= {"retention"}
    same = assess(frozen, lambda item_ids, _: frozen(item_ids), data, "test", TRAIN_TEMPLATES, 8)
    assert same["empty"].adapted["overlap"].estimate == 1
    for name, result in same.items():
        assert all(interval.estimate == 0 for interval in result.change.values()), name
    ratio = same["against favourite"].ratios["ratio"]
    assert ratio is not None
    assert ratio.estimate == 1
    gain = same["for"].ratios["normalised_gain"]
    assert gain is not None
    assert gain.estimate == 0


def test_a_filter_that_knows_reaches_the_ceiling(data: OwnData) -> None:
    items, names = len(data.catalogue), data.catalogue.attributes

    def oracle(item_ids: torch.Tensor, requests: Any) -> torch.Tensor:
        flags = data.catalogue.item_attributes.float()
        asked = [[float(name.lower() in text.lower()) for name in names] for text in requests]
        return torch.tensor(asked) @ flags.T

    results = assess(lambda ids: torch.zeros(len(ids), items), oracle, data, "test", TRAIN_TEMPLATES, 8)
    gain = results["for"].ratios["normalised_gain"]
    assert gain is not None
    assert gain.estimate == pytest.approx(1)
    assert results["for"].adapted["satisfaction"].estimate > results["for"].frozen["satisfaction"].estimate


def test_fewer_users(data: OwnData) -> None:
    items = len(data.catalogue)
    results = assess(
        lambda ids: torch.rand(len(ids), items),
        lambda ids, _: torch.rand(len(ids), items),
        data,
        "validation",
        TRAIN_TEMPLATES,
        8,
        users=5,
    )
    assert results["for"].users == 5
    assert results.get(OWN) is None or results[OWN].users <= 5
    assert share(top_items(torch.rand(1, items), torch.zeros(1, items).bool()), torch.ones(1, items).bool()) == 1
    assert overlap(torch.arange(10)[None], torch.arange(10)[None]) == 1


# --- training


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


def test_settings_of_the_masks() -> None:
    assert mask_config({"gate": "scale"}).gate == "scale"
    with pytest.raises(ConfigError, match=r"unknown fields gait.*There are: .*gate"):
        mask_config({"gait": "scale"})
    with pytest.raises(ConfigError, match="gate"):
        mask_config({"gate": "wide"})
    assert generator_options(make_backbone("bert4rec", 3)).positions == 2
    assert generator_options(make_backbone("sasrec", 3)) == GeneratorOptions()


def test_what_evaluation_refuses(trained: Path, stated: Path, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="trained with the protocol 'leave-one-out', found 'temporal'"):
        evaluate_recommender(trained, str(stated), protocol="temporal", say=lambda _: None)
    with pytest.raises(DataError, match="or others: give the data that it was trained on"):
        evaluate_recommender(trained, str(stated), columns=Columns(min_attribute_items=20), say=lambda _: None)
    with pytest.raises(DataError, match="is not a recommender folder"):
        evaluate_recommender(tmp_path, str(stated), say=lambda _: None)


# --- the commands


def test_the_commands(stated: Path, tmp_path: Path, run: Run) -> None:
    settings = tmp_path / "masks.json"
    settings.write_text(json.dumps({**HASHING, "gate": "scale"}))
    output = tmp_path / "out"
    common = ("--data", stated, "--epochs", 1, "--steps", 2, "--config", settings, "--backbone", "gru4rec")
    code, out, errors = run("train", *common, "--output", output)
    assert code == 0, errors
    for text in ("30 users, 40 items, 5 attributes", "The validation users", "truthful", "own requests", "norm. gain"):
        assert text in out
    assert "…" not in out.split("Recommended under")[0]  # the table fits 80 columns
    assert json.loads((output / "adapter" / "adapter_config.json").read_text())["gate"] == "scale"
    assert run("recommend", "--adapter", output, "--history", "Action tale 0", "--request", "horror")[0] == 0
    code, out, errors = run("evaluate", "--adapter", output, "--data", stated)
    assert code == 0, errors
    assert "The test users" in out
    written = json.loads((output / "evaluation.json").read_text())
    assert written["options"]["stage"] == "test"
    assert set(written["tracks"]["truthful"]["adapted"]["ndcg"]) == {"value", "low", "high"}


def test_training_on_samples_in_larger_steps(stated: Path, tmp_path: Path, run: Run) -> None:
    settings = tmp_path / "masks.json"
    settings.write_text(json.dumps(HASHING))
    given = ("--data", stated, "--config", settings, "--negatives", 8, "--batch-size", 5, "--users", 4)
    code, _, errors = run("train", *given, "--output", tmp_path / "out", "--epochs", 1, "--steps", 2)
    assert code == 0, errors
    written = json.loads((tmp_path / "out" / "training.json").read_text())["options"]
    assert (written["negatives"], written["batch_size"], written["generator"]["batch_size"]) == (8, 5, 5)
    masked = json.loads((tmp_path / "out" / "adapter" / "adapter_config.json").read_text())["target_modules"]
    assert "head" not in masked


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--backbone", "sasrek"), "Did you mean 'sasrec'"),
        (("--protocol", "random"), "expected 'leave-one-out' or 'temporal'"),
        (("--attribute-column", "colour"), "fields there: item_id, title, genres"),
        (("--title-column", "genre"), "Name another one with title_column"),
        (("--min-attribute-items", "99"), "lower --min-attribute-items"),
        (("--config", "nowhere.json"), "nowhere.json"),
        (("--encoder", "telepathy"), "telepathy"),
        (("--backbone", "bert4rec", "--negatives", 8), "a backbone with an attribute negatives, such as SASRec"),
    ],
)
def test_train_says_what_to_do(
    arguments: tuple[str, ...], message: str, stated: Path, tmp_path: Path, run: Run
) -> None:
    code, _, errors = run("train", "--data", stated, "--output", tmp_path / "out", "--epochs", 1, *arguments)
    assert code == 1
    assert message in " ".join(errors.split())
    assert "Traceback" not in errors


def test_broken_folders(stated: Path, tmp_path: Path, run: Run) -> None:
    output = tmp_path / "out"
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "expected exactly one *.inter file" in run("train", "--data", empty, "--output", output)[2]
    assert "neither a data set's name" in run("train", "--data", tmp_path / "nowhere", "--output", output)[2]
    (empty / "x.item").write_text((stated / "x.item").read_text())
    (empty / "x.inter").write_text("user_id:token\titem_id:token\nu\ti1\n")
    assert "fields missing: timestamp" in run("train", "--data", empty, "--output", output)[2]


def test_evaluate_says_what_to_do(trained: Path, stated: Path, run: Run) -> None:
    code, _, errors = run("evaluate", "--adapter", trained, "--data", stated, "--stage", "final")
    assert code == 1
    assert "expected 'test' or 'validation'" in errors
