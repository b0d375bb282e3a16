"""Promises that must hold for any model built of the supported layers."""

import copy
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import PeftModel, get_peft_model
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from cramer_peft import MaskState, RequestMaskConfig, inject_request_masks, load_request_masks

DIM = 3
quick = settings(max_examples=30)


class Case:
    """A random model, its input and a configuration."""

    def __init__(self, seed: int, widths: list[int], kinds: list[str], shape: list[int], options: dict) -> None:
        self.seed, self.widths, self.kinds, self.shape, self.options = seed, widths, kinds, shape, options

    def __repr__(self) -> str:
        return f"Case({self.seed}, {self.widths}, {self.kinds}, {self.shape}, {self.options})"

    @property
    def rows(self) -> int:
        return self.shape[0]

    def model(self) -> nn.Module:
        torch.manual_seed(self.seed)
        layers: list[nn.Module] = []
        for kind, before, after in zip(self.kinds, self.widths, self.widths[1:], strict=False):
            layer = Conv1D(after, before) if kind == "conv1d" else nn.Linear(before, after, bias=kind == "linear")
            if kind == "conv1d":
                nn.init.normal_(layer.bias)
            layers += [layer, nn.Tanh()]
        return nn.Sequential(*layers).eval()

    def config(self, **options) -> RequestMaskConfig:
        defaults = {"target_modules": "all-linear", "request_dim": DIM, "init_weights": False}
        return RequestMaskConfig(**{**defaults, **self.options, **options})

    def tensors(self) -> tuple[Tensor, Tensor]:
        """An input, and a request vector for each row."""
        generator = torch.Generator().manual_seed(self.seed + 1)
        x = torch.randn([*self.shape, self.widths[0]], generator=generator)
        return x, 2 * torch.randn(self.rows, DIM, generator=generator)


@st.composite
def cases(draw, gates: tuple[str, ...] = ("low_rank", "scale", "signed", "topk")) -> Case:
    depth = draw(st.integers(1, 4))
    gate = draw(st.sampled_from(gates))
    options: dict = {"gate": gate, "generator_width": draw(st.sampled_from([None, 2, 5]))}
    if gate == "low_rank":
        options["rank"] = draw(st.integers(1, 3))
    else:
        options["gate_bias"] = draw(st.booleans())
    if gate == "topk":
        options["drop_ratio"] = draw(st.sampled_from([0.0, 0.1, 0.5, 0.9]))
    return Case(
        seed=draw(st.integers(0, 2**16)),
        widths=draw(st.lists(st.integers(1, 9), min_size=depth + 1, max_size=depth + 1)),
        kinds=draw(st.lists(st.sampled_from(["linear", "no bias", "conv1d"]), min_size=depth, max_size=depth)),
        # Long sequences too: low_rank takes another way there.
        shape=draw(st.one_of(st.tuples(st.integers(1, 5)), st.tuples(st.integers(1, 4), st.integers(1, 12)))),
        options=options,
    )


@quick
@given(cases(gates=("low_rank", "scale", "signed")))
def test_the_start_and_strength_0_are_the_frozen_model(case: Case) -> None:
    model, (x, requests) = case.model(), case.tensors()
    frozen = model(x)
    masks = inject_request_masks(model, case.config(init_weights=True))
    assert torch.equal(masks(x, request=requests), frozen)
    masks.unload()
    masks = inject_request_masks(model, case.config())
    assert torch.equal(masks(x, request=requests, request_strength=0), frozen)
    assert torch.equal(masks(x, request=requests, request_strength=[0.0] * case.rows), frozen)
    with masks.request(requests[0], strength=torch.zeros(case.rows)):
        assert torch.equal(model(x), frozen)


@quick
@given(case=cases(), door=st.sampled_from(["ours", "peft"]), train=st.booleans())
def test_unloading_restores_everything(snapshot, case: Case, door: str, train: bool) -> None:
    model, (x, requests) = case.model(), case.tensors()
    model.train(train)
    next(model.parameters()).requires_grad_(False)
    before, frozen = snapshot(model), model(x)
    masks = (inject_request_masks if door == "ours" else get_peft_model)(model, case.config())
    masks(x, request=requests).sum().backward()
    masks.eval()
    masks(x, request=requests)
    assert masks.unload() is model
    assert before.differences(model) == []
    assert torch.equal(model(x), frozen)


