"""Run by ``accelerate launch`` with two processes: gradients averaged by DDP against those of the full batch."""

from __future__ import annotations

import sys

import torch
from accelerate import Accelerator
from peft import get_peft_model
from torch import Tensor, nn

from cramer_peft import RequestMaskConfig, inject_request_masks, register_request_encoder

ROWS = 6
TEXTS = ["more horror", None, "nothing sad", "quiet", "", "more crime"]


class Letters(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(26, 26), nn.Linear(26, 26)])

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.tanh(layer(x))
        return x


class LetterEncoder:
    """Counts letters, and sends them through a network that can be tuned."""

    name, dim = "letters", 26

    def __init__(self) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(5)
            self.module = Letters().eval().requires_grad_(False)

    def encode_with(self, texts, run) -> Tensor:
        return run(torch.tensor([[float(t.count(chr(97 + i))) for i in range(26)] for t in texts]))

    def encode(self, texts) -> Tensor:
        return self.encode_with(texts, self.module)

    def tunable_names(self, regime: str) -> list[str]:
        return [name for name, _ in self.module.named_parameters() if regime == "all" or name.startswith("layers.1")]


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(4, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(torch.relu(self.up(x)))


def make(gate: str, door: str, tuning: str) -> nn.Module:
    torch.manual_seed(0)
    config = RequestMaskConfig(
        target_modules=["up", "down"], gate=gate, encoder="letters", init_weights=False, encoder_tuning=tuning
    )
    model = get_peft_model(Model(), config) if door == "peft" else inject_request_masks(Model(), config)
    return model.eval()  # so that topk draws no noise, which differs by process


def gradients(model: nn.Module, run: nn.Module, x: Tensor, texts: list[str | None], backward) -> dict[str, Tensor]:
    model.zero_grad()
    backward(run(x, request=texts).square().mean())
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad and p.grad is not None}


def main() -> None:
    register_request_encoder("letters", LetterEncoder)
    torch.set_num_threads(1)
    accelerator = Accelerator(cpu=True)
    assert accelerator.num_processes == 2
    rank, checked = accelerator.process_index, 0
    x = torch.linspace(-1, 1, ROWS * 4).reshape(ROWS, 4)
    mine = slice(rank * ROWS // 2, (rank + 1) * ROWS // 2)
    for gate in ("low_rank", "scale", "topk"):
        for door in ("peft", "handle"):
            for tuning in ("none", "last", "all"):
                model = make(gate, door, tuning)
                expected = gradients(model, model, x, TEXTS, lambda loss: loss.backward())
                trained = {name for name, p in model.named_parameters() if p.requires_grad}
                assert set(expected) == trained, (gate, door, tuning)
                wrapped = accelerator.prepare(model)
                assert isinstance(wrapped, nn.parallel.DistributedDataParallel)
                for _ in range(2):  # a parameter that went unused would end the second step
                    found = gradients(model, wrapped, x[mine], TEXTS[mine], accelerator.backward)
                    for name, value in expected.items():
                        assert torch.allclose(found[name], value, rtol=1e-5, atol=1e-6), (gate, door, tuning, name)
                        assert value.abs().sum() > 0
                        checked += 1
                accelerator.free_memory()
    print(f"rank {rank}: {checked} gradients equal")
    accelerator.end_training()


if __name__ == "__main__":
    sys.exit(main())
