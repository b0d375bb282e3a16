import json
import os
from functools import partial
from pathlib import Path

import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import save_file
from torch import nn

from cramer_peft import HashingEncoder, PrecomputedEncoder, inject_request_masks, load_request_masks
from cramer_peft.encoders import encoder as encoders
from cramer_peft.errors import AdapterFileError, BaseModelMismatchError, EncoderError
from cramer_peft.storage import files as io
from cramer_peft.storage.adapter_files import without_adapter_name
from cramer_peft.storage.files import read_safetensors

REQUESTS = ["more horror", None, "nothing sad"]


@pytest.fixture
def saved(make_model, make_config, tmp_path: Path) -> Path:
    """An adapter's folder."""
    folder = tmp_path / "adapter"
    inject_request_masks(make_model(), make_config(generator_width=3)).save_pretrained(folder)
    return folder


def rewrite(folder: Path, change) -> None:
    path = folder / "adapter_model.safetensors"
    tensors, metadata = read_safetensors(path)
    change(tensors)
    save_file(tensors, path, metadata)


@pytest.mark.parametrize("width", [None, 3])
@pytest.mark.parametrize("saver", ["ours", "peft"])
@pytest.mark.parametrize("loader", ["ours", "peft"])
def test_round_trip_across_doors(make_model, make_config, gate, width, saver, loader, x, tmp_path) -> None:
    config = make_config(gate, generator_width=width)
    if saver == "ours":
        first = inject_request_masks(make_model(), config)
        handle = first
    else:
        first = get_peft_model(make_model(), config).eval()
        handle = first.base_model
    first.save_pretrained(tmp_path)
    gates, output = handle.mask_state(REQUESTS), first(x, request=REQUESTS)
    torch.manual_seed(99)  # a generator that is not loaded would now start elsewhere
    if loader == "ours":
        second = load_request_masks(make_model(), tmp_path)
        handle = second
    else:
        second = PeftModel.from_pretrained(make_model(), str(tmp_path))
        handle = second.base_model
    again = handle.mask_state(REQUESTS)
    for name, parts in gates.tensors.items():
        for part, value in parts.items():
            assert torch.equal(again.tensors[name][part], value)
    assert torch.equal(second(x, request=REQUESTS), output)
    assert not torch.equal(output, second(x))


def test_our_folder_holds_its_files_without_the_adapters_name(model, make_config, tmp_path) -> None:
    masks = inject_request_masks(model, make_config(generator_width=3), adapter_name="evening")
    masks.save_pretrained(str(tmp_path / "deep" / "folder"))
    folder = tmp_path / "deep" / "folder"
    assert sorted(os.listdir(folder)) == ["README.md", "adapter_config.json", "adapter_model.safetensors"]
    tensors, metadata = read_safetensors(folder / "adapter_model.safetensors")
    start = "base_model.request_mask_generator."
    assert sorted(tensors) == [start + k for k in ("head.bias", "head.weight", "trunk.0.bias", "trunk.0.weight")]
    assert metadata["adapter"] == "evening"
    config = json.loads((folder / "adapter_config.json").read_text())
    assert metadata["base_fingerprint"] == config["base_fingerprint"]
    assert config["masked_modules"] == {"down": [8, 16], "up": [16, 8]}
    assert config["peft_type"] == "REQUEST_MASK"


@pytest.mark.parametrize("name", ["default", "b", "weight", "generator", "request_mask_generator", "0a", "a b", "ü"])
def test_keys_do_not_hold_the_adapters_name(name: str) -> None:
    for rest in ("head.weight", "trunk.0.weight"):
        key = f"request_mask_generator.{name}.{rest}"
        assert without_adapter_name(key, name) == f"request_mask_generator.{rest}"
        assert without_adapter_name("base_model." + key, name) == f"base_model.request_mask_generator.{rest}"
        assert without_adapter_name(f"model.{name}.{rest}", name) == f"model.{name}.{rest}"


@pytest.mark.parametrize("name", ["weight", "generator", "request_mask_generator", "bias"])
@pytest.mark.parametrize("door", ["ours", "peft"])
def test_odd_adapter_names_round_trip(make_model, make_config, name: str, door: str, x, tmp_path) -> None:
    config = make_config(generator_width=3)
    if door == "ours":
        masks = inject_request_masks(make_model(), config, adapter_name=name)
        masks.save_pretrained(tmp_path)
        again = load_request_masks(make_model(), tmp_path, adapter_name=name)
    else:
        masks = get_peft_model(make_model(), config, adapter_name=name).eval()
        masks.save_pretrained(str(tmp_path))
        again = PeftModel.from_pretrained(make_model(), str(tmp_path / name), adapter_name=name)
    assert torch.equal(again(x, request=REQUESTS), masks(x, request=REQUESTS))


