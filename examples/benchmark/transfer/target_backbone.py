"""Make a backbone for the target domain that the source's masks fit.

A mask lives in the coordinates of a backbone's layers, so it can only be carried to a backbone that shares them. The
target's backbone keeps the source's transformer, bit for bit, and learns only its items anew. They start where the
source would have put them, judged by their attributes and titles, and are drawn back there: a direction that means
"horror" among films then means it among the target's items, too.
"""

from __future__ import annotations

import copy
from dataclasses import replace

import torch
from torch import Tensor

from benchmark.transfer.alignment import ItemAlignment
from cramer_peft.errors import DataError
from cramer_peft.recsys.backbones import SASRec
from cramer_peft.recsys.data.splits import Split
from cramer_peft.recsys.training.backbone_training import BackboneOptions, fit_backbone


class _Anchored(SASRec):
    """SASRec whose items are drawn towards given places while it is trained."""

    pull = 0.0
    anchor: Tensor

    def forward(
        self,
        item_ids: Tensor,
        labels: Tensor | None = None,
        positions: Tensor | None = None,
        items: Tensor | None = None,
    ) -> Tensor | dict[str, Tensor]:
        found = super().forward(item_ids, labels, positions, items)
        if isinstance(found, dict):
            away = self.bert.embeddings.word_embeddings.weight[1:] - self.anchor
            found["loss"] = found["loss"] + self.pull * away.square().sum()
        return found


def adapt_backbone(
    source: SASRec,
    alignment: ItemAlignment,
    split: Split,
    options: BackboneOptions | None = None,
    pull: float = 10.0,
    seed: int = 0,
    progress: bool = False,
) -> SASRec:
    """Return a backbone for the target's items on the source's frozen transformer.

    Only the item embeddings are trained, by the next item's cross-entropy plus ``pull`` / n times their squared
    distances from where ``alignment`` put them, n being the number of next items in training: the more often an item
    was met, the further its embedding moves.

    Args:
        source: The source's backbone, without masks; it is not touched.
        alignment: Alignment of the target's catalogue.
        split: Split of the target; test targets are not looked at.
        options: Training options; ``max_length`` and ``dropout`` are always the source's.
        pull: Strength of the pull to where the items were put; 0: none.
        seed: Seed of order and dropout.
        progress: Whether to show a progress bar.

    Returns:
        In eval mode. Everything but the items is the source's, bit for bit, so the source's adapters fit.

    Raises:
        DataError: If the alignment is for another number of items than the split has, ``pull`` is negative, or the
            source has masks on it.
    """
    highest = max(int(history.max()) for history in split.train if len(history))
    if highest >= len(alignment.embeddings) or pull < 0:
        raise DataError(
            f"found {len(alignment.embeddings)} aligned items, item {highest} in the split and pull={pull}: expected "
            "the alignment of the split's own catalogue, and a pull of 0 or more."
        )
    config = copy.deepcopy(source.config)
    config.vocab_size = len(alignment.embeddings) + 1
    model = _Anchored(config)
    state = {name: tensor.detach().cpu() for name, tensor in source.state_dict().items()}
    if set(state) != set(model.state_dict()):
        raise DataError("the source backbone's weights are not those of a plain SASRec: unload its masks first.")
    table = state["bert.embeddings.word_embeddings.weight"]
    items = torch.cat([table[:1], alignment.embeddings])
    # the layer that scores the items, if there is one, is tied to the table
    state = {name: items if torch.equal(tensor, table) else tensor for name, tensor in state.items()}
    model.load_state_dict(state)
    model.requires_grad_(False)
    model.bert.embeddings.word_embeddings.weight.requires_grad_(True)
    model.register_buffer("anchor", alignment.embeddings.clone(), persistent=False)
    model.pull = pull / sum(max(len(history) - 1, 0) for history in split.train)
    options = replace(options or BackboneOptions(), max_length=source.max_length)
    fit_backbone(model, split, options, seed, progress)
    adapted = SASRec(config)
    adapted.load_state_dict(model.state_dict())
    adapted.requires_grad_(True)
    frozen: SASRec = adapted.eval()
    return frozen
