"""The whole story on real data: train, freeze, mask, compare, show, take the masks off again."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cramer_peft import RequestMaskConfig, RequestMaskModel, inject_request_masks
from cramer_peft.encoders import RequestEncoder
from cramer_peft.errors import DataError
from cramer_peft.recsys.backbones import SASRec, config_for
from cramer_peft.recsys.data.catalogue import Catalogue
from cramer_peft.recsys.data.datasets import load_dataset
from cramer_peft.recsys.data.split import Split, leave_one_out
from cramer_peft.recsys.evaluation.evaluation import EvaluationUsers, Scorer, evaluate, make_tracks
from cramer_peft.recsys.evaluation.fusion import TextFusion
from cramer_peft.recsys.evaluation.metrics import share, top_items
from cramer_peft.recsys.recommender import Answer, RequestRecommender, load_backbone, save_backbone
from cramer_peft.recsys.requests.attributes import RequestGenerator, phrase
from cramer_peft.recsys.requests.text_encoders import request_encoder, text_encoder
from cramer_peft.recsys.requests.wordings import TEST_TEMPLATES, TRAIN_TEMPLATES
from cramer_peft.recsys.training.generator_training import (
    BackboneOptions,
    GeneratorOptions,
    score_histories,
    train_generator,
    train_sasrec,
)
from cramer_peft.recsys.versions import versions
from cramer_peft.storage import write_json

FROZEN, PAPER, OURS, FUSION = "frozen", "paper's gate", "ours", "text fusion"


@dataclass(frozen=True)
class DemoOptions:
    """What the demo runs on and how.

    Attributes:
        output: Folder that the results are written to.
        data: A data set's name, or a folder of RecBole atomic files (one ``.inter``, one ``.item``); None: fetch
            MovieLens-100k.
        title_column, attribute_column, attribute_separator: Of the ``.item`` file; None: found by name.
        backbone: Folder of a SASRec that an earlier run wrote, to skip its training.
        seed: Of everything that is random.
        encoder: Registered name of the request encoder; None: the one that knows the catalogue, ``CatalogueEncoder``.
        backbone_options: How the backbone is trained.
        generator: How our generator is trained.
        paper_generator: How the paper's gate is trained: its own loss, no minimal-edit loss.
        progress: Whether to show progress bars.
    """

    output: Path
    data: str | Path | None = None
    title_column: str | None = None
    attribute_column: str | None = None
    attribute_separator: str | None = None
    backbone: Path | None = None
    seed: int = 0
    encoder: str | None = None
    backbone_options: BackboneOptions = field(default_factory=BackboneOptions)
    generator: GeneratorOptions = field(default_factory=GeneratorOptions)
    paper_generator: GeneratorOptions = field(default_factory=GeneratorOptions.paper)
    progress: bool = True


@dataclass(frozen=True)
class Example:
    """One user's top titles under one request."""

    request: str | None
    titles: list[str]


@dataclass(frozen=True)
class DemoResult:
    """What the demo found.

    Attributes:
        output: Folder with the adapter, the backbone, ``results.json`` and the picture.
        rows: Method → metrics of :func:`evaluate`, with ``seconds`` of training.
        examples: One user's titles: no request, three requests, after unloading.
        restored: Whether the scores after unloading equal those before injection, bit for bit.
        shares: Attribute → share of the top ten with no request, asked for, asked against.
    """

    output: Path
    rows: dict[str, dict[str, float]]
    examples: list[Example]
    restored: bool
    shares: dict[str, tuple[float, float, float]]


