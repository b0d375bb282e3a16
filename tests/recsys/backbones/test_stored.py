import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cramer_peft.errors import DataError
from cramer_peft.recsys.backbones import GRU4Rec, load_backbone
from cramer_peft.recsys.data.catalogue import Catalogue


@pytest.fixture
def stored(tmp_path: Path, make_untrained: Callable[[str], Any]) -> Path:
    make_untrained("gru4rec").save_pretrained(tmp_path)
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


def test_weights_stay_in_memory_once(stored: Path, make_untrained: Callable[[str], Any]) -> None:
    loaded = GRU4Rec.from_pretrained(stored)
    assert all(not value.is_meta for value in loaded.state_dict().values())
    assert loaded.settings == make_untrained("gru4rec").settings
    assert math.isclose(loaded.settings["dropout"], 0.1)
