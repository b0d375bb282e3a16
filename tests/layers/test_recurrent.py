import copy
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from cramer_peft import inject_request_masks
from cramer_peft.context import RequestContext
from cramer_peft.errors import MergeError, RequestError
from cramer_peft.layers import recurrent
from cramer_peft.layers.recurrent import MaskedRecurrent, element_rows
from cramer_peft.layers.registry import wrapper_for
from cramer_peft.masks import FeatureMask, FeatureSpec

KINDS = (nn.RNN, nn.GRU, nn.LSTM)
quick = settings(max_examples=40)


def wrapped(base: nn.RNNBase) -> MaskedRecurrent:
    return MaskedRecurrent(base, "rnn", RequestContext())


def random_gates(base: nn.RNNBase, rows: int) -> dict[str, FeatureMask]:
    specs = MaskedRecurrent.part_specs(base)
    return {part: FeatureMask(1 + torch.randn(rows, spec.features)) for part, spec in specs.items()}


def map_states(function: Callable[[Tensor], Tensor], states: Any) -> Any:
    return tuple(map(function, states)) if isinstance(states, tuple) else function(states)


def pairs(a: Any, b: Any) -> list[tuple[Any, Any]]:
    """The tensors of two states or packed sequences, side by side."""
    return list(zip(a, b, strict=True)) if isinstance(a, tuple) else [(a, b)]


def by_hand(base: nn.RNNBase, gates: dict[str, FeatureMask], row: int, x: Tensor, states: Any) -> tuple[Tensor, Any]:
    """One row's sequence (length, features) by itself; states (layers, hidden)."""
    output, last = base(x * gates["input"].row(row), states)
    return output * gates["output"].row(row), last


@dataclass
class Case:
    """A random module and a batch for it."""

    kind: type[nn.RNNBase]
    options: dict[str, Any]
    rows: int
    lengths: list[int]
    packed: bool
    sort: bool
    with_states: bool
    seed: int
    base: nn.RNNBase = field(init=False, repr=False)

    def __post_init__(self) -> None:
        torch.manual_seed(self.seed)
        self.base = self.kind(**self.options).eval().requires_grad_(False)
        self.x = torch.randn(self.rows, max(self.lengths), self.base.input_size)
        self.states = self._states() if self.with_states else None

    def _states(self) -> Any:
        layers = self.base.num_layers * (2 if self.base.bidirectional else 1)
        hidden = torch.randn(layers, self.rows, self.base.proj_size or self.base.hidden_size)
        cell = torch.randn(layers, self.rows, self.base.hidden_size)
        return (hidden, cell) if self.kind is nn.LSTM else hidden

    def input(self) -> Tensor | PackedSequence:
        x = self.x if self.base.batch_first else self.x.transpose(0, 1)
        if not self.packed:
            return x
        return pack_padded_sequence(x, torch.tensor(self.lengths), self.base.batch_first, enforce_sorted=not self.sort)

    def length(self, row: int) -> int:
        return self.lengths[row] if self.packed else max(self.lengths)

    def rows_of(self, output: Tensor | PackedSequence) -> list[Tensor]:
        """Each row's own steps of an output."""
        if isinstance(output, PackedSequence):
            output, _ = pad_packed_sequence(output, batch_first=True)
        elif not self.base.batch_first:
            output = output.transpose(0, 1)
        return [output[row, : self.length(row)] for row in range(self.rows)]


@st.composite
def cases(draw) -> Case:
    kind = draw(st.sampled_from(KINDS))
    hidden, layers, rows = draw(st.integers(1, 5)), draw(st.integers(1, 3)), draw(st.integers(1, 4))
    options: dict[str, Any] = {
        "input_size": draw(st.integers(1, 5)),
        "hidden_size": hidden,
        "num_layers": layers,
        "dropout": draw(st.sampled_from([0.0, 0.5])) if layers > 1 else 0.0,
    }
    options |= {name: draw(st.booleans()) for name in ("bias", "batch_first", "bidirectional")}
    if kind is nn.RNN:
        options["nonlinearity"] = draw(st.sampled_from(["tanh", "relu"]))
    if kind is nn.LSTM and hidden > 1:
        options["proj_size"] = draw(st.integers(0, hidden - 1))
    packed, sort = draw(st.booleans()), draw(st.booleans())
    lengths = draw(st.lists(st.integers(1, 5), min_size=rows, max_size=rows))
    lengths = lengths if sort else sorted(lengths, reverse=True)
    return Case(kind, options, rows, lengths, packed, sort, draw(st.booleans()), draw(st.integers(0, 10**6)))


