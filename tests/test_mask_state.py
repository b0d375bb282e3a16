import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from cramer_peft import MaskState, inject_request_masks
from cramer_peft.errors import AdapterFileError, BaseModelMismatchError, RequestError
from cramer_peft.mask_state import select_rows
from cramer_peft.storage.files import read_safetensors

TEXTS = ["more horror", None, "nothing sad"]


def tensors_of(state: MaskState) -> dict[str, torch.Tensor]:
    return {f"{name}.{part}": value for name, parts in state.tensors.items() for part, value in parts.items()}


def assert_equal(one: MaskState, other: MaskState) -> None:
    a, b = tensors_of(one), tensors_of(other)
    assert a.keys() == b.keys()
    assert all(torch.equal(a[key], b[key]) and a[key].dtype == b[key].dtype for key in a)
    assert torch.equal(one.active, other.active)
    assert torch.equal(one.strength, other.strength)
    for name in ("gate", "texts", "adapter", "encoder", "base_fingerprint"):
        assert getattr(one, name) == getattr(other, name)


@pytest.fixture
def masks(model, make_config, gate: str):
    return inject_request_masks(model, make_config(gate), adapter_name="mine")


def test_it_holds_named_tensors_and_where_it_is_from(masks, gate: str) -> None:
    state = masks.mask_state(TEXTS)
    assert len(state) == 3
    parts = {"a", "b"} if gate == "low_rank" else {"row_logits", "column_logits"}
    assert {name: set(parts) for name, parts in state.tensors.items()} == {"up": parts, "down": parts}
    assert state.texts == ("more horror", None, "nothing sad")
    assert state.active.tolist() == [True, False, True]
    assert (state.gate, state.adapter, state.encoder) == (gate, "mine", "hashing")
    assert state.base_fingerprint == masks.peft_config["mine"].base_fingerprint


def test_it_serves_as_the_requests_themselves(masks, x) -> None:
    direct = masks(x, request=TEXTS)
    state = masks.mask_state(TEXTS)
    assert torch.equal(masks(x, request=state), direct)
    with masks.request(state):
        assert torch.equal(masks.model.predict(x), direct)
    one, row = masks.mask_state("more horror"), masks(x, request="more horror")
    assert torch.equal(masks(x, request=one), row)


def test_all_rows_asked_is_exact_too(masks, x) -> None:
    requests = 9 * torch.randn(3, 16)
    assert torch.equal(masks(x, request=masks.mask_state(requests)), masks(x, request=requests))


@pytest.mark.parametrize("blank", [None, "", [None, " ", None]])
def test_a_state_that_asks_nothing(masks, x, blank, tmp_path) -> None:
    frozen = masks(x)
    state = masks.mask_state(blank)
    state.save(tmp_path / "state.safetensors")
    for given in (state, MaskState.load(tmp_path / "state.safetensors")):
        assert torch.equal(masks(x, request=given), frozen)


def test_strength_travels_with_the_state(model, make_config, x, tmp_path) -> None:
    masks = inject_request_masks(model, make_config("scale", strength=0.5))
    masks.mask_state(TEXTS).save(tmp_path / "default.safetensors")
    masks.mask_state(TEXTS, strength=[0.25, 1.0, 0.0]).save(tmp_path / "rows.safetensors")
    default, rows = (MaskState.load(tmp_path / f"{name}.safetensors") for name in ("default", "rows"))
    assert torch.equal(masks(x, request=default), masks(x, request=TEXTS))
    assert torch.equal(masks(x, request=rows), masks(x, request=TEXTS, request_strength=[0.25, 1.0, 0.0]))
    assert torch.equal(masks(x, request=rows, request_strength=2.0), masks(x, request=TEXTS, request_strength=2.0))
    assert torch.equal(masks(x, request=rows, request_strength=0), masks(x))


def test_save_and_load_round_trip(masks, x, tmp_path) -> None:
    state = masks.mask_state(TEXTS).detach()
    state.save(tmp_path / "deep" / "state.safetensors")
    loaded = MaskState.load(tmp_path / "deep" / "state.safetensors")
    assert_equal(loaded, state)
    assert torch.equal(masks(x, request=loaded), masks(x, request=TEXTS))


def test_it_survives_unloading_and_injecting_again(masks, x, tmp_path) -> None:
    state, expected = masks.mask_state(TEXTS).detach(), masks(x, request=TEXTS)
    model, config = masks.unload(), masks.peft_config["mine"]
    again = inject_request_masks(model, config, adapter_name="other")
    assert torch.equal(again(x, request=state), expected)


def test_to_moves_and_casts_a_copy(masks, x) -> None:
    state = masks.mask_state(TEXTS)
    double = state.to(torch.float64)
    assert {value.dtype for value in tensors_of(double).values()} == {torch.float64}
    assert {value.dtype for value in tensors_of(state).values()} == {torch.float32}
    assert (double.active.dtype, double.strength.dtype) == (torch.bool, torch.float32)
    assert_equal(double.to(torch.float32), state)
    assert_equal(state.to("cpu"), state)
    assert {value.device.type for value in tensors_of(state.to("meta")).values()} == {"meta"}
    assert torch.allclose(masks(x, request=double), masks(x, request=TEXTS), atol=1e-6)