def test_a_loaded_adapter_is_for_use_unless_told(make_model, saved) -> None:
    masks = load_request_masks(make_model(), saved)
    assert not any(p.requires_grad for p in masks.parameters())
    masks = load_request_masks(make_model(), saved, is_trainable=True)
    assert all(p.requires_grad for p in masks.generator.parameters())
    assert not masks.peft_config["default"].inference_mode


def test_modules_to_save(make_model, make_config, x, tmp_path) -> None:
    masks = inject_request_masks(make_model(), make_config(modules_to_save=["out"]))
    with torch.no_grad():
        masks.model.out.modules_to_save["default"].weight.add_(1)
    masks.save_pretrained(tmp_path)
    torch.manual_seed(99)
    for again in (load_request_masks(make_model(), tmp_path), PeftModel.from_pretrained(make_model(), str(tmp_path))):
        assert torch.equal(again(x, request=REQUESTS), masks(x, request=REQUESTS))
        assert not torch.equal(again(x), make_model()(x))


def test_modules_to_save_are_found_as_peft_finds_them(make_config, tmp_path) -> None:
    def make() -> torch.nn.Module:
        torch.manual_seed(0)
        model = torch.nn.ModuleDict({"a": torch.nn.Linear(2, 2), "readout": torch.nn.Linear(2, 2)})
        model["out"] = torch.nn.Linear(2, 2)
        return model

    masks = inject_request_masks(make(), make_config(target_modules=["a"], modules_to_save=["out"]))
    masks.save_pretrained(tmp_path)
    again = load_request_masks(make(), tmp_path)
    assert list(again.state_dict()) == list(masks.state_dict())


