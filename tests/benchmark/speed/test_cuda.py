"""The speed benchmark on a CUDA device: a pretended one, and a real one where there is one."""

import json
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from benchmark.console import make_app
from benchmark.speed import graphs, rows
from benchmark.speed import run_speed as run
from benchmark.speed.__main__ import speed
from benchmark.speed.device import moved
from benchmark.speed.figures import check_line
from benchmark.speed.memory import peak_bytes
from benchmark.speed.models import SpeedModel, make_model
from benchmark.speed.notes import Notes, reason_of
from benchmark.speed.rows import Form
from benchmark.speed.run_speed import SpeedOptions, run_speed
from benchmark.speed.timing import Row, measure
from typer.testing import CliRunner

from cramer_peft import HashingEncoder
from cramer_peft.context import FixedMasks
from cramer_peft.errors import CramerError, DataError
from cramer_peft.recsys.backbones.backbone import last_positions

ENCODER = HashingEncoder(16)
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
without_cuda = pytest.mark.skipif(torch.cuda.is_available(), reason="pretends one")


@pytest.fixture(autouse=True)
def _small(monkeypatch) -> None:
    monkeypatch.setattr(run, "default_encoder", lambda: ENCODER)
    monkeypatch.setattr(run, "make_model", small)
    monkeypatch.setattr("benchmark.speed.timing.SHORTEST", 0.0)


def small(name: str = "sasrec-64", items: int | None = None) -> SpeedModel:
    return make_model(name, items=12, length=5)


@dataclass
class Pretended:
    """What was asked of the device that there is not."""

    log: list[str] = field(default_factory=list)
    capturing: bool = False
    held: int = 100


@pytest.fixture
def pretended(monkeypatch) -> Pretended:
    """A CUDA device whose tensors are on the CPU, and whose graphs hold the output of the captured call."""
    device = Pretended()

    @contextmanager
    def graph(_, capture_error_mode: str):
        device.capturing = True
        try:
            yield
        finally:
            device.capturing = False

    stream = SimpleNamespace(wait_stream=lambda _: device.log.append("wait"))
    pretend = {
        "is_available": lambda: True,
        "synchronize": lambda: device.log.append("synchronise"),
        "get_device_name": lambda: "Pretended 1",
        "memory_allocated": lambda: device.held,
        "reset_peak_memory_stats": lambda: device.log.append("reset"),
        "max_memory_allocated": lambda: device.held + 8,
        "Stream": lambda: stream,
        "current_stream": lambda: stream,
        "set_stream": lambda _: device.log.append("set stream"),
        "stream": lambda _: nullcontext(),
        "CUDAGraph": lambda: SimpleNamespace(replay=lambda: device.log.append("replay")),
        "graph": graph,
    }
    for name, value in pretend.items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(SpeedModel, "to", lambda self, _: self)
    return device


@without_cuda
def test_a_device_that_is_not_there_is_refused() -> None:
    with pytest.raises(DataError, match=r"device: found 'cuda', but torch .* sees no CUDA device. Use --device cpu"):
        SpeedOptions(device="cuda")
    ended = CliRunner().invoke(make_app(speed), ["--device", "cuda"])
    assert isinstance(ended.exception, CramerError)


def test_the_processors_clock_is_refused_on_cuda(pretended: Pretended) -> None:
    with pytest.raises(DataError, match=r"clock: found 'cpu' with device 'cuda'.*expected 'wall'"):
        SpeedOptions(device="cuda", clock="cpu")
    assert SpeedOptions(device="cuda").clock == "wall"


def test_the_clock_is_read_when_the_device_has_done_its_work(pretended: Pretended, monkeypatch) -> None:
    log = pretended.log
    monkeypatch.setitem(measure.__globals__["CLOCKS"], "wall", lambda: log.append("clock") or float(log.count("clock")))
    monkeypatch.setattr("benchmark.speed.timing.SHORTEST", 2.0)  # two calls, since each takes a second
    measure([Row("row", lambda _: log.append("call"), "row")], rounds=1, warm_up=1, device="cuda")
    turn = ["synchronise", "clock", "call", "call", "synchronise", "clock"]
    assert log == ["synchronise", "clock", "call", "synchronise", "clock", *turn, *turn]