def test_it_carries_the_graph_until_detached(masks) -> None:
    state = masks.mask_state(TEXTS)
    sum(value.sum() for value in tensors_of(state).values()).backward()
    assert masks.generator.head.weight.grad.abs().sum() > 0
    assert not any(value.requires_grad for value in tensors_of(state.detach()).values())
    with torch.no_grad():
        assert not any(value.requires_grad for value in tensors_of(masks.mask_state(TEXTS)).values())


def test_select_rows(masks, x) -> None:
    state = select_rows(masks.mask_state(TEXTS), [2, 0, 1])
    assert state.texts == ("nothing sad", "more horror", None)
    assert torch.equal(masks(x, request=state), masks(x, request=["nothing sad", "more horror", None]))


def test_wrong_number_of_rows(masks, x) -> None:
    with pytest.raises(RequestError, match=r"'up'.*found 3 rows.*2 requests"):
        masks(x, request=masks.mask_state(["a", "b"]))


def test_a_state_of_another_adapter_is_refused(masks, make_config, make_model, gate: str, x) -> None:
    other_gate = "scale" if gate != "scale" else "low_rank"
    other = inject_request_masks(make_model(), make_config(other_gate))
    with pytest.raises(RequestError, match=f"gate='{other_gate}'.*'{gate}'"):
        masks(x, request=other.mask_state(TEXTS))
    fewer = inject_request_masks(make_model(), make_config(gate, target_modules=["up"]))
    with pytest.raises(RequestError, match=r"does not fit.*'down\."):
        masks(x, request=fewer.mask_state(TEXTS))


def test_a_state_for_another_base_is_refused_unless_told(masks, make_config, make_model, gate: str, x) -> None:
    other = inject_request_masks(make_model(seed=5), make_config(gate))
    state = other.mask_state(TEXTS)
    with pytest.raises(BaseModelMismatchError, match="base_fingerprint=None"):
        masks(x, request=state)
    changed = masks(x, request=replace(state, base_fingerprint=None))
    assert not torch.equal(changed, masks(x))


def test_a_state_may_have_any_number_of_terms(model, make_model, make_config, x) -> None:
    masks, other = (inject_request_masks(m, make_config(rank=r)) for m, r in ((model, 1), (make_model(), 2)))
    assert torch.equal(masks(x, request=other.mask_state(TEXTS)), other(x, request=TEXTS))


def test_damaged_files_are_refused(masks, tmp_path) -> None:
    path = tmp_path / "state.safetensors"
    masks.mask_state(TEXTS).save(path)
    tensors, metadata = read_safetensors(path)
    whole = path.read_bytes()
    key = next(key for key in tensors if not key.startswith("__"))

    def refused(match: str = "state") -> None:
        with pytest.raises(AdapterFileError, match=match):
            MaskState.load(path)

    for content in (whole[:-3], whole[:30], b""):
        path.write_bytes(content)
        refused("truncated or corrupt")
    for change, match in [
        ({"__active__": None}, "__active__"),
        ({"__strength__": None}, "__strength__"),
        ({"__active__": torch.ones(3)}, "bool"),
        ({"__active__": torch.ones(2, dtype=torch.bool)}, "rows"),
        ({"__strength__": torch.ones(2)}, "rows"),
        ({"__strength__": torch.tensor([1.0, float("nan"), 1.0])}, "__strength__"),
        ({key: tensors[key][:2]}, "one row"),
        ({key: torch.zeros(3)}, "one row"),
        ({key: torch.zeros(3, 4, dtype=torch.long)}, "one row"),
        ({name: None for name in tensors if not name.startswith("__")}, "missing"),
    ]:
        changed = {name: value for name, value in {**tensors, **change}.items() if value is not None}
        save_file(changed, path, metadata)
        refused(match)
    for change in [
        {"format": "pt"},
        {"texts": "[1, 2, 3]"},
        {"texts": '["one"]'},
        {"texts": "{"},
        {"encoder": "3"},
        {"base_fingerprint": json.dumps([])},
    ]:
        save_file(tensors, path, {**metadata, **change})
        refused()
    save_file(tensors, path, {name: value for name, value in metadata.items() if name != "gate"})
    refused("metadata")
    with pytest.raises(AdapterFileError, match="does not exist"):
        MaskState.load(tmp_path / "none.safetensors")


def test_an_adapter_file_is_not_a_mask_state(masks, tmp_path) -> None:
    masks.save_pretrained(tmp_path)
    with pytest.raises(AdapterFileError, match="expected a mask state"):
        MaskState.load(tmp_path / "adapter_model.safetensors")
