import copy
import pickle
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from cramer_peft.context import RequestContext
from cramer_peft.errors import RequestError, UnsupportedError
from cramer_peft.layers.attention import MaskedMultiheadAttention
from cramer_peft.layers.registry import wrapper_for
from cramer_peft.masks import (
    FeatureSpec,
    LayerSpec,
    LowRankForm,
    Mask,
    MaskForm,
    ScaleForm,
    TopKForm,
)

PARTS = ("q", "k", "v", "heads", "out")
FORMS: dict[str, MaskForm] = {"low_rank": LowRankForm(2), "scale": ScaleForm(), "topk": TopKForm(0.3, 1.0)}
quick = settings(max_examples=150)


@contextmanager
def slow_path() -> Iterator[None]:
    """Torch's attention without its fused kernel, and without its warning of mixed kinds of masks."""
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(True)


def attention(**options: Any) -> nn.MultiheadAttention:
    base = nn.MultiheadAttention(**{"embed_dim": 8, "num_heads": 2, **options}).eval()
    for parameter in base.parameters():  # torch starts the biases at zero
        nn.init.normal_(parameter, std=0.5)
    return base


def masked(base: nn.MultiheadAttention) -> MaskedMultiheadAttention:
    return MaskedMultiheadAttention(base, "attn", RequestContext())


def random_gates(
    base: nn.MultiheadAttention, form: str, rows: int, parts: tuple[str, ...] = PARTS, active: Tensor | None = None
) -> dict[str, Mask]:
    gate = FORMS[form]
    specs = {part: spec for part, spec in MaskedMultiheadAttention.part_specs(base).items() if part in parts}
    tensors = {
        part: {
            name: torch.randn(rows, *shape, dtype=base.out_proj.weight.dtype)
            for name, shape in gate.parts(spec).items()
        }
        for part, spec in specs.items()
    }
    scale = None if active is None else active.float()
    return gate.build(tensors, scale, active, training=False)


def identity_gates(base: nn.MultiheadAttention, form: str, rows: int) -> dict[str, Mask]:
    """Gates of exactly 1, of a form that makes them otherwise."""
    return random_gates(base, form, rows, active=torch.zeros(rows, dtype=torch.bool))


def folded(wrapper: MaskedMultiheadAttention, gates: dict[str, Mask], row: int) -> nn.MultiheadAttention:
    """A plain module that holds one row's gates in its weights."""
    new = copy.deepcopy(wrapper.base_layer)
    for name, value in wrapper.fold_parts(gates, row).items():
        parameter = new.get_parameter(name)
        assert value.shape == parameter.shape
        assert value.dtype == parameter.dtype
        parameter.data = value.detach()
    return new


