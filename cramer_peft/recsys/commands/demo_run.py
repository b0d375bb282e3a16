"""The demo's run: train, freeze, mask, measure, show, take the masks off again; in full it compares methods, too."""

from __future__ import annotations

import dataclasses
import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cramer_peft import RequestMaskConfig, RequestMaskModel
from cramer_peft.encoders import RequestEncoder
from cramer_peft.recsys.backbones import SASRec, load_checkpoint, save_backbone
from cramer_peft.recsys.backbones.kinds import BACKBONE_FOLDER
from cramer_peft.recsys.commands.everyday import everyday_requests, shown_title
from cramer_peft.recsys.commands.followed import SHOWN_USERS, Followed, attribute_shares, followed
from cramer_peft.recsys.data.own_data import Columns, load_own_data
from cramer_peft.recsys.evaluation.batches import rows_together
from cramer_peft.recsys.evaluation.metrics import top_items
from cramer_peft.recsys.evaluation.results import mean_metrics
from cramer_peft.recsys.evaluation.text_fusion import TextFusion
from cramer_peft.recsys.evaluation.tracks import TRUTHFUL, Track, mixed_tracks
from cramer_peft.recsys.evaluation.users import BATCH, EvaluationUsers, Scorer, drawn_rows, mask_scorer, score_histories
from cramer_peft.recsys.masks import mask_backbone
from cramer_peft.recsys.reading import as_path
from cramer_peft.recsys.recommender import ADAPTER_FOLDER, CATALOGUE_FILE, RequestRecommender, keep_card
from cramer_peft.recsys.requests.attribute_requests import RequestGenerator, phrase
from cramer_peft.recsys.requests.catalogue_encoder import text_encoder
from cramer_peft.recsys.requests.heard import heard_line
from cramer_peft.recsys.requests.hearing import Parts
from cramer_peft.recsys.requests.request_encoders import describe_encoder, request_encoder
from cramer_peft.recsys.requests.wordings import TEST_TEMPLATES, TRAIN_TEMPLATES
from cramer_peft.recsys.training.backbone_training import BackboneOptions, train_backbone
from cramer_peft.recsys.training.generator_training import train_generator
from cramer_peft.recsys.training.recommender_training import STALE_WEIGHTS
from cramer_peft.recsys.training.request_batches import GeneratorOptions
from cramer_peft.recsys.training.trial import check_masks, check_output, check_seed
from cramer_peft.recsys.versions import versions
from cramer_peft.storage import new_version, write_json

FROZEN, PAPER, OURS, FUSION = "frozen", "paper's form", "ours", "text fusion"
RESULTS_FILE = "results.json"
_MEASURED_USERS = 300  # of the quick demo
_QUICK = GeneratorOptions(steps=100, batch_size=32, positions=4)  # learns most of what there is, in seconds


@dataclass(frozen=True)
class DemoOptions:
    """Options of the demo; ``docs/demo.md`` describes them.

    None stands for: MovieLens-100k, columns found by name, a SASRec to train, ``HearingEncoder``. The trainings take
    about a minute.
    """

    output: Path
    data: str | Path | None = None
    title_column: str | None = None
    attribute_column: str | None = None
    attribute_separator: str | None = None
    backbone: Path | None = None
    seed: int = 0
    encoder: str | None = None
    backbone_options: BackboneOptions = field(default_factory=lambda: BackboneOptions(epochs=8))
    generator: GeneratorOptions = _QUICK
    paper_generator: GeneratorOptions = field(default_factory=GeneratorOptions.paper)
    progress: bool = True
    full: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "output", as_path(self.output))
        if self.backbone is not None:
            object.__setattr__(self, "backbone", as_path(self.backbone))

    def in_full(self) -> DemoOptions:
        """Return the options with the usual trainings, and all methods measured."""
        return dataclasses.replace(self, full=True, backbone_options=BackboneOptions(), generator=GeneratorOptions())


@dataclass(frozen=True)
class Example:
    """One user's top titles under one request, and what was heard of it, if the encoder tells."""

    request: str | None
    titles: list[str]
    heard: str | None = None


@dataclass(frozen=True)
class DemoResult:
    """Results of the demo."""

    output: Path
    rows: dict[str, dict[str, float]]  # method → metrics of mean_metrics, and seconds of training
    everyday: list[Example]  # no request, three everyday requests, after unloading
    restored: bool  # the scores after unloading equal those before injection, bit for bit
    followed: list[Followed]  # some requests, for the picture
    shown_users: int  # in the picture
    users: int  # who are measured
    all_users: int
    examples: list[Example]  # full: no request, three requests of opposite kinds
    shares: dict[str, tuple[float, float, float]]  # full: of attributes: no request, asked for, asked against


