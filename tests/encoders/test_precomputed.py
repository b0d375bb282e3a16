import pytest
import torch

from cramer_peft import PrecomputedEncoder, RequestMaskConfig, inject_request_masks
from cramer_peft.errors import EncoderError

VECTORS = {"drama": torch.tensor([1.0, 2.0]), "horror": torch.tensor([3.0, 4.0])}


def test_vectors_are_looked_up() -> None:
    encoder = PrecomputedEncoder(VECTORS)
    assert encoder.dim == 2
    assert encoder.encode(["horror", "drama", "horror"]).tolist() == [[3, 4], [1, 2], [3, 4]]


def test_unknown_texts_are_named_and_counted() -> None:
    with pytest.raises(EncoderError, match=r"'comedy' \(2 texts"):
        PrecomputedEncoder(VECTORS).encode(["drama", "comedy", "Drama"])


@pytest.mark.parametrize(
    ("vectors", "named"),
    [
        ({}, "empty"),
        ({"a": torch.zeros(2), "b": torch.zeros(3)}, r"'b' has shape \(3,\), expected \(2,\)"),
        ({"a": torch.zeros(1, 2)}, r"'a' has shape \(1, 2\)"),
    ],
)
def test_unusable_vectors_are_refused(vectors: dict, named: str) -> None:
    with pytest.raises(EncoderError, match=named):
        PrecomputedEncoder(vectors)


def test_its_vectors_must_be_passed_again() -> None:
    with pytest.raises(EncoderError, match=r"encoder=PrecomputedEncoder\(vectors\)"):
        inject_request_masks(
            torch.nn.Sequential(torch.nn.Linear(2, 2)),
            RequestMaskConfig(target_modules=["0"], encoder="precomputed"),
        )


def test_it_serves_an_adapter() -> None:
    model, x = torch.nn.Sequential(torch.nn.Linear(2, 2)), torch.randn(2, 2)
    config = RequestMaskConfig(target_modules=["0"], init_weights=False)
    masks = inject_request_masks(model, config, encoder=PrecomputedEncoder(VECTORS))
    assert masks.peft_config["default"].encoder == "precomputed"
    assert config.encoder == "wordllama"  # the caller's is not changed
    by_text = masks(x, request=["drama", "horror"])
    assert torch.equal(by_text, masks(x, request=torch.stack([VECTORS["drama"], VECTORS["horror"]])))
