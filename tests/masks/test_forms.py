import math

import pytest
import torch
from torch import nn

from cramer_peft import RequestMaskConfig
from cramer_peft.context import RequestContext
from cramer_peft.generator import RequestMaskGenerator, make_form
from cramer_peft.layers import MaskedLinear
from cramer_peft.masks import (
    LayerSpec,
    LowRankForm,
    LowRankMask,
    RowColumnMask,
    ScaleForm,
    SignedForm,
    TopKForm,
)
from cramer_peft.masks.mask import spread

SPECS = {"a": LayerSpec(6, 4), "b": LayerSpec(3, 6)}


def split(form, flat: torch.Tensor) -> dict:
    return RequestMaskGenerator(3, SPECS, form, None).split(flat)


def outputs(form) -> int:
    return sum(math.prod(shape) for spec in SPECS.values() for shape in form.parts(spec).values())


def tensors(form, rows: int = 5) -> dict:
    return split(form, torch.randn(rows, outputs(form)))


def test_make_form_follows_the_configuration() -> None:
    form = make_form(RequestMaskConfig(gate="low_rank", rank=3))
    assert isinstance(form, LowRankForm)
    assert form.rank == 3
    assert make_form(RequestMaskConfig(gate="scale", gate_bias=False)).gate_bias is False
    paper = make_form(RequestMaskConfig(gate="topk", drop_ratio=0.2, temperature_start=0.6))
    assert (paper.drop_ratio, paper.temperature, paper.shared) == (0.2, 0.6, False)
    assert make_form(RequestMaskConfig(gate="topk", shared_masks=True)).shared is True


@pytest.mark.parametrize("form", [LowRankForm(2), ScaleForm(), TopKForm()])
def test_split_cuts_every_output_once(form) -> None:
    total = outputs(form)
    flat = torch.arange(2.0 * total).reshape(2, total)
    parts = split(form, flat)
    again = torch.cat([value.reshape(2, -1) for layer in parts.values() for value in layer.values()], dim=-1)
    assert torch.equal(again, flat)
    for name, spec in SPECS.items():
        assert {part: tuple(value.shape[1:]) for part, value in parts[name].items()} == form.parts(spec)


@pytest.mark.parametrize("kept", [None, True])
def test_scale_gates_lie_between_0_and_2(kept) -> None:
    form = ScaleForm()
    built = form.build(tensors(form), None if kept is None else torch.ones(5), None, training=True)
    for layer in built.values():
        for value in (layer.row, layer.column):
            assert bool(((value > 0) & (value < 2)).all())
            assert value.std() > 0.1


@pytest.mark.parametrize("form", [LowRankForm(2), ScaleForm()])
def test_strength_1_for_every_row_changes_no_bit(form) -> None:
    given = {name: {part: 5 * value for part, value in parts.items()} for name, parts in tensors(form).items()}
    plain = form.build(given, None, None, training=False)
    scaled = form.build(given, torch.ones(5), torch.ones(5, dtype=torch.bool), training=False)
    for name in SPECS:
        for a, b in zip(vars(plain[name]).values(), vars(scaled[name]).values(), strict=True):
            assert not isinstance(a, torch.Tensor) or torch.equal(a, b)


@pytest.mark.parametrize("form", [LowRankForm(2), ScaleForm()])
def test_strength_scales_the_deviation_from_the_identity(form) -> None:
    given = tensors(form)
    scale = torch.tensor([0.0, 0.5, 1.0, 2.0, -1.0])
    built, full = (form.build(given, s, None, training=False) for s in (scale, None))
    for name in SPECS:
        if isinstance(form, ScaleForm):
            expected = 1 + scale[:, None] * (full[name].row - 1)
            assert torch.allclose(built[name].row, expected)
        else:
            expected = 1 + scale[:, None, None] * (full[name].weight_mask() - 1)
            assert torch.allclose(built[name].weight_mask(), expected, atol=1e-5)
        assert torch.equal(built[name].weight_mask()[0], torch.ones(SPECS[name].out_features, SPECS[name].in_features))


@pytest.mark.parametrize("form", [LowRankForm(1), LowRankForm(3), ScaleForm(True), ScaleForm(False), TopKForm(0.3)])
@pytest.mark.parametrize("bias", [True, False])
def test_apply_is_the_folded_weight(form, bias: bool) -> None:
    linear = nn.Linear(4, 6, bias=bias)
    layer = MaskedLinear(linear, "a", RequestContext())
    gates = form.build(tensors(form), None, None, training=False)["a"]
    x = torch.randn(5, 2, 4)
    output = gates.apply(layer, x, 0)
    for row in range(5):
        weight, folded_bias = gates.fold(linear.weight, linear.bias, row)
        assert torch.allclose(output[row], nn.functional.linear(x[row], weight, folded_bias), atol=1e-5)
    assert not torch.allclose(output, linear(x), atol=1e-3)


