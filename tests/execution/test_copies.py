"""Copies and pickles of adapted models stand by themselves; AutoPeft classes find the base model by its name."""

import copy
import pickle

import pytest
import torch
from peft import AutoPeftModelForCausalLM, PeftModel, get_peft_model
from transformers import GPT2Config, GPT2LMHeadModel

from cramer_peft import RequestMaskConfig, inject_request_masks

REQUESTS = ["more horror", None, "nothing sad"]
WAYS = {"deepcopy": copy.deepcopy, "pickle": lambda model: pickle.loads(pickle.dumps(model))}


@pytest.fixture(params=["ours", "peft"])
def adapted(request, make_model, make_config, gate: str):
    """A model with two adapters."""
    door = inject_request_masks if request.param == "ours" else get_peft_model
    masks = door(make_model(), make_config(gate)).eval()
    masks.add_adapter("second", make_config("low_rank", rank=1, target_modules=["down", "out"]))
    return masks


@pytest.mark.parametrize("way", WAYS)
def test_a_copy_stands_by_itself(adapted, x, way: str) -> None:
    output, frozen = adapted(x, request=REQUESTS), adapted(x)
    copied = WAYS[way](adapted)
    assert torch.equal(copied(x, request=REQUESTS), output)
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.zero_()
    copied.set_adapter("second")
    assert adapted.active_adapters in (["default"], "default")
    assert torch.equal(adapted(x, request=REQUESTS), output)
    assert torch.equal(adapted(x), frozen)
    shared = {id(p) for p in adapted.parameters()} & {id(p) for p in copied.parameters()}
    assert not shared


@pytest.mark.parametrize("way", WAYS)
def test_a_copy_made_inside_a_request_has_none(adapted, x, way: str) -> None:
    frozen = adapted(x)
    with adapted.request(REQUESTS):
        copied = WAYS[way](adapted)
        assert torch.equal(copied(x), frozen)
        with copied.request("old"):
            inside = copied(x)
        assert torch.equal(copied(x), frozen)
    assert torch.equal(copied(x, request="old"), inside)


@pytest.mark.parametrize("way", WAYS)
def test_a_copy_can_do_what_the_original_can(adapted, x, way: str, tmp_path) -> None:
    copied = WAYS[way](adapted)
    tuner = copied.base_model if isinstance(copied, PeftModel) else copied
    assert tuner.get_model_status().available_adapters == ["default", "second"]
    assert tuner.get_model_status().requires_grad == {"default": True, "second": False}
    tuner.set_adapter(["default", "second"])
    assert tuner.get_model_status().active_adapters == ["default", "second"]
    tuner.merge_request("more horror")
    tuner.unmerge()
    tuner.delete_adapter("second")
    copied.save_pretrained(str(tmp_path))
    tuner.hotswap_adapter(tmp_path)
    assert torch.equal(copied(x, request=REQUESTS), adapted(x, request=REQUESTS))
    model = copied.unload()
    assert torch.equal(model(x), adapted(x))


def test_the_wrapped_model_copied_alone_has_its_handle_with_it(make_model, make_config, x) -> None:
    masks = inject_request_masks(make_model(), make_config(default_request="more horror"))
    expected = masks(x)
    copied = copy.deepcopy(masks.model)
    with torch.no_grad():
        for parameter in masks.parameters():
            parameter.zero_()
    assert torch.equal(copied(x), expected)


@pytest.mark.parametrize("door", ["ours", "peft"])
def test_autopeft_loads_the_base_model_by_its_name(tmp_path, monkeypatch, door: str, gate: str) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    torch.manual_seed(0)
    GPT2LMHeadModel(GPT2Config(vocab_size=20, n_positions=8, n_embd=8, n_layer=1, n_head=2)).save_pretrained(
        tmp_path / "base"
    )
    base = GPT2LMHeadModel.from_pretrained(tmp_path / "base").eval()
    config = RequestMaskConfig(
        gate=gate, encoder="hashing", encoder_options={"dim": 16}, task_type="CAUSAL_LM", init_weights=False
    )
    if door == "peft":
        masks = get_peft_model(base, config).eval()
    else:
        config.base_model_name_or_path = str(tmp_path / "base")
        masks = inject_request_masks(base, config)
    masks.save_pretrained(str(tmp_path / "adapter"))
    ids = torch.arange(18).reshape(3, 6)
    expected = masks(ids, request=REQUESTS).logits
    again = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter").eval()
    assert torch.equal(again(ids, request=REQUESTS).logits, expected)
    assert torch.equal(again(ids).logits[1], expected[1])
