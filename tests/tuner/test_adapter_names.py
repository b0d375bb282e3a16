import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors import safe_open

from cramer_peft import inject_request_masks, load_request_masks
from cramer_peft.errors import ConfigError

# Pieces of the keys that tensors have in a state dict: of generators, of modules_to_save, and of the model itself.
COLLIDING = ["weight", "bias", "out", "up", "down", "embedding", "request", "masks", "lora_A", "generator", "0x"]
DOORS = {"handle": (inject_request_masks, load_request_masks), "peft": (get_peft_model, PeftModel.from_pretrained)}


def keys(folder) -> set[str]:
    with safe_open(folder / "adapter_model.safetensors", "pt") as file:
        return set(file.keys())


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("saved", [None, ["out"]], ids=["masks", "modules_to_save"])
@pytest.mark.parametrize("other", COLLIDING)
def test_the_name_of_another_adapter_drops_no_tensor(make_model, make_config, x, door, saved, other, tmp_path) -> None:
    inject, load = DOORS[door]
    config = make_config(modules_to_save=saved)
    masks = inject(make_model(), config)
    masks.save_pretrained(tmp_path / "alone")
    expected, asked = keys(tmp_path / "alone"), masks.eval()(x, request="more horror")
    masks.add_adapter(other, make_config(modules_to_save=saved))
    masks.set_adapter("default")
    folders = {"default": tmp_path / "both", other: tmp_path / "other"}
    if door == "peft":
        masks.save_pretrained(tmp_path / "both")  # PEFT writes the adapters side by side, the default one on top
        folders[other] = tmp_path / "both" / other
    else:
        for name, folder in folders.items():
            masks.save_pretrained(folder, adapter_name=name)
    assert keys(folders["default"]) == keys(folders[other]) == expected
    assert len(expected) == (6 if saved else 4)
    again = load(make_model(), folders["default"]).eval()
    assert torch.equal(again(x, request="more horror"), asked)
    masks.set_adapter(other)
    again = load(make_model(), folders[other]).eval()
    assert torch.equal(again(x, request="more horror"), masks(x, request="more horror"))


@pytest.mark.parametrize("name", ["__base__", "head", "trunk", "default_request", "modules_to_save", "3", "a.b", ""])
def test_names_that_mean_something_else_are_refused(model, make_config, snapshot, name: str) -> None:
    before = snapshot(model)
    with pytest.raises(ConfigError, match="adapter name"):
        inject_request_masks(model, make_config(), adapter_name=name)
    assert before.differences(model) == []
    masks = inject_request_masks(model, make_config())
    before = snapshot(model)
    with pytest.raises(ConfigError, match="adapter name"):
        masks.add_adapter(name, make_config())
    assert list(masks.peft_config) == ["default"]
    assert before.differences(model) == []