def test_bias_stays_ungated_where_asked() -> None:
    form = RowColumnMask(torch.zeros(1, 6), torch.ones(1, 4), gate_bias=False)
    linear = nn.Linear(4, 6)
    layer = MaskedLinear(linear, "a", RequestContext())
    assert torch.equal(form.apply(layer, torch.randn(1, 4), 0)[0], linear.bias)
    gated = RowColumnMask(torch.zeros(1, 6), torch.ones(1, 4), gate_bias=True)
    assert torch.equal(gated.apply(layer, torch.randn(1, 4), 0), torch.zeros(1, 6))


def test_low_rank_rows_without_request_never_see_a_nan() -> None:
    linear = nn.Linear(4, 6)
    layer = MaskedLinear(linear, "a", RequestContext())
    gates = LowRankMask(torch.full((2, 1, 6), float("nan")), torch.ones(2, 1, 4), torch.tensor([True, False]))
    x = torch.randn(2, 4)
    output = gates.apply(layer, x, 0)
    assert torch.isnan(output[0]).all()
    assert torch.equal(output[1], linear(x)[1])


def test_low_rank_starts_at_the_identity_and_can_leave_it() -> None:
    form = LowRankForm(3)
    total = outputs(form)
    head = nn.Linear(5, total)
    form.init_head(head, SPECS, identity=True)
    parts = split(form, head(torch.randn(2, 5)))
    for layer in parts.values():
        assert torch.equal(layer["a"], torch.zeros_like(layer["a"]))
        assert torch.equal(layer["b"].abs(), torch.ones_like(layer["b"]))
    assert len({tuple(term.tolist()) for layer in [parts["a"]["b"][0], parts["b"]["b"][0]] for term in layer}) > 1
    sum(gates.weight_mask().square().sum() for gates in form.build(parts, None, None, True).values()).backward()
    assert head.weight.grad.abs().sum() > 0


@pytest.mark.parametrize(("ratio", "total"), [(0.1, 19), (0.05, 20), (0.2, 10), (0.0, 7), (0.95, 20), (0.3, 10)])
def test_topk_keeps_exactly_k(ratio: float, total: int) -> None:
    exact = math.ceil(round((1 - ratio) * total, 6))
    assert TopKForm(ratio).kept(total) == exact


@pytest.mark.parametrize("training", [True, False])
def test_topk_is_binary_over_all_layers_together(training: bool) -> None:
    form = TopKForm(0.4)
    built = form.build(tensors(form), None, None, training=training)
    open_gates = sum(layer.row.sum(-1) + layer.column.sum(-1) for layer in built.values())
    assert torch.equal(open_gates, torch.full((5,), float(form.kept(19))))
    for layer in built.values():
        assert bool(((layer.row == 0) | (layer.row == 1)).all())
        assert bool(((layer.column == 0) | (layer.column == 1)).all())


def test_topk_takes_the_largest_logits_and_noise_only_in_training() -> None:
    form = TopKForm(0.4)
    given = tensors(form)
    flat = torch.cat([value for parts in given.values() for value in parts.values()], dim=-1)

    def masks(training: bool) -> torch.Tensor:
        built = form.build(given, None, None, training)
        return torch.cat([value for layer in built.values() for value in (layer.row, layer.column)], dim=-1)

    kept = flat.topk(form.kept(19), dim=-1).indices
    assert torch.equal(masks(False), torch.zeros_like(flat).scatter(-1, kept, 1.0))
    assert any(not torch.equal(masks(True), masks(False)) for _ in range(5))


def test_topk_gradient_is_that_of_the_softmax() -> None:
    form = TopKForm(0.4, temperature=0.5)
    logits = torch.randn(2, 19, requires_grad=True)
    built = form.build(split(form, logits), None, None, training=False)
    weights = torch.randn(2, 19)
    flat = torch.cat([value for layer in built.values() for value in (layer.row, layer.column)], dim=-1)
    (flat * weights).sum().backward()
    expected = torch.autograd.grad((torch.softmax(logits / 0.5, -1) * weights).sum(), logits)[0]
    assert torch.allclose(logits.grad, expected, atol=1e-7)


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_topk_noise_decides_what_is_kept_and_not_the_gradient(temperature: float) -> None:
    form = TopKForm(0.4, temperature=temperature)
    logits = torch.randn(2, 19)
    weights = torch.randn(2, 19)
    seen, gradients = set(), []
    for _ in range(6):
        leaf = logits.clone().requires_grad_()
        built = form.build(split(form, leaf), None, None, training=True)
        flat = torch.cat([value for layer in built.values() for value in (layer.row, layer.column)], dim=-1)
        seen.add(tuple(flat.detach().flatten().tolist()))
        (flat * weights).sum().backward()
        gradients.append(leaf.grad)
    assert len(seen) > 1
    leaf = logits.clone().requires_grad_()
    expected = torch.autograd.grad((torch.softmax(leaf / temperature, -1) * weights).sum(), leaf)[0]
    assert all(torch.allclose(gradient, expected, atol=1e-7) for gradient in gradients)


