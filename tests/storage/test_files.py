import json
import os
import stat
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from cramer_peft.errors import AdapterFileError
from cramer_peft.storage import files as io
from cramer_peft.storage.files import atomic_file, read_json, read_safetensors, write_json, write_safetensors


def test_an_interrupted_write_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    write_json(path, {"old": 1})
    old = path.read_bytes()

    def interrupted() -> None:
        with atomic_file(path) as temporary:
            temporary.write_bytes(b"half of the n")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_bytes() == old
    assert os.listdir(tmp_path) == ["file.json"]


@pytest.mark.parametrize("call", ["replace", "fsync"])
def test_a_failing_rename_leaves_the_old_file_and_no_other(tmp_path: Path, monkeypatch, call: str) -> None:
    path = tmp_path / "file.safetensors"
    write_safetensors(path, {"a": torch.ones(2)}, {})

    def fail(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(io.os, call, fail)
    with pytest.raises(OSError, match="no space"):
        write_safetensors(path, {"a": torch.zeros(2)}, {})
    monkeypatch.undo()
    assert torch.equal(read_safetensors(path)[0]["a"], torch.ones(2))
    assert os.listdir(tmp_path) == ["file.safetensors"]


def test_values_that_json_lacks_never_reach_the_file(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    write_json(path, {"a": 1})
    for bad in ({"a": float("nan")}, {"a": object()}):
        with pytest.raises((TypeError, ValueError)):
            write_json(path, bad)
    assert read_json(path) == {"a": 1}
    assert os.listdir(tmp_path) == ["file.json"]


def test_files_have_ordinary_permissions(tmp_path: Path) -> None:
    write_json(tmp_path / "ours.json", {})
    (tmp_path / "theirs.json").write_text("{}")
    ours, theirs = (stat.S_IMODE((tmp_path / n).stat().st_mode) for n in ("ours.json", "theirs.json"))
    assert ours == theirs


def test_folders_are_made(tmp_path: Path) -> None:
    write_json(tmp_path / "a" / "b" / "c.json", {"ü": [1, None]})
    assert read_json(tmp_path / "a" / "b" / "c.json") == {"ü": [1, None]}


@pytest.mark.parametrize("content", [b"", b"{", b'{"a": 1', b"[1, 2]", b"3", b"\xff\xfe{}", b"[" * 100_000])
def test_what_is_not_a_json_object_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "adapter_config.json"
    path.write_bytes(content)
    with pytest.raises(AdapterFileError, match=r"adapter_config\.json"):
        read_json(path)


def test_a_huge_json_file_is_not_read(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(io, "_MAX_JSON_BYTES", 10)
    (tmp_path / "a.json").write_text(json.dumps({"a": "x" * 20}))
    with pytest.raises(AdapterFileError, match="larger"):
        read_json(tmp_path / "a.json")


@pytest.mark.parametrize(
    ("limit", "content"),
    [
        ("_MAX_JSON_VALUES", b'{"a": ["b", "c", "d"]}'),
        ("_MAX_JSON_VALUES", rb'{"a\\": "b\\", "c\\": "d\\", "e\\": "f\\", "g\\": "h\\"}'),
        ("_MAX_JSON_VALUES", b'{"a": [1, 2.5, 3, 4]}'),
        ("_MAX_JSON_VALUES", b'{"a": [[[]]]}'),
    ],
)
def test_json_of_too_many_values_is_refused(tmp_path: Path, monkeypatch, limit: str, content: bytes) -> None:
    (tmp_path / "a.json").write_bytes(content)
    read_json(tmp_path / "a.json")
    monkeypatch.setattr(io, limit, 3)
    with pytest.raises(AdapterFileError, match="more than 3"):
        read_json(tmp_path / "a.json")


def test_a_header_of_too_many_tensors_is_refused(tmp_path: Path, monkeypatch) -> None:
    write_safetensors(tmp_path / "a.safetensors", {name: torch.ones(1) for name in "abc"}, {"texts": '["a", "b"]' * 9})
    assert len(read_safetensors(tmp_path / "a.safetensors")[0]) == 3
    monkeypatch.setattr(io, "_MAX_TENSORS", 2)
    with pytest.raises(AdapterFileError, match="3 tensors, more than 2"):
        read_safetensors(tmp_path / "a.safetensors")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.bool])
def test_safetensors_round_trip(tmp_path: Path, dtype: torch.dtype) -> None:
    tensors = {"a": torch.ones(2, 3, dtype=dtype).T, "b": torch.zeros(0, dtype=dtype)}
    write_safetensors(tmp_path / "x.safetensors", tensors, {"note": "ü"})
    found, metadata = read_safetensors(tmp_path / "x.safetensors")
    assert {name: value.dtype for name, value in found.items()} == {"a": dtype, "b": dtype}
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)
    assert metadata == {"format": "pt", "note": "ü"}


