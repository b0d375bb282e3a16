"""Which encoder reads requests for a backbone, and which one reads the texts of items."""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor

from cramer_peft.encoders import CachedEncoder, RequestEncoder, make_encoder, register_request_encoder
from cramer_peft.errors import EncoderError
from cramer_peft.recsys.data.catalogue import Catalogue
from cramer_peft.recsys.requests.catalogue_encoder import CatalogueEncoder

DEFAULT_ENCODER = CatalogueEncoder.name


def _without_catalogue(**options: Any) -> RequestEncoder:
    raise EncoderError(
        "the encoder 'catalogue' is made from a catalogue and a backbone: load the folder by RequestRecommender.load, "
        "or pass encoder=CatalogueEncoder(catalogue, item_embeddings(backbone))."
    )


register_request_encoder(DEFAULT_ENCODER, _without_catalogue)


def request_encoder(
    name: str | None, catalogue: Catalogue, backbone: Any, options: dict[str, Any] | None = None
) -> RequestEncoder:
    """The encoder of that name, behind a cache.

    Args:
        name: ``"catalogue"`` or None for :class:`CatalogueEncoder`, or a registered name.
        catalogue: The items.
        backbone: Whose item embeddings describe the items.
        options: Of a registered encoder.

    Raises:
        EncoderError: If the name is not registered.
    """
    if name is None or name == CatalogueEncoder.name:
        return cast(RequestEncoder, CachedEncoder(CatalogueEncoder(catalogue, item_embeddings(backbone))))
    return cast(RequestEncoder, CachedEncoder(make_encoder(name, options)))


def text_encoder(encoder: Any) -> RequestEncoder:
    """What reads item texts beside a request encoder: itself, unless it reads requests only."""
    inner = without_cache(encoder)
    found: RequestEncoder = inner.text_encoder if isinstance(inner, CatalogueEncoder) else encoder
    return found


def without_cache(encoder: Any) -> Any:
    """The encoder behind its caches: a handle puts one of its own before the one that it is given."""
    while isinstance(encoder, CachedEncoder):
        encoder = encoder.encoder
    return encoder


def item_embeddings(backbone: Any) -> Tensor | None:
    """A backbone's embeddings of the items 0 … num_items - 1, (items, width), or None if they cannot be told."""
    own = getattr(backbone, "item_vectors", None)
    if isinstance(own, Tensor):
        return own
    find = getattr(backbone, "get_input_embeddings", None)
    table = find() if callable(find) else getattr(backbone, "items", None)
    weight = getattr(table, "weight", None)
    if not isinstance(weight, Tensor) or weight.dim() != 2 or len(weight) <= backbone.num_items:
        return None
    return weight.detach()[1 : backbone.num_items + 1]  # 0 is the padding
