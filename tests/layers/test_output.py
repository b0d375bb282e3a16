"""Masked outputs: the tensor that is masked, the rows that are chosen, and what is refused."""

import collections
import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.modeling_outputs import CausalLMOutput

from cramer_peft import RequestMaskConfig, inject_request_masks
from cramer_peft.errors import EffectError, RequestError

Named = collections.namedtuple("Named", "logits note")


@dataclasses.dataclass(frozen=True)
class Frozen:
    logits: Tensor
    note: object = None


class Plain:
    def __init__(self, logits: Tensor) -> None:
        self.logits, self.note = logits, "note"


class Returns(nn.Module):
    """Returns its scores as ``wrap`` makes them."""

    def __init__(self, wrap: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.layer, self.wrap = nn.Linear(8, 20), wrap

    def forward(self, x: Tensor) -> Any:
        return self.wrap(self.layer(x))


WRAPS: dict[str, Callable[[Tensor], Any]] = {
    "dict": lambda scores: {"logits": scores, "note": "note"},
    "ordered dict": lambda scores: collections.OrderedDict(logits=scores, note="note"),
    "model output": lambda scores: CausalLMOutput(logits=scores),
    "named tuple": lambda scores: Named(scores, "note"),
    "dataclass": lambda scores: Frozen(scores, "note"),
    "object": Plain,
}
GATES = {"features": 20}


def field(output: Any, name: str = "logits") -> Any:
    return output[name] if isinstance(output, dict) else getattr(output, name)


def masked(model: nn.Module, options: dict[str, Any], described: bool, features: Tensor, name: str = "") -> Any:
    own = options if described else {**options, **GATES}
    config = RequestMaskConfig(
        target_outputs={name: own}, row_features=[name] if described else None, request_dim=8, init_weights=False
    )
    masks = inject_request_masks(model.eval(), config)
    if described:
        masks.set_row_features(name, features)
    return masks


@pytest.mark.parametrize("described", [True, False], ids=["values", "gates"])
@pytest.mark.parametrize("kind", list(WRAPS))
def test_a_field_is_masked_and_the_rest_stays(kind: str, described: bool, vectors, make_features) -> None:
    masks = masked(Returns(WRAPS[kind]), {"field": "logits"}, described, make_features())
    frozen, output = masks(vectors), masks(vectors, request=[vectors[0], None, vectors[2]])
    assert type(output) is type(frozen)
    assert torch.equal(field(output)[1], field(frozen)[1])
    assert not torch.equal(field(output)[0], field(frozen)[0])
    if kind != "model output":
        assert field(output, "note") == "note"


@pytest.mark.parametrize("kind", ["dict", "model output", "named tuple"])
def test_a_field_in_one_graph(kind: str, vectors, make_features) -> None:
    masks = masked(Returns(WRAPS[kind]), {"field": "logits"}, True, make_features())
    torch._dynamo.reset()

    def call(x: Tensor, request: Tensor) -> Tensor:
        return field(masks(x, request=request))

    compiled = torch.compile(call, fullgraph=True, backend="eager")
    assert torch.allclose(compiled(vectors, -vectors), call(vectors, -vectors), atol=1e-5)


def test_the_returned_object_is_not_changed(vectors, make_features) -> None:
    kept: list[dict[str, Tensor]] = []

    def wrap(scores: Tensor) -> dict[str, Tensor]:
        kept.append({"logits": scores})
        return kept[-1]

    masks = masked(Returns(wrap), {"field": "logits"}, True, make_features())
    output = masks(vectors, request=vectors)
    assert not torch.equal(kept[-1]["logits"], output["logits"])


@pytest.mark.parametrize(
    ("wrap", "options", "words"),
    [
        (
            lambda s: {"logits": s},
            {},
            r"found a dict, .*name one of the fields .'logits'. by target_outputs={''",
        ),
        (lambda s: (s, None), {}, "found a tuple, expected .*: return one, or"),
        (lambda s: s.detach().numpy(), {}, "found a ndarray, expected .*: return one, or"),
        (lambda s: Named(s, None), {}, "fields .'logits', 'note'"),
        (lambda s: None, {}, "found a NoneType"),
        (lambda s: s.argmax(-1), {}, "found a Tensor"),
        (lambda s: {"logits": s}, {"field": "scores"}, "in the field 'scores'"),
        (lambda s: Named(s, None), {"field": "note"}, "NoneType in the field 'note'"),
        (lambda s: s, {"field": "logits"}, "in the field 'logits' of a Tensor"),
    ],
)
def test_other_outputs_are_refused_under_a_request_alone(wrap, options, words: str, vectors, make_features) -> None:
    masks = masked(Returns(wrap), options, True, make_features())
    masks(vectors)
    with pytest.raises(RequestError, match=words) as raised:
        masks(vectors, request=vectors)
    assert "'the model itself'" in str(raised.value)


def test_another_width_is_refused(vectors) -> None:
    config = RequestMaskConfig(target_outputs={"": {"features": 19}}, request_dim=8)
    masks = inject_request_masks(Returns(lambda s: s), config)
    with pytest.raises(RequestError, match=r"found 20 features in an output of shape \(3, 20\), expected 19"):
        masks(vectors, request=vectors)


def test_other_numbers_of_rows_are_refused(make_described, x, vectors) -> None:
    with pytest.raises(RequestError, match="found 3 rows"):
        make_described()(x, request=vectors[:2])


# ---------------------------------------------------------------- chosen rows


@pytest.fixture(params=[True, False], ids=["values", "gates"])
def scored(request, make_scores, make_features) -> Any:
    return masked(make_scores(), {"candidates": "candidates"}, request.param, make_features(), "score")


@pytest.mark.parametrize("gradients", [True, False])
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
def test_candidates_have_the_scores_that_they_have_among_all(scored, x, vectors, gradients, shared, dtype) -> None:
    one, several = torch.tensor([3, 7, 1, 19]), torch.tensor([[1, 2], [3, 4], [19, 0]])
    with torch.set_grad_enabled(gradients), scored.request(vectors[0] if shared else vectors):
        whole = scored.model.score(x)
        assert torch.allclose(scored.model.score(x, one.to(dtype)), whole[:, one], atol=1e-5)
        assert torch.allclose(scored.model.score(x, candidates=several.to(dtype)), whole.gather(1, several), atol=1e-5)
        assert torch.allclose(scored.model.score(x, None), whole)


def test_candidates_of_rows_without_a_request(scored, x, vectors) -> None:
    several = torch.tensor([[1, 2], [3, 4], [19, 0]])
    frozen = scored.model.score(x, several)
    with scored.request([None, vectors[0], None]):
        found = scored.model.score(x, several)
    assert torch.equal(found[[0, 2]], frozen[[0, 2]])
    assert not torch.equal(found[1], frozen[1])


@pytest.mark.parametrize(
    "candidates", [torch.ones(20, dtype=torch.bool), torch.ones(1, 2, 2, dtype=torch.int64), [1, 2]]
)
def test_other_candidates_are_refused(scored, x, vectors, candidates: Any, monkeypatch) -> None:
    layer = next(m for n, m in scored.model.named_modules() if n == "masked_output_score")
    with scored.request(vectors), pytest.raises(RequestError, match="as 'candidates', expected row numbers"):
        layer(torch.zeros(3, 2), candidates)


class Keywords(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 20)

    def forward(self, *inputs: Tensor, candidates: Tensor | None = None) -> Tensor:
        scores = self.layer(inputs[0])
        return scores if candidates is None else scores[:, candidates]


def test_candidates_by_keyword_alone(vectors, make_features) -> None:
    masks = masked(Keywords(), {"candidates": "candidates"}, True, make_features())
    chosen = torch.tensor([4, 2])
    whole = masks(vectors, torch.zeros(1, 1), request=vectors)
    assert torch.allclose(
        masks(vectors, torch.zeros(1, 1), candidates=chosen, request=vectors), whole[:, chosen], atol=1e-5
    )


# ---------------------------------------------------------------- other ways into the module


def test_children_are_refused_where_the_request_would_not_reach(make_described, x, vectors) -> None:
    masks = make_described()
    expected = masks.model.predict(x)
    with masks.request(vectors):
        for call in (masks.model.predict, masks.model.items):
            with pytest.raises(RequestError, match="the module 'items' inside 'the model' was called by another way"):
                call(x)
        masks.model(x)
        with masks.disable_adapter():
            assert torch.equal(masks.model.predict(x), expected)
    with masks.request(None):
        assert torch.equal(masks.model.predict(x), expected)


def test_they_are_refused_under_merged_and_stored_requests_too(make_described, x, vectors) -> None:
    masks = make_described()
    masks.merge_request(vectors[0])
    with pytest.raises(RequestError, match="another way"):
        masks.model.predict(x)
    masks.unmerge()
    masks.model.predict(x)
    masks.set_default_request(vectors[0])
    with pytest.raises(RequestError, match="another way"):
        masks.model.predict(x)


def test_after_an_error_inside_the_method_they_are_refused_still(make_described, x, vectors) -> None:
    masks = make_described()
    with masks.request(vectors):
        with pytest.raises(IndexError):
            masks.model(x + 100)
        with pytest.raises(RequestError, match="another way"):
            masks.model.predict(x)


def test_check_effect_sees_outputs(make_described, x) -> None:
    assert [effect.module for effect in make_described().check_effect(x)] == [":forward"] * 2
    with pytest.raises(EffectError, match="set_row_features"):
        make_described(features=None).check_effect(x)
