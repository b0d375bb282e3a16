"""Request masks on a model that other PEFT methods are on, below or above."""

from pathlib import Path

import pytest
import torch
from peft import IA3Config, LoraConfig, PeftModel, get_peft_model
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn
from transformers import BertConfig, BertForSequenceClassification

from cramer_peft import RequestMaskConfig, inject_request_masks, load_request_masks, validate
from cramer_peft.errors import ConfigError, TargetModuleError

LORA = {"r": 2, "init_lora_weights": False}
REQUESTS = ["more horror", None, "nothing sad"]


@pytest.fixture
def below(make_model):
    """Makes a recommender with an adapter of another method on ``up``."""

    def make(target: str = "up", **options) -> PeftModel:
        torch.manual_seed(1)
        return get_peft_model(make_model(), LoraConfig(target_modules=[target], **LORA, **options)).eval()

    return make


@pytest.mark.parametrize("name", ["default", "second"])
def test_lora_below_is_part_of_the_frozen_model(below, make_config, x, name: str, tmp_path, snapshot) -> None:
    lora = below()
    before, frozen = snapshot(lora), lora(x)
    masks = inject_request_masks(lora, make_config(target_modules=["down"]), adapter_name=name)
    trainable = {key for key, parameter in masks.named_parameters() if parameter.requires_grad}
    assert trainable
    assert all(key.startswith("request_mask_generator.") for key in trainable)
    masks(x, request=REQUESTS).sum().backward()
    assert all(parameter.grad is None for parameter in lora.parameters())
    masks.eval()
    asked = masks(x, request=REQUESTS)
    assert torch.equal(asked[1], frozen[1])
    assert not torch.allclose(asked[0], frozen[0], atol=1e-3)
    assert torch.equal(masks(x), frozen)
    with masks.disable_adapter(), masks.request(REQUESTS):
        assert torch.equal(masks(x), frozen)  # with LoRA
    masks.save_pretrained(tmp_path)
    with safe_open(tmp_path / "adapter_model.safetensors", "pt") as file:
        found = list(file.keys())
    assert len(found) == 4
    assert not any("lora" in key for key in found)
    again = load_request_masks(below(), tmp_path).eval()
    assert torch.equal(again(x, request=REQUESTS), asked)
    masks.merge_request(REQUESTS[0])
    assert torch.allclose(masks(x)[0], asked[0], atol=1e-5)
    assert masks.unload() is lora
    assert before.differences(lora) == []
    with lora.disable_adapter():
        assert not torch.equal(lora(x), frozen)


@pytest.mark.parametrize("name", ["default", "second"])
def test_modules_that_lora_saves_stay_its_own(below, make_config, x, name: str, tmp_path, snapshot) -> None:
    lora = below(modules_to_save=["embedding"])
    nn.init.normal_(lora.base_model.model.embedding.modules_to_save["default"].weight)
    before, frozen = snapshot(lora), lora(x)
    masks = inject_request_masks(lora, make_config(target_modules=["down"]), adapter_name=name)
    assert torch.equal(masks(x), frozen)
    with masks.disable_adapter():
        assert torch.equal(masks(x), frozen)
    masks.save_pretrained(tmp_path)
    with safe_open(tmp_path / "adapter_model.safetensors", "pt") as file:
        assert len(list(file.keys())) == 4
    trainable = [parameter for parameter in lora.parameters() if parameter.requires_grad]
    masks.unload()
    assert before.differences(lora) == []
    assert trainable == []


@pytest.mark.parametrize(
    "config", [LoraConfig(target_modules=["up"]), IA3Config(target_modules=["up"], feedforward_modules=[])]
)
def test_a_layer_of_another_method_is_refused_by_name(make_model, make_config, snapshot, config) -> None:
    model = get_peft_model(make_model(), config)
    before = snapshot(model)
    for targets in (["up"], ["up", "down"], r".*\.(up|down)"):
        with pytest.raises(
            TargetModuleError, match=r"'base_model.model.up' is adapted by another PEFT method"
        ) as caught:
            inject_request_masks(model, make_config(target_modules=targets))
        assert [finding.module for finding in caught.value.findings] == ["base_model.model.up"]
        assert any(finding.fatal for finding in validate(model, make_config(target_modules=targets)))
        assert before.differences(model) == []


def test_all_linear_lists_what_is_masked(below, make_config, x) -> None:
    masks = inject_request_masks(below(), make_config(target_modules="all-linear")).eval()
    expected = ["base_model.model.down", "base_model.model.out"]
    assert sorted(masks.peft_config["default"].masked_modules) == expected
    assert sorted({effect.module for effect in masks.check_effect(x)}) == expected
    with pytest.raises(TargetModuleError, match="no linear module to mask"):
        inject_request_masks(
            get_peft_model(nn.Sequential(nn.Linear(4, 4)), LoraConfig(target_modules=["0"])),
            make_config(target_modules="all-linear"),
        )


@pytest.mark.parametrize("place", ["handle", "model"])
def test_lora_above_under_the_same_name_is_noticed(model, make_config, x, tmp_path, place: str) -> None:
    masks = inject_request_masks(model, make_config(target_modules=["down"])).eval()
    get_peft_model(masks if place == "handle" else model, LoraConfig(target_modules=["up"], **LORA))
    for use in (
        lambda: masks(x, request=REQUESTS),
        lambda: masks.save_pretrained(tmp_path),
        lambda: masks.merge_request("more horror"),
        lambda: masks.mask_state("more horror"),
    ):
        with pytest.raises(ConfigError, match=r"adapter 'default' is a LoraConfig now"):
            use()
    assert list(tmp_path.iterdir()) == []