def test_topk_rows_without_request_are_open() -> None:
    form = TopKForm(0.5)
    active = torch.tensor([True, False, True, True, False])
    built = form.build(tensors(form), active.float(), active, training=True)
    for layer in built.values():
        assert torch.equal(layer.weight_mask()[~active], torch.ones_like(layer.weight_mask()[~active]))


def test_topk_shared_masks_are_one_for_the_batch_in_training_alone() -> None:
    form = TopKForm(0.4, temperature=0.5, shared=True)
    logits, weights = torch.randn(5, 19).requires_grad_(), torch.randn(19)

    def gates(training: bool, active: torch.Tensor | None = None) -> torch.Tensor:
        built = form.build(split(form, logits), None, active, training)
        return torch.cat([value for layer in built.values() for value in (layer.row, layer.column)], dim=-1)

    drawn = [gates(True) for _ in range(5)]
    assert all(torch.equal(found, found[:1].expand(5, -1)) for found in drawn)
    assert all(int(found[0].sum()) == form.kept(19) for found in drawn)
    assert len({tuple(found[0].tolist()) for found in drawn}) > 1
    assert torch.equal(gates(False), TopKForm(0.4)._binary(logits, False))
    (drawn[0] @ weights).sum().backward()
    mean = logits.detach().mean(0).requires_grad_()
    expected = torch.autograd.grad((torch.softmax(mean / 0.5, -1) * weights).sum(), mean)[0]
    assert torch.allclose(logits.grad, expected.expand(5, -1), atol=1e-6)
    active = torch.tensor([True, False, True, True, False])
    found = gates(True, active)
    assert torch.equal(found[~active], torch.ones(2, 19))
    assert torch.equal(found[active], found[:1].expand(3, -1))


@pytest.mark.parametrize(("batch_dim", "shape"), [(0, (3, 1, 1, 4)), (1, (1, 3, 1, 4)), (-2, (1, 1, 3, 4))])
def test_spread_puts_rows_into_the_batch_dimension(batch_dim: int, shape: tuple) -> None:
    assert spread(torch.zeros(3, 4), torch.zeros(7, 7, 7, 4), batch_dim).shape == shape
    terms = spread(torch.zeros(3, 2, 4), torch.zeros(7, 7, 7, 4), batch_dim)
    assert terms.shape == (*shape[:-1], 2, 4)


def test_a_strength_above_1_opens_signed_gates_and_turns_none_over() -> None:
    spec = {"layer": LayerSpec(2, 3)}
    tensors = {
        "layer": {"row_logits": torch.tensor([[-0.9, 0.5]] * 3), "column_logits": torch.tensor([[-1.0, 0.0, 2.0]] * 3)}
    }
    form = SignedForm()
    assert {part: value.shape[1:] for part, value in tensors["layer"].items()} == {
        part: torch.Size(shape) for part, shape in form.parts(spec["layer"]).items()
    }
    made = form.build(tensors, torch.tensor([0.5, 1.0, 3.0]), None, training=False)["layer"]
    assert torch.allclose(made.row, torch.tensor([[0.55, 1.25], [0.1, 1.5], [0.1, 2.5]]))
    assert torch.allclose(made.column, torch.tensor([[0.5, 1.0, 2.0], [0.0, 1.0, 3.0], [0.0, 1.0, 7.0]]))


@pytest.mark.parametrize("shape", [(2, 4), (2, 3, 4)])
def test_low_rank_keeps_the_type_where_autocast_sums_in_float32(shape: tuple, monkeypatch: pytest.MonkeyPatch) -> None:
    """Autocast on a GPU does so wherever a sum names no type."""
    plain = torch.Tensor.sum
    monkeypatch.setattr(
        torch.Tensor, "sum", lambda x, *args, **options: plain(x, *args, **{"dtype": torch.float32, **options})
    )
    layer = MaskedLinear(nn.Linear(4, 6).bfloat16(), "layer", RequestContext())
    form = LowRankMask(torch.randn(2, 3, 6), torch.randn(2, 3, 4), torch.tensor([True, False]))
    x = torch.randn(shape, dtype=torch.bfloat16)
    output = form.apply(layer, x, 0)
    assert output.dtype == torch.bfloat16
    assert torch.equal(output[1], layer.base_forward(x)[1])
