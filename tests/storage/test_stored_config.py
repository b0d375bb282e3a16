import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from cramer_peft import HashingEncoder, inject_request_masks, load_request_masks, register_request_encoder
from cramer_peft.encoders import encoder as encoders
from cramer_peft.errors import AdapterFileError, BaseModelMismatchError, ConfigError, EncoderError, TargetModuleError
from cramer_peft.storage.files import read_safetensors

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


@pytest.fixture
def saved(make_model, make_config, tmp_path: Path) -> Path:
    """An adapter's folder, without the digest that ties its two files together."""
    folder = tmp_path / "adapter"
    inject_request_masks(make_model(), make_config(generator_width=3)).save_pretrained(folder)
    save_file(read_safetensors(folder / WEIGHTS)[0], folder / WEIGHTS)
    return folder


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("target_modules", "a{99999999999}"),  # OverflowError in re.compile
        ("modules_to_save", ["(a+)+$"]),
        ("modules_to_save", [""]),
        ("modules_to_save", ["out"] * 2000),
        ("generator_width", 2**62),
        ("rank", 2**62),
        ("revision", 3),
        ("auto_mapping", "os"),
        ("task_type", ["CAUSAL_LM"]),
        ("base_model_name_or_path", {}),
        ("peft_version", 1),
        ("strength", 1e300),
        ("default_request", [1e39] * 16),
        ("layers_pattern", "x" * (5 * 2**20)),
    ],
)
def test_impossible_fields(saved, model, snapshot, edit_json, field: str, value: object) -> None:
    before = snapshot(model)
    edit_json(saved / CONFIG, **{field: value})
    with pytest.raises(AdapterFileError, match=r"adapter_config\.json") as caught:
        load_request_masks(model, saved)
    assert len(str(caught.value)) < 5000
    assert before.differences(model) == []


@pytest.mark.parametrize("wanted", ["up", "p", "base_layer", "up.base_layer"])
def test_modules_that_are_masked_cannot_be_saved_whole(saved, model, snapshot, edit_json, wanted: str) -> None:
    before = snapshot(model)
    edit_json(saved / CONFIG, modules_to_save=[wanted])
    with pytest.raises((TargetModuleError, BaseModelMismatchError), match="up"):
        load_request_masks(model, saved)
    assert before.differences(model) == []


@pytest.mark.parametrize("name", ["a" * 300, "a/" * 5000])
def test_a_path_that_no_system_takes_is_refused_as_one(saved, model, edit_json, name: str) -> None:
    edit_json(saved / CONFIG, encoder="transformers", encoder_options={"model_name_or_path": name})
    with pytest.raises(EncoderError, match="names a place"):
        load_request_masks(model, saved)


def test_fields_of_peft_name_nothing_that_is_imported_or_fetched(saved, model, edit_json, x) -> None:
    mapping = {"parent_library": "no_such_library", "base_model_class": "x"}
    edit_json(saved / CONFIG, auto_mapping=mapping, base_model_name_or_path="/nowhere", revision="../x")
    masks = load_request_masks(model, saved)
    assert not torch.equal(masks(x, request="a"), masks(x))


@pytest.mark.parametrize(
    "options",
    [
        {"model_name_or_path": "owner/name", "local_files_only": False},
        {"model_name_or_path": "owner/name", "local_files_only": None},
        {"nested": [{"local_files_only": 0}]},
        {"model_name_or_path": "/etc"},
        {"model_name_or_path": "../other"},
        {"model_name_or_path": "~/model"},
        {"model_name_or_path": "C:\\model"},
        {"model_name_or_path": "https://example.com/model"},
        {"file": "file:///etc/passwd"},
        {"files": ["a", "./b"]},
        {"model_name_or_path": "here"},
    ],
)
def test_no_encoder_uses_the_network_or_a_path_because_a_file_says_so(
    saved, model, edit_json, monkeypatch, tmp_path, x, options
) -> None:
    made = []
    monkeypatch.setattr(encoders, "_FACTORIES", dict(encoders._FACTORIES))
    register_request_encoder("transformers", lambda **given: made.append(given))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    edit_json(saved / CONFIG, encoder="transformers", encoder_options=options)
    with pytest.raises(EncoderError, match=r"because a file says so.*encoder="):
        load_request_masks(model, saved)
    assert made == []
    encoder = HashingEncoder(16)
    encoder.name = "transformers"
    masks = load_request_masks(model, saved, encoder=encoder)  # the caller's own word
    assert masks(x, request="a").shape == (3, 20)
    assert made == []


