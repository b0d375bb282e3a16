"""Data parallel training by ``accelerate launch``, two processes, gloo on the CPU."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import cramer_peft

pytest.importorskip("accelerate", reason="extra demo")


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def test_gradients_equal_those_of_the_full_batch(tmp_path: Path) -> None:
    """Both doors, three gates, the encoder frozen and tuned; requests are texts, some rows have none."""
    # Without an MPI, accelerate starts several processes by this option alone; the script asks for the CPU.
    command = [
        *(sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"),
        *("--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"),
        *("--main_process_port", str(_free_port())),
        str(Path(__file__).with_name("ddp_worker.py")),
    ]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "HF_HOME": str(tmp_path),
        "PYTHONPATH": str(Path(cramer_peft.__file__).parents[1]),
    }
    run = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert run.returncode == 0, run.stderr[-3000:]
    counts = re.findall(r"rank (\d): (\d+) gradients equal", run.stdout)
    assert sorted(rank for rank, _ in counts) == ["0", "1"]
    assert all(int(count) >= 100 for _, count in counts)