class _Run:
    """One run of the demo; each method is one step of it."""

    def __init__(self, options: DemoOptions, say: Callable[[str], None]) -> None:
        self.options = options
        self.say = say
        self.rows: dict[str, dict[str, float]] = {}
        self._encoder: RequestEncoder | None = None

    def load(self) -> tuple[Catalogue, Split]:
        options = self.options
        self.say("reading the data" if options.data else "fetching MovieLens-100k")
        catalogue, interactions = load_dataset(
            options.data or "movielens-100k",
            title_column=options.title_column,
            attribute_column=options.attribute_column,
            attribute_separator=options.attribute_separator,
        )
        dropped = (
            f", {interactions.dropped_users} users with fewer than 3 items left out"
            if interactions.dropped_users
            else ""
        )
        self.say(f"{len(interactions)} users, {len(catalogue)} items, {len(catalogue.attributes)} attributes{dropped}")
        split = leave_one_out(interactions)
        _check_usable(catalogue, split)
        return catalogue, split

    def backbone(self, catalogue: Catalogue, split: Split) -> tuple[SASRec, float]:
        options = self.options
        start = time.perf_counter()
        if options.backbone is not None:
            self.say(f"loading the backbone from {options.backbone}")
            model = load_backbone(options.backbone, catalogue)
        else:
            self.say("training the backbone, SASRec")
            model = train_sasrec(catalogue, split, options.backbone_options, options.seed, options.progress)
        save_backbone(model, options.output)
        return model, time.perf_counter() - start

    def encoder(self, model: SASRec, catalogue: Catalogue) -> RequestEncoder:
        """One for all methods; its cache is kept."""
        if self._encoder is None:
            self._encoder = request_encoder(self.options.encoder, catalogue, model)
        return self._encoder

    def generator(
        self, model: SASRec, name: str, config: RequestMaskConfig, catalogue: Catalogue, split: Split
    ) -> tuple[RequestMaskModel, float]:
        start = time.perf_counter()
        torch.manual_seed(self.options.seed)
        masks = inject_request_masks(model, config_for(model, config), encoder=self.encoder(model, catalogue))
        parameters = sum(p.numel() for p in masks.generator.parameters())
        self.say(f"training the generator of {name} ({parameters:,} parameters)")
        options = self.options.generator if name == OURS else self.options.paper_generator
        train_generator(masks, catalogue, split, options, self.options.seed, self.options.progress)
        return masks, time.perf_counter() - start


