"""Two processes started by ``accelerate launch``, gloo on the CPU, train to the figures of one; killed, they go on."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import cramer_peft
from cramer_peft.training import Checkpoints

pytest.importorskip("accelerate", reason="extra demo")

WORKER = Path(__file__).with_name("processes_worker.py")
CONFIG = Path(__file__).parents[3] / "examples" / "distributed" / "two_processes_cpu.yaml"
EQUAL = ("sasrec", "bert4rec", "gru4rec", "sampled", "scale", "paper", "sampled generator")
KEPT = ("kept generator", "kept backbone")


def launch(folder: Path, *command: object) -> subprocess.CompletedProcess[str]:
    """Run a script, or a module after ``-m``, in two processes, as the documentation says."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    launcher = ("-m", "accelerate.commands.launch", "--config_file", CONFIG, "--main_process_port", port)
    return python(folder, *launcher, *command)


def python(folder: Path, *command: object) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "HF_HOME": str(folder),
        "PYTHONPATH": str(Path(cramer_peft.__file__).parents[1]),
    }
    full = [sys.executable, *map(str, command)]
    return subprocess.run(full, capture_output=True, text=True, timeout=600, env=environment, cwd=folder)


@pytest.fixture(scope="module")
def worker() -> ModuleType:
    spec = importlib.util.spec_from_file_location(WORKER.stem, WORKER)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes trained without being disturbed."""
    folder = tmp_path_factory.mktemp("two")
    run = launch(folder, WORKER, folder, json.dumps([*EQUAL, *KEPT]), folder / "checkpoints")
    assert run.returncode == 0, run.stderr[-3000:]
    return folder


def differences(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = 0.0) -> list[str]:
    assert found.keys() == expected.keys()
    # This bias adds one number to the scores of all items, which no loss sees: its gradients are rounding errors, which
    # Adam scales up.
    compared = [name for name in expected if not (tolerance and name.endswith("rows.0.network.2.bias"))]
    return [name for name in compared if not torch.allclose(found[name], expected[name], rtol=0, atol=tolerance)]


@pytest.mark.parametrize("case", EQUAL)
def test_two_processes_train_to_the_weights_of_one(case: str, trained: Path, worker: ModuleType) -> None:
    """The last batch of an epoch has one row: the second process has none then."""
    found = load_file(trained / f"{case}.safetensors")
    one = worker.figures(worker.CASES[case](None))
    assert differences(found, one, 5e-5) == []
    assert differences(load_file(trained / f"{case} of 1.safetensors"), found) == []


def test_killed_processes_go_on_from_the_last_checkpoint(trained: Path, worker: ModuleType, tmp_path: Path) -> None:
    """7 steps of a generator, a checkpoint every 2; 12 of a backbone with dropout and hidden items, one every 3."""
    kept, cases = tmp_path / "checkpoints", json.dumps(KEPT)
    assert launch(tmp_path, WORKER, tmp_path, cases, kept, 6).returncode != 0
    assert [path.name for path in (kept / "generator").iterdir()] == ["checkpoint-4"]
    shutil.copytree(kept, tmp_path / "copy")

    assert launch(tmp_path, WORKER, tmp_path, cases, kept, 3 + 8).returncode != 0
    assert differences(*(load_file(folder / "kept generator.safetensors") for folder in (tmp_path, trained))) == []
    assert (kept / "backbone" / "checkpoint-6").is_dir()
    assert not (kept / "backbone" / "checkpoint-9").exists()

    run = launch(tmp_path, WORKER, tmp_path, cases, kept)
    assert run.returncode == 0, run.stderr[-3000:]
    assert json.loads((tmp_path / "steps of 0.json").read_text()) == [6, 7, 8, 9, 10, 11]
    for case in KEPT:
        assert differences(*(load_file(folder / f"{case}.safetensors") for folder in (tmp_path, trained))) == []

    begun = worker.count_steps()  # one process goes on where two were killed
    alone = worker.CASES["kept generator"](Checkpoints(tmp_path / "copy", every=2, resume=True))
    assert begun == [4, 5, 6]
    assert differences(worker.figures(alone), load_file(trained / "kept generator.safetensors"), 5e-5) == []


def test_the_command_trains_on_two_processes(folder: Path, tmp_path: Path) -> None:
    """The same generator on the same backbone; the first process alone writes and prints."""
    (tmp_path / "masks.json").write_text(json.dumps({"encoder": "hashing", "encoder_options": {"dim": 16}}))
    train = ("-m", "cramer_peft", "train", "--data", folder, "--config", "masks.json", "--epochs", 1, "--steps", 4)
    one = python(tmp_path, *train, "--output", "one")
    assert one.returncode == 0, one.stderr[-3000:]
    two = launch(tmp_path, *train, "--checkpoint", "one", "--output", "two", "--checkpoint-folder", "kept")
    assert two.returncode == 0, two.stderr[-3000:]
    assert two.stdout.count("Written to two") == two.stdout.count("The validation users") == 1

    results = [json.loads((tmp_path / name / "training.json").read_text())["validation"] for name in ("one", "two")]
    assert results[0] == results[1]
    weights = [load_file(tmp_path / name / "adapter" / "adapter_model.safetensors") for name in ("two", "one")]
    assert differences(*weights, 5e-5) == []
    assert [path.name for path in (tmp_path / "kept").glob("*/*")] == ["checkpoint-4"]
