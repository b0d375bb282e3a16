"""A small synthetic data set with structure to learn, and models of it, as fixtures."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cramer_peft import RequestMaskConfig, RequestMaskModel, inject_request_masks
from cramer_peft.recsys.backbones import SASRec, make_backbone, save_backbone
from cramer_peft.recsys.data.catalogue import Catalogue
from cramer_peft.recsys.data.datasets import load_dataset
from cramer_peft.recsys.data.splits import Split, leave_one_out
from cramer_peft.recsys.evaluation.tracks import Track, mixed_tracks
from cramer_peft.recsys.evaluation.users import EvaluationUsers, Scorer, batched_scores
from cramer_peft.recsys.masks import mask_backbone
from cramer_peft.recsys.recommender import RequestRecommender
from cramer_peft.recsys.requests.attribute_requests import AttributeRequest, RequestGenerator
from cramer_peft.recsys.requests.request_encoders import request_encoder
from cramer_peft.recsys.requests.wordings import TEST_TEMPLATES
from cramer_peft.recsys.training.backbone_training import BackboneOptions, train_backbone
from cramer_peft.recsys.training.recommender_training import TrainOptions, train_recommender
from cramer_peft.recsys.training.request_batches import GeneratorOptions

GENRES = ("Action", "Comedy", "Drama", "Horror")
HASHING: dict[str, Any] = {"encoder": "hashing", "encoder_options": {"dim": 16}}
ITEMS, USERS = 40, 30
LENGTH = 8  # shorter than some histories, so that these are cut


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 items of four genres, every other of them "Classic" too; each user has a genre of their own."""
    pytest.importorskip("pandas")
    path = tmp_path_factory.mktemp("atomic")
    lines = ["item_id:token\ttitle:token_seq\tgenres:token_seq"]
    for item in range(ITEMS):
        classic = " Classic" if item // 4 % 2 else ""
        lines.append(f"i{item}\t{GENRES[item % 4]} tale {item}\t{GENRES[item % 4]}{classic}")
    (path / "tales.item").write_text("\n".join(lines) + "\n")
    rng = random.Random(0)
    lines = ["user_id:token\titem_id:token\ttimestamp:float"]
    for user in range(USERS):
        seen: list[int] = []
        while len(seen) < 6 + user % 7:
            unseen = [item for item in range(ITEMS) if item not in seen]
            seen += rng.choices(unseen, [20 if item % 4 == user % 4 else 1 for item in unseen])
        lines += [f"u{user}\ti{item}\t{time}" for time, item in enumerate(seen)]
    (path / "tales.inter").write_text("\n".join(lines) + "\n")
    return path


def _later(line: str) -> str:
    """A line with a time at which no other user does anything: the data's own times are positions."""
    user, item, time = line.split("\t")
    return f"{user}\t{item}\t{100 * int(time) + int(user[1:])}"


