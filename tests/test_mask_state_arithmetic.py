"""What sums, negations and multiples of mask states mean, as properties of outputs."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from cramer_peft import MaskState, RequestMaskConfig, RequestMaskModel, inject_request_masks
from cramer_peft.errors import BaseModelMismatchError, RequestError, UnsupportedError

DIM = 5
LINEAR_GATES = ("low_rank", "scale", "signed")
quick = settings(max_examples=25)
optional = st.lists(st.booleans(), min_size=3, max_size=3)


class Mixed(nn.Module):
    """A weight that is masked, and gates on features alone."""

    def __init__(self) -> None:
        super().__init__()
        self.items = nn.Embedding(9, 6)
        self.gru = nn.GRU(6, 7, batch_first=True)
        self.out = nn.Linear(7, 4)

    def forward(self, ids: Tensor) -> Tensor:
        return self.out(self.gru(self.items(ids))[0][:, -1])


def handle(gate: str, seed: int = 0, **options) -> RequestMaskModel:
    torch.manual_seed(seed)
    config = {"target_modules": ["items", "gru", "out"], "request_dim": DIM, "init_weights": False, **options}
    return inject_request_masks(Mixed().eval().requires_grad_(False), RequestMaskConfig(gate=gate, **config))


def ids(rows: int = 3) -> Tensor:
    return torch.arange(rows * 5).reshape(rows, 5) % 9


def state_of(masks: RequestMaskModel, seed: int, asked=(True, True, True), strength=None) -> MaskState:
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.randn(len(asked), DIM, generator=generator)
    requests = [vector if asks else None for vector, asks in zip(vectors, asked, strict=True)]
    return masks.mask_state(requests, strength=strength).detach()


def flat(state: MaskState) -> dict[str, Tensor]:
    return {f"{name}.{part}": value for name, parts in state.tensors.items() for part, value in parts.items()}


def same(one: MaskState, other: MaskState) -> bool:
    a, b = flat(one), flat(other)
    names = ("gate", "texts", "adapter", "encoder", "base_fingerprint")
    return (
        a.keys() == b.keys()
        and all(torch.equal(a[key], b[key]) for key in a)
        and torch.equal(one.active, other.active)
        and torch.equal(one.strength, other.strength)
        and all(getattr(one, name) == getattr(other, name) for name in names)
    )


@quick
@given(gate=st.sampled_from(LINEAR_GATES), seed=st.integers(0, 99), asked=optional)
def test_twice_negated_is_the_state_itself(gate: str, seed: int, asked: list[bool]) -> None:
    state = state_of(handle(gate), seed, asked)
    negated = -state
    assert same(-negated, state)
    assert same(-1 * state, negated)


@quick
@given(gate=st.sampled_from(LINEAR_GATES), seed=st.integers(0, 99), asked=optional)
def test_a_minus_a_is_the_frozen_model(gate: str, seed: int, asked: list[bool]) -> None:
    masks = handle(gate)
    frozen, state = masks(ids()), state_of(masks, seed, asked)
    for nothing in (state + (-state), state - state, -state + state):
        output = masks(ids(), request=nothing)
        if gate == "scale":
            assert torch.equal(output, frozen)
        assert torch.allclose(output, frozen, atol=1e-5)
    assert torch.equal(masks(ids(), request=0 * state), frozen)


@pytest.mark.parametrize("gate", LINEAR_GATES)
def test_a_minus_a_is_exact_on_features(gate: str) -> None:
    masks = handle(gate, target_modules=["items", "gru"])
    state = state_of(masks, 3)
    assert not torch.allclose(masks(ids(), request=state), masks(ids()))
    assert torch.equal(masks(ids(), request=state - state), masks(ids()))


@quick
@given(seed=st.integers(0, 99), factor=st.floats(-4, 4), asked=optional)
def test_a_multiple_is_a_strength_for_low_rank(seed: int, factor: float, asked: list[bool]) -> None:
    masks = handle("low_rank")
    state, strong = state_of(masks, seed, asked), state_of(masks, seed, asked, strength=factor)
    expected = masks(ids(), request=strong)
    assert torch.equal(masks(ids(), request=factor * state), expected)
    assert torch.equal(masks(ids(), request=state * factor), expected)
    assert torch.equal(masks(ids(), request=2 * strong), masks(ids(), request=state, request_strength=2 * factor))


@quick
@given(seed=st.integers(0, 99), factor=st.floats(-4, 4))
def test_a_multiple_multiplies_the_logits_of_scale(seed: int, factor: float) -> None:
    masks = handle("scale")
    state = state_of(masks, seed)
    gates = masks.masks_for(factor * state)
    logits = flat(state)
    assert torch.equal(gates["out"].row, 2 * torch.sigmoid(logits["out.row_logits"] * factor))
    assert torch.equal(gates["items"].values, 2 * torch.sigmoid(logits["items.row_logits"] * factor))


@quick
@given(gate=st.sampled_from(LINEAR_GATES), seed=st.integers(0, 99), strength=st.sampled_from([1.0, 0.5, 3.0]))
def test_negation_turns_each_gates_deviation_round(gate: str, seed: int, strength: float) -> None:
    masks = handle(gate)
    strength = min(strength, 1.0) if gate == "signed" else strength  # beyond 1 it only opens
    state = state_of(masks, seed, strength=strength)
    gates, negated = masks.masks_for(state), masks.masks_for(-state)
    deviation, opposite = gates["items"].values - 1, negated["items"].values - 1
    assert torch.allclose(deviation, -opposite, atol=1e-6)
    if gate == "low_rank":
        assert torch.allclose(gates["out"].weight_mask() - 1, 1 - negated["out"].weight_mask(), atol=1e-5)
    else:
        assert torch.allclose(gates["out"].row - 1, 1 - negated["out"].row, atol=1e-6)


@quick
@given(gate=st.sampled_from(LINEAR_GATES), seeds=st.tuples(*[st.integers(0, 99)] * 3), asked=optional)
def test_sums_commute_and_associate_to_rounding(gate: str, seeds: tuple[int, int, int], asked: list[bool]) -> None:
    masks = handle(gate)
    a, b, c = state_of(masks, seeds[0], asked), state_of(masks, seeds[1]), state_of(masks, seeds[2])
    expected = masks(ids(), request=a + b)
    assert torch.allclose(masks(ids(), request=b + a), expected, atol=1e-4)
    summed = masks(ids(), request=(a + b) + c)
    assert torch.allclose(masks(ids(), request=a + (b + c)), summed, atol=1e-4)
    assert torch.equal(masks(ids(), request=sum([a, b, c])), summed)
    assert torch.allclose(masks(ids(), request=2 * a), masks(ids(), request=a + a), atol=1e-4)


@quick
@given(seeds=st.tuples(st.integers(0, 99), st.integers(0, 99)), strengths=st.tuples(*[st.floats(-2, 2)] * 2))
def test_low_rank_sums_add_the_masks_deviations(seeds: tuple[int, int], strengths: tuple[float, float]) -> None:
    masks = handle("low_rank")
    a, b = (state_of(masks, seed, strength=s) for seed, s in zip(seeds, strengths, strict=True))
    masks_of = [masks.masks_for(state)["out"].weight_mask() if state.strength.any() else 1 for state in (a, b, a + b)]
    assert torch.allclose(torch.as_tensor(masks_of[0] + masks_of[1] - 1).float(), masks_of[2], atol=1e-4)


@quick
@given(seeds=st.tuples(st.integers(0, 99), st.integers(0, 99)), strength=st.sampled_from([1.0, 0.5, -1.0]))
def test_scale_sums_add_the_logits_at_one_strength(seeds: tuple[int, int], strength: float) -> None:
    masks = handle("scale")
    a, b = (state_of(masks, seed, strength=strength) for seed in seeds)
    logits = flat(a)["out.row_logits"] + flat(b)["out.row_logits"]
    expected = 1 + strength * (2 * torch.sigmoid(logits) - 1)
    assert torch.allclose(masks.masks_for(a + b)["out"].row, expected, atol=1e-6)


@pytest.mark.parametrize("gate", LINEAR_GATES)
def test_rows_without_a_request_count_as_nothing(gate: str) -> None:
    masks = handle(gate)
    a, b = state_of(masks, 1, (True, False, False)), state_of(masks, 2, (True, True, False))
    frozen, output = masks(ids()), masks(ids(), request=a + b)
    assert torch.allclose(output[1], masks(ids(), request=b)[1], atol=1e-5)
    assert torch.equal(output[2], frozen[2])
    assert (a + b).active.tolist() == [True, True, False]
    both = masks(ids(), request=state_of(masks, 1) + b)
    assert torch.allclose(output[0], both[0], atol=1e-5)
    weak = state_of(masks, 1, strength=[0.0, 1.0, 1.0])
    assert torch.allclose(masks(ids(), request=weak + b)[0], masks(ids(), request=b)[0], atol=1e-5)


@pytest.mark.parametrize("gate", LINEAR_GATES)
def test_one_row_is_added_to_every_row(gate: str) -> None:
    masks = handle(gate)
    one, rows = state_of(masks, 1, (True,)), state_of(masks, 2, (True, False, True))
    spread = replace(
        one,
        tensors={
            n: {p: v.repeat(3, *[1] * (v.dim() - 1)) for p, v in parts.items()} for n, parts in one.tensors.items()
        },
        active=one.active.repeat(3),
        strength=one.strength.repeat(3),
        texts=one.texts * 3,
    )
    expected = masks(ids(), request=spread + rows)
    assert torch.equal(masks(ids(), request=one + rows), expected)
    assert len(rows + one) == 3
    assert torch.allclose(masks(ids(), request=rows + one), expected, atol=1e-5)
    assert len(one + one) == 1
    assert masks(ids(8), request=one + one).shape[0] == 8


@pytest.mark.parametrize("gate", LINEAR_GATES)
def test_sums_are_requests_like_others(gate: str, tmp_path) -> None:
    masks = handle(gate)
    total = state_of(masks, 1) + 0.5 * state_of(masks, 2) - state_of(masks, 3)
    output = masks(ids(), request=total)
    total.save(tmp_path / "sum.safetensors")
    loaded = MaskState.load(tmp_path / "sum.safetensors")
    assert same(loaded, total)
    assert torch.equal(masks(ids(), request=loaded), output)
    with masks.request(loaded):
        assert torch.equal(masks.model(ids()), output)
    one = state_of(masks, 1, (True,)) - state_of(masks, 2, (True,))
    expected, before = masks(ids(), request=one), {n: p.clone() for n, p in masks.model.named_parameters()}
    masks.merge_request(one)
    assert torch.allclose(masks(ids()), expected, atol=1e-5)
    masks.unmerge()
    assert all(torch.equal(p, before[n]) for n, p in masks.model.named_parameters())


@pytest.mark.parametrize("gate", LINEAR_GATES)
def test_gradients_flow_through_a_sum(gate: str) -> None:
    masks = handle(gate)
    total = masks.mask_state(torch.randn(3, DIM)) - 2 * masks.mask_state(torch.randn(3, DIM))
    masks(ids(), request=total).square().sum().backward()
    assert masks.generator.head.weight.grad.abs().sum() > 0


def test_texts_say_what_was_combined(model, make_config) -> None:
    masks = inject_request_masks(model, make_config())
    a, b = masks.mask_state(["more horror", None, "old"]), masks.mask_state("nothing sad")
    assert (a + b).texts == ("more horror + nothing sad", "nothing sad", "old + nothing sad")
    assert (-b).texts == ("-(nothing sad)",)
    assert (-1 * -b).texts == ("nothing sad",)
    assert (-(b - b)).texts == ("-(nothing sad + -(nothing sad))",)
    assert (-(-b + -b)).texts == ("-(-(nothing sad) + -(nothing sad))",)
    assert (0.5 * b).texts == ("0.5 * (nothing sad)",)
    vector = masks.mask_state(torch.randn(16))
    assert (b + vector).texts == ("nothing sad + (a vector)",)
    assert (replace(b, texts=()) + replace(b, texts=())).texts == ()


def test_topk_is_refused_with_the_reason() -> None:
    masks = handle("topk")
    state = state_of(masks, 1)
    for use in (lambda: -state, lambda: 2 * state, lambda: state + state, lambda: state - state):
        with pytest.raises(UnsupportedError, match="0 or 1, have no strength"):
            use()


@pytest.mark.parametrize("gate", LINEAR_GATES)
def test_states_that_do_not_belong_together_are_refused(gate: str) -> None:
    masks = handle(gate)
    state = state_of(masks, 1)
    other_gate = "scale" if gate == "low_rank" else "low_rank"
    for other, error, match in [
        (state_of(handle(other_gate), 1), RequestError, f"gate='{gate}' and '{other_gate}'"),
        (replace(state, adapter="other"), RequestError, "adapter='default' and 'other'"),
        (replace(state, encoder="hashing"), RequestError, "encoder=None and 'hashing'"),
        (replace(state, base_fingerprint="x"), BaseModelMismatchError, "base_fingerprint=None"),
        (state_of(handle(gate, target_modules=["items", "gru"]), 1), BaseModelMismatchError, "base models"),
        (state_of(masks, 2, (True, True)), RequestError, "3 and 2 rows"),
        (state.to("meta"), RequestError, r"state\.to"),
    ]:
        with pytest.raises(error, match=match):
            state + other
        with pytest.raises(error):
            other - state
    fewer = replace(state, tensors={"items": state.tensors["items"]})
    with pytest.raises(RequestError, match=r"different layers.*in one and None in the other"):
        state + fewer
    unknown = replace(state, base_fingerprint=None)
    assert (unknown + state).base_fingerprint == (state + unknown).base_fingerprint == state.base_fingerprint
    for factor in (float("nan"), float("inf")):
        with pytest.raises(RequestError, match="finite"):
            factor * state
    for use in (lambda: state + 1, lambda: 1 + state, lambda: state * "2", lambda: state * state, lambda: True * state):
        with pytest.raises(TypeError):
            use()


def test_scale_refuses_different_strengths() -> None:
    masks = handle("scale")
    with pytest.raises(RequestError, match=r"row 1 has strength 0\.5 in one state and 1 in the other"):
        state_of(masks, 1, strength=[1.0, 0.5, 1.0]) + state_of(masks, 2)
    ignored = state_of(masks, 1, (True, False, True), strength=[1.0, 0.5, 1.0]) + state_of(masks, 2)
    assert ignored.strength.tolist() == [1.0, 1.0, 1.0]