@dataclass
class Case:
    """A random attention module and a call of it."""

    options: dict[str, Any]
    rows: int
    lengths: tuple[int, int]
    cross: bool
    batched: bool
    attn_mask: str
    is_causal: bool
    key_padding_mask: str
    need_weights: bool
    average: bool
    form: str
    parts: tuple[str, ...]
    seed: int

    def module(self) -> nn.MultiheadAttention:
        torch.manual_seed(self.seed)
        return attention(**self.options).double()  # so that no rounding hides a mistake

    def inputs(self) -> tuple[Tensor, Tensor, Tensor]:
        length, keys = self.lengths
        width = self.options["embed_dim"]
        first = self.options["batch_first"]

        def draw(length: int, width: int) -> Tensor:
            if not self.batched:
                return torch.randn(length, width, dtype=torch.double)
            shape = (self.rows, length) if first else (length, self.rows)
            return torch.randn(*shape, width, dtype=torch.double)

        query = draw(length, width)
        if not self.cross:
            return query, query, query
        return query, draw(keys, self.options["kdim"] or width), draw(keys, self.options["vdim"] or width)

    def masks(self) -> dict[str, Any]:
        """The arguments beside the inputs. The first key stays open, as a row without keys is NaN in torch."""
        (length, keys), heads = self.lengths, self.options["num_heads"]
        shape = (self.rows * heads, length, keys) if self.attn_mask.endswith("3") else (length, keys)
        attn_mask = None
        if self.attn_mask.startswith("bool"):
            attn_mask = torch.rand(shape) < 0.4
            attn_mask[..., 0] = False
        elif self.attn_mask.startswith("float"):
            attn_mask = torch.randn(shape, dtype=torch.double)
        elif self.attn_mask == "causal":
            attn_mask = torch.full(shape, float("-inf"), dtype=torch.double).triu(1)
        padding = None
        if self.key_padding_mask:
            shape = (self.rows, keys) if self.batched else (keys,)
            padding = torch.randn(shape, dtype=torch.double)
            if self.key_padding_mask == "bool":
                padding = padding < -0.3
                padding[..., 0] = False
        return {
            "attn_mask": attn_mask,
            "key_padding_mask": padding,
            "need_weights": self.need_weights,
            "average_attn_weights": self.average,
            "is_causal": self.is_causal,
        }

    def of_row(self, row: int, value: Tensor | None, dim: int, times: int = 1) -> Tensor | None:
        """One row's part of an argument."""
        return value if value is None or not self.batched else value.narrow(dim, row * times, times)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    heads = draw(st.sampled_from([1, 2, 3]))
    width = heads * draw(st.sampled_from([1, 2, 4]))
    batched, cross = draw(st.booleans()), draw(st.booleans())
    length = draw(st.integers(1, 5))
    attn_mask = draw(st.sampled_from(["", "bool2", "bool3", "float2", "float3", "causal"]))
    other = st.sampled_from([None, width + 1, 3]) if cross else st.none()
    return Case(
        options={
            "embed_dim": width,
            "num_heads": heads,
            "kdim": draw(other),
            "vdim": draw(other),
            "bias": draw(st.booleans()),
            "add_bias_kv": draw(st.booleans()),
            "add_zero_attn": draw(st.booleans()),
            "batch_first": draw(st.booleans()),
        },
        rows=draw(st.integers(1, 3)) if batched else 1,
        lengths=(length, draw(st.integers(1, 5)) if cross else length),
        cross=cross,
        batched=batched,
        attn_mask=attn_mask,
        is_causal=attn_mask == "causal" and draw(st.booleans()),
        key_padding_mask=draw(st.sampled_from(["", "bool", "float"])),
        need_weights=draw(st.booleans()),
        average=draw(st.booleans()),
        form=draw(st.sampled_from(sorted(FORMS))),
        parts=tuple(draw(st.lists(st.sampled_from(PARTS), unique=True, min_size=1))),
        seed=draw(st.integers(0, 2**16)),
    )


