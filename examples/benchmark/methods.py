"""The methods that a benchmark compares, by name, and the ablations of ours."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
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
    our_masks,
    paper_gate,
    paper_gate_with_our_loss,
)
from benchmark.cells import CellSettings
from cramer_peft import RequestMaskConfig
from cramer_peft.errors import ConfigError, MissingModelError
from cramer_peft.recsys.backbones import BACKBONES, SASRec, config_for
from cramer_peft.recsys.backbones.sampling import negatives_for

_Config = Callable[..., RequestMaskConfig]
RERANKED_USERS = 100
_SASREC = frozenset({"sasrec"})
RERANKED_TRACKS = frozenset({"truthful", "for", "against favourite", "empty"})


@dataclass(frozen=True)
class Method:
    """How a method is made, and what can be asked of it.

    Attributes:
        make: Makes the ranker from its configuration; None for the frozen model.
        config: Makes its configuration of masks; None: it has none.
        reads: Whether it reads what a request says, so that shuffled requests must erase its gain.
        learns: Cost of a training step, as a multiple of ours; 0: nothing is trained.
        scores: Cost of scoring, as a multiple of the frozen model's with its metrics.
        tracks: The only tracks it is asked; None: all.
        max_users: Most users it is asked for; None: all.
        backbones: The only backbones whose inside it knows; None: it needs to know none.
    """

    make: Callable[[RequestMaskConfig | None, CellSettings], RequestRanker] | None
    config: _Config | None = None
    reads: bool = True
    learns: float = 0.0
    scores: float = 1.0
    tracks: frozenset[str] | None = None
    max_users: int | None = None
    backbones: frozenset[str] | None = None


def _reranker(_: RequestMaskConfig | None, settings: CellSettings) -> RequestRanker:
    if settings.language_model is None:
        raise MissingModelError(
            "reranking needs a causal language model, and none was given: pass --language-model NAME_OR_FOLDER."
        )
    return ListwiseReranker(settings.language_model)


METHODS: dict[str, Method] = {
    "frozen": Method(None, reads=False, scores=0.5),
    "parsed filter": Method(lambda config, settings: ParsedFilter()),
    "oracle filter": Method(lambda config, settings: OracleFilter()),
    "text fusion": Method(lambda config, settings: FusionRanker()),
    "query-seqrec token": Method(lambda config, settings: QuerySeqRec("token"), learns=0.8, backbones=_SASREC),
    "query-seqrec joined": Method(lambda config, settings: QuerySeqRec("state"), learns=0.7, backbones=_SASREC),
    "query-seqrec token, tuned": Method(
        lambda config, settings: QuerySeqRec("token", tuned=True), learns=1.0, backbones=_SASREC
    ),
    "query-seqrec joined, tuned": Method(
        lambda config, settings: QuerySeqRec("state", tuned=True), learns=1.0, backbones=_SASREC
    ),
    "llm-esr": Method(lambda config, settings: LLMESR(), reads=False, learns=0.8, backbones=_SASREC),
    "reranker": Method(_reranker, scores=50.0, tracks=RERANKED_TRACKS, max_users=RERANKED_USERS),
    "film": Method(lambda config, settings: ExpertFiLM(), learns=0.7, backbones=_SASREC),
    "lora": Method(lambda config, settings: RequestLoRA(), learns=1.1, backbones=_SASREC),
    "lora, rank 1": Method(lambda config, settings: RequestLoRA(rank=1), learns=1.1, backbones=_SASREC),
    "static mask": Method(
        lambda config, settings: StaticMask(config=config), RequestMaskConfig, reads=False, learns=1.0
    ),
    "paper's gate": Method(lambda config, settings: paper_gate(config), RequestMaskConfig.paper, learns=0.8),
    "paper's gate, our loss": Method(
        lambda config, settings: paper_gate_with_our_loss(config), RequestMaskConfig.paper, learns=1.0
    ),
    "ours": Method(lambda config, settings: our_masks(config), RequestMaskConfig, learns=1.0),
    "ours, shuffled requests": Method(
        lambda config, settings: ShuffledRequests(our_masks(config)), RequestMaskConfig, reads=False, learns=1.0
    ),
}


@dataclass(frozen=True)
class Ablation:
    """One change to ours.

    Attributes:
        config: Fields of the configuration that change.
        generator: Fields of the generator's options that change.
        encoder: Another request encoder.
        backbones: The only backbones that have the modules it names; None: any.
    """

    config: Mapping[str, Any] = field(default_factory=dict)
    generator: Mapping[str, Any] = field(default_factory=dict)
    encoder: str | None = None
    backbones: frozenset[str] | None = None


INSIDE_TOO, INSIDE_INSTEAD = "masks inside too", "masks inside instead"  # SASRec's names; others': see ablation_on
ABLATIONS: dict[str, Ablation] = {
    "gate scale": Ablation({"gate": "scale"}),
    "gate low_rank, 1 term": Ablation({"gate": "low_rank", "rank": 1}),
    "gate low_rank, 4 terms": Ablation({"gate": "low_rank", "rank": 4}),
    INSIDE_TOO: Ablation({"target_modules": [*SASRec.default_targets, *SASRec.head_targets]}),
    INSIDE_INSTEAD: Ablation({"target_modules": SASRec.default_targets}),
    "all linear layers": Ablation({"target_modules": r".*dense|.*(query|key|value)|head"}, backbones=_SASREC),
    "last block's masks instead": Ablation(
        {"target_modules": r".*layer\.1\.(attention\.output|intermediate|output)\.dense"},
        backbones=_SASREC | {"bert4rec"},
    ),
    "no hidden layer": Ablation({"generator_width": None}),
    "no minimal-edit loss": Ablation(generator={"edit_weight": 0.0, "next_item_weight": 1.0}),
    "no next-item loss": Ablation(generator={"next_item_weight": 0.0}),
    "true requests only": Ablation(generator={"random_share": 0.0, "empty_share": 0.0}),
    "no empty requests": Ablation(generator={"empty_share": 0.0}),
    "kappa 8": Ablation(generator={"kappa": 8.0}),
    "kappa 16": Ablation(generator={"kappa": 16.0}),
    "against drawn evenly": Ablation(generator={"against_by_frequency": False}),
    "biases not gated": Ablation({"gate_bias": False}),
    "no concepts": Ablation(generator={"concept_share": 0.0}),
    "concepts to the end": Ablation(generator={"concept_share": 0.25, "concept_until": 1.0}),
    "encoder wordllama": Ablation(encoder="wordllama"),
    "encoder request-reader": Ablation(encoder="request-reader"),
    "encoder MiniLM": Ablation(encoder="all-minilm-l6-v2"),
}


def method_named(name: str) -> Method:
    """The method of a name.

    Raises:
        ConfigError: If there is none.
    """
    if name not in METHODS:
        raise ConfigError(f"method: found {name!r}, expected one of {', '.join(map(repr, METHODS))}.")
    return METHODS[name]


def ablation_on(variant: str, backbone: str) -> Ablation:
    """An ablation in terms of a backbone's own modules.

    Args:
        variant: A key of ``ABLATIONS``.
        backbone: Name of the backbone.
    """
    ablation, kind = ABLATIONS[variant], BACKBONES.get(backbone)
    if backbone in _SASREC or kind is None or not kind.head_targets or variant not in (INSIDE_TOO, INSIDE_INSTEAD):
        return ablation
    heads = kind.head_targets if variant == INSIDE_TOO else []
    targets = [*(kind.default_targets or []), *heads]
    return replace(ablation, config={"target_modules": targets, "module_parts": kind.default_parts})


def not_on(method: str, variant: str | None, backbone: str) -> str | None:
    """Why a method, or an ablation of ours, cannot be run on a backbone; None where it can.

    Args:
        method: A key of ``METHODS``.
        variant: A key of ``ABLATIONS``, what training leaves out, or None.
        backbone: Name of the backbone.
    """
    for name, known in ((method, method_named(method)), (variant, ABLATIONS.get(variant or ""))):
        if known is not None and known.backbones is not None and backbone not in known.backbones:
            return f"{name!r} needs the inside of {' or '.join(sorted(known.backbones))}: {backbone} has another."
    kind = BACKBONES.get(backbone)
    if variant in (INSIDE_TOO, INSIDE_INSTEAD) and kind is not None and not kind.head_targets:
        return f"{variant!r}: {backbone} has no layer of its own that scores the items."
    return None


def mask_config(method: str, settings: CellSettings) -> RequestMaskConfig | None:
    """The configuration of a method's masks; None where it has none.

    Raises:
        ConfigError: If a field is unknown or impossible.
    """
    make = method_named(method).config
    if make is None:
        return None
    encoder = {} if settings.encoder is None else {"encoder": settings.encoder}
    try:
        return make(**encoder, **settings.config)
    except TypeError as error:
        raise ConfigError(f"{method}: {error}. Expected fields of RequestMaskConfig.") from error


def mask_config_on(backbone: str, items: int, config: RequestMaskConfig | None) -> RequestMaskConfig | None:
    """A configuration with the modules that are masked where it names none.

    Args:
        backbone: Name of the backbone.
        items: Of the catalogue.
        config: As from :func:`mask_config`.
    """
    return None if config is None else config_for(BACKBONES.get(backbone), config, negatives_for(items) is not None)