@quick
@given(case=cases())
def test_each_row_is_what_its_own_gates_make_of_it_alone(case: Case) -> None:
    gates = random_gates(case.base, case.rows)
    output, states = wrapped(case.base).masked_forward(gates, case.input(), case.states)
    for row, found in enumerate(case.rows_of(output)):
        first = None if case.states is None else map_states(lambda s, row=row: s[:, row], case.states)
        alone, last = by_hand(case.base, gates, row, case.x[row, : case.length(row)], first)
        assert torch.allclose(found, alone, atol=1e-5)
        for ours, theirs in pairs(states, last):
            assert torch.allclose(ours[:, row], theirs, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_gates_of_one_leave_every_bit_of_a_single_step(kind: type[nn.RNNBase]) -> None:
    # A transposed step has strides that a product would not keep, and torch rounds by them.
    options = {"input_size": 4, "hidden_size": 4, "bias": False}
    for seed in range(5):
        case = Case(kind, options, rows=2, lengths=[1, 1], packed=False, sort=False, with_states=False, seed=seed)
        ones = {part: FeatureMask(torch.ones_like(gate.values)) for part, gate in random_gates(case.base, 2).items()}
        output, states = wrapped(case.base).masked_forward(ones, case.input(), None)
        expected, expected_states = case.base(case.input())
        assert torch.equal(output, expected)
        assert all(torch.equal(*pair) for pair in pairs(states, expected_states))


@quick
@given(case=cases(), data=st.data())
def test_gates_of_one_leave_every_bit_of_their_rows(case: Case, data: st.DataObject) -> None:
    frozen = data.draw(st.sets(st.integers(0, case.rows - 1)))
    gates = random_gates(case.base, case.rows)
    for gate in gates.values():
        gate.values[sorted(frozen)] = 1.0
    layer = wrapped(case.base)
    expected, _ = case.base(case.input(), case.states)
    output, _ = layer.masked_forward(gates, case.input(), case.states)
    before, after = case.rows_of(expected), case.rows_of(output)
    assert all(torch.equal(before[row], after[row]) for row in frozen)

    ones = {part: FeatureMask(torch.ones_like(gate.values)) for part, gate in gates.items()}
    output, states = layer.masked_forward(ones, case.input(), case.states)
    expected, expected_states = case.base(case.input(), case.states)
    for one, other in pairs(output, expected):
        assert (one is None and other is None) or torch.equal(one, other)  # a packed one's four fields, too
    assert type(output) is type(expected)
    assert all(torch.equal(*pair) for pair in pairs(states, expected_states))


@quick
@given(case=cases(), data=st.data())
def test_folded_weights_and_output_gates_equal_the_gates(case: Case, data: st.DataObject) -> None:
    gates, row = random_gates(case.base, case.rows), data.draw(st.integers(0, case.rows - 1))
    layer = wrapped(case.base)
    before = {name: value.clone() for name, value in case.base.state_dict().items()}
    new = layer.fold_parts(gates, row)
    assert set(new) == {name for name in before if name.startswith("weight_ih_l0")}
    assert all(torch.equal(value, before[name]) for name, value in case.base.state_dict().items())

    merged = copy.deepcopy(case.base)
    merged.load_state_dict({**before, **new})
    found, last = wrapped(merged).masked_forward(
        {"output": FeatureMask(gates["output"].row(row)[None])}, case.x[row], _row_of(case.states, row)
    )
    alone, expected = by_hand(case.base, gates, row, case.x[row], _row_of(case.states, row))
    assert torch.allclose(found, alone, atol=1e-5)
    for one, other in pairs(last, expected):
        assert torch.allclose(one, other, atol=1e-5)


def _row_of(states: Any, row: int) -> Any:
    return None if states is None else map_states(lambda s: s[:, row], states)


@quick
@given(case=cases())
def test_a_run_in_two_pieces_equals_one_run(case: Case) -> None:
    if case.base.bidirectional or case.packed or max(case.lengths) < 2:
        return
    gates, layer = random_gates(case.base, case.rows), wrapped(case.base)
    x, time = case.input(), 1 if case.base.batch_first else 0
    whole, last = layer.masked_forward(gates, x, case.states)
    first, states = layer.masked_forward(gates, x.narrow(time, 0, 1), case.states)
    second, ended = layer.masked_forward(gates, x.narrow(time, 1, x.shape[time] - 1), states)
    assert torch.allclose(torch.cat([first, second], time), whole, atol=1e-5)
    for one, other in pairs(ended, last):
        assert torch.allclose(one, other, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_parts(kind: type[nn.RNNBase]) -> None:
    base = kind(3, 4, num_layers=2, bidirectional=True)
    assert wrapper_for(base) is MaskedRecurrent
    assert MaskedRecurrent.part_specs(base) == {"input": FeatureSpec(3), "output": FeatureSpec(8)}
    assert MaskedRecurrent.part_specs(kind(3, 4)) == {"input": FeatureSpec(3), "output": FeatureSpec(4)}
    assert MaskedRecurrent.unfoldable_parts() == ("output",)
    assert MaskedRecurrent.linear is False
    assert MaskedRecurrent.masked_weight(base) is base.weight_ih_l0
    fingerprinted = {id(weight) for weight in MaskedRecurrent.fingerprint_weights(base)}
    assert fingerprinted == {id(parameter) for parameter in base.parameters()}


def test_the_output_is_as_wide_as_the_projection() -> None:
    base = nn.LSTM(3, 4, proj_size=2, bidirectional=True)
    assert MaskedRecurrent.part_specs(base)["output"] == FeatureSpec(4)


@pytest.mark.parametrize("part", ["input", "output"])
def test_a_part_without_gates_stays_frozen(part: str) -> None:
    base, x = nn.GRU(3, 4), torch.randn(5, 2, 3)
    gates = random_gates(base, 2)
    output, last = wrapped(base).masked_forward({part: gates[part]}, x)
    gate = {other: FeatureMask(torch.ones_like(g.values)) for other, g in gates.items()} | {part: gates[part]}
    expected, expected_last = wrapped(base).masked_forward(gate, x)
    assert torch.equal(output, expected)
    assert torch.equal(last, expected_last)
    assert wrapped(base).fold_parts({"output": gates["output"]}, 0) == {}


def test_element_rows_of_a_packed_sequence() -> None:
    rows = torch.arange(3.0)[:, None, None].expand(3, 4, 1)  # each element holds its row's number
    unsorted = pack_padded_sequence(rows, torch.tensor([2, 4, 1]), batch_first=True, enforce_sorted=False)
    assert element_rows(unsorted).tolist() == unsorted.data[:, 0].tolist() == [1, 0, 2, 1, 0, 1, 1]
    ready = pack_padded_sequence(rows, torch.tensor([4, 2, 1]), batch_first=True)
    assert ready.sorted_indices is None
    assert element_rows(ready).tolist() == ready.data[:, 0].tolist()


def test_one_gate_for_all_rows() -> None:
    base, x = nn.GRU(3, 4, batch_first=True), torch.randn(2, 5, 3)
    one = {part: FeatureMask(g.values, shared=True) for part, g in random_gates(base, 1).items()}
    both = {part: FeatureMask(gate.values.expand(2, -1)) for part, gate in one.items()}
    layer = wrapped(base)
    assert torch.equal(layer.masked_forward(one, x)[0], layer.masked_forward(both, x)[0])
    packed = pack_padded_sequence(x, torch.tensor([3, 5]), batch_first=True, enforce_sorted=False)
    assert torch.equal(layer.masked_forward(one, packed)[0].data, layer.masked_forward(both, packed)[0].data)
    output, _ = layer.masked_forward(one, x[0])
    assert torch.allclose(output, layer.masked_forward(both, x)[0][0], atol=1e-6)


def test_a_wrong_number_of_requests_names_the_module() -> None:
    base, x = nn.GRU(3, 4, batch_first=True), torch.randn(2, 5, 3)
    layer, gates = wrapped(base), random_gates(base, 5)  # as many as steps
    with pytest.raises(RequestError, match=r"'rnn'.*found 2 rows in dimension 0.*5 requests"):
        layer.masked_forward(gates, x)
    with pytest.raises(RequestError, match=r"'rnn'.*found 5 rows in dimension 1.*2 requests"):
        wrapped(nn.GRU(3, 4)).masked_forward(random_gates(base, 2), x)
    packed = pack_padded_sequence(x, torch.tensor([3, 5]), batch_first=True, enforce_sorted=False)
    with pytest.raises(RequestError, match=r"'rnn'.*found 2 rows.*5 requests"):
        layer.masked_forward(gates, packed)
    with pytest.raises(RequestError, match=r"'rnn'.*\(5, 3\) is one sequence without rows.*5 requests"):
        layer.masked_forward(gates, x[0])


def test_inputs_that_the_module_refuses_get_its_own_error() -> None:
    base = nn.GRU(3, 4)
    with pytest.raises(ValueError, match="Expected input to be 2D or 3D"):
        wrapped(base).masked_forward(random_gates(base, 1), torch.randn(2, 2, 2, 3))


def test_gradients_reach_the_gates_and_not_the_frozen_weights() -> None:
    base = nn.LSTM(3, 4, num_layers=2, dropout=0.5).requires_grad_(False).train()
    gates = random_gates(base, 2)
    for gate in gates.values():
        gate.values.requires_grad_(True)
    output, _ = wrapped(base).masked_forward(gates, torch.randn(5, 2, 3))
    output.square().sum().backward()
    assert all(gate.values.grad is not None and gate.values.grad.abs().min() > 0 for gate in gates.values())
    assert all(parameter.grad is None for parameter in base.parameters())


def test_models_can_go_on_reading_the_module() -> None:
    base = nn.GRU(3, 4, num_layers=2)
    layer = wrapped(base)
    assert (layer.num_layers, layer.hidden_size, layer.batch_first) == (2, 4, False)
    assert layer.weight_ih_l0 is base.weight_ih_l0
    layer.flatten_parameters()
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = layer.no_such_name
    assert copy.deepcopy(layer).num_layers == 2


class Recurrent(nn.Module):
    """Item scores from histories of ids, (rows, length)."""

    def __init__(self, kind: type[nn.RNNBase], **options: Any) -> None:
        super().__init__()
        self.items = nn.Embedding(20, 4)
        self.rnn = kind(4, 6, batch_first=True, **options)
        self.out = nn.Linear(6 * (1 + self.rnn.bidirectional), 20)

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        self.rnn.flatten_parameters()
        items = self.items(x)
        if lengths is None:
            output, _ = self.rnn(items)
        else:
            packed = pack_padded_sequence(items, lengths, batch_first=True, enforce_sorted=False)
            output, _ = pad_packed_sequence(self.rnn(input=packed)[0], batch_first=True)
        return self.out(output.sum(1))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("packed", [False, True])
def test_in_a_model(make_config, gate: str, snapshot, x: Tensor, kind: type[nn.RNNBase], packed: bool) -> None:
    model = Recurrent(kind, num_layers=2, bidirectional=True).eval().requires_grad_(False)
    lengths = (torch.tensor([3, 5, 1]),) if packed else ()
    before, frozen = snapshot(model), model(x, *lengths)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        masks = inject_request_masks(model, make_config(gate, target_modules=["rnn"]))
        output = masks(x, *lengths, request=["a", None, "b"])
    assert torch.equal(output[1], frozen[1])
    assert not torch.allclose(output[0], frozen[0], atol=1e-4)
    assert torch.equal(masks(x, *lengths, request=["z", None, "b"])[1:], output[1:])
    assert torch.allclose(masks(x[2:], *(n[2:] for n in lengths), request=["b"])[0], output[2], atol=1e-5)
    assert torch.equal(masks(x, *lengths), frozen)
    assert set(masks.masks_for("a")) == {"rnn.input", "rnn.output"}
    masks.unload()
    assert before.differences(model) == []


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("packed", [False, True])
def test_merging_keeps_the_gates_on_the_output(
    make_config, gate: str, snapshot, x: Tensor, kind: type[nn.RNNBase], packed: bool
) -> None:
    model = Recurrent(kind, num_layers=2, bidirectional=True).eval().requires_grad_(False)
    lengths = (torch.tensor([3, 5, 1]),) if packed else ()
    before, frozen = snapshot(model), model(x, *lengths)
    masks = inject_request_masks(model, make_config(gate, target_modules=["rnn"]))
    expected = masks(x, *lengths, request="a")
    names = ("weight_ih_l0", "weight_ih_l0_reverse")
    originals = {name: getattr(model.rnn, name) for name in names}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        masks.merge_request("a")
        assert all(getattr(model.rnn, name) is not original for name, original in originals.items())
        assert torch.allclose(masks(x, *lengths), expected, atol=1e-5)
    with pytest.raises(MergeError, match=r"'rnn'.*output.*module_parts"):
        masks.merge_and_unload()
    masks.unmerge()
    assert all(getattr(model.rnn, name) is original for name, original in originals.items())
    assert torch.equal(masks(x, *lengths), frozen)
    masks.unload()
    assert before.differences(model) == []


def test_gates_on_the_input_alone_can_be_merged_for_good(make_config, gate: str, x: Tensor) -> None:
    model = Recurrent(nn.GRU).eval()
    options = {"drop_ratio": 0.5} if gate == "topk" else {}  # of so few gates, the default would keep all
    config = make_config(gate, target_modules=["rnn"], module_parts=["input"], **options)
    masks = inject_request_masks(model, config)
    frozen, expected = masks(x), masks(x, request="a")
    masks.merge_request("a")
    merged = masks.merge_and_unload()
    assert merged is model
    assert type(model.rnn) is nn.GRU
    assert torch.allclose(model(x), expected, atol=1e-5)
    assert not torch.allclose(model(x), frozen, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("packed", [False, True])
def test_gradients_in_eval_mode_where_cudnn_has_none(
    kind: type[nn.RNNBase], packed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = kind(4, 6, num_layers=2, dropout=0.5, batch_first=True).eval().requires_grad_(False)
    layer, x = wrapped(base), torch.randn(3, 5, 4)
    gates = {part: replace(gate, values=gate.values.requires_grad_()) for part, gate in random_gates(base, 3).items()}
    given = pack_padded_sequence(x, torch.tensor([5, 2, 4]), batch_first=True, enforce_sorted=False) if packed else x
    modes: list[bool] = []
    run = kind.forward

    def forward(module: nn.RNNBase, *args: Any) -> Any:
        modes.append(module.training)
        return run(module, *args)

    monkeypatch.setattr(kind, "forward", forward)
    results = []
    for by_cudnn in (False, True):
        monkeypatch.setattr(recurrent, "_by_cudnn", lambda _, answer=by_cudnn: answer)
        output = layer.masked_forward(gates, given)[0]
        output = output.data if packed else output
        results.append((output.detach(), *torch.autograd.grad(output.sum(), [gate.values for gate in gates.values()])))
    assert modes == [False, True]
    assert not base.training
    assert base.dropout == 0.5
    for eager, cudnn in zip(*results, strict=True):
        assert torch.allclose(eager, cudnn, atol=1e-6)
    with torch.no_grad():
        layer.masked_forward(gates, given)
    assert modes == [False, True, False]  # nobody wants gradients
