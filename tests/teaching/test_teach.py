import random
from pathlib import Path

import pytest
import torch
from teaching import __main__ as command
from teaching.grammar import Grammar
from teaching.sentences import Marked, sentences
from teaching.teach import common_words, known_names, marked_words, marking_loss, share_read, teach

from cramer_peft.encoders import WORD, ReaderEnsemble, ReaderNetwork, WordVectors, word_buckets
from cramer_peft.recsys.requests.wordings import TRAIN_TEMPLATES
from cramer_peft.storage import read_safetensors

pytest.importorskip("wordllama")


def unknown(rows: list[Marked]) -> list[list[bool]]:
    return [[False] * len(words) for words, _ in rows]


FEW = {"for": ["more {wanted}"], "against": ["no {unwanted}"], "none": ["hello"]}


@pytest.fixture(scope="module")
def vectors() -> WordVectors:
    return WordVectors()


@pytest.fixture(scope="module")
def rows() -> list[Marked]:
    return sentences(60, FEW, Grammar(phrases=("horror", "war films")), random.Random(9), template_share=1.0, never=())


def test_teaching_lowers_the_loss_and_repeats_with_a_seed(vectors: WordVectors, rows: list[Marked]) -> None:
    settings = {"steps": 120, "count": 120, "batch_size": 8}
    torch.manual_seed(0)
    before = marking_loss(ReaderNetwork(vectors.dim).eval(), vectors, rows, unknown(rows))
    first = teach(vectors, FEW, **settings)
    torch.manual_seed(7)  # the state before does not matter
    again, other = teach(vectors, FEW, **settings), teach(vectors, FEW, **settings, seed=1)
    assert marking_loss(first, vectors, rows, unknown(rows)) < 0.5 * before
    assert share_read(first, vectors, rows) > 0.5
    assert not any(module.training for module in first.modules())
    states = [network.state_dict() for network in (first, again, other)]
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    assert not torch.equal(states[0]["inputs.weight"], states[2]["inputs.weight"])


def test_the_loss_is_cross_entropy_over_the_words_there_are(vectors: WordVectors, rows: list[Marked]) -> None:
    network = ReaderNetwork(vectors.dim).eval()
    named = [marked_words(marks) if number % 2 else [False] * len(marks) for number, (_, marks) in enumerate(rows)]
    losses = [
        torch.nn.functional.cross_entropy(
            network(
                vectors(words)[None], torch.tensor([len(words)]), torch.tensor([known]), word_buckets(words)[None]
            ).squeeze(0),
            torch.tensor(marks),
            reduction="none",
        )
        for (words, marks), known in zip(rows, named, strict=True)
    ]
    torch.testing.assert_close(marking_loss(network, vectors, rows, named), torch.cat(losses).mean())


def test_names_are_known_as_a_whole_and_mostly() -> None:
    marks, rng = (0, 1, 1, 0, 2, 0, 0), random.Random(0)
    drawn = [known_names(marks, rng) for _ in range(2000)]
    share = sum(one == marked_words(marks) for one in drawn) / 2000
    assert 0.6 < share < 0.8
    assert 0.1 < sum(not any(one) for one in drawn) / 2000 < 0.3
    assert 0.01 < sum(one[0] or one[3] or one[5] or one[6] for one in drawn) / 2000 < 0.05
    assert sum(one[1] != one[2] for one in drawn) / 2000 < 0.02  # only by the odd word
    assert known_names((1,), random.Random(1)) in ([True], [False])


def test_words_that_are_asked_about_are_never_unknown(vectors: WordVectors) -> None:
    network = ReaderNetwork(vectors.dim).eval()
    asked: list[Marked] = [(("horror", "war"), (1, 2))]
    named = [[False, False]]
    assert torch.equal(marking_loss(network, vectors, asked, named, 1.0), marking_loss(network, vectors, asked, named))
    said: list[Marked] = [(("more", "please"), (0, 0))]
    left_out, kept = marking_loss(network, vectors, said, named, 1.0), marking_loss(network, vectors, said, named)
    assert not torch.equal(left_out, kept)


def test_share_of_sentences_without_a_mistake(vectors: WordVectors) -> None:
    network = ReaderNetwork(vectors.dim).eval()
    with torch.no_grad():
        network.outputs.weight.zero_()
        network.outputs.bias.copy_(torch.tensor([0.0, 1.0, 0.0]))  # everything is wanted
    rows: list[Marked] = [(("horror",), (1,)), (("more", "horror"), (0, 1)), (("war", "films"), (1, 1))]
    assert share_read(network, vectors, rows) == pytest.approx(2 / 3)


def test_common_words_are_words_to_ask_about(vectors: WordVectors) -> None:
    words = common_words(vectors)
    assert len(words) > 3000
    assert words == sorted(set(words))
    assert {"horror", "music"} < set(words)
    assert not {"without", "nothing", "the"} & set(words)
    assert all(WORD.fullmatch(word) for word in words)


def test_the_command_writes_weights_that_the_reader_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def brief(vectors: WordVectors, templates: dict[str, list[str]], steps: int, seed: int) -> ReaderNetwork:
        seen.append((sum(map(len, templates.values())), steps, seed))
        return ReaderNetwork(vectors.dim).eval()

    monkeypatch.setattr(command, "teach", brief)
    file = tmp_path / "reader.safetensors"
    monkeypatch.setattr("sys.argv", ["teaching", str(file), "--steps", "3", "--seed", "4"])
    command.main()
    every = sum(map(len, TRAIN_TEMPLATES.values()))
    assert seen == [(every, 3, seed) for seed in (12, 13, 14)]  # each on all of them, and no seed twice
    stored = read_safetensors(file)[0]
    ReaderEnsemble().load_state_dict(stored)
    assert not torch.equal(stored["members.0.inputs.weight"], stored["members.1.inputs.weight"])


def test_without_a_file_a_fifth_is_held_out_and_scored(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    taught: list[str] = []
    scored: list[int] = []

    def brief(vectors: WordVectors, templates: dict[str, list[str]], *_: int, **__: int) -> ReaderNetwork:
        taught.extend(template for own in templates.values() for template in own)
        return ReaderNetwork(vectors.dim).eval()

    monkeypatch.setattr(command, "teach", brief)
    monkeypatch.setattr(command, "share_read", lambda network, vectors, rows, known: scored.append(len(rows)) or 0.5)
    monkeypatch.setattr("sys.argv", ["teaching"])
    command.main()
    every = [template for own in TRAIN_TEMPLATES.values() for template in own]
    assert 0.75 < len(taught) / (command.MEMBERS * len(every)) < 0.85
    assert len(set(taught)) * command.MEMBERS == len(taught)
    assert set(taught) < set(every)
    assert scored == [500] * 2 * len(TRAIN_TEMPLATES)
    assert capsys.readouterr().out.count("0.500 of sentences") == len(TRAIN_TEMPLATES)
