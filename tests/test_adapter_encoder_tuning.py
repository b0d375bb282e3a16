"""An adapter that tunes its request encoder: trained, saved, loaded and taken off."""

from collections.abc import Callable, Sequence

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import Tensor, nn

from cramer_peft import inject_request_masks, load_request_masks, register_request_encoder
from cramer_peft.encoders import encoder as encoders
from cramer_peft.errors import EncoderError

REQUESTS = ["more horror", None, "nothing sad"]


class Letters(nn.Module):
    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.layers = nn.ModuleList([nn.Linear(26, 16), nn.Linear(16, 16)])

    def forward(self, counts: Tensor) -> Tensor:
        for layer in self.layers:
            counts = torch.tanh(layer(counts))
        return counts


class LetterEncoder:
    """Counts letters and runs a small network on the counts."""

    name, dim = "letters", 16

    def __init__(self, seed: int = 0) -> None:
        with torch.random.fork_rng():
            self.module = Letters(seed).eval().requires_grad_(False)

    def encode(self, texts: Sequence[str]) -> Tensor:
        return self.encode_with(texts, self.module)

    def encode_with(self, texts: Sequence[str], run: Callable[..., Tensor]) -> Tensor:
        letters = [chr(ord("a") + i) for i in range(26)]
        return run(torch.tensor([[float(text.count(letter)) for letter in letters] for text in texts]))

    def tunable_names(self, regime: str) -> list[str]:
        names = [name for name, _ in self.module.named_parameters()]
        return names if regime == "all" else [name for name in names if name.startswith("layers.1.")]


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoders, "_FACTORIES", dict(encoders._FACTORIES))
    register_request_encoder("letters", LetterEncoder)


def train(masks, handle, x: Tensor) -> None:
    optimizer = torch.optim.Adam([p for p in handle.parameters() if p.requires_grad], lr=0.05)
    for _ in range(3):
        optimizer.zero_grad()
        handle(x, request=REQUESTS).square().sum().backward()
        optimizer.step()


@pytest.mark.parametrize("regime", ["last", "all"])
@pytest.mark.parametrize("door", ["ours", "peft"])
def test_trained_saved_loaded_and_taken_off(make_model, make_config, snapshot, x, regime, door, tmp_path) -> None:
    config = make_config(encoder="letters", encoder_options=None, encoder_tuning=regime)
    model = make_model().requires_grad_(False)
    before, frozen = snapshot(model), model(x)
    handle = (inject_request_masks if door == "ours" else get_peft_model)(model, config)
    masks = handle if door == "ours" else handle.base_model
    start = masks(x, request=REQUESTS)
    tuned = masks.adapter("default").tuned
    assert torch.equal(tuned(["more horror"]), tuned.encoder.encode(["more horror"]))
    untouched = {name: value.clone() for name, value in tuned.encoder.module.state_dict().items()}
    assert sum(p.numel() for p in tuned.parameters()) == 16 * 17 + (0 if regime == "last" else 27 * 16)

    train(masks, handle, x)
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in tuned.parameters())
    assert all(torch.equal(tuned.encoder.module.state_dict()[name], value) for name, value in untouched.items())
    assert not torch.equal(tuned(["more horror"]), tuned.encoder.encode(["more horror"]))
    with torch.no_grad():
        output = masks(x, request=REQUESTS)
        assert torch.equal(output[1], frozen[1])
        assert not torch.allclose(output, start)
        state = masks.mask_state(REQUESTS)
        assert torch.allclose(masks(x, request=state), output, atol=1e-6)
        handle.save_pretrained(tmp_path)
        load = load_request_masks if door == "ours" else PeftModel.from_pretrained
        loaded = load(make_model(), tmp_path)
        assert torch.equal(loaded(x, request=REQUESTS), output)
        assert torch.equal(load_request_masks(make_model(), tmp_path)(x, request=REQUESTS), output)
        with pytest.raises(EncoderError, match="with other parameters"):
            load_request_masks(make_model(), tmp_path, encoder=LetterEncoder(seed=1))
    assert masks.unload() is model
    assert before.differences(model) == []
    assert torch.equal(model(x), frozen)


def test_two_adapters_share_one_encoder(model, make_config, x) -> None:
    encoder = LetterEncoder()
    config = make_config(encoder="letters", encoder_options=None, encoder_tuning="all")
    masks = inject_request_masks(model, config, encoder=encoder)
    masks.add_adapter("frozen", make_config(encoder="letters", encoder_options=None), encoder=encoder)
    masks.set_adapter("frozen")
    usual = masks(x, request=REQUESTS)
    assert not any(p.requires_grad for p in masks.adapter("default").tuned.parameters())
    masks.set_adapter("default")
    train(masks, masks, x)
    masks.set_adapter("frozen")
    assert torch.equal(masks(x, request=REQUESTS), usual)
    masks.delete_adapter("default")
    assert list(masks.request_mask_encoder) == []


def test_an_encoder_without_parameters_cannot_be_tuned(model, make_config, snapshot) -> None:
    before = snapshot(model)
    with pytest.raises(EncoderError, match="'hashing' cannot be tuned"):
        inject_request_masks(model, make_config(encoder_tuning="last"))
    assert before.differences(model) == []


def test_a_tuned_encoder_stays(model, make_config) -> None:
    masks = inject_request_masks(model, make_config(encoder="letters", encoder_options=None, encoder_tuning="last"))
    with pytest.raises(EncoderError, match="has tuned its encoder"):
        masks.set_encoder(LetterEncoder())
