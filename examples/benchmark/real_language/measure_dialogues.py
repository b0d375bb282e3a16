"""Measure whether people's words in film dialogues help to rank the films that they then liked.

A row is one recommendation that a seeker liked. Its history is the films that they had said they liked before, its
request is their words, each title in them replaced by a placeholder. The whole catalogue but the history is ranked.
Nothing here is simulated, and nothing in it was seen in training.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from benchmark.real_language.parts import RedialPart, RedialParts
from cramer_peft import RequestMaskModel
from cramer_peft.encoders import RequestEncoder
from cramer_peft.errors import DataError
from cramer_peft.recsys.data.catalogue import Catalogue
from cramer_peft.recsys.evaluation.bootstrap import Interval, statistic_interval
from cramer_peft.recsys.evaluation.metrics import hit_rate, mrr, ndcg, target_ranks
from cramer_peft.recsys.evaluation.text_fusion import TextFusion
from cramer_peft.recsys.evaluation.users import Scorer, mask_scorer
from cramer_peft.recsys.requests.catalogue_encoder import text_encoder

PLACEHOLDER = "[movie]"
NO_REQUEST, SHUFFLED = "no request", "shuffled requests"
STRENGTHS = (0.25, 0.5, 0.75, 1.0, 1.5)
FUSION_WEIGHTS = (0.5, 1.0, 2.0, 5.0, 10.0, 20.0)
_BATCH = 256
_SENTENCE = re.compile(r"[^.!?\n]+[.!?]*")
_METRICS: dict[str, Callable[[Tensor, int], Tensor]] = {"ndcg": ndcg, "hr": hit_rate, "mrr": mrr}


# ---------------------------------------------------------------- choices


def without_placeholders(text: str) -> str:
    """Return the text without ``[movie]``, which is not the seeker's own word."""
    return " ".join(text.replace(PLACEHOLDER, " ").split())


def last_sentence(text: str) -> str:
    """Return the last sentence of four words or more, without placeholders; the whole text if there is none."""
    plain = without_placeholders(text)
    long = [sentence.strip() for sentence in _SENTENCE.findall(plain) if len(sentence.split()) >= 4]
    return long[-1] if long else plain


WORDINGS: Mapping[str, Callable[[str], str]] = {
    "whole text": str.strip,
    "without placeholders": without_placeholders,
    "last sentence": last_sentence,
}


def redial_methods(
    masks: RequestMaskModel, catalogue: Catalogue, encoder: RequestEncoder | None = None
) -> dict[str, dict[str, Scorer]]:
    """Return our masks at several strengths and text fusion at several weights, for :func:`measure_redial`.

    Args:
        masks: The adapted backbone.
        catalogue: The items, whose titles and attributes fusion reads.
        encoder: Encoder of fusion; by default the masks' own or, if that reads requests only, its encoder of texts.
    """
    own = text_encoder(encoder or masks.encoder())  # masks without a request are the frozen model
    return {"ours": mask_candidates(masks), "text fusion": fusion_candidates(masks, own, catalogue)}


def mask_candidates(masks: RequestMaskModel) -> dict[str, Scorer]:
    """Return masks at each strength of ``STRENGTHS``."""
    return {f"strength {strength:g}": mask_scorer(masks, strength) for strength in STRENGTHS}


def fusion_candidates(frozen: nn.Module, encoder: RequestEncoder, catalogue: Catalogue) -> dict[str, Scorer]:
    """Return text fusion at each weight of ``FUSION_WEIGHTS``.

    Args:
        frozen: The frozen model.
        encoder: Encodes requests and items.
        catalogue: The items, whose titles and attributes it reads.
    """
    return {f"weight {weight:g}": TextFusion(frozen, encoder, catalogue, weight) for weight in FUSION_WEIGHTS}


@dataclass(frozen=True)
class RedialChoice:
    """The choices for one method, made on the validation dialogues.

    Attributes:
        candidate: Name of the candidate scorer.
        wording: A key of ``WORDINGS``.
        ndcg: Its validation NDCG@k.
        table: NDCG@k of all, by "candidate, wording".
    """

    candidate: str
    wording: str
    ndcg: float
    table: dict[str, float]


