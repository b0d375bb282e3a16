"""One process: a training that was stopped goes on from its checkpoint to the figures of one that never was."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cramer_peft import RequestMaskConfig, RequestMaskModel, inject_request_masks
from cramer_peft.errors import AdapterFileError, ConfigError
from cramer_peft.recsys.backbones import SASRec
from cramer_peft.recsys.data.catalogue import Catalogue
from cramer_peft.recsys.data.splits import Split
from cramer_peft.recsys.training.backbone_training import BackboneOptions, fit_backbone
from cramer_peft.recsys.training.generator_training import train_generator
from cramer_peft.recsys.training.request_batches import GeneratorOptions
from cramer_peft.training.checkpoints import Checkpoints, fill_trained, random_state, set_random_state, trained_tensors
from cramer_peft.training.processes import Processes, Share

pytest.importorskip("accelerate")

ITEMS, LENGTH = 20, 6
BACKBONE = BackboneOptions(epochs=6, learning_rate=0.02, batch_size=4, patience=2, dropout=0.3, max_length=LENGTH)
GENERATOR = GeneratorOptions(steps=7, batch_size=4, positions=2, learning_rate=1e-2)


class StoppedError(Exception):
    """In place of a kill."""


def tiny_data() -> tuple[Catalogue, Split]:
    generator = torch.Generator().manual_seed(1)
    rows = [torch.randperm(ITEMS, generator=generator)[: 5 + user % 3] for user in range(10)]
    flags = nn.functional.one_hot(torch.arange(ITEMS) % 2, 2).bool()
    names = tuple(f"i{item}" for item in range(ITEMS))
    ends = torch.stack([row[-2:] for row in rows])
    return Catalogue(names, names, ("Comedy", "Horror"), flags), Split(
        tuple(row[:-2] for row in rows), ends[:, 0], ends[:, 1]
    )


def backbone(checkpoints: Checkpoints | None = None, options: BackboneOptions = BACKBONE) -> dict[str, Tensor]:
    torch.manual_seed(0)
    model = SASRec(SASRec.configure(ITEMS, LENGTH, options.dropout, hidden_size=8))
    fit_backbone(model, tiny_data()[1], options, 3, False, checkpoints=checkpoints)
    return model.state_dict()


def adapted(gate: str = "topk") -> RequestMaskModel:
    torch.manual_seed(0)
    model = SASRec(SASRec.configure(ITEMS, LENGTH, 0.1, hidden_size=8)).eval().requires_grad_(False)
    config = RequestMaskConfig(
        gate=gate, target_modules=["intermediate.dense"], encoder="hashing", encoder_options={"dim": 8}
    )
    return inject_request_masks(model, config)


def generator(checkpoints: Checkpoints | None = None, gate: str = "topk") -> dict[str, Tensor]:
    masks = adapted(gate)
    train_generator(masks, *tiny_data(), GENERATOR, 3, False, checkpoints)
    return masks.state_dict()


TRAININGS = {"backbone": backbone, "generator": generator}


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """``begun``: the steps that began; ``stop``: the step before which a training stops."""
    from cramer_peft.training.trainer import ResumableTrainer

    seen: dict[str, Any] = {"begun": [], "stop": None}
    own = ResumableTrainer.training_step

    def training_step(self: ResumableTrainer, *args: Any, **kwargs: Any) -> Tensor:
        if self.state.global_step == seen["stop"]:
            raise StoppedError
        seen["begun"].append(self.state.global_step)
        loss: Tensor = own(self, *args, **kwargs)
        return loss

    monkeypatch.setattr(ResumableTrainer, "training_step", training_step)
    return seen


def equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize(("name", "stop", "last"), [("backbone", 5, 3), ("backbone", 8, 6), ("generator", 5, 4)])
def test_a_stopped_training_ends_as_one_that_was_not(
    name: str, stop: int, last: int, steps: dict[str, Any], tmp_path: Path
) -> None:
    """Early stopping, dropout, the noise of ``topk``, the schedule and the requests are as if nothing had happened."""
    kept = Checkpoints(tmp_path / "kept", every=2, resume=True)
    expected = TRAININGS[name]()
    whole = steps["begun"]
    steps.update(begun=[], stop=stop)
    with pytest.raises(StoppedError):
        TRAININGS[name](kept)
    assert max(int(path.name.split("-")[1]) for path in kept.folder.iterdir()) == last
    steps.update(begun=[], stop=None)
    assert equal(TRAININGS[name](kept), expected)
    assert steps["begun"] == whole[last:]  # nothing but what came after the last checkpoint
    steps["begun"] = []
    assert equal(TRAININGS[name](kept), expected)
    assert steps["begun"] == []  # a training that had ended gives its weights at once


def test_a_half_written_checkpoint_is_not_there(
    steps: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cramer_peft.training import checkpoints as files

    kept = Checkpoints(tmp_path, every=2, resume=True)
    expected = generator()
    write = files.write_json

    def killed(path: Path, values: Any) -> None:
        if path.parent.name == ".checkpoint-4.part" and path.name == files.PROGRESS:
            raise StoppedError
        write(path, values)

    with monkeypatch.context() as patch:
        patch.setattr(files, "write_json", killed)
        with pytest.raises(StoppedError):
            generator(kept)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".checkpoint-4.part", "checkpoint-2"]
    assert equal(generator(kept), expected)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-7"]


def test_what_a_checkpoint_holds(tmp_path: Path) -> None:
    masks = adapted()
    train_generator(masks, *tiny_data(), GENERATOR, 3, False, Checkpoints(tmp_path, every=3))
    (folder,) = tmp_path.iterdir()
    assert sorted(path.name for path in folder.iterdir()) == [
        *("optimizer.safetensors", "progress.json", "random-0.safetensors"),
        *("trainer_state.json", "weights.safetensors"),
    ]
    weights = trained_tensors(masks)
    assert weights
    assert all("request_mask_generator" in name for name in weights)
    assert str(tmp_path) not in "".join(path.read_text() for path in folder.glob("*.json"))


def test_checkpoints_of_another_training_are_refused(tmp_path: Path) -> None:
    generator(Checkpoints(tmp_path))
    with pytest.raises(ConfigError, match="resume=True"):
        generator(Checkpoints(tmp_path))
    with pytest.raises(ConfigError, match="adapter: found"):
        generator(Checkpoints(tmp_path, resume=True), gate="scale")
    backbone(Checkpoints(tmp_path / "b"), replace(BACKBONE, epochs=1))
    with pytest.raises(ConfigError, match=r"epochs: found 6, .* written with 1"):
        backbone(Checkpoints(tmp_path / "b", resume=True))
    with pytest.raises(ConfigError, match="every"):
        Checkpoints(tmp_path, every=0)
    (path,) = (tmp_path / "b").iterdir()
    (path / "progress.json").write_text("{")
    with pytest.raises(AdapterFileError, match=r"progress\.json"):
        backbone(Checkpoints(tmp_path / "b", resume=True), replace(BACKBONE, epochs=1))


def test_processes_that_see_other_checkpoints_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a second machine whose folder of that name is another one: it would start anew beside one that goes on."""
    from cramer_peft.training import trainer

    generator(Checkpoints(tmp_path))
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.setattr(trainer, "gather_object", lambda own: [*own, None])
    for resume in (True, False):
        with pytest.raises(ConfigError, match="of step 7 for process 0, but of step None for process 1"):
            generator(Checkpoints(tmp_path, resume=resume))
    assert sorted(tmp_path.rglob("*")) == before