def run_demo(options: DemoOptions, say: Callable[[str], None] = print) -> DemoResult:
    """Run the demo, and call ``say`` with a line for each step; ``docs/demo.md`` describes them.

    The new files take the place of older ones at the end: after an error the output is as it was.
    """
    check_seed(options.seed)
    check_output(options.output, (BACKBONE_FOLDER, ADAPTER_FOLDER), (CATALOGUE_FILE, RESULTS_FILE))
    with new_version(options.output, STALE_WEIGHTS) as folder:
        return _run_into(folder, options, say)


def _run_into(folder: Path, options: DemoOptions, say: Callable[[str], None]) -> DemoResult:
    run = _Run(options, folder, say)
    model, users = run.model, run.users
    before = scores_digest(model, users)
    run.measure(FROZEN, None, lambda item_ids, _: model(item_ids), run.backbone_seconds)
    if options.full:
        paper, seconds = run.masked(PAPER, RequestMaskConfig.paper(), options.paper_generator)
        run.measure(PAPER, mask_scorer(paper), mask_scorer(paper), seconds)
        paper.unload()
    masks, seconds = run.masked(OURS, RequestMaskConfig(), options.generator)
    run.measure(OURS, mask_scorer(masks), mask_scorer(masks), seconds)
    if options.full:
        fusion, seconds = run.tuned_fusion(masks)
        run.measure(FUSION, fusion, mask_scorer(masks), seconds)
    recommender = RequestRecommender(masks, run.data.catalogue)
    keep_card(options.output, folder)
    recommender.save(folder)
    say("asking it")
    shown = followed(masks, users)
    shares = attribute_shares(masks, users) if options.full else {}
    user = _usual_user(users)
    history = run.data.split.history("test")[user].tolist()
    examples = _examples(recommender, history) if options.full else []
    everyday = _everyday(recommender, history)
    masks.unload()
    restored, rows = scores_digest(model, users) == before, slice(user, user + 1)
    top = top_items(score_histories(model, users.item_ids[rows]), users.seen_by(rows), 5)[0]
    after = Example(None, [shown_title(run.data.catalogue, item) for item in top.tolist()])
    result = DemoResult(
        output=options.output,
        rows=run.rows,
        everyday=[*everyday, after],
        restored=restored,
        followed=shown,
        shown_users=min(len(users), SHOWN_USERS),
        users=len(run.measured),
        all_users=len(users),
        examples=[*examples, after] if options.full else [],
        shares=shares,
    )
    _write_results(folder, result, options)
    return result


