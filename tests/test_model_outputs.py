"""Row values and masked outputs through the handle: states, merging, files, several adapters, ways to run."""

import threading
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from cramer_peft import MaskState, RequestMaskConfig, RequestMaskModel, inject_request_masks, load_request_masks
from cramer_peft.errors import BaseModelMismatchError, ConfigError, CramerError, MergeError, RequestError
from cramer_peft.export import RequestModule
from cramer_peft.masks import KEY_WIDTH

several = settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
OUTPUT: dict[str, Any] = {"target_outputs": [""], "row_features": [""], "request_dim": 8, "init_weights": False}
numbers = st.floats(-2, 2, width=32)


def values(masks: RequestMaskModel, x: Tensor, **request: Any) -> Tensor:
    return (masks(x, **request) - masks(x)).detach()


# ---------------------------------------------------------------- promises


@several
@given(asked=st.lists(st.booleans(), min_size=3, max_size=3), seed=st.integers(0, 999), training=st.booleans())
def test_rows_without_a_request_are_frozen_in_a_mixed_batch(make_described, x, asked, seed: int, training) -> None:
    masks = make_described().train(training)
    torch.manual_seed(seed)
    vectors = 3 * torch.randn(3, 8)
    output, frozen = masks(x, request=[v if ask else None for v, ask in zip(vectors, asked, strict=True)]), masks(x)
    alike = [bool(torch.equal(a, b)) for a, b in zip(output, frozen, strict=True)]
    assert alike == [not ask for ask in asked]
    others = -vectors
    others[0] = vectors[0]
    assert torch.equal(masks(x, request=others)[0], masks(x, request=vectors)[0])


def test_a_fresh_adapter_and_strength_0_are_the_frozen_model(make_described, x, vectors) -> None:
    masks = make_described(init_weights=True)
    assert torch.equal(masks(x, request=vectors), masks(x))
    masks = make_described()
    assert torch.equal(masks(x, request=vectors, request_strength=0.0), masks(x))
    assert torch.equal(masks(x, request=vectors, request_strength=[0.0, 1.0, 0.0])[0], masks(x)[0])


@several
@given(strength=st.lists(numbers, min_size=3, max_size=3))
def test_a_strength_scales_the_values(make_described, x, vectors, strength: list[float]) -> None:
    masks = make_described()
    expected = torch.tensor(strength)[:, None] * values(masks, x, request=vectors)
    assert torch.allclose(values(masks, x, request=vectors, request_strength=strength), expected, atol=1e-4)


@several
@given(factors=st.lists(numbers, min_size=3, max_size=3), gate=st.sampled_from(["low_rank", "scale", "signed"]))
def test_states_add_up_as_the_values_do(make_described, x, vectors, factors: list[float], gate: str) -> None:
    masks = make_described(gate=gate)
    a, b, c = (masks.mask_state(vectors[i]) for i in range(3))
    parts = [values(masks, x, request=state) for state in (a, b, c)]
    for state, expected in [
        (a + b, parts[0] + parts[1]),
        (-a, -parts[0]),
        (factors[0] * a + factors[1] * b - c, factors[0] * parts[0] + factors[1] * parts[1] - parts[2]),
    ]:
        assert torch.allclose(values(masks, x, request=state), expected, atol=1e-3)


@pytest.mark.parametrize("gate", ["low_rank", "scale", "signed", "topk"])
def test_a_state_of_several_rows_is_saved_and_says_what_the_requests_say(make_described, x, vectors, gate, tmp_path):
    masks = make_described(gate=gate)
    requests = [vectors[0], None, vectors[2]]
    state = masks.mask_state(requests)
    assert {part: tuple(v.shape) for part, v in state.tensors[":forward"].items()} == {"query": (3, KEY_WIDTH)}
    assert torch.equal(masks(x, request=state), masks(x, request=requests))
    state.save(tmp_path / "state.safetensors")
    assert torch.equal(masks(x, request=MaskState.load(tmp_path / "state.safetensors")), masks(x, request=requests))


def test_a_state_of_another_layout_is_refused(make_described, x, vectors) -> None:
    sided = make_described(request_sides={"wanted": 4, "unwanted": 4})
    with pytest.raises(RequestError, match="does not fit"):
        make_described()(x, request=sided.mask_state(vectors))


