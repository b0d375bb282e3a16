import copy
import pickle

import pytest
import torch
from torch import nn

from cramer_peft import (
    HashingEncoder,
    MaskState,
    PrecomputedEncoder,
    RequestMaskConfig,
    RequestMaskModel,
    inject_request_masks,
)
from cramer_peft.encoders import RequestEncoder
from cramer_peft.errors import ConfigError, EncoderError, RequestError, TargetModuleError, UnsupportedError

REQUESTS = ["more horror", None, "nothing sad"]


@pytest.fixture
def masks(model, make_config, gate: str) -> RequestMaskModel:
    return inject_request_masks(model, make_config(gate))


# ------------------------------------------------------------------ requests


def test_every_way_to_give_a_request_is_the_same(masks, model, x) -> None:
    expected = masks(x, request=REQUESTS)
    vectors = HashingEncoder(16).encode(["more horror", "nothing sad"])
    assert torch.equal(model(x, request=REQUESTS), expected)
    assert torch.equal(masks(x, request=tuple(REQUESTS)), expected)
    assert torch.equal(masks(x, request=[vectors[0], "  ", vectors[1]]), expected)
    with masks.request(REQUESTS) as handle:
        assert handle is masks
        assert torch.equal(masks(x), expected)
        assert torch.equal(model(x), expected)
        assert torch.equal(model.predict(x), expected)


def test_one_request_for_the_whole_batch(masks, x) -> None:
    one = masks(x, request="more horror")
    assert torch.allclose(one, masks(x, request=["more horror"] * 3), atol=1e-6)
    assert torch.allclose(one[:2], masks(x[:2], request="more horror"), atol=1e-6)
    assert torch.equal(one, masks(x, request=HashingEncoder(16).encode(["more horror"])[0]))
    assert not torch.allclose(one, masks(x), atol=1e-3)


@pytest.mark.parametrize("blank", [None, "", " ", [None] * 3, ["", None, "\n"]])
def test_a_batch_without_a_request_takes_the_untouched_path(masks, model, x, blank, monkeypatch) -> None:
    frozen = model(x)
    monkeypatch.setattr(type(model.up), "project", None)
    monkeypatch.setattr(masks.generator, "forward", None)
    assert torch.equal(masks(x, request=blank), frozen)
    with masks.request(blank):
        assert torch.equal(model.predict(x), frozen)


def test_the_innermost_request_counts_and_the_outer_returns(masks, model, x) -> None:
    outer, inner, frozen = masks(x, request=REQUESTS), masks(x, request="a"), masks(x)
    with masks.request(REQUESTS):
        with masks.request("a"):
            assert torch.equal(model(x), inner)
        assert torch.equal(model(x), outer)
        assert torch.equal(model(x, request="a"), inner)
        assert torch.equal(model(x, request=None), frozen)
        with masks.request(None):
            assert torch.equal(model.predict(x), frozen)
        assert torch.equal(model(x), outer)
    assert torch.equal(model(x), frozen)


def test_a_request_ends_with_an_exception(masks, model, x) -> None:
    frozen = model(x)
    with pytest.raises(KeyboardInterrupt):
        masks(x, request=REQUESTS, fail=KeyboardInterrupt())
    assert torch.equal(model(x), frozen)
    assert torch.equal(model.predict(x), frozen)


def test_vectors_of_the_wrong_width_or_nan(masks, x) -> None:
    with pytest.raises(RequestError, match=r"width 16.*\(3, 15\)"):
        masks(x, request=torch.zeros(3, 15))
    with pytest.raises(RequestError, match="request 2 holds NaN"):
        masks(x, request=_nan_in_row_2())


def _nan_in_row_2() -> torch.Tensor:
    vectors = torch.zeros(3, 16)
    vectors[2, 5] = float("nan")
    return vectors


def test_nan_from_the_encoder_names_the_text(model, x) -> None:
    class Broken(HashingEncoder):
        name = "broken"

        def encode(self, texts):
            vectors = super().encode(texts)
            vectors[[text == "zzz" for text in texts]] = float("nan")
            return vectors

    masks = inject_request_masks(model, RequestMaskConfig(target_modules=["up"]), encoder=Broken(4))
    frozen = masks(x)
    with pytest.raises(EncoderError, match=r"'broken'.*'zzz'"):
        masks(x, request=["fine", "zzz", None])
    assert torch.equal(masks(x), frozen)


# ------------------------------------------------------------------ strength