def test_weights_of_another_model_change_nothing() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Linear(2, 1).requires_grad_(False))
    assert list(trained_tensors(model)) == [
        *("0.weight", "0.bias", "1.weight", "1.bias", "1.running_mean", "1.running_var", "1.num_batches_tracked"),
    ]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(AdapterFileError, match=r"'0\.weight' has the shape \(3, 2\)"):
        fill_trained(model, {**trained_tensors(model), "0.bias": torch.ones(2), "0.weight": torch.ones(3, 2)}, "x")
    assert equal(model.state_dict(), before)


def test_random_states_come_back() -> None:
    import random

    import numpy as np

    device = torch.device("cpu")
    random.gauss(0, 1)
    np.random.standard_normal()
    state = random_state(device)

    def draw() -> tuple[float, ...]:
        return random.gauss(0, 1), random.random(), np.random.standard_normal(), float(torch.rand(()))

    first = draw()
    set_random_state(state, device)
    assert draw() == first


@pytest.mark.parametrize("count", [1, 2, 3, 5])
@pytest.mark.parametrize("total", [1, 2, 4, 7])
def test_each_row_belongs_to_one_process(count: int, total: int) -> None:
    batch = {"x": torch.arange(total), "y": torch.arange(total) + 10}
    rows = []
    for index in range(count):
        own = Processes(index, count).own_rows(batch)
        share = Share.from_tensor(own["share"]) if count > 1 else Share(0, total, total)
        assert len(own["x"]) == len(own["y"]) >= 1
        rows += [] if share.empty else own["x"].tolist()
        assert share.total == total
    assert rows == list(range(total))


# --- progress


def test_a_line_for_each_epoch_and_for_each_tenth_of_the_steps(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def shown(train: Any) -> list[str]:
        capfd.readouterr()
        train()
        out, error = capfd.readouterr()
        assert out == ""
        assert "\r" not in error
        assert "{" not in error
        return [line.strip() for line in error.splitlines()]

    torch.manual_seed(0)
    model, split = SASRec(SASRec.configure(ITEMS, LENGTH, 0.1, hidden_size=8)), tiny_data()[1]
    ndcg = iter([0.1, 0.3, 0.2, 0.25, 0.5])
    monkeypatch.setattr(
        "cramer_peft.recsys.training.backbone_training.ndcg", lambda ranks: torch.full((len(ranks),), next(ndcg))
    )
    lines = shown(lambda: fit_backbone(model, split, BACKBONE, 3))
    assert [line.rpartition(",")[0] for line in lines[:-1]] == [
        f"epoch {epoch} of 6: ndcg@10 {value:.4f}" for epoch, value in enumerate((0.1, 0.3, 0.2, 0.25), start=1)
    ]
    assert lines[-1] == "stopped early: epoch 2 of the 4 was the best"
    ndcg = iter([0.1, 0.2])
    lines = shown(lambda: fit_backbone(model, split, replace(BACKBONE, epochs=2), 3))
    assert lines[-1] == "epoch 2 of the 2 was the best"

    lines = shown(lambda: train_generator(adapted(), *tiny_data(), replace(GENERATOR, steps=30), 3))
    assert len(lines) == 10
    assert lines[0].startswith("step 3 of 30: 0 s, about ")
    assert lines[-1].rpartition(":")[0] == "step 30 of 30"
    assert "left" not in lines[-1]
    assert shown(lambda: train_generator(adapted(), *tiny_data(), GENERATOR, 3, progress=False)) == []
