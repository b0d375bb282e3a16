"""RecTools' SASRec and HSTU, fitted on a few interactions, and HSTU's raw weight by a layer of our own."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from checks import (
    FIRST,
    Backbone,
    BackboneContract,
    Batch,
    adapter_of,
    check_own_backbone,
    moved,
    numbered_catalogue,
)
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from cramer_peft import RequestMaskConfig, RequestMaskLayer, inject_request_masks, register_mask_layer
from cramer_peft.errors import RequestError
from cramer_peft.layers import registry
from cramer_peft.masks import LayerMask, LayerSpec, Projection, WeightProjection

pytest.importorskip("rectools", reason="needs rectools[torch]; tests/backbones/environments.py installs it apart")

import pandas as pd
from rectools import Columns
from rectools.dataset import Dataset
from rectools.models import HSTUModel, SASRecModel
from rectools.models.nn.transformers.hstu import STULayer

pytestmark = pytest.mark.filterwarnings("ignore")


def dataset() -> Dataset:
    days = pd.date_range("2024-01-01", periods=6)
    rows = [(user, (user * 7 + 3 * step * step + step) % 11, 1, days[step]) for user in range(4) for step in range(5)]
    return Dataset.construct(pd.DataFrame(rows, columns=[Columns.User, Columns.Item, Columns.Weight, Columns.Datetime]))


def fitted(model_class: type) -> SASRecModel | HSTUModel:
    model = model_class(
        n_blocks=2,
        n_heads=2,
        n_factors=16,
        session_max_len=6,
        epochs=1,
        batch_size=8,
        recommend_torch_device="cpu",
    )
    model.fit(dataset())
    return model


def sessions(model_class: type) -> Batch:
    generator = torch.Generator().manual_seed(0)
    batch = {"x": torch.randint(1, 8, (3, 6), generator=generator)}
    batch["x"][1, :2] = 0
    if model_class is HSTUModel:
        batch["unix_ts"] = torch.randint(0, 10**6, (3, 7), generator=generator).sort(-1).values
    return batch


def scores(model: nn.Module, batch: Batch) -> Tensor:
    return model(dict(batch))[:, -1]


class RawWeight:
    """A weight (in, out) that a module multiplies by itself, as the gates want to use it."""

    feature_dim = -1
    base_bias = None

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight

    @property
    def weight_matrix(self) -> Tensor:
        return self.weight.T

    def base_forward(self, x: Tensor) -> Tensor:
        return torch.matmul(x, self.weight)

    project = base_forward


class MaskedProducts(TorchFunctionMode):
    """While on, each product by one of some weights is the one that its gates make of it."""

    def __init__(self, gated: list[tuple[Tensor, Projection, LayerMask]]) -> None:
        super().__init__()
        self.gated = gated

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function in (torch.matmul, functional.linear):
            for weight, projection, gate in self.gated:
                if args[1] is weight:
                    return gate.apply(projection, args[0], 0)
        return function(*args, **(kwargs or {}))


class MaskedSTULayer(RequestMaskLayer):
    """A masked STULayer of HSTU, which holds the weight of its u, v, q and k as a raw parameter.

    It is wrapped whole, so its ``output_mlp`` is a part, too: a module inside a masked one cannot be masked itself.
    """

    @classmethod
    def part_specs(cls, base_layer: nn.Module) -> dict[str, LayerSpec]:
        weights = {"uvqk_proj": base_layer.uvqk_proj.T, "output_mlp": base_layer.output_mlp.weight}
        return {part: LayerSpec(*weight.shape) for part, weight in weights.items()}

    @classmethod
    def masked_weight(cls, base_layer: nn.Module) -> Tensor:
        return base_layer.uvqk_proj.T

    def masked_forward(self, gates: Mapping[str, LayerMask], seqs: Tensor, *args: Any) -> Tensor:
        raw, mlp = self.base_layer.uvqk_proj, self.base_layer.output_mlp
        uses = {"uvqk_proj": (raw, RawWeight(raw)), "output_mlp": (mlp.weight, WeightProjection(mlp.weight, mlp.bias))}
        with MaskedProducts([(*uses[part], self.fitted(gate, seqs, 0)) for part, gate in gates.items()]):
            return self.base_layer(seqs, *args)

    def fold_parts(self, gates: Mapping[str, LayerMask], row: int) -> dict[str, Tensor]:
        folded = {}
        if "uvqk_proj" in gates:
            weight, _ = gates["uvqk_proj"].fold(self.weight_matrix, None, row)
            folded["uvqk_proj"] = weight.T.contiguous()
        if "output_mlp" in gates:
            mlp = self.base_layer.output_mlp
            folded["output_mlp.weight"], folded["output_mlp.bias"] = gates["output_mlp"].fold(mlp.weight, mlp.bias, row)
        return folded


PACKAGE = "rectools"
BACKBONES = [
    Backbone(
        PACKAGE,
        "SASRec",
        lambda: fitted(SASRecModel).torch_model,
        lambda: sessions(SASRecModel),
        scores,
        ["multi_head_attn", "ff_linear_1", "ff_linear_2"],
    ),
    Backbone(
        PACKAGE,
        "HSTU",
        lambda: fitted(HSTUModel).torch_model,
        lambda: sessions(HSTUModel),
        scores,
        ["output_mlp"],
        notes="`uvqk_proj` is a raw parameter: out of reach without a layer of one's own",
    ),
    Backbone(
        PACKAGE,
        "HSTU, with a layer of one's own",
        lambda: fitted(HSTUModel).torch_model,
        lambda: sessions(HSTUModel),
        scores,
        r".*\.stu_blocks\.\d+",
        notes="`register_mask_layer(STULayer)` reaches `uvqk_proj`",
    ),
]


@pytest.fixture(autouse=True)
def _own_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_WRAPPERS", dict(registry._WRAPPERS))
    register_mask_layer(STULayer)(MaskedSTULayer)


class TestRecTools(BackboneContract):
    pass


def recommendations(model: SASRecModel | HSTUModel, users: list[int]) -> dict[int, list[tuple[int, float]]]:
    context = None
    if model.require_recommend_context:
        context = pd.DataFrame({Columns.User: users, Columns.Datetime: pd.Timestamp("2024-02-01")})
    found = model.recommend(users=users, dataset=dataset(), k=3, filter_viewed=False, context=context)
    pairs = zip(found[Columns.Item], found[Columns.Score], strict=True)
    lists: dict[int, list[tuple[int, float]]] = {user: [] for user in users}
    for user, pair in zip(found[Columns.User], pairs, strict=True):
        lists[user].append(pair)
    return lists


@pytest.mark.parametrize("model_class", [SASRecModel, HSTUModel])
def test_recommend_follows_a_request_for_each_user(model_class: type) -> None:
    """Requests are in the order in which RecTools batches users: as they first appear in the data set."""
    torch.manual_seed(0)
    model = fitted(model_class)
    model.torch_model.requires_grad_(False)
    frozen = recommendations(model, [2, 0, 1])
    targets = ["ff_linear_1", "ff_linear_2"] if model_class is SASRecModel else r".*\.stu_blocks\.\d+"
    options = {"encoder": "hashing", "encoder_options": {"dim": 16}, "init_weights": False}
    masks = inject_request_masks(model.torch_model, RequestMaskConfig(target_modules=targets, **options))
    with masks.request(["more horror", None, "nothing sad"]):  # of the users 0, 1 and 2
        asked = recommendations(model, [2, 0, 1])
    assert asked[1] == frozen[1]
    assert asked[0] != frozen[0]
    assert asked[2] != frozen[2]
    with masks.request(["more horror", "quiet", None]):
        otherwise = recommendations(model, [2, 0, 1])
    assert otherwise[0] == asked[0]
    assert otherwise[2] == frozen[2]
    masks.unload()
    assert recommendations(model, [2, 0, 1]) == frozen


def test_item_embeddings_have_no_row_for_each_user() -> None:
    backbone = dataclasses.replace(BACKBONES[0], target_modules=["ids_emb"])
    model = backbone.make()
    masks = backbone.adapt(model, "scale")
    with masks.request(FIRST), pytest.raises(RequestError, match="ids_emb"):
        backbone.scores(model)
    frozen = backbone.scores(model)
    with masks.request("one for all"):
        assert moved(backbone.scores(model), frozen)


def test_the_own_layers_masks_equal_folded_weights(gate: str) -> None:
    backbone = BACKBONES[-1]
    model = backbone.make()
    masks = backbone.adapt(model, gate)
    with masks.request("more horror"):
        asked = backbone.scores(model)
    gates = masks.masks_for("more horror")
    folded = {}
    for module in model.modules():
        if isinstance(module, MaskedSTULayer):
            parts = {part: gates[module.entry(part)] for part in module.masked_parts()}
            changed = module.fold_parts(parts, 0)
            folded |= {f"{module.module_name}.{name}": value for name, value in changed.items()}
    masks.unload()
    assert len(folded) == 6
    merged = torch.func.functional_call(model, folded, (backbone.batch(),))[:, -1]
    torch.testing.assert_close(merged, asked, rtol=1e-4, atol=1e-5)


def test_the_adapter_of_the_docs() -> None:
    torch.manual_seed(0)
    model = fitted(SASRecModel)
    items = [int(item) for item in model.data_preparator.get_known_item_ids()][::-1]  # another order than RecTools has
    catalogue = numbered_catalogue(items)

    def expected(history: list[int]) -> Tensor:
        """The scores by which RecTools itself ranks."""
        rows = [(0, items[item], 1, pd.Timestamp(2024, 1, 1 + day)) for day, item in enumerate(history)]
        own = Dataset.construct(
            pd.DataFrame(rows, columns=[Columns.User, Columns.Item, Columns.Weight, Columns.Datetime])
        )
        found = model.recommend(users=[0], dataset=own, k=len(items), filter_viewed=False)
        scores = dict(zip(found[Columns.Item], found[Columns.Score], strict=True))
        return torch.tensor([scores[item] for item in items])

    check_own_backbone(adapter_of("rectools", SASRecModel=SASRecModel)(model, catalogue), catalogue, expected)
