"""The speed benchmark: what it times is what it says; no test looks at a time."""

import functools
import json
import statistics
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from benchmark.console import make_app
from benchmark.speed import models, rows, startup
from benchmark.speed import run_speed as run
from benchmark.speed.__main__ import speed
from benchmark.speed.figures import markdown, spread_of
from benchmark.speed.memory import peak_bytes, weight_bytes
from benchmark.speed.models import SpeedModel, make_model
from benchmark.speed.rows import Form, Texts
from benchmark.speed.run_speed import SpeedOptions, run_speed
from benchmark.speed.timing import Row, measure
from torch import nn
from typer.testing import CliRunner

from cramer_peft import HashingEncoder
from cramer_peft.errors import DataError, MissingExtraError

ENCODER = HashingEncoder(16)


@pytest.fixture(autouse=True)
def _small(monkeypatch) -> None:
    monkeypatch.setattr(run, "default_encoder", lambda: ENCODER)
    monkeypatch.setattr("benchmark.speed.timing.SHORTEST", 0.0)


def small(name: str = "sasrec-64", items: int = 12) -> SpeedModel:
    return make_model(name, items=min(items, 12), length=5)


def only(row: Row):
    with torch.no_grad(), row.around():
        return row.run(row.prepare())


@pytest.mark.parametrize("name", ["sasrec-64", "bert4rec-64"])
@pytest.mark.parametrize("gate", ["scale", "topk", "low_rank:2", "rows"])
def test_rows_of_one_request_agree_and_differ_from_the_frozen_model(name: str, gate: str) -> None:
    model, form = small(name), Form.parse(gate)
    (frozen, again), batch = rows.frozen_rows(model, 4), 4
    assert torch.equal(only(frozen.row), only(again.row))
    outputs = {s.row.name.split(": ")[1]: only(s.row) for s in rows.our_rows(model, batch, form, ENCODER)}
    assert torch.equal(outputs["no request"], only(frozen.row))
    for ready in ("mask state ready", "vectors ready"):
        assert torch.allclose(outputs[ready], outputs["gates ready"], atol=1e-5)
    assert ("merged" in outputs) == (gate != "rows")
    if gate != "rows":
        assert torch.allclose(outputs["merged"], outputs["one request"], atol=1e-4)
    for name in outputs.keys() - {"no request"}:
        assert not torch.allclose(outputs[name], only(frozen.row), atol=1e-3), name
    assert torch.equal(only(frozen.row), only(again.row))  # merging was into weights of its own


def test_a_batch_holds_as_many_different_requests_as_the_rows_say() -> None:
    found = [s.row for s in rows.flatness_rows(small(), 4, Form.parse("signed"), ENCODER, (2, 4, 8))]
    assert [row.name for row in found] == [f"signed: {count} different" for count in (1, 2, 4)]
    assert {row.against for row in found} == {"signed: 1 different"}
    model = replace(small(), make_inputs=lambda batch: _same_history(batch, 5))
    for row, count in zip(rows.flatness_rows(model, 4, Form.parse("signed"), ENCODER, (2, 4)), (1, 2, 4), strict=True):
        outputs = only(row.row)
        assert len({tuple(output.mul(1e3).round().tolist()) for output in outputs}) == count


def _same_history(batch: int, length: int) -> dict[str, torch.Tensor]:
    return {"item_ids": torch.arange(1, length + 1).expand(batch, -1)}


def test_an_encoder_as_large_as_minilm_is_timed_alone(monkeypatch) -> None:
    (subject,) = rows.transformer_encoder_rows(2, length=3)
    assert only(subject.row).last_hidden_state.shape == (2, 3, 384)
    assert 20e6 < sum(p.numel() for p in subject.modules[0].parameters()) < 25e6


def test_adapters_of_peft_are_run_as_often_as_the_rows_say() -> None:
    model, called = small(), []
    found = {s.row.name: s for s in rows.peft_rows(model, 4, (2, 4, 8))}
    assert list(found) == [
        "PEFT LoRA r=8",
        "PEFT IA3",
        "PEFT LoRA adapter_names, 2",
        "PEFT LoRA adapter_names, 4",
    ]
    (several,) = found["PEFT LoRA adapter_names, 2"].modules
    for name, module in several.named_modules():
        if "lora_A." in name:
            module.register_forward_hook(lambda *_, name=name: called.append(name.rsplit(".", 1)[1]))
    for count in (2, 4):
        called.clear()
        only(found[f"PEFT LoRA adapter_names, {count}"].row)
        assert sorted(set(called)) == [f"a{i}" for i in range(count)]


