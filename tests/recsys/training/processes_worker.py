"""Run by ``accelerate launch``: trains on the tiny data, on as many processes as there are, and writes the results.

``processes_worker.py OUTPUT CASES [CHECKPOINTS [KILL_AT]]``; with KILL_AT the last process kills itself in that step.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from cramer_peft import RequestMaskConfig, RequestMaskModel
from cramer_peft.recsys.backbones import make_backbone
from cramer_peft.recsys.data.catalogue import Catalogue
from cramer_peft.recsys.data.splits import Split
from cramer_peft.recsys.masks import mask_backbone
from cramer_peft.recsys.requests.request_encoders import request_encoder
from cramer_peft.recsys.training.backbone_training import BackboneOptions, train_backbone
from cramer_peft.recsys.training.generator_training import train_generator
from cramer_peft.recsys.training.request_batches import GeneratorOptions
from cramer_peft.training import Checkpoints, Processes, ResumableTrainer

ITEMS, LENGTH = 24, 6
# 17 windows and batches of 8: the last batch has one row, so that a second process has none
BACKBONE = BackboneOptions(epochs=3, learning_rate=5e-3, batch_size=8, patience=3, dropout=0.0, max_length=LENGTH)
GENERATOR = GeneratorOptions(steps=7, batch_size=8, positions=3, learning_rate=1e-2)
PAPER = GeneratorOptions.paper(steps=4, batch_size=8, positions=1, sparsity_weight=0.0)


def tiny_data() -> tuple[Catalogue, Split]:
    """24 items of three genres; 17 users, each with a history of one window."""
    rng = random.Random(3)
    flags = torch.nn.functional.one_hot(torch.arange(ITEMS) % 3, 3).bool()
    names = ("Comedy", "Drama", "Horror")
    titles = tuple(f"{names[item % 3]} tale {item}" for item in range(ITEMS))
    catalogue = Catalogue(tuple(f"i{item}" for item in range(ITEMS)), titles, names, flags)
    rows = [torch.tensor(rng.sample(range(ITEMS), 5 + user % 4)) for user in range(17)]
    ends = torch.stack([row[-2:] for row in rows])
    return catalogue, Split(tuple(row[:-2] for row in rows), ends[:, 0], ends[:, 1])


def backbone(name: str, dropout: float = 0.0, checkpoints: Checkpoints | None = None, **options: Any) -> Any:
    settings = BackboneOptions(**{**vars(BACKBONE), "dropout": dropout, **options.pop("options", {})})
    return train_backbone(name, *tiny_data(), settings, 1, False, checkpoints=checkpoints, **options)


def generator(
    gate: str,
    encoder: str | None,
    options: GeneratorOptions = GENERATOR,
    checkpoints: Checkpoints | None = None,
    targets: list[str] | None = None,
    negatives: int | None = None,
) -> RequestMaskModel:
    catalogue, split = tiny_data()
    torch.manual_seed(2)
    frozen = make_backbone("sasrec", ITEMS, max_length=LENGTH, dropout=0.2).eval().requires_grad_(False)
    encoder_options = {"dim": 16} if encoder else {}
    config = RequestMaskConfig(gate=gate, encoder=encoder, encoder_options=encoder_options, target_modules=targets)
    made = request_encoder(encoder, catalogue, frozen, config.encoder_options)
    masks = mask_backbone(frozen, catalogue, config, made)
    train_generator(masks, catalogue, split, options, 1, False, checkpoints, negatives)
    return masks


CASES = {
    "sasrec": lambda folder: backbone("sasrec"),
    "bert4rec": lambda folder: backbone("bert4rec"),
    "gru4rec": lambda folder: backbone("gru4rec"),
    "sampled": lambda folder: backbone("sasrec", negatives=5),
    "scale": lambda folder: generator("scale", "hashing"),
    "paper": lambda folder: generator("scale", "hashing", PAPER),
    "sampled generator": lambda folder: generator("scale", "hashing", targets=["output.dense"], negatives=5),
    "kept backbone": lambda folder: backbone(
        "bert4rec", 0.3, folder.below("backbone"), options={"epochs": 4, "patience": 4}
    ),
    "kept generator": lambda folder: generator("scale", "hashing", checkpoints=folder.below("generator")),
}


def figures(model: torch.nn.Module) -> dict[str, Tensor]:
    """The weights; of an adapted model, the trained ones."""
    weights = {name: value.detach().clone() for name, value in model.named_parameters()}
    return {name: value for name, value in weights.items() if "request_mask" in name} or weights


def count_steps(kill_at: int | None = None) -> list[int]:
    """The steps of all trainings, as they begin; in one of them, counted from 1, the last process is killed."""
    own, begun = ResumableTrainer.training_step, []

    def training_step(self: ResumableTrainer, *args: Any, **kwargs: Any) -> Any:
        begun.append(self.state.global_step)
        if len(begun) == kill_at and self.processes.index == self.processes.count - 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return own(self, *args, **kwargs)

    ResumableTrainer.training_step = training_step  # type: ignore[method-assign]
    return begun


def main(output: str, cases: str, checkpoints: str = "", kill: str = "") -> None:
    begun = count_steps(int(kill) if kill else None)
    torch.set_num_threads(1)
    folder = Checkpoints(Path(checkpoints), every=2, resume=True) if checkpoints else None
    for name in json.loads(cases):
        model = CASES[name](folder)
        own = Processes.launched()
        path = Path(output) / (f"{name}.safetensors" if own.writes else f"{name} of {own.index}.safetensors")
        save_file(figures(model), path)
    (Path(output) / f"steps of {Processes.launched().index}.json").write_text(json.dumps(begun))


if __name__ == "__main__":
    main(*sys.argv[1:])
