import copy
import pickle
import threading
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from cramer_peft import HashingEncoder, RequestEncoder, register_request_encoder
from cramer_peft.encoders import CachedEncoder, make_encoder
from cramer_peft.encoders import encoder as encoders
from cramer_peft.errors import EncoderError, RequestError


class Counting:
    """Encodes a text by its length, and keeps what it was asked."""

    name = "counting"
    dim = 2

    def __init__(self) -> None:
        self.calls: list[list[str]] = []

    def encode(self, texts: Sequence[str]) -> Tensor:
        self.calls.append(list(texts))
        return torch.tensor([[len(text), 1.0] for text in texts])


class Fixed:
    name = "fixed"
    dim = 2

    def __init__(self, output: object) -> None:
        self.output = output

    def encode(self, texts: Sequence[str]) -> object:
        return self.output


def test_each_text_is_encoded_once() -> None:
    inner = Counting()
    encoder = CachedEncoder(inner)
    first = encoder.encode(["a", "bb", "a"])
    assert first.tolist() == [[1, 1], [2, 1], [1, 1]]
    assert torch.equal(encoder.encode(["bb", "ccc"]), torch.tensor([[2.0, 1], [3, 1]]))
    assert inner.calls == [["a", "bb"], ["ccc"]]


def test_the_least_recently_used_go_first() -> None:
    inner = Counting()
    encoder = CachedEncoder(inner, capacity=2)
    for texts in (["a"], ["b"], ["a"], ["c"], ["a"], ["b"]):
        encoder.encode(texts)
    assert inner.calls == [["a"], ["b"], ["c"], ["b"]]
    assert encoder.encode(["p", "q", "r", "s"]).shape == (4, 2)


def test_what_a_caller_does_to_the_vectors_stays_with_the_caller() -> None:
    encoder = CachedEncoder(Counting())
    for _ in range(2):
        encoder.encode(["a"]).zero_()
        encoder.encode(["bb", "ccc"]).zero_()
    assert encoder.encode(["a", "bb", "ccc"]).tolist() == [[1, 1], [2, 1], [3, 1]]


def test_vectors_cached_in_inference_mode_serve_training() -> None:
    encoder = CachedEncoder(Counting())
    with torch.inference_mode():
        encoder.encode(["a"])
    weight = torch.ones(2, requires_grad=True)
    (encoder.encode(["a"]) * weight).sum().backward()
    assert weight.grad.tolist() == [1, 1]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_nan_from_an_encoder_names_the_text(value: float) -> None:
    encoder = CachedEncoder(Fixed(torch.tensor([[1.0, 1.0], [value, 1.0]])))
    for _ in range(2):  # and is not cached
        with pytest.raises(EncoderError, match="'fixed' returned NaN or infinity for the text 'second'"):
            encoder.encode(["first", "second"])


@pytest.mark.parametrize("shape", [(1, 3), (2, 2), (2,), (1, 1, 2)])
def test_a_wrong_shape_names_text_and_shapes(shape: tuple[int, ...]) -> None:
    encoder = CachedEncoder(Fixed(torch.zeros(shape)))
    with pytest.raises(EncoderError, match=r"'only one'.*expected \(1, 2\)"):
        encoder.encode(["only one"])


def test_threads_share_the_cache() -> None:
    encoder = CachedEncoder(HashingEncoder(4), capacity=7)
    expected = {f"t{i}": HashingEncoder(4).encode([f"t{i}"])[0] for i in range(20)}
    wrong = []

    def work(start: int) -> None:
        for i in range(200):
            text = f"t{(start + i) % 20}"
            if not torch.equal(encoder.encode([text])[0], expected[text]):
                wrong.append(text)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_copies_and_pickles_work() -> None:
    encoder = CachedEncoder(HashingEncoder(4), capacity=9)
    assert copy.deepcopy(encoder) is encoder
    loaded = pickle.loads(pickle.dumps(encoder))
    assert loaded.capacity == 9
    assert torch.equal(loaded.encode(["a"]), encoder.encode(["a"]))


def test_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoders, "_FACTORIES", dict(encoders._FACTORIES))
    register_request_encoder("mine", lambda width: HashingEncoder(width))
    assert make_encoder("mine", {"width": 3}).dim == 3
    assert isinstance(make_encoder("hashing", None), RequestEncoder)
    with pytest.raises(EncoderError, match=r"'mine' does not take the options.*'dim'"):
        make_encoder("mine", {"dim": 3})


def test_an_unknown_encoder_lists_the_known() -> None:
    with pytest.raises(EncoderError, match=r"'hashling'.*'hashing'.*'wordllama'"):
        make_encoder("hashling", None)


def test_an_encoder_is_never_imported_by_its_name() -> None:
    with pytest.raises(EncoderError, match="unknown"):
        make_encoder("cramer_peft.encoders.hashing.HashingEncoder", {"dim": 4})


@pytest.mark.parametrize("text", ["half \udcff", "\ud800", 7, None])
def test_a_text_that_no_encoder_can_read(text: Any) -> None:
    encoder = CachedEncoder(HashingEncoder(8))
    with pytest.raises(RequestError, match="expected a text that can be written as UTF-8"):
        encoder.encode(["fine", text])
    assert encoder.encode(["fine", "\U0001f600"]).shape == (2, 8)
    with pytest.raises(RequestError, match="found one text, expected a list"):
        encoder.encode("fine")
