"""Where a backbone's weights may come from, and what is known of them before they are read."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from cramer_peft.errors import DataError
from cramer_peft.recsys.backbones import load_backbone, make_backbone

ITEMS = 12
PARTS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


@pytest.fixture(params=["sasrec", "gru4rec"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / "backbone"
    make_backbone(request.param, ITEMS, max_length=6, hidden_size=16).save_pretrained(path)
    return path


def in_parts(folder: Path) -> dict[str, str]:
    """Split the weights into two files with an index, as transformers does with large ones."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = {name: PARTS[place % 2] for place, name in enumerate(sorted(tensors))}
    for part in PARTS:
        save_file({name: tensors[name] for name in tensors if names[name] == part}, folder / part)
    write_index(folder, names)
    return names


def write_index(folder: Path, names: Any) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))


def test_parts_are_the_whole(folder: Path) -> None:
    expected = load_backbone(folder, range(ITEMS)).state_dict()
    in_parts(folder)
    found = load_backbone(folder, range(ITEMS)).state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("place", ["../{}", "{outside}/{}", "./../outside/{}", "..\\{}", "model.safetensors", 7, None])
def test_an_index_that_leads_elsewhere(place: Any, folder: Path, tmp_path: Path) -> None:
    names = in_parts(folder)
    outside = tmp_path / "outside"
    outside.mkdir()
    for target in (outside, tmp_path):
        (target / PARTS[1]).write_bytes((folder / PARTS[1]).read_bytes())
    other = place.format(PARTS[1], outside=outside) if isinstance(place, str) else place
    write_index(folder, {name: part if part == PARTS[0] else other for name, part in names.items()})
    with pytest.raises(DataError, match=r"index\.json: weight_map names the file"):
        load_backbone(folder, range(ITEMS))


@pytest.mark.parametrize("names", [[], {}, "model.safetensors", 1])
def test_an_index_without_files(names: Any, folder: Path) -> None:
    in_parts(folder)
    write_index(folder, names)
    with pytest.raises(DataError, match="expected an object of names"):
        load_backbone(folder, range(ITEMS))


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", PARTS[0], "model.safetensors.index.json"])
def test_a_link_out_of_the_folder(name: str, folder: Path, tmp_path: Path) -> None:
    if name.startswith("model") and name != "model.safetensors":
        in_parts(folder)
    (folder / name).rename(tmp_path / "elsewhere")
    (folder / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DataError, match="link that leads out of its folder"):
        load_backbone(folder, range(ITEMS))


def test_the_same_weight_in_two_files(folder: Path) -> None:
    in_parts(folder)
    tensors = load_file(folder / PARTS[0])
    save_file({**load_file(folder / PARTS[1]), **tensors}, folder / PARTS[1])
    with pytest.raises(DataError, match="in another file of the folder, too"):
        load_backbone(folder, range(ITEMS))


def test_weights_that_are_not_numbers(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    name = next(name for name in tensors if name.endswith("dense.bias"))
    tensors[name][0] = float("nan")
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(DataError, match="NaN or infinity"):
        load_backbone(folder, range(ITEMS))


def test_a_weight_too_many_is_refused_unread(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_file({**load_file(folder / "model.safetensors"), "extra": torch.zeros(3)}, folder / "model.safetensors")
    for place in ("bert_files.read_weights", "stored.read_file"):
        monkeypatch.setattr(f"cramer_peft.recsys.backbones.{place}", lambda *_: pytest.fail("tensors were read"))
    with pytest.raises(DataError, match="weights missing or not expected: extra"):
        load_backbone(folder, range(ITEMS))