def test_a_state_serves_rows_that_were_added_later(make_described, make_features, vectors) -> None:
    more = torch.cat([make_features(), make_features(4, seed=1)])
    masks = make_described(model=Head(), name="")
    state = masks.mask_state(vectors)
    masks.set_row_features("", more[:20])
    assert masks(vectors, request=state).shape == (3, 20)


class Head(nn.Module):
    """A head with or without a bias below its root."""

    def __init__(self, bias: bool = True) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(8, 8), nn.Linear(8, 20, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.body(x)))


def with_head(features: Tensor, bias: bool = True, **options: Any) -> RequestMaskModel:
    config = RequestMaskConfig(**{"row_features": ["head"], "request_dim": 8, "init_weights": False, **options})
    masks = inject_request_masks(Head(bias).eval(), config)
    masks.set_row_features("head", features)
    return masks


def test_the_sides_of_an_encoder_are_compared(make_scores, make_features, x) -> None:
    class Sided:
        name, dim, sides = "sided", 6, {"wanted": 3, "unwanted": 3}

        def encode(self, texts: list[str]) -> Tensor:
            return torch.tensor([[float(len(text)), 1, 2, 3, 4, 5] for text in texts])

    config = RequestMaskConfig(target_outputs=[""], row_features=[""], encoder="sided")
    masks = inject_request_masks(make_scores(), config, encoder=Sided())
    assert masks.peft_config["default"].request_sides == {"wanted": 3, "unwanted": 3}
    with pytest.raises(RequestError, match="at least 3"):
        masks.set_row_features("", make_features(width=2))
    masks.set_row_features("", make_features())
    keys = masks.generator.row_keys[":forward"]
    assert keys is not None
    with torch.no_grad():
        keys.gains.copy_(torch.tensor([0.5, -0.25]))
    wanted, unwanted = Sided().encode(["more"])[0].split(3)
    expected = 8 * make_features()[:, :3] @ (0.5 * wanted - 0.25 * unwanted)
    assert torch.allclose(values(masks, x, request="more"), expected.expand(3, -1), atol=1e-3)
    masks(x, request="more").square().sum().backward()
    assert bool((keys.gains.grad != 0).all())


def test_every_parameter_is_trained(make_described, x, vectors) -> None:
    masks = make_described(request_sides={"wanted": 4, "unwanted": 4}).train()
    masks(x, request=vectors).square().sum().backward()
    assert all(bool(p.grad.abs().sum() > 0) for p in masks.generator.parameters())
    assert all(p.grad is None for p in masks.model.parameters())


# ---------------------------------------------------------------- merging


def test_a_request_is_merged_into_a_bias(make_features, vectors) -> None:
    masks = with_head(make_features(), target_modules=["body"])
    expected, frozen, bias = masks(vectors, request=vectors[0]), masks(vectors), masks.model.head.base_layer.bias
    masks.merge_request(vectors[0])
    assert torch.allclose(masks(vectors), expected, atol=1e-5)
    masks.unmerge()
    assert masks.model.head.base_layer.bias is bias
    assert torch.equal(masks(vectors), frozen)
    masks.merge_request(vectors[0])
    assert torch.allclose(masks.merge_and_unload()(vectors), expected, atol=1e-5)


def test_without_a_bias_it_is_refused_by_name(make_features, vectors) -> None:
    masks = with_head(make_features(), bias=False)
    frozen = masks(vectors)
    with pytest.raises(MergeError, match=r"module 'head': its row values are added.*have to add a bias"):
        masks.merge_request(vectors[0])
    assert torch.equal(masks(vectors), frozen)
    assert not masks.merged


def test_an_output_keeps_its_mask_when_merged(make_described, x, vectors) -> None:
    masks = make_described()
    expected, frozen = masks(x, request=vectors[0]), masks(x)
    masks.merge_request(vectors[0])
    assert torch.allclose(masks(x), expected, atol=1e-5)
    with masks.disable_adapter():
        assert torch.equal(masks(x), frozen)
    with pytest.raises(MergeError, match="':forward'"):
        masks.merge_and_unload()
    masks.unmerge()
    assert torch.equal(masks(x), frozen)
    assert torch.equal(masks.unload()(x), frozen)


# ---------------------------------------------------------------- several adapters


