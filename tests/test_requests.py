from collections.abc import Sequence

import numpy as np
import pandas as pd
import pytest
import torch

from cramer_peft import inject_request_masks
from cramer_peft.encoders import HashingEncoder
from cramer_peft.errors import RequestError
from cramer_peft.requests import batch_requests, batch_strength, without_silent

encode = HashingEncoder(4).encode


@pytest.mark.parametrize("blank", [None, "", "  \n\t", [None, ""], (None,), [float("nan"), None]])
def test_nothing_asked_is_no_batch(blank) -> None:
    assert batch_requests(blank, 4, encode) is None


def test_one_text_is_shared_and_a_list_is_not() -> None:
    shared, listed = batch_requests("drama", 4, encode), batch_requests(["drama"], 4, encode)
    assert shared.shared
    assert not listed.shared
    assert torch.equal(shared.vectors, encode(["drama"]))
    assert shared.texts == listed.texts == ("drama",)


def test_texts_vectors_and_none_mix() -> None:
    vector = torch.randn(4)
    batch = batch_requests(["drama", None, vector, " ", "horror"], 4, encode)
    assert batch.texts == ("drama", None, None, None, "horror")
    assert batch.active.tolist() == [True, False, True, False, True]
    assert torch.equal(batch.vectors[[0, 2, 4]], torch.stack([*encode(["drama"]), vector, *encode(["horror"])]))
    assert torch.equal(batch.vectors[[1, 3]], torch.zeros(2, 4))


@pytest.mark.parametrize("empty", [[], (), np.array([], dtype=object)], ids=["list", "tuple", "array"])
def test_no_requests_fit_no_rows(empty, model, x, make_config) -> None:
    batch = batch_requests(empty, 4, encode)
    assert batch.vectors.shape == (0, 4)
    masks = inject_request_masks(model, make_config())
    assert masks(x[:0], request=empty).shape == (0, 20)
    with pytest.raises(RequestError, match=f"found {len(x)} rows .* 0 requests"):
        masks(x, request=empty)


NAN = float("nan")


@pytest.mark.parametrize("kind", [pd.Series, np.array, lambda rows, **_: rows], ids=["pandas", "numpy", "list"])
@pytest.mark.parametrize("missing", [None, NAN, pd.NA, "", np.float64("nan")], ids=["None", "NaN", "NA", "blank", "f8"])
def test_a_column_is_one_row_per_row(kind, missing, model, x, make_config) -> None:
    column = kind(["drama", missing, "horror"], dtype=object)
    batch = batch_requests(column, 4, encode)
    assert batch.texts == ("drama", None, "horror")
    assert batch.active.tolist() == [True, False, True]
    masks = inject_request_masks(model, make_config())
    expected = masks(x[:3], request=["drama", None, "horror"])
    assert torch.equal(masks(x[:3], request=column), expected)
    assert torch.equal(masks(x[:3], request=column, adapter_names=["default"] * 3), expected)
    assert masks.mask_state(column).texts == batch.texts


def test_a_column_of_texts_is_read_whatever_its_index() -> None:
    assert batch_requests(pd.Series(["a", "b"], index=[7, 3]), 4, encode).texts == ("a", "b")
    assert batch_requests(np.array(["a", "b"]), 4, encode).texts == ("a", "b")
    with pytest.raises(RequestError, match="request 0 must be a text, a tensor or None, found list"):
        batch_requests(np.zeros((2, 4)), 4, encode)


def test_a_tensor_is_one_row_per_row_or_shared() -> None:
    rows = torch.randn(3, 4)
    batch = batch_requests(rows, 4, encode)
    assert not batch.shared
    assert batch.active is None
    assert torch.equal(batch.vectors, rows)
    assert batch_requests(rows[0], 4, encode).shared


def test_a_row_does_not_take_the_precision_of_another() -> None:
    wide = torch.tensor([1 / 3, 2 / 3, 1 / 7, 1 / 9])
    batch = batch_requests([torch.ones(4, dtype=torch.float16), wide], 4, encode)
    assert torch.equal(batch.vectors[1], wide)


@pytest.mark.parametrize(
    ("request_", "named"),
    [
        (3, "int"),
        ({"a": 1}, "dict"),
        ([1.0, 2.0], "request 0"),
        (["a", b"b"], "request 1"),
        (torch.zeros(5), "width 4"),
        (torch.zeros(2, 5), r"\(2, 5\)"),
        (torch.zeros(2, 2, 4), "width 4"),
        (["a", torch.zeros(5)], r"\(1, 5\)"),
        (["a", torch.zeros(1, 4)], "request 1"),
        (torch.zeros(2, 4, dtype=torch.long), "floating"),
        (torch.tensor([[0.0] * 4, [0.0, float("nan"), 0, 0]]), "request 1.*NaN"),
        ([None, None, torch.tensor([0.0, 0, float("inf"), 0])], "request 2.*infinity"),
    ],
)
def test_unusable_requests_are_refused(request_, named: str) -> None:
    with pytest.raises(RequestError, match=named):
        batch_requests(request_, 4, encode)


