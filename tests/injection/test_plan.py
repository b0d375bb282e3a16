import pytest
import torch
from torch import nn
from transformers import BertConfig, BertModel, GPT2Config, GPT2LMHeadModel

from cramer_peft import RequestMaskConfig, inject_request_masks
from cramer_peft.errors import BaseModelMismatchError, TargetModuleError
from cramer_peft.injection.plan import describe_difference, fingerprint, plan_injection


def config(**options) -> RequestMaskConfig:
    return RequestMaskConfig(request_dim=4, **options)


def names(model: nn.Module, **options) -> list[str]:
    return [target.name for target in plan_injection(model, config(**options)).targets]


@pytest.fixture
def stack() -> nn.Module:
    model = nn.Module()
    model.layers = nn.ModuleList(nn.ModuleDict({"up": nn.Linear(4, 8), "down": nn.Linear(8, 4)}) for _ in range(3))
    model.head = nn.Linear(4, 2)
    return model


def test_lists_match_names_and_endings(stack) -> None:
    assert names(stack, target_modules=["up"]) == ["layers.0.up", "layers.1.up", "layers.2.up"]
    assert names(stack, target_modules=["1.up", "head"]) == ["head", "layers.1.up"]
    assert names(stack, target_modules=["p", "layers.2.down"]) == ["layers.2.down"]


def test_a_string_is_a_regular_expression_for_the_whole_name(stack) -> None:
    assert names(stack, target_modules=r"layers\.[01]\.up") == ["layers.0.up", "layers.1.up"]
    with pytest.raises(TargetModuleError, match="no module matches"):
        names(stack, target_modules="up")


def test_exclusions_and_layer_indices(stack) -> None:
    assert names(stack, target_modules=["up"], exclude_modules=["1.up"]) == ["layers.0.up", "layers.2.up"]
    assert names(stack, target_modules=["up"], layers_to_transform=2, layers_pattern="layers") == ["layers.2.up"]
    assert names(stack, target_modules=["down"], layers_to_transform=[0, 1], layers_pattern="layers") == [
        "layers.0.down",
        "layers.1.down",
    ]


def test_all_linear_spares_the_output_head(stack) -> None:
    assert len(names(stack, target_modules="all-linear")) == 7
    stack.get_output_embeddings = lambda: stack.head
    assert len(names(stack, target_modules="all-linear")) == 6
    assert len(names(stack, target_modules="All-Linear", exclude_modules=["up"])) == 3


def test_all_linear_spares_a_head_whose_name_ends_like_another() -> None:
    model = nn.Module()
    model.proj = nn.Linear(4, 4)
    model.decoder = nn.ModuleDict({"proj": nn.Linear(4, 9)})
    model.get_output_embeddings = lambda: model.decoder["proj"]
    assert names(model, target_modules="all-linear") == ["proj"]


def test_all_linear_without_linears() -> None:
    with pytest.raises(TargetModuleError, match="no linear module to mask"):
        names(nn.Sequential(nn.ReLU()), target_modules="all-linear")


def test_no_match_names_near_misses_and_candidates(stack) -> None:
    with pytest.raises(TargetModuleError, match=r"\['uup'\].*Near misses: .*\bup\b.*layers\.0\.up") as caught:
        names(stack, target_modules=["uup"])
    assert "head" in str(caught.value)
    with pytest.raises(TargetModuleError, match=r"exclude_modules=\['up'\]"):
        names(stack, target_modules=["up"], exclude_modules=["up"])
    with pytest.raises(TargetModuleError, match="layers_to_transform=9"):
        names(stack, target_modules=["up"], layers_to_transform=9)


def test_an_unknown_architecture_lists_candidates(stack) -> None:
    with pytest.raises(TargetModuleError, match=r"target_modules is not set.*Candidates: layers\.0\.up"):
        names(stack)


@pytest.fixture(scope="module")
def bert() -> BertModel:
    sizes = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    return BertModel(BertConfig(vocab_size=20, **sizes))


def test_defaults_for_bert_wherever_it_sits(bert) -> None:
    found = names(bert)
    assert found == sorted(
        f"encoder.layer.{i}.{name}"
        for i in range(2)
        for name in ("attention.output.dense", "intermediate.dense", "output.dense")
    )
    outer = nn.ModuleDict({"inner": bert, "head": nn.Linear(8, 3)})
    assert names(outer) == [f"inner.{name}" for name in found]
    assert names(bert, layers_to_transform=1) == [name for name in found if ".1." in name]