def test_two_adapters_on_one_output(make_described, make_features, x, vectors) -> None:
    masks = make_described()
    masks.add_adapter("b", RequestMaskConfig(**OUTPUT))
    with pytest.raises(RequestError, match="row features are not set"):
        masks(x, request=list(vectors), adapter_names=["b"] * 3)
    masks.set_row_features("", make_features(width=7), "b")
    alone = {}
    for name in ("default", "b"):
        masks.set_adapter(name)
        alone[name] = masks(x, request=vectors)
    frozen = masks(x)
    mixed = masks(x, request=list(vectors), adapter_names=["default", "b", "__base__"])
    assert torch.equal(mixed, torch.stack([alone["default"][0], alone["b"][1], frozen[2]]))
    masks.set_adapter(["default", "b"])
    assert torch.allclose(masks(x, request=vectors), alone["default"] + alone["b"] - frozen, atol=1e-5)
    masks.delete_adapter("default")
    assert torch.equal(masks(x, request=vectors), alone["b"])


def test_gates_and_values_take_turns(make_described, x, vectors) -> None:
    masks = make_described()
    gates = {"target_outputs": {"": {"features": 20}}, "request_dim": 8, "init_weights": False}
    masks.add_adapter("gates", RequestMaskConfig(**gates))
    masks.set_adapter("gates")
    assert not torch.equal(masks(x, request=vectors), masks(x))
    with pytest.raises(ConfigError, match="one by gates and one by row values"):
        masks(x, request=list(vectors), adapter_names=["default", "gates", "gates"])
    masks.set_adapter(["default", "gates"])
    with pytest.raises(ConfigError, match="one by gates and one by row values"):
        masks(x, request=vectors)
    with pytest.raises(ConfigError, match="another adapter masks ':forward'"):
        masks.add_adapter("field", RequestMaskConfig(**{**OUTPUT, "target_outputs": {"": {"field": "scores"}}}))


def test_values_are_added_after_another_adapter_s_gates(make_features, vectors) -> None:
    masks = with_head(make_features())
    masks.add_adapter("gates", RequestMaskConfig(target_modules=["head"], request_dim=8, init_weights=False))
    added = values(masks, vectors, request=vectors)
    masks.set_adapter("gates")
    gated = masks(vectors, request=vectors)
    masks.set_adapter(["default", "gates"])
    assert torch.allclose(masks(vectors, request=vectors), gated + added, atol=1e-5)
    both = masks(vectors, request=vectors[0])
    masks.merge_request(vectors[0])
    assert torch.allclose(masks(vectors), both, atol=1e-5)


# ---------------------------------------------------------------- files


@pytest.mark.parametrize("door", ["ours", "peft"])
@pytest.mark.parametrize("options", [OUTPUT, {**OUTPUT, "exclude_modules": "(a+)+x"}], ids=["", "pattern"])
def test_an_adapter_is_saved_without_its_features(make_scores, make_features, x, vectors, tmp_path, door, options):
    wrapped = get_peft_model(make_scores(), RequestMaskConfig(**options)).eval()
    masks = wrapped.base_model
    masks.set_row_features("", make_features())
    expected = masks(x, request=vectors)
    wrapped.save_pretrained(tmp_path)
    if door == "ours":
        loaded = found = load_request_masks(make_scores(), tmp_path)
    else:
        loaded = PeftModel.from_pretrained(make_scores(), tmp_path).eval()
        found = loaded.base_model
    with pytest.raises(RequestError, match="not stored with an adapter"):
        loaded(x, request=vectors)
    with pytest.raises(BaseModelMismatchError, match="row features of ''"):
        found.set_row_features("", make_features(seed=1))
    found.set_row_features("", make_features())
    assert torch.equal(loaded(x, request=vectors), expected)
    assert not any("features" in name for name in found.generator.state_dict())


def test_an_adapter_whose_features_were_never_set_is_loaded(make_described, make_scores, make_features, tmp_path, x):
    make_described(features=None).save_pretrained(tmp_path)
    masks = load_request_masks(make_scores(), tmp_path)
    masks.set_row_features("", make_features(width=3))
    masks(x, request=torch.ones(8))


