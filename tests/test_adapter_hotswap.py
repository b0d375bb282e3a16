"""Swapping a stored adapter's values in, in place: checked first, all or nothing, and unseen by the compiler."""

import pytest
import torch
import torch._dynamo
from peft import get_peft_model
from torch._dynamo.testing import CompileCounter

from cramer_peft import Adapter, inject_request_masks
from cramer_peft.errors import AdapterFileError, BaseModelMismatchError, ConfigError, CramerError, MergeError
from cramer_peft.storage.files import read_safetensors, write_safetensors

REQUESTS = ["more horror", None, "nothing sad"]


def values(masks) -> list[torch.Tensor]:
    return [value.detach().clone() for value in masks.state_dict().values()]


def unchanged(masks, before: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(values(masks), before, strict=True))


@pytest.fixture
def saved(make_model, make_config, gate: str, x, tmp_path):
    """A folder with another adapter, and what it answers."""
    torch.manual_seed(7)
    other = inject_request_masks(make_model(), make_config(gate))
    other.save_pretrained(tmp_path / "other")
    return tmp_path / "other", other(x, request=REQUESTS)


@pytest.mark.parametrize("door", ["ours", "peft"])
def test_it_answers_as_the_other_one_with_the_same_tensors(model, make_config, gate: str, x, saved, door: str) -> None:
    folder, expected = saved
    if door == "ours":
        masks = inject_request_masks(model, make_config(gate))
    else:
        masks = get_peft_model(model, make_config(gate)).eval()
    objects = list(masks.parameters())
    places = [value.data_ptr() for value in objects]
    assert not torch.equal(masks(x, request=REQUESTS), expected)
    with torch.no_grad(), masks.request(REQUESTS):
        first = model(x)
        masks.hotswap_adapter(folder)
        assert torch.equal(masks(x, request=REQUESTS), expected)
        assert torch.equal(model(x), expected) or not torch.equal(first, expected)
    assert all(a is b for a, b in zip(masks.parameters(), objects, strict=True))
    assert [value.data_ptr() for value in masks.parameters()] == places


def test_a_compiled_model_is_not_compiled_again(model, make_config, gate: str, x, saved) -> None:
    folder, _ = saved
    torch._dynamo.reset()
    masks, counter = inject_request_masks(model, make_config(gate)), CompileCounter()
    compiled, vectors = torch.compile(masks, fullgraph=True, backend=counter), torch.randn(3, 16)
    with torch.no_grad():
        before = compiled(x, request=vectors)
        with torch._dynamo.config.patch(error_on_recompile=True):
            masks.hotswap_adapter(folder)
            after = compiled(x, request=vectors)
        assert torch.allclose(after, masks(x, request=vectors), atol=1e-6)
    assert not torch.allclose(after, before, atol=1e-4)
    assert counter.frame_count == 1
    torch._dynamo.reset()


def test_gates_that_were_kept_are_made_anew(model, make_config, gate: str, x, saved) -> None:
    folder, expected = saved
    masks = inject_request_masks(model, make_config(gate))
    with torch.no_grad(), masks.request(REQUESTS):
        assert not torch.equal(model(x), expected)
        masks.hotswap_adapter(folder)
        assert torch.equal(model(x), expected)


def test_only_the_named_adapter_changes(model, make_config, gate: str, x, saved) -> None:
    folder, expected = saved
    masks = inject_request_masks(model, make_config(gate))
    masks.add_adapter("second", make_config(gate))
    first = masks(x, request=REQUESTS)
    masks.hotswap_adapter(folder, "second")
    assert torch.equal(masks(x, request=REQUESTS), first)
    masks.set_adapter("second")
    assert torch.equal(masks(x, request=REQUESTS), expected)
    with pytest.raises(ConfigError, match="no adapter 'third'"):
        masks.hotswap_adapter(folder, "third")


