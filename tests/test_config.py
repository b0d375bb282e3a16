import json
import pickle
from dataclasses import fields
from typing import Any

import pytest
from peft import PeftConfig

from cramer_peft import RequestMaskConfig
from cramer_peft.errors import ConfigError, CramerError
from cramer_peft.tuner.registration import RequestMaskPeftType


@pytest.mark.parametrize(
    "options",
    [
        {"gate": "low_rank", "rank": 2, "strength": 0.5, "generator_width": 8},
        {"gate": "scale", "gate_bias": False, "target_modules": ".*dense", "exclude_modules": ["head"]},
        {"gate": "topk", "drop_ratio": 0.2, "temperature_start": 0.9, "temperature_end": 0.1, "request_dim": 7},
        {"target_modules": ["a"], "layers_to_transform": [0, 2], "layers_pattern": "layers", "batch_dim": 1},
        {"encoder": "hashing", "encoder_options": {"dim": 8, "deep": {"list": [1, None, "ü"]}}},
        {"modules_to_save": ["out"], "masked_modules": {"a": [2, 3]}, "base_fingerprint": "sha256:0"},
    ],
)
def test_json_round_trip(options: dict[str, Any], tmp_path) -> None:
    config = RequestMaskConfig(**options)
    again = RequestMaskConfig(**json.loads(json.dumps(config.to_dict())))
    assert again == config
    config.save_pretrained(str(tmp_path))
    loaded = PeftConfig.from_pretrained(str(tmp_path))
    assert type(loaded) is RequestMaskConfig
    # PEFT's own save writes inference_mode=True.
    assert {**loaded.to_dict(), "inference_mode": False} == config.to_dict()


def test_every_field_has_help_text() -> None:
    inherited = {field.name for field in fields(PeftConfig)}
    own = [field for field in fields(RequestMaskConfig) if field.name not in inherited]
    assert len(own) > 15
    assert [field.name for field in own if len(field.metadata.get("help", "")) < 20] == []


def test_defaults_belong_to_the_gate() -> None:
    low_rank, scale, topk = (RequestMaskConfig(gate=gate) for gate in ("low_rank", "scale", "topk"))
    assert (low_rank.rank, low_rank.gate_bias, low_rank.drop_ratio) == (4, None, None)
    assert (scale.rank, scale.gate_bias, scale.temperature_start) == (None, True, None)
    assert (topk.drop_ratio, topk.temperature_start, topk.temperature_end, topk.gate_bias) == (0.1, 0.7, 0.3, False)


def test_paper_preset() -> None:
    config = RequestMaskConfig.paper(drop_ratio=0.05)
    assert (config.gate, config.drop_ratio, config.gate_bias, config.generator_width) == ("topk", 0.05, False, None)
    assert (config.temperature_start, config.temperature_end) == (0.7, 0.3)


def test_encoder_default_and_ready_vectors() -> None:
    assert RequestMaskConfig().encoder == "wordllama"
    assert RequestMaskConfig(request_dim=8).encoder is None


def test_peft_type_is_our_own() -> None:
    config = RequestMaskConfig()
    assert config.peft_type is RequestMaskPeftType.REQUEST_MASK
    assert config.to_dict()["peft_type"] == "REQUEST_MASK"


