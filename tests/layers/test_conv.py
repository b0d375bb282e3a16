import copy
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from cramer_peft import inject_request_masks
from cramer_peft.context import RequestContext
from cramer_peft.errors import RequestError
from cramer_peft.layers.conv import (
    MaskedConvolution,
    MaskedConvolution1d,
    MaskedConvolution2d,
    within_groups,
)
from cramer_peft.layers.registry import wrapper_for
from cramer_peft.masks import (
    LayerMask,
    LayerSpec,
    LowRankForm,
    MaskForm,
    ScaleForm,
    TopKForm,
    compose,
    compose_rowwise,
)

FORMS: list[MaskForm] = [
    LowRankForm(rank=2),
    ScaleForm(gate_bias=True),
    ScaleForm(gate_bias=False),
    TopKForm(drop_ratio=0.4, gate_bias=True),
    TopKForm(drop_ratio=0.4, gate_bias=False),
]
quick = settings(max_examples=60)


def wrapped(base: nn.Module) -> MaskedConvolution:
    wrapper = wrapper_for(base)
    assert wrapper is not None
    return wrapper(base, "conv", RequestContext())


def random_gate(base: nn.Module, form: MaskForm, rows: int, active: Tensor | None = None) -> LayerMask:
    spec = MaskedConvolution.spec(base)
    tensors = {part: torch.randn(rows, *shape, dtype=base.weight.dtype) for part, shape in form.parts(spec).items()}
    scale = None if active is None else active.to(base.weight.dtype)
    return form.build({"": tensors}, scale if form.has_strength else None, active, training=False)[""]


@dataclass
class Case:
    """A random convolution in double precision, a batch and a form of gate."""

    dims: int
    options: dict[str, Any]
    form: MaskForm
    rows: int
    channels_last: bool
    seed: int
    base: nn.Module = field(init=False, repr=False)

    def __post_init__(self) -> None:
        torch.manual_seed(self.seed)
        self.base = (nn.Conv1d if self.dims == 1 else nn.Conv2d)(**self.options).double().requires_grad_(False)
        self.x = torch.randn(self.rows, self.base.in_channels, *[6, 7][: self.dims], dtype=torch.float64)
        if self.channels_last and self.dims == 2:
            self.x = self.x.contiguous(memory_format=torch.channels_last)


@st.composite
def cases(draw) -> Case:
    groups, dims = draw(st.integers(1, 3)), draw(st.integers(1, 2))
    options: dict[str, Any] = {
        "in_channels": groups * draw(st.integers(1, 3)),
        "out_channels": groups * draw(st.integers(1, 3)),
        "kernel_size": draw(st.tuples(*[st.integers(1, 3)] * dims)),
        "groups": groups,
        "stride": draw(st.integers(1, 2)),
        "dilation": draw(st.integers(1, 2)),
        "bias": draw(st.booleans()),
        "padding_mode": draw(st.sampled_from(["zeros", "reflect", "replicate", "circular"])),
    }
    paddings: list[Any] = [0, 1, 2, *(["same", "valid"] if options["stride"] == 1 else [])]
    options["padding"] = draw(st.sampled_from(paddings))
    form, rows = draw(st.sampled_from(FORMS)), draw(st.integers(1, 3))
    return Case(dims, options, form, rows, draw(st.booleans()), draw(st.integers(0, 10**6)))


@quick
@given(case=cases())
def test_gates_equal_weights_that_they_are_folded_into(case: Case) -> None:
    gate, layer = random_gate(case.base, case.form, case.rows), wrapped(case.base)
    before = {name: value.clone() for name, value in case.base.state_dict().items()}
    output = layer.masked_forward({"": gate}, case.x)
    for row in range(case.rows):
        new = layer.fold_parts({"": gate}, row)
        assert ("bias" in new) == (case.options["bias"] and getattr(case.form, "gate_bias", False))
        merged = copy.deepcopy(case.base)
        merged.load_state_dict({**before, **new})
        assert torch.allclose(output[row], merged(case.x[row : row + 1])[0], atol=1e-10)
    assert all(torch.equal(value, before[name]) for name, value in case.base.state_dict().items())


@quick
@given(case=cases())
def test_the_folded_weight_is_each_entry_times_its_mask(case: Case) -> None:
    gate = random_gate(case.base, case.form, 1)
    mask, weight = gate.weight_mask()[0], case.base.weight
    new = wrapped(case.base).fold_parts({"": gate}, 0)["weight"]
    out_per_group, in_per_group = case.base.out_channels // case.base.groups, weight.shape[1]
    for out in range(weight.shape[0]):
        for local in range(in_per_group):
            channel = out // out_per_group * in_per_group + local
            assert torch.allclose(new[out, local], weight[out, local] * mask[out, channel], atol=1e-12)


@quick
@given(case=cases(), data=st.data())
def test_rows_without_a_request_keep_every_bit(case: Case, data: st.DataObject) -> None:
    active = torch.tensor(data.draw(st.lists(st.booleans(), min_size=case.rows, max_size=case.rows)))
    case.base.float()
    x, gate = case.x.float(), random_gate(case.base, case.form, case.rows, active)
    frozen, output = case.base(x), wrapped(case.base).masked_forward({"": gate}, x)
    assert torch.equal(output[~active], frozen[~active])


@quick
@given(case=cases())
def test_single_precision(case: Case) -> None:
    case.base.float()
    x, gate, layer = case.x.float(), random_gate(case.base, case.form, case.rows), wrapped(case.base)
    output = layer.masked_forward({"": gate}, x)
    for row in range(case.rows):
        merged = copy.deepcopy(case.base)
        merged.load_state_dict({**case.base.state_dict(), **layer.fold_parts({"": gate}, row)})
        expected = merged(x[row : row + 1])[0]
        assert torch.allclose(output[row], expected, rtol=1e-5, atol=1e-5 * max(1.0, expected.abs().max().item()))