def test_without_the_check_of_the_base_other_features_are_taken(make_described, make_features, tmp_path, x, vectors):
    from torch.nn.utils import vector_to_parameters

    make_described().save_pretrained(tmp_path)
    other = type(make_described().model)().eval()
    vector_to_parameters(torch.randn(sum(p.numel() for p in other.parameters())), other.parameters())
    with pytest.raises(BaseModelMismatchError):
        load_request_masks(other, tmp_path)
    masks = load_request_masks(other, tmp_path, check_base=False)
    masks.set_row_features("", make_features(30)[:20].flip(0))
    masks(x, request=vectors)


@pytest.mark.parametrize("check_base", [True, False])
def test_hotswap(make_described, make_features, tmp_path, x, vectors, check_base: bool) -> None:
    other = make_described()
    with torch.no_grad():
        for parameter in other.generator.parameters():
            parameter.add_(0.1)
    other.save_pretrained(tmp_path)
    masks = make_described()
    with torch.no_grad():
        masks(x, request=vectors)
        masks.hotswap_adapter(tmp_path, check_base=check_base)
        assert torch.equal(masks(x, request=vectors), other(x, request=vectors))
    described = make_described(features=make_features(seed=1))
    if check_base:
        with pytest.raises(BaseModelMismatchError, match="row features"):
            described.hotswap_adapter(tmp_path)
    else:
        described.hotswap_adapter(tmp_path, check_base=False)


SUMS = [1.0] * 19
HOSTILE: list[tuple[str, Any]] = [
    ("target_outputs", "forward"),
    ("target_outputs", [1]),
    ("target_outputs", {"": []}),
    ("target_outputs", {"": {"features": 0}}),
    ("target_outputs", {"": {"features": True}}),
    ("target_outputs", {"": {"features": 2**62}}),
    ("target_outputs", {"": {"field": 3}}),
    ("target_outputs", {"": {"other": "x"}}),
    ("target_outputs", {"": {"candidates": "nothing"}}),
    ("target_outputs", ["__class__"]),
    ("target_outputs", ["_call_impl"]),
    ("target_outputs", ["__init__"]),
    ("target_outputs", ["load_state_dict"]),
    ("target_outputs", ["gone"]),
    ("target_outputs", ["", "forward"]),
    ("target_outputs", ["x" * 100_000]),
    ("target_outputs", [f"m{i}" for i in range(100_000)]),
    ("target_outputs", []),
    ("target_outputs", None),
    ("row_features", "head"),
    ("row_features", {"": -1}),
    ("row_features", {"": True}),
    ("row_features", {"": 2**62}),
    ("row_features", {"": 6}),
    ("row_features", {"": None}),
    ("row_features", {"": [5]}),
    ("row_features", {"layer": 5}),
    ("row_features", ["x" * 100_000]),
    ("row_features", None),
    ("row_fingerprints", [1.0]),
    ("row_fingerprints", {":forward": "x"}),
    ("row_fingerprints", {":forward": [1.0]}),
    ("row_fingerprints", {":forward": [float("nan")] * 19}),
    ("row_fingerprints", {":forward": [10**400] * 19}),
    ("row_fingerprints", {":forward": [True] * 18 + ["1"]}),
    ("request_sides", []),
    ("request_sides", {"a": 3, "b": 5}),
    ("request_sides", {"a": 4}),
    ("request_sides", {"a": 4, "b": 4}),
    ("request_sides", {"a": 2**62}),
    ("masked_modules", {":forward": [20]}),
    ("masked_modules", {"gone:forward": []}),
]


@pytest.mark.parametrize(("name", "value"), HOSTILE, ids=lambda value: str(value)[:40])
def test_files_from_strangers(make_described, make_scores, edit_json, snapshot, tmp_path, name: str, value: Any):
    make_described().save_pretrained(tmp_path)
    edit_json(tmp_path / "adapter_config.json", **{name: value})
    model = make_scores()
    before = snapshot(model)
    with pytest.raises(CramerError) as raised:
        load_request_masks(model, tmp_path)
    assert len(str(raised.value)) < 9000
    assert before.differences(model) == []


# ---------------------------------------------------------------- ways to run


