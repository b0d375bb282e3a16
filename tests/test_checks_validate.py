"""What a look at a model finds, and that injection then does what was found."""

import re
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import nn

from cramer_peft import (
    FindingKind,
    HashingEncoder,
    PrecomputedEncoder,
    RequestMaskConfig,
    inject_request_masks,
    load_request_masks,
    validate,
)
from cramer_peft.errors import ConfigError, CramerError, EncoderError, TargetModuleError

PAGE = Path(__file__).parent.parent / "docs" / "validation.md"


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 4)
        self.head = nn.Linear(4, 5, bias=False)
        self.head.weight = self.embedding.weight


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(4, 4, batch_first=False)


class Checkpointed(nn.Module):
    is_gradient_checkpointing = True

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)


def encoder_layer() -> nn.Module:
    return nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)


def masked() -> nn.Module:
    model = nn.Sequential(nn.Linear(2, 2))
    inject_request_masks(model, config(["0"]))
    return model


def config(target_modules, **options) -> RequestMaskConfig:
    return RequestMaskConfig(**{"target_modules": target_modules, "request_dim": 3, **options})


CASES = {
    FindingKind.ALREADY_MASKED: (masked, config(["0"]), None),
    FindingKind.NOTHING_MATCHES: (encoder_layer, config(["nope"]), None),
    FindingKind.UNSUPPORTED_MODULE: (encoder_layer, config(["norm1"]), "norm1"),
    FindingKind.READ_BY_PARENT: (encoder_layer, config(["out_proj"]), "self_attn.out_proj"),
    FindingKind.NESTED_TARGET: (encoder_layer, config(r"self_attn(\.out_proj)?"), "self_attn.out_proj"),
    FindingKind.UNKNOWN_PART: (encoder_layer, config(["self_attn"], module_parts=["queries"]), "self_attn"),
    FindingKind.OTHER_BASE_MODEL: (encoder_layer, config(["linear1"], base_fingerprint="sha256:0"), None),
    FindingKind.ENCODER: (encoder_layer, config(["linear1"], encoder="nobody knows it"), None),
    FindingKind.UNMATCHED_NAME: (encoder_layer, config(["linear1", "linear3"]), None),
    FindingKind.TIED_WEIGHTS: (Tied, config(["head"]), "head"),
    FindingKind.FUSED_PATH: (encoder_layer, config(["linear1"]), "linear1"),
    FindingKind.ROWS_ELSEWHERE: (Recurrent, config(["rnn"]), "rnn"),
    FindingKind.NOT_MERGEABLE: (Recurrent, config(["rnn"]), "rnn"),
    FindingKind.GRADIENT_CHECKPOINTING: (Checkpointed, config(["linear"]), None),
}


def test_every_kind_has_a_case_and_a_place_in_the_documentation() -> None:
    assert set(CASES) == set(FindingKind)
    places = re.findall(r"^## .* \{ #([a-z-]+) \}$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(places) == sorted(kind.value for kind in FindingKind)


@pytest.mark.parametrize("kind", CASES, ids=lambda kind: kind.value)
def test_it_is_found_and_injection_agrees(kind: FindingKind, snapshot) -> None:
    make, options, module = CASES[kind]
    model = make()
    before = snapshot(model)
    findings = {finding.kind: finding for finding in validate(model, options)}
    assert before.differences(model) == []
    found = findings[kind]
    assert found.module == module
    assert found.docs == f"validation.md#{kind.value}"
    assert kind.value in str(found)
    if any(finding.fatal for finding in findings.values()):
        assert found.fatal
        with pytest.raises(CramerError):
            inject_request_masks(model, options).encode(["more horror"])  # an unknown encoder is first needed here
        if kind is not FindingKind.ENCODER:
            assert before.differences(model) == []
    else:
        with pytest.warns(UserWarning, match="'linear3'") if kind is FindingKind.UNMATCHED_NAME else nullcontext():
            inject_request_masks(model, options).unload()


def test_nothing_to_say_of_a_plain_model(model, make_config) -> None:
    assert validate(model, make_config()) == []


def test_an_encoder_object_of_another_width(model) -> None:
    (finding,) = validate(model, RequestMaskConfig(target_modules=["up"], request_dim=8), HashingEncoder(7))
    assert finding.kind is FindingKind.ENCODER
    assert "width 7" in finding.message


def test_all_fatal_findings_of_a_model_are_listed() -> None:
    findings = validate(encoder_layer(), config(["norm1", "norm2", "linear1"]))
    assert [finding.module for finding in findings if finding.fatal] == ["norm1", "norm2"]


def test_on_the_meta_device() -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(3, 3))
    assert validate(model, config(["0"])) == []