def test_copies_hold_the_same_weights() -> None:
    model = small().module
    copied = rows.with_shared_weights(model)
    assert copied is not model
    pairs = zip(model.parameters(), copied.parameters(), strict=True)
    assert all(one is other for one, other in pairs)
    assert weight_bytes([model]) == weight_bytes([model, copied]) > 0


def test_texts_are_all_new() -> None:
    texts = Texts()
    assert len({*texts.new(300), *texts.new(300)}) == 600


def test_every_row_is_timed_beside_the_one_it_is_compared_to() -> None:
    log = []

    @contextmanager
    def around():
        log.append("in")
        yield
        log.append("out")

    timed = [
        Row("frozen", lambda _: log.append("frozen")),
        Row("ours", lambda given: log.append(given), prepare=lambda: "ours", around=around),
    ]
    timings = measure(timed, rounds=7, warm_up=2)
    assert [(t.row, t.against) for t in timings] == [("frozen", "frozen"), ("ours", "frozen")]
    assert all(len(t.seconds) == len(t.ratios) == 7 for t in timings)
    assert log.count("ours") == log.count("in") == log.count("out") == 2 + 7
    assert log.count("frozen") == 2 + 3 * 7
    assert all(log[i - 1] == "in" and log[i + 1] == "out" for i, name in enumerate(log) if name == "ours")


def test_the_spread_is_the_quartiles() -> None:
    ratios = [1.0, 4.0, 2.0, 3.0, 5.0]
    assert spread_of(ratios) == {"ratio": statistics.median(ratios), "low": 2.0, "high": 4.0}
    assert spread_of([2.0]) == {"ratio": 2.0, "low": 2.0, "high": 2.0}


def test_peak_memory_is_what_is_held_at_once() -> None:
    x = torch.zeros(1000)

    def two_at_once(_: None) -> None:
        a = x + 1
        b = a + 1
        del a
        c = b + 1
        del b, c

    assert peak_bytes(Row("row", two_at_once)) == pytest.approx(8000, abs=256)