@pytest.fixture(scope="session")
def stated(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same data with requests at every other interaction of the first ten users."""
    path = tmp_path_factory.mktemp("stated")
    (path / "x.item").write_text((folder / "tales.item").read_text())
    header, *lines = (folder / "tales.inter").read_text().splitlines()
    asked = [
        f"wish {number}" if int(line.split("\t")[0][1:]) < 10 and number % 2 else " "
        for number, line in enumerate(lines)
    ]
    rows = [f"{_later(line)}\t{text}" for line, text in zip(lines, asked, strict=True)]
    (path / "x.inter").write_text("\n".join([header + "\trequest:token_seq", *rows]) + "\n")
    return path


@pytest.fixture(scope="session")
def trained(stated: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recommender that was trained on the data with requests."""
    pytest.importorskip("accelerate")
    output = tmp_path_factory.mktemp("trained") / "out"
    options = TrainOptions(
        str(stated), output, config=HASHING, epochs=1, generator=GeneratorOptions(steps=2, batch_size=4), progress=False
    )
    train_recommender(options, say=lambda _: None)
    return output


@pytest.fixture(scope="session")
def data(folder: Path) -> tuple[Catalogue, Split]:
    catalogue, interactions = load_dataset(folder)
    return catalogue, leave_one_out(interactions)


@pytest.fixture(scope="session")
def catalogue(data: tuple[Catalogue, Split]) -> Catalogue:
    return data[0]


@pytest.fixture(scope="session")
def split(data: tuple[Catalogue, Split]) -> Split:
    return data[1]


@pytest.fixture(scope="session")
def users(catalogue: Catalogue, split: Split) -> EvaluationUsers:
    return EvaluationUsers.of(catalogue, split, "test", LENGTH)


@pytest.fixture(scope="session")
def tracks(users: EvaluationUsers) -> dict[str, Track]:
    return mixed_tracks(users, RequestGenerator(users.catalogue.attributes, TEST_TEMPLATES), seed=0)


@pytest.fixture(scope="session")
def score_users(users: EvaluationUsers) -> Callable[[Scorer, Sequence[AttributeRequest]], Tensor]:
    """Scores all users of the test stage, each under their own request, (users, items)."""

    @torch.no_grad()
    def score(scorer: Scorer, requests: Sequence[AttributeRequest]) -> Tensor:
        return batched_scores(scorer, users.item_ids, [request.text for request in requests])

    return score


@pytest.fixture(scope="session")
def plain_scorers() -> Callable[[int], tuple[Scorer, Scorer]]:
    """Makes a model and a method of whole numbers for so many items: every version of torch scores alike."""

    def make(items: int) -> tuple[Scorer, Scorer]:
        weights = ((torch.arange((items + 1) * items).double().reshape(items + 1, items) * 7919 + 13) % 1009) / 1009
        wishes = ((torch.arange(items).double() * 31) % 17) / 17

        def frozen(item_ids: Tensor, texts: Sequence[str | None]) -> Tensor:
            return weights[item_ids].sum(1).float()

        def adapted(item_ids: Tensor, texts: Sequence[str | None]) -> Tensor:
            lengths = torch.tensor([float(len((text or "").strip())) for text in texts]).double()
            return (weights[item_ids].sum(1) + wishes * lengths[:, None]).float()

        return frozen, adapted

    return make


@pytest.fixture(scope="session")
def make_untrained() -> Callable[[str], Any]:
    """Makes an untrained backbone by name, for 40 items, in eval mode; large weights keep its scores apart."""

    def make(name: str) -> Any:
        if name == "replay-sasrec":
            pytest.importorskip("replay", reason="needs replay-rec[torch]")
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = make_backbone(name, ITEMS, max_length=LENGTH, hidden_size=16, dropout=0.1)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(3 if parameter.dim() > 1 else 1)
        return model.eval().requires_grad_(False)

    return make


@pytest.fixture
def item_ids() -> Tensor:
    """Histories of 8, 3 and 1 items."""
    rows = torch.randint(1, ITEMS + 1, (3, LENGTH), generator=torch.Generator().manual_seed(0))
    rows[1, 3:] = rows[2, 1:] = 0
    return rows


@pytest.fixture(scope="session")
def make_sasrec() -> Callable[..., SASRec]:
    """Makes an untrained SASRec in eval mode, with equal weights for equal arguments."""

    def make(seed: int = 0, num_items: int = ITEMS, **options: Any) -> SASRec:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return SASRec(SASRec.configure(num_items, **{"max_length": LENGTH, "hidden_size": 16, **options})).eval()

    return make


@pytest.fixture(scope="session")
def sasrec_options() -> BackboneOptions:
    return BackboneOptions(epochs=6, learning_rate=5e-3, batch_size=8, patience=6, dropout=0.1, max_length=LENGTH)


@pytest.fixture(scope="session")
def one_epoch() -> BackboneOptions:
    return BackboneOptions(epochs=1, batch_size=16, max_length=LENGTH)


@pytest.fixture(scope="session")
def two_epochs() -> BackboneOptions:
    return BackboneOptions(epochs=2, batch_size=8, max_length=LENGTH, dropout=0.1)


@pytest.fixture(scope="session")
def few_steps() -> GeneratorOptions:
    return GeneratorOptions(steps=3, batch_size=8)


@pytest.fixture(scope="session")
def _sasrec_state(data: tuple[Catalogue, Split], sasrec_options: BackboneOptions) -> dict[str, Tensor]:
    pytest.importorskip("accelerate")
    return train_backbone("sasrec", *data, sasrec_options, seed=0, progress=False).state_dict()


@pytest.fixture
def sasrec(make_sasrec: Callable[..., SASRec], _sasrec_state: dict[str, Tensor]) -> SASRec:
    """A SASRec trained on the synthetic data, fresh for each test."""
    return _filled(make_sasrec, _sasrec_state)


def _filled(make_sasrec: Callable[..., SASRec], state: dict[str, Tensor]) -> SASRec:
    model = make_sasrec(hidden_size=64)
    model.load_state_dict(state)
    return model


@pytest.fixture(scope="session")
def hashing() -> Callable[..., RequestMaskConfig]:
    """Makes a configuration with the hashing encoder; it does not follow the defaults of the others."""
    fixed = {"gate": "low_rank", "rank": 4, "generator_width": None, "normalize_requests": True}

    def make(**options: Any) -> RequestMaskConfig:
        return RequestMaskConfig(**{**fixed, "encoder": "hashing", "encoder_options": {"dim": 32}, **options})

    return make


@pytest.fixture
def masks(sasrec: SASRec, hashing: Callable[..., RequestMaskConfig]) -> RequestMaskModel:
    """The trained SASRec under random masks."""
    return inject_request_masks(sasrec, hashing(init_weights=False))


@pytest.fixture
def untrained_masks(
    make_sasrec: Callable[..., SASRec], catalogue: Catalogue, hashing: Callable[..., RequestMaskConfig]
) -> RequestMaskModel:
    """An untrained SASRec under random masks, of the kind that suits it."""
    return mask_backbone(make_sasrec(), catalogue, hashing(init_weights=False))


@pytest.fixture
def taught(sasrec: SASRec, data: tuple[Catalogue, Split]) -> RequestMaskModel:
    """Masks with the encoder that knows the catalogue, as the commands make them."""
    pytest.importorskip("wordllama")
    return mask_backbone(sasrec, data[0], RequestMaskConfig(), request_encoder(None, data[0], sasrec))


@pytest.fixture
def bundle(
    make_sasrec: Callable[..., SASRec],
    _sasrec_state: dict[str, Tensor],
    catalogue: Catalogue,
    hashing: Callable[..., RequestMaskConfig],
    tmp_path: Path,
) -> Path:
    """A recommender's folder: the trained SASRec, random masks, the catalogue."""
    model = _filled(make_sasrec, _sasrec_state)
    save_backbone(model, tmp_path / "bundle")
    masks = inject_request_masks(model, hashing(init_weights=False))
    RequestRecommender(masks, catalogue).save(tmp_path / "bundle")
    return tmp_path / "bundle"