@pytest.mark.parametrize("kind", ["low_rank", "scale"])
def test_strength_per_call_and_per_row(model, make_config, kind: str, x) -> None:
    masks = inject_request_masks(model, make_config(kind))
    frozen, full = masks(x), masks(x, request=REQUESTS)
    half = masks(x, request=REQUESTS, request_strength=0.5)
    assert torch.equal(masks(x, request=REQUESTS, request_strength=0), frozen)
    assert torch.equal(masks(x, request=REQUESTS, request_strength=[0.0, 0.0, 0.0]), frozen)
    assert torch.equal(masks(x, request=REQUESTS, request_strength=1.0), full)
    assert not torch.allclose(half, full, atol=1e-3)
    assert not torch.allclose(half, frozen, atol=1e-3)
    mixed = masks(x, request=REQUESTS, request_strength=torch.tensor([0.5, 3.0, 0.0]))
    assert torch.equal(mixed[0], half[0])
    assert torch.equal(mixed[1:], frozen[1:])
    with masks.request(REQUESTS, strength=0.5):
        assert torch.equal(model.predict(x), half)
    shared = masks(x, request="more horror", request_strength=[0.5, 0.0, 1.0])
    assert torch.allclose(shared[0], half[0], atol=1e-6)
    assert torch.equal(shared[1], frozen[1])
    listed = masks(x, request=["more horror"] * 3, request_strength=[0.5, 0.0, 1.0])
    assert torch.allclose(shared, listed, atol=1e-6)


@pytest.mark.parametrize("length", [1, 50])
def test_one_request_with_a_strength_per_row_at_any_length(make_config, length: int) -> None:
    model = nn.Sequential(nn.Linear(4, 6)).eval()
    masks, x = inject_request_masks(model, make_config(target_modules=["0"], rank=2)), torch.randn(3, length, 4)
    shared = masks(x, request="a", request_strength=[0.5, 0.0, 1.0])
    listed = masks(x, request=["a"] * 3, request_strength=[0.5, 0.0, 1.0])
    assert torch.allclose(shared, listed, atol=1e-5)
    gates = masks.masks_for("a", strength=[0.5, 0.0, 1.0])["0"]
    for row in range(3):
        weight, bias = model[0].fold(gates, row)
        assert torch.allclose(shared[row], nn.functional.linear(x[row], weight, bias), atol=1e-5)


def test_the_configurations_strength_is_the_default(model, make_config, x) -> None:
    masks = inject_request_masks(model, make_config("scale", strength=0.5))
    assert torch.equal(masks(x, request=REQUESTS), masks(x, request=REQUESTS, request_strength=0.5))
    assert not torch.equal(masks(x, request=REQUESTS), masks(x, request=REQUESTS, request_strength=1))


def test_wrong_strengths(masks, x) -> None:
    for strength in ([1.0, 2.0], float("nan"), "strong"):
        with pytest.raises(RequestError, match="strength"):
            masks(x, request=REQUESTS, request_strength=strength)


def test_topk_has_no_strength(model, make_config, x) -> None:
    masks = inject_request_masks(model, make_config("topk", drop_ratio=0.5))
    frozen, full = masks(x), masks(x, request=["a", "b", "c"])
    with pytest.raises(RequestError, match="no strength"):
        masks(x, request=REQUESTS, request_strength=0.5)
    rows = masks(x, request=["a", "b", "c"], request_strength=[1, 0, 1])
    assert torch.equal(rows[[0, 2]], full[[0, 2]])
    assert torch.equal(rows[1], frozen[1])
    assert torch.equal(masks(x, request=REQUESTS, request_strength=0), frozen)


# ------------------------------------------------------------------ the root's call