@pytest.mark.parametrize(
    "options",
    [{"model_name_or_path": "owner/name"}, {"model_name_or_path": "name", "device": "cuda:0", "revision": "v1"}],
)
def test_names_and_plain_options_are_let_through(saved, model, edit_json, options) -> None:
    edit_json(saved / CONFIG, encoder="transformers", encoder_options={**options, "local_files_only": True})
    load_request_masks(model, saved)  # the encoder is made when the first text comes


@pytest.mark.parametrize(
    ("fields", "matched"),
    [
        ({"target_modules": "(u|d).*"}, "down|up"),
        ({"target_modules": "up|down"}, "up|down"),
        ({"target_modules": ["up", "down"], "exclude_modules": ".*out"}, "down|up"),
        ({"target_modules": ["up", "down"], "exclude_modules": ["out"]}, ["up", "down"]),
    ],
)
def test_patterns_with_repeats_give_way_to_the_list(saved, model, edit_json, fields, matched) -> None:
    edit_json(saved / CONFIG, **fields)
    masks = load_request_masks(model, saved)
    config = masks.peft_config["default"]
    assert config.target_modules == matched
    assert sorted(config.masked_modules) == ["down", "up"]


def test_a_listed_module_that_is_not_there_is_named(saved, model, edit_json) -> None:
    edit_json(saved / CONFIG, masked_modules={"up": [16, 8], "../elsewhere": [1, 1]})
    with pytest.raises(BaseModelMismatchError, match=r"missing \.\./elsewhere"):
        load_request_masks(model, saved)


@pytest.mark.parametrize("file", [CONFIG, WEIGHTS])
def test_links_out_of_the_folder_are_refused(saved, model, tmp_path, file: str) -> None:
    (saved / file).rename(tmp_path / file)
    (saved / file).symlink_to(tmp_path / file)
    with pytest.raises(AdapterFileError, match="leads out of its folder"):
        load_request_masks(model, saved)
    (saved / file).unlink()
    (saved / file).symlink_to(file)  # a loop
    with pytest.raises(AdapterFileError):
        load_request_masks(model, saved)
    (saved / file).unlink()
    (saved / "inside").mkdir()
    (tmp_path / file).rename(saved / "inside" / file)
    (saved / file).symlink_to(Path("inside") / file)
    load_request_masks(model, saved)


def test_the_layout_of_the_hugging_face_cache_loads(saved, model, tmp_path) -> None:
    snapshot, blobs = tmp_path / "hub" / "snapshots" / "abc", tmp_path / "hub" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for file in (CONFIG, WEIGHTS):
        (saved / file).rename(blobs / file)
        (snapshot / file).symlink_to(Path("..") / ".." / "blobs" / file)
    load_request_masks(model, snapshot)


@pytest.mark.parametrize("file", [CONFIG, WEIGHTS])
def test_pipes_and_folders_in_place_of_files(saved, model, file: str) -> None:
    (saved / file).unlink()
    (saved / file).mkdir()
    with pytest.raises(AdapterFileError, match="not an ordinary file"):
        load_request_masks(model, saved)
    (saved / file).rmdir()
    os.mkfifo(saved / file)
    with pytest.raises(AdapterFileError, match="not an ordinary file"):  # at once: nobody writes into it
        load_request_masks(model, saved)


def test_files_of_two_saves_are_refused(make_model, make_config, tmp_path, snapshot) -> None:
    for name, strength in (("a", 1.0), ("b", 0.5)):
        inject_request_masks(make_model(), make_config(strength=strength)).save_pretrained(tmp_path / name)
    model = make_model()
    before = snapshot(model)
    (tmp_path / "a" / CONFIG).write_bytes((tmp_path / "b" / CONFIG).read_bytes())
    with pytest.raises(AdapterFileError, match="different saves"):
        load_request_masks(model, tmp_path / "a")
    assert before.differences(model) == []


def test_fields_that_hosts_edit_do_not_make_another_save(make_model, make_config, tmp_path, edit_json) -> None:
    inject_request_masks(make_model(), make_config()).save_pretrained(tmp_path)
    edit_json(tmp_path / CONFIG, base_model_name_or_path="owner/base", revision="v1", task_type="FEATURE_EXTRACTION")
    (tmp_path / CONFIG).write_text(json.dumps(json.loads((tmp_path / CONFIG).read_text()), indent=7))
    load_request_masks(make_model(), tmp_path)


def test_an_adapter_that_is_not_there_cannot_be_saved(model, make_config, tmp_path) -> None:
    masks = inject_request_masks(model, make_config())
    for name in ("../x", "/x", "other"):
        with pytest.raises(ConfigError, match="there is no adapter"):
            masks.save_pretrained(tmp_path / "new", adapter_name=name)
    assert os.listdir(tmp_path) == []
