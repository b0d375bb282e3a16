"""Reading of backbones that are built on the BERT of transformers, safe for folders from strangers.

transformers follows what a configuration says: to code and kernels on the hub, to quantisers, to files elsewhere. So
the configuration is made here, of known fields with known values, and transformers gets it with the tensors alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import BertConfig, PreTrainedModel

from cramer_peft.encoders import no_file_bars
from cramer_peft.errors import DataError
from cramer_peft.recsys.backbones.backbone import PADDING
from cramer_peft.recsys.backbones.stored import CONFIG_FILE, MAX_LENGTH, MAX_SIZE, read_config
from cramer_peft.recsys.backbones.weights import check_shapes, read_shapes, read_weights, weight_files

_LAYER = "bert.encoder.layer."
_LAYER_WEIGHTS = 16  # number of weights and biases in each
_DTYPES = ("float32", "float16", "bfloat16", "float64")
_ACTIVATIONS = ("gelu", "gelu_new", "gelu_pytorch_tanh", "quick_gelu", "relu", "leaky_relu", "silu", "swish", "tanh")
_ATTENTION = ("eager", "sdpa")  # what torch computes itself; any other name can be a kernel on the hub

_Check = tuple[str, Callable[[Any], bool]]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_size(value: Any) -> bool:
    return type(value) is int and 1 <= value <= MAX_SIZE


_SIZE: _Check = (f"a whole number from 1 to {MAX_SIZE}", _is_size)
_LENGTH: _Check = (f"a whole number from 1 to {MAX_LENGTH}", lambda value: _is_size(value) and value <= MAX_LENGTH)
_SHARE: _Check = ("a number from 0 to 1", lambda value: _is_number(value) and 0 <= value <= 1)
_NUMBER: _Check = (f"a number of at most {MAX_SIZE}", lambda value: _is_number(value) and abs(value) <= MAX_SIZE)
_FLAG: _Check = ("true or false", lambda value: isinstance(value, bool))
_ACTIVATION: _Check = (
    "the name of an activation, such as 'gelu'",
    lambda value: isinstance(value, str) and value in _ACTIVATIONS,
)
_FIELDS: dict[str, _Check] = {
    "vocab_size": _SIZE,
    "hidden_size": _SIZE,
    "intermediate_size": _SIZE,
    "num_hidden_layers": _SIZE,
    "num_attention_heads": _SIZE,
    "type_vocab_size": _SIZE,
    "max_position_embeddings": _LENGTH,
    "hidden_dropout_prob": _SHARE,
    "attention_probs_dropout_prob": _SHARE,
    "layer_norm_eps": _SHARE,
    "initializer_range": _NUMBER,
    "head_bias": _NUMBER,
    "hidden_act": _ACTIVATION,
    "is_decoder": _FLAG,
    "use_cache": _FLAG,
    "tie_word_embeddings": _FLAG,
}
# Fields that say where a file comes from, or what texts would need, and change nothing here.
_UNUSED = (
    "architectures",
    "id2label",
    "label2id",
    "bos_token_id",
    "eos_token_id",
    "transformers_version",
    "_name_or_path",
    "_attn_implementation_autoset",
)
# Values of fields that other versions of transformers write.
_PADDING = {"pad_token_id": PADDING}
_USUAL = {"position_embedding_type": "absolute", "model_type": "bert", **_PADDING}
_NOTHING: tuple[Any, ...] = (None, False, 0, "", [], {})


def read_bert(kind: type[PreTrainedModel], folder: Path) -> PreTrainedModel:
    """Return the backbone of a class that a folder holds; nothing beside its configuration and weights is opened.

    Raises:
        DataError: If a field has a value that is not known, or the weights are not those of the configuration.
    """
    config, dtype = _config(folder / CONFIG_FILE, read_config(folder))
    files = weight_files(folder)
    found = read_shapes(files)
    layers, there = config.num_hidden_layers, sum(name.startswith(_LAYER) for name in found)
    if there < layers * _LAYER_WEIGHTS:  # counted, because each layer takes time to make
        raise DataError(
            f"{folder} holds no {kind.__name__}: weights missing of {_LAYER}{layers - 1}: "
            f"num_hidden_layers is {layers}, "
            f"there are the weights of {there // _LAYER_WEIGHTS} layers."
        )
    with torch.device("meta"):  # allocates nothing, whatever sizes the file names
        check_shapes(folder, kind(config), found)
    with no_file_bars():
        model, report = kind.from_pretrained(
            None, config=config, state_dict=read_weights(files), dtype=dtype, output_loading_info=True
        )
    differing = sorted({*report["missing_keys"], *report["unexpected_keys"]})
    if differing:
        raise DataError(
            f"{folder} holds no {kind.__name__}: weights missing or not expected: {', '.join(differing[:5])}."
        )
    return model


def _config(path: Path, values: dict[str, Any]) -> tuple[BertConfig, torch.dtype | str]:
    """Return the configuration of known fields, and the precision."""
    values = {name: value for name, value in values.items() if name not in _UNUSED}
    dtype = _one_of(path, values, ("dtype", "torch_dtype"), _DTYPES, "Save the backbone in one of them.")
    why = "No kernel is fetched or run because a file names it: remove the field."
    attention = _one_of(path, values, ("_attn_implementation", "attn_implementation"), _ATTENTION, why)
    known = {name: value for name, value in values.items() if name in _FIELDS}
    for name, value in known.items():
        expected, fits = _FIELDS[name]
        if not fits(value):
            raise DataError(f"{path}: {name} is {value!r:.100}, expected {expected}.")
    _check_others(path, {name: value for name, value in values.items() if name not in _FIELDS})
    config = BertConfig(**known, **_PADDING, attn_implementation=attention)
    return config, "auto" if dtype is None else getattr(torch, dtype)


def _one_of(
    path: Path, values: dict[str, Any], names: tuple[str, str], known: tuple[str, ...], hint: str
) -> str | None:
    """Take a field with two possible names out of the values, and return what it holds, if anything."""
    chosen: str | None = None
    for name in names:
        value = values.pop(name, None)
        if value is not None and value not in known:
            raise DataError(f"{path}: {name} is {value!r:.100}, expected one of {', '.join(known)}, or none. {hint}")
        chosen = value if chosen is None else chosen
    return chosen


def _check_others(path: Path, values: dict[str, Any]) -> None:
    """Refuse a field that is not among the known ones, unless its value is the usual one, or none."""
    usual = {**BertConfig().to_dict(), **_USUAL}
    for name, value in values.items():
        allowed = (None, usual[name]) if name in usual else _NOTHING
        if not any(type(value) is type(one) and value == one for one in allowed):
            raise DataError(
                f"{path}: found the field {name[:100]!r} with the value {value!r:.100}, which no backbone here "
                "has: it would change the model, or run or fetch something. Remove it if the backbone works without."
            )