def assert_close(found: tuple[Tensor, Tensor | None], expected: tuple[Tensor, Tensor | None], tolerance: float) -> None:
    for a, b in zip(found, expected, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            assert a.shape == b.shape
            assert (a - b).abs().max() <= tolerance * max(1, b.abs().max())


@quick
@given(cases())
def test_gates_of_one_give_torchs_own_output(case: Case) -> None:
    base = case.module()
    args, kwargs = case.inputs(), case.masks()
    gates = identity_gates(base, case.form, case.rows)
    with slow_path():
        assert_close(masked(base).masked_forward(gates, *args, **kwargs), base(*args, **kwargs), 1e-10)


@quick
@given(cases())
def test_gates_equal_the_folded_weights(case: Case) -> None:
    base = case.module()
    wrapper, gates = masked(base), random_gates(base, case.form, case.rows, case.parts)
    args, kwargs = case.inputs(), case.masks()
    output, weights = wrapper.masked_forward(gates, *args, **kwargs)
    dim = 0 if case.options["batch_first"] else 1
    for row in range(case.rows):
        row_args = [case.of_row(row, x, dim) for x in args]
        if not case.cross:
            row_args = [row_args[0]] * 3
        row_kwargs = {**kwargs, "key_padding_mask": case.of_row(row, kwargs["key_padding_mask"], 0)}
        if case.attn_mask.endswith("3"):
            row_kwargs["attn_mask"] = case.of_row(row, kwargs["attn_mask"], 0, base.num_heads)
        with slow_path():
            expected = folded(wrapper, gates, row)(*row_args, **row_kwargs)
        assert_close((case.of_row(row, output, dim), case.of_row(row, weights, 0)), expected, 1e-10)


@pytest.mark.parametrize("need_weights", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_rows_without_a_request_are_the_frozen_modules(form: str, need_weights: bool) -> None:
    base = attention(batch_first=True)
    active = torch.tensor([True, False, True])
    gates = random_gates(base, form, 3, active=active)
    x = torch.randn(3, 5, 8)
    output, _ = masked(base).masked_forward(gates, x, x, x, need_weights=need_weights)
    frozen, _ = base(x, x, x, need_weights=need_weights)
    assert torch.allclose(output[1], frozen[1], atol=1e-6)
    assert not torch.allclose(output[0], frozen[0], atol=1e-2)
    assert not torch.allclose(output[2], frozen[2], atol=1e-2)


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("form", FORMS)
def test_each_part_has_an_effect_and_a_gradient(form: str, part: str) -> None:
    base = attention().requires_grad_(False)
    gates = random_gates(base, form, 3, (part,))
    if form == "topk" and part == "heads":
        gates = {"heads": type(gates["heads"])(torch.tensor([[0.0, 1.0]] * 3))}
    leaves = [value.requires_grad_() for value in gates[part].tensors()]
    x = torch.randn(5, 3, 8)
    output, _ = masked(base).masked_forward(gates, x, x, x)
    # Another bias of the keys moves all scores of a query alike, so not every entry needs a gradient.
    assert not torch.allclose(output, base(x, x, x)[0], atol=1e-3)
    output.square().sum().backward()
    assert all(leaf.grad is not None and leaf.grad.abs().sum() > 0 for leaf in leaves)


@pytest.mark.parametrize("need_weights", [False, True])
def test_dropout_draws_as_torch_does(need_weights: bool) -> None:
    base = attention(dropout=0.5).train()
    gates = identity_gates(base, "low_rank", 3)
    x = torch.randn(5, 3, 8)
    torch.manual_seed(1)
    found = masked(base).masked_forward(gates, x, x, x, need_weights=need_weights)
    torch.manual_seed(1)
    assert_close(found, base(x, x, x, need_weights=need_weights), 1e-6)
    assert not torch.allclose(found[0], masked(base).masked_forward(gates, x, x, x)[0], atol=1e-3)
    base.eval()
    assert_close(masked(base).masked_forward(gates, x, x, x), base(x, x, x), 1e-6)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.03), (torch.float16, 3e-3), (torch.float32, 1e-6)])
@pytest.mark.parametrize("need_weights", [False, True])
def test_precisions(dtype: torch.dtype, tolerance: float, need_weights: bool) -> None:
    base = attention(batch_first=True).to(dtype)
    wrapper, gates = masked(base), random_gates(base, "scale", 3)
    x, padding = torch.randn(3, 5, 8, dtype=dtype), torch.zeros(3, 5, dtype=torch.bool)
    padding[1, 3:] = True
    output, weights = wrapper.masked_forward(gates, x, x, x, padding, need_weights)
    assert output.dtype == dtype
    assert weights is None or weights.dtype == dtype
    double = masked(copy.deepcopy(base).double())
    exact, _ = double.masked_forward(gates, x.double(), x.double(), x.double(), padding, need_weights)
    assert (output.double() - exact).abs().max() <= tolerance * exact.abs().max()


