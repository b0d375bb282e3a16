"""Settings from a JSON file: every field is checked before anything runs."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from benchmark.config_file import read_config

from cramer_peft.errors import ConfigError


@dataclass(frozen=True)
class Settings:
    name: str = "a"
    names: tuple[str, ...] = ()
    counts: tuple[int, ...] = field(default=(), metadata={"least": 1})
    steps: int | None = field(default=None, metadata={"least": 1})
    minutes: float | None = field(default=None, metadata={"least": 0})
    quick: bool = False


def write(folder: Path, text: str) -> Path:
    path = folder / "settings.json"
    path.write_text(text)
    return path


def test_fields_are_read_and_the_others_keep_their_defaults(tmp_path: Path) -> None:
    values = {"names": ["b", "c"], "counts": [3], "steps": 5, "minutes": 2, "quick": True}
    found = read_config(write(tmp_path, json.dumps(values)), Settings)
    assert found == Settings("a", ("b", "c"), (3,), 5, 2, True)
    assert read_config(write(tmp_path, "{}"), Settings) == Settings()
    assert read_config(write(tmp_path, '{"steps": null}'), Settings).steps is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"stpes": 5}', "found the field 'stpes', expected one of name, names, counts, steps, minutes, quick"),
        ('{"steps": "5"}', "steps: found '5', expected a whole number"),
        ('{"steps": 5.0}', r"steps: found 5\.0, expected a whole number"),
        ('{"steps": true}', "steps: found True, expected a whole number"),
        ('{"steps": 0}', "steps: found 0, expected a whole number of at least 1"),
        ('{"minutes": "soon"}', "minutes: found 'soon', expected a number"),
        ('{"minutes": -1}', "minutes: found -1, expected a number of at least 0"),
        ('{"quick": 1}', "quick: found 1, expected true or false"),
        ('{"name": null}', "name: found None, expected text"),
        ('{"names": "b"}', "names: found 'b', expected a list of texts"),
        ('{"names": ["b", 3]}', r"names\[1\]: found 3, expected text"),
        ('{"counts": [1, 0]}', r"counts\[1\]: found 0, expected a whole number of at least 1"),
        ("[1]", r"found \[1\], expected a JSON object of settings"),
        ("{", "not readable as JSON"),
        ('{"steps": 5, "steps": 6}', "a key is there twice"),
    ],
)
def test_a_wrong_field_is_named_with_what_was_found_and_expected(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=rf"settings\.json: {message}|settings\.json: not .*{message}"):
        read_config(write(tmp_path, text), Settings)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent\.json does not exist. Expected a JSON file of settings"):
        read_config(tmp_path / "absent.json", Settings)
