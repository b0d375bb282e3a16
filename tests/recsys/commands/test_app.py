"""The command, run in this process through ``main``, which turns errors into messages, and once for real."""

import json
import os
import random
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from cramer_peft import RequestMaskConfig, inject_request_masks
from cramer_peft.errors import DownloadError, MissingExtraError
from cramer_peft.recsys.backbones import SASRec
from cramer_peft.recsys.commands import app as cli
from cramer_peft.recsys.data.interactions import load_interactions
from cramer_peft.recsys.recommender import RequestRecommender, save_backbone

pytestmark = pytest.mark.filterwarnings("ignore:'pin_memory' argument:UserWarning")

HISTORY = "[REC] 0; Tale 4 of war; tale 8"


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
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
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
def made(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recommender's folder with random masks and the hashing encoder."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("made")
    catalogue, _ = load_interactions(folder)

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


@pytest.fixture
def copy(made: Path, tmp_path: Path) -> Path:
    """A copy of the recommender's folder, to be damaged."""
    return Path(shutil.copytree(made, tmp_path / "copy"))


# --- recommend


def test_recommend(made: Path, run: Run) -> None:
    ended = run(
        "recommend", "--adapter", made, "--history", HISTORY, "--request", "less [/bold]", "--strength", 6, "--k", 5
    )
    assert ended.code == 0, ended
    assert "Recommended under: less [/bold]" in ended.out
    loaded = RequestRecommender.load(made)
    answer = loaded.recommend([0, 4, 8], "less [/bold]", strength=6.0, k=5)
    for item in answer.items:
        assert loaded.catalogue.titles[item] in ended.out
    assert answer.came
    assert ended.out.count("new") == len(answer.came)
    assert "went: " + "; ".join(loaded.catalogue.titles[item] for item in answer.went) in ended.out
    for name, (before, after) in answer.shares.items():
        if before != after:
            assert f"{name}: {before:.0%} → {after:.0%}" in ended.out


@pytest.mark.parametrize("asked", [(), ("--request", " "), ("--request", "more war", "--strength", "0")])
def test_nothing_asked_changes_nothing(made: Path, run: Run, asked: tuple[str, ...]) -> None:
    ended = run("recommend", "--adapter", made / "adapter", "--history", HISTORY, *asked)
    assert ended.code == 0, ended
    assert "the request changed nothing in this list" in ended.out
    assert "new" not in ended.out
    titles = RequestRecommender.load(made).catalogue.titles
    assert sum(title in ended.out for title in titles) >= 10


def test_more_titles_than_there_are(made: Path, run: Run) -> None:
    ended = run("recommend", "--adapter", made, "--history", HISTORY, "--request", "more war", "--k", "500")
    assert ended.code == 0, ended
    rows = [line for line in ended.out.splitlines() if "Tale" in line or "[REC]" in line]
    assert len(rows) == 27
    assert not any("[REC] 0 " in line for line in rows)


def test_an_unknown_title_names_near_ones(made: Path, run: Run) -> None:
    message = run("recommend", "--adapter", made, "--history", "Tail 4 of wars; [REC] 0").message
    assert "No title matches 'Tail 4 of wars'. Nearest: 'Tale 4 of war'" in message


def test_an_ambiguous_title(made: Path, run: Run) -> None:
    message = run("recommend", "--adapter", made, "--history", "[rec]").message
    assert "3 titles match '[rec]'" in message
    assert "'[REC] 10'" in message  # square brackets are not markup


@pytest.mark.parametrize("history", ["", " ; ;", ";"])
def test_an_empty_history(made: Path, run: Run, history: str) -> None:
    assert "the history is empty" in run("recommend", "--adapter", made, "--history", history).message


def test_every_item_in_the_history(made: Path, run: Run) -> None:
    titles = RequestRecommender.load(made).catalogue.titles
    assert "0 unseen items" in run("recommend", "--adapter", made, "--history", ";".join(titles)).message


def test_a_missing_folder(run: Run, tmp_path: Path) -> None:
    message = run("recommend", "--adapter", tmp_path / "nowhere", "--history", "x").message
    assert f"{tmp_path / 'nowhere'} is not a recommender folder: catalogue.json is missing" in message


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("adapter/adapter_model.safetensors", "not a readable safetensors file"),
        ("adapter/adapter_config.json", "not readable JSON"),
        ("backbone/model.safetensors", "holds no readable backbone"),
        ("backbone/config.json", "holds no readable backbone"),
        ("catalogue.json", "not a JSON file"),
    ],
)
def test_a_truncated_file(copy: Path, run: Run, name: str, message: str) -> None:
    path = copy / name
    path.write_bytes(path.read_bytes()[:-30])
    assert message in run("recommend", "--adapter", copy, "--history", HISTORY).message