@pytest.mark.parametrize("form", FORMS, ids=lambda form: f"{form.name}-{getattr(form, 'gate_bias', '')}")
@pytest.mark.parametrize("groups", [1, 2])
def test_masks_of_several_adapters(form: MaskForm, groups: int) -> None:
    base = nn.Conv2d(4, 6, 3, groups=groups).double()
    layer, x = wrapped(base), torch.randn(3, 4, 6, 6, dtype=torch.float64)
    owner = torch.tensor([0, 1, -1])
    together = compose([random_gate(base, other, 3) for other in (FORMS[0], form)])
    apart = compose_rowwise(
        {n: random_gate(base, other, 3, owner == n) for n, other in enumerate((FORMS[0], form))}, owner
    )
    for gate in (together, apart):
        output = layer.masked_forward({"": gate}, x)
        for row in range(3):
            weight, bias = layer.fold(gate, row)
            expected = nn.functional.conv2d(x[row : row + 1], weight, bias, groups=groups)[0]
            assert torch.allclose(output[row], expected, atol=1e-10)


def test_within_groups() -> None:
    mask = torch.arange(24.0).reshape(4, 6)
    assert torch.equal(within_groups(mask, 1), mask)
    assert torch.equal(within_groups(mask, 2), torch.cat([mask[:2, :3], mask[2:, 3:]]))
    depthwise = torch.arange(9.0).reshape(3, 3)
    assert torch.equal(within_groups(depthwise, 3), depthwise.diagonal()[:, None])


def test_specs() -> None:
    one, two = nn.Conv1d(4, 6, 3, groups=2), nn.Conv2d(3, 5, 3)
    assert (wrapper_for(one), wrapper_for(two)) == (MaskedConvolution1d, MaskedConvolution2d)
    assert MaskedConvolution1d.part_specs(one) == {"": LayerSpec(6, 4)}
    assert MaskedConvolution2d.part_specs(two) == {"": LayerSpec(5, 3)}
    assert (MaskedConvolution1d.feature_dim, MaskedConvolution2d.feature_dim) == (-2, -3)
    assert MaskedConvolution1d.linear is False
    assert MaskedConvolution1d.masked_weight(one) is one.weight
    assert wrapper_for(nn.ConvTranspose1d(2, 2, 1)) is None
    assert (wrapped(one).kernel_size, wrapped(one).groups) == ((3,), 2)


@pytest.mark.parametrize("form", FORMS, ids=lambda form: f"{form.name}-{getattr(form, 'gate_bias', '')}")
def test_a_sample_without_rows_takes_one_request_only(form: MaskForm) -> None:
    base, x = nn.Conv1d(3, 5, 2), torch.randn(3, 6)  # as many channels as requests
    layer, gate = wrapped(base), random_gate(base, form, 1)
    assert torch.allclose(layer.masked_forward({"": gate}, x), layer.masked_forward({"": gate}, x[None])[0], atol=1e-5)
    with pytest.raises(RequestError, match=r"'conv'.*\(3, 6\) is one sample without rows.*3 requests"):
        layer.masked_forward({"": random_gate(base, form, 3)}, x)


def test_a_wrong_number_of_requests_names_the_module() -> None:
    base = nn.Conv2d(3, 5, 2)
    with pytest.raises(RequestError, match=r"'conv'.*found 2 rows in dimension 0.*3 requests"):
        wrapped(base).masked_forward({"": random_gate(base, FORMS[0], 3)}, torch.randn(2, 3, 6, 6))


class Convolutional(nn.Module):
    """Item scores from histories of ids, (rows, length), by convolutions over the length."""

    def __init__(self) -> None:
        super().__init__()
        self.items = nn.Embedding(20, 4)
        self.conv = nn.Conv1d(4, 6, 3, padding=1)
        self.image = nn.Conv2d(1, 2, (3, 6), padding=(1, 0))
        self.out = nn.Linear(10, 20)

    def forward(self, x: Tensor) -> Tensor:
        features = torch.relu(self.conv(self.items(x).transpose(1, 2)))
        return self.out(self.image(input=features.transpose(1, 2)[:, None]).flatten(1))


@pytest.mark.parametrize("batch_dim", [0, 1])
def test_in_a_model(make_config, gate: str, snapshot, x: Tensor, batch_dim: int) -> None:
    model = Convolutional().eval().requires_grad_(False)
    before, frozen = snapshot(model), model(x)
    config = make_config(gate, target_modules=["conv", "image"], gate_bias=None, batch_dim=batch_dim)
    masks = inject_request_masks(model, config)
    output = masks(x, request=["a", None, "b"])
    assert torch.equal(output[1], frozen[1])
    assert not torch.allclose(output[0], frozen[0], atol=1e-4)
    assert torch.equal(masks(x, request=["z", None, "b"])[1:], output[1:])
    assert torch.allclose(masks(x[2:], request=["b"])[0], output[2], atol=1e-5)
    assert torch.equal(masks(x), frozen)
    masks.unload()
    assert before.differences(model) == []


def test_merging(make_config, gate: str, snapshot, x: Tensor) -> None:
    model = Convolutional().eval().requires_grad_(False)
    before, frozen = snapshot(model), model(x)
    masks = inject_request_masks(model, make_config(gate, target_modules=["conv", "image"], gate_bias=None))
    expected = masks(x, request="a")
    masks.merge_request("a")
    assert torch.allclose(masks(x), expected, atol=1e-5)
    assert not torch.allclose(masks(x), frozen, atol=1e-4)
    masks.unmerge()
    assert torch.equal(masks(x), frozen)
    masks.unload()
    assert before.differences(model) == []
