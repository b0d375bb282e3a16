"""What the recommender tools expect of a backbone, and what several of ours share."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from safetensors.torch import load
from torch import Tensor, nn
from transformers import BertConfig
from typing_extensions import Self

from cramer_peft import RequestMaskConfig
from cramer_peft.errors import AdapterFileError, DataError
from cramer_peft.recsys.backbones.sampling import negatives_for
from cramer_peft.storage import open_regular, parse_json, write_json, write_safetensors

PADDING = 0
HEAD_BIAS = 8.0  # of all items, where a backbone takes it: measured on validation users, docs/results.md
CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"
_MAX_CONFIG_BYTES = 1 << 20
_MAX_SIZE = 1 << 27  # of any number in a configuration


@runtime_checkable
class Backbone(Protocol):
    """A sequential recommender that can be trained, evaluated and adapted here. It is an ``nn.Module``.

    Attributes:
        name: For tables and commands.
        default_targets: Modules inside worth masking, as ``RequestMaskConfig.target_modules``; None where the library
            knows the architecture.
        default_parts: Parts of them worth masking, as ``RequestMaskConfig.module_parts``; None: all.
        head_targets: Modules that score the items, worth masking too, or alone: see :func:`config_for`. Empty where
            there is no such module.
        expands_positions: Whether ``positions`` multiplies the rows inside the model, n neighbours for each row. Then
            masks need ``batch_folding="rows_first"``, and n positions cost n times as much.
    """

    name: str
    default_targets: list[str] | str | None
    default_parts: list[str] | None
    head_targets: list[str]
    expands_positions: bool

    @property
    def num_items(self) -> int:
        """Number of items in the catalogue."""

    @property
    def max_length(self) -> int:
        """Longest history, in items."""

    @property
    def device(self) -> torch.device:
        """Where the weights are."""

    def __call__(
        self, item_ids: Tensor, labels: Tensor | None = None, positions: Tensor | None = None
    ) -> Tensor | dict[str, Tensor]:
        """Score the whole catalogue.

        Args:
            item_ids: Histories, (rows, length) int64, items from 1, padded with 0 on the right.
            labels: Next item at each position, (rows, length) int64, items from 0, -100 where there is none. Given,
                the return value is ``{"loss": …}``, the model's own training loss.
            positions: Positions to score instead of the last, (rows, n) int64: what may come after each, seen from
                the items up to it alone.

        Returns:
            Scores of the items 0 … num_items - 1 after each row's last item, (rows, num_items); with
            ``positions``, (rows, n, num_items).

        Raises:
            DataError: If a row holds no item.
        """

    def save_pretrained(self, folder: Any) -> Any:
        """Write ``config.json`` and ``model.safetensors``."""


def config_for(
    backbone: Any, config: RequestMaskConfig | None = None, sampled: bool | None = None
) -> RequestMaskConfig:
    """A configuration of masks that suits a backbone; what ``config`` says of targets and folding stays as it is.

    A layer that scores the items with a bias that all of them share (``head_bias``, not 0) is masked alone, where the
    gates act on it (``gate_bias``): they add to scores then, and masks inside bring nothing beside them. Otherwise, the
    gate ``low_rank`` included, it is masked beside the modules inside. These alone are masked where there is no such
    layer, where the gate is ``topk``, as in the paper, and where the generator is to be trained on samples of the
    catalogue: the layer's masks have a gate for each item, so they would grow with the items.

    Args:
        backbone: A :class:`Backbone`, or its class where ``sampled`` is given. Another model gets the configuration as
            it is.
        config: What is wanted; None: the default.
        sampled: Whether training samples items; None: by the catalogue's size, from 20,000 items on.
    """
    if sampled is None:
        sampled = negatives_for(int(getattr(backbone, "num_items", 0))) is not None
    config = RequestMaskConfig() if config is None else config
    changes: dict[str, Any] = {}
    heads = [] if config.gate == "topk" or sampled else getattr(backbone, "head_targets", [])
    targets, parts = getattr(backbone, "default_targets", None), getattr(backbone, "default_parts", None)
    if heads and config.gate_bias and getattr(backbone, "head_bias", 0.0):
        targets, parts = list(heads), None
    elif isinstance(targets, list):
        targets = [*targets, *heads]
    if config.target_modules is None and targets is not None:
        parts = parts if config.module_parts is None else config.module_parts
        changes.update(target_modules=targets, module_parts=parts)
    if config.batch_folding is None and getattr(backbone, "expands_positions", False):
        changes["batch_folding"] = "rows_first"
    return replace(config, **changes) if changes else config


def bert_config(tokens: int, positions: int, dropout: float, hidden_size: int, **options: Any) -> BertConfig:
    """The shape that RecBole 1.2.1 gives its transformers: 2 layers, 2 heads, inner layers four times as wide, GELU.

    Args:
        tokens: Items and special tokens.
        positions: Places of a history.
        dropout: Of embeddings, attention and feed-forward layers.
        hidden_size: Width.
        **options: Others of ``BertConfig``.
    """
    return BertConfig(
        vocab_size=tokens,
        hidden_size=hidden_size,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=4 * hidden_size,
        hidden_act="gelu",
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
        max_position_embeddings=positions,
        type_vocab_size=1,
        layer_norm_eps=1e-12,
        pad_token_id=PADDING,
        **options,
    )


def last_positions(item_ids: Tensor) -> Tensor:
    """Position of each row's last item, (rows,) int64.

    Raises:
        DataError: If a row holds no item.
    """
    last = (item_ids != PADDING).sum(1) - 1
    if _may_look(last) and bool((last < 0).any()):
        raise DataError(f"row {int((last < 0).nonzero()[0])} is an empty history: expected at least one item.")
    return last


def _may_look(values: Tensor) -> bool:
    """Whether the CPU may look at values here: not in a compiled graph, nor while a CUDA graph is captured."""
    return not torch.compiler.is_compiling() and not (values.is_cuda and torch.cuda.is_current_stream_capturing())


def set_constant_bias(head: nn.Linear, value: float) -> None:
    """Give the layer that scores items one bias for all of them, which is no parameter and changes no ranking.

    A row gate multiplies an item's score, so it does little where that is near 0. With a bias b that it multiplies
    too, it also adds: (1 + z)(s + b) is s + z·s + z·b, up to the b of all items. It is a buffer that is not stored:
    give it to a loaded model anew.

    Args:
        head: The layer, without a bias of its own. With a value of 0 it stays so.
        value: The bias of every item.

    Raises:
        ValueError: If the value is no finite number, or the layer has a bias of its own.
    """
    checked_bias(value)
    if "bias" in dict(head.named_parameters(recurse=False)):
        raise ValueError("the layer has a bias of its own, which row gates multiply already.")
    if value:
        del head.bias  # a Linear's own is a parameter, if only None
        bias = torch.full((head.out_features,), value, dtype=head.weight.dtype, device=head.weight.device)
        head.register_buffer("bias", bias, persistent=False)


def checked_bias(value: Any) -> float:
    """A bias of all items, from a configuration.

    Raises:
        ValueError: If it is no finite number.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"head_bias is {value!r}, expected a finite number.")
    return value


