"""``transformers.Trainer``: a run that stops and goes on from its checkpoint ends where an uninterrupted one does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from cramer_peft import RequestMaskConfig, RequestMaskModel, inject_request_masks
from cramer_peft.training import TemperatureCallback

STEPS, STOP = 6, 3


class Recommender(nn.Module):
    """Dropout inside; where ``tied``, it scores by the very embedding that it reads."""

    def __init__(self, tied: bool) -> None:
        super().__init__()
        self.items, self.drop = nn.Embedding(20, 8), nn.Dropout(0.2)
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)
        self.out = nn.Linear(8, 20, bias=False)
        if tied:
            self.out.weight = self.items.weight

    def forward(self, histories: Tensor, labels: Tensor | None = None) -> Any:
        state = self.items(histories).mean(1)
        scores = self.out(state + self.down(self.drop(torch.relu(self.up(state)))))
        return scores if labels is None else {"loss": cross_entropy(scores, labels), "scores": scores}


ROWS = [
    {"histories": [i % 20, (3 * i) % 20, (7 * i + 1) % 20], "labels": (5 * i) % 20, "request": f"more {i % 5}"}
    for i in range(40)
]
ROWS[7]["request"] = None


def collate(rows: list[dict[str, Any]]) -> dict[str, Any]:
    tensors = {name: torch.tensor([row[name] for row in rows]) for name in ("histories", "labels")}
    return {**tensors, "request": [row["request"] for row in rows]}


class StopAt(TrainerCallback):
    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        control.should_training_stop = state.global_step >= STOP


def make(gate: str, door: str, tied: bool) -> tuple[nn.Module, RequestMaskModel]:
    torch.manual_seed(0)
    base = Recommender(tied)
    config = RequestMaskConfig(
        target_modules=["up", "down"], gate=gate, encoder="hashing", encoder_options={"dim": 16}, init_weights=False
    )
    if door == "peft":
        model = get_peft_model(base, config)
        return model, model.base_model
    masks = inject_request_masks(base, config)
    return masks, masks


def train(
    folder: Path, gate: str, door: str, stop: bool = False, resume: bool = False, tied: bool | None = None
) -> dict[str, Tensor]:
    model, masks = make(gate, door, door == "peft" if tied is None else tied)
    if resume:  # what is not in the checkpoint must not be what makes it right
        torch.manual_seed(99)
        for parameter in masks.generator.parameters():
            nn.init.normal_(parameter)
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=STEPS,
        save_steps=STOP,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        learning_rate=0.05,
        lr_scheduler_type="cosine",
        warmup_steps=1,
        remove_unused_columns=False,
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        seed=7,
    )
    callbacks = [TemperatureCallback(masks), *([StopAt()] if stop else [])]
    trainer = Trainer(model=model, args=arguments, train_dataset=ROWS, data_collator=collate, callbacks=callbacks)
    trainer.train(resume_from_checkpoint=str(folder / f"checkpoint-{STOP}") if resume else None)
    assert trainer.state.global_step == (STOP if stop else STEPS)
    return {name: value.detach().clone() for name, value in masks.state_dict().items()}


@pytest.mark.parametrize("door", ["handle", "peft"])
def test_resuming_ends_with_the_weights_of_an_uninterrupted_run(tmp_path: Path, gate: str, door: str) -> None:
    expected = train(tmp_path / "whole", gate, door)
    half = train(tmp_path / "parts", gate, door, stop=True)
    found = train(tmp_path / "parts", gate, door, resume=True)
    assert list(found) == list(expected)
    assert [name for name in expected if not torch.equal(found[name], expected[name])] == []
    trained = [name for name in expected if "request_mask_generator" in name]
    assert any(not torch.equal(half[name], expected[name]) for name in trained)
    frozen = {
        name: value for name, value in make(gate, door, door == "peft")[1].state_dict().items() if name not in trained
    }
    assert [name for name, value in frozen.items() if not torch.equal(value, expected[name])] == []
    files = sorted(path.name for path in (tmp_path / "parts" / f"checkpoint-{STOP}").iterdir())
    print(door, files)
    assert ("adapter_model.safetensors" if door == "peft" else "model.safetensors") in files


def test_tied_weights_under_the_handle_are_refused_by_trainers_own_file(tmp_path: Path) -> None:
    """As without masks, for a model that is not a ``PreTrainedModel``; the checkpoints of ``PeftModel`` hold none."""
    with pytest.raises(RuntimeError, match="share memory"):
        train(tmp_path, "scale", "handle", tied=True)


@pytest.mark.parametrize("door", ["handle", "peft"])
def test_labels_are_found(tmp_path: Path, door: str) -> None:
    model, _ = make("scale", door, tied=False)
    arguments = TrainingArguments(
        output_dir=str(tmp_path), remove_unused_columns=False, report_to="none", disable_tqdm=True, use_cpu=True
    )
    trainer = Trainer(model=model, args=arguments, eval_dataset=ROWS, data_collator=collate)
    assert "eval_loss" in trainer.evaluate()
    assert trainer.predict(ROWS).predictions.shape == (len(ROWS), 20)
