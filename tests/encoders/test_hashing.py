import pytest
import torch

from cramer_peft import HashingEncoder
from cramer_peft.errors import EncoderError


def test_vectors_are_the_same_in_every_process() -> None:
    vector = HashingEncoder(4).encode(["more horror"])[0]
    assert torch.allclose(vector, torch.tensor(EXPECTED), atol=1e-5)


def test_vectors_tell_texts_and_word_order_apart() -> None:
    vectors = HashingEncoder(16).encode(["dog bites man", "man bites dog", "Dog bites man!", "!", "?"])
    assert torch.equal(vectors[0], vectors[2])
    assert not torch.allclose(vectors[0], vectors[1])
    assert not torch.allclose(vectors[3], vectors[4])
    assert torch.allclose(vectors.norm(dim=-1), torch.ones(5))
    assert vectors.dtype == torch.float32


def test_the_global_random_state_is_left_alone() -> None:
    state = torch.random.get_rng_state()
    HashingEncoder(4).encode(["a b c"])
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("dim", [0, -1, 2.0, True, "4", None])
def test_impossible_widths_are_refused(dim: object) -> None:
    with pytest.raises(EncoderError, match="dim"):
        HashingEncoder(dim)


EXPECTED = [0.623959, 0.220068, -0.136131, 0.737369]


@pytest.mark.parametrize(
    "written", ["come\u0301die", "com\u00ad\u00e9die", "\ufeffcom\u00e9die", "ｃｏｍé\u200bｄｉｅ"]
)
def test_texts_that_look_the_same_are_the_same(written: str) -> None:
    first, second = HashingEncoder(32).encode(["comédie", written])
    assert torch.equal(first, second)
