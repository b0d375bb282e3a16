"""What both doors report of an adapted model, and that it is true."""

import pytest
import torch
from peft import get_peft_model
from peft.peft_model import get_layer_status, get_model_status

from cramer_peft import inject_request_masks


@pytest.fixture(params=["ours", "peft"])
def adapted(request, make_model, make_config):
    """An adapted model with two adapters, of which one masks more layers."""
    config, more = make_config(), make_config("scale", target_modules=["up", "out"])
    if request.param == "ours":
        masks = inject_request_masks(make_model(), config)
        masks.add_adapter("second", more)
    else:
        masks = get_peft_model(make_model(), config).eval()
        masks.add_adapter("second", more)
    return masks


def tuner(adapted):
    return getattr(adapted, "base_model", adapted) if hasattr(adapted, "peft_type") else adapted


def test_parameters(adapted, capsys) -> None:
    trainable, total = adapted.get_nb_trainable_parameters()
    assert trainable == sum(p.numel() for p in tuner(adapted).adapter("default").generator.parameters())
    assert total == sum(p.numel() for p in adapted.parameters())
    adapted.print_trainable_parameters()
    assert capsys.readouterr().out == (
        f"trainable params: {trainable:,d} || all params: {total:,d} || trainable%: {100 * trainable / total:.4f}\n"
    )
    tuner(adapted).set_adapter(["default", "second"])
    both = sum(p.numel() for name in ("default", "second") for p in tuner(adapted).adapter(name).generator.parameters())
    assert adapted.get_nb_trainable_parameters()[0] == both


def test_the_model(adapted) -> None:
    status = adapted.get_model_status()
    assert status.base_model_type == "TinyRecommender"
    assert status.adapter_model_type == "RequestMaskModel"
    assert status.peft_types == {"default": "REQUEST_MASK", "second": "REQUEST_MASK"}
    assert (status.trainable_params, status.total_params) == adapted.get_nb_trainable_parameters()
    assert status.num_adapter_layers == 3
    assert status.enabled is True
    assert status.active_adapters == ["default"]
    assert status.available_adapters == ["default", "second"]
    assert status.merged_adapters == []
    assert status.requires_grad == {"default": True, "second": False}
    assert status.devices == {"default": ["cpu"], "second": ["cpu"]}
    assert status.quantization_backend is None


def test_it_follows_what_is_done(adapted) -> None:
    masks = tuner(adapted)
    masks.set_adapter("second")
    assert adapted.get_model_status().active_adapters == ["second"]
    assert adapted.get_model_status().requires_grad == {"default": False, "second": True}
    masks.set_adapter(["default", "second"])
    assert adapted.get_model_status().active_adapters == ["default", "second"]
    masks.set_requires_grad("second", False)
    assert adapted.get_model_status().requires_grad == {"default": True, "second": False}
    with adapted.disable_adapter():
        assert adapted.get_model_status().enabled is False
    assert adapted.get_model_status().enabled is True
    masks.set_adapter("default", inference_mode=True)
    assert adapted.get_model_status().requires_grad == {"default": False, "second": False}
    masks.merge_request("more horror")
    assert adapted.get_model_status().merged_adapters == ["default"]
    masks.unmerge()
    assert adapted.get_model_status().merged_adapters == []
    adapted.delete_adapter("second")
    assert adapted.get_model_status().available_adapters == ["default"]
    assert adapted.get_model_status().devices == {"default": ["cpu"]}


def test_the_layers(adapted) -> None:
    statuses = {status.name.removeprefix("model."): status for status in adapted.get_layer_status()}
    assert {name: status.available_adapters for name, status in statuses.items()} == {
        "up": ["default", "second"],
        "down": ["default"],
        "out": ["second"],
    }
    assert {status.module_type for status in statuses.values()} == {"MaskedLinear"}
    assert statuses["up"].requires_grad == {"default": True, "second": False}
    assert statuses["out"].requires_grad == {"second": False}
    assert statuses["down"].devices == {"default": ["cpu"]}
    tuner(adapted).adapter("default").generator.to("meta")
    assert adapted.get_layer_status()[0].devices["default"] == ["meta"]


def test_pefts_functions_take_the_handle(make_model, make_config) -> None:
    masks = inject_request_masks(make_model(), make_config())
    assert get_layer_status(masks) == masks.get_layer_status()
    assert get_model_status(masks).requires_grad == {"default": True}


def test_saved_modules_count_as_layers(make_model, make_config) -> None:
    masks = inject_request_masks(make_model(), make_config(modules_to_save=["out"]))
    assert [status.module_type for status in masks.get_layer_status()] == [
        "MaskedLinear",
        "MaskedLinear",
        "ModulesToSaveWrapper",
    ]
    assert masks.get_model_status().requires_grad == {"default": True}


def test_reporting_changes_nothing(make_model, make_config, snapshot, x) -> None:
    masks = inject_request_masks(make_model(), make_config())
    before, output = snapshot(masks), masks(x, request="more horror")
    masks.get_model_status()
    masks.get_layer_status()
    masks.get_nb_trainable_parameters()
    assert before.differences(masks) == []
    assert torch.equal(masks(x, request="more horror"), output)
