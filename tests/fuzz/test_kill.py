"""Processes killed in the middle of a save: the old file or the new one, never a part and never none.

``CRAMER_KILLS`` sets how many are killed.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

KILLS = int(os.environ.get("CRAMER_KILLS", "100"))

# Run apart, so that it can fork: the children start with everything imported.
PROGRAM = """
import json, os, random, signal, sys, time
from pathlib import Path
import torch
from torch import nn
from cramer_peft import MaskState, RequestMaskConfig, inject_request_masks, load_request_masks
from cramer_peft.errors import AdapterFileError
from cramer_peft.storage.files import atomic_file

torch.set_num_threads(1)
root, kills = Path(sys.argv[1]), int(sys.argv[2])
adapter, state = root / "adapter", root / "state.safetensors"


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 256), nn.ReLU(), nn.Linear(256, 8)).eval()


def masks(version):
    base = model()
    torch.manual_seed(version)
    options = {"init_weights": False, "strength": 1.0 + version, "request_dim": 16}
    return inject_request_masks(base, RequestMaskConfig(target_modules=["0", "2"], **options))


versions = [masks(0), masks(1)]
vectors = torch.randn(64, 16)
states = [version.mask_state(vectors).detach() for version in versions]
weights = [{k: v.clone() for k, v in version.generator.state_dict().items()} for version in versions]
versions[0].save_pretrained(adapter)
states[0].save(state)


def save_for_ever(first):
    while True:
        for i in (first, 1 - first):
            versions[i].save_pretrained(adapter)
            states[i].save(state)


def same(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


def which_state():
    found = MaskState.load(state)
    flat = lambda s: {(n, p): v for n, parts in s.tensors.items() for p, v in parts.items()}
    return [i for i in (0, 1) if same(flat(found), flat(states[i])) and torch.equal(found.strength, states[i].strength)]


def which_adapter():
    try:
        found = load_request_masks(model(), adapter)
    except AdapterFileError as error:
        if "different saves" not in str(error):
            raise
        return ["mixed"]
    strength = found.peft_config["default"].strength
    return [i for i in (0, 1) if same(found.generator.state_dict(), weights[i]) and strength == 1.0 + i]


random.seed(int(sys.argv[3]))
counts = {"killed": 0, "state": [0, 0], "adapter": [0, 0], "mixed": 0, "broken": []}
window = 0.03
for kill in range(1, kills + 1):
    first = random.randrange(2)
    child = os.fork()
    if child == 0:
        save_for_ever(first)
    time.sleep(random.uniform(0.0, window))
    os.kill(child, signal.SIGKILL)
    counts["killed"] += os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    for kind, which in (("state", which_state), ("adapter", which_adapter)):
        try:
            [version] = which()
        except Exception as error:
            counts["broken"].append(f"{kind}: {error!r}")
            continue
        if version == "mixed":
            counts["mixed"] += 1
            versions[0].save_pretrained(adapter)
        else:
            counts[kind][version] += 1
    if kill % 10 == 0 and not min(*counts["state"], *counts["adapter"]):
        window = min(2 * window, 2.0)  # a busy machine has not finished a save yet
left = [*root.glob(".*.tmp"), *adapter.glob(".*.tmp")]
counts["left"] = len(left)
for path in left:
    os.utime(path, (time.time() - 7200,) * 2)
young = adapter / f".adapter_config.json.{'0' * 16}.tmp"
young.write_bytes(b"of a writer at work")
versions[0].save_pretrained(adapter)
states[0].save(state)
counts["names"] = sorted(path.name for path in [*root.iterdir(), *adapter.iterdir()])
print(json.dumps(counts))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork and no SIGKILL on this system")
def test_killed_savers_leave_the_old_or_the_new(tmp_path: Path) -> None:
    command = [sys.executable, "-c", PROGRAM, str(tmp_path), str(KILLS), "0"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, capture_output=True, text=True, timeout=900, env=environment)
    assert run.returncode == 0, run.stderr[-3000:]
    counts = json.loads(run.stdout.splitlines()[-1])
    print(counts)
    assert counts["broken"] == []
    assert counts["killed"] == KILLS
    assert sum(counts["state"]) == KILLS
    assert sum(counts["adapter"]) + counts["mixed"] == KILLS
    assert min(*counts["state"], *counts["adapter"]) > 0  # both versions were caught
    assert counts["left"] <= KILLS  # at most the one file that was being written
    young = f".adapter_config.json.{'0' * 16}.tmp"
    assert counts["names"] == [
        young,
        "README.md",
        "adapter",
        "adapter_config.json",
        "adapter_model.safetensors",
        "state.safetensors",
    ]
