"""accelerate itself reads the files of examples/distributed, as ``accelerate launch --config_file`` does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("accelerate", reason="extra demo")

from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file
from accelerate.utils import ComputeEnvironment, DistributedType

FOLDER = Path(__file__).parents[2] / "examples" / "distributed"
EXPECTED: dict[str, dict[str, Any]] = {
    "one_node_gpus.yaml": {"num_machines": 1, "num_processes": 4, "gpu_ids": "all"},
    "two_nodes.yaml": {"num_machines": 2, "num_processes": 8, "main_process_port": 29500, "rdzv_backend": "static"},
    "two_processes_cpu.yaml": {"num_machines": 1, "num_processes": 2},
}


def test_every_file_is_checked() -> None:
    assert {path.name for path in FOLDER.iterdir()} == set(EXPECTED)


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_accelerate_reads_the_file(name: str) -> None:
    """It refuses fields that it does not know."""
    config = load_config_from_file(str(FOLDER / name))
    assert isinstance(config, ClusterConfig)
    assert config.compute_environment == ComputeEnvironment.LOCAL_MACHINE
    assert config.distributed_type == DistributedType.MULTI_GPU
    assert config.mixed_precision == "no"
    assert not config.use_cpu  # True would ask for MPI
    assert {key: getattr(config, key) for key in EXPECTED[name]} == EXPECTED[name]


def test_accelerate_refuses_a_field_that_it_does_not_know(tmp_path: Path) -> None:
    path = tmp_path / "odd.yaml"
    path.write_text((FOLDER / "two_processes_cpu.yaml").read_text() + "number_of_processes: 2\n")
    with pytest.raises(ValueError, match="number_of_processes"):
        load_config_from_file(str(path))