def test_autocast() -> None:
    base = attention(batch_first=True)
    wrapper, gates = masked(base), random_gates(base, "low_rank", 3)
    x, mask = torch.randn(3, 5, 8), torch.full((5, 5), float("-inf")).triu(1)
    for need_weights in (False, True):
        exact, _ = wrapper.masked_forward(gates, x, x, x, need_weights=need_weights, attn_mask=mask)
        with torch.autocast("cpu", torch.bfloat16):
            output, _ = wrapper.masked_forward(gates, x, x, x, need_weights=need_weights, attn_mask=mask)
        assert output.dtype == torch.bfloat16
        assert (output.float() - exact).abs().max() < 0.03 * exact.abs().max()


@pytest.mark.parametrize("options", [{}, {"kdim": 3, "vdim": 5}, {"bias": False}])
def test_parts_and_weights(options: dict[str, Any]) -> None:
    base = attention(**options)
    specs = MaskedMultiheadAttention.part_specs(base)
    assert specs == {
        "q": LayerSpec(8, 8),
        "k": LayerSpec(8, options.get("kdim", 8)),
        "v": LayerSpec(8, options.get("vdim", 8)),
        "heads": FeatureSpec(2),
        "out": LayerSpec(8, 8),
    }
    assert wrapper_for(base) is MaskedMultiheadAttention
    assert MaskedMultiheadAttention.unfoldable_parts() == ()
    weights = MaskedMultiheadAttention.fingerprint_weights(base)
    assert sum(weight.numel() for weight in weights) == sum(p.numel() for p in base.parameters() if p.dim() == 2)


def test_folding_changes_what_is_gated_and_nothing_else() -> None:
    base = attention(add_bias_kv=True)
    before = {name: value.clone() for name, value in base.state_dict().items()}
    wrapper = masked(base)

    def names(form: str, *parts: str) -> set[str]:
        return set(wrapper.fold_parts(random_gates(base, form, 2, parts), 1))

    assert names("low_rank", "k") == {"in_proj_weight"}  # this form leaves biases alone
    assert names("scale", "k") == {"in_proj_weight", "in_proj_bias"}
    assert names("scale", "heads") == {"out_proj.weight"}
    assert names("scale", "heads", "out") == {"out_proj.weight", "out_proj.bias"}
    assert names("scale") == set()
    separate = masked(attention(kdim=3))
    gates = random_gates(separate.base_layer, "low_rank", 2, ("q", "k"))
    assert set(separate.fold_parts(gates, 0)) == {"q_proj_weight", "k_proj_weight"}
    assert all(torch.equal(before[name], value) for name, value in base.state_dict().items())


def test_attributes_are_read_through_the_wrapper() -> None:
    base = attention(batch_first=True)
    wrapper = masked(base)
    for name in ("in_proj_weight", "in_proj_bias", "out_proj", "batch_first", "num_heads", "embed_dim", "kdim"):
        assert getattr(wrapper, name) is getattr(base, name)
    assert wrapper._qkv_same_embed_dim is True
    assert wrapper.bias_k is None
    assert wrapper.merge_masks(None, None, torch.randn(1, 2, 8)) == (None, None)
    with pytest.raises(AttributeError, match="nonsense"):
        _ = wrapper.nonsense
    for copied in (copy.deepcopy(wrapper), pickle.loads(pickle.dumps(wrapper))):
        assert copied.base_layer is not base
        assert torch.equal(copied.in_proj_weight, base.in_proj_weight)


def test_without_a_request_the_frozen_module_itself_is_called() -> None:
    base = attention(batch_first=True)
    x = torch.randn(3, 5, 8)
    expected = base(x, x, x)
    output = masked(base)(x, x, x)
    assert torch.equal(output[0], expected[0])
    assert torch.equal(output[1], expected[1])


