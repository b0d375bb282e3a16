import pytest
import torch
from peft import get_peft_model
from torch import nn

from cramer_peft import HashingEncoder, RequestMaskConfig, inject_request_masks, load_request_masks
from cramer_peft.errors import ConfigError, EncoderError, TargetModuleError

BAD_CONFIGS = [
    (lambda: RequestMaskConfig(target_modules=["nope"], request_dim=4), TargetModuleError),
    (lambda: RequestMaskConfig(target_modules=["up"], module_parts=["q"], request_dim=4), TargetModuleError),
    (lambda: RequestMaskConfig(target_modules=["up"], encoder="nope"), EncoderError),
    (lambda: RequestMaskConfig(target_modules=["up"], encoder="hashing", encoder_options={"dim": 0}), EncoderError),
    (lambda: RequestMaskConfig(target_modules=["up"], encoder="hashing", encoder_options={"no": 0}), EncoderError),
    (lambda: RequestMaskConfig(request_dim=4), TargetModuleError),
]


@pytest.mark.parametrize(("make", "error"), BAD_CONFIGS)
def test_a_refused_configuration_changes_nothing(model, snapshot, x, make, error) -> None:
    before, frozen = snapshot(model), model(x)
    with pytest.raises(error):
        inject_request_masks(model, make())
    assert before.differences(model) == []
    assert torch.equal(model(x), frozen)


def test_a_failure_halfway_changes_nothing(model, snapshot, make_config, monkeypatch) -> None:
    from cramer_peft.layers import MaskedLinear

    before, real, calls = snapshot(model), MaskedLinear.update_layer, []

    def fail_at_the_second(self, *args) -> None:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        real(self, *args)

    monkeypatch.setattr(MaskedLinear, "update_layer", fail_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        inject_request_masks(model, make_config(modules_to_save=["out"]))
    assert len(calls) == 2
    assert before.differences(model) == []


@pytest.mark.parametrize("make", [inject_request_masks, get_peft_model])
def test_what_lies_inside_a_masked_module_is_not_saved_whole(make, make_config, snapshot) -> None:
    model = nn.ModuleDict({"attention": nn.MultiheadAttention(8, 2)})
    before = snapshot(model)
    config = make_config(target_modules=["attention"], modules_to_save=["out_proj"])
    with pytest.raises(TargetModuleError, match=r"takes in 'attention\.out_proj', which is masked") as caught:
        make(model, config)
    assert [finding.kind for finding in caught.value.findings] == ["nested-target"]
    assert before.differences(model) == []


def test_modules_to_save_that_do_not_exist_change_nothing(model, snapshot, make_config) -> None:
    before = snapshot(model)
    masks = None
    try:
        masks = inject_request_masks(model, make_config(modules_to_save=["nope"]))
    except ValueError:
        pass
    else:
        masks.unload()
    assert before.differences(model) == []


@pytest.mark.parametrize(
    "name", ["", "a.b", "3", "head", "trunk", "model", "base_layer", "keys", "forward", "training"]
)
def test_names_that_would_collide_are_refused(model, snapshot, make_config, name: str) -> None:
    before = snapshot(model)
    with pytest.raises(ConfigError, match="adapter name"):
        inject_request_masks(model, make_config(), adapter_name=name)
    assert before.differences(model) == []


def test_the_wrong_things_are_refused(model, make_config) -> None:
    with pytest.raises(ConfigError, match="found dict"):
        inject_request_masks(model, {"target_modules": ["up"]})
    masks = inject_request_masks(model, make_config())
    for given in (masks, model, nn.Sequential(model)):
        with pytest.raises(ConfigError, match="add_adapter"):
            inject_request_masks(given, make_config())


def test_the_configuration_is_copied_and_filled_in(model, make_config) -> None:
    config = make_config(target_modules={"up", "down"})
    untouched = make_config(target_modules={"up", "down"})
    masks = inject_request_masks(model, config)
    filled = masks.peft_config["default"]
    assert config == untouched
    assert filled is not config
    assert (filled.request_dim, list(filled.masked_modules)) == (16, ["down", "up"])
    assert filled.base_fingerprint.startswith("sha256:")


def test_only_the_generator_is_trainable(model, make_config) -> None:
    masks = inject_request_masks(model, make_config())
    assert not any(p.requires_grad for p in model.parameters())
    assert all(p.requires_grad for p in masks.generator.parameters())
    assert all(name.startswith("request_mask_generator.") for name, p in masks.named_parameters() if p.requires_grad)


def test_an_encoder_object_takes_the_place_of_the_named_one(model, x) -> None:
    config = RequestMaskConfig(target_modules=["up"], init_weights=False, encoder="wordllama")
    masks = inject_request_masks(model, config, encoder=HashingEncoder(7))
    filled = masks.peft_config["default"]
    assert (filled.encoder, filled.encoder_options, filled.request_dim) == ("hashing", None, 7)
    assert not torch.equal(masks(x, request="a"), masks(x))


def test_an_encoder_object_of_another_width_is_refused(model, snapshot) -> None:
    before = snapshot(model)
    with pytest.raises(EncoderError, match=r"width 7.*request_dim=8"):
        inject_request_masks(model, RequestMaskConfig(target_modules=["up"], request_dim=8), encoder=HashingEncoder(7))
    assert before.differences(model) == []


def test_an_encoder_object_with_options_can_be_loaded_again(make_model, x, tmp_path) -> None:
    """The options of the object are not known: its width must come from the object, given again."""
    config = RequestMaskConfig(target_modules=["up"], init_weights=False)
    masks = inject_request_masks(make_model(), config, encoder=HashingEncoder(7))
    masks.save_pretrained(tmp_path)
    again = load_request_masks(make_model(), tmp_path, encoder=HashingEncoder(7))
    assert torch.equal(again(x, request="a"), masks(x, request="a"))


@pytest.mark.parametrize("training", [True, False])
def test_the_generator_takes_the_models_mode(model, make_config, training: bool) -> None:
    model.train(training)
    masks = inject_request_masks(model, make_config("topk"))
    assert masks.training is training
    assert masks.generator.training is training
    assert all(module.training is training for module in model.modules())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_precisions(model, make_config, gate: str, dtype: torch.dtype, x) -> None:
    model.to(dtype)
    frozen = model(x)
    masks = inject_request_masks(model, make_config(gate))
    output = masks(x, request=["a", None, "b"])
    assert output.dtype == dtype
    assert torch.equal(output[1], frozen[1])
    assert not torch.equal(output[0], frozen[0])
    expected = torch.float32 if dtype != torch.float64 else torch.float64
    assert {p.dtype for p in masks.generator.parameters()} == {masks.generator.head.weight.dtype}
    assert masks.generator.head.weight.dtype in (torch.float32, expected)


def test_masks_injected_in_inference_mode_can_be_trained(model, make_config, x) -> None:
    with torch.inference_mode():
        masks = inject_request_masks(model, make_config())
    masks(x, request="drama").sum().backward()
    assert all(parameter.grad is not None for parameter in masks.generator.parameters())
