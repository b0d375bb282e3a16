"""Gates in pieces: not a bit differs from the whole, whatever is asked, and where bits would, pieces are not taken."""

import pytest
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from cramer_peft import RequestMaskConfig, inject_request_masks, row_pieces

ROWS, LENGTH, DIM = 7, 6, 3


class Feed(nn.Module):
    """Two layers, one wider and one narrower than its input."""

    def __init__(self, kind: str = "linear") -> None:
        super().__init__()
        self.up: nn.Module = Conv1D(24, 8) if kind == "conv1d" else nn.Linear(8, 24)
        self.down: nn.Module = Conv1D(8, 24) if kind == "conv1d" else nn.Linear(24, 8, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(torch.tanh(self.up(x)))


def adapted(kind: str = "linear", **options):
    config = {"target_modules": ["up", "down"], "request_dim": DIM, "init_weights": False, "gate": "signed", **options}
    return inject_request_masks(Feed(kind).eval(), RequestMaskConfig(**config)).eval()


@pytest.fixture(autouse=True)
def _from_the_first_call(monkeypatch) -> None:
    monkeypatch.setattr(row_pieces, "_TRIED_AT", 1)
    monkeypatch.setattr(row_pieces, "_shapes", type(row_pieces._shapes)())


@pytest.fixture
def pieces(monkeypatch) -> list[int]:
    """How many rows each piece had, at most, in each call of a layer that was made in pieces."""
    made: list[int] = []
    true = row_pieces._in_pieces

    def watched(x, weight, bias, groups, step, gates, gate_bias=True):
        if gates is not None:
            made.append(step)
        return true(x, weight, bias, groups, step, gates, gate_bias)

    monkeypatch.setattr(row_pieces, "_in_pieces", watched)
    return made


def whole(monkeypatch, run):
    with monkeypatch.context() as patch:
        patch.setattr(row_pieces, "_AT_ONCE", 10**9)
        return run()


@pytest.fixture(params=[1, 500, 1000], autouse=True)
def at_once(request, monkeypatch) -> int:
    """Entries of one piece: those of one row, of two, of several."""
    monkeypatch.setattr(row_pieces, "_AT_ONCE", request.param)
    return request.param


@pytest.fixture
def inputs() -> tuple[Tensor, Tensor]:
    return torch.randn(ROWS, LENGTH, 8), torch.randn(ROWS, DIM)


@pytest.mark.parametrize("gate", ["signed", "scale", "topk"])
@pytest.mark.parametrize("gate_bias", [True, False])
@pytest.mark.parametrize("kind", ["linear", "conv1d"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_bit_is_that_of_the_whole(monkeypatch, gate, gate_bias, kind, dtype, inputs, pieces) -> None:
    masks = adapted(kind, gate=gate, gate_bias=gate_bias)
    masks.model.to(dtype)
    x, vectors = inputs[0].to(dtype), inputs[1]
    some = [vectors[row] if row % 3 else None for row in range(ROWS)]
    for given in (vectors, some, vectors[0]):
        with torch.no_grad():
            expected = whole(monkeypatch, lambda given=given: masks(x, request=given))
            assert not pieces
            assert torch.equal(masks(x, request=given), expected)
        pieces.clear()
        assert torch.equal(masks(x, request=given).detach(), expected)
        assert not pieces  # with gradients all is made in one


@pytest.mark.parametrize("gate_bias", [True, False])
@pytest.mark.parametrize("kind", ["linear", "conv1d"])
def test_pieces_give_the_numbers_of_the_whole(monkeypatch, gate_bias, kind, inputs, at_once: int, pieces) -> None:
    monkeypatch.setattr(row_pieces, "_is_same", lambda *_: True)  # whatever the machine
    x, vectors = inputs
    masks = adapted(kind, gate_bias=gate_bias)
    for given, groups in ((vectors, ROWS), (vectors[0], ROWS * LENGTH)):
        with torch.no_grad():
            found = masks(x, request=given)
            assert pieces == 2 * [max(1, max(at_once, 8 * 24) * groups // (ROWS * LENGTH * 32))]
            assert torch.allclose(found, whole(monkeypatch, lambda given=given: masks(x, request=given)), atol=1e-6)
        pieces.clear()


def test_one_row_of_gates_beside_several(monkeypatch, pieces) -> None:
    monkeypatch.setattr(row_pieces, "_is_same", lambda *_: True)
    linear, x, row, column = nn.Linear(8, 24), torch.randn(ROWS, LENGTH, 8), torch.randn(1, 24), torch.randn(ROWS, 8)
    with torch.no_grad():
        made = row_pieces.row_column_linear(x, linear.weight, linear.bias, row, column, True, linear)
        assert made is not None
        assert torch.allclose(made, row * linear(column[:, None] * x), atol=1e-6)


def test_pieces_are_not_taken_where_bits_differ(monkeypatch, inputs, pieces) -> None:
    tried: list[int] = []
    monkeypatch.setattr(row_pieces, "_is_same", lambda *_: bool(tried.append(1)))
    masks = adapted()
    with torch.no_grad():
        expected = masks(inputs[0], request=inputs[1])
        for _ in range(3):
            assert torch.equal(masks(inputs[0], request=inputs[1]), expected)
    assert not pieces
    assert len(tried) == 2  # once for each layer


def test_a_shape_is_tried_when_it_has_come_often(monkeypatch, inputs, pieces) -> None:
    monkeypatch.setattr(row_pieces, "_is_same", lambda *_: True)
    monkeypatch.setattr(row_pieces, "_TRIED_AT", 3)
    masks = adapted()
    with torch.no_grad():
        for taken in (0, 0, 2, 4):
            masks(inputs[0], request=inputs[1])
            assert len(pieces) == taken


def test_the_oldest_shapes_are_forgotten(monkeypatch, inputs) -> None:
    monkeypatch.setattr(row_pieces, "_REMEMBERED", 3)
    monkeypatch.setattr(row_pieces, "_AT_ONCE", 1)
    masks = adapted()
    with torch.no_grad():
        for rows in range(2, ROWS):
            masks(inputs[0][:rows], request=inputs[1][:rows])
    assert len(row_pieces._shapes) == 3


def test_trying_leaves_the_random_numbers_alone(inputs) -> None:
    masks = adapted()
    state = torch.get_rng_state()
    with torch.no_grad():
        masks(inputs[0], request=inputs[1])
    assert row_pieces._shapes
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("case", ["hook", "strided", "sequence first", "autocast"])
def test_other_layers_are_made_in_one(monkeypatch, case: str, inputs, pieces) -> None:
    monkeypatch.setattr(row_pieces, "_is_same", lambda *_: True)
    x, vectors = inputs
    masks = adapted(batch_dim=1 if case == "sequence first" else 0)
    x = x.transpose(0, 1).contiguous() if case == "sequence first" else x
    x = x.transpose(0, 1).contiguous().transpose(0, 1) if case == "strided" else x
    if case == "hook":
        for name in ("up", "down"):
            getattr(masks.model, name).base_layer.register_forward_hook(lambda *_: None)
    with torch.no_grad(), torch.autocast("cpu", enabled=case == "autocast"):
        masks(x, request=vectors)
    assert len(pieces) == (case == "strided")  # of the second layer, whose input is none