def test_tensors_outlive_the_file(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    write_safetensors(path, {"a": torch.ones(1000)}, {})
    found, _ = read_safetensors(path)
    with open(path, "r+b") as file:
        file.truncate(8)
    assert torch.equal(found["a"], torch.ones(1000))


def test_damaged_safetensors_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    write_safetensors(path, {"a": torch.ones(100)}, {})
    whole = path.read_bytes()
    damaged = [
        b"",
        whole[:4],
        whole[:20],
        whole[:-1],
        whole + b"0",
        b"\xff" * 64,
        b"PK\x03\x04" + whole,
        b"\x80\x04." * 9,
    ]
    for content in damaged:
        path.write_bytes(content)
        with pytest.raises(AdapterFileError, match=r"x\.safetensors"):
            read_safetensors(path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_in_a_file_is_refused_and_named(tmp_path: Path, value: float) -> None:
    save_file({"fine": torch.ones(2), "broken": torch.tensor([0.0, value])}, tmp_path / "x.safetensors")
    with pytest.raises(AdapterFileError, match="'broken'"):
        read_safetensors(tmp_path / "x.safetensors")


def test_nan_in_eight_bits_is_refused_too(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2).to(torch.float8_e4m3fn)}, tmp_path / "x.safetensors")
    assert torch.equal(read_safetensors(tmp_path / "x.safetensors")[0]["a"].float(), torch.ones(2))
    save_file({"a": torch.tensor([0.0, float("nan")]).to(torch.float8_e4m3fn)}, tmp_path / "x.safetensors")
    with pytest.raises(AdapterFileError, match="'a'"):
        read_safetensors(tmp_path / "x.safetensors")


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(AdapterFileError, match=r"a\.json does not exist"):
        read_json(tmp_path / "a.json")
    with pytest.raises(AdapterFileError, match=r"a\.safetensors does not exist"):
        read_safetensors(tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    "content",
    [
        b'{"a": NaN}',
        b'{"a": -Infinity}',
        b'{"a": 1e400}',
        b'{"a": 1, "a": 2}',
        b'{"a": ' + b"1" * 5000 + b"}",
        b'{"a": ' + b"9" * 20 + b"}",
        b'{"a": "\\ud800"}',
        b'{"\\udc00": 1}',
        b'{"a": ' + b"[" * 40 + b"]" * 40 + b"}",
        b'\xef\xbb\xbf{"a": 1}',
        b'{"a": "\0"}',
        b'{"a": 1}\0',
        '{"a": 1}'.encode("utf-16"),
    ],
)
def test_json_that_readers_disagree_on_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(AdapterFileError, match=r"a\.json is not readable JSON"):
        read_json(path)


def test_surrogate_pairs_and_deep_enough_json_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(b'{"a": "\\ud83e\\udd8a", "b": ' + b"[" * 30 + b"]" * 30 + b', "c": -9223372036854775808}')
    assert read_json(path)["a"] == "🦊"
    assert read_json(path)["c"] == -(2**63)


