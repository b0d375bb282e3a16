"""Which outputs can be masked, and how masked outputs are put on a model and taken off."""

import copy
import pickle
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cramer_peft import RequestMaskConfig, inject_request_masks, validate
from cramer_peft.errors import EncoderError, RequestError, TargetModuleError


class Listed(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


class Parts(nn.Module):
    """A model with parts of many kinds, one of them shared."""

    act = staticmethod(torch.relu)

    def __init__(self) -> None:
        super().__init__()
        self.emb = nn.Embedding(20, 8)
        self.plain, self.own = nn.Sequential(nn.Linear(8, 8)), Listed(nn.Linear(8, 8))
        self.list, self.head = nn.ModuleList([nn.Linear(8, 8)]), Head(self.emb)
        self.kept = torch.relu

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.list[0](self.own(self.plain(self.emb(x)))).mean(1))

    def encode(self, x: Tensor, n: int = 1) -> Tensor:
        return self.emb(x)


class Head(nn.Module):
    def __init__(self, emb: nn.Embedding) -> None:
        super().__init__()
        self.emb, self.layer = emb, nn.Linear(8, 8)

    def forward(self, state: Tensor) -> Tensor:
        return self.layer(state) @ self.emb.weight.T


class Failing:
    """An encoder that fails when the rest of an injection is done."""

    name, dim = "failing", 8

    def encode(self, texts: Sequence[str]) -> Tensor:
        raise EncoderError("no words today")


def config(**options: Any) -> RequestMaskConfig:
    return RequestMaskConfig(**{"request_dim": 8, "init_weights": False, **options})


GATES = {"features": 20}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"haed": GATES}, "'haed' is no module of this model and no method of one. Near: head"),
        ({"head.forwrad": GATES}, "no method of one"),
        ({"head.emb.weight": GATES}, "no method of one"),
        ({"head.layer.bias": GATES}, "no method of one"),
        ({".forward": GATES}, "named twice|no module|no method"),
        ({"": GATES, "forward": GATES}, "'forward' is named twice"),
        ({"train": GATES}, "'train' is no method that returns scores"),
        ({"head.state_dict": GATES}, "is no method that returns scores"),
        ({"_call_impl": GATES}, "is no method that returns scores"),
        ({"__class__": GATES}, "is no method that returns scores"),
        ({"kept": GATES}, "a function without a signature"),
        ({"plain": GATES}, "an nn.Sequential, whose output is that of its last module: name 'plain.0'"),
        ({"own": GATES}, "is a Listed, which would run over the masked output"),
        ({"list": GATES}, "is a ModuleList"),
        ({"encode": {"candidates": "m", **GATES}}, "no parameter 'm' .candidates.; there are x, n"),
        (["head"], "'head' is masked by gates, whose number is not known"),
    ],
)
def test_what_is_no_output_is_refused_before_anything_is_touched(given, words: str, snapshot) -> None:
    model = Parts().eval()
    before = snapshot(model)
    if ".forward" in given:  # the root's forward, spelled out
        given = {**given, "": GATES}
    with pytest.raises(TargetModuleError, match=words):
        inject_request_masks(model, config(target_outputs=given))
    assert before.differences(model) == []
    assert any(finding.kind.fatal for finding in validate(model, config(target_outputs=given)))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"row_features": ["haed"]}, "'haed' is no module and no target output. Near: head"),
        ({"row_features": ["head"]}, "'head' is a Head, expected a module with one weight"),
        ({"row_features": ["head.layer"], "exclude_modules": ["layer"]}, "no module matches"),
        ({"target_outputs": {"head": GATES}, "target_modules": ["typo"]}, "no module matches target_modules"),
        ({"target_outputs": {"head.layer": {"features": 8}}, "target_modules": ["layer"]}, "both as a module and as"),
    ],
)
def test_what_does_not_go_together_is_refused(options: dict[str, Any], words: str, snapshot) -> None:
    model = Parts().eval()
    before = snapshot(model)
    with pytest.raises(TargetModuleError, match=words):
        inject_request_masks(model, config(**options))
    assert before.differences(model) == []


def test_a_second_adapter_does_not_mask_a_module_and_its_output(vectors) -> None:
    model = Parts().eval()
    masks = inject_request_masks(model, config(target_modules=["head.layer"]))
    with pytest.raises(TargetModuleError, match="both as a module"):
        masks.add_adapter("b", config(target_outputs={"head.layer": {"features": 8}}))
    masks.unload()
    masks = inject_request_masks(model, config(target_outputs={"head.layer": {"features": 8}}))
    with pytest.raises(TargetModuleError, match="both as a module"):
        masks.add_adapter("b", config(target_modules=["head.layer"]))


# ---------------------------------------------------------------- on and off


def wrapped_on_the_object(model: nn.Module) -> None:
    inner = model.head.forward
    model.head.forward = lambda state: inner(state) * 2


TARGETS: dict[str, dict[str, Any]] = {
    "the root": {"target_outputs": [""], "row_features": [""]},
    "a module": {"target_outputs": ["head"], "row_features": ["head"]},
    "a method": {"target_outputs": {"encode": {"features": 8}}},
    "several": {"target_outputs": {"": {}, "head": GATES, "encode": {"features": 8}}, "row_features": [""]},
    "beside a layer": {"target_outputs": [""], "row_features": [""], "target_modules": ["layer", "list.0"]},
    "a described layer": {"row_features": ["head.layer"]},
}


