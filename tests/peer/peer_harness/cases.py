"""The configurations of ours that take the place of PEFT's in its lists of test cases."""

from __future__ import annotations

from typing import Any

from cramer_peft import RequestMaskConfig

Kwargs = dict[str, Any]

# The suite passes only inputs, so a stored request has to be in force.
_REQUEST: Kwargs = {"request_dim": 4, "default_request": [1.0, -2.0, 0.5, 1.5]}


def _kwargs(targets: list[str] | str | None, **options: Any) -> Kwargs:
    return {**_REQUEST, "gate": "low_rank", "target_modules": targets, **options}


def _case(name: str, model: str, targets: list[str] | str, **options: Any) -> tuple[str, str, type, Kwargs]:
    return (f"{name} RequestMask", model, RequestMaskConfig, _kwargs(targets, **options))


TEST_CASES = [
    _case("Vanilla MLP 1", "MLP", "lin0"),
    _case("Vanilla MLP 2", "MLP", ["lin0"], rank=1),
    _case("Vanilla MLP 3", "MLP", ["lin1"], generator_width=None),
    _case("Vanilla MLP 4", "MLP", ["lin0", "lin1"]),
    _case("Vanilla MLP 5", "MLP", ["lin0"], modules_to_save=["lin1"]),
    _case("Vanilla MLP 6 scale", "MLP", ["lin0", "lin1"], gate="scale"),
    _case("Vanilla MLP 7 scale", "MLP", ["lin0"], gate="scale", gate_bias=False, modules_to_save=["lin1"]),
    _case("Embedding + transformers Conv1D 1", "EmbConv1D", ["conv1d"]),
    _case("Embedding + transformers Conv1D 2", "EmbConv1D", ["emb"]),
    _case("Embedding + transformers Conv1D 3", "EmbConv1D", ["emb", "conv1d", "lin0"], gate="scale"),
    _case("Conv1d", "Conv1d", ["conv1d"]),
    _case("Conv2d 1", "Conv2d", ["conv2d"]),
    _case("Conv2d 2 scale", "Conv2d", ["conv2d", "lin0"], gate="scale"),
    _case("MHA 1", "MHA", ["mha"]),
    _case("MHA 2 scale", "MHA", ["mha", "lin0"], gate="scale"),
]
ALL_PEFT_CONFIG_CLASSES = [RequestMaskConfig]


def _pair(name: str, first: list[str], second: list[str], **options: Any) -> tuple[str, str, type, Kwargs, Kwargs]:
    one, two = (_kwargs(targets, init_weights=False, **options) for targets in (first, second))
    return (f"RequestMask {name}", "request_mask", RequestMaskConfig, one, two)


MULTIPLE_ACTIVE_ADAPTERS_TEST_CASES = [
    _pair("same", ["lin0"], ["lin0"]),
    _pair("different", ["lin0"], ["lin1"]),
    _pair("scale same", ["lin0"], ["lin0"], gate="scale"),
    _pair("scale different", ["lin0"], ["lin1"], gate="scale"),
]


def _config(targets: list[str], **options: Any) -> RequestMaskConfig:
    return RequestMaskConfig(**_kwargs(targets, init_weights=False, **options))


MIXED_ADAPTER_TEST_CASES = [
    ("RequestMask mixed adapter", _config(["lin0"]), _config(["lin0"], rank=2)),
    ("RequestMask mixed gates", _config(["lin0"]), _config(["lin0"], gate="scale")),
]

# These tests have their cases in place, not in a list with a name.
MIXED_BY_TEST = {
    "test_mixed_adapter_batches_different_target_layers": (_config(["lin0"]), _config(["lin1"])),
    "test_mixed_adapter_batches_multiple_modules_to_save": (
        _config(["lin0"], modules_to_save=["lin1"]),
        _config(["lin0"], modules_to_save=["lin1"]),
    ),
    "test_mixed_adapter_batches_unsupported_layer_raises": (
        _config(["lin0"], modules_to_save=["gru"]),
        _config(["lin0"], modules_to_save=["gru"]),
    ),
    "test_mixed_adapter_batches_partly_overlapping_target_layers": (_config(["lin0"]), _config(["lin0", "lin1"])),
    "test_mixed_adapter_batches_lora_conv1d_emb": (_config(["emb", "conv1d"]), _config(["emb", "conv1d"], rank=2)),
    "test_mixed_adapter_batches_lora_conv1d_emb_multiple_modules_to_save": (
        _config(["emb", "conv1d"], modules_to_save=["lin0"]),
        _config(["emb", "conv1d"], modules_to_save=["lin0"]),
    ),
    "test_mixed_adapter_batches_lora_conv2d": (_config(["conv2d"]), _config(["conv2d"], rank=2)),
}

# OPT folds rows and positions into one dimension for its feed-forward layers.
_HUB_CASES = [
    (RequestMaskConfig, _kwargs(None, batch_folding="rows_first", gate="low_rank")),
    (RequestMaskConfig, _kwargs(None, batch_folding="rows_first", gate="scale", generator_width=None)),
]


def _task(task_type: str) -> list[tuple[type, Kwargs]]:
    return [(config_class, {**kwargs, "task_type": task_type}) for config_class, kwargs in _HUB_CASES]


# Suite → name of its list of cases → ours.
CASES: dict[str, dict[str, list[Any]]] = {
    "test_config": {
        "ALL_CONFIG_CLASSES": [(RequestMaskConfig, {}), (RequestMaskConfig, _REQUEST)],
        "LAYER_INDEXING_CONFIG_CLASSES": [(RequestMaskConfig, {})],
    },
    "test_custom_models": {
        "TEST_CASES": TEST_CASES,
        "ALL_PEFT_CONFIG_CLASSES": ALL_PEFT_CONFIG_CLASSES,
        "MULTIPLE_ACTIVE_ADAPTERS_TEST_CASES": MULTIPLE_ACTIVE_ADAPTERS_TEST_CASES,
        "MIXED_ADAPTER_TEST_CASES": MIXED_ADAPTER_TEST_CASES,
    },
    "test_decoder_models": {"ALL_CONFIGS": _task("CAUSAL_LM")},
    "test_encoder_decoder_models": {"ALL_CONFIGS": _task("SEQ_2_SEQ_LM")},
    "test_feature_extraction_models": {"ALL_CONFIGS": _task("FEATURE_EXTRACTION")},
}
