"""Items that nobody trained on: embeddings made from their texts, and their place in a recommender."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from cramer_peft import RequestMaskModel
from cramer_peft.errors import DataError, UnsupportedError
from cramer_peft.recsys.data.catalogue import Catalogue
from cramer_peft.recsys.data.columns import Columns
from cramer_peft.recsys.data.items import read_items
from cramer_peft.recsys.data.tables import read_table
from cramer_peft.recsys.masks import describe_items, item_layers
from cramer_peft.recsys.requests.catalogue_encoder import CatalogueEncoder, active_encoder, item_embeddings
from cramer_peft.recsys.requests.request_encoders import extended_encoder

_PENALTIES = 10.0 ** torch.arange(-6, 4, 0.5, dtype=torch.float64)  # of the mean variance of a feature


def read_new_items(items: Any, known: Catalogue, columns: Columns) -> Catalogue:
    """Return items in a data frame or a file as a catalogue, with the texts and numbers that the ``known`` items have.

    Raises:
        DataError: If a column of the ids or the attributes is missing, or a cell cannot be what it is for the others.
    """
    table = read_table(items, "items", columns)
    return read_items(table, replace(columns, min_attribute_items=1), columns.item_column or "item_id", known).catalogue


def predicted_embeddings(known_texts: Tensor, embeddings: Tensor, texts: Tensor) -> Tensor:
    """Return embeddings of new items, predicted from their texts by ridge regression on the known items.

    A linear map from attributes to the factors of a collaborative model is that of Gantner et al. 2010, "Learning
    Attribute-to-Feature Mappings for Cold-Start Recommendations" (ICDM); DropoutNet (Volkovs et al. 2017) trains a
    network for the same. The penalty is chosen by generalised cross-validation (Golub, Heath & Wahba 1979).

    Args:
        known_texts: Features of the known items' texts, (items, features) float.
        embeddings: Their embeddings, (items, width) float.
        texts: Features of the new items' texts, (new, features) float.

    Returns:
        The new items' embeddings, (new, width), of the dtype and on the device of ``embeddings``.
    """
    inputs, outputs = known_texts.double(), embeddings.double().cpu()
    middle, start = inputs.mean(0), outputs.mean(0)
    inputs, outputs = inputs - middle, outputs - start
    variances, directions = torch.linalg.eigh(inputs.T @ inputs)
    variances = variances.clamp(min=0)
    shared = directions.T @ (inputs.T @ outputs)
    strength = shared.square().sum(1)
    total, rows = float(outputs.square().sum()), len(inputs)

    def score(penalty: Tensor) -> float:
        shrunk = variances + penalty
        left = total - float((strength * (variances + 2 * penalty) / shrunk**2).sum())
        free = rows - 1 - float((variances / shrunk).sum())
        return max(left, 0.0) / max(free, 1e-3) ** 2

    penalty = min(_PENALTIES * variances.mean().clamp(min=1e-12), key=score)
    weights = directions @ (shared / (variances + penalty)[:, None])
    predicted: Tensor = ((texts.double() - middle) @ weights + start).to(embeddings)
    return predicted


def checked_embeddings(masks: RequestMaskModel, grown: Catalogue, embeddings: Any) -> Tensor:
    """Return the embeddings of the new items of a catalogue, (new, width): those that are given, or predicted ones.

    Raises:
        DataError: If they are not one finite row for each new item, as wide as the others.
        UnsupportedError: If the backbone shows no embeddings.
    """
    table = item_embeddings(masks.model)
    if table is None:
        raise UnsupportedError(
            f"{type(masks.model).__name__} shows no item embeddings, so items cannot be added: train it anew."
        )
    new, trained = len(grown) - len(table), grown.described
    if embeddings is None:
        texts = CatalogueEncoder(grown, None).features
        return predicted_embeddings(texts[:trained], table[:trained], texts[len(table) :])
    found = tuple(embeddings.shape) if isinstance(embeddings, Tensor) else type(embeddings).__name__
    if found != (new, table.shape[1]) or not embeddings.is_floating_point():
        raise DataError(
            f"embeddings: found {found}, expected a tensor of floats of shape {(new, table.shape[1])}: one row for "
            "each new item, as wide as the backbone's."
        )
    if not bool(torch.isfinite(embeddings).all()):
        raise DataError("embeddings: found NaN or infinity, expected finite numbers.")
    given: Tensor = embeddings.detach().to(table)
    return given


def with_new_items(masks: RequestMaskModel, grown: Catalogue, vectors: Tensor) -> RequestMaskModel:
    """Return a copy of an adapted backbone whose last items are new; ``vectors`` are their embeddings, (new, width).

    Raises:
        UnsupportedError: If the backbone's table cannot be extended, or the adapter has a gate for each item.
    """
    check_extensible(masks)
    copied = copy.deepcopy(masks)
    copied.model.append_items(vectors)  # type: ignore[operator]
    encoder = active_encoder(copied)
    if isinstance(encoder, CatalogueEncoder):
        copied.set_encoder(extended_encoder(encoder, grown, copied.model))
    describe_items(copied, grown, check=False)
    return copied


def check_extensible(masks: RequestMaskModel) -> None:
    """Raise an UnsupportedError unless items can be added to an adapted backbone and its masks."""
    kind = type(masks.model).__name__
    if not hasattr(masks.model, "append_items"):
        raise UnsupportedError(
            f"{kind} has no method append_items(vectors), which adds rows to its item table in place: items cannot be "
            "added. SASRec, GRU4Rec and BERT4Rec have one; train another backbone anew."
        )
    if len(masks.peft_config) > 1:
        raise UnsupportedError(f"found the adapters {sorted(masks.peft_config)}, expected one: delete the others.")
    gated = item_layers(masks)
    if gated:
        raise UnsupportedError(
            f"the adapter masks {gated[0]!r}, by numbers for each item that it was made for: it has none for new ones. "
            "Train an adapter with the default masks (config_for), which are made from descriptions of the items."
        )