def safetensors_bytes(header: str, data: bytes = b"\0" * 8) -> bytes:
    return len(header).to_bytes(8, "little") + header.encode() + data


@pytest.mark.parametrize(
    "entry",
    [
        '{"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}',
        '{"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]}',
        '{"dtype": "F32", "shape": [2.0], "data_offsets": [0, 8]}',
        '{"dtype": "F32", "shape": [true, 2], "data_offsets": [0, 8]}',
        '{"dtype": "F32", "shape": [1, 2], "data_offsets": [8, 0]}',
        '{"dtype": "F4", "shape": [16], "data_offsets": [0, 8]}',
        '{"dtype": "F32", "shape": [4611686018427387904, 4], "data_offsets": [0, 8]}',
        '{"dtype": "F32", "shape": [2], "data_offsets": [0, 8], "x": 1}',
        '{"dtype": ["F32"], "shape": [2], "data_offsets": [0, 8]}',
        '{"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}, "a": {"dtype": "F32", "shape": [2], "data_offsets": '
        "[0, 8]}",
        '{"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}, "b": {"dtype": "F32", "shape": [1], "data_offsets": '
        "[4, 8]}",
        '{"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}',
        '{"dtype": "F32", "shape": [' + ", ".join(["1"] * 40) + ', 2], "data_offsets": [0, 8]}',
        "[]",
    ],
)
def test_headers_that_lie_are_refused_before_a_tensor_is_read(tmp_path: Path, entry: str, monkeypatch) -> None:
    monkeypatch.setattr(io, "safe_open", None)
    path = tmp_path / "x.safetensors"
    path.write_bytes(safetensors_bytes(f'{{"a": {entry}}}'))
    with pytest.raises(AdapterFileError, match=r"x\.safetensors is not a readable safetensors file"):
        read_safetensors(path)


def test_a_header_alone_gives_the_layout(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "x", {"a": torch.ones(2, 3), "b": torch.zeros(0, dtype=torch.int64)}, {"note": "n"})
    layout, metadata = io.read_layout(tmp_path / "x")
    assert layout == {"a": ((2, 3), torch.float32), "b": ((0,), torch.int64)}
    assert metadata == {"format": "pt", "note": "n"}
    with pytest.raises(AdapterFileError, match="larger than the 10 bytes"):
        io.read_layout(tmp_path / "x", max_bytes=10)


def test_numbers_that_float32_cannot_hold_are_refused(tmp_path: Path) -> None:
    save_file({"a": torch.tensor([1e300], dtype=torch.float64)}, tmp_path / "x.safetensors")
    with pytest.raises(AdapterFileError, match="'a'"):
        read_safetensors(tmp_path / "x.safetensors")


def test_odd_truth_values_are_refused() -> None:
    with pytest.raises(AdapterFileError, match="'a' is bool"):
        io.check_finite({"a": torch.tensor([7], dtype=torch.uint8).view(torch.bool)}, "here")


def test_stale_temporary_files_go_and_young_ones_stay(tmp_path: Path) -> None:
    stale, young = (tmp_path / f".a.json.{digit * 16}.tmp" for digit in "01")
    others = [tmp_path / name for name in (".b.json.0000000000000000.tmp", ".a.json.tmp", "a.json.tmp")]
    for path in (stale, young, *others):
        path.write_bytes(b"")
        os.utime(path, (0, 0))
    os.utime(young)
    write_json(tmp_path / "a.json", {})
    assert sorted(os.listdir(tmp_path)) == sorted(["a.json", young.name, *(path.name for path in others)])


def test_names_as_long_as_can_be(tmp_path: Path) -> None:
    name = "ü" * 125 + ".json"
    write_json(tmp_path / name, {"a": 1})
    assert read_json(tmp_path / name) == {"a": 1}
    assert os.listdir(tmp_path) == [name]


def test_paths_may_be_texts(tmp_path: Path) -> None:
    path = str(tmp_path / "new" / "x.json")
    write_json(path, {"a": 1})
    assert read_json(path) == {"a": 1}