@pytest.mark.parametrize("wanted", ["all-linear", "every name", "all but one", "the ups"])
def test_twenty_and_more_modules_can_be_saved(make_config, wanted: str, tmp_path) -> None:
    """PEFT condenses long lists of target modules, into a set."""

    class Block(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = torch.nn.Linear(3, 4), torch.nn.Linear(4, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.down(self.up(x))

    def make() -> torch.nn.Module:
        torch.manual_seed(0)
        return torch.nn.Sequential(*(Block() for _ in range(21)))

    names = [f"{i}.{name}" for i in range(21) for name in ("up", "down")]
    chosen = {"every name": names, "all but one": names[:-1], "the ups": names[::2]}.get(wanted, wanted)
    expected = names if wanted == "all-linear" else chosen
    masks, x = inject_request_masks(make(), make_config(target_modules=chosen)), torch.randn(2, 3)
    assert list(masks.peft_config["default"].masked_modules) == sorted(expected)
    masks.save_pretrained(tmp_path)
    for again in (load_request_masks(make(), tmp_path), PeftModel.from_pretrained(make(), str(tmp_path))):
        assert torch.equal(again(x, request=["a", None]), masks(x, request=["a", None]))


@pytest.mark.parametrize("file", ["adapter_config.json", "adapter_model.safetensors"])
def test_an_interrupted_save_keeps_the_old_adapter(saved, make_model, x, file: str, monkeypatch) -> None:
    masks = load_request_masks(make_model(), saved, is_trainable=True)
    old = {name: (saved / name).read_bytes() for name in os.listdir(saved)}
    with torch.no_grad():
        masks.generator.head.weight.add_(1)
    real = os.replace

    def fail(source: object, target: Path) -> None:
        if target.name == file:
            raise KeyboardInterrupt
        real(source, target)

    monkeypatch.setattr(io.os, "replace", fail)
    with pytest.raises(KeyboardInterrupt):
        masks.save_pretrained(saved)
    assert sorted(os.listdir(saved)) == sorted(old)
    assert (saved / file).read_bytes() == old[file]


@pytest.mark.parametrize("file", ["adapter_config.json", "adapter_model.safetensors"])
def test_missing_and_truncated_files(saved, model, snapshot, file: str) -> None:
    before, whole = snapshot(model), (saved / file).read_bytes()
    for content in (whole[: len(whole) // 2], whole[:10], b"", b"\x80\x04\x95garbage"):
        (saved / file).write_bytes(content)
        with pytest.raises(AdapterFileError, match=file.replace(".", r"\.")):
            load_request_masks(model, saved)
    (saved / file).unlink()
    with pytest.raises(AdapterFileError, match="does not exist"):
        load_request_masks(model, saved)
    assert before.differences(model) == []


def test_bin_files_are_not_read(saved, model) -> None:
    path = saved / "adapter_model.safetensors"
    torch.save(read_safetensors(path)[0], saved / "adapter_model.bin")
    path.unlink()
    with pytest.raises(AdapterFileError, match=r"adapter_model\.safetensors does not exist"):
        load_request_masks(model, saved)


HEAD = "base_model.request_mask_generator.head"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda t: t.pop(f"{HEAD}.bias"), rf"missing {HEAD}\.bias"),
        (lambda t: t.update(other=torch.zeros(1)), "unexpected other"),
        (
            lambda t: t.update({f"{HEAD}.weight": t[f"{HEAD}.weight"][:-1].clone()}),
            rf"{HEAD}\.weight has shape \(191, 3\), expected \(192, 3\)",
        ),
        (lambda t: t[f"{HEAD}.weight"].fill_(float("nan")), rf"{HEAD}\.weight.*NaN"),
        (
            lambda t: t.update({f"{HEAD}.odd": t.pop(f"{HEAD}.bias")}),
            rf"missing {HEAD}\.bias; unexpected {HEAD}\.odd",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_listed(saved, model, snapshot, change, named: str) -> None:
    before = snapshot(model)
    rewrite(saved, change)
    with pytest.raises(AdapterFileError, match=named):
        load_request_masks(model, saved)
    assert before.differences(model) == []


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"new_field": 1}, "new_field"),
        ({"gate": "other"}, "gate"),
        ({"gate": ["low_rank"]}, "gate"),
        ({"rank": 0}, "rank"),
        ({"rank": "4"}, "rank"),
        ({"strength": None}, "strength"),
        ({"strength": "1"}, "strength"),
        ({"peft_type": "LORA"}, "LORA"),
        ({"peft_type": None}, "peft_type"),
        ({"task_type": "MAKE_COFFEE"}, "MAKE_COFFEE"),
        ({"target_modules": "("}, "target_modules"),
        ({"target_modules": 3}, "target_modules"),
        ({"target_modules": None}, "target_modules"),
        ({"masked_modules": None}, "masked_modules"),
        ({"masked_modules": {"up": [16, 8, 1]}}, "masked_modules"),
        ({"request_dim": None}, "request_dim"),
        ({"encoder_options": [1]}, "encoder_options"),
        ({"inference_mode": "yes"}, "inference_mode"),
    ],
)
def test_fields_that_do_not_fit_are_named(saved, model, snapshot, edit_json, change, named: str) -> None:
    before = snapshot(model)
    edit_json(saved / "adapter_config.json", **change)
    with pytest.raises(AdapterFileError, match=rf"(?s)adapter_config\.json.*{named}"):
        load_request_masks(model, saved)
    assert before.differences(model) == []


@pytest.mark.parametrize(
    "change", [{"rank": 3}, {"generator_width": 4}, {"request_dim": 17}, {"generator_width": None}]
)
def test_a_configuration_of_other_tensors_is_refused(saved, model, snapshot, edit_json, change) -> None:
    before = snapshot(model)
    edit_json(saved / "adapter_config.json", **change)
    with pytest.raises((AdapterFileError, EncoderError), match=r"does not fit|width 16"):
        load_request_masks(model, saved)
    assert before.differences(model) == []


def test_another_base_model_is_refused_unless_told(saved, make_model, snapshot, x) -> None:
    other = make_model(seed=3)
    before, frozen = snapshot(other), other(x)
    with pytest.raises(BaseModelMismatchError, match="sha256"):
        load_request_masks(other, saved)
    assert before.differences(other) == []
    masks = load_request_masks(other, saved, check_base=False)
    assert not torch.equal(masks(x, request="more horror"), frozen)
    # What is saved from there is made for the weights that it sits on.
    assert (
        masks.peft_config["default"].base_fingerprint
        != json.loads((saved / "adapter_config.json").read_text())["base_fingerprint"]
    )


def test_other_modules_are_refused_even_when_told(saved, model) -> None:
    model.up = torch.nn.Linear(8, 12)
    with pytest.raises(BaseModelMismatchError, match=r"up has \[12, 8\], expected \[16, 8\]"):
        load_request_masks(model, saved, check_base=False)


def test_peft_checks_the_base_too(saved, make_model) -> None:
    with pytest.raises(BaseModelMismatchError, match="sha256"):
        PeftModel.from_pretrained(make_model(seed=3), str(saved))


