"""The interface that the recommender tools expect of a backbone, and helpers that several backbones share."""

from __future__ import annotations

import inspect
from dataclasses import replace
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from transformers import BertConfig

from cramer_peft import RequestMaskConfig
from cramer_peft.errors import DataError

PADDING = 0


@runtime_checkable
class Backbone(Protocol):
    """A sequential recommender that can be trained, evaluated and adapted here. It is an ``nn.Module``."""

    name: str
    default_targets: list[str] | str | None  # modules inside worth masking; None if the library knows the architecture
    default_parts: list[str] | None  # of these modules; None: all
    expands_positions: bool  # ``positions`` multiplies the rows inside, so masks need batch_folding="rows_first"

    @property
    def num_items(self) -> int:
        """Number of items in the catalogue."""

    @property
    def max_length(self) -> int:
        """Longest history, in items."""

    @property
    def device(self) -> torch.device:
        """Device of the weights."""

    def __call__(
        self, item_ids: Tensor, labels: Tensor | None = None, positions: Tensor | None = None
    ) -> Tensor | dict[str, Tensor]:
        """Return scores of the items 0 … num_items - 1, (rows, num_items), after each row's last item.

        ``item_ids`` is (rows, length) int64, items from 1, padded with 0 on the right. With ``positions``, (rows, n)
        int64, the scores are (rows, n, num_items), each given only the items up to a position. With ``labels``, the
        next items (rows, length) int64 from 0, -100 where there is none, it returns ``{"loss": …}``.
        """

    def save_pretrained(self, folder: Any) -> Any:
        """Write ``config.json`` and ``model.safetensors``."""


def config_for(backbone: Any, config: RequestMaskConfig | None = None) -> RequestMaskConfig:
    """Return a configuration of masks that suits a backbone; targets and folding that ``config`` names stay.

    By default the scores that the backbone returns are masked, by row values made from descriptions of the items, and
    nothing inside. With the form ``topk``, as in the paper, or an option that says which modules inside to take, those
    inside are masked. ``backbone`` may be a class.
    For models that are no backbones ``config`` is returned unchanged.
    """
    config = RequestMaskConfig() if config is None else config
    changes: dict[str, Any] = {}
    given = config.target_modules is not None or config.target_outputs is not None or config.row_features is not None
    targets, parts = getattr(backbone, "default_targets", None), getattr(backbone, "default_parts", None)
    narrowed = (config.exclude_modules, config.layers_to_transform, config.layers_pattern, config.module_parts)
    inside = config.gate == "topk" or any(option is not None for option in narrowed)
    if not given and not inside and hasattr(backbone, "expands_positions"):
        kind: Any = backbone if isinstance(backbone, type) else type(backbone)
        own: dict[str, Any] = {"in_place": True}  # each call of a backbone returns scores of its own
        if "items" in inspect.signature(kind.forward).parameters:
            own["candidates"] = "items"
        return replace(config, target_outputs={"": own}, row_features=[""])
    if not given and targets is not None:
        parts = parts if config.module_parts is None else config.module_parts
        changes.update(target_modules=targets, module_parts=parts)
    if config.batch_folding is None and config.target_outputs is None and getattr(backbone, "expands_positions", False):
        changes["batch_folding"] = "rows_first"
    return replace(config, **changes) if changes else config


def bert_config(tokens: int, positions: int, dropout: float = 0.2, hidden_size: int = 64, **options: Any) -> BertConfig:
    """Return the shape that RecBole 1.2.1 gives its transformers: 2 layers, 2 heads, inner width 4 × hidden, GELU.

    ``tokens`` counts items and special tokens; ``options`` are other fields of ``BertConfig``.
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
    """Return the position of each row's last item, (rows,) int64; raise a DataError if a row holds no item."""
    last = (item_ids != PADDING).sum(1) - 1
    if _may_look(last) and bool((last < 0).any()):
        raise DataError(f"row {int((last < 0).nonzero()[0])} is an empty history: expected at least one item.")
    return last


def _may_look(values: Tensor) -> bool:
    """Return False where reading a value would fail: in a compiled graph, and while a CUDA graph is captured."""
    return not torch.compiler.is_compiling() and not (values.is_cuda and torch.cuda.is_current_stream_capturing())


def chosen_states(states: Tensor, item_ids: Tensor, positions: Tensor | None) -> Tensor:
    """Return the states after each row's last item, (rows, width), or at ``positions`` (rows, n), (rows, n, width)."""
    rows = torch.arange(len(item_ids), device=item_ids.device)
    return states[rows, last_positions(item_ids)] if positions is None else states[rows[:, None], positions]


def prefixes(item_ids: Tensor, positions: Tensor) -> Tensor:
    """Cut histories after each of ``positions``, (rows, n) int64: n neighbouring rows for each row, int64."""
    longest = int(positions.max()) + 1
    cut = item_ids[:, :longest].repeat_interleave(positions.shape[1], 0)
    later = torch.arange(longest, device=item_ids.device) > positions.reshape(-1, 1)
    return cut.masked_fill(later, PADDING)