@contextmanager
def without_constant_bias(model: nn.Module) -> Iterator[None]:
    """Take the bias that all items share off a backbone's scoring layer, while it is trained.

    What all items share cancels in a softmax, and would only cost it some bits. It is the buffer of
    :func:`set_constant_bias`, or the ``head_bias`` in what a model has learned of each item (``item_bias``).
    """
    learned: Any = model
    if hasattr(learned, "item_bias"):
        learned.item_bias.data -= learned.head_bias
        try:
            yield
        finally:
            learned.item_bias.data += learned.head_bias
        return
    head = getattr(model, "head", None)
    bias = dict(head.named_buffers(recurse=False)).get("bias") if isinstance(head, nn.Linear) else None
    if head is None or bias is None:
        yield
        return
    head.bias = None
    try:
        yield
    finally:
        head.bias = bias.to(head.weight)


def item_scores(head: nn.Linear, states: Tensor, items: Tensor | None = None) -> Tensor:
    """Products of states, (..., width), with all items, (..., num_items), or with some, (..., n).

    Args:
        head: The layer that scores items; its first row is the padding's.
        states: What is multiplied with items.
        items: (n,) int64, from 0. Their rows of the layer's weight are read, and their biases, so masks of the layer
            do not count.
    """
    if items is None:
        scores: Tensor = head(states)
        return scores[..., 1:]
    return nn.functional.linear(states, head.weight[items + 1], None if head.bias is None else head.bias[items + 1])


def prefixes(item_ids: Tensor, positions: Tensor) -> Tensor:
    """Histories cut after each position, (rows · n, longest) int64: n neighbours for each row.

    Args:
        item_ids: (rows, length) int64.
        positions: (rows, n) int64.
    """
    longest = int(positions.max()) + 1
    cut = item_ids[:, :longest].repeat_interleave(positions.shape[1], 0)
    later = torch.arange(longest, device=item_ids.device) > positions.reshape(-1, 1)
    return cut.masked_fill(later, PADDING)