@pytest.mark.parametrize("batch_first", [True, False])
def test_the_rows_are_where_the_module_has_its_batch(batch_first: bool) -> None:
    base = attention(batch_first=batch_first)
    wrapper, gates = masked(base), random_gates(base, "low_rank", 3)
    right = torch.randn(3, 5, 8) if batch_first else torch.randn(5, 3, 8)
    assert wrapper.masked_forward(gates, right, right, right)[0].shape == right.shape
    wrong = right.transpose(0, 1)
    with pytest.raises(RequestError, match=r"'attn'.*found 5 rows.*3 requests"):
        wrapper.masked_forward(gates, wrong, wrong, wrong)
    alone = torch.randn(5, 8)
    with pytest.raises(RequestError, match="found 1 rows"):
        wrapper.masked_forward(gates, alone, alone, alone)


def test_one_request_for_all_rows() -> None:
    base = attention(batch_first=True)
    one = random_gates(base, "low_rank", 1)
    shared = {part: replace(gate, shared=True) for part, gate in one.items()}
    x = torch.randn(3, 5, 8)
    output, _ = masked(base).masked_forward(shared, x, x, x)
    for row in range(3):
        alone, _ = masked(base).masked_forward(one, *[x[row : row + 1]] * 3)
        assert torch.allclose(output[row], alone[0], atol=1e-5)


def test_what_is_refused() -> None:
    base = attention(batch_first=True)
    wrapper, gates = masked(base), random_gates(base, "scale", 2)
    x = torch.randn(2, 5, 8)

    def call(*args: Any, **kwargs: Any) -> None:
        wrapper.masked_forward(gates, *args, **kwargs)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says that nested tensors are a prototype
        nested = torch.nested.nested_tensor([torch.randn(3, 8), torch.randn(5, 8)])
    with pytest.raises(UnsupportedError, match=r"'attn'.*nested tensors.*key_padding_mask"):
        call(nested, nested, nested)
    with pytest.raises(UnsupportedError, match=r"\[2, 3, 3\] dimensions; expected 3 each"):
        call(x[0], x, x)
    with pytest.raises(UnsupportedError, match=r"\[4, 4, 4\] dimensions"):
        call(x[None], x[None], x[None])
    with pytest.raises(UnsupportedError, match="is_causal=True needs attn_mask"):
        call(x, x, x, is_causal=True)
    with pytest.raises(UnsupportedError, match=r"attn_mask has the shape \(4, 5\), expected \(5, 5\)"):
        call(x, x, x, attn_mask=torch.zeros(4, 5))
    with pytest.raises(UnsupportedError, match=r"attn_mask has the shape \(2, 5, 5\), expected \(4, 5, 5\)"):
        call(x, x, x, attn_mask=torch.zeros(2, 5, 5))
    with pytest.raises(UnsupportedError, match=r"key_padding_mask has the shape \(2, 4\), expected \(2, 5\)"):
        call(x, x, x, key_padding_mask=torch.zeros(2, 4))
    with pytest.raises(UnsupportedError, match=r"dtype torch\.int64, expected bool or floating point"):
        call(x, x, x, attn_mask=torch.zeros(5, 5, dtype=torch.long))
    with pytest.raises(UnsupportedError, match="equal numbers of rows"):
        call(x, x[:1], x[:1])
    with pytest.raises(UnsupportedError, match="equal lengths"):
        call(x, x, x[:, :3])


@pytest.mark.parametrize("options", [{}, {"add_bias_kv": True}, {"add_zero_attn": True}])
@pytest.mark.parametrize("need_weights", [False, True])
def test_the_causal_hint_means_what_it_means_in_torch(options: dict[str, Any], need_weights: bool) -> None:
    # Without weights, torch takes the hint for the mask, which then hides an added key from all queries.
    base = attention(**options)
    x, mask = torch.randn(5, 3, 8), nn.Transformer.generate_square_subsequent_mask(5)
    kwargs = {"attn_mask": mask, "is_causal": True, "need_weights": need_weights}
    with slow_path():
        expected = base(x, x, x, **kwargs)
    assert_close(masked(base).masked_forward(identity_gates(base, "scale", 3), x, x, x, **kwargs), expected, 1e-6)