def test_defaults_for_gpt2() -> None:
    model = GPT2LMHeadModel(GPT2Config(vocab_size=20, n_embd=8, n_layer=1, n_head=2, n_positions=16))
    assert names(model) == [f"transformer.h.0.{name}" for name in ("attn.c_proj", "mlp.c_fc", "mlp.c_proj")]
    everything = names(model, target_modules="all-linear")
    assert "lm_head" not in everything
    assert "transformer.h.0.attn.c_attn" in everything


class Block(nn.Module):
    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.attention = attention
        self.ff = nn.Linear(8, 8)


class OwnAttention(nn.MultiheadAttention):
    pass


@pytest.mark.parametrize(
    ("model", "wanted", "named"),
    [
        (
            Block(nn.MultiheadAttention(8, 2)),
            ["out_proj"],
            r"'attention\.out_proj'.*nn\.MultiheadAttention 'attention'",
        ),
        (Block(OwnAttention(8, 2)), ["out_proj"], r"'attention\.out_proj'.*MultiheadAttention"),
        (nn.MultiheadAttention(8, 2), ["out_proj"], "'out_proj'.*MultiheadAttention"),
        (Block(nn.Softmax(-1)), ["attention", "ff"], "'attention' is a Softmax"),
    ],
)
def test_what_its_parent_reads_directly_is_refused_by_name(model, wanted, named: str, snapshot) -> None:
    before = snapshot(model)
    with pytest.raises(TargetModuleError, match=f"(?s){named}.*exclude_modules"):
        inject_request_masks(model, config(target_modules=wanted))
    assert before.differences(model) == []


def test_exclude_modules_is_the_way_out() -> None:
    model = Block(nn.MultiheadAttention(8, 2))
    assert names(model, target_modules="all-linear", exclude_modules=["out_proj"]) == ["ff"]


def test_the_plan_touches_nothing(stack, snapshot) -> None:
    before, asked = snapshot(stack), config(target_modules=["up"])
    plan = plan_injection(stack, asked)
    assert before.differences(stack) == []
    assert asked == config(target_modules=["up"])
    assert plan.config.masked_modules == {f"layers.{i}.up": [8, 4] for i in range(3)}
    assert plan.config.base_fingerprint.startswith("sha256:")


def test_fingerprint_tells_weights_names_shapes_and_dtypes_apart(stack) -> None:
    def of(model: nn.Module, wanted: list[str]) -> str | None:
        return fingerprint(list(plan_injection(model, config(target_modules=wanted)).targets))

    first = of(stack, ["up"])
    assert of(stack, ["up"]) == first
    assert len({first, of(stack, ["down"]), of(stack, ["0.up"])}) == 3
    with torch.no_grad():
        stack.head.weight.zero_()
        assert of(stack, ["up"]) == first  # what is not masked does not count
        stack.layers[2]["up"].weight[3, 1] += 1e-6
    changed = of(stack, ["up"])
    assert changed != first
    assert of(stack.double(), ["up"]) != changed
    assert of(stack.to("meta"), ["up"]) is None


def test_fingerprint_samples_large_weights(monkeypatch: pytest.MonkeyPatch, stack) -> None:
    monkeypatch.setattr("cramer_peft.injection.fingerprint._ELEMENTS", 8)
    plan = plan_injection(stack, config(target_modules=["head", "0.up"]))
    first = plan.config.base_fingerprint
    with torch.no_grad():
        stack.layers[0]["up"].weight[0, 0] += 1
    assert plan_injection(stack, config(target_modules=["head", "0.up"])).config.base_fingerprint != first


def test_fingerprint_of_half_precision(stack) -> None:
    plan = plan_injection(stack.bfloat16(), config(target_modules=["up"]))
    assert plan.config.base_fingerprint.startswith("sha256:")


def test_another_base_model_is_refused(stack) -> None:
    saved = plan_injection(stack, config(target_modules=["up"])).config
    with torch.no_grad():
        stack.layers[0]["up"].weight.add_(1)
    with pytest.raises(BaseModelMismatchError, match=r"sha256.*check_base=False"):
        plan_injection(stack, saved)
    del stack.layers[2]
    with pytest.raises(BaseModelMismatchError, match=r"missing layers\.2\.up"):
        plan_injection(stack, saved)


def test_differences_in_words() -> None:
    text = describe_difference({"a": [1, 2], "b": [1, 1]}, {"a": [2, 2], "c": [1, 1]})
    assert text == "missing b; unexpected c; a has [2, 2], expected [1, 2]"
