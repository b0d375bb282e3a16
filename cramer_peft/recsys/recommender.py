"""A recommender that answers requests, as a folder: frozen backbone, adapter, catalogue."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from cramer_peft import RequestMaskModel, load_request_masks
from cramer_peft.errors import DataError, MissingExtraError
from cramer_peft.recsys.backbones import BACKBONES, Backbone, StoredBackbone, read_config
from cramer_peft.recsys.data.catalogue import Catalogue
from cramer_peft.recsys.data.split import pad_histories, seen_mask
from cramer_peft.recsys.devices import brought_to
from cramer_peft.recsys.evaluation.metrics import top_items
from cramer_peft.recsys.requests.text_encoders import DEFAULT_ENCODER, request_encoder

BACKBONE, ADAPTER, CATALOGUE = "backbone", "adapter", "catalogue.json"


@dataclass(frozen=True)
class Answer:
    """A list of recommendations and what the request changed in it.

    Attributes:
        items: Recommended item indices, best first.
        frozen_items: Those without the request.
        shares: Attribute → (share of the list without the request, share with it), where either is not 0.
    """

    items: list[int]
    frozen_items: list[int]
    shares: dict[str, tuple[float, float]]

    @property
    def came(self) -> list[int]:
        """Items that the request brought in."""
        return [item for item in self.items if item not in self.frozen_items]

    @property
    def went(self) -> list[int]:
        """Items that the request drove out."""
        return [item for item in self.frozen_items if item not in self.items]


@dataclass(frozen=True)
class RequestRecommender:
    """A backbone with request masks, and the catalogue that it recommends from."""

    masks: RequestMaskModel
    catalogue: Catalogue

    def save(self, folder: Path) -> None:
        """Write the adapter and the catalogue below ``folder``, beside what :func:`save_backbone` wrote."""
        self.masks.save_pretrained(folder / ADAPTER)
        self.catalogue.save(folder / CATALOGUE)

    @classmethod
    def load(cls, folder: Path) -> RequestRecommender:
        """Load what :func:`save_backbone` and :meth:`save` wrote.

        Args:
            folder: The folder itself, or the adapter's inside it.

        Raises:
            DataError: If a part is missing or unreadable.
            AdapterFileError: If the adapter does not fit the backbone.
        """
        root = folder if (folder / CATALOGUE).is_file() else folder.absolute().parent
        for name in (CATALOGUE, BACKBONE, ADAPTER):
            if not (root / name).exists():
                raise DataError(
                    f"{folder} is not a recommender folder: {name} is missing. Give the folder that "
                    "`cramer-peft train` or `cramer-peft demo` wrote, or the adapter folder in it."
                )
        catalogue = Catalogue.load(root / CATALOGUE)
        backbone = load_backbone(root / BACKBONE, catalogue)
        masks = load_request_masks(backbone, root / ADAPTER)
        if masks.peft_config[masks.active_adapters[0]].encoder == DEFAULT_ENCODER:  # only these two can make it
            masks.set_encoder(request_encoder(DEFAULT_ENCODER, catalogue, backbone))
        return cls(masks, catalogue)

    def recommend(self, history: list[int], request: str | None, strength: float = 1.0, k: int = 10) -> Answer:
        """The k best unseen items under a request, beside those without it.

        Args:
            history: Item indices, oldest first.
            request: What is asked; None or blank for nothing.
            strength: Strength of the request.
            k: Length of the list; it is shorter where fewer items are unseen.

        Raises:
            DataError: If the history is empty, holds unknown items or every item, or k is below 1.
        """
        items = torch.tensor(history, dtype=torch.long)
        seen = seen_mask([items], len(self.catalogue))
        if k < 1 or bool(seen.all()):
            raise DataError(f"found k={k} and {int((~seen).sum())} unseen items, expected 1 or more of both.")
        k = min(k, int((~seen).sum()))
        model = self.masks.model
        with torch.no_grad():
            inputs = brought_to(model, pad_histories([items], int(model.max_length)))  # type: ignore[arg-type]
            frozen = top_items(self.masks(inputs, request=None).cpu(), seen, k)[0]
            asked = top_items(self.masks(inputs, request=request, request_strength=strength).cpu(), seen, k)[0]
        return Answer(asked.tolist(), frozen.tolist(), self._shares(frozen, asked))

    def _shares(self, before: Tensor, after: Tensor) -> dict[str, tuple[float, float]]:
        flags = self.catalogue.item_attributes.float()
        pairs = zip(
            self.catalogue.attributes, flags[before].mean(0).tolist(), flags[after].mean(0).tolist(), strict=True
        )
        return {name: (old, new) for name, old, new in pairs if old or new}


def save_backbone(backbone: Backbone, folder: Path) -> None:
    """Write a frozen backbone below ``folder``; call it before masks are injected."""
    backbone.save_pretrained(folder / BACKBONE)


def load_backbone(folder: Path, catalogue: Catalogue) -> Any:
    """Load a frozen backbone of any kind, in eval mode.

    Args:
        folder: The folder ``backbone`` that :func:`save_backbone` wrote.
        catalogue: The items that it must know.

    Returns:
        A :class:`~cramer_peft.recsys.backbones.Backbone`.

    Raises:
        DataError: If the folder holds no complete backbone, or one for another number of items.
        MissingExtraError: If the backbone's package is not installed.
    """
    try:
        if not folder.is_dir():
            raise NotADirectoryError("it is not a folder.")
        kind = _kind(folder)
        if issubclass(kind, StoredBackbone):
            backbone, report = kind.from_pretrained(folder), {}
        else:
            backbone, report = kind.from_pretrained(
                str(folder), local_files_only=True, use_safetensors=True, output_loading_info=True
            )
    except MissingExtraError:
        raise
    except (OSError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
        raise DataError(
            f"{folder} holds no readable backbone: {error} Give the folder {BACKBONE!r} that `cramer-peft train` or "
            "`cramer-peft demo` wrote."
        ) from error
    differing = sorted({*report.get("missing_keys", ()), *report.get("unexpected_keys", ())})
    if differing:
        raise DataError(
            f"{folder} holds no {kind.__name__}: weights missing or not expected: {', '.join(differing[:5])}."
        )
    if backbone.num_items != len(catalogue):
        raise DataError(f"{folder}: the backbone knows {backbone.num_items} items, the catalogue has {len(catalogue)}.")
    for parameter in backbone.parameters():  # weights in a file lie unaligned, for which kernels differ in the last bit
        parameter.data = parameter.data.clone()
    return backbone.eval().requires_grad_(False)


def _kind(folder: Path) -> type[Any]:
    """The class of the backbone in a folder, by the name in its configuration."""
    name = read_config(folder)["architectures"][0]
    kinds = {kind.__name__: kind for kind in BACKBONES.values()}
    if name not in kinds:
        raise DataError(f"its architecture is {name[:100]!r}, expected one of {', '.join(kinds)}.")
    return kinds[name]