@pytest.mark.parametrize("gradients", [True, False])
def test_one_graph(make_described, x, vectors, gradients: bool) -> None:
    masks = make_described(request_sides={"wanted": 4, "unwanted": 4})
    torch._dynamo.reset()
    compiled = torch.compile(lambda x, request: masks(x, request=request), fullgraph=True, backend="aot_eager")
    with torch.set_grad_enabled(gradients):
        assert torch.allclose(compiled(x, vectors), masks(x, request=vectors), atol=1e-5)
        assert torch.allclose(compiled(x, -vectors), masks(x, request=-vectors), atol=1e-5)


def test_export(make_described, x, vectors) -> None:
    masks = make_described()
    active = torch.tensor([True, False, True])
    exported = torch.export.export(RequestModule(masks, with_active=True), (x, vectors, active)).module()
    found = exported(x, vectors, active)
    assert torch.allclose(found, masks(x, request=[vectors[0], None, vectors[2]]), atol=1e-5)
    assert torch.equal(found[1], masks(x)[1])


def test_vmap_over_requests(make_described, x, vectors) -> None:
    masks = make_described()
    for gradients in (True, False):
        with torch.set_grad_enabled(gradients):
            found = torch.vmap(lambda request: masks(x, request=request))(vectors)
            for row in range(3):
                assert torch.allclose(found[row], masks(x, request=vectors[row]), atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_and_half_precision(make_described, make_scores, make_features, x, vectors, dtype) -> None:
    model = make_scores().to(dtype)
    masks = make_described(model=model)
    assert {p.dtype for p in masks.generator.parameters()} == {torch.float32}
    output = masks(x, request=[vectors[0], None, vectors[2]])
    assert output.dtype == dtype
    assert torch.equal(output[1], model(x)[1])
    masks = make_described(init_weights=True)
    with torch.autocast("cpu", dtype=dtype):
        assert torch.equal(masks(x, request=vectors), masks(x))


def test_threads(make_described, x, vectors) -> None:
    masks = make_described()
    expected = [masks(x, request=vector).detach() for vector in vectors]
    wrong: list[int] = []

    def work(row: int) -> None:
        for _ in range(20):
            with masks.request(vectors[row]), torch.no_grad():
                if not torch.equal(masks.model(x), expected[row]):
                    wrong.append(row)

    with torch.no_grad():
        expected = [masks(x, request=vector) for vector in vectors]
    threads = [threading.Thread(target=work, args=(row,)) for row in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


class Checkpointed(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.options = inner, None

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) if self.options is None else checkpoint(self.inner, x, **self.options)


def test_gradient_checkpointing(make_described, make_scores, x, vectors) -> None:
    model = Checkpointed(make_scores())
    masks = make_described("inner", model)
    gradients = []
    for options in (None, {"use_reentrant": False, "context_fn": masks.checkpoint_contexts}):
        model.options = options
        masks.zero_grad()
        masks(x, request=vectors).square().sum().backward()
        gradients.append([p.grad.clone() for p in masks.generator.parameters() if p.grad is not None])
    assert gradients[0]
    assert all(torch.allclose(a, b) for a, b in zip(*gradients, strict=True))


def test_beside_lora(make_described, make_scores, x, vectors, snapshot) -> None:
    lora = LoraConfig(target_modules=["layer"], r=2, init_lora_weights=False)
    model = get_peft_model(make_scores(), lora).eval()
    before, frozen = snapshot(model), model(x)
    masks = make_described(model=model)
    output = masks(x, request=[vectors[0], None, vectors[2]])
    assert torch.equal(output[1], frozen[1])
    assert not torch.equal(output[0], frozen[0])
    masks.unload()
    assert before.differences(model) == []


def test_reports(make_described) -> None:
    masks = make_described()
    assert "query" not in masks.model_card() or masks.model_card()
    assert [status.name for status in masks.get_layer_status()] == ["model.masked_output"]
    masks.get_model_status()


# ---------------------------------------------------------------- one result, several requests


def test_several_requests_mask_one_result_of_the_frozen_model(vectors, make_features) -> None:
    masks = inject_request_masks(
        Head().eval(), RequestMaskConfig(request_dim=8, target_outputs=[""], row_features=[""], init_weights=False)
    )
    masks.set_row_features("", make_features())
    with torch.no_grad():
        frozen = masks(vectors)
        for request in vectors:
            with masks.request(request):
                assert torch.equal(masks.mask_output(frozen), masks(vectors, request=request))
        assert masks.mask_output(frozen) is frozen
    with pytest.raises(ConfigError, match="no target output"):
        masks.mask_output(frozen, "head")


class Twice(nn.Module):
    """A model one of whose methods calls another, as RePlay's."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 20)

    def score(self, x: Tensor) -> Tensor:
        return self.layer(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.score(x)


@pytest.mark.parametrize("in_place", [False, True])
def test_values_are_added_once_where_one_masked_method_calls_another(vectors, make_features, in_place) -> None:
    options = {"in_place": in_place}
    config = RequestMaskConfig(
        request_dim=8,
        target_outputs={"": options, "score": options},
        row_features=["", "score"],
        init_weights=False,
    )
    masks = inject_request_masks(Twice().eval(), config)
    for name in ("", "score"):
        masks.set_row_features(name, make_features())
    with torch.no_grad(), masks.request(vectors):
        assert torch.equal(masks.model(vectors), masks.model.score(vectors))


def test_values_added_in_place_are_the_same(vectors, make_features) -> None:
    found = []
    for in_place in (False, True):
        torch.manual_seed(0)
        config = RequestMaskConfig(
            request_dim=8, target_outputs={"": {"in_place": in_place}}, row_features=[""], init_weights=False
        )
        masks = inject_request_masks(Twice().eval(), config)
        masks.set_row_features("", make_features())
        with torch.no_grad():
            frozen = masks(vectors)
            found.append(masks(vectors, request=vectors))
            mixed = masks(vectors, request=[vectors[0], None, vectors[2]])
        assert torch.equal(mixed[1], frozen[1])
        assert torch.equal(mixed[0], found[-1][0])
    assert torch.equal(*found)


class NoParameters(nn.Module):
    """A recommender of another library: it holds no tensor of torch, or a buffer alone."""

    def __init__(self, table: Tensor, registered: bool) -> None:
        super().__init__()
        if registered:
            self.register_buffer("table", table)
        else:
            self.__dict__["table"] = table

    def forward(self, users: Tensor) -> Tensor:
        return self.table[users]


@pytest.mark.parametrize("registered", [False, True], ids=["nothing", "buffer"])
@pytest.mark.parametrize("options", [{"row_features": [""]}, {"target_outputs": {"": {"features": 6}}}])
def test_a_module_without_parameters_follows_requests(registered: bool, options: dict, tmp_path) -> None:
    table, users, requests = torch.randn(5, 6), torch.tensor([1, 3]), torch.randn(2, 4)
    config = RequestMaskConfig(request_dim=4, init_weights=False, **{"target_outputs": [""], **options})

    def described(masks):
        if "row_features" in options:
            masks.set_row_features("", torch.linspace(-1, 1, 18).reshape(6, 3))
        return masks.eval()

    model = NoParameters(table, registered).eval()
    masks = described(inject_request_masks(model, config))
    asked = masks(users, request=requests)
    assert not torch.allclose(asked, table[users])
    assert torch.equal(masks(users), table[users])
    masks.save_pretrained(tmp_path)
    masks.unload()
    assert torch.equal(model(users), table[users])
    again = described(load_request_masks(model, tmp_path))
    assert torch.equal(again(users, request=requests), asked)


class PredictsAlone(nn.Module):
    """A module without a forward."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.as_array = nn.Linear(4, 6), False

    def predict(self, x: Tensor) -> Any:
        return self.layer(x).detach().numpy() if self.as_array else self.layer(x)


def test_a_method_of_a_module_without_forward_follows_requests() -> None:
    model, x, requests = PredictsAlone().eval(), torch.randn(2, 4), torch.randn(2, 4)
    options = {"target_outputs": {"predict": {"features": 6}}, "request_dim": 4, "init_weights": False}
    frozen = model.predict(x)
    masks = inject_request_masks(model, RequestMaskConfig(**options)).eval()
    with masks.request(requests):
        asked = model.predict(x)
        assert torch.equal(masks.mask_output(frozen, "predict"), asked)
        model.as_array = True
        with pytest.raises(RequestError, match=r"'predict': found a ndarray, .*: return one, or call"):
            model.predict(x)
        with pytest.raises(RequestError, match="'predict': found a ndarray"):
            masks.mask_output(frozen.detach().numpy(), "predict")
    assert not torch.allclose(asked, frozen)
    masks.unload()
    assert "predict" not in vars(model)
