"""The methods that a benchmark compares, by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmark.baselines import (
    LLMESR,
    ExpertFiLM,
    FusionRanker,
    ListwiseReranker,
    OracleFilter,
    ParsedFilter,
    QuerySeqRec,
    RequestLoRA,
    RequestRanker,
    ShuffledRequests,
    StaticMask,
    cramer,
    our_masks,
    paper_gate,
    paper_gate_with_our_loss,
)
from benchmark.cells import CellSettings
from benchmark.variants import ABLATIONS
from cramer_peft import RequestMaskConfig
from cramer_peft.errors import ConfigError, MissingModelError
from cramer_peft.recsys.backbones import BACKBONES, config_for

OURS = "ours"
OURS_SHUFFLED = "ours, shuffled requests"
PAPER = "paper's form"  # trained on sentences about attributes of the next item, which the paper does not do
CRAMER, STATIC_TOPK = "CRAMER", "static mask, paper's form"
ONLY_OWN_REQUESTS = (CRAMER, STATIC_TOPK)  # trained as the paper says, on requests that belong to a next item
_RERANKED_USERS = 100  # one generated answer for each request: all users would take days
_RERANKED_TRACKS = frozenset({"truthful", "for", "against favourite", "empty"})
_INSIDE = frozenset({"sasrec", "bert4rec"})


@dataclass(frozen=True)
class Method:
    """A method: its ranker, its configuration and its costs.

    Attributes:
        make: Makes the ranker from its configuration; None for the frozen model.
        config: Makes its configuration of masks; None: it has none.
        reads: Whether its scores depend on the text of a request, so that shuffled requests must erase its gain.
        learns: Cost of a training step, as a multiple of ours; 0: nothing is trained.
        scores: Cost of scoring, as a multiple of the frozen model's with its metrics.
        tracks: The only tracks it is measured on; None: all.
        max_users: Most users it is measured on; None: all.
        backbones: The only backbones it works on, because it reads states inside them; None: it works on all.
    """

    make: Callable[[RequestMaskConfig | None, CellSettings], RequestRanker] | None
    config: Callable[..., RequestMaskConfig] | None = None
    reads: bool = True
    learns: float = 0.0
    scores: float = 1.0
    tracks: frozenset[str] | None = None
    max_users: int | None = None
    backbones: frozenset[str] | None = None

    def most_users(self, limit: int | None) -> int | None:
        """Return how many users it is measured on at most, under a limit of all methods; None: all."""
        limits = [one for one in (limit, self.max_users) if one is not None]
        return min(limits, default=None)


def _reranker(_: RequestMaskConfig | None, settings: CellSettings) -> RequestRanker:
    if settings.language_model is None:
        raise MissingModelError(
            "reranking needs a causal language model, found none: set language_model to a name or a folder in the "
            "file that --config names."
        )
    return ListwiseReranker(settings.language_model)


METHODS: dict[str, Method] = {
    "frozen": Method(None, reads=False, scores=0.5),
    "parsed filter": Method(lambda config, settings: ParsedFilter()),
    "oracle filter": Method(lambda config, settings: OracleFilter()),
    "text fusion": Method(lambda config, settings: FusionRanker()),
    "query-seqrec token": Method(lambda config, settings: QuerySeqRec("token"), learns=0.8, backbones=_INSIDE),
    "query-seqrec joined": Method(lambda config, settings: QuerySeqRec("state"), learns=0.7, backbones=_INSIDE),
    "query-seqrec token, tuned": Method(
        lambda config, settings: QuerySeqRec("token", tuned=True), learns=1.0, backbones=_INSIDE
    ),
    "query-seqrec joined, tuned": Method(
        lambda config, settings: QuerySeqRec("state", tuned=True), learns=1.0, backbones=_INSIDE
    ),
    "llm-esr": Method(lambda config, settings: LLMESR(), reads=False, learns=0.8, backbones=_INSIDE),
    "reranker": Method(_reranker, scores=50.0, tracks=_RERANKED_TRACKS, max_users=_RERANKED_USERS),
    "film": Method(lambda config, settings: ExpertFiLM(), learns=0.7, backbones=_INSIDE),
    "lora": Method(lambda config, settings: RequestLoRA(), learns=1.1, backbones=_INSIDE),
    "lora, rank 1": Method(lambda config, settings: RequestLoRA(rank=1), learns=1.1, backbones=_INSIDE),
    "static mask": Method(
        lambda config, settings: StaticMask(config=config), RequestMaskConfig, reads=False, learns=1.0
    ),
    PAPER: Method(lambda config, settings: paper_gate(config), RequestMaskConfig.paper, learns=0.8),
    "paper's form, our loss": Method(
        lambda config, settings: paper_gate_with_our_loss(config), RequestMaskConfig.paper, learns=1.0
    ),
    CRAMER: Method(lambda config, settings: cramer(config), RequestMaskConfig.paper, learns=0.8),
    STATIC_TOPK: Method(
        lambda config, settings: StaticMask(config=config), RequestMaskConfig.paper, reads=False, learns=0.8
    ),
    OURS: Method(lambda config, settings: our_masks(config), RequestMaskConfig, learns=1.0),
    OURS_SHUFFLED: Method(
        lambda config, settings: ShuffledRequests(our_masks(config)), RequestMaskConfig, reads=False, learns=1.0
    ),
}


def method_named(name: str) -> Method:
    """Return the method of a name.

    Raises:
        ConfigError: If there is none.
    """
    if name not in METHODS:
        raise ConfigError(f"method: found {name!r}, expected one of {', '.join(map(repr, METHODS))}.")
    return METHODS[name]


def not_on(method: str, variant: str | None, backbone: str) -> str | None:
    """Return why a method or an ablation of ours cannot be run on a backbone; None if it can.

    Args:
        method: A key of ``METHODS``.
        variant: A key of ``ABLATIONS`` or of ``HOLD_OUTS``, or None.
        backbone: Name of the backbone.
    """
    for name, known in ((method, method_named(method)), (variant, ABLATIONS.get(variant or ""))):
        if known is not None and known.backbones is not None and backbone not in known.backbones:
            return f"{name!r} needs the inside of {' or '.join(sorted(known.backbones))}: {backbone} has another."
    return None


def encoder_of(encoder: str | None) -> tuple[str | None, dict[str, Any] | None]:
    """Return the registered name and the options of an encoder: a name, or a folder with a model of transformers."""
    if encoder is not None and Path(encoder).is_dir():
        return "transformers", {"model_name_or_path": encoder}
    return encoder, None


def mask_config(method: str, settings: CellSettings) -> RequestMaskConfig | None:
    """Return the configuration of a method's masks; None if it has none.

    Raises:
        ConfigError: If a field is unknown or impossible.
    """
    make = method_named(method).config
    if make is None:
        return None
    name, options = encoder_of(settings.encoder)
    encoder: dict[str, Any] = {} if name is None else {"encoder": name}
    if options is not None:
        encoder["encoder_options"] = options
    try:
        return make(**encoder, **settings.config)
    except TypeError as error:
        raise ConfigError(f"{method}: {error}. Expected fields of RequestMaskConfig.") from error


def mask_config_on(backbone: str, config: RequestMaskConfig | None) -> RequestMaskConfig | None:
    """Return a configuration with the backbone's own modules filled in if it names none.

    Args:
        backbone: Name of the backbone.
        config: Return value of :func:`mask_config`.
    """
    return None if config is None else config_for(BACKBONES.get(backbone), config)