def _usual_user(users: EvaluationUsers) -> int:
    """Return the user with the median length of history."""
    lengths = torch.tensor([len(history.unique()) for history in users.histories])
    return int(lengths.sort().indices[len(users) // 2])


class _Run:
    """The data, the backbone and the users of a run, and the steps that every method shares."""

    def __init__(self, options: DemoOptions, folder: Path, say: Callable[[str], None]) -> None:
        self.options, self.folder, self.say = options, folder, say
        self.rows: dict[str, dict[str, float]] = {}
        self.say("reading the data" if options.data else "fetching MovieLens-100k")
        columns = Columns(options.title_column, options.attribute_column, options.attribute_separator)
        self.data = load_own_data(options.data or "movielens-100k", columns=columns)
        self.say(self.data.describe())
        start = time.perf_counter()
        self._parts: Parts | None = None  # of the encoder, once they are made
        self.model = self._backbone()
        self.backbone_seconds = time.perf_counter() - start
        self.users = EvaluationUsers.of(self.data.catalogue, self.data.split, "test", self.model.max_length)
        self.measured = self.users if options.full else self._drawn()
        self._tracks = self._requests(self.measured, TEST_TEMPLATES)
        self._encoder: RequestEncoder | None = None

    def _backbone(self) -> SASRec:
        options, catalogue = self.options, self.data.catalogue
        if options.backbone is not None:
            self.say(f"loading the backbone from {options.backbone}")
            model = load_checkpoint(options.backbone, catalogue)
        else:
            paper = [(RequestMaskConfig.paper(), options.paper_generator)] if options.full else []
            for config, generator in [*paper, (RequestMaskConfig(), options.generator)]:  # fail before the training
                self._parts = check_masks(
                    "sasrec", self.data, config, options.encoder, options.backbone_options, generator
                )
            self.say("training the backbone, SASRec")
            model = train_backbone(
                "sasrec", catalogue, self.data.split, options.backbone_options, options.seed, options.progress
            )
        save_backbone(model, self.folder, catalogue)
        found: SASRec = model
        return found

    def _drawn(self) -> EvaluationUsers:
        return self.users.some(drawn_rows(len(self.users), _MEASURED_USERS, self.options.seed))

    def _requests(self, users: EvaluationUsers, templates: dict[str, tuple[str, ...]]) -> dict[str, Track]:
        requests = RequestGenerator(users.catalogue.attributes, templates)
        return mixed_tracks(users, requests, self.options.seed)

    def masked(
        self, name: str, config: RequestMaskConfig, generator: GeneratorOptions
    ) -> tuple[RequestMaskModel, float]:
        """Mask the backbone and train the generator; return it with the seconds it took."""
        start, options, data = time.perf_counter(), self.options, self.data
        torch.manual_seed(options.seed)
        if self._encoder is None:  # one for all methods, to keep its cache
            self._encoder = request_encoder(options.encoder, data.catalogue, self.model, parts=self._parts)
            self.say(describe_encoder(self._encoder))
        masks = mask_backbone(self.model, data.catalogue, config, self._encoder)
        self.say(f"training the generator of {name} ({masks.get_nb_trainable_parameters()[0]:,} parameters)")
        train_generator(masks, data.catalogue, data.split, generator, options.seed, options.progress)
        return masks, time.perf_counter() - start

    def tuned_fusion(self, masks: RequestMaskModel) -> tuple[TextFusion, float]:
        """Tune text fusion on validation users; without a request the masks are the frozen model."""
        start, catalogue = time.perf_counter(), self.data.catalogue
        fusion = TextFusion(masks, text_encoder(masks.encoder()), catalogue)
        users = EvaluationUsers.of(catalogue, self.data.split, "validation", self.model.max_length)
        truthful = self._requests(users, TRAIN_TEMPLATES)[TRUTHFUL].requests
        fusion.tune(users, [request.text for request in truthful])
        return fusion, time.perf_counter() - start

    def measure(self, name: str, scorer: Scorer | None, frozen: Scorer, seconds: float) -> None:
        """Add a method's row to the table."""
        self.say(f"measuring {name}")
        self.rows[name] = {**mean_metrics(scorer, frozen, self.measured, self._tracks), "seconds": seconds}


def scores_digest(model: nn.Module, users: EvaluationUsers) -> str:
    """Return a digest of the scores of all users, (users, items), that another bit in one of them would change."""
    digest = hashlib.sha256()
    for item_ids in users.item_ids.split(rows_together(len(users.catalogue), BATCH)):
        digest.update(score_histories(model, item_ids).cpu().numpy().tobytes())
    return digest.hexdigest()


def _examples(recommender: RequestRecommender, history: list[int]) -> list[Example]:
    """Return a user's top five without a request and under three requests of opposite kinds, in unseen wordings."""
    catalogue = recommender.catalogue
    counts = catalogue.item_attributes[history].sum(0)
    most, least = (phrase(catalogue.attributes[int(index)]) for index in (counts.argmax(), counts.argmin()))
    texts = [f"How about a little {least}?", f"Spare me the {most}", f"Bring on the {least} and spare me the {most}"]
    return [_example(recommender, history, text) for text in (None, *texts)]


def _everyday(recommender: RequestRecommender, history: list[int]) -> list[Example]:
    """Return a user's top five without a request and under three everyday requests of different kinds."""
    return [_example(recommender, history, text) for text in (None, *everyday_requests(recommender))]


def _example(recommender: RequestRecommender, history: list[int], text: str | None) -> Example:
    answer = recommender.recommend(history, text, k=5)
    heard = None if answer.heard is None else heard_line(answer.heard)
    return Example(text, [shown_title(recommender.catalogue, item) for item in answer.items], heard)


def _write_results(folder: Path, result: DemoResult, options: DemoOptions) -> None:
    settings: dict[str, Any] = dataclasses.asdict(options)
    for name in ("output", "data", "backbone"):  # names only: a file to share tells no paths of this machine
        settings[name] = None if settings[name] is None else Path(settings[name]).name
    write_json(
        folder / RESULTS_FILE,
        {
            "options": settings,
            "versions": versions(),
            "users": result.users,
            "metrics": result.rows,
            "examples": [dataclasses.asdict(example) for example in result.examples],
            "everyday": [dataclasses.asdict(example) for example in result.everyday],
            "restored_bit_for_bit": result.restored,
            "followed": [dataclasses.asdict(row) for row in result.followed],
            "attribute_shares": {name: list(values) for name, values in result.shares.items()},
        },
    )