@pytest.mark.parametrize("name", ["adapter/adapter_model.safetensors", "adapter/adapter_config.json"])
def test_a_missing_adapter_file(copy: Path, run: Run, name: str) -> None:
    (copy / name).unlink()
    assert f"{name} does not exist" in run("recommend", "--adapter", copy, "--history", HISTORY).message


def test_an_adapter_for_another_base(copy: Path, run: Run, edit_json: Callable[..., None]) -> None:
    edit_json(copy / "adapter" / "adapter_config.json", base_fingerprint="0" * 64)
    assert "another base" in run("recommend", "--adapter", copy, "--history", HISTORY).message


def test_an_adapter_of_an_unknown_encoder(copy: Path, run: Run, edit_json: Callable[..., None]) -> None:
    edit_json(copy / "adapter" / "adapter_config.json", encoder="telepathy")
    message = run("recommend", "--adapter", copy, "--history", HISTORY, "--request", "x").message
    assert "'telepathy', which is not registered" in message


@pytest.mark.parametrize("strength", ["nan", "inf"])
def test_a_strength_that_is_no_number(made: Path, run: Run, strength: str) -> None:
    arguments = ("--adapter", made, "--history", HISTORY, "--request", "x", "--strength", strength)
    assert "finite" in run("recommend", *arguments).message


def test_usage_errors_are_typers() -> None:
    runner = CliRunner()
    for arguments in (["recommend"], ["recommend", "--adapter", "x", "--history", "y", "--k", "0"], ["fly"]):
        result = runner.invoke(cli.app, arguments)
        assert result.exit_code == 2
    for arguments in (["--help"], ["demo", "--help"], ["recommend", "--help"]):
        result = runner.invoke(cli.app, arguments)
        assert result.exit_code == 0
        assert "Usage" in result.output


# --- demo


@pytest.fixture
def demo(run: Run, folder: Path, tmp_path: Path) -> Run:
    pytest.importorskip("wordllama")

    def run_demo(*arguments: object) -> Ended:
        given = ("--output", tmp_path / "out", "--steps", 2, "--epochs", 1, *arguments)
        return run("demo", *given, *(() if "--data" in arguments else ("--data", folder)))

    return run_demo


def test_demo_then_recommend(demo: Run, run: Run, tmp_path: Path) -> None:
    ended = demo("--seed", 3)
    assert ended.code == 0, ended
    output = tmp_path / "out"
    assert sorted(entry.name for entry in output.iterdir()) == [
        "adapter",
        "attribute_shares.png",
        "backbone",
        "catalogue.json",
        "results.json",
    ]
    results = json.loads((output / "results.json").read_text())
    assert results["options"]["seed"] == 3
    assert results["options"]["generator"]["steps"] == results["options"]["paper_generator"]["steps"] == 2
    assert results["options"]["backbone_options"]["epochs"] == 1
    for part in ("frozen", "paper's gate", "ours", "text fusion", "NDCG", "(none)", "(after unloading)", "[/bold]"):
        assert part in ended.out
    assert "bit for bit" in ended.out
    assert "DIFFER" not in ended.out
    assert str(output) in ended.out.replace("\n", "")
    title = results["examples"][0]["titles"][0].rpartition(" (")[0]
    again = run("recommend", "--adapter", output, "--history", title, "--request", "more war")
    assert again.code == 0, again


