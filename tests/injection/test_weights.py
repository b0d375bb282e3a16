"""Weights that a module above reads itself, and weights that are no plain tensors."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import MambaConfig, MambaForCausalLM

from cramer_peft import inject_request_masks, register_mask_layer, validate
from cramer_peft.errors import FindingKind, MergeError, TargetModuleError
from cramer_peft.layers import MaskedLinear
from cramer_peft.layers.registry import _WRAPPERS

WIDTH = 4


class Base(nn.Module):
    """Layers at several depths; those below read the weights of some of them."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.plain = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.list = nn.ModuleList([nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)])
        self.named = nn.ModuleDict({"one": nn.Linear(WIDTH, WIDTH), "two": nn.Linear(WIDTH, WIDTH)})
        self.block = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh())

    def read(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        return self.plain(self.read(x))


class Plainly(Base):
    def read(self, x: Tensor) -> Tensor:
        return x @ self.a.weight.T


class BiasAlone(Base):
    def read(self, x: Tensor) -> Tensor:
        return x * F.softplus(self.a.bias)


class ByAlias(Base):
    def read(self, x: Tensor) -> Tensor:
        layer, other = self.a, self.plain
        weight = layer.weight
        return F.linear(other(x), weight)


class ByGetattr(Base):
    def read(self, x: Tensor) -> Tensor:
        return F.linear(x, getattr(self, "a").weight)  # noqa: B009


class ByName(Base):
    def read(self, x: Tensor) -> Tensor:
        for name in ("weight",):
            x = F.linear(x, getattr(self.a, name))
        return x


class InLoop(Base):
    def read(self, x: Tensor) -> Tensor:
        for _, layer in enumerate(self.list):
            x = F.linear(x, layer.weight, layer.bias)
        return x


class InComprehension(Base):
    def read(self, x: Tensor) -> Tensor:
        return x @ torch.stack([layer.weight for layer in self.list]).sum(0)


class BySubscript(Base):
    def read(self, x: Tensor) -> Tensor:
        return x @ self.list[1].weight


class BySubscriptFromTheEnd(Base):
    def read(self, x: Tensor) -> Tensor:
        return x @ self.list[-1].weight


class OfDictionary(Base):
    def read(self, x: Tensor) -> Tensor:
        for layer in self.named.values():
            x = x @ layer.weight
        return x


class OfItems(Base):
    def read(self, x: Tensor) -> Tensor:
        for _, layer in self.named.items():
            x = x @ layer.weight
        return x


class OfGrandchild(Base):
    def read(self, x: Tensor) -> Tensor:
        return torch.tanh(x @ self.block[0].weight)


class Inherited(Plainly):
    pass


class ByHelper(Base):
    def weight_of_a(self) -> Tensor:
        return self.a.weight.T

    def read(self, x: Tensor) -> Tensor:
        return x @ self.weight_of_a()


class ByProperty(Base):
    @property
    def matrix(self) -> Tensor:
        return self.a.weight

    def read(self, x: Tensor) -> Tensor:
        return x @ self.matrix


READERS = [
    (Plainly, "a"),
    (BiasAlone, "a"),
    (ByAlias, "a"),
    (ByGetattr, "a"),
    (ByName, "a"),
    (InLoop, "list.0"),
    (InLoop, "list.1"),
    (InComprehension, "list.1"),
    (BySubscript, "list.1"),
    (BySubscriptFromTheEnd, "list.1"),
    (OfDictionary, "named.two"),
    (OfItems, "named.one"),
    (OfGrandchild, "block.0"),
    (Inherited, "a"),
    (ByHelper, "a"),
    (ByProperty, "a"),
]


@pytest.mark.parametrize(("kind", "name"), READERS, ids=lambda value: getattr(value, "__name__", value))
@pytest.mark.parametrize("depth", [0, 1])
def test_a_layer_whose_weight_is_read_above_is_refused(kind, name: str, depth: int, make_config, snapshot) -> None:
    model = nn.Sequential(kind()) if depth else kind()
    place = f"0.{name}" if depth else name
    before = snapshot(model)
    config = make_config(target_modules=[place, "plain"])
    with pytest.raises(
        TargetModuleError,
        match=f"'{place}': its weight is read directly by {kind.__mro__[0].__name__}|"
        f"'{place}': its weight is read directly by Plainly",
    ) as caught:
        inject_request_masks(model, config)
    assert [(found.kind, found.module) for found in caught.value.findings] == [(FindingKind.READ_BY_PARENT, place)]
    assert FindingKind.READ_BY_PARENT in [found.kind for found in validate(model, config)]
    assert before.differences(model) == []
    rest = make_config(target_modules=["plain"])
    assert len(inject_request_masks(model, rest).check_effect(torch.randn(2, WIDTH))) == 2


class Harmless(Base):
    """Reads of layers that say nothing of the values of their weights."""

    def __init__(self) -> None:
        super().__init__()
        nn.init.normal_(self.a.weight)
        self.a.weight.data.mul_(0.5)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.a.bias)

    def tie_weights(self) -> None:
        self.plain.weight = self.a.weight

    def read(self, x: Tensor) -> Tensor:
        layer = self.a
        x = x.to(self.a.weight.dtype).to(layer.weight.device)
        if self.a.bias is not None and isinstance(self.a.weight, nn.Parameter):
            x = x.reshape(-1, layer.weight.shape[1])
        assert x.shape[1] == layer.weight.size(1) == layer.in_features
        assert hasattr(self.a, "weight")
        for each in self.list:
            if each.weight.requires_grad:
                x = each(x)
        other = nn.Linear(WIDTH, WIDTH)
        return self.block(x @ other.weight.T * 0 + self.a(x))