class Odd(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lazy, self.lazy_convolution, self.empty = nn.LazyLinear(3), nn.LazyConv1d(3, 1), nn.Linear(0, 3)


@pytest.mark.parametrize(
    ("name", "words"),
    [("lazy", "without weights yet"), ("lazy_convolution", "without weights yet"), ("empty", "without any features")],
)
def test_modules_without_weights(name: str, words: str) -> None:
    (finding,) = validate(Odd(), config([name]))
    assert (finding.kind, finding.module) == (FindingKind.UNSUPPORTED_MODULE, name)
    assert words in finding.message
    with pytest.raises(TargetModuleError, match=words):
        inject_request_masks(Odd(), config([name]))


def test_a_configuration_that_serves_another_model() -> None:
    options = config(["0"])
    other = nn.Sequential(nn.Linear(2, 2))
    get_peft_model(other, options)
    assert validate(nn.Sequential(nn.Linear(5, 2)), options) == []
    inject_request_masks(nn.Sequential(nn.Linear(5, 2)), options)
    filled = inject_request_masks(nn.Sequential(nn.Linear(2, 2)), options).peft_config["default"]
    assert validate(nn.Sequential(nn.Linear(5, 2)), filled) == []


@pytest.mark.parametrize(
    "options",
    [
        {"encoder": "hashing", "encoder_tuning": "last"},
        {"encoder": "hashing", "default_request": [1.0] * 5},
        {"default_request": "a text without a vector"},
    ],
    ids=["cannot be tuned", "default of another width", "default that fails"],
)
def test_encoders_that_injection_cannot_use(options) -> None:
    encoder = PrecomputedEncoder({"known": torch.ones(4)}) if "encoder" not in options else None
    options = RequestMaskConfig(target_modules=["0"], **options)
    (finding,) = validate(nn.Sequential(nn.Linear(2, 2)), options, encoder)
    assert finding.kind is FindingKind.ENCODER
    with pytest.raises(CramerError):
        inject_request_masks(nn.Sequential(nn.Linear(2, 2)), options, encoder=encoder)


def test_arguments_of_other_types(model) -> None:
    with pytest.raises(ConfigError, match="must be a RequestMaskConfig, found dict"):
        validate(model, {"target_modules": ["up"]})  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"must be a torch\.nn\.Module, found int"):
        inject_request_masks(5, config(["up"]))  # type: ignore[arg-type]
    (finding,) = validate(model, config(["up"]), object())  # type: ignore[arg-type]
    assert "without name, dim, encode" in finding.message
    with pytest.raises(EncoderError, match="without name, dim, encode"):
        inject_request_masks(model, config(["up"]), encoder=object())  # type: ignore[arg-type]


def test_a_name_that_matches_nothing_among_others_is_told_and_warned_of(recwarn) -> None:
    model = encoder_layer()
    options = config(["linear1", "layer_2", "self_attn.linear2", "ear2", "linear2"])
    findings = [finding for finding in validate(model, options) if finding.kind is FindingKind.UNMATCHED_NAME]
    assert [finding.message.split("'")[1] for finding in findings] == ["layer_2", "self_attn.linear2", "ear2"]
    assert "'ear2' matches no module of this model; near: linear2" in findings[2].message
    assert len(recwarn) == 0
    masks = inject_request_masks(model, options)
    assert [str(warning.message) for warning in recwarn] == [finding.message for finding in findings]
    assert set(masks.peft_config["default"].masked_modules) == {"linear1", "linear2"}


def test_what_a_saved_adapter_names_is_not_warned_of_again(recwarn, tmp_path) -> None:
    model = encoder_layer().eval()
    masks = inject_request_masks(model, config(["linear1", "gone"]))
    assert [str(warning.message).split("'")[1] for warning in recwarn] == ["gone"]
    masks.save_pretrained(tmp_path)
    masks.unload()
    recwarn.clear()
    load_request_masks(model, tmp_path).unload()
    PeftModel.from_pretrained(model, tmp_path)
    assert [warning for warning in recwarn if "gone" in str(warning.message)] == []


def test_names_in_nested_lists_are_refused_by_the_outer_lists_alone() -> None:
    model = nn.Module()
    model.blocks = nn.ModuleList(nn.ModuleList([nn.Linear(3, 3), nn.Linear(3, 3)]) for _ in range(2))
    findings = validate(model, config(["0", "1"]))
    assert [(finding.kind, finding.module) for finding in findings] == [
        (FindingKind.UNSUPPORTED_MODULE, "blocks.0"),
        (FindingKind.UNSUPPORTED_MODULE, "blocks.1"),
    ]


def test_a_finding_about_the_model_itself_says_so() -> None:
    (finding,) = validate(nn.Module(), RequestMaskConfig(target_outputs=[""], row_features=[""], request_dim=3))
    assert str(finding) == (
        "[fatal: unsupported-module] the model itself: target_outputs: the model itself is a Module without a forward: "
        "name the method that returns scores."
    )