def test_another_encoder_is_refused(saved, model, snapshot, x) -> None:
    before = snapshot(model)
    with pytest.raises(EncoderError, match="'hashing', found 'precomputed'"):
        load_request_masks(model, saved, encoder=PrecomputedEncoder({"a": torch.zeros(16)}))
    with pytest.raises(EncoderError, match=r"width 8.*request_dim=16"):
        load_request_masks(model, saved, encoder=HashingEncoder(8))
    assert before.differences(model) == []
    masks = load_request_masks(model, saved, encoder=HashingEncoder(16))
    assert not torch.equal(masks(x, request="a"), masks(x))


def test_an_encoder_that_is_not_registered_here_is_named(saved, model, monkeypatch) -> None:
    monkeypatch.delitem(encoders._FACTORIES, "hashing")
    with pytest.raises(EncoderError, match="'hashing', which is not registered"):
        load_request_masks(model, saved)


def test_an_encoder_of_another_width_in_the_file_is_refused(saved, model, edit_json, x) -> None:
    edit_json(saved / "adapter_config.json", encoder_options={"dim": 8})
    save_file(read_safetensors(saved / "adapter_model.safetensors")[0], saved / "adapter_model.safetensors")
    masks = load_request_masks(model, saved)  # the encoder is made when the first text comes
    frozen = masks(x)
    with pytest.raises(EncoderError, match=r"width 8.*request_dim=16"):
        masks(x, request="a")
    assert torch.equal(masks(x), frozen)
    assert masks(x, request=torch.randn(3, 16)).shape == frozen.shape


def test_ready_vectors_need_no_encoder(make_model, make_config, x, tmp_path) -> None:
    masks = inject_request_masks(make_model(), make_config(request_dim=5))
    masks.save_pretrained(tmp_path)
    again = load_request_masks(make_model(), tmp_path)
    vectors = torch.randn(3, 5)
    assert torch.equal(again(x, request=vectors), masks(x, request=vectors))
    with pytest.raises(EncoderError, match=r"no request encoder \(request_dim=5\)"):
        again(x, request="a text")


@pytest.mark.parametrize("file", [0, 1])
def test_an_error_while_saving_leaves_the_old_adapter(
    file: int, saved: Path, model, monkeypatch: pytest.MonkeyPatch
) -> None:
    def files() -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in saved.iterdir()}

    masks, before = load_request_masks(model, saved), files()
    masks.peft_config["default"].strength = 0.5
    syncs, sync = iter(range(100)), os.fsync

    def full(handle: int) -> None:
        if next(syncs) == file:
            raise OSError("no space left on the device")
        sync(handle)

    monkeypatch.setattr("cramer_peft.storage.files.os.fsync", full)
    with pytest.raises(OSError, match="no space left"):
        masks.save_pretrained(saved)
    assert files() == before


def test_an_adapter_belongs_to_the_weights_of_when_it_is_saved(make_model, make_config, x, tmp_path) -> None:
    masks = inject_request_masks(make_model(), make_config())
    with torch.no_grad():
        masks.model.up.base_layer.weight.mul_(1.5)
    expected = masks(x, request="drama")
    masks.save_pretrained(tmp_path)
    trained = masks.unload()
    with pytest.raises(BaseModelMismatchError):
        load_request_masks(make_model(), tmp_path)
    assert torch.equal(load_request_masks(trained, tmp_path)(x, request="drama"), expected)


@pytest.mark.parametrize("through", ["ours", "handle"])
def test_another_architecture_is_another_base_model(model, make_config, tmp_path, snapshot, through: str) -> None:
    inject_request_masks(model, make_config(target_modules=["up"])).save_pretrained(tmp_path)
    other = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    masks = inject_request_masks(other, make_config(target_modules=["0"])) if through == "handle" else None
    before = snapshot(other)
    load = partial(load_request_masks, other) if masks is None else partial(masks.load_adapter, adapter_name="second")
    with pytest.raises(BaseModelMismatchError, match=r"adapter_config.json: .* other modules .*no module matches"):
        load(folder=tmp_path)
    assert before.differences(other) == []


@pytest.mark.parametrize(("cast", "dtype"), [(nn.Module.float, "float32"), (nn.Module.half, "float16")])
def test_another_dtype_is_named(make_model, make_config, tmp_path, cast, dtype: str) -> None:
    inject_request_masks(make_model(), make_config(target_modules=["up"])).save_pretrained(tmp_path)
    other = make_model()
    nn.init.zeros_(other.up.weight)
    with pytest.raises(BaseModelMismatchError, match=rf"adapter_config.json: .* Here they are {dtype}: there they had"):
        load_request_masks(cast(other), tmp_path)
