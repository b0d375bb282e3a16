"""Real language: does what people said in film dialogues help to rank what they then liked?

A row is one recommendation that a seeker liked: the history is what they had said they liked before, the request is
what they had said, each title in it replaced by a placeholder. The whole catalogue but the history is ranked. Nothing
here is simulated; nothing in it was seen in training either.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from benchmark.redial_data import MatchedRequests
from cramer_peft import RequestMaskModel
from cramer_peft.encoders import RequestEncoder
from cramer_peft.errors import DataError
from cramer_peft.recsys.data.catalogue import Catalogue
from cramer_peft.recsys.data.split import pad_histories, seen_mask
from cramer_peft.recsys.devices import brought_to
from cramer_peft.recsys.evaluation.bootstrap import Interval, statistic_interval
from cramer_peft.recsys.evaluation.evaluation import Scorer
from cramer_peft.recsys.evaluation.fusion import TextFusion
from cramer_peft.recsys.evaluation.metrics import hit_rate, mrr, ndcg, target_ranks
from cramer_peft.recsys.evaluation.tracks import hold_out
from cramer_peft.recsys.requests.text_encoders import text_encoder

PLACEHOLDER = "[movie]"
NO_REQUEST, SHUFFLED = "no request", "shuffled requests"
STRENGTHS = (0.25, 0.5, 0.75, 1.0, 1.5)
FUSION_WEIGHTS = (0.5, 1.0, 2.0, 5.0, 10.0, 20.0)
_BATCH = 256
_SENTENCE = re.compile(r"[^.!?\n]+[.!?]*")
_METRICS: dict[str, Callable[[Tensor, int], Tensor]] = {"ndcg": ndcg, "hr": hit_rate, "mrr": mrr}


def without_placeholders(text: str) -> str:
    """The text without ``[movie]``, which is no word of the seeker's."""
    return " ".join(text.replace(PLACEHOLDER, " ").split())


def last_sentence(text: str) -> str:
    """The last sentence of four words or more, without placeholders; all of the text if there is none."""
    plain = without_placeholders(text)
    long = [sentence.strip() for sentence in _SENTENCE.findall(plain) if len(sentence.split()) >= 4]
    return long[-1] if long else plain


WORDINGS: Mapping[str, Callable[[str], str]] = {
    "whole text": str.strip,
    "without placeholders": without_placeholders,
    "last sentence": last_sentence,
}


@dataclass(frozen=True, eq=False)
class RedialPart:
    """Rows of one part of the dialogues, ready to be scored.

    Attributes:
        item_ids: Padded histories, (rows, length) int64.
        seen: Items of each whole history, (rows, items) bool; they are never recommended.
        targets: What was recommended and liked, (rows,) int64.
        requests: What was said before, a text for each row.
        dialogues: Each row's dialogue.
    """

    item_ids: Tensor
    seen: Tensor
    targets: Tensor
    requests: tuple[str, ...]
    dialogues: tuple[str, ...]

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.requests)


@dataclass(frozen=True, eq=False)
class RedialParts:
    """The rows for choices and those for the one look at the end; no dialogue is in both.

    Attributes:
        validation: For every choice.
        test: To be looked at once.
        without_history: Rows left out because nothing, or less than the matching asked for, is known of what their
            seeker liked.
    """

    validation: RedialPart
    test: RedialPart
    without_history: int


def split_dialogues(
    matched: MatchedRequests, num_items: int, max_length: int, test_share: float = 0.7, seed: int = 0
) -> RedialParts:
    """Split rows by dialogue, and leave out those without a history.

    Args:
        matched: Requests whose titles were found in the catalogue.
        num_items: Items of the catalogue.
        max_length: Longest history that the backbone reads.
        test_share: Share of the dialogues that the test gets.
        seed: Of the draw of dialogues.

    Raises:
        DataError: If fewer than two dialogues have rows with a history, or an argument is impossible.
    """
    rows = [row for row, history in enumerate(matched.histories) if len(history)]
    left_out = len(matched) - len(rows) + matched.report.short_history
    known = sorted({matched.dialogues[row] for row in rows})
    if len(known) < 2:
        raise DataError(f"{len(known)} dialogue(s) have rows with a history, expected two or more to split.")
    kept, _ = hold_out(known, test_share, seed)
    kept_names = set(kept)

    def part(wanted: bool) -> RedialPart:
        chosen = [row for row in rows if (matched.dialogues[row] in kept_names) == wanted]
        histories = [matched.histories[row] for row in chosen]
        return RedialPart(
            pad_histories(histories, max_length),
            seen_mask(histories, num_items),
            matched.targets[chosen],
            tuple(matched.requests[row] for row in chosen),
            tuple(matched.dialogues[row] for row in chosen),
        )

    return RedialParts(part(True), part(False), left_out)


