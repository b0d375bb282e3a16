"""The same adapter through PEFT's own functions."""

import os

import pytest
import torch
from peft import PeftModel, get_peft_model, inject_adapter_in_model
from safetensors.torch import load_file, save_file
from torch import nn

from cramer_peft import RequestMaskConfig, RequestMaskModel, inject_request_masks, load_request_masks
from cramer_peft.errors import (
    AdapterFileError,
    ConfigError,
    CramerError,
    RequestError,
    TargetModuleError,
    UnsupportedError,
)

REQUESTS = ["more horror", None, "nothing sad"]


@pytest.fixture
def wrapped(model, make_config, gate: str) -> PeftModel:
    return get_peft_model(model, make_config(gate)).eval()


def test_it_is_the_same_implementation(make_model, make_config, gate: str, x) -> None:
    torch.manual_seed(4)
    ours = inject_request_masks(make_model(), make_config(gate))
    torch.manual_seed(4)
    theirs = get_peft_model(make_model(), make_config(gate)).eval()
    assert isinstance(theirs.base_model, RequestMaskModel)
    assert torch.equal(theirs(x, request=REQUESTS), ours(x, request=REQUESTS))


def test_requests_as_keyword_and_in_a_block(wrapped, model, x) -> None:
    frozen, output = wrapped(x), wrapped(x, request=REQUESTS)
    assert torch.equal(output[1], frozen[1])
    assert not torch.equal(output[0], frozen[0])
    with wrapped.request(REQUESTS):
        assert torch.equal(wrapped(x), output)
        assert torch.equal(model.predict(x), output)
    with pytest.raises(RequestError, match="2 requests"):
        wrapped(x, request=["a", "b"])
    assert torch.equal(wrapped(x), frozen)


def test_disable_adapter(wrapped, x) -> None:
    frozen, output = wrapped(x), wrapped(x, request=REQUESTS)
    with wrapped.disable_adapter():
        assert torch.equal(wrapped(x, request=REQUESTS), frozen)
    assert torch.equal(wrapped(x, request=REQUESTS), output)
    wrapped.base_model.disable_adapter_layers()
    assert torch.equal(wrapped(x, request=REQUESTS), frozen)
    wrapped.base_model.enable_adapter_layers()
    assert torch.equal(wrapped(x, request=REQUESTS), output)
    assert all(p.requires_grad for p in wrapped.base_model.generator.parameters())


def test_trainable_parameters(wrapped, x) -> None:
    trainable, total = wrapped.get_nb_trainable_parameters()
    assert trainable == sum(p.numel() for p in wrapped.base_model.generator.parameters())
    assert total == sum(p.numel() for p in wrapped.parameters())
    wrapped.train()
    wrapped(x, request=REQUESTS).square().sum().backward()
    assert {n for n, p in wrapped.named_parameters() if p.grad is not None} == {
        f"base_model.request_mask_generator.default.{name}"
        for name, _ in wrapped.base_model.generator.named_parameters()
    }


def test_two_adapters(wrapped, make_config, x) -> None:
    first = wrapped(x, request=REQUESTS)
    wrapped.add_adapter("other", make_config("low_rank", rank=1, target_modules=["down", "out"]))
    assert torch.equal(wrapped(x, request=REQUESTS), first)
    wrapped.set_adapter("other")
    second = wrapped(x, request=REQUESTS)
    assert not torch.equal(second, first)
    assert not any(p.requires_grad for p in wrapped.base_model.request_mask_generator["default"].parameters())
    assert all(p.requires_grad for p in wrapped.base_model.request_mask_generator["other"].parameters())
    wrapped.set_adapter("default")
    assert torch.equal(wrapped(x, request=REQUESTS), first)
    wrapped.delete_adapter("other")
    assert torch.equal(wrapped(x, request=REQUESTS), first)