class StoredBackbone(nn.Module):
    """A backbone that is no transformers model: its sizes as JSON, its weights as safetensors.

    Args:
        num_items: Number of items.
        max_length: Longest history, in items.
        **settings: The other arguments of the subclass, kept in ``config.json``.
    """

    name: ClassVar[str]
    default_targets: ClassVar[list[str] | str | None] = None
    default_parts: ClassVar[list[str] | None] = None
    head_targets: ClassVar[list[str]] = []
    expands_positions: ClassVar[bool] = False
    tied: ClassVar[dict[str, str]] = {}  # weight → the one that it is, under whose name alone it is stored
    old_defaults: ClassVar[dict[str, float]] = {}  # of settings that files of earlier versions do not name

    def __init__(self, num_items: int, max_length: int, **settings: float) -> None:
        super().__init__()
        self.settings = {"num_items": num_items, "max_length": max_length, **settings}
        self.register_state_dict_post_hook(_without_tied)
        self.register_load_state_dict_pre_hook(_with_tied)

    @property
    def num_items(self) -> int:
        """Number of items in the catalogue."""
        return int(self.settings["num_items"])

    @property
    def max_length(self) -> int:
        """Longest history, in items."""
        return int(self.settings["max_length"])

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    def tie(self) -> None:
        """Make each weight named in ``tied`` the very parameter that it is tied to."""
        for name, source in self.tied.items():
            module, _, parameter = name.rpartition(".")
            setattr(self.get_submodule(module), parameter, self.get_parameter(source))

    def fill_buffers(self) -> None:
        """Make anew what is in no file, once the weights are there."""

    def save_pretrained(self, folder: Path) -> None:
        """Write ``config.json`` and ``model.safetensors``, each whole or not at all."""
        folder = Path(folder)
        write_safetensors(folder / WEIGHTS_FILE, self.state_dict(), {})
        write_json(folder / CONFIG_FILE, {"architectures": [type(self).__name__], **self.settings})

    @classmethod
    def from_pretrained(cls, folder: Path) -> Self:
        """Read what :meth:`save_pretrained` wrote; safe for files from strangers.

        Raises:
            DataError: If a file is missing, damaged, or does not fit the other.
        """
        folder = Path(folder)
        settings = {**cls.old_defaults, **read_config(folder)}
        settings.pop("architectures")
        for key, value in settings.items():
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= _MAX_SIZE:
                raise DataError(f"{folder / CONFIG_FILE}: {key} is {value!r}, expected a number from 0 to {_MAX_SIZE}.")
        try:
            with torch.device("meta"):  # nothing is allocated for sizes that the weights do not have
                model = cls(**settings)
            with open_regular(folder / WEIGHTS_FILE, "a backbone's weights") as (file, size):
                model.load_state_dict(load(file.read(size)), assign=True)
            model.tie()
            model.fill_buffers()
        except (AdapterFileError, TypeError, ValueError, RuntimeError, ArithmeticError, AssertionError) as error:
            raise DataError(f"{folder} holds no readable {cls.__name__}: {error}") from error
        except Exception as error:  # safetensors' own error is no subclass of any of these
            if type(error).__name__ != "SafetensorError":
                raise
            raise DataError(f"{folder / WEIGHTS_FILE}: not a safetensors file: {error}") from error
        return model


def _without_tied(module: StoredBackbone, state: dict[str, Tensor], prefix: str, _: Any) -> None:
    for name in module.tied:
        state.pop(prefix + name, None)


def _with_tied(module: StoredBackbone, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
    own = dict(module.named_parameters(remove_duplicate=False))
    for name, source in module.tied.items():
        if name in own and prefix + source in state:
            state[prefix + name] = state[prefix + source]


def read_config(folder: Path) -> dict[str, Any]:
    """A backbone's ``config.json``; its ``architectures`` is a list with one name.

    Raises:
        DataError: If it is missing, too large or not such JSON.
    """
    path = folder / CONFIG_FILE
    try:
        with open_regular(path, "a backbone's configuration", _MAX_CONFIG_BYTES) as (file, size):
            values = parse_json(file.read(size))
    except (AdapterFileError, ValueError) as error:
        raise DataError(f"{path}: not a readable JSON file: {error}") from error
    names = values.get("architectures") if isinstance(values, dict) else None
    if not isinstance(names, list) or len(names) != 1 or not isinstance(names[0], str):
        raise DataError(f"{path}: architectures is {names!r}, expected a list with the name of one backbone.")
    return dict(values)
