"""Folders of transformers' backbones from strangers: known fields with known values, and nothing followed."""

import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from cramer_peft.errors import DataError
from cramer_peft.recsys.backbones import load_backbone, make_backbone

ITEMS = 12
Edit = Callable[..., None]


@pytest.fixture(params=["sasrec", "bert4rec"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    make_backbone(request.param, ITEMS, max_length=6, hidden_size=16).save_pretrained(tmp_path)
    return tmp_path


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Makes every look-up of an address fail, and lists them."""
    asked: list[Any] = []

    def refuse(*arguments: Any, **_: Any) -> None:
        asked.append(arguments[:2])
        raise OSError("no network in this test")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    return asked


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("attn_implementation", "someone/their-kernel"),
        ("_attn_implementation", {"": "someone/their-kernel@v2:entry"}),
        ("_attn_implementation", "flash_attention_2"),  # where its package is missing, a kernel of the hub stands in
        ("_experts_implementation", "someone/their-kernel"),
        ("experts_implementation", "deepgemm"),
        ("use_kernels", True),
        ("kernel_config", {"kernel_mapping": {"RMSNorm": "someone/their-kernel:RMSNorm"}}),
        ("fusion_config", {"patch_embeddings": True}),
        ("auto_map", {"AutoModel": "someone/repository--modeling.Model"}),
        ("transformers_weights", "../../elsewhere.safetensors"),
        ("quantization_config", {"quant_method": "awq", "bits": 4}),
        ("distributed_config", {"tp_size": 2}),
        ("task_type", "FEATURE_EXTRACTION"),
        ("return_dict", False),
        ("chunk_size_feed_forward", 3),
        ("add_cross_attention", True),
        ("position_embedding_type", "relative_key"),
        ("pad_token_id", 5),
        ("model_type", "gpt2"),
        ("dtype", "int8"),
        ("torch_dtype", ["float32"]),
        ("attn_implementation", ["sdpa"]),
        ("hidden_act", "os.system"),
        ("hidden_dropout_prob", 2),
        ("num_attention_heads", 0),
        ("layer_norm_eps", "1e-12"),
        ("vocab_size", 10.5),
    ],
)
def test_a_field_that_no_backbone_has(
    field: str, value: Any, folder: Path, edit_json: Edit, offline: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("a kernel of the hub was asked for")

    monkeypatch.setattr("transformers.modeling_utils.PreTrainedModel._check_and_adjust_attn_implementation", never)
    edit_json(folder / "config.json", **{field: value})
    with pytest.raises(DataError, match=field):
        load_backbone(folder, range(ITEMS))
    assert offline == []


@pytest.mark.parametrize(
    "fields",
    [
        {"_name_or_path": "someone/else", "transformers_version": "4.0"},
        {"torch_dtype": "float32", "attn_implementation": "eager", "gradient_checkpointing": False},
        {"quantization_config": None, "auto_map": {}, "id2label": {"0": "A"}, "problem_type": None},
        {"position_embedding_type": "absolute", "pruned_heads": {}, "output_attentions": False},
    ],
)
def test_fields_that_say_nothing_are_let_through(
    fields: dict[str, Any], folder: Path, edit_json: Edit, offline: list[Any]
) -> None:
    item_ids = torch.tensor([[3, 1, 2], [5, 0, 0]])
    plain = load_backbone(folder, range(ITEMS))(item_ids)
    edit_json(folder / "config.json", **fields)
    torch.testing.assert_close(load_backbone(folder, range(ITEMS))(item_ids), plain)
    assert offline == []


def test_sdpa_and_eager_are_as_the_file_says(folder: Path, edit_json: Edit) -> None:
    for name in ("eager", "sdpa"):
        edit_json(folder / "config.json", _attn_implementation=name)
        assert load_backbone(folder, range(ITEMS)).config._attn_implementation == name


def test_the_precision_is_that_of_the_file(folder: Path) -> None:
    for dtype in (torch.float16, torch.float32):
        model = load_backbone(folder, range(ITEMS)).to(dtype)
        model.save_pretrained(folder)
        assert load_backbone(folder, range(ITEMS)).dtype == dtype


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("vocab_size", 2**27),
        ("hidden_size", 2**26),
        ("intermediate_size", 2**27),
        ("num_hidden_layers", 2**27),
        ("max_position_embeddings", 2**16),
        ("num_hidden_layers", 3),
    ],
)
def test_sizes_that_the_weights_do_not_have(
    field: str, value: int, folder: Path, edit_json: Edit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cramer_peft.recsys.backbones.bert_files.read_weights", lambda _: pytest.fail("weights read"))
    edit_json(folder / "config.json", **{field: value})
    with pytest.raises(DataError, match=r"size mismatch|weights missing"):
        load_backbone(folder, range(ITEMS))


def test_a_layer_of_a_high_number_does_not_stand_for_those_below(folder: Path, edit_json: Edit) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["bert.encoder.layer.99999999.output.dense.bias"] = torch.zeros(16)
    save_file(tensors, folder / "model.safetensors")
    edit_json(folder / "config.json", num_hidden_layers=100_000_000)
    with pytest.raises(DataError, match="there are the weights of 2 layers"):
        load_backbone(folder, range(ITEMS))


def test_another_adapters_configuration_in_the_folder_is_not_followed(folder: Path, offline: list[Any]) -> None:
    (folder / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "task_type": "X", "base_model_name_or_path": "someone/else"})
    )
    (folder / "generation_config.json").write_text("{broken")
    load_backbone(folder, range(ITEMS))
    assert offline == []


def test_heads_that_do_not_divide_the_width(folder: Path, edit_json: Edit) -> None:
    edit_json(folder / "config.json", num_attention_heads=3)
    with pytest.raises(DataError, match="attention heads"):
        load_backbone(folder, range(ITEMS))


def test_a_folder_of_the_other_direction(folder: Path, edit_json: Edit) -> None:
    before = json.loads((folder / "config.json").read_text())["is_decoder"]
    edit_json(folder / "config.json", is_decoder=not before)
    with pytest.raises(DataError, match="is_decoder"):
        load_backbone(folder, range(ITEMS))
