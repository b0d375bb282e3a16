"""Reports of trainings: each is a run of its own, changes nothing in the result, and needs its package at once."""

import struct
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tensorboardX.proto.event_pb2 import Event
from transformers import TrainerCallback, TrainingArguments
from transformers.integrations import integration_utils

from cramer_peft import RequestMaskModel
from cramer_peft.errors import ConfigError, MissingExtraError
from cramer_peft.recsys.data.catalogue import Catalogue
from cramer_peft.recsys.data.splits import Split
from cramer_peft.recsys.training import reports
from cramer_peft.recsys.training.backbone_training import BackboneOptions, train_backbone
from cramer_peft.recsys.training.generator_training import train_generator
from cramer_peft.recsys.training.recommender_training import TrainOptions, train_recommender
from cramer_peft.recsys.training.reports import train_and_report
from cramer_peft.recsys.training.request_batches import GeneratorOptions
from cramer_peft.training import ResumableTrainer

pytest.importorskip("accelerate")
HASHING: dict[str, Any] = {"encoder": "hashing", "encoder_options": {"dim": 16}}
STEPS = GeneratorOptions(steps=12, batch_size=4, positions=2)


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """The curves in a folder of TensorBoard's: (step, value) by name."""
    found: dict[str, list[tuple[int, float]]] = {}
    (file,) = folder.glob("events.out.tfevents.*")
    data, start = file.read_bytes(), 0
    while start < len(data):
        (length,) = struct.unpack("<Q", data[start : start + 8])
        event = Event.FromString(data[start + 12 : start + 12 + length])
        for value in event.summary.value:
            if value.HasField("simple_value"):
                found.setdefault(value.tag, []).append((event.step, value.simple_value))
        start += length + 16
    return found


@pytest.mark.parametrize("name", ["sasrec", "gru4rec"])
@pytest.mark.parametrize("place", [None, "elsewhere"])
def test_a_recommender_reports_both_trainings_apart(
    name: str, place: str | None, stated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TENSORBOARD_LOGGING_DIR", raising=False)
    if place is not None:
        monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", place)
    options = TrainOptions(
        str(stated), tmp_path / "out", name, config=HASHING, epochs=2, batch_size=4, generator=STEPS, progress=False,
        report_to="tensorboard",
    )  # fmt: skip
    train_recommender(options, say=lambda _: None)
    backbone, generator = sorted((tmp_path / (place or "runs")).iterdir())
    assert backbone.name.startswith("backbone-")
    assert generator.name.startswith("generator-")
    curves = scalars(backbone)
    assert [len(curve) for name, curve in curves.items() if name.startswith("eval/ndcg")] == [2]
    assert curves["train/loss"]
    assert [step for step, _ in scalars(generator)["train/loss"]] == [10]
    assert '"report_to"' not in (tmp_path / "out" / "training.json").read_text()


def test_a_report_changes_nothing(catalogue: Catalogue, split: Split, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    options = BackboneOptions(epochs=2, batch_size=4, max_length=8, dropout=0.3)
    plain, told = (
        train_backbone("gru4rec", catalogue, split, options, 1, False, report_to=tool).state_dict()
        for tool in (None, ["tensorboard"])
    )
    assert all(torch.equal(plain[name], value) for name, value in told.items())


def test_without_its_package_nothing_is_trained(
    untrained_masks: RequestMaskModel,
    catalogue: Catalogue,
    split: Split,
    stated: Path,
    tmp_path: Path,
    monkeypatch: Any,
) -> None:
    before = {name: value.clone() for name, value in untrained_masks.generator.state_dict().items()}
    monkeypatch.setattr(reports, "get_available_reporting_integrations", lambda: ["tensorboard"])
    for tool, error, message in (
        ("wandb", MissingExtraError, "'wandb' .*pip install wandb"),
        (["tensorboard", "mlflow"], MissingExtraError, "'mlflow' .*pip install mlflow"),
        ("wandbb", ConfigError, "found 'wandbb', expected .*tensorboard"),
        ([""], ConfigError, "found ''"),
        (["tensorboard", "none"], ConfigError, "found 'none'"),
    ):
        said: list[str] = []
        with pytest.raises(error, match=message):
            train_recommender(TrainOptions(str(stated), tmp_path / "out", config=HASHING, report_to=tool), said.append)
        assert said == []
        with pytest.raises(error, match=message):
            train_backbone("sasrec", catalogue, split, BackboneOptions(epochs=1), progress=False, report_to=tool)
        with pytest.raises(error, match=message):
            train_generator(untrained_masks, catalogue, split, STEPS, progress=False, report_to=tool)
    assert all(torch.equal(before[name], value) for name, value in untrained_masks.generator.state_dict().items())
    assert list(tmp_path.iterdir()) == []


class FakeWandb(TrainerCallback):
    """Opens a run unless one is open, as transformers' callback does, and leaves it open."""

    runs: list[str]
    module: Any

    def on_train_begin(self, args: TrainingArguments, *_: Any, **__: Any) -> None:
        if self.module.run is None:
            self.module.run = args.run_name
            self.runs.append(args.run_name)


@pytest.mark.parametrize("mine", [None, "my run"])
def test_each_training_is_a_run_of_weights_and_biases(
    mine: str | None, stated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = SimpleNamespace(run=mine, finish=lambda: setattr(module, "run", None))
    FakeWandb.runs, FakeWandb.module = [], module
    monkeypatch.setitem(sys.modules, "wandb", module)
    monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, "wandb", FakeWandb)
    monkeypatch.setattr(reports, "get_available_reporting_integrations", lambda: ["wandb"])
    options = TrainOptions(
        str(stated), tmp_path, "gru4rec", config=HASHING, epochs=1, generator=STEPS, progress=False, report_to=["wandb"]
    )
    train_recommender(options, say=lambda _: None)
    assert FakeWandb.runs == (["backbone", "generator"] if mine is None else [])
    assert module.run == mine


def test_the_trainer_of_the_library_reports_where_its_arguments_say(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "logs"))

    class Model(torch.nn.Linear):
        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"loss": super().forward(x).square().mean()}

    arguments = TrainingArguments(
        str(tmp_path), max_steps=3, logging_steps=1, report_to=["tensorboard"], run_name="mine", disable_tqdm=True,
        use_cpu=True, save_strategy="no",
    )  # fmt: skip
    trainer = ResumableTrainer(model=Model(2, 1), args=arguments, train_dataset=[{"x": torch.ones(2)}] * 8)
    train_and_report(trainer)
    (run,) = (tmp_path / "logs").iterdir()
    assert run.name.startswith("mine-")
    assert len(scalars(run)["train/loss"]) == 3