def test_peak_memory_is_the_devices(pretended: Pretended) -> None:
    log = pretended.log
    assert peak_bytes(Row("row", lambda _: log.append("call")), "cuda") == 8
    assert log == ["call", "synchronise", "reset", "call", "synchronise"]


def test_a_model_is_moved_with_its_inputs() -> None:
    model = small().to("meta")
    assert model.device.type == "meta"
    assert {value.device.type for value in model.make_inputs(2).values()} == {"meta"}
    nested = moved({"a": {"b": torch.zeros(1)}, "c": 1}, "meta")
    assert nested["a"]["b"].device.type == "meta"
    assert nested["c"] == 1


@pytest.mark.parametrize("gate", ["scale", "signed", "low_rank:2"])
def test_graphs_are_of_the_same_calls(pretended: Pretended, gate: str) -> None:
    model, form, notes, checks = small(), Form.parse(gate), Notes(), []
    found = graphs.graph_rows(model, 4, (form,), ENCODER, notes, checks)
    outputs = {subject.row.name: subject.row.run(None) for subject in found}
    assert list(outputs) == [graphs.FROZEN, f"{form}: CUDA graph, gates ready", f"{form}: CUDA graph, mask state"]
    assert [subject.row.against for subject in found] == ["frozen", graphs.FROZEN, graphs.FROZEN]
    assert [subject.peak_bytes for subject in found] == [8, 8, 8]
    frozen, ready, state = outputs.values()
    ours = {s.row.name: s.row for s in rows.our_rows(model, 4, form, ENCODER)}
    expected = ours[f"{form}: mask state ready"]
    with torch.no_grad():
        assert torch.equal(frozen, rows.frozen_rows(model, 4)[0].row.run(None))
        assert torch.equal(state, expected.run(None))
        assert torch.equal(ready, state)
    assert notes.found == []
    assert [check["row"] for check in checks] == list(outputs)
    assert all(check["equal"] and check["max_abs_difference"] == 0 for check in checks)


def test_gates_stay_as_long_as_their_graph(pretended: Pretended, monkeypatch) -> None:
    captured = []
    capture = graphs.capture
    monkeypatch.setattr(graphs, "capture", lambda *given: captured.append(capture(*given)) or captured[-1])
    graphs.graph_rows(small(), 4, (Form.parse("scale"),), ENCODER, Notes(), [])
    source = captured[1].kept[-1]
    assert isinstance(source, FixedMasks)  # made before the capture
    assert source.masks.keys() != set()


def test_a_capture_that_fails_is_noted_and_undone(pretended: Pretended) -> None:
    def add(name: str, call) -> None:
        with notes.instead_of(name):
            graphs.capture(call)

    def looks() -> None:
        if pretended.capturing:
            raise RuntimeError("operation not permitted when stream is capturing")

    notes = Notes()
    add("looks", looks)
    add("works", lambda: torch.zeros(1))
    assert notes.found == [{"row": "looks", "reason": "RuntimeError: operation not permitted when stream is capturing"}]
    assert pretended.log.count("set stream") == 2


def test_without_the_captured_frozen_model_there_are_no_graphs(pretended: Pretended, monkeypatch) -> None:
    def fails(*_) -> None:
        raise RuntimeError("no graphs here")

    monkeypatch.setattr(graphs, "capture", fails)
    options = SpeedOptions(("sasrec-64",), (2,), ("scale",), rounds=1, compiled=False, device="cuda")
    (result,) = run_speed(options)["results"]
    assert not [row for row in result["rows"] if "CUDA graph" in row["row"]]
    assert [note["row"] for note in result["notes"]] == [graphs.FROZEN, "scale: CUDA graph"]
    assert {"frozen", "scale: gates ready", "PEFT IA3"} < {row["row"] for row in result["rows"]}


def test_the_first_of_several_errors_is_the_reason() -> None:
    with pytest.raises(RuntimeError) as raised:  # noqa: PT012
        try:
            raise ValueError("looked at a value")
        finally:
            raise RuntimeError("capture invalidated")
    assert reason_of(raised.value) == "ValueError: looked at a value; then RuntimeError: capture invalidated"


