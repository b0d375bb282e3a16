"""The command ``cramer-peft`` run in this process, and small data with awkward titles for it."""

import random
import shutil
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from cramer_peft import RequestMaskConfig, inject_request_masks
from cramer_peft.recsys.backbones import SASRec, save_backbone
from cramer_peft.recsys.commands import app as cli
from cramer_peft.recsys.data.datasets import load_dataset
from cramer_peft.recsys.masks import mask_backbone
from cramer_peft.recsys.recommender import RequestRecommender
from cramer_peft.recsys.requests.request_encoders import request_encoder


@dataclass
class Ended:
    """How a command ended."""

    code: int
    out: str
    error: str

    @property
    def message(self) -> str:
        """The message of a command that failed as it should."""
        assert self.code == 1, self
        assert "Traceback" not in self.out + self.error
        bars, error, message = self.error.rpartition("error: ")
        assert error, self
        assert not bars or bars.endswith("\n")
        return message


Run = Callable[..., Ended]


@pytest.fixture(scope="session")
def ended() -> type[Ended]:
    return Ended


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs ``cramer-peft`` as its entry point does."""
    monkeypatch.setenv("COLUMNS", "120")

    def run_main(*arguments: object) -> Ended:
        capfd.readouterr()
        monkeypatch.setattr(sys, "argv", ["cramer-peft", *map(str, arguments)])
        with warnings.catch_warnings(), pytest.raises(SystemExit) as caught:
            cli.main()
        out, error = capfd.readouterr()
        return Ended(int(caught.value.code or 0), out, error)

    return run_main


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """30 items whose attributes are separated by "|", 12 users."""
    path = tmp_path_factory.mktemp("data")
    names = ("war", "Film-Noir", "Free to Play")
    lines = ["item_id:token\tname:str\tgenres:str"]
    for item in range(30):
        title = f"[REC] {item}" if item % 10 == 0 else f"Tale {item} of {names[item % 3].lower()}"
        title = title if item != 4 else "Tale 4 of war"
        lines.append(f"{item}\t{title}\t{names[item % 3]}" + ("|[/bold]" if item % 2 else ""))
    (path / "x.item").write_text("\n".join(lines) + "\n")
    rng = random.Random(0)
    lines = ["user_id:token\titem_id:token\ttimestamp:float"]
    for user in range(12):
        lines += [f"u{user}\t{item}\t{time}" for time, item in enumerate(rng.sample(range(30), 6))]
    (path / "x.inter").write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="module")
def made(shop: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recommender's folder with random masks and the hashing encoder."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("made")
    catalogue, _ = load_dataset(shop)

    torch.manual_seed(3)  # one of the seeds whose list the request changes
    model = SASRec(SASRec.configure(len(catalogue), hidden_size=16)).eval()
    with torch.no_grad():
        model.bert.embeddings.word_embeddings.weight.mul_(20)
    save_backbone(model, path)
    config = RequestMaskConfig(
        encoder="hashing", encoder_options={"dim": 16}, init_weights=False, gate="low_rank", strength=4.0
    )
    RequestRecommender(inject_request_masks(model, config), catalogue).save(path)
    return path


@pytest.fixture(scope="module")
def hearing(shop: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recommender's folder with random masks and the encoder that says what it hears."""
    for package in ("wordllama", "snowballstemmer"):
        pytest.importorskip(package)
    catalogue, _ = load_dataset(shop)
    torch.manual_seed(0)
    path, model = tmp_path_factory.mktemp("hearing"), SASRec(SASRec.configure(len(catalogue), hidden_size=16)).eval()
    save_backbone(model, path)
    encoder = request_encoder(None, catalogue, model, {"words": "wordllama"})
    masks = mask_backbone(model, catalogue, RequestMaskConfig(init_weights=False), encoder)
    RequestRecommender(masks, catalogue).save(path)
    return path


@pytest.fixture
def copy(made: Path, tmp_path: Path) -> Path:
    """A copy of the recommender's folder, to be damaged."""
    return Path(shutil.copytree(made, tmp_path / "copy"))
