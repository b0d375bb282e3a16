"""An adapter by itself: a view of what the handle holds under one name."""

import pytest
import torch

from cramer_peft import Adapter, inject_request_masks, load_request_masks
from cramer_peft.errors import ConfigError

REQUESTS = ["more horror", None, "less romance"]


def test_it_is_a_view_of_the_handle(model, make_config, gate: str) -> None:
    masks = inject_request_masks(model, make_config(gate))
    adapter = masks.adapter("default")
    assert isinstance(adapter, Adapter)
    assert adapter.config is masks.peft_config["default"]
    assert adapter.generator is masks.request_mask_generator["default"] is masks.generator
    assert adapter.encoder is masks.encoder()
    assert adapter.tuned is None
    assert adapter.modules() == [masks.generator]
    assert {id(p) for module in adapter.modules() for p in module.parameters()} == {
        id(p) for p in masks.parameters() if p.requires_grad
    }


def test_none_names_the_active_one(model, make_config) -> None:
    masks = inject_request_masks(model, make_config())
    masks.add_adapter("other", make_config())
    assert masks.adapter().name == "default"
    masks.set_adapter("other")
    assert masks.adapter().name == "other"
    masks.unload()
    with pytest.raises(ConfigError, match="unloaded"):
        masks.adapter()


def test_a_name_that_is_not_there_is_refused(model, make_config) -> None:
    masks = inject_request_masks(model, make_config())
    with pytest.raises(ConfigError, match=r"no adapter 'horror'; there are \['default'\]"):
        masks.adapter("horror")


def test_its_masks_are_those_of_a_call(model, make_config, gate: str, x) -> None:
    masks = inject_request_masks(model, make_config(gate)).eval()
    made = masks.adapter().masks(REQUESTS).make()
    with torch.no_grad(), masks.request_context.using(masks.adapter().masks(REQUESTS)):
        inside = model(x)
    assert torch.equal(inside, masks(x, request=REQUESTS))
    assert made.keys() == masks.masks_for(REQUESTS).keys()
    for entry, mask in masks.masks_for(REQUESTS).items():
        assert all(torch.equal(a, b) for a, b in zip(made[entry].tensors(), mask.tensors(), strict=True))


@pytest.mark.parametrize("nothing", [None, "", [None, " ", None]])
def test_no_request_gives_no_masks(model, make_config, nothing) -> None:
    adapter = inject_request_masks(model, make_config()).adapter()
    assert adapter.masks(nothing) is None
    assert adapter.masks(REQUESTS, strength=0) is None


def test_removing_takes_everything_of_it_off_the_handle(model, make_config) -> None:
    masks = inject_request_masks(model, make_config())
    before = set(masks.state_dict())
    masks.add_adapter("other", make_config())
    adapter = masks.adapter("other")
    assert adapter.encoder is not None
    masks.delete_adapter("other")
    assert set(masks.state_dict()) == before
    assert list(masks.peft_config) == list(masks.request_mask_generator) == ["default"]
    assert "other" not in masks.request_encoders
    with pytest.raises(ConfigError, match="'other' was deleted"):
        adapter.masks(REQUESTS).get("up")


def test_it_saves_and_fills_itself(make_model, make_config, gate: str, x, tmp_path) -> None:
    model = make_model()
    masks = inject_request_masks(model, make_config(gate))
    masks.adapter().save(tmp_path)
    assert masks.adapter().model_card() == (tmp_path / "README.md").read_text(encoding="utf-8")
    expected = masks(x, request=REQUESTS)
    masks.unload()
    assert torch.equal(load_request_masks(model, tmp_path)(x, request=REQUESTS), expected)
