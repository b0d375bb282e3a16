"""Checkpoints of a training: trained weights, optimiser, schedule and random states.

A checkpoint is a folder ``checkpoint-<step>`` of JSON and safetensors files. It is written under another name and
renamed when it is complete, so that a process that is killed leaves the earlier checkpoints intact.
"""

from __future__ import annotations

import os
import random
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cramer_peft.errors import AdapterFileError, ConfigError
from cramer_peft.storage.files import read_json, read_safetensors, write_json, write_safetensors

PROGRESS, WEIGHTS, OPTIMIZER, RANDOM = "progress.json", "weights.safetensors", "optimizer.safetensors", "random"
_NAME = re.compile(r"checkpoint-(\d+)")


@dataclass(frozen=True)
class Checkpoints:
    """The folder of a training's checkpoints.

    Attributes:
        folder: A folder for this training alone; with several machines, on a file system that all of them see.
        every: Optimiser steps between two checkpoints; those of a backbone are written after each epoch instead.
        resume: True to continue from the last checkpoint, if there is one; False if the folder must hold none.
    """

    folder: Path
    every: int = 100
    resume: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "folder", Path(self.folder))
        if self.every < 1:
            raise ConfigError(f"every: found {self.every}, expected 1 or more steps between two checkpoints.")

    def below(self, name: str) -> Checkpoints:
        """Return the checkpoints of one of several trainings, in a folder ``name`` inside this one."""
        return Checkpoints(self.folder / name, self.every, self.resume)

    def last_step(self) -> int | None:
        """Return the step of the last checkpoint; None if there is none."""
        return max((int(match[1]) for _, match in _named(self.folder)), default=None)

    def last(self) -> Path | None:
        """Return the last checkpoint, to continue from; None if there is none."""
        step = self.last_step()
        if step is None:
            return None
        if not self.resume:
            raise ConfigError(
                f"{self.folder} holds checkpoints of an earlier training, the last of step {step}. Go on from "
                "there by resume=True (--resume), or give another folder."
            )
        return self.of_step(step)

    def of_step(self, step: int) -> Path:
        """Return the folder of a step's checkpoint."""
        return self.folder / f"checkpoint-{step}"


def _named(folder: Path) -> Iterator[tuple[Path, re.Match[str]]]:
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        match = _NAME.fullmatch(path.name)
        if match and path.is_dir():
            yield path, match


# ---------------------------------------------------------------- files


def write_checkpoint(
    path: Path,
    progress: dict[str, Any],
    weights: dict[str, Tensor],
    optimizer: dict[str, Any],
    states: list[dict[str, Tensor]],
    extra: dict[str, dict[str, Any]],
) -> None:
    """Write a checkpoint folder, whole or not at all; parts that a killed writer left there are removed.

    ``states`` holds the random states of each process, ``extra`` other JSON files by name.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for leftover in path.parent.glob(".checkpoint-*.part"):
        shutil.rmtree(leftover, ignore_errors=True)
    part = path.with_name(f".{path.name}.part")
    tensors, rest = _apart(optimizer)
    write_safetensors(part / WEIGHTS, weights, {})
    write_safetensors(part / OPTIMIZER, tensors, {})
    for index, state in enumerate(states):
        write_safetensors(part / f"{RANDOM}-{index}.safetensors", state, {})
    for name, values in extra.items():
        write_json(part / name, values)
    write_json(part / PROGRESS, {**progress, "optimizer": rest})
    if path.exists():
        shutil.rmtree(path)
    os.replace(part, path)


def keep_only(folder: Path, kept: set[int]) -> None:
    """Remove the checkpoints of all steps but ``kept``."""
    for path, match in _named(folder):
        if int(match[1]) not in kept:
            shutil.rmtree(path, ignore_errors=True)


def read_progress(path: Path) -> dict[str, Any]:
    """Return the plain values of a checkpoint."""
    return read_json(path / PROGRESS)


def read_weights(path: Path) -> dict[str, Tensor]:
    """Return the trained weights of a checkpoint, by name."""
    return read_safetensors(path / WEIGHTS)[0]


def read_optimizer(path: Path) -> dict[str, Any]:
    """Return the optimiser's ``state_dict``."""
    rest = read_progress(path)["optimizer"]
    state: dict[int, dict[str, Any]] = {int(index): dict(values) for index, values in rest["state"].items()}
    for name, value in read_safetensors(path / OPTIMIZER)[0].items():
        index, key = name.split(".", 1)
        state.setdefault(int(index), {})[key] = value
    return {"state": state, "param_groups": rest["param_groups"]}


