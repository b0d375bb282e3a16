import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from cramer_peft import RequestMaskModel, inject_request_masks
from cramer_peft.context import RequestContext
from cramer_peft.errors import MergeError, RequestError, UnsupportedError
from cramer_peft.layers.embedding import MaskedEmbedding
from cramer_peft.layers.masked_layer import RowLayout
from cramer_peft.layers.registry import wrapper_for
from cramer_peft.masks import FeatureMask, FeatureSpec

quick = settings(max_examples=40)


def wrapped(base: nn.Embedding, batch_dim: int = 0) -> MaskedEmbedding:
    layer = MaskedEmbedding(base, "items", RequestContext())
    layer.update_layer("default", layer.part_specs(base), RowLayout(batch_dim))
    layer.set_adapter("default")
    return layer


def random_gate(rows: int, features: int) -> FeatureMask:
    return FeatureMask(1 + torch.randn(rows, features))


def test_parts() -> None:
    base = nn.Embedding(20, 4)
    assert wrapper_for(base) is MaskedEmbedding
    assert wrapper_for(nn.EmbeddingBag(20, 4)) is None
    assert MaskedEmbedding.part_specs(base) == {"": FeatureSpec(4)}
    assert MaskedEmbedding.linear is False
    assert MaskedEmbedding.masked_weight(base) is base.weight
    layer = wrapped(base)
    assert (layer.num_embeddings, layer.embedding_dim, layer.padding_idx) == (20, 4, None)
    assert layer.weight is base.weight


@quick
@given(
    shape=st.lists(st.integers(1, 4), min_size=1, max_size=3),
    width=st.integers(1, 5),
    where=st.integers(0, 2),
    from_end=st.booleans(),
)
def test_each_row_is_multiplied_by_its_gates(shape: list[int], width: int, where: int, from_end: bool) -> None:
    batch_dim = where % len(shape)
    base, ids = nn.Embedding(20, width), torch.randint(20, shape)
    gate = random_gate(shape[batch_dim], width)
    gate.values[0] = 1.0
    # Counted from the end of the output, whose last dimension holds the features.
    layer = wrapped(base, batch_dim - len(shape) - 1 if from_end else batch_dim)
    frozen, output = base(ids), layer.masked_forward({"": gate}, ids)
    assert torch.equal(output.select(batch_dim, 0), frozen.select(batch_dim, 0))
    for row in range(shape[batch_dim]):
        assert torch.equal(output.select(batch_dim, row), frozen.select(batch_dim, row) * gate.values[row])


def test_one_gate_for_ids_of_any_shape() -> None:
    base, gate = nn.Embedding(20, 4), FeatureMask(torch.randn(1, 4), shared=True)
    for ids in (torch.tensor(3), torch.tensor([3, 4]), torch.tensor([[[3], [4]]])):
        assert torch.equal(wrapped(base).masked_forward({"": gate}, ids), base(ids) * gate.values[0])


def test_a_wrong_number_of_requests_names_the_module() -> None:
    base, gate = nn.Embedding(20, 4), random_gate(3, 4)
    with pytest.raises(RequestError, match=r"'items'.*found 2 rows in dimension 0.*3 requests"):
        wrapped(base).masked_forward({"": gate}, torch.zeros(2, 3, dtype=torch.long))
    with pytest.raises(RequestError, match=r"'items'.*no batch dimension 1"):  # it would be the features
        wrapped(base, batch_dim=1).masked_forward({"": gate}, torch.zeros(3, dtype=torch.long))
    with pytest.raises(RequestError, match=r"'items'.*no batch dimension 0"):
        wrapped(base).masked_forward({"": gate}, torch.tensor(3))


def test_padding_stays_zero() -> None:
    base = nn.Embedding(20, 4, padding_idx=0)
    output = wrapped(base).masked_forward({"": random_gate(2, 4)}, torch.tensor([[0, 1], [2, 0]]))
    assert torch.equal(output[0, 0], torch.zeros(4))
    assert torch.equal(output[1, 1], torch.zeros(4))
    assert output[0, 1].abs().min() > 0