def test_a_model_with_a_keyword_named_request_keeps_it(make_config) -> None:
    class Web(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up = nn.Linear(4, 4)

        def forward(self, x: torch.Tensor, request: str = "none") -> tuple[torch.Tensor, str]:
            return self.up(x), request

    model, x = Web().eval(), torch.randn(2, 4)
    masks = inject_request_masks(model, make_config(target_modules=["up"]))
    plain, seen = model(x, request="GET")
    assert seen == "GET"
    with masks.request("more horror"):
        masked, seen = model(x, request="PUT")
    assert seen == "PUT"
    assert not torch.equal(masked, plain)


def test_the_signature_stays_the_models_own(masks, model) -> None:
    import inspect

    assert list(inspect.signature(model.forward).parameters) == ["x", "fail"]


# ------------------------------------------------------------------ training


def test_gradients_reach_the_generator_alone(masks, model, x) -> None:
    masks.train()
    masks(x, request=REQUESTS).square().sum().backward()
    assert all(p.grad is None for p in model.parameters())
    assert all(p.grad is not None for p in masks.generator.parameters())
    assert masks.generator.head.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("kind", ["low_rank", "scale"])
def test_training_from_the_identity_fits_a_target(model, make_config, kind: str, x) -> None:
    masks = inject_request_masks(model, make_config(kind, init_weights=True))
    frozen, state = model(x), {k: v.clone() for k, v in model.state_dict().items()}
    assert torch.equal(masks(x, request=REQUESTS), frozen)
    target = frozen.detach() + torch.randn_like(frozen)
    optimizer = torch.optim.Adam(masks.generator.parameters(), lr=0.05)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = (masks(x, request=REQUESTS) - target)[[0, 2]].square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert torch.equal(masks(x, request=REQUESTS)[1], frozen[1])


def test_gradients_reach_vectors(masks, x) -> None:
    vectors = torch.randn(3, 16, requires_grad=True)
    masks(x, request=vectors).square().sum().backward()
    assert vectors.grad.abs().sum() > 0


# ------------------------------------------------------------------ adapters


def test_disable_adapter_is_the_frozen_model(masks, model, x) -> None:
    frozen, masked = model(x), masks(x, request=REQUESTS)
    flags = {name: p.requires_grad for name, p in masks.named_parameters()}
    with masks.disable_adapter():
        assert not masks.adapters_enabled
        assert torch.equal(masks(x, request=REQUESTS), frozen)
        with masks.request(REQUESTS), masks.disable_adapter():
            assert torch.equal(model.predict(x), frozen)
        assert not masks.adapters_enabled
    assert masks.adapters_enabled
    assert torch.equal(masks(x, request=REQUESTS), masked)
    assert {name: p.requires_grad for name, p in masks.named_parameters()} == flags


def test_two_adapters(model, make_config, x) -> None:
    masks = inject_request_masks(model, make_config("low_rank", target_modules=["up"]))
    frozen, first = model(x), masks(x, request=REQUESTS)
    masks.add_adapter("other", make_config("scale", target_modules=["down"], request_dim=4), encoder=HashingEncoder(4))
    assert torch.equal(masks(x, request=REQUESTS), first)  # not active yet
    assert all(p.requires_grad for p in masks.request_mask_generator["default"].parameters())
    assert not any(p.requires_grad for p in masks.request_mask_generator["other"].parameters())
    masks.set_adapter("other")
    second = masks(x, request=REQUESTS)
    assert not torch.equal(second, first)
    assert torch.equal(second[1], frozen[1])
    assert list(masks.masks_for(REQUESTS)) == ["down"]
    assert all(p.requires_grad for p in masks.request_mask_generator["other"].parameters())
    assert not any(p.requires_grad for p in masks.request_mask_generator["default"].parameters())
    masks.set_adapter(["default"])
    assert torch.equal(masks(x, request=REQUESTS), first)


def test_two_adapters_that_share_a_layer_but_not_its_batch_dimension(make_config) -> None:
    model, x = nn.Sequential(nn.Linear(4, 4)).eval(), torch.randn(2, 3, 4)
    masks = inject_request_masks(model, make_config(target_modules=["0"]))
    masks.add_adapter("columns", make_config(target_modules=["0"], batch_dim=1))
    assert torch.equal(masks(x, request=["a", None])[1], model(x)[1])
    masks.set_adapter("columns")
    assert torch.equal(masks(x, request=["a", None, "b"])[:, 1], model(x)[:, 1])


@pytest.mark.filterwarnings("ignore:Adapter default was active")
def test_deleting_an_adapter(model, make_config, x, snapshot) -> None:
    before, frozen = snapshot(model), model(x)
    masks = inject_request_masks(model, make_config())
    masks.add_adapter("other", make_config())
    other = masks.request_mask_generator["other"]
    masks.delete_adapter("default")
    assert list(masks.request_mask_generator) == list(masks.peft_config) == ["other"]
    assert masks.generator is other
    assert all(p.requires_grad for p in other.parameters())
    assert not torch.equal(masks(x, request="a"), frozen)
    masks.delete_adapter("other")
    with pytest.raises(ConfigError, match="no adapter is active"):
        masks(x, request="a")
    assert torch.equal(model(x), frozen)
    masks.unload()
    assert before.differences(model) == []


@pytest.mark.filterwarnings("ignore:Adapter default was active")
def test_deleting_an_adapter_that_shares_no_layer_with_the_next(model, make_config, x) -> None:
    masks = inject_request_masks(model, make_config(target_modules=["up"]))
    masks.add_adapter("other", make_config(target_modules=["down"]))
    masks.add_adapter("third", make_config(target_modules=["out"]))
    masks.delete_adapter("third")
    assert masks.active_adapters == ["default"]
    masks.delete_adapter("default")
    assert masks.active_adapters == ["other"]
    assert list(masks.masks_for(REQUESTS)) == ["down"]
    assert not torch.equal(masks(x, request="a"), masks(x))


def test_a_refused_second_adapter_changes_nothing(model, make_config, snapshot, x) -> None:
    masks = inject_request_masks(model, make_config())
    before, output = snapshot(masks), masks(x, request=REQUESTS)
    for config, error in [
        (make_config(target_modules=["nope"]), TargetModuleError),
        (make_config(encoder="nope", encoder_options=None), EncoderError),
    ]:
        with pytest.raises(error):
            masks.add_adapter("other", config)
        assert list(masks.peft_config) == ["default"]
        assert before.differences(masks) == []
    with pytest.raises(ConfigError, match="'default' already"):
        masks.add_adapter("default", make_config())
    with pytest.raises(ConfigError, match="adapter name"):
        masks.add_adapter("a.b", make_config())
    assert torch.equal(masks(x, request=REQUESTS), output)


def test_a_second_adapter_that_fails_halfway_changes_nothing(model, make_config, snapshot, x, monkeypatch) -> None:
    from cramer_peft.layers import MaskedLinear

    masks = inject_request_masks(model, make_config(target_modules=["up"]))
    before, output = snapshot(masks), masks(x, request=REQUESTS)
    real = MaskedLinear.update_layer

    def fail_at_down(self, *args) -> None:
        if self.module_name == "out":
            raise KeyboardInterrupt
        real(self, *args)

    monkeypatch.setattr(MaskedLinear, "update_layer", fail_at_down)
    with pytest.raises(KeyboardInterrupt):
        masks.add_adapter("other", make_config(target_modules=["up", "down", "out"]))
    assert before.differences(masks) == []
    assert torch.equal(masks(x, request=REQUESTS), output)
    monkeypatch.undo()
    masks.add_adapter("other", make_config(target_modules=["up", "down", "out"]))
    masks.set_adapter("other")
    assert torch.equal(masks(x, request=REQUESTS)[1], model(x)[1])


def test_a_second_adapter_that_saves_what_the_first_masks_changes_nothing(model, make_config, snapshot, x) -> None:
    masks = inject_request_masks(model, make_config(target_modules=["up"], modules_to_save=["out"]))
    before, output = snapshot(masks), masks(x, request=REQUESTS)
    # PEFT refuses this when "embedding" and "out" have been wrapped already.
    with pytest.raises(TypeError, match="MaskedLinear"):
        masks.add_adapter("other", make_config(target_modules=["down"], modules_to_save=["embedding", "out", "up"]))
    assert before.differences(masks) == []
    assert torch.equal(masks(x, request=REQUESTS), output)


def test_a_second_adapter_leaves_saved_modules_alone(model, make_config) -> None:
    masks = inject_request_masks(model, make_config(target_modules=["up"], modules_to_save=["out"]))
    masks.add_adapter("other", make_config(target_modules="all-linear"))
    assert list(masks.peft_config["other"].masked_modules) == ["down", "up"]
    with pytest.raises(TargetModuleError, match="'out' is a ModulesToSaveWrapper"):
        masks.add_adapter("third", make_config(target_modules=["out"]))


def test_unknown_adapters_are_refused(masks, make_config) -> None:
    masks.add_adapter("other", make_config())
    with pytest.raises(ConfigError, match=r"no adapter 'nope'.*\['default', 'other'\]"):
        masks.set_adapter("nope")
    assert masks.active_adapters == ["default"]


def test_loading_a_second_adapter(make_model, make_config, x, tmp_path) -> None:
    saved = inject_request_masks(make_model(), make_config("scale", modules_to_save=["out"]))
    with torch.no_grad():
        saved.model.out.modules_to_save["default"].weight.mul_(2)
    saved.save_pretrained(tmp_path)
    masks = inject_request_masks(make_model(), make_config(modules_to_save=["out"]))
    first = masks(x, request=REQUESTS)
    masks.load_adapter(tmp_path, "second")
    assert torch.equal(masks(x, request=REQUESTS), first)
    masks.set_adapter("second")
    assert torch.equal(masks(x, request=REQUESTS), saved(x, request=REQUESTS))
    with pytest.raises(ConfigError, match="already"):
        masks.load_adapter(tmp_path, "second")


def test_without_a_stored_request_there_is_nothing_to_merge(masks) -> None:
    for merge in (masks.merge_and_unload, masks.merge_adapter):
        with pytest.raises(UnsupportedError, match=r"no stored default request.*merge_request"):
            merge()


def test_a_handle_that_was_unloaded_says_so(masks, x, tmp_path) -> None:
    masks.unload()
    for use in (
        lambda: masks.unload(),
        lambda: masks.mask_state("a"),
        lambda: masks.save_pretrained(tmp_path),
        lambda: masks.request("a").__enter__(),
        lambda: masks.add_adapter("b", masks.peft_config["default"]),
    ):
        with pytest.raises(ConfigError, match="unloaded"):
            use()


# ------------------------------------------------------------------ encoders


def test_set_encoder(model, make_config, x) -> None:
    masks = inject_request_masks(model, make_config(request_dim=16))
    with pytest.raises(EncoderError, match="set_encoder"):
        masks(x, request="a")
    with pytest.raises(EncoderError, match=r"width 4.*request_dim=16"):
        masks.set_encoder(HashingEncoder(4))
    masks.set_encoder(HashingEncoder(16))
    assert masks.peft_config["default"].encoder == "hashing"
    assert torch.equal(masks(x, request="a"), masks(x, request=HashingEncoder(16).encode(["a"])[0]))
    assert isinstance(masks.encoder(), RequestEncoder)


# ------------------------------------------------------------------ copies


def test_deepcopy_is_independent(masks, model, x) -> None:
    frozen, expected = model(x), masks(x, request=REQUESTS)
    with masks.request("a"):
        other = copy.deepcopy(masks)
    assert torch.equal(other(x), frozen)
    assert torch.equal(other(x, request=REQUESTS), expected)
    assert not {id(p) for p in other.parameters()} & {id(p) for p in masks.parameters()}
    with other.request(REQUESTS):
        assert torch.equal(model(x), frozen)
        assert torch.equal(other.model.predict(x), expected)
    with torch.no_grad():
        other.generator.head.bias.add_(1)
    assert torch.equal(masks(x, request=REQUESTS), expected)
    plain = other.unload()
    assert torch.equal(plain(x), frozen)
    assert torch.equal(masks(x, request=REQUESTS), expected)


def test_pickle(masks, x) -> None:
    frozen, expected = masks(x), masks(x, request=REQUESTS)
    other = pickle.loads(pickle.dumps(masks))
    assert torch.equal(other(x, request=REQUESTS), expected)
    with other.request(REQUESTS):
        assert torch.equal(masks.model.predict(x), frozen)
    assert torch.equal(other.unload()(x), frozen)


def test_double_precision_after_injection(masks, x) -> None:
    expected = masks(x, request=REQUESTS)
    masks.double()
    output = masks(x, request=REQUESTS)
    assert output.dtype == torch.float64
    assert torch.allclose(output.float(), expected, atol=1e-5)


def test_gates_by_module_name(masks, gate: str) -> None:
    gates = masks.masks_for(REQUESTS)
    assert sorted(gates) == ["down", "up"]
    assert gates["up"].weight_mask().shape == (3, 16, 8)
    assert torch.equal(gates["up"].weight_mask()[1], torch.ones(16, 8))
    assert masks.masks_for(None) == {}
    assert isinstance(masks.mask_state(REQUESTS), MaskState)


def test_trainer_learns_of_loss_keywords_what_the_model_says() -> None:
    class WithLossKeywords(nn.Sequential):
        def forward(self, x, **kwargs):
            return super().forward(x)

    config = RequestMaskConfig(target_modules=["0"], request_dim=4)
    assert not inject_request_masks(nn.Sequential(nn.Linear(3, 3)), config).accepts_loss_kwargs
    assert inject_request_masks(WithLossKeywords(nn.Linear(3, 3)), config).accepts_loss_kwargs


def test_a_default_request_that_the_encoder_refuses_leaves_the_stored_one(model, x) -> None:
    encoder = PrecomputedEncoder({"known": torch.ones(4)})
    config = RequestMaskConfig(target_modules=["up"], init_weights=False)
    masks = inject_request_masks(model, config, encoder=encoder)
    masks.set_default_request("known")
    before = masks(x)
    with pytest.raises(EncoderError, match="unknown"):
        masks.set_default_request("unknown")
    assert masks.peft_config["default"].default_request == "known"
    assert torch.equal(masks(x), before)