@pytest.mark.parametrize("change", [None, wrapped_on_the_object], ids=["", "own forward"])
@pytest.mark.parametrize("name", list(TARGETS))
def test_unloading_leaves_no_trace(name: str, change, x, vectors, snapshot, make_features) -> None:
    model = Parts().eval()
    if change is not None:
        change(model)
    before, frozen = snapshot(model), model(x)
    masks = inject_request_masks(model, config(**TARGETS[name]))
    rows = 8 if name == "a described layer" else 20
    for entry in masks.generator.row_entries:
        masks.set_row_features(entry, make_features(rows))
    requests = [vectors[0], None, vectors[2]]
    if name in ("a method", "several"):
        with masks.request(requests):
            asked = model.encode(x)
        before_masks = model.encode(x)
    else:
        asked, before_masks = masks(x, request=requests), frozen
    assert torch.equal(asked[1], before_masks[1])
    assert not torch.equal(asked[0], before_masks[0])
    masks.unload()
    assert before.differences(model) == []
    assert torch.equal(model(x), frozen)


@pytest.mark.parametrize("name", list(TARGETS))
def test_a_second_adapter_that_fails_and_one_that_is_deleted_leave_the_first(name: str, x, vectors, snapshot) -> None:
    model = Parts().eval()
    masks = inject_request_masks(model, config(target_modules=["list.0"]))
    before, expected = snapshot(model), masks(x, request=vectors)
    options = {**TARGETS[name], "target_modules": TARGETS[name].get("target_modules")}
    with pytest.raises(EncoderError, match="no words today"):
        masks.add_adapter("b", config(**options, encoder="failing", default_request="more"), encoder=Failing())
    assert before.differences(model) == []
    masks.add_adapter("b", config(**options))
    masks.delete_adapter("b")
    if name not in ("a described layer", "beside a layer"):  # PEFT leaves a layer that no adapter masks
        assert before.differences(model) == []
    assert torch.equal(masks(x, request=vectors), expected)


def test_the_first_adapter_is_deleted_and_the_others_go_on(make_described, x, vectors, snapshot, make_scores) -> None:
    model = make_scores()
    before = snapshot(model)
    masks = make_described(model=model)
    masks.add_adapter("b", config(target_modules=["layer"]))
    masks.delete_adapter("default")
    assert not any("masked_output" in name for name, _ in model.named_modules())
    expected = masks(x, request=vectors)
    with masks.request(vectors):
        assert torch.equal(model.predict(x), expected)
    failing = config(target_outputs=[""], row_features=[""], encoder="failing", default_request="more")
    with pytest.raises(EncoderError, match="no words today"):
        masks.add_adapter("c", failing, encoder=Failing())
    assert torch.equal(masks(x, request=vectors), expected)
    masks.unload()
    assert before.differences(model) == []


def test_a_forward_that_is_wrapped_afterwards_stays(vectors, x, make_features) -> None:
    model = Parts().eval()
    masks = inject_request_masks(model, config(target_outputs=["head"], row_features=["head"]))
    masks.set_row_features("head", make_features())
    expected = masks(x, request=vectors)
    wrapped_on_the_object(model)
    assert torch.allclose(masks(x, request=vectors), 2 * expected)
    later = model.head.forward
    masks.unload()
    assert model.head.forward is later
    assert not any("masked_output" in name for name, _ in model.named_modules())
    model(x)


@pytest.mark.parametrize(
    "how", [copy.deepcopy, lambda masks: pickle.loads(pickle.dumps(masks))], ids=["copy", "pickle"]
)
def test_copies_stand_alone(make_described, x, vectors, how: Callable[[Any], Any], make_features) -> None:
    masks = make_described()
    with torch.no_grad():
        expected = masks(x, request=vectors)
        copied = how(masks)
        masks.unload()
        assert torch.equal(copied(x, request=vectors), expected)
        copied.set_row_features("", make_features(seed=1), check=False)
        assert not torch.equal(copied(x, request=vectors), expected)
    with copied.request(vectors), pytest.raises(RequestError, match="another way"):
        copied.model.predict(x)
    copied.unload()
    assert "forward" not in vars(copied.model)
    assert not any(module._forward_pre_hooks for module in copied.model.modules())


# ---------------------------------------------------------------- children, called by another way


def test_a_child_that_another_module_holds_is_not_refused(x, vectors, make_features) -> None:
    masks = inject_request_masks(Parts().eval(), config(target_outputs=["head"], row_features=["head"]))
    masks.set_row_features("head", make_features())
    output = masks(x, request=vectors)
    assert not torch.equal(output, masks(x))
    with masks.request(vectors), pytest.raises(RequestError, match="'layer' inside 'head'"):
        masks.model.head.layer(torch.zeros(3, 8))


def test_two_methods_of_one_module_call_its_children(make_described, x, vectors, make_features) -> None:
    masks = make_described(target_outputs=["", "predict"], row_features=["", "predict"])
    masks.set_row_features("predict", make_features())
    with masks.request(vectors):
        assert not torch.equal(masks.model.predict(x), masks.model(x))
    with pytest.raises(RequestError, match="another way"), masks.request(vectors):
        masks.model.score(x)


def test_an_adapter_that_is_not_active_refuses_nothing(make_described, x, vectors) -> None:
    masks = make_described()
    masks.add_adapter("b", config(target_modules=["layer"]))
    masks.set_adapter("b")
    with masks.request(vectors):
        assert torch.equal(masks.model.predict(x), masks(x))
    masks.set_adapter("default")
    with masks.request(vectors, adapter_names=["b"] * 3):
        masks.model.predict(x)
    with masks.request(vectors, adapter_names=["b", "default", "b"]), pytest.raises(RequestError, match="another way"):
        masks.model.predict(x)


def test_torch_s_fused_layers_stay_fused(vectors) -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    for model, name in ((layer, ""), (Outer(layer), "")):
        masks = inject_request_masks(model, config(target_outputs={name: {"features": 8}}))
        assert not any(module._forward_pre_hooks for module in layer.modules())
        masks.unload()


class Outer(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)