@quick
@given(case=cases(), saver=st.sampled_from(["ours", "peft"]), loader=st.sampled_from(["ours", "peft"]))
def test_saving_and_loading_gives_equal_gates(case: Case, saver: str, loader: str) -> None:
    x, requests = case.tensors()
    first = (inject_request_masks if saver == "ours" else get_peft_model)(case.model(), case.config()).eval()
    with tempfile.TemporaryDirectory() as folder:
        first.save_pretrained(folder)
        load = load_request_masks if loader == "ours" else PeftModel.from_pretrained
        second = load(case.model(), folder).eval()
    handles = [masks if door == "ours" else masks.base_model for masks, door in ((first, saver), (second, loader))]
    gates, again = (handle.masks_for(requests) for handle in handles)
    assert list(gates) == list(again)
    for name in gates:
        for part, value in vars(gates[name]).items():
            if isinstance(value, Tensor):
                assert torch.equal(value, getattr(again[name], part))
    assert torch.equal(first(x, request=requests), second(x, request=requests))


@quick
@given(case=cases(), other=st.integers(0, 2**16), asked=st.lists(st.booleans(), min_size=5, max_size=5))
def test_a_row_does_not_depend_on_the_other_rows_requests(case: Case, other: int, asked: list[bool]) -> None:
    model, (x, requests) = case.model(), case.tensors()
    frozen = model(x)
    masks = inject_request_masks(model, case.config())
    # Other requests, of which some rows have none: in list form, and as one tensor.
    torch.manual_seed(other)
    strangers = [3 * torch.randn(DIM) if asked[row] else None for row in range(case.rows)]
    every = masks(x, request=requests)
    for row in range(case.rows):
        mixed = masks(x, request=[requests[row] if i == row else strangers[i] for i in range(case.rows)])
        assert torch.equal(mixed[row], every[row])
        tensor = torch.randn_like(requests)
        tensor[row] = requests[row]
        assert torch.equal(masks(x, request=tensor)[row], every[row])
        for i in range(case.rows):
            if i != row and strangers[i] is None:
                assert torch.equal(mixed[i], frozen[i])
        alone = masks(x, request=[None if i == row else requests[i] for i in range(case.rows)])
        assert torch.equal(alone[row], frozen[row])
        if case.options["gate"] != "topk":
            strengths = torch.rand(case.rows)
            strengths[row] = 1
            assert torch.equal(masks(x, request=requests, request_strength=strengths)[row], every[row])


@quick
@given(case=cases(), strength=st.sampled_from([1.0, 0.5, -1.0]), shared=st.booleans())
def test_gates_are_what_folding_them_into_the_weights_gives(case: Case, strength: float, shared: bool) -> None:
    model, (x, requests) = case.model(), case.tensors()
    folded = [copy.deepcopy(model) for _ in range(case.rows)]
    strength = 1.0 if case.options["gate"] == "topk" else strength
    masks = inject_request_masks(model, case.config())
    given_ = requests[0] if shared else requests
    output, gates = masks(x, request=given_, request_strength=strength), masks.masks_for(given_, strength)
    for row, plain in enumerate(folded):
        for name in gates:
            weight, bias = model.get_submodule(name).fold(gates[name], 0 if shared else row)
            layer = plain.get_submodule(name)
            layer.weight = nn.Parameter(weight.T if isinstance(layer, Conv1D) else weight)
            if bias is not None:
                layer.bias = nn.Parameter(bias)
        assert torch.allclose(plain(x[row : row + 1])[0], output[row], rtol=1e-4, atol=1e-4)


@quick
@given(case=cases(), asked=st.lists(st.booleans(), min_size=5, max_size=5))
def test_a_mask_state_is_exact_through_files_and_in_use(case: Case, asked: list[bool]) -> None:
    model, (x, vectors) = case.model(), case.tensors()
    masks = inject_request_masks(model, case.config())
    requests = [vectors[row] if asked[row] else None for row in range(case.rows)]
    state = masks.mask_state(requests).detach()
    with tempfile.TemporaryDirectory() as folder:
        state.save(Path(folder) / "state.safetensors")
        loaded = MaskState.load(Path(folder) / "state.safetensors")
    moved = loaded.to("cpu", torch.float64).to(torch.float32)
    for other in (loaded, moved):
        assert (len(other), other.gate, other.texts) == (len(state), state.gate, state.texts)
        assert torch.equal(other.active, state.active)
        assert torch.equal(other.strength, state.strength)
        for name, parts in state.tensors.items():
            assert all(torch.equal(other.tensors[name][part], value) for part, value in parts.items())
    expected = masks(x, request=requests)
    for given_ in (state, loaded, moved):
        with masks.request(given_):
            assert torch.equal(model(x), expected)


@pytest.mark.parametrize("gate", ["low_rank", "scale", "signed", "topk"])
def test_the_masks_of_these_properties_have_an_effect(gate: str) -> None:
    case = Case(3, [4, 6, 5], ["linear", "conv1d"], [3, 2], {"gate": gate})
    model, (x, requests) = case.model(), case.tensors()
    frozen = model(x)
    assert not torch.allclose(inject_request_masks(model, case.config())(x, request=requests), frozen, atol=1e-2)
