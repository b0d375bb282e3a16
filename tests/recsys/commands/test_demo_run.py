import json
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from cramer_peft.errors import ConfigError, DataError, EncoderError
from cramer_peft.recsys.backbones import SASRec, save_backbone
from cramer_peft.recsys.commands.demo_run import (
    FROZEN,
    FUSION,
    OURS,
    PAPER,
    DemoOptions,
    DemoResult,
    run_demo,
    scores_digest,
)
from cramer_peft.recsys.commands.followed import attribute_shares, followed
from cramer_peft.recsys.data.catalogue import Catalogue
from cramer_peft.recsys.evaluation.users import EvaluationUsers
from cramer_peft.recsys.recommender import RequestRecommender
from cramer_peft.recsys.requests.attribute_requests import phrase
from cramer_peft.recsys.requests.wordings import TEST_TEMPLATES
from cramer_peft.recsys.training.backbone_training import BackboneOptions
from cramer_peft.recsys.training.request_batches import GeneratorOptions

for module in ("wordllama", "accelerate", "pandas"):
    pytest.importorskip(module)

METRICS = {"ndcg", "hr", "mrr", "satisfaction", "violation", "favourite", "overlap_empty", "overlap_blank", "seconds"}


@pytest.fixture(scope="module")
def options(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> DemoOptions:
    """Small; the windows are shorter than the histories, so that these are cut."""
    return DemoOptions(
        output=tmp_path_factory.mktemp("demo") / "new" / "out",
        data=folder,
        backbone_options=BackboneOptions(epochs=2, max_length=2),
        generator=GeneratorOptions(steps=3, batch_size=8),
        paper_generator=GeneratorOptions.paper(steps=2, batch_size=8),
        progress=False,
        full=True,
    )


@pytest.fixture(scope="module")
def said() -> list[str]:
    return []


@pytest.fixture(scope="module")
def result(options: DemoOptions, said: list[str]) -> DemoResult:
    return run_demo(options, say=said.append)


@pytest.fixture(scope="module")
def written(options: DemoOptions, result: DemoResult) -> Any:
    return json.loads((options.output / "results.json").read_text())


def leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield key
            yield from leaves(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from leaves(inner)
    else:
        yield value


def test_it_measures_every_method(result: DemoResult) -> None:
    assert list(result.rows) == [FROZEN, PAPER, OURS, FUSION]
    for row in result.rows.values():
        assert set(row) >= METRICS
        assert all(math.isfinite(value) for value in row.values())
        assert row["overlap_blank"] == 1
    assert result.rows[FROZEN]["overlap_empty"] == 1
    assert result.restored


def test_it_shows_one_user(result: DemoResult) -> None:
    assert len(result.examples) == 5
    assert all(len(example.titles) == 5 for example in result.examples)
    assert result.examples[0].request is result.examples[-1].request is None
    assert result.examples[0].titles == result.examples[-1].titles  # also where the history is cut
    assert len({example.request for example in result.examples[1:-1]}) == 3


def test_it_asks_as_people_do(result: DemoResult) -> None:
    first, *asked, after = result.everyday
    assert after.request is after.heard is None
    assert after.titles == first.titles
    assert first.request is first.heard is None
    assert first.titles == result.examples[0].titles
    assert len(asked) == 3
    for example, kind in zip(asked, ("something like", "hidden gems", "something with"), strict=True):
        assert example.request is not None
        assert example.heard is not None
        assert example.request.startswith(kind)
        assert "wanted: " in example.heard
        assert "not understood" not in example.heard
        assert len(example.titles) == 5


def test_it_says_what_it_does(result: DemoResult, said: list[str]) -> None:
    text = "\n".join(said)
    for part in (
        "reading the data",
        "30 users, 40 items, 5 attributes",
        "training the backbone",
        OURS,
        PAPER,
        FUSION,
        "their words by",
    ):
        assert part in text


def test_it_writes_a_recommender(options: DemoOptions, result: DemoResult, catalogue: Catalogue) -> None:
    assert sorted(entry.name for entry in options.output.iterdir()) == [
        "adapter",
        "backbone",
        "catalogue.json",
        "results.json",
    ]
    loaded = RequestRecommender.load(options.output)
    assert loaded.catalogue.titles == catalogue.titles
    assert loaded.masks.model.max_length == 2
    answer = loaded.recommend([1, 2, 3], "more horror")
    assert len(answer.items) == 10


def test_results_file(result: DemoResult, written: Any, options: DemoOptions) -> None:
    assert written["metrics"] == result.rows
    assert written["restored_bit_for_bit"] is True
    assert written["options"]["backbone_options"]["epochs"] == 2
    assert written["options"]["generator"]["steps"] == 3
    assert set(written["attribute_shares"]) == {"Action", "Classic", "Comedy", "Drama", "Horror"}
    assert [example["titles"] for example in written["examples"]] == [example.titles for example in result.examples]
    assert {"cramer-peft", "torch", "transformers", "peft", "python"} <= set(written["versions"])
    for leaf in leaves(written):
        assert not isinstance(leaf, float) or math.isfinite(leaf)
        assert not isinstance(leaf, str) or not Path(leaf).is_absolute(), leaf
    assert str(options.output.parent) not in json.dumps(written)


def test_a_saved_backbone_is_used_again(options: DemoOptions, result: DemoResult, tmp_path: Path) -> None:
    said: list[str] = []
    few = GeneratorOptions(steps=1, batch_size=8)
    given = replace(
        options,
        output=tmp_path,
        backbone=options.output / "backbone",
        encoder="hashing",
        generator=few,
        paper_generator=GeneratorOptions.paper(steps=1, batch_size=8),
    )
    again = run_demo(given, say=said.append)
    assert not any("training the backbone" in line for line in said)
    for name, value in again.rows[FROZEN].items():
        assert name == "seconds" or value == result.rows[FROZEN][name]
    assert again.restored
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["encoder"] == "hashing"
    assert [example.heard for example in again.everyday] == [None] * 5  # this encoder does not tell
    assert again.examples[0].titles == result.examples[0].titles
    first, second = (folder / "backbone" / "model.safetensors" for folder in (options.output, tmp_path))
    loaded = [SASRec.from_pretrained(path.parent).state_dict() for path in (first, second)]
    assert loaded[0].keys() == loaded[1].keys()
    assert all(torch.equal(value, loaded[1][name]) for name, value in loaded[0].items())


# --- what cannot work is said before anything is trained


@pytest.fixture
def untrained(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> None:
        raise AssertionError("trained although it cannot work")

    monkeypatch.setattr("cramer_peft.recsys.commands.demo_run.train_backbone", never)
    monkeypatch.setattr("cramer_peft.recsys.commands.demo_run.train_generator", never)


@pytest.mark.usefixtures("untrained")
def test_bad_backbones(options: DemoOptions, tmp_path: Path, make_sasrec: Callable[..., SASRec], folder: Path) -> None:
    options = replace(options, output=tmp_path / "out")
    for given in (tmp_path / "absent", folder):
        with pytest.raises(DataError, match="holds no readable backbone"):
            run_demo(replace(options, backbone=given), say=lambda _: None)
    save_backbone(make_sasrec(num_items=12), tmp_path)
    with pytest.raises(DataError, match="the backbone knows 12 items, the catalogue has 40"):
        run_demo(replace(options, backbone=tmp_path / "backbone"), say=lambda _: None)
    other = Catalogue(tuple(map(str, range(40))), tuple(map(str, range(40))), (), torch.zeros(40, 0, dtype=torch.bool))
    save_backbone(make_sasrec(), tmp_path, other)
    for given in (tmp_path, str(tmp_path / "backbone")):
        with pytest.raises(DataError, match="item_ids: found the digest"):
            run_demo(replace(options, backbone=given, output=str(tmp_path / "out")), say=lambda _: None)  # type: ignore[arg-type]


def write(folder: Path, items: list[str], interactions: list[tuple[str, int]]) -> Path:
    header = "item_id:token\ttitle:token_seq\tgenres:token_seq\n"
    (folder / "x.item").write_text(header + "".join(line + "\n" for line in items))
    lines = "".join(f"{user}\ti{item}\t{time}\n" for time, (user, item) in enumerate(interactions))
    (folder / "x.inter").write_text("user_id:token\titem_id:token\ttimestamp:float\n" + lines)
    return folder


@pytest.mark.usefixtures("untrained")
def test_data_without_attributes(options: DemoOptions, tmp_path: Path) -> None:
    data = write(tmp_path, [f"i{n}\ttitle\t" for n in range(30)], [("u", n) for n in range(5)])
    with pytest.raises(DataError, match="no attribute is on 5 or more items"):
        run_demo(replace(options, data=data, output=tmp_path / "out"), say=lambda _: None)


@pytest.mark.usefixtures("untrained")
def test_too_few_items_to_recommend(options: DemoOptions, tmp_path: Path) -> None:
    data = write(tmp_path, [f"i{n}\ttitle\tWar" for n in range(14)], [("u", n) for n in range(6)])
    with pytest.raises(DataError, match="a history holds 5 of the 14 items: fewer than 10 are left"):
        run_demo(replace(options, data=data, output=tmp_path / "out"), say=lambda _: None)


@pytest.mark.usefixtures("untrained")
def test_an_output_folder_that_cannot_be_made(options: DemoOptions, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"output: .*file is not a folder"):
        run_demo(replace(options, output=tmp_path / "file" / "out"), say=lambda _: None)


@pytest.mark.usefixtures("untrained")
def test_what_the_demo_can_know_first(options: DemoOptions, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(EncoderError, match="telepathy"):
        run_demo(replace(options, output=tmp_path, encoder="telepathy"), say=lambda _: None)
    with pytest.raises(ConfigError, match="seed: found -1"):
        run_demo(replace(options, output=tmp_path, seed=-1), say=lambda _: None)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


# --- the quick demo


def test_the_quick_demo_measures_some_users_and_ours_alone(options: DemoOptions, tmp_path: Path) -> None:
    usual = DemoOptions(tmp_path)
    assert (usual.full, usual.backbone_options.epochs, usual.generator.steps) == (False, 8, 100)
    in_full = usual.in_full()
    assert (in_full.full, in_full.backbone_options, in_full.generator) == (True, BackboneOptions(), GeneratorOptions())
    text: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cramer_peft.recsys.commands.demo_run._MEASURED_USERS", 7)
        quick = run_demo(replace(options, output=str(tmp_path / "out"), full=False), say=text.append)
    assert list(quick.rows) == [FROZEN, OURS]
    assert (quick.users, quick.all_users, quick.examples, quick.shares) == (7, 30, [], {})
    assert not any(PAPER in line or FUSION in line for line in text)
    assert [example.request is None for example in quick.everyday] == [True, False, False, False, True]
    assert quick.restored
    written = json.loads((tmp_path / "out" / "results.json").read_text())
    assert (written["users"], written["options"]["full"], len(written["followed"])) == (7, False, len(quick.followed))


# --- shares


def test_how_far_lists_follow(masks: Any, users: EvaluationUsers) -> None:
    rows = followed(masks, users, sample=9)
    order = users.catalogue.item_attributes.sum(0).argsort(descending=True, stable=True).tolist()
    first, second, third = (phrase(users.catalogue.attributes[place]) for place in order[:3])
    texts = [row.request for row in rows]
    assert texts[:2] == [f"something with {second}", f"something with {third}"]
    assert texts[-2:] == [f"no {first}, please", f"no {second}, please"]
    assert all(0 <= share <= 1 for row in rows for share in (row.before, row.after))
    scores = masks(users.item_ids[:9], request=texts[-2]).masked_fill(users.seen[:9], -torch.inf)
    has = users.catalogue.item_attributes[scores.topk(10).indices, order[0]].float().mean().item()
    assert rows[-2].after == pytest.approx(1 - has)
    assert rows[0].before == pytest.approx(1 - rows[-1].before)  # with and without the same attribute


def test_attribute_shares(masks: Any, users: EvaluationUsers, monkeypatch: pytest.MonkeyPatch) -> None:
    shares = attribute_shares(masks, users, sample=7)
    monkeypatch.setattr("cramer_peft.recsys.evaluation.batches.CELLS", 3 * len(users.catalogue))
    assert attribute_shares(masks, users, sample=7) == shares
    assert list(shares) == list(users.catalogue.attributes)
    assert all(0 <= value <= 1 for triple in shares.values() for value in triple)
    scores = masks(users.item_ids[:7], request=None).masked_fill(users.seen[:7], -torch.inf)
    top = scores.topk(10).indices
    for index, (plain, _, _) in enumerate(shares.values()):
        assert plain == pytest.approx(users.catalogue.item_attributes[top, index].float().mean().item())
    assert any(wanted != unwanted for _, wanted, unwanted in shares.values())  # random masks hear something
    asked = [text.format(unwanted=phrase("Drama")) for text in TEST_TEMPLATES["against"][:7]]  # one for each user
    scores = masks(users.item_ids[:7], request=asked).masked_fill(users.seen[:7], -torch.inf)
    drama = users.catalogue.item_attributes[scores.topk(10).indices, users.catalogue.attributes.index("Drama")]
    assert shares["Drama"][2] == pytest.approx(drama.float().mean().item())


def test_the_digest_is_of_every_bit(sasrec: SASRec, users: EvaluationUsers, monkeypatch: pytest.MonkeyPatch) -> None:
    before = scores_digest(sasrec, users)
    assert scores_digest(sasrec, users) == before
    weight = next(sasrec.parameters())
    with torch.no_grad():
        kept = weight.clone()
        weight.mul_(1 + 1e-6)
        assert scores_digest(sasrec, users) != before
        weight.copy_(kept)
    assert scores_digest(sasrec, users) == before
    sizes: list[int] = []
    sasrec.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    monkeypatch.setattr("cramer_peft.recsys.evaluation.batches.CELLS", 8 * len(users.catalogue))
    scores_digest(sasrec, users)
    assert sizes == [8, 8, 8, 6]