def test_sets_and_tuples_become_lists() -> None:
    config = RequestMaskConfig(target_modules={"b", "a"}, exclude_modules=("d", "c"))
    assert config.target_modules == ["a", "b"]
    assert config.exclude_modules == ["c", "d"]


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"gate": "none"}, "gate"),
        ({"gate": ["low_rank"]}, "gate"),
        ({"gate": None}, "gate"),
        ({"gate": "scale", "rank": 2}, "rank"),
        ({"gate": "topk", "rank": 2}, "rank"),
        ({"gate": "low_rank", "gate_bias": True}, "gate_bias"),
        ({"gate": "low_rank", "drop_ratio": 0.1}, "drop_ratio"),
        ({"gate": "scale", "temperature_start": 0.1}, "temperature_start"),
        ({"gate": "low_rank", "temperature_end": 0.1}, "temperature_end"),
        ({"gate": "topk", "strength": 0.5}, "strength"),
        ({"gate": "topk", "drop_ratio": 1.0}, "drop_ratio"),
        ({"gate": "topk", "drop_ratio": -0.1}, "drop_ratio"),
        ({"gate": "topk", "temperature_start": 0.0}, "temperature_start"),
        ({"gate": "topk", "temperature_end": float("inf")}, "temperature_end"),
        ({"gate": "scale", "gate_bias": 1}, "gate_bias"),
        ({"gate": "topk", "temperature_schedule": "step"}, "temperature_schedule must be one of cosine"),
        ({"gate": "scale", "temperature_schedule": "linear"}, "temperature_schedule"),
        ({"gate": "topk", "shared_masks": 1}, "shared_masks"),
        ({"gate": "signed", "shared_masks": True}, "shared_masks"),
        ({"rank": 0}, "rank"),
        ({"rank": True}, "rank"),
        ({"rank": 2.0}, "rank"),
        ({"generator_width": 0}, "generator_width"),
        ({"request_dim": -1}, "request_dim"),
        ({"strength": float("nan")}, "strength"),
        ({"strength": "1"}, "strength"),
        ({"strength": None}, "strength"),
        ({"init_weights": "yes"}, "init_weights"),
        ({"batch_dim": -1}, "batch_dim"),
        ({"batch_dim": 0.0}, "batch_dim"),
        ({"target_modules": []}, "target_modules"),
        ({"target_modules": ""}, "target_modules"),
        ({"target_modules": [1]}, "target_modules"),
        ({"target_modules": {"a": 1}}, "target_modules"),
        ({"target_modules": "["}, "target_modules"),
        ({"exclude_modules": "("}, "exclude_modules"),
        ({"exclude_modules": 3}, "exclude_modules"),
        ({"modules_to_save": ["*"]}, "modules_to_save"),
        ({"modules_to_save": "out"}, "modules_to_save"),
        ({"target_modules": ".*", "layers_to_transform": [0]}, "layers_to_transform"),
        ({"target_modules": ["a"], "layers_to_transform": [-1]}, "layers_to_transform"),
        ({"target_modules": ["a"], "layers_to_transform": "0"}, "layers_to_transform"),
        ({"target_modules": ["a"], "layers_pattern": "h"}, "layers_pattern"),
        ({"target_modules": ["a"], "layers_to_transform": 0, "layers_pattern": "["}, "layers_pattern"),
        ({"encoder": object()}, "encoder"),
        ({"encoder": ["hashing"]}, "encoder"),
        ({"request_dim": 4, "encoder_options": {}}, "encoder_options"),
        ({"encoder": "hashing", "encoder_options": {"dim": object()}}, "encoder_options"),
        ({"encoder": "hashing", "encoder_options": {"dim": float("nan")}}, "encoder_options"),
        ({"encoder": "hashing", "encoder_options": {"dim": (1, 2)}}, "encoder_options"),
        ({"encoder": "hashing", "encoder_options": {1: 2}}, "encoder_options"),
        ({"encoder": "hashing", "encoder_options": [["dim", 2]]}, "encoder_options"),
        ({"masked_modules": {"a": [1, 1, 1]}}, "masked_modules"),
        ({"masked_modules": {"a": 1}}, "masked_modules"),
        ({"module_parts": "q"}, "module_parts"),
        ({"batch_folding": "beams"}, "batch_folding"),
        ({"encoder_tuning": "first"}, "encoder_tuning"),
        ({"request_dim": 4, "encoder_tuning": "all"}, "encoder_tuning"),
        ({"encoder": "hashing", "default_request": " "}, "default_request is blank"),
        ({"request_dim": 2, "default_request": "more horror"}, "default_request"),
        ({"request_dim": 2, "default_request": [1.0]}, "default_request"),
        ({"request_dim": 2, "default_request": [1.0, float("nan")]}, "default_request"),
        ({"masked_modules": {"a": [1, 0]}}, "masked_modules"),
        ({"masked_modules": ["a"]}, "masked_modules"),
        ({"base_fingerprint": 1}, "base_fingerprint"),
        ({"target_outputs": "head"}, "target_outputs"),
        ({"target_outputs": [0]}, "target_outputs"),
        ({"target_outputs": {"": {"features": 0}}}, "'features'"),
        ({"target_outputs": {"": {"field": None}}}, "'field'"),
        ({"target_outputs": {"": {"fields": "x"}}}, "'field'"),
        ({"row_features": "head"}, "row_features"),
        ({"row_features": {"head": 0}}, "row_features"),
        ({"row_features": {"head": True}}, "row_features"),
        ({"row_fingerprints": {"head": [1.0]}}, "row_fingerprints"),
        ({"row_fingerprints": {"head": [float("inf")] * 19}}, "row_fingerprints"),
        ({"request_sides": {}}, "request_sides"),
        ({"request_sides": {"a": 2, "b": 3}}, "one width for all"),
        ({"request_sides": {"a": 2}, "request_dim": 3}, "request_dim is 3"),
    ],
)
def test_impossible_fields_are_refused(options: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named) as caught:
        RequestMaskConfig(**options)
    assert isinstance(caught.value, CramerError)
    assert isinstance(caught.value, ValueError)


def test_pickled_values_do_not_survive_into_a_file() -> None:
    with pytest.raises(ConfigError, match="JSON"):
        RequestMaskConfig(encoder="hashing", encoder_options={"dim": pickle.dumps(3)})
