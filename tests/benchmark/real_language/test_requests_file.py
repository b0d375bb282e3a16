import json
from pathlib import Path
from typing import Any

import pytest
from benchmark.real_language import requests_file
from benchmark.real_language.requests_file import RedialRequest, read_redial

from cramer_peft.errors import DataError

GOOD: dict[str, Any] = {"dialogue": "7", "history": ["Heat (1995)"], "request": "like [movie]", "target": "Up (2009)"}


def write(path: Path, *records: object) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def test_reading(tmp_path: Path) -> None:
    path = write(tmp_path / "r.jsonl", GOOD, {**GOOD, "history": [], "request": "", "target": "Amélie (2001)"})
    assert read_redial(path) == (
        RedialRequest("7", ("Heat (1995)",), "like [movie]", "Up (2009)"),
        RedialRequest("7", (), "", "Amélie (2001)"),
    )
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n").removesuffix(b"\r\n"))
    assert len(read_redial(path)) == 2


def test_what_was_said_with_its_titles(tmp_path: Path) -> None:
    said = {**GOOD, "said": "like Heat", "names_target": False}
    path = write(tmp_path / "r.jsonl", said, {**said, "said": "Up again", "names_target": True})
    assert read_redial(path) == (RedialRequest("7", ("Heat (1995)",), "like Heat", "Up (2009)"),)
    path = write(tmp_path / "r.jsonl", {**said, "names_target": 1})
    with pytest.raises(DataError, match="names_target: found 1, expected true or false"):
        read_redial(path)
    path = write(tmp_path / "r.jsonl", {**GOOD, "said": "like Heat"})
    with pytest.raises(DataError, match=r"an object with exactly .*said, names_target"):
        read_redial(path)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ([1], r"found \[1\], expected an object with exactly dialogue, history, request, target"),
        ({"dialogue": "7"}, r"found \['dialogue'\], expected an object"),
        ({**GOOD, "more": 1}, r"found \['dialogue', .*\], expected an object with exactly"),
        ({**GOOD, "dialogue": 7}, "dialogue: found 7, expected text that is not blank"),
        ({**GOOD, "target": " "}, "target: found ' ', expected text that is not blank"),
        ({**GOOD, "request": None}, "request: found None, expected text of at most"),
        ({**GOOD, "request": "x" * 10_001}, "request: found 'x.*at most 10000 characters"),
        ({**GOOD, "history": "Heat"}, "history: expected a list of at most 1000 titles"),
        ({**GOOD, "history": ["a"] * 1001}, "history: expected a list of at most 1000 titles"),
        ({**GOOD, "history": ["a", 5]}, r"history\[1\]: found 5"),
        ({**GOOD, "history": ["a", ""]}, r"history\[1\]: found ''"),
    ],
)
def test_bad_records(tmp_path: Path, record: object, message: str) -> None:
    path = write(tmp_path / "r.jsonl", GOOD, record)
    with pytest.raises(DataError, match=rf"r\.jsonl, line 2: {message}"):
        read_redial(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty"),
        (b"{}\n\n", r"line 1: found \[\]"),
        (b"\n", "line 1: not a JSON object"),
        (b"\xff\n", "line 1: not a JSON object in UTF-8"),
        (b'{"dialogue": "1", "dialogue": "2"}', "a key is there twice"),
        (b"[" * 100_000, "line 1: not a JSON object"),
    ],
)
def test_files_that_are_something_else(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "r.jsonl"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_redial(path)


def test_no_file_and_too_large_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="does not exist"):
        read_redial(tmp_path / "absent")
    with pytest.raises(DataError, match="not an ordinary file"):
        read_redial(tmp_path)
    monkeypatch.setattr(requests_file, "MAX_REDIAL_BYTES", 20)
    with pytest.raises(DataError, match="larger than the 20 bytes"):
        read_redial(write(tmp_path / "r.jsonl", GOOD))