def choose_candidate(candidates: Mapping[str, Scorer], part: RedialPart, k: int = 10) -> RedialChoice:
    """Return the candidate and wording with the best NDCG@k, the first of several.

    Args:
        candidates: Name → scorer: one method at several strengths or weights.
        part: The validation rows.
        k: Length of the list.

    Raises:
        DataError: If there are no candidates.
    """
    if not candidates:
        raise DataError("candidates: found none, expected one scorer or more.")
    table = {}
    for wording, say in WORDINGS.items():
        texts = [say(request) for request in part.requests]
        for name, scorer in candidates.items():
            table[name, wording] = float(ndcg(redial_ranks(scorer, part, texts), k).mean())
    best = max(table, key=lambda key: table[key])
    return RedialChoice(*best, table[best], {", ".join(key): value for key, value in table.items()})


# ---------------------------------------------------------------- ranks and intervals


def redial_ranks(scorer: Scorer, part: RedialPart, requests: Sequence[str | None] | None = None) -> Tensor:
    """Return the rank of each row's target among all items that are not in its history, (rows,) float.

    Args:
        scorer: For example a :class:`~benchmark.baselines.RequestRanker`'s ``scores``.
        part: The rows.
        requests: A text, or None, for each row; by default None for all.

    Raises:
        DataError: If there is not one request for each row.
    """
    texts = [None] * len(part) if requests is None else list(requests)
    if len(texts) != len(part):
        raise DataError(f"requests: found {len(texts)}, expected one for each of the {len(part)} rows.")
    ranks = []
    with torch.no_grad():
        for start in range(0, len(part), _BATCH):
            rows = slice(start, start + _BATCH)
            scores = scorer(part.item_ids[rows], texts[rows]).cpu().masked_fill(part.seen[rows], -torch.inf)
            ranks.append(target_ranks(scores, part.targets[rows]))
    return torch.cat(ranks)


def shuffled_requests(part: RedialPart, seed: int) -> tuple[str, ...]:
    """Return for each row a request from another dialogue.

    The dialogues stand in one random circle, and each takes its requests from the next.

    Args:
        part: Rows of two dialogues or more.
        seed: Seed of the circle.

    Raises:
        DataError: If there is only one dialogue.
    """
    requests: dict[str, list[str]] = {}
    for dialogue, request in zip(part.dialogues, part.requests, strict=True):
        requests.setdefault(dialogue, []).append(request)
    if len(requests) < 2:
        raise DataError("found rows of one dialogue, expected two or more to exchange requests.")
    circle, rng = sorted(requests), random.Random(f"{seed}:redial")
    rng.shuffle(circle)
    givers = dict(zip(circle, circle[1:] + circle[:1], strict=True))
    return tuple(rng.choice(requests[givers[dialogue]]) for dialogue in part.dialogues)


def dialogue_interval(values: Tensor, dialogues: Sequence[str], seed: int = 0) -> Interval:
    """Return the mean over rows with a bootstrap interval over dialogues: a dialogue's rows are drawn together.

    Args:
        values: (rows,).
        dialogues: Each row's dialogue.
        seed: Seed of the draws.

    Raises:
        DataError: If the lengths differ, there are no rows, or a value is not finite.
    """
    if values.shape != (len(dialogues),):
        raise DataError(f"values: found shape {tuple(values.shape)}, expected ({len(dialogues)},), one for each row.")
    names = {name: index for index, name in enumerate(dict.fromkeys(dialogues))}
    index = torch.tensor([names[name] for name in dialogues], dtype=torch.long)
    columns = torch.stack([values.double(), torch.ones(len(values), dtype=torch.float64)], dim=1)
    sums = torch.zeros(len(names), 2, dtype=torch.float64).index_add_(0, index, columns)
    return statistic_interval(sums, lambda means: means[:, 0] / means[:, 1], seed=seed)


# ---------------------------------------------------------------- metrics