def read_random(path: Path, index: int) -> dict[str, Tensor] | None:
    """Return a process's random state; None if the checkpoint was written by fewer processes."""
    file = path / f"{RANDOM}-{index}.safetensors"
    return read_safetensors(file)[0] if file.exists() else None


def _apart(optimizer: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Split an optimiser's state into its tensors, by name, and its plain values."""
    tensors: dict[str, Tensor] = {}
    plain: dict[str, dict[str, Any]] = {}
    for index, values in optimizer["state"].items():
        tensors |= {f"{index}.{key}": value for key, value in values.items() if isinstance(value, Tensor)}
        plain[str(index)] = {key: value for key, value in values.items() if not isinstance(value, Tensor)}
    return tensors, {"state": plain, "param_groups": optimizer["param_groups"]}


# ---------------------------------------------------------------- weights


def trained_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return a model's trained parameters, and the stored buffers of parts that are trained throughout; each once."""
    found: dict[str, Tensor] = {name: value for name, value in model.named_parameters() if value.requires_grad}
    for prefix, module in _trained_parts("", model):
        for name, inner in module.named_modules(prefix=prefix):
            for key, buffer in inner.named_buffers(recurse=False):
                if key not in inner._non_persistent_buffers_set:
                    found[f"{name}.{key}" if name else key] = buffer
    return found


def _trained_parts(prefix: str, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    flags = {parameter.requires_grad for parameter in module.parameters()}
    if flags == {True}:
        yield prefix, module
    elif True in flags:
        for name, child in module.named_children():
            yield from _trained_parts(f"{prefix}.{name}" if prefix else name, child)


@torch.no_grad()
def fill_trained(model: nn.Module, weights: dict[str, Tensor], where: str) -> None:
    """Write the tensors that :func:`trained_tensors` gave into a model, in place; on a failure none is written."""
    own = trained_tensors(model)
    odd = [name for name in own.keys() | weights.keys() if _shape(own, name) != _shape(weights, name)]
    if odd:
        name = min(odd)
        raise AdapterFileError(
            f"{where}: {name!r} has the shape {_shape(weights, name)}, but {_shape(own, name)} in the model "
            f"({len(odd)} differ). Resume the training that wrote it, or give another folder."
        )
    for name, value in own.items():
        value.copy_(weights[name])


def _shape(tensors: dict[str, Tensor], name: str) -> tuple[int, ...] | None:
    return tuple(tensors[name].shape) if name in tensors else None


# ---------------------------------------------------------------- random states


def device_state(device: torch.device) -> Tensor:
    """Return the state of torch's global random generator of a device, uint8."""
    module = torch.random if device.type == "cpu" else torch.get_device_module(device)
    state: Tensor = module.get_rng_state() if device.type == "cpu" else module.get_rng_state(device)
    return state


def set_device_state(device: torch.device, state: Tensor) -> None:
    """Set the state of torch's global random generator of a device."""
    if device.type == "cpu":
        torch.random.set_rng_state(state)
    else:
        torch.get_device_module(device).set_rng_state(state, device)


def random_state(device: torch.device) -> dict[str, Tensor]:
    """Return the global random states of Python, numpy, torch and a device, as tensors."""
    version, numbers, gauss = random.getstate()
    assert version == 3
    _, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    loose = [gauss is not None, gauss or 0.0, position, has_gauss, cached]
    return {
        "python": torch.tensor(numbers),
        "numpy": torch.from_numpy(np.asarray(keys).astype(np.int64)),
        "loose": torch.tensor([float(value) for value in loose], dtype=torch.float64),
        "torch": torch.random.get_rng_state(),
        "device": device_state(device).clone(),
    }


def set_random_state(state: dict[str, Tensor], device: torch.device) -> None:
    """Restore a :func:`random_state`; a device of another kind keeps its own state."""
    python_has, python_gauss, position, has_gauss, cached = state["loose"].tolist()
    random.setstate((3, tuple(state["python"].tolist()), python_gauss if python_has else None))
    keys = state["numpy"].numpy().astype(np.uint32)
    np.random.set_state(("MT19937", keys, int(position), int(has_gauss), cached))
    torch.random.set_rng_state(state["torch"])
    if device_state(device).shape == state["device"].shape:
        set_device_state(device, state["device"])
