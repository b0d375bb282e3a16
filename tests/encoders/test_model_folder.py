"""Encoders' folders: nothing is looked up, fetched or run because a file says so."""

import json
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from torch import nn

from cramer_peft import RequestMaskConfig, inject_request_masks, load_request_masks
from cramer_peft.encoders import make_encoder
from cramer_peft.errors import EncoderError
from cramer_peft.storage.files import read_safetensors, write_safetensors

Edit = Callable[..., None]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Addresses that were looked up; each look-up fails, and nothing is remembered of earlier ones."""
    found: list[Any] = []

    def refuse(*arguments: Any, **_: Any) -> None:
        found.append(arguments[0])
        raise OSError("no network in this test")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    detection = getattr(getattr(huggingface_hub, "utils", None), "_detect_agent", None)
    if detection is not None:
        monkeypatch.setattr(detection, "_registry", None)
        monkeypatch.setattr(detection.constants, "AGENT_HARNESSES_PATH", "/nowhere/agents.json")
    return found


@pytest.fixture
def copied(encoder_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(encoder_folder, tmp_path / "encoder"))


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 4)).eval()


@pytest.mark.parametrize("name", ["transformers", "sentence-transformers"])
@pytest.mark.parametrize("place", ["someone/encoder", "encoder", "no/such/place", "x y"])
def test_an_adapter_that_names_an_encoder_looks_nothing_up(
    name: str, place: str, tmp_path: Path, edit_json: Edit, asked: list[Any]
) -> None:
    if name == "sentence-transformers":
        pytest.importorskip("sentence_transformers")
    config = RequestMaskConfig(target_modules=["0"], encoder="hashing", encoder_options={"dim": 8})
    inject_request_masks(small(), config).save_pretrained(tmp_path)
    weights = tmp_path / "adapter_model.safetensors"
    write_safetensors(weights, read_safetensors(weights)[0], {})
    edit_json(tmp_path / "adapter_config.json", encoder=name, encoder_options={"model_name_or_path": place})
    masks = load_request_masks(small(), tmp_path)
    with pytest.raises(EncoderError, match=r"neither a folder nor in the hub's cache.*local_files_only"):
        masks(torch.zeros(1, 4), request="anything")
    assert asked == []


def test_a_folder_is_loaded_without_a_look_up(encoder_folder: Path, asked: list[Any]) -> None:
    for options in ({}, {"local_files_only": False}):
        encoder = make_encoder("transformers", {"model_name_or_path": str(encoder_folder), **options})
        assert encoder.encode(["drama"]).shape == (1, 8)
    assert asked == []


def test_a_name_in_the_cache_is_loaded_without_a_look_up(
    encoder_folder: Path, tmp_path: Path, asked: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "models--someone--encoder"
    shutil.copytree(encoder_folder, root / "snapshots" / ("0" * 40))
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text("0" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    expected = make_encoder("transformers", {"model_name_or_path": str(encoder_folder)}).encode(["more drama"])
    for revision in (None, "main", "0" * 40):
        found = make_encoder("transformers", {"model_name_or_path": "someone/encoder", "revision": revision})
        assert torch.equal(found.encode(["more drama"]), expected)
    with pytest.raises(EncoderError, match="someone/encoder"):
        make_encoder("transformers", {"model_name_or_path": "someone/encoder", "revision": "other"})
    assert asked == []


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("_attn_implementation", "someone/kernel"),
        ("attn_implementation", "flash_attention_3"),
        ("attn_implementation", {"": "sdpa", "text_config": "someone/kernel:run"}),
        ("text_config", {"deep": [{"_experts_implementation": "sonicmoe"}]}),
        ("use_kernels", True),
        ("transformers_weights", "../../weights.safetensors"),
        ("quantization_config", {"quant_method": "fp8"}),
        ("quantization_config", {"quant_method": "bitsandbytes", "load_in_8bit": True}),
    ],
)
def test_a_field_that_fetches_or_runs_something(
    field: str, value: Any, copied: Path, edit_json: Edit, asked: list[Any]
) -> None:
    edit_json(copied / "config.json", **{field: value})
    with pytest.raises(EncoderError, match=r"config\.json: \w+ is .*because a file says so"):
        make_encoder("transformers", {"model_name_or_path": str(copied)})
    assert asked == []


def test_harmless_fields(copied: Path, edit_json: Edit) -> None:
    edit_json(copied / "config.json", _attn_implementation="eager", use_kernels=False, quantization_config=None)
    assert (
        make_encoder("transformers", {"model_name_or_path": str(copied)}).module.config._attn_implementation == "eager"
    )


def test_a_folder_that_names_another_model(copied: Path, asked: list[Any]) -> None:
    values = {"peft_type": "LORA", "task_type": "X", "base_model_name_or_path": "someone/else"}
    (copied / "adapter_config.json").write_text(json.dumps(values))
    with pytest.raises(EncoderError, match=r"adapter_config\.json names another model"):
        make_encoder("transformers", {"model_name_or_path": str(copied)})
    assert asked == []


@pytest.mark.parametrize("part", ["../other.safetensors", "/other.safetensors", "a\\other.safetensors", "x.bin", 3])
def test_an_index_that_leads_elsewhere(part: Any, copied: Path) -> None:
    (copied / "model.safetensors").rename(copied / "part.safetensors")
    index = copied / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": {"a": "part.safetensors", "b": part}}))
    with pytest.raises(EncoderError, match=r"index\.json names the file"):
        make_encoder("transformers", {"model_name_or_path": str(copied)})


@pytest.mark.parametrize(
    "text", ["{", "[" * 100_000, '{"hidden_size": "wide", "model_type": "bert"}', '{"a": "\\ud800"}', "[]"]
)
def test_what_transformers_raises_is_ours(text: str, copied: Path) -> None:
    (copied / "config.json").write_text(text)
    with pytest.raises(EncoderError, match="encoder"):
        make_encoder("transformers", {"model_name_or_path": str(copied)})


def test_a_sentence_transformer_is_checked_inside(encoder_folder: Path, tmp_path: Path, edit_json: Edit) -> None:
    package = pytest.importorskip("sentence_transformers")
    modules = package.sentence_transformer.modules
    parts = [modules.Transformer(str(encoder_folder)), modules.Pooling(8, "mean")]
    package.SentenceTransformer(modules=parts, device="cpu").save(str(tmp_path))
    options = {"model_name_or_path": str(tmp_path)}
    make_encoder("sentence-transformers", options)
    settings = tmp_path / "sentence_bert_config.json"
    before = settings.read_text()
    edit_json(settings, model_args={"attn_implementation": "someone/kernel"})
    with pytest.raises(EncoderError, match=r"sentence_bert_config\.json: attn_implementation is 'someone/kernel'"):
        make_encoder("sentence-transformers", options)
    settings.write_text(before)
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "someone/else"}))
    with pytest.raises(EncoderError, match="names another model"):
        make_encoder("sentence-transformers", options)