def test_two_adapters_through_files(wrapped, make_model, make_config, x, tmp_path) -> None:
    wrapped.add_adapter("other", make_config("low_rank", rank=1, generator_width=3))
    first = wrapped(x, request=REQUESTS)
    wrapped.save_pretrained(str(tmp_path))
    wrapped.set_adapter("other")
    second = wrapped(x, request=REQUESTS)

    loaded = PeftModel.from_pretrained(make_model(), str(tmp_path))
    loaded.load_adapter(str(tmp_path / "other"), adapter_name="second")
    assert torch.equal(loaded(x, request=REQUESTS), first)
    loaded.set_adapter("second")
    assert torch.equal(loaded(x, request=REQUESTS), second)
    loaded.set_adapter("default")
    assert torch.equal(loaded(x, request=REQUESTS), first)

    ours = load_request_masks(make_model(), tmp_path)
    ours.load_adapter(tmp_path / "other", "second")
    assert torch.equal(ours(x, request=REQUESTS), first)
    ours.set_adapter("second")
    assert torch.equal(ours(x, request=REQUESTS), second)


def test_adapter_names(wrapped, make_config, x) -> None:
    wrapped.add_adapter("other", make_config("scale"))
    frozen, first = wrapped(x), wrapped(x, request=REQUESTS)
    wrapped.set_adapter("other")
    second = wrapped(x, request=REQUESTS)
    mixed = wrapped(x, adapter_names=["default", "__base__", "other"], request=REQUESTS)
    assert torch.equal(mixed[1], frozen[1])
    assert torch.allclose(mixed[0], first[0], atol=1e-6)
    assert torch.allclose(mixed[2], second[2], atol=1e-6)
    with wrapped.request(REQUESTS):
        assert torch.equal(wrapped(x, adapter_names=["default", "__base__", "other"]), mixed)
    assert torch.equal(wrapped(x, request=REQUESTS), second)
    with pytest.raises(RequestError, match="Length of `adapter_names`"):
        wrapped(x, adapter_names=["default"], request=REQUESTS)
    with pytest.raises(ConfigError, match="nope"):
        wrapped(x, adapter_names=["default", "nope", "other"], request=REQUESTS)
    assert torch.equal(wrapped(x), frozen)


def test_what_is_not_offered_is_refused(wrapped, model, make_config, x) -> None:
    for use in (wrapped.merge_and_unload, wrapped.merge_adapter):
        with pytest.raises(UnsupportedError):
            use()
    with pytest.raises(UnsupportedError, match="set_adapter"):
        wrapped.base_model.add_weighted_adapter(["default"], [1.0], "mixed")


def test_inject_adapter_in_model_is_refused(model, make_config, snapshot) -> None:
    before = snapshot(model)
    with pytest.raises(ValueError, match="shared"):
        inject_adapter_in_model(make_config(), model)
    assert before.differences(model) == []


def test_a_refused_configuration_changes_nothing(model, make_config, snapshot) -> None:
    before = snapshot(model)
    for config, name in [(make_config(target_modules=["nope"]), "default"), (make_config(), "head")]:
        with pytest.raises(CramerError):
            get_peft_model(model, config, adapter_name=name)
        assert before.differences(model) == []
    wrapped = get_peft_model(model, make_config())
    inside = snapshot(wrapped)
    with pytest.raises(TargetModuleError):
        wrapped.add_adapter("other", make_config(target_modules=["nope"]))
    assert list(wrapped.peft_config) == ["default"]
    assert inside.differences(wrapped) == []
    wrapped.unload()
    assert before.differences(model) == []


def test_modules_to_save(make_model, make_config, x, tmp_path) -> None:
    wrapped = get_peft_model(make_model(), make_config(modules_to_save=["out"])).eval()
    optimizer = torch.optim.SGD([p for p in wrapped.parameters() if p.requires_grad], lr=0.1)
    wrapped(x, request=REQUESTS).square().sum().backward()
    optimizer.step()
    output, plain = wrapped(x, request=REQUESTS), wrapped(x)
    assert not torch.equal(plain, make_model()(x))
    wrapped.save_pretrained(str(tmp_path))
    for again in (PeftModel.from_pretrained(make_model(), str(tmp_path)), load_request_masks(make_model(), tmp_path)):
        assert torch.equal(again(x, request=REQUESTS), output)
        assert torch.equal(again(x), plain)


def test_low_cpu_mem_usage(wrapped, make_model, x, tmp_path) -> None:
    output = wrapped(x, request=REQUESTS)
    wrapped.save_pretrained(str(tmp_path))
    again = PeftModel.from_pretrained(make_model(), str(tmp_path), low_cpu_mem_usage=True)
    assert {p.device.type for p in again.parameters()} == {"cpu"}
    assert torch.equal(again(x, request=REQUESTS), output)


