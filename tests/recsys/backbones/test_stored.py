import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from cramer_peft import RequestMaskConfig
from cramer_peft.errors import DataError
from cramer_peft.recsys.backbones import (
    BACKBONES,
    GRU4Rec,
    load_backbone,
    make_backbone,
)
from cramer_peft.recsys.data.catalogue import Catalogue

pytestmark = pytest.mark.filterwarnings("ignore:'pin_memory' argument:UserWarning")
ITEMS, LENGTH = 40, 8


def made(name: str, seed: int = 0) -> Any:
    if name == "replay-sasrec":
        pytest.importorskip("replay", reason="needs replay-rec[torch]")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = make_backbone(name, ITEMS, max_length=LENGTH, hidden_size=16, dropout=0.1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3 if parameter.dim() > 1 else 1)
    return model.eval().requires_grad_(False)


@pytest.fixture(params=sorted(BACKBONES))
def model(request: pytest.FixtureRequest) -> Any:
    return made(request.param)


@pytest.fixture
def config(hashing: Callable[..., RequestMaskConfig]) -> RequestMaskConfig:
    return hashing(init_weights=False)


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    made("gru4rec").save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_files_of_strangers(stored: Path, catalogue: Catalogue, edit_json: Callable[..., None], tmp_path: Path) -> None:
    config = stored / "config.json"
    for changes, message in (
        ({"num_items": 10**8}, "size mismatch"),
        ({"hidden_size": 10**8}, "size mismatch|overflow|large"),
        ({"hidden_size": 0}, "backbone"),
        ({"num_items": -1}, "num_items is -1"),
        ({"num_items": True}, "num_items is True"),
        ({"dropout": "much"}, "dropout is 'much'"),
        ({"layers": 3}, "unexpected keyword"),
        ({"architectures": ["os.system"]}, "its architecture is 'os.system'"),
        ({"architectures": []}, r"architectures is \[\]"),
    ):
        before = config.read_text()
        edit_json(config, **changes)
        with pytest.raises(DataError, match=message):
            load_backbone(stored, catalogue)
        config.write_text(before)
    load_backbone(stored, catalogue)
    (stored / "model.safetensors").write_bytes(b"\x00" * 20)
    with pytest.raises(DataError, match="holds no readable backbone"):
        load_backbone(stored, catalogue)
    (stored / "model.safetensors").unlink()
    with pytest.raises(DataError, match=r"model\.safetensors"):
        load_backbone(stored, catalogue)


def test_weights_stay_in_memory_once(stored: Path) -> None:
    loaded = GRU4Rec.from_pretrained(stored)
    assert all(not value.is_meta for value in loaded.state_dict().values())
    assert loaded.settings == made("gru4rec").settings
    assert math.isclose(loaded.settings["dropout"], 0.1)