def test_lora_above_under_another_name_works(make_model, make_config, x, tmp_path) -> None:
    model = make_model()
    masks = inject_request_masks(model, make_config(target_modules=["down"])).eval()
    masks.save_pretrained(tmp_path / "before")
    plain = masks(x, request=REQUESTS)
    lora = get_peft_model(model, LoraConfig(target_modules=["up"], **LORA), adapter_name="other").eval()
    asked = masks(x, request=REQUESTS)
    assert not torch.allclose(asked, plain, atol=1e-3)
    assert torch.equal(lora(x, request=REQUESTS), asked)
    assert torch.equal(asked[1], masks(x)[1])
    masks.save_pretrained(tmp_path / "after")
    before, after = (load_file(tmp_path / folder / "adapter_model.safetensors") for folder in ("before", "after"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    with masks.disable_adapter():
        assert torch.equal(masks(x, request=REQUESTS), masks(x))
    unmasked = masks(x)
    assert masks.unload() is model
    assert torch.equal(model(x), unmasked)
    assert type(model.down) is nn.Linear


def check_same_files(folder: Path, named: str) -> None:
    """Check that an adapter's tensors are the same before the masks, under them and after them."""
    before, *others = (load_file(folder / name / "adapter_model.safetensors") for name in ("before", "under", "after"))
    assert any(named in key for key in before)
    for found in others:
        assert found.keys() == before.keys()
        assert all(torch.equal(found[key], before[key]) for key in found)


@pytest.mark.parametrize("name", ["default", "wish"])
@pytest.mark.parametrize("inject", [inject_request_masks, get_peft_model])
def test_lora_below_keeps_its_configuration_and_its_files(below, make_config, x, tmp_path, inject, name: str) -> None:
    lora = below(modules_to_save=["embedding"])
    nn.init.normal_(lora.base_model.model.embedding.modules_to_save["default"].weight)
    lora.save_pretrained(tmp_path / "before")
    configs, entries, frozen = lora.peft_config, dict(lora.peft_config), lora(x)
    masks = inject(lora, make_config(target_modules=["down"]), adapter_name=name)
    assert lora.peft_config is configs
    assert lora.peft_config == entries
    assert list(masks.peft_config) == [name]
    assert isinstance(masks.peft_config[name], RequestMaskConfig)
    lora.save_pretrained(tmp_path / "under")
    masks.save_pretrained(tmp_path / "masks")
    assert {file.parent.name for file in (tmp_path / "masks").rglob("adapter_config.json")} <= {name, "masks"}
    masks.unload()
    assert lora.peft_config is configs
    assert lora.peft_config == entries
    lora.save_pretrained(tmp_path / "after")
    check_same_files(tmp_path, "embedding")
    again = PeftModel.from_pretrained(lora.unload(), tmp_path / "under").eval()
    assert torch.equal(again(x), frozen)


def bert() -> BertForSequenceClassification:
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    return BertForSequenceClassification(BertConfig(vocab_size=20, **sizes)).eval()


def test_an_adapter_of_transformers_below_keeps_its_configuration_and_its_files(make_config, tmp_path) -> None:
    model = bert()
    model.add_adapter(LoraConfig(target_modules=["query"], modules_to_save=["classifier"], **LORA))
    configs, entries = model.peft_config, dict(model.peft_config)
    model.save_pretrained(tmp_path / "before")
    masks = inject_request_masks(model, make_config(target_modules=["intermediate.dense"]))
    assert masks.peft_config.keys() == {"default"}
    model.save_pretrained(tmp_path / "under")
    masks.unload()
    assert model.peft_config is configs
    assert model.peft_config == entries
    model.save_pretrained(tmp_path / "after")
    check_same_files(tmp_path, "lora_A")


def test_unload_leaves_no_configuration_on_a_model_that_had_none(model, make_config) -> None:
    inject_request_masks(model, make_config(target_modules=["down"])).unload()
    assert not hasattr(model, "peft_config")


def test_lora_above_stays_whole_when_the_masks_are_unloaded(model, make_config, x, tmp_path) -> None:
    masks = inject_request_masks(model, make_config(target_modules=["down"]))
    lora = get_peft_model(model, LoraConfig(target_modules=["up"], **LORA), adapter_name="other").eval()
    expected = lora(x)
    masks.unload()
    assert list(lora.peft_config) == ["other"]
    assert torch.equal(lora(x), expected)
    lora.save_pretrained(tmp_path)
    assert len(load_file(tmp_path / "other" / "adapter_model.safetensors")) == 2


def test_saved_modules_of_two_methods_need_two_names(below, make_config, snapshot) -> None:
    lora = below(modules_to_save=["embedding"])
    before = snapshot(lora)
    with pytest.raises(ConfigError, match=r"'default' is that of a LoraConfig .*adapter_name="):
        inject_request_masks(lora, make_config(target_modules=["down"], modules_to_save=["embedding"]))
    assert before.differences(lora) == []
    assert list(lora.peft_config) == ["default"]
