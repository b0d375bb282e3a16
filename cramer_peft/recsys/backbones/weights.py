"""Reading of a backbone's weights. Their shapes are compared with the model before a tensor is read."""

from __future__ import annotations

import re
from pathlib import Path

from torch import Tensor, nn

from cramer_peft.errors import AdapterFileError, DataError
from cramer_peft.recsys.reading import read_object
from cramer_peft.storage import TensorInfo, check_inside, read_layout, read_safetensors

WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"  # transformers writes it beside the parts of very large weights
WEIGHT_NAMES = r"model(-\d{1,9}-of-\d{1,9})?\.safetensors(\.index\.json)?"  # of all files that may hold weights
_MAX_INDEX_BYTES = 16 << 20
_PART = re.compile(r"model-\d{1,9}-of-\d{1,9}\.safetensors")


def weight_files(folder: Path) -> list[Path]:
    """Return the files of a backbone's weights: one, or the parts that an index names, all in the folder itself.

    Raises:
        DataError: If a file is missing, or a name or a link leads out of the folder.
    """
    index = folder / INDEX_FILE
    names = [WEIGHTS_FILE]
    if not (folder / WEIGHTS_FILE).exists() and index.exists():
        refuse_link_out(folder, index)
        parts = read_object(index, "an index of weights", _MAX_INDEX_BYTES).get("weight_map")
        if not isinstance(parts, dict) or not parts:
            raise DataError(
                f"{index}: weight_map: found {parts!r:.60}, expected an object of names of weights and files."
            )
        wrong = [name for name in parts.values() if not isinstance(name, str) or not _PART.fullmatch(name)]
        if wrong:
            raise DataError(
                f"{index}: weight_map names the file {wrong[0]!r:.200}, expected model-00001-of-00002.safetensors and "
                "the like, in the same folder."
            )
        names = sorted(set(parts.values()))
    for name in names:
        refuse_link_out(folder, folder / name)
    return [folder / name for name in names]


def refuse_link_out(folder: Path, path: Path) -> None:
    """Raise a DataError if a path is a link that leads out of its folder."""
    try:
        check_inside(folder, path)
    except AdapterFileError as error:
        raise DataError(str(error)) from error


def read_shapes(files: list[Path]) -> dict[str, TensorInfo]:
    """Return the shape and dtype of each weight, from the files' headers.

    Raises:
        DataError: If a file is unreadable, or two hold the same weight.
    """
    found: dict[str, TensorInfo] = {}
    for path in files:
        try:
            layout = read_layout(path)[0]
        except AdapterFileError as error:
            raise DataError(str(error)) from error
        twice = sorted(layout.keys() & found.keys())
        if twice:
            raise DataError(f"{path}: the weight {twice[0][:200]!r} is in another file of the folder, too.")
        found.update(layout)
    return found


def check_shapes(folder: Path, model: nn.Module, found: dict[str, TensorInfo]) -> None:
    """Raise a DataError unless the weights in a folder are those of a model, which may lie on the meta device.

    Of weights that share one tensor, one is enough.
    """
    expected = model.state_dict(keep_vars=True)
    there = {id(value) for name, value in expected.items() if name in found}
    differing = sorted(name for name, value in expected.items() if name not in found and id(value) not in there)
    differing += sorted(found.keys() - expected.keys())
    if differing:
        names = ", ".join(name[:200] for name in differing[:5])
        raise DataError(f"{folder} holds no {type(model).__name__}: weights missing or not expected: {names}.")
    for name, info in found.items():
        shape = tuple(expected[name].shape)
        if info.shape != shape:
            raise DataError(
                f"{folder}: size mismatch: {name} has shape {info.shape}, but by config.json it has {shape}. The two "
                "files are not of one backbone."
            )
        if info.dtype.is_floating_point != expected[name].dtype.is_floating_point:
            raise DataError(f"{folder}: {name} has dtype {info.dtype}, expected {expected[name].dtype}.")


def read_weights(files: list[Path]) -> dict[str, Tensor]:
    """Return the weights in some files, on the CPU; NaN and infinity are refused.

    Raises:
        DataError: If a file is unreadable.
    """
    tensors: dict[str, Tensor] = {}
    for path in files:
        try:
            tensors.update(read_safetensors(path)[0])
        except AdapterFileError as error:
            raise DataError(str(error)) from error
    return tensors