def test_the_command_names_the_device(pretended: Pretended, tmp_path: Path) -> None:
    output = tmp_path / "out.json"
    arguments = ["--model", "sasrec-64", "--batch", "2", "--gate", "signed", "--gate", "topk", "--rounds", "1"]
    arguments += ["--row", "CUDA graph", "--row", "gates ready", "--no-startup", "--device", "cuda"]
    ended = CliRunner().invoke(make_app(speed), ["--output", str(output), *arguments])
    assert ended.exit_code == 0, ended.output
    report = json.loads(output.read_text())
    (result,) = report["results"]
    assert result["device"] == report["environment"]["device"] == "Pretended 1"
    assert "Pretended 1" in ended.output
    assert "CUDA graph, frozen: the scores of the eager call, bit for bit" in ended.output
    found = {row["row"]: row for row in result["rows"]}
    assert found["signed: CUDA graph, gates ready"]["peak_ratio"] == 1
    assert all(row["milliseconds"] > 0 for row in found.values())
    (tmp_path / "config.json").write_text('{"graphs": false}')
    arguments += ["--config", str(tmp_path / "config.json")]
    assert CliRunner().invoke(make_app(speed), ["--output", str(output), *arguments]).exit_code == 0
    assert "CUDA graph, frozen" not in {row["row"] for row in json.loads(output.read_text())["results"][0]["rows"]}


def test_what_a_check_found_is_said() -> None:
    check = {"row": "a", "against": "eager", **graphs.compared(torch.tensor([1.0, -4.0]), torch.tensor([1.0, -4.5]))}
    assert check_line(check) == "a: at most 0.5 from the scores of the eager call, up to 4.5"


def test_no_value_is_looked_at_while_a_graph_is_captured(monkeypatch) -> None:
    class OnCuda(torch.Tensor):
        is_cuda = True

    empty = torch.zeros(1, 3, dtype=torch.long)
    with pytest.raises(DataError, match="row 0 is an empty history"):
        last_positions(empty)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert last_positions(empty.as_subclass(OnCuda)).tolist() == [-1]


@needs_cuda
@pytest.mark.parametrize("name", ["sasrec-64", "bert4rec-64"])
def test_everything_runs_on_a_cuda_device(name: str) -> None:
    gates = ("scale", "signed", "low_rank:2")
    options = SpeedOptions((name,), (4,), gates, (2,), (4,), rounds=1, compiled=False, device="cuda")
    (result,) = run_speed(options)["results"]
    assert result["notes"] == []
    assert result["device"] == torch.cuda.get_device_name()
    assert len(result["checks"]) == 1 + 2 * len(gates)
    assert all(check["max_abs_difference"] < 1e-4 for check in result["checks"])
    assert {graphs.FROZEN, "scale: CUDA graph, gates ready", "PEFT LoRA adapter_names, 2"} < {
        row["row"] for row in result["rows"]
    }


@needs_cuda
def test_compiled_rows_run_on_a_cuda_device() -> None:
    options = SpeedOptions(("sasrec-64",), (4,), ("signed",), rounds=1, rows=("compiled, mask",), device="cuda")
    (result,) = run_speed(options)["results"]
    assert result["notes"] == []
    assert "signed: compiled, mask state" in {row["row"] for row in result["rows"]}


@needs_cuda
def test_graphs_read_their_own_gates_after_other_calls_on_a_cuda_device() -> None:
    model, form = small().to("cuda"), Form.parse("signed")
    found = graphs.graph_rows(model, 4, (form,), ENCODER, Notes(), [])
    junk = [torch.full((size,), float("nan"), device="cuda") for size in range(1, 4000, 7)]  # over what is freed
    outputs = [subject.row.run(None) for subject in found]
    ours = {s.row.name: s.row for s in rows.our_rows(model, 4, form, ENCODER)}
    with torch.no_grad():
        expected = ours[f"{form}: mask state ready"].run(None)
    assert torch.allclose(outputs[1], expected, atol=1e-4)
    assert torch.allclose(outputs[2], expected, atol=1e-4)
    assert not torch.allclose(outputs[0], expected, atol=1e-3)
    del junk


@needs_cuda
def test_a_capture_that_fails_leaves_a_cuda_device_usable() -> None:
    x = torch.ones(3, device="cuda")
    with pytest.raises(RuntimeError):
        graphs.capture(lambda: x * float(x.sum()))
    assert torch.randn(3, device="cuda").isfinite().all()
    assert torch.equal(graphs.capture(lambda: x + 1).replay(), x + 1)
    assert replace(small(), name="again").to("cuda").device.type == "cuda"
