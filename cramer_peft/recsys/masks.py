"""Puts request masks on a backbone, and describes its items to them."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn import functional

from cramer_peft import RequestEncoder, RequestMaskConfig, RequestMaskModel, inject_request_masks
from cramer_peft.recsys.backbones import config_for
from cramer_peft.recsys.data.catalogue import Catalogue
from cramer_peft.recsys.requests.catalogue_encoder import CatalogueEncoder, active_encoder, item_embeddings


def mask_backbone(
    backbone: Any, catalogue: Catalogue, config: RequestMaskConfig | None = None, encoder: RequestEncoder | None = None
) -> RequestMaskModel:
    """Put masks on a backbone, in place, as :func:`config_for` says; return the handle.

    Args:
        backbone: The frozen backbone.
        catalogue: Its items.
        config: The configuration; None: the default.
        encoder: An encoder object, in place of the one that ``config`` names.

    Raises:
        ConfigError: If the configuration is impossible.
        DataError: If the catalogue is not that of the backbone.
        EncoderError: If the encoder is unknown or has another width.
        TargetModuleError: If the backbone has no such modules.
    """
    masks = inject_request_masks(backbone, config_for(backbone, config), encoder=encoder)
    try:
        describe_items(masks, catalogue)
    except BaseException:
        masks.unload()
        raise
    return masks


def item_layers(masks: RequestMaskModel) -> list[str]:
    """Return what the active adapter masks that has one mask for each item: layers that score items, gated outputs."""
    layout = masks.adapter().config.masked_modules or {}
    return [name for name, widths in layout.items() if (widths if ":" in name else _scores_items(masks, name, widths))]


def _scores_items(masks: RequestMaskModel, name: str, widths: list[int]) -> bool:
    """Return True if the weight of a masked layer is the item table, and its masks are not on features alone."""
    table, weight = item_embeddings(masks.model), _weight(masks, name)
    if table is None or weight is None or len(widths) == 1:
        return False
    return weight.untyped_storage().data_ptr() == table.untyped_storage().data_ptr()


def _weight(masks: RequestMaskModel, name: str) -> Tensor | None:
    layer = dict(masks.model.named_modules()).get(name)  # None for a part of a module
    weight = getattr(getattr(layer, "base_layer", layer), "weight", None)
    return weight if isinstance(weight, Tensor) else None


def describe_items(masks: RequestMaskModel, catalogue: Catalogue, check: bool = True) -> None:
    """Set the features of the items, where the active adapter describes rows: those of its encoder, if it has any.

    ``check`` is False for items that were added since the adapter was trained.
    """
    config = masks.adapter().config
    if not config.row_features:
        return
    encoder = active_encoder(masks)
    if not isinstance(encoder, CatalogueEncoder):
        encoder = CatalogueEncoder(catalogue, item_embeddings(masks.model))
    scoring = item_layers(masks)
    for entry in list(config.row_features):
        features, weight = encoder.features, _weight(masks, entry) if entry in scoring else None
        if weight is not None:  # it has a row for the padding, too, and perhaps one for a mask token
            features = functional.pad(features, (0, 0, 1, len(weight) - 1 - len(features)))
        masks.set_row_features(entry, features, check=check)