def test_strengths() -> None:
    assert batch_strength(None, 1.0, 2, shared=False) is None
    assert batch_strength(1, 0.5, 2, shared=False) is None
    assert batch_strength(None, 0.5, 2, shared=False).tolist() == [0.5, 0.5]
    assert batch_strength([0.0, 2], 1.0, 2, shared=False).tolist() == [0.0, 2.0]
    assert batch_strength(torch.tensor(0.5), 1.0, 2, shared=False).tolist() == [0.5, 0.5]
    assert batch_strength([1.0, 2.0, 3.0], 1.0, 1, shared=True).tolist() == [1.0, 2.0, 3.0]


@pytest.mark.parametrize(
    "strength", [float("nan"), float("inf"), "strong", [1.0], [1.0, 2.0, 3.0], [[1.0, 2.0]], [0.0, float("nan")], {}]
)
def test_unusable_strengths_are_refused(strength) -> None:
    with pytest.raises(RequestError, match="strength"):
        batch_strength(strength, 1.0, 2, shared=False)


class Listener:
    """Vectors of zeros where nothing is asked, as encoders that read requests give."""

    name, dim = "listener", 4

    def encode(self, texts: Sequence[str]) -> torch.Tensor:
        return torch.stack([torch.zeros(4) if text == "hello" else encode([text])[0] for text in texts])


def test_rows_of_silent_texts_are_left_out() -> None:
    batch = batch_requests(["drama", "hello", None, torch.zeros(4)], 4, Listener().encode)
    left = without_silent(batch)
    assert left.active.tolist() == [True, False, False, True]  # zeros that were given as a vector are a request
    assert torch.equal(left.vectors, batch.vectors)
    assert left.texts == batch.texts
    assert batch.active.tolist() == [True, True, False, True]


def test_a_batch_that_says_something_stays_as_it_is() -> None:
    for requests in (["drama", None], torch.zeros(2, 4), "drama"):
        batch = batch_requests(requests, 4, Listener().encode)
        assert without_silent(batch) is batch


@pytest.mark.parametrize("requests", ["hello", ["hello"], ["hello", None, "hello"]])
def test_a_batch_of_silent_texts_is_no_batch(requests) -> None:
    assert without_silent(batch_requests(requests, 4, Listener().encode)) is None


@torch.no_grad()
def test_a_silent_text_leaves_the_frozen_model(gate: str, model, x, make_config) -> None:
    masks = inject_request_masks(model, make_config(gate, encoder="listener"), encoder=Listener())
    frozen = masks(x, request=None)
    for silent in ("hello", ["hello"] * 3, ["hello", None, "hello"]):
        assert torch.equal(masks(x, request=silent), frozen)
        assert masks.masks_for(silent) == {}
    asked = masks(x, request=["drama", None, "horror"])
    found = masks(x, request=["drama", "hello", "horror"])
    assert torch.equal(found, asked)
    assert torch.equal(found[1], frozen[1])
    assert not torch.equal(found[0], frozen[0])
    named = masks(x, request=["drama", "hello", "horror"], adapter_names=["default", "default", "__base__"])
    assert torch.equal(named[:2], found[:2])
    assert torch.equal(named[2], frozen[2])


@torch.no_grad()
def test_a_mask_state_knows_its_silent_rows(gate: str, model, x, make_config) -> None:
    masks = inject_request_masks(model, make_config(gate, encoder="listener"), encoder=Listener())
    frozen = masks(x, request=None)
    state = masks.mask_state(["drama", "hello", "horror"])
    assert state.active.tolist() == [True, False, True]
    assert torch.equal(masks(x, request=state), masks(x, request=["drama", "hello", "horror"]))
    nothing = masks.mask_state(["hello"] * 3)
    assert nothing.active.tolist() == [False] * 3
    assert torch.equal(masks(x, request=nothing), frozen)


@pytest.mark.parametrize("factor", [1e30, 1e-25, 1e300])
def test_a_length_that_float32_cannot_divide_by_is_refused(factor: float) -> None:
    vectors = torch.ones(2, 4, dtype=torch.float64)
    vectors[1] *= factor
    with pytest.raises(RequestError, match=r"request 1 .* its length"):
        batch_requests(vectors, 4, encode)
    assert batch_requests(torch.zeros(2, 4), 4, encode) is not None


@pytest.mark.parametrize(
    "vector", [torch.ones(4).to(torch.float8_e4m3fn), torch.ones(4).to_sparse(), torch.ones(4, device="meta")]
)
def test_vectors_that_hold_no_plain_numbers_are_refused(vector: torch.Tensor) -> None:
    with pytest.raises(RequestError, match="must be dense"):
        batch_requests(vector, 4, encode)
