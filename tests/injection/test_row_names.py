"""Rows of several adapters, of which some have trained a module whole."""

import pytest
import torch
from peft import get_peft_model

from cramer_peft import inject_request_masks

REQUESTS = ["more horror", "more horror", "nothing sad"]


@pytest.fixture(params=["ours", "peft"])
def wrapped(request, make_model, make_config):
    """One adapter that trains ``out`` whole, and one that does not."""
    inject = get_peft_model if request.param == "peft" else inject_request_masks
    wrapped = inject(make_model(), make_config(modules_to_save=["out"])).eval()
    wrapped.add_adapter("plain", make_config("scale"))
    handle = wrapped.base_model if request.param == "peft" else wrapped
    torch.nn.init.normal_(handle.model.out.modules_to_save["default"].weight)
    return wrapped


def test_an_adapter_without_the_module_leaves_its_rows_to_the_frozen_one(wrapped, make_model, x) -> None:
    frozen, alone = make_model()(x), {}
    for name in ("default", "plain"):
        wrapped.set_adapter(name)
        alone[name] = wrapped(x, request=REQUESTS)
    assert not torch.allclose(alone["default"], alone["plain"], atol=1e-2)
    for active in ("default", "plain"):
        wrapped.set_adapter(active)
        for names in (["plain", "default", "__base__"], ["plain"] * 3, ["default", "plain", "plain"]):
            mixed = wrapped(x, request=REQUESTS, adapter_names=names)
            for row, name in enumerate(names):
                expected = frozen[row] if name == "__base__" else alone[name][row]
                assert torch.allclose(mixed[row], expected, atol=1e-6)


def test_the_frozen_module_serves_rows_without_requests(wrapped, make_model, x) -> None:
    frozen = make_model()(x)
    mixed = wrapped(x, request=[None, None, None], adapter_names=["plain", "__base__", "default"])
    assert torch.equal(mixed[:2], frozen[:2])
    assert not torch.allclose(mixed[2], frozen[2], atol=1e-2)  # the module that it trained has no request