def test_gates_act_after_the_norm_is_limited() -> None:
    base = nn.Embedding(20, 4, max_norm=0.5)
    gate, ids = FeatureMask(torch.full((1, 4), 10.0)), torch.arange(20)[None]
    output = wrapped(base).masked_forward({"": gate}, ids)
    assert torch.allclose(output.norm(dim=-1), torch.full((1, 20), 5.0), atol=1e-3)
    with pytest.raises(UnsupportedError, match=r"'items'.*max_norm=0.5"):
        wrapped(base).fold_parts({"": gate}, 0)


def test_folding() -> None:
    base, gate = nn.Embedding(20, 4, padding_idx=0), random_gate(2, 4)
    before = base.weight.detach().clone()
    new = wrapped(base).fold_parts({"": gate}, 1)
    assert list(new) == ["weight"]
    assert torch.equal(base.weight, before)
    merged, ids = copy.deepcopy(base), torch.arange(20)
    merged.load_state_dict(new)
    assert torch.equal(merged(ids), wrapped(base).masked_forward({"": gate}, ids.expand(2, 20))[1])


def test_gradients_of_a_sparse_table_stay_sparse() -> None:
    base, gate = nn.Embedding(20, 4, sparse=True), FeatureMask(torch.ones(1, 4, requires_grad=True))
    wrapped(base).masked_forward({"": gate}, torch.tensor([[3, 4]])).sum().backward()
    assert base.weight.grad.is_sparse
    assert gate.values.grad is not None


class Scorer(nn.Module):
    """Item scores from histories of ids, (rows, length)."""

    def __init__(self, tied: bool = False, **options: Any) -> None:
        super().__init__()
        self.items = nn.Embedding(20, 4, padding_idx=0, **options)
        self.out = nn.Linear(4, 20, bias=False)
        if tied:
            self.out.weight = self.items.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.items(input=x).mean(1))


def masked(make_config: Callable[..., Any], gate: str, model: nn.Module) -> RequestMaskModel:
    options = {"drop_ratio": 0.5} if gate == "topk" else {}  # of so few gates, the default would keep all
    return inject_request_masks(model, make_config(gate, target_modules=["items"], **options))


@pytest.mark.parametrize("tied", [False, True])
def test_in_a_model(make_config, gate: str, snapshot, x: Tensor, tied: bool) -> None:
    model = Scorer(tied).eval().requires_grad_(False)
    before, frozen = snapshot(model), model(x)
    masks = masked(make_config, gate, model)
    output = masks(x, request=["a", None, "b"])
    assert torch.equal(output[1], frozen[1])
    assert not torch.allclose(output[0], frozen[0], atol=1e-3)
    values = masks.masks_for(["a", None, "b"])["items"].values
    items = before.parameters["items.weight"][x]
    # The layer that shares the table multiplies by the frozen one.
    assert torch.allclose(output, (items * values[:, None]).mean(1) @ before.parameters["out.weight"].T, atol=1e-5)
    assert torch.equal(masks(x), frozen)
    masks.unload()
    assert before.differences(model) == []


def test_merging(make_config, gate: str, snapshot, x: Tensor) -> None:
    model = Scorer().eval().requires_grad_(False)
    before, frozen = snapshot(model), model(x)
    masks = masked(make_config, gate, model)
    expected = masks(x, request="a")
    masks.merge_request("a")
    assert torch.allclose(masks(x), expected, atol=1e-6)
    assert not torch.allclose(masks(x), frozen, atol=1e-3)
    masks.unmerge()
    assert torch.equal(masks(x), frozen)
    masks.unload()
    assert before.differences(model) == []


@pytest.mark.parametrize(
    ("model", "error", "message"),
    [
        (Scorer(tied=True), MergeError, r"'items'.*tied weights"),
        (Scorer(max_norm=1.0), UnsupportedError, r"'items'.*max_norm=1.0"),
    ],
)
def test_merging_is_refused_before_anything_is_touched(
    make_config, snapshot, x: Tensor, model: Scorer, error: type[Exception], message: str
) -> None:
    model.eval().requires_grad_(False)(x)
    masks = masked(make_config, "scale", model)
    before = snapshot(model)
    with pytest.raises(error, match=message):
        masks.merge_request("a")
    assert not masks.merged
    assert before.differences(model) == []