def run_demo(options: DemoOptions, say: Callable[[str], None] = print) -> DemoResult:
    """Run the demo; see the documentation's "The demo" for what it does.

    Args:
        options: What to run.
        say: Called with a line for each step.

    Raises:
        DataError: If the data or the given backbone cannot be used.
        DownloadError: If MovieLens-100k cannot be fetched.
    """
    options.output.mkdir(parents=True, exist_ok=True)  # before the training: fail early
    run = _Run(options, say)
    catalogue, split = run.load()
    model, backbone_seconds = run.backbone(catalogue, split)
    users = EvaluationUsers.of(catalogue, split, "test", model.max_length)
    tracks = make_tracks(users, RequestGenerator(catalogue.attributes, TEST_TEMPLATES), seed=options.seed)
    frozen = score_histories(model, users.item_ids)

    def measure(name: str, scorer: Scorer, seconds: float) -> None:
        say(f"evaluating {name}")
        run.rows[name] = {**evaluate(scorer, users, tracks, frozen), "seconds": seconds}

    measure(FROZEN, lambda item_ids, _: model(item_ids), backbone_seconds)
    paper, seconds = run.generator(model, PAPER, RequestMaskConfig.paper(), catalogue, split)
    measure(PAPER, _scorer(paper), seconds)
    paper.unload()
    masks, seconds = run.generator(model, OURS, RequestMaskConfig(), catalogue, split)
    measure(OURS, _scorer(masks), seconds)
    fusion, seconds = _tuned_fusion(masks, catalogue, split, options.seed)
    measure(FUSION, fusion, seconds)
    RequestRecommender(masks, catalogue).save(options.output)
    shares = attribute_shares(masks, users)
    user = int(users.seen.sum(1).sort().indices[len(users.seen) // 2])  # the median user by length of history
    examples = _examples(RequestRecommender(masks, catalogue), split.history("test")[user].tolist())
    masks.unload()
    after = score_histories(model, users.item_ids)
    examples.append(Example(None, _titles(catalogue, top_items(after, users.seen, 5)[user])))
    result = DemoResult(options.output, run.rows, examples, torch.equal(after, frozen), shares)
    _write_results(result, options)
    return result


def _check_usable(catalogue: Catalogue, split: Split) -> None:
    """Say before the training what the evaluation would fail on."""
    RequestGenerator(catalogue.attributes, TEST_TEMPLATES)
    longest = max(len(history) for history in split.history("test"))
    if len(catalogue) - longest < 10:
        raise DataError(
            f"a history holds {longest} of the {len(catalogue)} items: fewer than 10 are left to recommend. "
            "Give a larger catalogue or shorter histories."
        )


def attribute_shares(
    masks: RequestMaskModel, users: EvaluationUsers, sample: int = 200
) -> dict[str, tuple[float, float, float]]:
    """Each attribute's share of the top ten: without a request, asked for, asked against.

    Users ask in turn in all the wordings of the test, so that a sentence that is misread weighs what it weighs there.

    Args:
        masks: The adapted backbone.
        users: Whom to ask for; the first ``sample`` of them.
        sample: Number of users.
    """
    item_ids, seen = users.item_ids[:sample], users.seen[:sample]

    def top(texts: Sequence[str | None]) -> Tensor:
        with torch.no_grad():
            return top_items(masks(item_ids, request=list(texts)), seen)

    def asked(family: str, **named: str) -> list[str | None]:
        templates = TEST_TEMPLATES[family]
        return [templates[user % len(templates)].format(**named) for user in range(len(item_ids))]

    def mean_share(flags: Tensor, items: Tensor) -> float:
        return float(share(items, flags.expand(len(items), -1)).mean())

    frozen, shares = top([None] * len(item_ids)), {}
    for index, name in enumerate(users.catalogue.attributes):
        flags = users.catalogue.item_attributes[:, index]
        wanted, unwanted = asked("for", wanted=phrase(name)), asked("against", unwanted=phrase(name))
        shares[name] = (mean_share(flags, frozen), mean_share(flags, top(wanted)), mean_share(flags, top(unwanted)))
    return shares


def _scorer(masks: RequestMaskModel) -> Scorer:
    def score(item_ids: Tensor, requests: Sequence[str | None]) -> Tensor:
        scores: Tensor = masks(item_ids, request=list(requests))
        return scores

    return score


def _tuned_fusion(masks: RequestMaskModel, catalogue: Catalogue, split: Split, seed: int) -> tuple[TextFusion, float]:
    start = time.perf_counter()
    # Without a request the masks are the frozen model.
    fusion = TextFusion(masks, text_encoder(masks.encoder()), catalogue)
    users = EvaluationUsers.of(catalogue, split, "validation", int(masks.model.max_length))  # type: ignore[arg-type]
    fusion.tune(users, make_tracks(users, RequestGenerator(catalogue.attributes, TRAIN_TEMPLATES), seed))
    return fusion, time.perf_counter() - start


def _examples(recommender: RequestRecommender, history: list[int]) -> list[Example]:
    """A user's top five without a request and under three requests of opposite kinds."""
    catalogue = recommender.catalogue
    counts = catalogue.item_attributes[history].sum(0)
    most, least = (phrase(catalogue.attributes[int(index)]) for index in (counts.argmax(), counts.argmin()))
    texts = [
        f"How about a little {least}?",
        f"Spare me the {most}",
        f"Bring on the {least} and spare me the {most}",
    ]
    answers: list[tuple[str | None, Answer]] = [(None, recommender.recommend(history, None, k=5))]
    answers += [(text, recommender.recommend(history, text, k=5)) for text in texts]
    return [Example(text, [_title(catalogue, item) for item in answer.items]) for text, answer in answers]


def _titles(catalogue: Catalogue, items: Tensor) -> list[str]:
    return [_title(catalogue, item) for item in items.tolist()]


def _title(catalogue: Catalogue, item: int) -> str:
    return f"{catalogue.titles[item]} ({', '.join(catalogue.attribute_names(item))})"


def _write_results(result: DemoResult, options: DemoOptions) -> None:
    settings: dict[str, Any] = dataclasses.asdict(options)
    for name in ("output", "data", "backbone"):
        settings[name] = None if settings[name] is None else Path(settings[name]).name  # no machine's paths
    write_json(
        result.output / "results.json",
        {
            "options": settings,
            "versions": versions(),
            "metrics": result.rows,
            "examples": [dataclasses.asdict(example) for example in result.examples],
            "restored_bit_for_bit": result.restored,
            "attribute_shares": {name: list(values) for name, values in result.shares.items()},
        },
    )
