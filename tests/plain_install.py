"""Uses the installed package as somebody does who has no extra: run by ``.ci/run`` in an empty environment."""

import tempfile
from pathlib import Path

import torch
from torch import nn

from cramer_peft import RequestMaskConfig, inject_request_masks, load_request_masks

REQUESTS = ["show me more exciting games", None, "avoid romantic movies"]


def check(config: RequestMaskConfig, requests: list) -> None:
    """Wrap a model, ask it, save, load and unload, and compare every step bit for bit."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 100)).eval()
    x = torch.randn(3, 8)
    frozen = model(x)
    masks = inject_request_masks(model, config)
    asked = masks(x, request=requests)
    assert torch.equal(asked[1], frozen[1])
    assert not torch.equal(asked[0], frozen[0])
    with tempfile.TemporaryDirectory() as folder:
        masks.save_pretrained(folder)
        assert sorted(path.name for path in Path(folder).iterdir()) == [
            "README.md",
            "adapter_config.json",
            "adapter_model.safetensors",
        ]
        masks.unload()
        assert torch.equal(model(x), frozen)
        masks = load_request_masks(model, folder)
    assert torch.equal(masks(x, request=requests), asked)
    masks.unload()
    assert torch.equal(model(x), frozen)


def main() -> None:
    """Check both kinds of requests that need no extra: texts by the hashing encoder, and ready vectors."""
    check(RequestMaskConfig(target_modules=["0", "2"], encoder="hashing", init_weights=False), REQUESTS)
    vectors = [torch.randn(16), None, torch.randn(16)]
    check(RequestMaskConfig(target_modules=["0", "2"], request_dim=16, init_weights=False), vectors)
    print("a plain install wraps, asks, saves, loads and unloads: True")


if __name__ == "__main__":
    main()