def test_files(wrapped, tmp_path) -> None:
    wrapped.save_pretrained(str(tmp_path))
    assert sorted(os.listdir(tmp_path)) == ["README.md", "adapter_config.json", "adapter_model.safetensors"]


def test_autocast_of_a_half_precision_base(model, make_config, x) -> None:
    model.half()
    wrapped = get_peft_model(model, make_config())
    assert {p.dtype for p in wrapped.base_model.generator.parameters()} == {torch.float32}
    assert wrapped(x, request=REQUESTS).dtype == torch.float16


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda tensors: tensors.pop("base_model.request_mask_generator.head.bias"), "missing .*head.bias"),
        (
            lambda tensors: tensors.update({"base_model.request_mask_generator.tail": torch.ones(1)}),
            "unexpected .*tail",
        ),
        (lambda tensors: tensors["base_model.request_mask_generator.head.bias"].fill_(float("nan")), "NaN"),
    ],
)
def test_peft_loading_refuses_a_damaged_file(damage, message: str, tmp_path) -> None:
    def base() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))

    config = RequestMaskConfig(target_modules=["0", "2"], request_dim=5)
    get_peft_model(base(), config).save_pretrained(tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    tensors = load_file(path)
    damage(tensors)
    save_file(tensors, path)
    with pytest.raises(AdapterFileError, match=message):
        PeftModel.from_pretrained(base(), tmp_path)


def test_one_configuration_serves_several_models(make_model, make_config, x, tmp_path) -> None:
    config = make_config()
    first = get_peft_model(make_model(0), config)
    assert first.peft_config["default"] is config
    # Other weights: what was filled in for the first is not held against it, and stays.
    second = get_peft_model(make_model(1), config)
    assert second.peft_config["default"].base_fingerprint != first.base_model.mask_state("a").base_fingerprint
    first.save_pretrained(tmp_path)
    with pytest.raises(AdapterFileError, match="another base model"):
        PeftModel.from_pretrained(make_model(2), tmp_path)


def test_rows_of_several_adapters_have_their_own_saved_modules(make_model, make_config, x) -> None:
    wrapped = get_peft_model(make_model(), make_config(modules_to_save=["out"])).eval()
    wrapped.add_adapter("other", make_config("scale", modules_to_save=["out"]))
    with torch.no_grad():
        wrapped.base_model.model.out.modules_to_save["other"].weight.mul_(2)
        frozen = make_model()(x)
        alone = {}
        for name in ("default", "other"):
            wrapped.set_adapter(name)
            alone[name] = wrapped(x, request=REQUESTS)
        names = ["other", "__base__", "default"]
        for mixed in (
            wrapped(x, request=REQUESTS, adapter_names=names),
            wrapped.base_model(x, request=REQUESTS, adapter_names=names),
        ):
            assert torch.allclose(mixed[0], alone["other"][0], atol=1e-6)
            assert torch.allclose(mixed[1], frozen[1], atol=1e-6)
            assert torch.allclose(mixed[2], alone["default"][2], atol=1e-6)
        assert torch.equal(wrapped(x, request=REQUESTS), alone["other"])


def test_a_further_adapter_leaves_the_flags_of_the_first(wrapped, make_config, tmp_path) -> None:
    wrapped.save_pretrained(tmp_path)
    for trainable in (False, True):
        wrapped.load_adapter(tmp_path, adapter_name=f"other{trainable}", is_trainable=trainable)
        assert all(p.requires_grad for p in wrapped.base_model.adapter("default").generator.parameters())


def test_names_reach_what_is_called_outside_the_root(model, make_config, x) -> None:
    wrapped = get_peft_model(model, make_config(request_dim=4, default_request=[1.0, 2.0, 3.0, 4.0])).eval()
    wrapped.add_adapter("other", make_config("scale", request_dim=4, default_request=[4.0, 3.0, 2.0, 1.0]))
    names = ["other", "__base__", "default"]
    usual = wrapped(x, adapter_names=names)
    with wrapped.base_model._enable_peft_forward_hooks(adapter_names=names):
        assert torch.equal(model.predict(x), usual)
    assert not torch.equal(model.predict(x), usual)