class OneReadOfTwo(Base):
    def read(self, x: Tensor) -> Tensor:
        return self.list[0](x) @ self.list[1].weight


def test_reads_of_a_type_or_a_shape_are_harmless(make_config) -> None:
    model = Harmless().eval()
    masks = inject_request_masks(model, make_config(target_modules=["a", "list.0", "list.1", "block.0"]))
    assert sorted(masks.peft_config["default"].masked_modules) == ["a", "block.0", "list.0", "list.1"]
    x = torch.randn(3, WIDTH)
    asked = masks(x, request=["more horror"] * 3)
    masks.merge_request("more horror")
    assert torch.allclose(masks(x), asked, atol=1e-5)


def test_a_sibling_that_is_called_is_not_refused(make_config) -> None:
    masks = inject_request_masks(OneReadOfTwo().eval(), make_config(target_modules=["list.0"]))
    assert len(masks.check_effect(torch.randn(3, WIDTH))) == 2


def test_a_layer_registered_for_the_reader_is_used(make_config) -> None:
    class Reading(nn.Linear):
        def __init__(self) -> None:
            super().__init__(WIDTH, WIDTH)
            self.inner = nn.Linear(WIDTH, WIDTH)

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(x, self.inner.weight)

    @register_mask_layer(Reading)
    class MaskedReading(MaskedLinear):
        @classmethod
        def masked_weight(cls, base_layer: nn.Module) -> Tensor:
            return base_layer.inner.weight

        def project(self, x: Tensor) -> Tensor:
            return F.linear(x, self.base_layer.inner.weight)

        @property
        def base_bias(self) -> None:
            return None

    try:
        masks = inject_request_masks(nn.Sequential(Reading()).eval(), make_config(target_modules=r"\d"))
        x = torch.randn(3, WIDTH)
        assert not torch.allclose(masks(x, request=["more horror"] * 3), masks(x), atol=1e-4)
    finally:
        del _WRAPPERS[Reading]


class TiedScores(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.items, self.layer = nn.Embedding(20, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, ids: Tensor) -> Tensor:
        return self.layer(self.items(ids)).mean(1) @ self.items.weight.T


def test_an_embedding_that_is_read_too_follows_requests_and_is_not_merged(make_config, gate: str, snapshot) -> None:
    model, ids = TiedScores().eval(), torch.arange(9).reshape(3, 3)
    options = {"drop_ratio": 0.5} if gate == "topk" else {}
    masks = inject_request_masks(model, make_config(gate, target_modules=["items"], **options))
    frozen, asked = masks(ids), masks(ids, request=["more horror", None, "nothing sad"])
    assert torch.equal(asked[1], frozen[1])
    assert not torch.allclose(asked[0], frozen[0], atol=1e-4)
    before = snapshot(model)
    with pytest.raises(MergeError, match=r"'items': TiedScores\.forward reads its weight"):
        masks.merge_request("more horror")
    assert before.differences(model) == []
    assert torch.equal(masks(ids), frozen)


@pytest.mark.parametrize("targets", [["dt_proj"], ["conv1d"], ["in_proj", "dt_proj"]])
def test_transformers_mamba(make_config, targets: list[str]) -> None:
    model = MambaForCausalLM(MambaConfig(vocab_size=20, hidden_size=8, state_size=4, num_hidden_layers=1)).eval()
    with pytest.raises(TargetModuleError, match=rf"'backbone\.layers\.0\.mixer\.{targets[-1]}': its weight is read"):
        inject_request_masks(model, make_config(target_modules=targets))
    masks = inject_request_masks(model, make_config(target_modules=["in_proj"]))
    assert all(effect.change > 0 for effect in masks.check_effect(torch.arange(1, 11).reshape(2, 5)))


# ---------------------------------------------------------------- how a weight is stored


class Packed(Tensor):
    """A tensor of another kind."""


def packed(model: nn.Sequential) -> None:
    model[0].weight = nn.Parameter(model[0].weight.detach().as_subclass(Packed), requires_grad=False)


def packed_bias(model: nn.Sequential) -> None:
    model[0].bias = nn.Parameter(model[0].bias.detach().as_subclass(Packed), requires_grad=False)


def offloaded(model: nn.Sequential) -> None:
    accelerate = pytest.importorskip("accelerate")
    accelerate.cpu_offload(model, execution_device=torch.device("cpu"))


@pytest.mark.parametrize(
    ("change", "word"), [(packed, "quantised"), (packed_bias, "quantised"), (offloaded, "offloaded")]
)
def test_weights_that_are_no_plain_tensors_are_refused(change: Callable, word: str, make_config, snapshot) -> None:
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)).eval()
    masks = inject_request_masks(model, make_config(target_modules=["0"]))
    change(nn.Sequential(masks.model[0].base_layer))
    before = snapshot(model)
    with pytest.raises(MergeError, match=f"module '0'.*{word}"):
        masks.merge_request("more horror")
    assert before.differences(model) == []
    masks.unload()
    before = snapshot(model)
    with pytest.raises(TargetModuleError, match=f"'0' is a Linear whose weight is {word}"):
        inject_request_masks(model, make_config(target_modules=["0"]))
    assert before.differences(model) == []


def test_a_plain_model_on_the_meta_device_is_not_called_offloaded(make_config) -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(WIDTH, WIDTH))
    masks = inject_request_masks(model, make_config(target_modules=["0"]))
    assert masks.peft_config["default"].base_fingerprint is None
