from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from benchmark.baselines import ListwiseReranker, RankerTask, RequestRanker
from benchmark.baselines.rerank import parse_order
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from cramer_peft.errors import CramerError, DataError, MissingModelError
from cramer_peft.recsys.evaluation.users import EvaluationUsers


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A causal language model of two layers with random weights, and a tokenizer of single characters."""
    path = tmp_path_factory.mktemp("lm")
    vocabulary = {"<unk>": 0, "<end>": 1, **{chr(code): code - 30 for code in range(32, 127)}}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="<end>").save_pretrained(path)
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=97, n_positions=2048, n_embd=16, n_layer=2, n_head=2, bos_token_id=1, eos_token_id=1)
    GPT2LMHeadModel(config).save_pretrained(path)
    return path


def test_a_model_from_disk(model_folder: Path, make_task: Callable[..., RankerTask], users: EvaluationUsers) -> None:
    task = make_task()
    before = {name: value.clone() for name, value in task.backbone.state_dict().items()}
    ranker = ListwiseReranker(model_folder, candidates=5, max_new_tokens=12)
    ranker.fit(task)
    item_ids = users.item_ids[:3]
    with torch.no_grad():
        frozen = task.backbone(item_ids)
    scores = ranker.scores(item_ids, ["I want horror", None, " "])
    assert isinstance(ranker, RequestRanker)
    assert ranker.trainable == 0
    assert torch.equal(scores[1:], frozen[1:])
    assert torch.equal(scores[0].sort().values, frozen[0].sort().values)
    assert torch.equal(scores, ranker.scores(item_ids, ["I want horror", None, " "]))
    assert all(torch.equal(value, before[name]) for name, value in task.backbone.state_dict().items())


def test_an_answer_becomes_an_order(
    model_folder: Path, make_task: Callable[..., RankerTask], users: EvaluationUsers, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, prompts = make_task(), []
    ranker = ListwiseReranker(model_folder, candidates=4, recent=2)
    ranker.fit(task)
    monkeypatch.setattr(ranker, "_answer", lambda prompt: prompts.append(prompt) or "[3] > [1]")
    item_ids = users.item_ids[:1]
    with torch.no_grad():
        frozen = task.backbone(item_ids)[0]
    scores = ranker.scores(item_ids, ["scare me"])[0]
    unseen = frozen.masked_fill(
        torch.zeros(40).bool().index_fill(0, item_ids[0][item_ids[0] > 0] - 1, True), -torch.inf
    )
    best = unseen.topk(4).indices
    reordered = best[[2, 0, 1, 3]]
    assert torch.equal(scores[reordered], frozen[best])
    others = torch.ones(40).bool().index_fill(0, best, False)
    assert torch.equal(scores[others], frozen[others])
    (prompt,) = prompts
    assert '"scare me"' in prompt
    for number, item in enumerate(best.tolist(), 1):
        assert f"[{number}] {task.catalogue.titles[item]} (" in prompt
    recent = item_ids[0][item_ids[0] > 0][-2:] - 1
    assert prompt.count("\n- ") == 2
    assert all(f"- {task.catalogue.titles[item]} (" in prompt for item in recent.tolist())


def test_a_reader_of_requests_would_be_seen(
    model_folder: Path, make_task: Callable[..., RankerTask], users: EvaluationUsers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stand-in that does as the prompt says raises what is asked for: prompt, answer and order fit together."""

    def follow(prompt: str) -> str:
        lines = [line for line in prompt.splitlines() if line.startswith("[")]
        return " > ".join(line.split()[0] for line in sorted(lines, key=lambda line: "horror" not in line.lower()))

    task = make_task()
    ranker = ListwiseReranker(model_folder, candidates=20)
    ranker.fit(task)
    monkeypatch.setattr(ranker, "_answer", follow)
    scores = ranker.scores(users.item_ids, ["I want horror"] * len(users.item_ids)).masked_fill(users.seen, -torch.inf)
    horror = task.catalogue.item_attributes[:, task.catalogue.attributes.index("Horror")]
    with torch.no_grad():
        frozen = task.backbone(users.item_ids).masked_fill(users.seen, -torch.inf)
    reachable = horror[frozen.topk(20).indices].any(1)
    assert bool((horror[scores.argmax(1)] == reachable).all())
    assert bool(reachable.float().mean() > horror[frozen.argmax(1)].float().mean() + 0.2)


def test_chat_templates_are_used(model_folder: Path, make_task: Callable[..., RankerTask]) -> None:
    ranker = ListwiseReranker(model_folder, candidates=3, max_new_tokens=2)
    ranker.fit(make_task())
    seen = []
    generate = ranker._model.generate
    ranker._model.generate = lambda **inputs: seen.append(inputs["input_ids"]) or generate(**inputs)
    ranker._answer("hi")
    ranker._tokenizer.chat_template = "<{{ messages[0]['role'] }}>{{ messages[0]['content'] }}"
    ranker._answer("hi")
    assert [ranker._tokenizer.decode(ids[0]).replace(" ", "") for ids in seen] == ["hi", "<user>hi"]


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("[2] > [1] > [3]", [1, 0, 2]),
        ("3, 1", [2, 0, 1]),
        ("<think>[3] is best, or [2]</think> [2]", [1, 0, 2]),
        ("Of the 3, I pick [2].", [1, 0, 2]),
        ("[0] [4] [99999999999999999999] [3] [3]", [2, 0, 1]),
        ("no idea", [0, 1, 2]),
        ("", [0, 1, 2]),
    ],
)
def test_orders_by_hand(answer: str, expected: list[int]) -> None:
    assert parse_order(answer, 3) == expected


@given(st.text(), st.integers(1, 12))
def test_any_answer_is_an_order(answer: str, count: int) -> None:
    assert sorted(parse_order(answer, count)) == list(range(count))


def test_a_model_that_is_not_there(tmp_path: Path, make_task: Callable[..., RankerTask]) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "nothing-known"}')
    for source in (tmp_path, tmp_path / "missing", "nobody/nothing-of-this-name"):
        with pytest.raises(MissingModelError, match="allow_download=True") as caught:
            ListwiseReranker(source).fit(make_task())
        assert isinstance(caught.value, CramerError)


def test_no_network_unless_asked(make_task: Callable[..., RankerTask], monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmark.baselines import rerank

    asked: list[bool] = []

    def refuse(*_: object, local_files_only: bool, **__: object) -> None:
        asked.append(local_files_only)
        raise OSError("stopped here")

    monkeypatch.setattr(rerank.AutoTokenizer, "from_pretrained", refuse)
    for allow in (False, True):
        with pytest.raises(MissingModelError, match="stopped here"):
            ListwiseReranker("some/model", allow_download=allow).fit(make_task())
    assert asked == [True, False]


def test_one_candidate_is_no_list() -> None:
    with pytest.raises(DataError, match="2 or more"):
        ListwiseReranker("model", candidates=1)
