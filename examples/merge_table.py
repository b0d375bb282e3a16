"""Merge, unmerge, and compare the frozen weights with those before: PEFT's methods, and request masks.

Each case is one layer with random weights and a random adapter, in float32 or bfloat16, merged once and unmerged once.
A case is exact if every weight of the frozen layer equals its value before, by torch.equal.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import peft
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from cramer_peft import RequestMaskConfig, inject_request_masks

SEEDS = (0, 1)
DTYPES = (torch.float32, torch.bfloat16)
DIM = 8
LAYERS: dict[str, Callable[[], nn.Module]] = {
    "Linear": lambda: nn.Linear(16, 12),
    "Conv1D": lambda: Conv1D(12, 16),
    "Conv1d": lambda: nn.Conv1d(16, 12, 3),
    "Conv2d": lambda: nn.Conv2d(16, 12, 3),
    "Embedding": lambda: nn.Embedding(20, 12),
    "MHA": lambda: nn.MultiheadAttention(16, 2),
    "LayerNorm": lambda: nn.LayerNorm(12),
    "LSTM": lambda: nn.LSTM(16, 12),
}
T = ["layer"]
METHODS: dict[str, Callable[[], Any]] = {
    "LoRA": lambda: peft.LoraConfig(target_modules=T, r=4),
    "DoRA": lambda: peft.LoraConfig(target_modules=T, r=4, use_dora=True),
    "AdaLoRA": lambda: peft.AdaLoraConfig(target_modules=T, total_step=1),
    "IA³": lambda: peft.IA3Config(target_modules=T, feedforward_modules=[]),
    "LoHa": lambda: peft.LoHaConfig(target_modules=T, r=4),
    "LoKr": lambda: peft.LoKrConfig(target_modules=T, r=4),
    "OFT": lambda: peft.OFTConfig(target_modules=T, oft_block_size=4, use_cayley_neumann=False),
    "BOFT": lambda: peft.BOFTConfig(target_modules=T, boft_block_size=4),
    "HRA": lambda: peft.HRAConfig(target_modules=T, r=4),
    "VeRA": lambda: peft.VeraConfig(target_modules=T, r=4),
    "FourierFT": lambda: peft.FourierFTConfig(target_modules=T, n_frequency=20),
    "VB-LoRA": lambda: peft.VBLoRAConfig(target_modules=T, r=4, vector_length=4, num_vectors=10),
    "MiSS": lambda: peft.MissConfig(target_modules=T, r=4),
    "RandLora": lambda: peft.RandLoraConfig(target_modules=T, r=4),
    "DeLoRA": lambda: peft.DeloraConfig(target_modules=T, r=4),
    "GraLoRA": lambda: peft.GraloraConfig(target_modules=T, r=4),
    "SHiRA": lambda: peft.ShiraConfig(target_modules=T, r=4),
    "HiRA": lambda: peft.HiraConfig(target_modules=T, r=4),
    "FRoD": lambda: peft.FrodConfig(target_modules=T),
    "PEANUT": lambda: peft.PeanutConfig(target_modules=T, r=4),
    "LN Tuning": lambda: peft.LNTuningConfig(target_modules=T),
}
GATES = ("low_rank", "scale", "topk")


class Model(nn.Module):
    """A layer beside another one, so that the layer is not the root."""

    def __init__(self, kind: str, seed: int, dtype: torch.dtype) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.layer = LAYERS[kind]()
        self.rest = nn.Linear(2, 2)
        for parameter in self.parameters():  # torch starts some of them at 0 or 1, which are exact anyway
            nn.init.normal_(parameter)
        self.to(dtype).eval()


@dataclass
class Outcome:
    """Counts of one method's cases."""

    kinds: list[str] = field(default_factory=list)
    cases: int = 0
    exact: int = 0
    difference: float = 0.0
    unchanged: int = 0

    def add(self, kind: str, before: dict[str, torch.Tensor], merged: list[torch.Tensor], after: nn.Module) -> None:
        values = after.state_dict()
        if kind not in self.kinds:
            self.kinds.append(kind)
        self.cases += 1
        self.exact += all(torch.equal(values[name], old) for name, old in before.items())
        self.unchanged += all(torch.equal(m, old) for m, old in zip(merged, before.values(), strict=True))
        found = [(values[name].float() - old.float()).abs().max().item() for name, old in before.items()]
        self.difference = max([self.difference, *found])

    def row(self, name: str) -> str:
        return f"| {name} | {', '.join(self.kinds)} | {self.cases} | {self.exact} | {self.difference:.1e} |"


def frozen_part(model: Any) -> nn.Module:
    """Return the layer of ``Model`` below PEFT's wrapper."""
    layer = model.base_model.model.layer
    base: nn.Module = layer.get_base_layer() if hasattr(layer, "get_base_layer") else layer
    return base


def peft_case(outcome: Outcome, make: Callable[[], Any], kind: str, seed: int, dtype: torch.dtype) -> None:
    """Count one case of a PEFT method, unless the method does not take the layer."""
    try:
        model = peft.get_peft_model(Model(kind, seed, dtype), make()).eval()
    except (ValueError, TypeError, NotImplementedError, AttributeError, RuntimeError, IndexError, KeyError):
        return
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    with torch.no_grad():
        for parameter in trained:
            parameter.add_(torch.randn_like(parameter, dtype=torch.float32).to(parameter.dtype) * 0.3)
        base = frozen_part(model)
        before = copy.deepcopy(base.state_dict())
        model.merge_adapter()
        merged = [value.clone() for value in frozen_part(model).state_dict().values()]
        model.unmerge_adapter()
    outcome.add(kind, before, merged, frozen_part(model))


def our_case(outcome: Outcome, gate: str, kind: str, seed: int, dtype: torch.dtype) -> None:
    """Count one case of ours: one request merged into the weights and taken out."""
    model = Model(kind, seed, dtype)
    try:
        masks = inject_request_masks(
            model, RequestMaskConfig(target_modules=T, gate=gate, request_dim=DIM, init_weights=False)
        )
    except ValueError:
        return
    base = model.layer.get_base_layer()  # type: ignore[operator]
    before = copy.deepcopy(base.state_dict())
    masks.merge_request(torch.randn(DIM))
    merged = [value.clone() for value in base.state_dict().values()]
    masks.unmerge()
    outcome.add(kind, before, merged, base)


def run(case: Callable[[Outcome, Any, str, int, torch.dtype], None], subject: Any) -> Outcome:
    outcome = Outcome()
    for kind in LAYERS:
        for seed in SEEDS:
            for dtype in DTYPES:
                case(outcome, subject, kind, seed, dtype)
    return outcome


def main() -> None:
    warnings.simplefilter("ignore")
    print(f"torch {torch.__version__.partition('+')[0]}, peft {peft.__version__}\n")
    print("| Method | Layers | Cases | Exact after unmerge | Largest difference |")
    print("| --- | --- | --- | --- | --- |")
    for name, make in METHODS.items():
        print(run(peft_case, make).row(name))
    ours = {f"request masks, `{gate}`": run(our_case, gate) for gate in GATES}
    for name, outcome in ours.items():
        print(outcome.row(name))
    moved = all(outcome.cases > 0 and outcome.unchanged == 0 for outcome in ours.values())
    exact = all(outcome.exact == outcome.cases for outcome in ours.values())
    print(f"\nrequest masks change the weights and give them back, bit for bit: {moved and exact}")


if __name__ == "__main__":
    main()