def test_a_run_writes_everything_as_json(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(run, "make_model", small)
    said: list[str] = []
    options = SpeedOptions(("sasrec-64",), (1, 3), ("scale",), (2,), rounds=2, compiled=False)
    report = run_speed(options, said.append, tmp_path / "speed.json")
    assert json.loads((tmp_path / "speed.json").read_text()) == report
    assert [(r["model"], r["batch"], r["length"]) for r in report["results"]] == [
        ("sasrec-64", 1, 5),
        ("sasrec-64", 3, 5),
    ]
    assert said == ["sasrec-64, batch 1", "sasrec-64, batch 3"]
    result = report["results"][1]
    assert set(result["split"]["scale"]) == {"encoding", "generating gates", "gating", "scoring"}
    for row in result["rows"]:
        assert row["low"] <= row["ratio"] <= row["high"]
        assert row["peak_bytes"] > 0
        assert row["memory_ratio"] >= 0.9
    assert "PEFT LoRA adapter_names, 2" in markdown(result)
    assert result["device"] == report["environment"]["device"] != ""
    assert result["notes"] == result["checks"] == []


def test_rows_can_be_chosen(monkeypatch) -> None:
    monkeypatch.setattr(run, "make_model", small)
    options = SpeedOptions(("sasrec-64",), (2,), ("scale",), rounds=1, compiled=False, memory=False, rows=("vectors",))
    (result,) = run_speed(options)["results"]
    assert [row["row"] for row in result["rows"]] == ["frozen", "scale: vectors ready"]


def test_a_model_whose_package_is_missing_is_left_out_and_named(monkeypatch) -> None:
    def missing(module: str, extra: str):
        raise MissingExtraError(f"{module} {extra}")

    monkeypatch.setattr(models, "require", missing)
    report = run_speed(SpeedOptions(("replay-sasrec-64",), (1,)))
    assert report["results"] == []
    (left_out,) = report["left_out"]
    assert left_out["model"] == "replay-sasrec-64"
    assert "replay.data replay" in left_out["reason"]


@pytest.mark.parametrize("gate", ["low_rank:0", "low_rank:x", "scale:2", "nothing"])
def test_a_wrong_gate_is_refused(gate: str) -> None:
    with pytest.raises(DataError, match=r"gate.*expected"):
        SpeedOptions(gates=(gate,))


@pytest.mark.parametrize(
    "wrong",
    [
        {"models": ("other",)},
        {"batches": (0,)},
        {"adapters": (0,)},
        {"different": (0,)},
        {"rounds": 0},
        {"clock": "sun"},
        {"device": "tpu"},
    ],
)
def test_wrong_options_are_refused(wrong: dict) -> None:
    with pytest.raises(DataError, match=f"{next(iter(wrong))}: found"):
        SpeedOptions(**wrong)


def test_the_decoder_has_the_size_that_it_should_have() -> None:
    with torch.device("meta"):
        size = sum(p.numel() for p in models._decoder("decoder", 1, 640, 8).module.parameters())
    assert 50e6 < size < 100e6


def test_compiled_rows_of_many_gates(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.compiler.reset()
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    options = SpeedOptions(
        ("sasrec-64",), (2,), ("scale", "signed", "low_rank:1", "low_rank:4"), rounds=1, peft=False, memory=False,
        rows=("compiled",),
    )  # fmt: skip
    (result,) = run_speed(options)["results"]
    assert result["notes"] == []
    assert sum("compiled" in row["row"] for row in result["rows"]) == 16


def test_a_row_that_cannot_be_run_is_noted_and_the_others_stay(monkeypatch) -> None:
    def broken(*_) -> list:
        raise RuntimeError("no compiler\nhere")

    def ours(*_) -> list[rows.Subject]:
        fails = Row("fails", lambda _: 1 / 0)
        return [rows.Subject(row, ()) for row in (fails, Row("of it", lambda _: 0, "fails"), Row("runs", lambda _: 0))]

    monkeypatch.setattr(run, "make_model", small)
    monkeypatch.setattr(run, "compiled_rows", broken)
    monkeypatch.setattr(run, "our_rows", ours)
    options = SpeedOptions(("sasrec-64",), (2,), ("scale",), different=(2,), rounds=1, peft=False, memory=False)
    (result,) = run_speed(options)["results"]
    assert {"frozen", "runs", "scale: 2 different"} < {row["row"] for row in result["rows"]}
    assert {note["row"]: note["reason"] for note in result["notes"]} == {
        "scale: compiled": "RuntimeError: no compiler here",
        "fails": "ZeroDivisionError: division by zero",
        "of it": "'fails', which it is compared to, could not be run",
    }


def test_a_frozen_model_that_cannot_be_run_is_an_error(monkeypatch) -> None:
    monkeypatch.setattr(run, "make_model", small)
    monkeypatch.setattr(run, "frozen_rows", lambda *_: [rows.Subject(Row("frozen", lambda _: 1 / 0), ())])
    with pytest.raises(ZeroDivisionError):
        run_speed(SpeedOptions(("sasrec-64",), (2,), ("scale",), rounds=1, compiled=False, peft=False))


def test_startup_is_measured(monkeypatch) -> None:
    assert startup._import_seconds("json") > 0
    monkeypatch.setattr(startup, "_import_seconds", {"cramer_peft": 3.0, "peft": 2.0}.__getitem__)
    found = startup.startup_figures(2, layers=3)
    assert found["import"] == {"seconds": 3.0, "peft_seconds": 2.0, "ratio": 1.5, "low": 1.5, "high": 1.5}
    assert found["layers"] == 3
    assert found["injection_seconds"] > 0


def test_the_command(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(run, "make_model", small)
    output = tmp_path / "out.json"
    config = tmp_path / "speed.json"
    config.write_text('{"adapters": [2], "memory": false, "batches": [3]}')
    arguments = ["--model", "sasrec-64", "--batch", "2", "--gate", "scale", "--rounds", "1", "--config", str(config)]
    switches = ["--no-compiled", "--no-startup"]
    ended = CliRunner().invoke(make_app(speed), ["--output", str(output), *arguments, *switches])
    assert ended.exit_code == 0, ended.output
    assert "PEFT IA3" in ended.output
    report = json.loads(output.read_text())
    assert (report["options"]["batches"], report["options"]["adapters"]) == ([2], [2])  # an option wins over the file
    assert "peak_bytes" not in report["results"][0]["rows"][0]
    assert "startup" not in report


def test_models_keep_their_names() -> None:
    assert isinstance(small().module, nn.Module)
    assert set(models.model_names()) >= {"sasrec-64", "bert4rec-256", "decoder"}