def redial_values(
    scorers: Mapping[str, tuple[Scorer, str]], frozen: Scorer, part: RedialPart, seed: int = 0, k: int = 10
) -> dict[str, dict[str, Tensor]]:
    """Return HR, NDCG and MRR@k row by row; :func:`evaluate_redial` gives their means.

    Args:
        scorers: Method → its scorer and its key of ``WORDINGS``.
        frozen: Scores without a request.
        part: The rows.
        seed: Seed of the shuffling.
        k: Length of the list.

    Returns:
        For "no request", each method, and "METHOD, shuffled requests": metric → (rows,) float.

    Raises:
        DataError: If a wording is unknown, a method is called "no request", or the part has fewer than two dialogues.
    """
    unknown = sorted({wording for _, wording in scorers.values()} - set(WORDINGS))
    if unknown or NO_REQUEST in scorers:
        raise DataError(
            f"scorers: found the methods {list(scorers)} and unknown wordings {unknown}, expected wordings among "
            f"{', '.join(WORDINGS)}, and no method called {NO_REQUEST!r}."
        )
    swapped = shuffled_requests(part, seed)
    ranks = {NO_REQUEST: redial_ranks(frozen, part)}
    for name, (scorer, wording) in scorers.items():
        say = WORDINGS[wording]
        ranks[name] = redial_ranks(scorer, part, [say(text) for text in part.requests])
        ranks[f"{name}, {SHUFFLED}"] = redial_ranks(scorer, part, [say(text) for text in swapped])
    return {name: {metric: rule(rank, k) for metric, rule in _METRICS.items()} for name, rank in ranks.items()}


def evaluate_redial(
    scorers: Mapping[str, tuple[Scorer, str]], frozen: Scorer, part: RedialPart, seed: int = 0, k: int = 10
) -> dict[str, Any]:
    """Return HR, NDCG and MRR@k of each method with the request, with none, and with one from another dialogue.

    Args:
        scorers: Method → its scorer and its key of ``WORDINGS``, both chosen beforehand.
        frozen: Scores without a request.
        part: The rows.
        seed: Seed of the shuffling and of the bootstrap.
        k: Length of the list.

    Returns:
        ``rows``, ``dialogues``; ``methods``: for "no request", each method, and "METHOD, shuffled requests" the
        metrics as ``{"value", "low", "high"}``; ``differences``: "METHOD - no request", "METHOD - METHOD, shuffled
        requests" and "METHOD - OTHER METHOD", paired on the same drawn dialogues.

    Raises:
        DataError: If a wording is unknown, a method is called "no request", or the part has fewer than two dialogues.
    """
    values = redial_values(scorers, frozen, part, seed, k)
    pairs = []
    for name in scorers:
        pairs += [(name, NO_REQUEST), (name, f"{name}, {SHUFFLED}")]
        pairs += [(name, other) for other in scorers if other != name]

    def intervals(columns: Mapping[str, Tensor]) -> dict[str, dict[str, float]]:
        found = {metric: dialogue_interval(column, part.dialogues, seed) for metric, column in columns.items()}
        return {name: {"value": it.estimate, "low": it.low, "high": it.high} for name, it in found.items()}

    return {
        "rows": len(part),
        "dialogues": len(set(part.dialogues)),
        "methods": {name: intervals(columns) for name, columns in values.items()},
        "differences": {
            f"{one} - {two}": intervals({metric: values[one][metric] - values[two][metric] for metric in _METRICS})
            for one, two in pairs
        },
    }


def measure_redial(
    methods: Mapping[str, Mapping[str, Scorer]], frozen: Scorer, parts: RedialParts, seed: int = 0, test: bool = False
) -> dict[str, Any]:
    """Choose each method's candidate and wording on the validation dialogues, then evaluate.

    Args:
        methods: Method → its candidates, see :func:`choose_candidate`. Give every method several, so that all are
            tuned alike.
        frozen: Scores without a request.
        parts: The rows.
        seed: Seed of the shuffling and of the bootstrap.
        test: Whether to look at the test dialogues, once all is settled. Figures of the validation dialogues are too
            good, because the choices were made on them.

    Returns:
        The entries of :func:`evaluate_redial`, with ``part``, ``without_history`` and ``chosen``.

    Raises:
        DataError: As for :func:`evaluate_redial` and :func:`choose_candidate`.
    """
    choices = {name: choose_candidate(candidates, parts.validation) for name, candidates in methods.items()}
    scorers = {name: (methods[name][choice.candidate], choice.wording) for name, choice in choices.items()}
    found = evaluate_redial(scorers, frozen, parts.test if test else parts.validation, seed)
    chosen = {
        name: {"candidate": c.candidate, "wording": c.wording, "ndcg": c.ndcg, "table": c.table}
        for name, c in choices.items()
    }
    part = "test" if test else "validation"
    return {"part": part, "without_history": parts.without_history, "chosen": chosen, **found}
