"""Files made to take all memory or for ever: refused in a process with little of both.

The time limit only ends a hang; it measures nothing.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cramer_peft import inject_request_masks
from cramer_peft.storage.files import read_safetensors, write_safetensors

resource = pytest.importorskip("resource")
MEGABYTES = 700  # above what the process has when it starts to read

PROGRAM = """
import json, resource, sys
from pathlib import Path
import torch
from torch import nn
from cramer_peft import MaskState, load_request_masks
from cramer_peft.errors import CramerError
from cramer_peft.recsys.data.atomic import read_atomic
from cramer_peft.recsys.data.catalogue import Catalogue

torch.set_num_threads(1)
root, megabytes = Path(sys.argv[1]), int(sys.argv[2])


def rss():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // (1 if sys.platform == "linux" else 1024)


def load_adapter(folder):
    torch.manual_seed(0)
    model = nn.ModuleDict({f"a{i:040d}": nn.Linear(2, 2) for i in range(50)})
    model["up"] = nn.Linear(8, 16)
    load_request_masks(model, folder)


start = rss()
# Private memory alone: mapping a file takes address space, and reads nothing.
used = int(next(line for line in open("/proc/self/status") if line.startswith("VmData")).split()[1]) * 1024
resource.setrlimit(resource.RLIMIT_DATA, (used + megabytes * 2**20, resource.RLIM_INFINITY))
loaders = {"adapter": load_adapter, "state": MaskState.load, "catalogue": Catalogue.load, "atomic": read_atomic}
found = {}
for path in sorted(root.iterdir()):
    try:
        loaders[path.name.partition("-")[0]](path)
        found[path.name] = "loaded"
    except CramerError as error:
        found[path.name] = f"{type(error).__name__}: {error}"[:300]
print(json.dumps([found, (rss() - start) // 1024]))
"""


def sparse(path: Path, size: int, head: bytes = b"") -> None:
    """A file that is large and takes no space."""
    with path.open("wb") as file:
        file.write(head)
        file.truncate(size)


def header(entries: dict[str, object]) -> bytes:
    text = json.dumps(entries).encode()
    return len(text).to_bytes(8, "little") + text


def huge(name: str, elements: int) -> bytes:
    return header({name: {"dtype": "F32", "shape": [elements], "data_offsets": [0, 4 * elements]}})


@pytest.fixture
def strangers(make_model, make_config, tmp_path: Path, edit_json) -> Path:
    """A folder of files that ask for too much."""
    root = tmp_path / "files"
    root.mkdir()
    torch.manual_seed(0)
    model = torch.nn.ModuleDict({f"a{i:040d}": torch.nn.Linear(2, 2) for i in range(50)})
    model["up"] = torch.nn.Linear(8, 16)
    masks = inject_request_masks(model, make_config(target_modules=["up"]))

    def adapter(name: str, **config: object) -> Path:
        masks.save_pretrained(root / f"adapter-{name}")
        path = root / f"adapter-{name}" / "adapter_model.safetensors"
        if config:
            edit_json(path.with_name("adapter_config.json"), **config)
            write_safetensors(path, read_safetensors(path)[0], {})
        return path

    adapter("whole")
    tera = huge("base_model.request_mask_generator.head.bias", 2**38)
    sparse(adapter("tensor-of-a-terabyte"), len(tera) + 2**40, tera)
    sparse(adapter("file-of-a-terabyte"), 2**40)
    adapter("header-of-everything").write_bytes((2**63).to_bytes(8, "little") + b"{}")
    sparse(adapter("config-of-a-terabyte").with_name("adapter_config.json"), 2**40, b"{")
    adapter("long-config").with_name("adapter_config.json").write_bytes(b"[" * 16_000_000)
    adapter("wide-config").with_name("adapter_config.json").write_bytes(b'{"a":[' + b"[]," * 5_000_000 + b"0]}")
    adapter("huge-generator", generator_width=2**40, request_dim=2**40)
    adapter("huge-rank", rank=2**40)
    # Each of these takes exponential time on a name of 41 characters that it does not match.
    adapter("slow-target", target_modules=r"(a?0*)*(0*0*)*up|up")
    adapter("slow-exclusion", exclude_modules=r"a(0*)*(0|00)*(0+)+!")
    adapter("slow-pattern", layers_to_transform=[0], layers_pattern=["(a0*)*(0+0+)+!"])
    adapter("slow-kept", modules_to_save=["(a0*)*(0+0+)+!"])
    adapter("many-targets", target_modules=["x"] * 1_000_000)
    sparse(root / "state-of-a-terabyte", 2**40, huge("up.a", 2**38))
    sparse(root / "state-of-a-gigabyte", 2**31 + 1, huge("up.a", 2**29))
    entries = (f'"{i:07d}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}' for i in range(1_300_000))
    many = ("{" + ",".join(entries) + "}").encode()
    (root / "state-of-a-million-tensors").write_bytes(len(many).to_bytes(8, "little") + many)
    numbers = b'{"a":[' + b"1234," * 19_000_000 + b"1]}"
    (root / "state-of-numbers").write_bytes(len(numbers).to_bytes(8, "little") + numbers)
    sparse(root / "catalogue-of-a-terabyte", 2**40, b"{")
    (root / "catalogue-wide").write_bytes(b'{"a":[' + b"[]," * 20_000_000 + b"0]}")
    sparse(root / "atomic-of-a-terabyte", 2**40, b"a:token\n")
    (root / "atomic-wide").write_bytes(b"\t".join(b"a%d:float" % i for i in range(500_000)) + b"\n")
    return root


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_files_that_ask_for_too_much(strangers: Path) -> None:
    command = [sys.executable, "-c", PROGRAM, str(strangers), str(MEGABYTES)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stderr[-3000:]
    found, megabytes = json.loads(run.stdout.splitlines()[-1])
    assert sorted(found) == sorted(path.name for path in strangers.iterdir())
    matched_by_list = {f"adapter-{n}" for n in ("slow-target", "slow-exclusion", "slow-pattern", "many-targets")}
    loaded = {name for name, how in found.items() if how == "loaded"}
    assert loaded == {"adapter-whole", *matched_by_list}, found
    assert "does not fit" in found["adapter-tensor-of-a-terabyte"]
    assert megabytes < MEGABYTES
