"""Row features: what is refused, and how others are told from them."""

from typing import Any

import numpy
import pytest
import torch
from torch import Tensor

from cramer_peft.errors import BaseModelMismatchError, ConfigError, RequestError
from cramer_peft.injection.row_features import check_same, checked_features, sketch
from cramer_peft.masks.config_values import SKETCH_LENGTH


@pytest.mark.parametrize(
    ("features", "words"),
    [
        (numpy.zeros((4, 2), dtype="float32"), "ndarray"),
        ([[0.0, 1.0]], "list"),
        (None, "NoneType"),
        (torch.zeros(4, 2, dtype=torch.int64), r"\(4, 2\), expected a \(rows, features\) tensor of floats"),
        (torch.zeros(4, 2, dtype=torch.complex64), "tensor of floats"),
        (torch.zeros(4), r"\(4,\)"),
        (torch.zeros(4, 2, 1), r"\(4, 2, 1\)"),
        (torch.zeros(3, 2), "expected 4 rows of 2"),
        (torch.zeros(4, 3), "expected 4 rows of 2"),
        (torch.zeros(4, 0), "expected 4 rows"),
        (torch.tensor([[0.0, 0.0]] * 3 + [[0.0, float("nan")]]), "row 3 holds NaN"),
        (torch.tensor([[0.0, float("inf")]] * 4), "row 0 holds NaN or infinity"),
    ],
)
def test_other_features_are_refused(features: Any, words: str) -> None:
    with pytest.raises(RequestError, match=words) as raised:
        checked_features("head", features, 4, 2, 0)
    assert "'head'" in str(raised.value)


def test_fewer_features_than_a_request_is_compared_with_are_refused() -> None:
    with pytest.raises(RequestError, match="at least 3 features"):
        checked_features("head", torch.zeros(4, 2), None, None, 3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_features_are_kept_in_float32_without_their_graph(dtype: torch.dtype) -> None:
    found = checked_features("head", torch.ones(4, 2, dtype=dtype, requires_grad=True), None, None, 0)
    assert found.dtype == torch.float32
    assert not found.requires_grad


def swapped(features: Tensor) -> Tensor:
    return features[[1, 0, *range(2, len(features))]]


@pytest.mark.parametrize(
    "change",
    [swapped, lambda f: f[:-1], lambda f: f[:, :-1], lambda f: f.flip(1), lambda f: f * 1.01, lambda f: -f],
    ids=["order", "rows", "width", "columns", "length", "sign"],
)
def test_a_sketch_tells_other_features(make_features, change) -> None:
    features = make_features(200, 6)
    with pytest.raises(BaseModelMismatchError, match="check=False"):
        check_same("head", sketch(change(features)), sketch(features))


def test_a_sketch_bears_rounding(make_features) -> None:
    features = make_features(200, 6)
    rounded = features + 1e-6 * torch.randn(features.shape)
    check_same("head", sketch(rounded), sketch(features))
    assert len(sketch(features)) == SKETCH_LENGTH


def test_a_sketch_is_made_in_blocks(make_features, monkeypatch: pytest.MonkeyPatch) -> None:
    features = make_features(50, 3)
    whole = sketch(features)
    monkeypatch.setattr("cramer_peft.injection.row_features._BLOCK", 7)
    assert sketch(features) == pytest.approx(whole)


# ---------------------------------------------------------------- on a handle


def test_requests_are_refused_until_the_features_are_set(make_described, make_features, x, vectors) -> None:
    masks = make_described(features=None)
    frozen = masks(x)
    for call in (
        lambda: masks(x, request=vectors),
        lambda: masks.mask_state(vectors),
        lambda: masks.merge_request(vectors[0]),
    ):
        with pytest.raises(RequestError, match="row features are not set"):
            call()
    assert torch.equal(masks(x), frozen)
    masks.set_row_features("", make_features())
    assert not torch.equal(masks(x, request=vectors), frozen)


def test_what_set_row_features_refuses_changes_nothing(make_described, make_features, x, vectors) -> None:
    masks = make_described()
    config, expected = masks.peft_config["default"].to_dict(), masks(x, request=vectors)
    for features, error in [
        (make_features(seed=1), BaseModelMismatchError),
        (make_features(21), BaseModelMismatchError),
        (make_features(width=6), RequestError),
        (make_features().long(), RequestError),
    ]:
        with pytest.raises(error):
            masks.set_row_features("", features)
    with pytest.raises(ConfigError, match="describes the rows of"):
        masks.set_row_features("layer", make_features())
    assert masks.peft_config["default"].to_dict() == config
    assert torch.equal(masks(x, request=vectors), expected)


def test_equal_features_are_set_twice_and_others_without_the_check(make_described, make_features, x, vectors) -> None:
    masks = make_described()
    expected, parameters = masks(x, request=vectors), list(masks.generator.parameters())
    masks.set_row_features("", make_features())
    assert torch.equal(masks(x, request=vectors), expected)
    masks.set_row_features("", make_features(seed=1), check=False)
    assert not torch.equal(masks(x, request=vectors), expected)
    assert all(a is b for a, b in zip(masks.generator.parameters(), parameters, strict=True))
    with pytest.raises(BaseModelMismatchError):
        masks.set_row_features("", make_features())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("first", ["features", "dtype"])
def test_features_before_and_after_a_cast(make_described, make_features, x, vectors, dtype, first: str) -> None:
    expected = make_described()(x, request=vectors)
    masks = make_described()
    masks.to(dtype)
    if first == "dtype":
        masks.set_row_features("", make_features())
    for gradients in (True, False):
        with torch.set_grad_enabled(gradients):
            output = masks(x, request=[vectors[0], None, vectors[2]])
        assert output.dtype == dtype
        assert torch.equal(output[1], masks(x)[1])
        assert torch.allclose(output.float()[0], expected[0].float(), atol=0.5)


def test_a_layer_s_own_weight_describes_its_rows(make_model, x) -> None:
    from cramer_peft import RequestMaskConfig, inject_request_masks

    model = make_model()
    masks = inject_request_masks(model, RequestMaskConfig(request_dim=8, row_features=["out"], init_weights=False))
    masks.set_row_features("out", model.out.weight)
    output = masks(x, request=[torch.ones(8), None, torch.ones(8)])
    assert torch.equal(output[1], masks(x)[1])
    assert not torch.equal(output[0], masks(x)[0])
    with pytest.raises(RequestError, match="expected 20 rows"):
        masks.set_row_features("out", model.out.weight[:-1], check=False)
    masks.unload()
    assert not any(p.grad is not None for p in model.parameters())


def test_parameters_and_files_do_not_grow_with_the_rows(make_described, make_features, make_scores, tmp_path) -> None:
    sizes = []
    for rows in (20, 4000):
        model = make_scores()
        masks = make_described(model=model, features=make_features(rows))
        masks.save_pretrained(tmp_path / str(rows))
        sizes.append((tmp_path / str(rows) / "adapter_model.safetensors").stat().st_size)
    assert sizes[0] == sizes[1]
