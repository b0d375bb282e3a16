"""Several adapters on one model: what being active together means, rows of their own, and taking them off again."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import PeftModel, get_peft_model
from torch import Tensor, nn

from cramer_peft import (
    HashingEncoder,
    PrecomputedEncoder,
    RequestMaskConfig,
    RequestMaskModel,
    inject_request_masks,
    load_request_masks,
)
from cramer_peft.errors import ConfigError, MergeError, RequestError, UnsupportedError

GATES = ("low_rank", "scale", "topk")
DIM = 4
REQUESTS = ["more horror", None, "nothing sad"]
quick = settings(max_examples=30)


def build(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 5)).eval().requires_grad_(False)


def config(gate: str, **options) -> RequestMaskConfig:
    values = {"target_modules": ["0", "2"], "request_dim": DIM, "init_weights": False}
    values |= {"drop_ratio": 0.3} if gate == "topk" else {}
    return RequestMaskConfig(gate=gate, **{**values, **options})


def adapted(gates: tuple[str, ...], options: tuple[dict, ...] = ({}, {}, {})) -> RequestMaskModel:
    masks = inject_request_masks(build(), config(gates[0], **options[0]), adapter_name="a")
    for name, gate, more in zip("bc", gates[1:], options[1:], strict=False):
        masks.add_adapter(name, config(gate, **more))
    return masks


def folded(masks: RequestMaskModel, requests: dict[str, Tensor], row: int, x: Tensor) -> Tensor:
    """The frozen model with the masks of all adapters folded into its weights, one after the other."""
    active = masks.active_names()
    copy = build()
    for name, vectors in requests.items():
        masks.set_adapter(name)
        for module, gate in masks.masks_for(vectors).items():
            layer = copy.get_submodule(module)
            weight, bias = gate.fold(layer.weight, layer.bias, row)
            layer.weight, layer.bias = nn.Parameter(weight.detach()), nn.Parameter(bias.detach())
    masks.set_adapter(active)
    return copy(x[row : row + 1])[0]


PAIRS = [pair for pair in itertools.product(GATES, GATES) if pair != ("low_rank", "low_rank")]


@pytest.mark.parametrize("gates", PAIRS, ids="-".join)
def test_active_together_the_masks_multiply_entrywise(gates: tuple[str, str]) -> None:
    masks, x = adapted(gates), torch.randn(3, 6)
    masks.set_adapter(["a", "b"])
    requests = {name: torch.randn(3, DIM) for name in "ab"}
    output = masks(x, request=requests)
    for row in range(3):
        assert torch.allclose(output[row], folded(masks, requests, row, x), atol=1e-5)
    shared = torch.randn(3, DIM)
    assert torch.equal(masks(x, request=shared), masks(x, request={"a": shared, "b": shared}))


def test_deviations_of_low_rank_add_up_within_one_mask() -> None:
    masks, x = adapted(("low_rank", "low_rank"), ({}, {"rank": 2})), torch.randn(3, 6)
    vectors = torch.randn(3, DIM)
    masks.set_adapter(["a"])
    one = {name: gate.weight_mask() for name, gate in masks.masks_for(vectors).items()}
    masks.set_adapter(["b"])
    other = {name: gate.weight_mask() for name, gate in masks.masks_for(vectors).items()}
    masks.set_adapter(["a", "b"])
    together = masks.masks_for(vectors)
    for name, gate in together.items():
        assert torch.allclose(gate.weight_mask(), one[name] + other[name] - 1, atol=1e-5)
    output = masks(x, request=vectors)
    layer = masks.model[0]
    weight, bias = together["0"].fold(layer.weight_matrix, layer.base_bias, 0)
    hidden = torch.tanh(nn.functional.linear(x[:1], weight, bias))
    weight, bias = together["2"].fold(masks.model[2].weight_matrix, masks.model[2].base_bias, 0)
    assert torch.allclose(nn.functional.linear(hidden, weight, bias)[0], output[0], atol=1e-5)


@quick
@given(gates=st.tuples(*[st.sampled_from(GATES)] * 2), asked=st.lists(st.booleans(), min_size=6, max_size=6))
def test_rows_that_ask_one_adapter_or_none(gates: tuple[str, str], asked: list[bool]) -> None:
    masks, x, vectors = adapted(gates), torch.randn(3, 6), torch.randn(2, 3, DIM)
    frozen = masks(x)
    requests = {
        name: [vector if asked[3 * i + row] else None for row, vector in enumerate(vectors[i])]
        for i, name in enumerate("ab")
    }
    alone = {}
    for name in "ab":
        masks.set_adapter(name)
        alone[name] = masks(x, request=requests[name])
    masks.set_adapter(["a", "b"])
    output = masks(x, request=requests)
    for row in range(3):
        asks = [asked[row], asked[3 + row]]
        if not any(asks):
            assert torch.equal(output[row], frozen[row])
        elif not all(asks):
            assert torch.allclose(output[row], alone["a" if asks[0] else "b"][row], atol=1e-5)


@quick
@given(
    gate=st.sampled_from(GATES),
    names=st.lists(st.sampled_from(["a", "b", "__base__"]), min_size=4, max_size=4),
    others=st.lists(st.sampled_from(["a", "b", "__base__"]), min_size=4, max_size=4),
    row=st.integers(0, 3),
)
def test_a_rows_bits_do_not_depend_on_the_other_rows_adapters(
    gate: str, names: list[str], others: list[str], row: int
) -> None:
    """For adapters of one form; those of different forms run one after the other, equal to rounding."""
    masks, x, vectors = adapted((gate, gate)), torch.randn(4, 6), torch.randn(4, DIM)
    frozen, output = masks(x), masks(x, request=vectors, adapter_names=names)
    changed = [name if i == row else others[i] for i, name in enumerate(names)]
    strangers = torch.randn(4, DIM)
    strangers[row] = vectors[row]
    assert torch.equal(masks(x, request=strangers, adapter_names=changed)[row], output[row])
    for i, name in enumerate(names):
        if name == "__base__":
            assert torch.equal(output[i], frozen[i])
        else:
            masks.set_adapter(name)
            assert torch.equal(masks(x, request=vectors, adapter_names=[name] * 4)[i], output[i])
            assert torch.allclose(masks(x, request=vectors)[i], output[i], atol=1e-5)


@quick
@given(gates=st.tuples(*[st.sampled_from(GATES)] * 3), names=st.lists(st.sampled_from("abc"), min_size=3, max_size=3))
def test_mixed_batches_of_any_forms(gates: tuple[str, str, str], names: list[str]) -> None:
    masks = adapted(gates, ({}, {"target_modules": ["2"]}, {"generator_width": None}))
    x, vectors = torch.randn(3, 6), torch.randn(3, DIM)
    output = masks(x, request=vectors, adapter_names=names)
    with masks.request(vectors, adapter_names=names):
        assert torch.equal(masks.model(x), output)
    for row, name in enumerate(names):
        masks.set_adapter(name)
        assert torch.allclose(masks(x, request=vectors)[row], output[row], atol=1e-5)


def test_each_adapter_has_its_own_encoder() -> None:
    masks = inject_request_masks(build(), config("scale", request_dim=None), "a", encoder=HashingEncoder(7))
    table = PrecomputedEncoder({"more horror": torch.randn(3), "nothing sad": torch.randn(3)})
    masks.add_adapter("b", config("low_rank", request_dim=None), encoder=table)
    x = torch.randn(3, 6)
    assert (masks.adapter("a").generator.request_dim, masks.adapter("b").generator.request_dim) == (7, 3)
    masks.set_adapter(["a", "b"])
    text, vectors = masks(x, request=REQUESTS), table.encode(["more horror", "nothing sad"])
    apart = {"a": REQUESTS, "b": [vectors[0], None, vectors[1]]}
    assert torch.equal(masks(x, request=apart), text)
    mixed = masks(x, request=REQUESTS, adapter_names=["a", "b", "b"])
    assert torch.equal(mixed[1], build()(x)[1])


def test_what_cannot_be_together_is_refused() -> None:
    masks = adapted(("scale", "low_rank"), ({}, {"batch_dim": 1}))
    with pytest.raises(ConfigError, match="batch_dim"):
        masks.set_adapter(["a", "b"])
    with pytest.raises(ConfigError, match="no adapter 'z'"):
        masks.set_adapter(["a", "z"])
    assert masks.active_names() == ["a"]
    masks = adapted(("scale", "low_rank"))
    x = torch.randn(3, 6)
    with pytest.raises(RequestError, match="active adapters are"):
        masks(x, request={"b": torch.randn(DIM)})
    masks.set_adapter(["a", "b"])
    with pytest.raises(RequestError, match="different numbers of rows"):
        masks(x, request={"a": torch.randn(3, DIM), "b": torch.randn(2, DIM)})
    with pytest.raises(RequestError, match="2 requests"):
        masks(x, request=torch.randn(3, DIM)[:2], adapter_names=["a", "b", "a"])
    state = masks.mask_state(torch.randn(3, DIM))
    with pytest.raises(RequestError, match="not a MaskState"):
        masks(x, request=state, adapter_names=["a", "b", "a"])
    assert torch.equal(masks(x, request=state), masks(x, request={"a": state}))
    with pytest.raises(UnsupportedError, match="neither adapter"):
        masks.add_weighted_adapter(["a", "b"], [0.5, 0.5], "c")


def test_deleting_one_of_several_active_keeps_the_others() -> None:
    masks, x, vectors = adapted(GATES), torch.randn(3, 6), torch.randn(3, DIM)
    masks.set_adapter("b")
    expected = masks(x, request=vectors)
    masks.set_adapter(["c", "b"])
    masks.delete_adapter("c")
    assert masks.active_names() == ["b"]
    assert torch.equal(masks(x, request=vectors), expected)
    assert all(p.requires_grad for p in masks.adapter("b").generator.parameters())
    assert not any(p.requires_grad for p in masks.adapter("a").generator.parameters())
    masks.delete_adapter("b")
    assert masks.active_names() == ["a"]


@pytest.mark.parametrize("door", ["ours", "peft"])
def test_disabling_nests_and_ends_with_exceptions(door: str) -> None:
    x, vectors = torch.randn(3, 6), torch.randn(3, DIM)
    if door == "ours":
        masks = inject_request_masks(build(), config("low_rank"))
    else:
        masks = get_peft_model(build(), config("low_rank")).eval()
    frozen, output = build()(x), masks(x, request=vectors)
    with masks.disable_adapter():
        with pytest.raises(KeyError), masks.disable_adapter():
            raise KeyError
        assert torch.equal(masks(x, request=vectors), frozen)
    assert torch.equal(masks(x, request=vectors), output)
    with pytest.raises(RuntimeError), masks.disable_adapter():
        raise RuntimeError
    assert torch.equal(masks(x, request=vectors), output)
    with masks.disable_adapter():
        assert torch.equal(masks(x, request=vectors, adapter_names=["default"] * 3), frozen)


def test_through_peft_and_files(tmp_path) -> None:
    wrapped = get_peft_model(build(), config("scale"), adapter_name="a").eval()
    wrapped.add_adapter("b", config("low_rank", target_modules=["2"]))
    x, vectors = torch.randn(3, 6), torch.randn(3, DIM)
    wrapped.base_model.set_adapter(["a", "b"])
    together = wrapped(x, request=vectors)
    mixed = wrapped(x, request=vectors, adapter_names=["a", "b", "__base__"])
    assert torch.equal(mixed[2], build()(x)[2])
    wrapped.save_pretrained(tmp_path)
    ours = load_request_masks(build(), tmp_path / "a", adapter_name="a")
    ours.load_adapter(tmp_path / "b", "b")
    theirs = PeftModel.from_pretrained(build(), tmp_path / "a", adapter_name="a", low_cpu_mem_usage=True)
    theirs.load_adapter(tmp_path / "b", adapter_name="b", low_cpu_mem_usage=True)
    for again, tuner in ((ours, ours), (theirs, theirs.base_model)):
        assert torch.equal(again(x, request=vectors, adapter_names=["a", "b", "__base__"]), mixed)
        tuner.set_adapter(["a", "b"])
        assert torch.equal(again(x, request=vectors), together)


@pytest.mark.parametrize("door", ["ours", "peft"])
def test_each_adapter_saves_its_own_modules(door: str, tmp_path) -> None:
    saved = {"target_modules": ["0"], "modules_to_save": ["2"]}
    x, vectors = torch.randn(3, 6), torch.randn(3, DIM)
    if door == "ours":
        masks = inject_request_masks(build(), config("scale", **saved), "a")
    else:
        masks = get_peft_model(build(), config("scale", **saved), "a").eval()
    masks.add_adapter("b", config("low_rank", **saved))
    tuner = masks if door == "ours" else masks.base_model
    outputs = {}
    for name, shift in (("a", 1.0), ("b", -1.0)):
        masks.set_adapter(name)
        with torch.no_grad():
            tuner.model[2].modules_to_save[name].bias.add_(shift)
        assert tuner.model[2].modules_to_save[name].bias.requires_grad
        outputs[name] = masks(x, request=vectors)
    with masks.disable_adapter():
        assert torch.equal(masks(x, request=vectors), build()(x))
    for name in "ab":
        tuner.save_pretrained(tmp_path / name, adapter_name=name)
        again = load_request_masks(build(), tmp_path / name)
        assert torch.equal(again(x, request=vectors), outputs[name])
    masks.delete_adapter("b")
    assert masks.active_adapters == ["a"]
    assert torch.equal(masks(x, request=vectors), outputs["a"])
    plain = masks.unload()
    assert torch.equal(plain(x), build()(x))


def test_rows_of_an_adapter_that_expects_them_elsewhere_are_refused() -> None:
    masks = adapted(("low_rank", "low_rank"), ({}, {"batch_dim": 1}))
    x, vectors = torch.randn(3, 3, 6), torch.randn(3, DIM)  # square, so that no shape would tell
    with pytest.raises(ConfigError, match=r"'0': adapter 'b' expects its rows by batch_dim=1"):
        masks(x, request=vectors, adapter_names=["b"] * 3)
    masks.set_adapter("b")
    wanted = masks(x, request=vectors)
    assert torch.equal(masks(x, request=vectors, adapter_names=["b"] * 3), wanted)
    with pytest.raises(ConfigError, match="'a' expects its rows by batch_dim=0"):
        masks(x, request=vectors, adapter_names=["a", "b", "__base__"])


def test_names_are_counted_where_the_active_adapter_has_its_rows() -> None:
    masks = adapted(("low_rank", "low_rank"), ({}, {"batch_dim": 1}))
    masks.set_adapter("b")
    x, vectors = torch.randn(5, 3, 6), torch.randn(3, DIM)
    assert torch.equal(masks(x, request=vectors, adapter_names=["b"] * 3), masks(x, request=vectors))


def test_strengths_of_other_adapters_rows_do_not_bother_a_binary_gate() -> None:
    masks = adapted(("low_rank", "topk"))
    x, vectors = torch.randn(3, 6), torch.randn(3, DIM)
    mixed = masks(x, request=vectors, adapter_names=["a", "b", "__base__"], request_strength=[0.5, 1.0, 0.3])
    alone = masks(x, request=[vectors[0], None, None], request_strength=[0.5, 1.0, 0.3])
    assert torch.allclose(mixed[0], alone[0], atol=1e-6)
    assert torch.equal(mixed[2], masks(x)[2])
    with pytest.raises(RequestError, match="only 0 and 1"):
        masks(x, request=vectors, adapter_names=["a", "b", "b"], request_strength=[0.5, 1.0, 0.3])


@pytest.mark.parametrize("default", [False, True])
def test_names_are_refused_while_a_request_is_merged(default: bool) -> None:
    masks = adapted(("low_rank", "low_rank"))
    x, names = torch.randn(3, 6), ["a", "__base__", "b"]
    if default:
        masks.set_default_request(torch.randn(DIM))
    masks.merge_request(torch.randn(DIM))
    with pytest.raises(MergeError, match="unmerge"):
        masks(x, adapter_names=names)
    with pytest.raises(MergeError, match="unmerge"):
        masks.lazy_masks(None, None, names)
    with masks.disable_adapter():
        assert torch.equal(masks(x, adapter_names=names), build()(x))


def test_an_adapter_named_twice_is_active_once() -> None:
    masks = adapted(("low_rank", "low_rank"))
    masks.set_default_request(torch.randn(DIM))
    x = torch.randn(3, 6)
    once = masks(x)
    masks.set_adapter(["a", "a"])
    assert masks.active_names() == ["a"]
    assert torch.equal(masks(x), once)


@pytest.mark.parametrize("requests", [5, torch.tensor(1.0)])
def test_requests_beside_names_must_be_requests(requests) -> None:
    masks = adapted(("low_rank", "low_rank"))
    with pytest.raises(RequestError, match="one for each row"):
        masks(torch.randn(3, 6), request=requests, adapter_names=["a", "b", "a"])


@pytest.mark.parametrize(("names", "error"), [("a", RequestError), (7, RequestError), (["a", None, "z"], ConfigError)])
def test_names_must_be_names(names, error: type[Exception]) -> None:
    masks = adapted(("low_rank", "low_rank"))
    for call in (
        lambda: masks(torch.randn(3, 6), request=torch.randn(DIM), adapter_names=names),
        lambda: masks.lazy_masks(torch.randn(DIM), None, names),
    ):
        with pytest.raises(error, match="adapter_names"):
            call()


def test_deleting_what_is_not_there_or_is_merged() -> None:
    masks = adapted(("low_rank", "low_rank"))
    with pytest.raises(ConfigError, match=r"Adapter z does not exist; there are \['a', 'b'\]"):
        masks.delete_adapter("z")
    masks.merge_request(torch.randn(DIM))
    with pytest.raises(MergeError, match="while they are merged"):
        masks.delete_adapter("a")
    masks.unmerge()
    masks.delete_adapter("a")
    assert masks.active_names() == ["b"]


def test_what_is_added_must_be_a_configuration() -> None:
    masks = adapted(("low_rank",))
    with pytest.raises(ConfigError, match="must be a RequestMaskConfig, found dict"):
        masks.add_adapter("b", {"target_modules": ["0"]})  # type: ignore[arg-type]
    assert list(masks.peft_config) == ["a"]


@pytest.mark.parametrize("grad", [False, True])
def test_an_adapter_deleted_inside_a_block_of_its_own_request_says_so(model, make_config, x, grad: bool) -> None:
    masks = inject_request_masks(model, make_config())
    masks.add_adapter("other", make_config())
    frozen = model(x)
    with torch.set_grad_enabled(grad), masks.request("more horror"):
        masks.delete_adapter("default")
        for run in (model, model.predict):
            with pytest.raises(ConfigError, match="'default' was deleted inside a block of one of its requests"):
                run(x)
    assert torch.equal(model(x), frozen)
    assert not torch.equal(masks(x, request="more horror"), frozen)