def test_columns_of_the_users_choice(demo: Run) -> None:
    message = demo("--title-column", "titel").message
    assert "fields missing: titel; fields there: item_id, name, genres" in message
    assert "title_column" in message
    assert "fields missing: kind" in demo("--attribute-column", "kind").message


def test_missing_columns(demo: Run, tmp_path: Path, folder: Path) -> None:
    data = Path(shutil.copytree(folder, tmp_path / "data"))
    inter = (data / "x.inter").read_text()
    (data / "x.inter").write_text(inter.replace("timestamp:float", "when:float"))
    assert "fields missing: timestamp; fields there: user_id, item_id, when" in demo("--data", data).message
    (data / "x.inter").write_text(inter)
    (data / "x.item").write_text((data / "x.item").read_text().replace("item_id:token", "id:token"))
    assert "fields missing: item_id" in demo("--data", data).message


def test_bad_data(demo: Run, tmp_path: Path, folder: Path) -> None:
    data = Path(shutil.copytree(folder, tmp_path / "data"))
    inter, item = (data / "x.inter").read_text(), (data / "x.item").read_text()
    assert "neither a data set's name" in demo("--data", tmp_path / "absent").message
    (data / "x.inter").write_text(inter + "u0\t999\t7\n")
    assert "not in x.item: '999'" in demo("--data", data).message
    (data / "x.inter").write_text("".join(inter.splitlines(keepends=True)[:2]))
    assert "none of 1 users has 3 or more" in demo("--data", data).message
    (data / "x.inter").write_text(inter)
    (data / "x.item").write_text(item + item.splitlines()[-1] + "\n")
    assert "more than once: '29'" in demo("--data", data).message
    (data / "x.item").unlink()
    assert "expected exactly one *.item file" in demo("--data", data).message


def test_a_bad_backbone(demo: Run, tmp_path: Path, folder: Path) -> None:
    for given in (tmp_path / "absent", folder):
        assert "holds no readable backbone" in demo("--backbone", given).message
    save_backbone(SASRec(SASRec.configure(7, hidden_size=16)), tmp_path)
    assert "the backbone knows 7 items" in demo("--backbone", tmp_path / "backbone").message


def test_an_output_that_cannot_be_written(run: Run, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    message = run("demo", "--data", folder, "--output", tmp_path / "file" / "out").message
    assert "file" in message


def test_a_download_that_fails(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def cut_off() -> Path:
        raise DownloadError("the download was cut off")

    monkeypatch.setattr("cramer_peft.recsys.data.datasets.fetch_movielens_100k", cut_off)
    monkeypatch.setattr("cramer_peft.recsys.data.datasets.fetch_movielens_1m", cut_off)
    for named in ((), ("--data", "movielens-1m"), ("--data", "movielens-100k")):
        assert "the download was cut off" in run("demo", "--output", tmp_path / "out", *named).message


def test_a_missing_extra_is_named(demo: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object, **__: object) -> None:
        raise MissingExtraError("pandas is missing: pip install 'cramer-peft[demo]'.")

    monkeypatch.setattr("cramer_peft.recsys.data.atomic.require", missing)
    assert "pip install 'cramer-peft[demo]'" in demo().message


# --- the installed command


def test_the_command_itself(made: Path) -> None:
    command = Path(sys.executable).with_name("cramer-peft")
    start = [str(command)] if command.exists() else [sys.executable, "-m", "cramer_peft"]
    arguments = ["recommend", "--adapter", str(made), "--history", "Tail 4"]
    environment = {**os.environ, "COLUMNS": "40", "OMP_NUM_THREADS": "1"}
    ended = subprocess.run([*start, *arguments], check=False, capture_output=True, text=True, env=environment)
    message = Ended(ended.returncode, ended.stdout, ended.stderr).message
    assert message.startswith("No title matches 'Tail 4'. Nearest: 'Tale 4 of war'")
    assert message.count("\n") == 1  # not folded to the width of a terminal
