import json
from pathlib import Path
from typing import Any

import pytest

from cramer_peft import RequestMaskConfig
from cramer_peft.errors import ConfigError, DataError
from cramer_peft.recsys.commands.config_file import Settings, TrainingSettings, read_settings
from cramer_peft.recsys.data.own_data import Columns
from cramer_peft.recsys.training.request_batches import GeneratorOptions


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "settings.json"


def read(path: Path, values: Any) -> Settings:
    path.write_text(json.dumps(values))
    return read_settings(path)


def test_each_section_arrives(path: Path) -> None:
    found = read(
        path,
        {
            "columns": {"title_column": "name", "min_attribute_items": 2},
            "masks": {"gate": "low_rank", "rank": 2, "target_modules": ["head"], "strength": 1, "encoder_options": {}},
            "generator": {"positions": 4, "attributes": ["War", "Drama"], "floor": 0.5, "learning_rate": 1e-3},
            "training": {"batch_size": 8, "negatives": 16, "checkpoint_steps": 5, "users": 9},
        },
    )
    assert found.columns == Columns(title_column="name", min_attribute_items=2)
    assert RequestMaskConfig(**found.masks).rank == 2
    assert found.training == TrainingSettings(8, 16, 5, 9)
    expected = GeneratorOptions(positions=4, attributes=("War", "Drama"), floor=0.5, learning_rate=1e-3)
    assert found.generator_options(None, None) == expected
    assert found.generator_options(None, 7) == GeneratorOptions(**{**vars(expected), "steps": 7})


def test_fields_beside_the_sections_are_those_of_the_masks(path: Path) -> None:
    assert read(path, {"gate": "scale", "encoder": "hashing"}).masks == {"gate": "scale", "encoder": "hashing"}
    both = read(path, {"gate": "scale", "masks": {"encoder": "hashing"}, "training": {"users": 2}})
    assert both.masks == {"gate": "scale", "encoder": "hashing"}
    with pytest.raises(ConfigError, match=r'gate stands in the section "masks" and beside it\. Remove one'):
        read(path, {"gate": "scale", "masks": {"gate": "scale"}})


def test_what_is_left_out_is_the_default(path: Path) -> None:
    assert read(path, {}) == Settings()
    found = read(path, {"columns": {}, "generator": {}})
    assert found.columns is None
    assert found.generator_options("sasrec", None) is None
    options = found.generator_options("bert4rec", 3)
    assert options is not None
    assert (options.steps, options.positions) == (3, 2)  # the backbone's own


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"gait": "scale"}, r"masks: unknown field 'gait', expected one of .*gate.*Did you mean 'gate'"),
        ({"colums": {}}, r"unknown field 'colums'.*Did you mean 'columns'"),
        ({"generator": {"step": 3}}, r"generator: unknown field 'step'.*Did you mean 'steps'"),
        ({"training": 3}, r"training: found 3, expected an object"),
        ({"masks": {"rank": "four"}}, r"masks: rank: found 'four', expected a whole number or null"),
        ({"masks": {"rank": True}}, r"masks: rank: found True, expected a whole number or null"),
        ({"masks": {"target_modules": [1]}}, r"target_modules: found \[1\], expected a list, each a text or a text"),
        ({"masks": {"normalize_requests": 1}}, r"normalize_requests: found 1, expected true or false"),
        ({"masks": {"gate": "wide"}}, r"masks: gate must be one of .*'wide'"),
        ({"masks": {"gate": "scale", "rank": 2}}, r"masks: rank belongs to gate='low_rank'"),
        ({"generator": {"steps": 1.5}}, r"generator: steps: found 1\.5, expected a whole number"),
        ({"generator": {"steps": 0}}, r"generator: steps: found 0, expected a number from 1"),
        ({"generator": {"random_share": 1.5}}, r"random_share: found 1\.5, expected a number from 0 to 1"),
        ({"generator": {"random_share": 0.9}}, r"random_share \+ empty_share: found 0\.9 \+ 0\.2, expected at most 1"),
        ({"generator": {"attributes": "War"}}, r"attributes: found 'War', expected a list, each a text or null"),
        ({"columns": {"min_attribute_items": 0}}, r"min_attribute_items: found 0, expected 1 or more"),
        ({"columns": {"title_column": 3}}, r"title_column: found 3, expected a text or null"),
        ({"training": {"batch_size": 0}}, r"batch_size: found 0, expected 1 or more"),
        ({"training": {"users": -1}}, r"users: found -1, expected 1 or more"),
        ({"training": {"checkpoint_steps": None}}, r"checkpoint_steps: found None, expected a whole number"),
    ],
)
def test_what_cannot_be_is_refused_by_name(path: Path, values: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        read(path, values)
    assert "settings.json" in str(caught.value)


def test_files_that_are_none(path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        read_settings(path)
    path.write_text("{")
    with pytest.raises(DataError, match="not a JSON file"):
        read_settings(path)
    with pytest.raises(DataError, match="found a JSON list, expected an object"):
        read(path, [])


def test_the_least_rating_may_be_any_number(path: Path) -> None:
    for value in (-10, 0, 3.5):
        assert read(path, {"columns": {"min_rating": value}}).columns == Columns(min_rating=value)
    with pytest.raises(ConfigError, match="columns: min_rating: found 'high', expected a number or null"):
        read(path, {"columns": {"min_rating": "high"}})
