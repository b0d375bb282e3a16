"""Which units the paper's masks close, by request."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from cramer_peft import RequestMaskModel
from cramer_peft.masks import TopKForm


@torch.no_grad()
def closed_gates(masks: RequestMaskModel, texts: Sequence[str]) -> dict[str, Any] | None:
    """Return what the masks of some requests close; None for a form without binary gates.

    Args:
        masks: The masks.
        texts: Requests, one or more.

    Returns:
        "share": name of a module and "rows" or "columns" → share of its gates that are closed, over all requests.
        "overlap": for two requests, the mean Jaccard similarity of what they close; 1: the request changes nothing.
    """
    form = masks.generator.form
    if not isinstance(form, TopKForm) or not texts:
        return None
    names, logits = [], []
    for entry, parts in masks.mask_state(list(texts)).tensors.items():
        for part, value in parts.items():
            names.append((f"{entry} {part.removesuffix('_logits')}s", value.shape[-1]))
            logits.append(value)
    flat = torch.cat(logits, dim=-1)
    closed = torch.ones_like(flat).scatter(-1, flat.topk(form.kept(flat.shape[-1]), dim=-1).indices, 0.0)
    pieces = closed.split([width for _, width in names], dim=-1)
    share = {name: float(piece.mean()) for (name, _), piece in zip(names, pieces, strict=True)}
    both = closed @ closed.T
    either = closed.sum(1)[:, None] + closed.sum(1)[None] - both
    pairs = ~torch.eye(len(closed), dtype=torch.bool)
    overlap = float((both / either.clamp(min=1))[pairs].mean()) if len(closed) > 1 else 1.0
    return {"requests": len(texts), "share": share, "overlap": overlap}