def mask_scorer(masks: RequestMaskModel, strength: float = 1.0) -> Scorer:
    """A scorer by request masks at a strength.

    Args:
        masks: The adapted backbone.
        strength: Of every request.
    """

    def score(item_ids: Tensor, requests: Sequence[str | None]) -> Tensor:
        scores: Tensor = masks(brought_to(masks, item_ids), request=list(requests), request_strength=strength)
        return scores

    return score


def redial_methods(
    masks: RequestMaskModel, catalogue: Catalogue, encoder: RequestEncoder | None = None
) -> dict[str, dict[str, Scorer]]:
    """Our masks at several strengths and text fusion at several weights, for :func:`measure_redial`.

    Args:
        masks: The adapted backbone.
        catalogue: The items, whose titles and attributes fusion reads.
        encoder: Of fusion; by default the masks' own or, where that reads requests only, its encoder of texts.
    """
    own = text_encoder(encoder or masks.encoder())  # masks without a request are the frozen model
    return {"ours": mask_candidates(masks), "text fusion": fusion_candidates(masks, own, catalogue)}


def mask_candidates(masks: RequestMaskModel) -> dict[str, Scorer]:
    """Masks at each strength of ``STRENGTHS``."""
    return {f"strength {strength:g}": mask_scorer(masks, strength) for strength in STRENGTHS}


def fusion_candidates(frozen: nn.Module, encoder: RequestEncoder, catalogue: Catalogue) -> dict[str, Scorer]:
    """Text fusion at each weight of ``FUSION_WEIGHTS``.

    Args:
        frozen: The frozen model.
        encoder: Encodes requests and items.
        catalogue: The items, whose titles and attributes it reads.
    """
    return {f"weight {weight:g}": TextFusion(frozen, encoder, catalogue, weight) for weight in FUSION_WEIGHTS}


def redial_ranks(scorer: Scorer, part: RedialPart, requests: Sequence[str | None] | None = None) -> Tensor:
    """Rank of each row's target among all items that are not in its history, (rows,) float.

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
    """For each row what somebody said in another dialogue: the dialogues swap in one random circle.

    Args:
        part: Rows of two dialogues or more.
        seed: Of the circle.

    Raises:
        DataError: If there is only one dialogue.
    """
    said: dict[str, list[str]] = {}
    for dialogue, request in zip(part.dialogues, part.requests, strict=True):
        said.setdefault(dialogue, []).append(request)
    if len(said) < 2:
        raise DataError("found rows of one dialogue, expected two or more to exchange requests.")
    circle, rng = sorted(said), random.Random(f"{seed}:redial")
    rng.shuffle(circle)
    givers = dict(zip(circle, circle[1:] + circle[:1], strict=True))
    return tuple(rng.choice(said[givers[dialogue]]) for dialogue in part.dialogues)


def dialogue_interval(values: Tensor, dialogues: Sequence[str], seed: int = 0) -> Interval:
    """Mean over rows, with the interval of a bootstrap over dialogues: a dialogue's rows are drawn together.

    Args:
        values: (rows,).
        dialogues: Each row's dialogue.
        seed: Of the draws.

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


@dataclass(frozen=True)
class RedialChoice:
    """What was chosen for one method on the validation dialogues.

    Attributes:
        candidate: Name of the candidate scorer.
        wording: Which of ``WORDINGS``.
        ndcg: Validation NDCG@k of it.
        table: NDCG@k of all, by "candidate, wording".
    """

    candidate: str
    wording: str
    ndcg: float
    table: dict[str, float]


def choose_candidate(candidates: Mapping[str, Scorer], part: RedialPart, k: int = 10) -> RedialChoice:
    """The candidate and wording with the best NDCG@k, the first of several.

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


def redial_values(
    scorers: Mapping[str, tuple[Scorer, str]], frozen: Scorer, part: RedialPart, seed: int = 0, k: int = 10
) -> dict[str, dict[str, Tensor]]:
    """HR, NDCG and MRR@k row by row: what :func:`evaluate_redial` takes the means of.

    Args:
        scorers: Method → its scorer and which of ``WORDINGS`` it is given.
        frozen: Scores without a request.
        part: The rows.
        seed: Of the shuffling.
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
    """HR, NDCG and MRR@k of each method with the request, beside no request and somebody else's.

    Args:
        scorers: Method → its scorer and which of ``WORDINGS`` it is given, both chosen beforehand.
        frozen: Scores without a request.
        part: The rows.
        seed: Of the shuffling and of the bootstrap.
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
        methods: Method → its candidates, see :func:`choose_candidate`. Give every method its own: what is tuned for
            one is tuned for all.
        frozen: Scores without a request.
        parts: The rows.
        seed: Of the shuffling and of the bootstrap.
        test: Whether to look at the test dialogues, once all is settled. The figures of the validation dialogues
            flatter whatever was chosen on them.

    Returns:
        What :func:`evaluate_redial` returns, with ``part``, ``without_history`` and ``chosen``.

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
