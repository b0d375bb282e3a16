"""What PEFT's tests set by method, and set here for ours; docs/compatibility.md gives each reason."""

from __future__ import annotations

import sys
from functools import partial
from typing import Any

import pytest
import torch

from cramer_peft import RequestMaskConfig

# By test and base model: their 0.5 is too long a step on inputs of up to 90, and too short a one for the
# gates of an embedding's output; PEFT has such rates for methods of its own.
LEARNING_RATES = {
    ("test_parameters_after_loading_model", "MLP"): 0.01,
    ("test_only_params_are_updated", "EmbConv1D"): 10.0,
}

# Their lists of methods that can do something, by the name of the test that reads it.
MIXED_BATCHES = ("test_mixed_adapter_batches", "test_generate_with_mixed_adapter_batches")

# These make their base model twice, from different random numbers: another base model, which is refused.
SAME_BASE_TWICE = (
    "test_loading_model_requires_grad_set_correctly",
    "test_loading_model_with_modules_to_save_requires_grad_set_correctly",
)


NEEDS_NETWORK = ("test_from_pretrained_cache_dir",)


def _do_nothing(*_: Any) -> None:
    return None


def _seeded(module_class: type[torch.nn.Module], *args: Any, **kwargs: Any) -> torch.nn.Module:
    torch.manual_seed(0)
    return module_class(*args, **kwargs)


@pytest.fixture(autouse=True)
def _ours(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    suite, test = request.module, request.function.__name__
    for module in (suite, sys.modules.get("peft_tests.testing_common")):
        for skip in ("_skip_if_conv1d_not_supported", "check_beft_config"):
            if hasattr(module, skip):
                monkeypatch.setattr(module, skip, _do_nothing)
        if test in MIXED_BATCHES and hasattr(module, "LoraConfig"):
            monkeypatch.setattr(module, "LoraConfig", RequestMaskConfig)
    if test in SAME_BASE_TWICE:
        monkeypatch.setattr(suite, "DeepMLP", partial(_seeded, suite.DeepMLP))
    rate = LEARNING_RATES.get((test, request.node.callspec.params.get("model_id")))
    if rate is not None:
        monkeypatch.setattr(torch.optim, "SGD", partial(_sgd, torch.optim.SGD, rate))
    if test in NEEDS_NETWORK:
        pytest.skip("Downloads a configuration from the hub to an empty folder.")


def _sgd(sgd: type[torch.optim.SGD], rate: float, parameters: Any, **_: Any) -> torch.optim.SGD:
    return sgd(parameters, lr=rate)