def test_flags_stay_as_they_are(model, make_config, gate: str, saved) -> None:
    masks = inject_request_masks(model, make_config(gate))
    masks.hotswap_adapter(saved[0])
    assert all(parameter.requires_grad for parameter in masks.generator.parameters())
    masks.set_adapter("default", inference_mode=True)
    masks.hotswap_adapter(saved[0])
    assert not any(parameter.requires_grad for parameter in masks.generator.parameters())


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"gate": "scale"}, "its gate is 'scale', the adapter's 'low_rank'"),
        ({"rank": 2}, "its rank is 2, the adapter's 4"),
        ({"generator_width": None}, "generator_width"),
        ({"target_modules": ["up"]}, "1 masked modules differ, for example 'down'"),
        ({"encoder_options": {"dim": 8}}, "encoder_options"),
        ({"request_dim": 16}, "encoder is None"),
        ({"modules_to_save": ["out"]}, "modules_to_save"),
        ({"batch_folding": "rows_first"}, "batch_folding"),
    ],
)
def test_another_form_is_refused(make_model, model, make_config, tmp_path, options: dict, match: str) -> None:
    inject_request_masks(make_model(), make_config(**options)).save_pretrained(tmp_path)
    masks = inject_request_masks(model, make_config())
    before = values(masks)
    with pytest.raises(AdapterFileError, match=match):
        masks.hotswap_adapter(tmp_path)
    assert unchanged(masks, before)


def test_another_base_a_damaged_file_and_a_merged_model_are_refused(make_model, make_config, gate: str, saved) -> None:
    folder, _ = saved
    masks = inject_request_masks(make_model(seed=5), make_config(gate))
    before = values(masks)
    with pytest.raises(BaseModelMismatchError):
        masks.hotswap_adapter(folder)
    assert unchanged(masks, before)
    masks.hotswap_adapter(folder, check_base=False)
    assert not unchanged(masks, before)

    before = values(masks)
    tensors, metadata = read_safetensors(folder / "adapter_model.safetensors")
    for damaged in (
        {key: value for key, value in tensors.items() if "bias" not in key},
        {**tensors, "x": torch.ones(1)},
    ):
        write_safetensors(folder / "adapter_model.safetensors", damaged, metadata)
        with pytest.raises(CramerError, match=r"missing|unexpected"):
            masks.hotswap_adapter(folder, check_base=False)
        assert unchanged(masks, before)
    masks.merge_request("more horror")
    with pytest.raises(MergeError, match="unmerge"):
        masks.hotswap_adapter(folder, check_base=False)


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, RuntimeError])
def test_an_interruption_leaves_nothing_half_done(
    model, make_config, gate: str, x, saved, monkeypatch, interruption: type[BaseException]
) -> None:
    masks = inject_request_masks(model, make_config(gate, strength=1.0))
    output, before = masks(x, request=REQUESTS), values(masks)
    fill = Adapter.fill

    def interrupted(*args) -> None:
        fill(*args)
        raise interruption

    monkeypatch.setattr(Adapter, "fill", interrupted)
    with pytest.raises(interruption):
        masks.hotswap_adapter(saved[0])
    assert unchanged(masks, before)
    assert torch.equal(masks(x, request=REQUESTS), output)
    assert all(parameter.requires_grad for parameter in masks.generator.parameters())


@pytest.mark.parametrize("ours", [None, "more horror"])
@pytest.mark.parametrize("theirs", [None, "nothing sad"])
def test_strength_and_default_request_are_taken_over(
    make_model, make_config, gate: str, x, tmp_path, ours: str | None, theirs: str | None
) -> None:
    strength = 1.0 if gate == "topk" else 0.5
    other = inject_request_masks(make_model(), make_config(gate, strength=strength, default_request=theirs))
    other.save_pretrained(tmp_path)
    masks = inject_request_masks(make_model(), make_config(gate, default_request=ours))
    assert not torch.equal(masks(x, request=REQUESTS), other(x, request=REQUESTS))
    masks.hotswap_adapter(tmp_path)
    assert torch.equal(masks(x), other(x))
    assert torch.equal(masks(x, request=REQUESTS), other(x, request=REQUESTS))
    assert (masks.peft_config["default"].strength, masks.peft_config["default"].default_request) == (strength, theirs)
    masks.save_pretrained(tmp_path / "again")
    assert torch.equal(masks(x), other(x))


def test_saved_modules_are_swapped_too(make_model, make_config, x, tmp_path) -> None:
    other = inject_request_masks(make_model(), make_config(modules_to_save=["out"]))
    with torch.no_grad():
        for parameter in other.model.out.parameters():
            parameter.add_(1)
    other.save_pretrained(tmp_path)
    masks = inject_request_masks(make_model(), make_config(modules_to_save=["out"]))
    masks.hotswap_adapter(tmp_path)
    assert torch.equal(masks(x, request=REQUESTS), other(x, request=REQUESTS))
