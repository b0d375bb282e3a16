import sys
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from cramer_peft import RequestMaskConfig, WordLlamaEncoder, inject_request_masks
from cramer_peft.encoders import make_encoder, reader
from cramer_peft.encoders.reader import (
    LONGEST,
    WEIGHTS,
    ReaderEnsemble,
    ReaderNetwork,
    Reading,
    RequestReader,
    word_buckets,
)
from cramer_peft.errors import EncoderError, MissingExtraError

NOTHING = ["hello there", "surprise me", "!?"]


@pytest.fixture(scope="module")
def encoder() -> RequestReader:
    pytest.importorskip("wordllama")
    return RequestReader()


# --- what is read


@pytest.mark.parametrize(
    ("text", "phrases"),
    [
        ("more horror", [("horror", True)]),
        ("no horror, please", [("horror", False)]),
        ("More HORROR, no comedy", [("horror", True), ("comedy", False)]),
        ("I don't want any drama", [("drama", False)]),
        *((text, []) for text in (*NOTHING, "", " \n")),
    ],
)
def test_what_is_asked(encoder: RequestReader, text: str, phrases: list[tuple[str, bool]]) -> None:
    assert encoder.read([text])[0].phrases() == phrases


def test_a_reading_is_of_words_and_marks(encoder: RequestReader) -> None:
    (found,) = encoder.read(["Sci-fi I haven't seen, OK?"])
    assert found.words == ("sci-fi", "i", "haven't", "seen", ",", "ok", "?")
    assert found.wanted.shape == found.unwanted.shape == (7,)
    assert bool(((found.wanted >= 0) & (found.unwanted >= 0) & (found.wanted + found.unwanted <= 1 + 1e-6)).all())


def test_how_a_thing_is_asked_for_does_not_depend_on_which_where_its_name_is_known(encoder: RequestReader) -> None:
    texts = ["hold the horror and bring on some comedy", "hold the spoons and bring on some qxz"]
    places = {"horror": (2, 3), "spoons": (2, 3), "comedy": (7, 8), "qxz": (7, 8)}
    first, second = encoder.read(texts, lambda words: [places[word] for word in words if word in places])
    assert torch.equal(first.wanted, second.wanted)
    assert torch.equal(first.unwanted, second.unwanted)
    assert not torch.allclose(encoder.read(texts)[0].wanted, first.wanted)


def test_runs_of_equal_marks_are_phrases() -> None:
    marks = torch.tensor([[0.1, 0.8, 0.1], [0.1, 0.8, 0.1], [0.1, 0.2, 0.7], [0.6, 0.2, 0.2], [0.3, 0.1, 0.6]])
    reading = Reading(("film", "noir", "gore", "and", "war"), marks[:, 1], marks[:, 2])
    assert reading.phrases() == [("film noir", True), ("gore", False), ("war", False)]


def test_a_text_is_read_as_alone(encoder: RequestReader, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["more horror", "", "I would really love a long evening of drama without any comedy in it", "!", "no war"]
    monkeypatch.setattr(reader, "_CACHED_WORDING_WORDS", 0)  # nothing is remembered
    alone = [encoder.read([text])[0] for text in texts]
    for batch in (reader._BATCH, 2):
        monkeypatch.setattr(reader, "_BATCH", batch)
        for found, expected in zip(encoder.read(texts), alone, strict=True):
            assert found.words == expected.words
            torch.testing.assert_close(found.wanted, expected.wanted)
            torch.testing.assert_close(found.unwanted, expected.unwanted)


def test_what_follows_the_longest_is_not_read(encoder: RequestReader) -> None:
    (found,) = encoder.read(["and " * LONGEST + "horror"])
    assert found.words == ("and",) * LONGEST


# --- what is remembered


@pytest.fixture
def fresh(encoder: RequestReader, monkeypatch: pytest.MonkeyPatch) -> RequestReader:
    """The reader with nothing remembered."""
    monkeypatch.setattr(encoder, "_known", OrderedDict())
    monkeypatch.setattr(encoder, "_known_words", 0)
    return encoder


def _last_two(words: Sequence[str]) -> list[tuple[int, int]]:
    return [(len(words) - 2, len(words))]


def test_a_wording_is_read_once(fresh: RequestReader) -> None:
    seen: list[int] = []
    hook = fresh.network.register_forward_hook(lambda _, inputs, __: seen.append(len(inputs[0])))
    texts = ["give me film noir", "give me science fiction", "no film noir", "", "give me film noir"]
    first = fresh.read(texts, _last_two)
    again = fresh.read(texts[1:], _last_two)
    whole = fresh.read(["give me film noir"])[0]  # no name is known: another wording
    hook.remove()
    assert seen == [2, 1]
    for found, expected in zip(again, first[1:], strict=True):
        assert found.words == expected.words
        assert torch.equal(found.wanted, expected.wanted)
        assert torch.equal(found.unwanted, expected.unwanted)
    assert first[1].words == ("give", "me", "science", "fiction")
    assert not torch.allclose(whole.wanted, first[0].wanted)


def test_wordings_are_not_kept_without_end(fresh: RequestReader, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "_CACHED_WORDING_WORDS", 9)
    fresh.read(["more a1 b1", "no c1"])
    fresh.read(["more a1 b1"])
    fresh.read(["less of that d1 e1"])
    assert list(fresh._known) == [("more", "a1", "b1"), ("less", "of", "that", "d1", "e1")]  # the last used
    fresh.read(["and " * 100, "horror"])
    assert list(fresh._known) == [("horror",)]
    assert fresh._known_words == 1


def test_what_is_remembered_is_nobody_elses(fresh: RequestReader) -> None:
    with torch.inference_mode():
        expected = fresh.read(["more horror"])[0].wanted.tolist()
    changed = fresh.read(["more horror"])[0].wanted
    changed.requires_grad_().sum().backward()  # it was kept outside inference mode
    changed.data.zero_()
    assert fresh.read(["more horror"])[0].wanted.tolist() == expected


# --- vectors


def test_what_is_wanted_lies_beside_what_is_unwanted(encoder: RequestReader) -> None:
    vectors = encoder.encode(["more horror", "no horror", "horror but no comedy", "no comedy"]).view(4, 2, 256)
    assert encoder.dim == 512
    assert vectors.dtype == torch.float32
    assert torch.equal(vectors[0], vectors[1].flip(0))
    assert torch.equal(vectors[0, 1], torch.zeros(256))
    torch.testing.assert_close(vectors[2], torch.stack([vectors[0, 0], vectors[3, 1]]))
    torch.testing.assert_close(vectors[2].norm(dim=-1), torch.ones(2))


def test_nothing_asked_is_zeros(encoder: RequestReader) -> None:
    assert torch.equal(encoder.encode([*NOTHING, ""]), torch.zeros(4, 512))
    assert encoder.encode([]).shape == (0, 512)


def test_nothing_asked_leaves_a_model_as_it_is(encoder: RequestReader, model: nn.Module, x: torch.Tensor) -> None:
    config = RequestMaskConfig(target_modules=["up", "down"], encoder="request-reader", init_weights=False)
    masks = inject_request_masks(model, config, encoder=encoder)
    frozen = masks(x, request=None)
    assert torch.equal(masks(x, request="surprise me"), frozen)
    found = masks(x, request=["no horror", "surprise me", "more horror"])
    assert torch.equal(found[1], frozen[1])
    assert not torch.allclose(found[[0, 2]], frozen[[0, 2]])


def test_threads_read_the_same(encoder: RequestReader, monkeypatch: pytest.MonkeyPatch, restless_threads: None) -> None:
    monkeypatch.setattr(reader, "_CACHED_WORDS", 3)  # so that the caches are emptied while others read
    monkeypatch.setattr(reader, "_CACHED_WORDING_WORDS", 4)
    texts = [f"{start} {what}" for start in ("more", "no") for what in ("horror", "comedy", "drama", "war")]
    expected = encoder.encode(texts)
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(lambda _: encoder.encode(texts), range(12)):
            assert torch.equal(found, expected)


# --- words and weights


def test_words_are_means_of_their_tokens(encoder: RequestReader) -> None:
    table, tokenizer = WordLlamaEncoder().tokens()
    assert table.shape[1] == 256
    assert table.dtype == torch.float32
    ids = tokenizer.encode("spaceships", add_special_tokens=False).ids
    found = encoder.vectors(["spaceships", "the"])
    assert found.shape == (2, 256)
    torch.testing.assert_close(
        nn.functional.normalize(found[0], dim=0), nn.functional.normalize(table[ids].mean(0), dim=0)
    )
    assert encoder.vectors([]).shape == (0, 256)
    assert "▁the" in encoder.vectors.vocabulary()


def test_words_are_not_kept_without_end(encoder: RequestReader, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "_CACHED_WORDS", 10)
    for number in range(100):
        encoder.vectors([f"word{number}"])
    assert len(encoder.vectors._known) <= 12


def test_padding_does_not_matter_to_the_network() -> None:
    network = ReaderNetwork(8, 4).eval()
    vectors, lengths = torch.randn(3, 5, 8), torch.tensor([5, 2, 1])
    named, buckets = torch.rand(3, 5) < 0.3, torch.randint(9, (3, 5))
    found = network(vectors, lengths, named, buckets)
    assert found.shape == (3, 5, 3)
    for row, length in enumerate(lengths.tolist()):
        alone = network(
            *(x[row : row + 1, :length] if x.ndim > 1 else x[row : row + 1] for x in (vectors, lengths, named, buckets))
        )
        torch.testing.assert_close(alone[0], found[row, :length])


def test_what_is_known_by_name_is_not_looked_at() -> None:
    network = ReaderNetwork(8, 4).eval()
    vectors, lengths = torch.randn(2, 5, 8), torch.tensor([5, 5])
    vectors[1, [0, 2, 4]] = vectors[0, [0, 2, 4]]
    buckets = torch.tensor([[1, 2, 3, 4, 5], [1, 6, 3, 7, 5]])
    named = torch.tensor([[False, True, False, True, False]] * 2)
    first, second = network(vectors, lengths, named, buckets)
    assert torch.equal(first, second)
    for other in (
        network(vectors, lengths, ~named & False, buckets[:1].expand(2, 5)),
        network(vectors[:1].expand(2, 5, 8), lengths, ~named & False, buckets),
    ):
        assert not torch.allclose(*other)


def test_an_unknown_word_has_no_learned_vector() -> None:
    network = ReaderNetwork(8, 4).eval()
    assert word_buckets(["horror", None, "war"]).tolist()[1] == 0
    assert 0 < word_buckets(["horror"]).item() != word_buckets(["war"]).item() > 0
    assert torch.equal(word_buckets(["horror"]), word_buckets(["horror"]))
    network(
        torch.randn(1, 3, 8), torch.tensor([3]), torch.tensor([[False, False, True]]), torch.tensor([[0, 5, 6]])
    ).sum().backward()
    assert network.words.weight.grad[5].any()
    assert not network.words.weight[0].any()
    assert not network.words.weight.grad[[0, 6]].any()  # unknown, and a name


def test_several_networks_give_their_mean() -> None:
    ensemble = ReaderEnsemble(8, 4, members=3).eval()
    vectors, lengths = torch.randn(2, 5, 8), torch.tensor([5, 2])
    named, buckets = torch.tensor([[False, True, False, False, True]] * 2), torch.randint(9, (2, 5))
    found = ensemble(vectors, lengths, named, buckets)
    torch.testing.assert_close(found.sum(-1), torch.ones(2, 5))
    each = [member(vectors, lengths, named, buckets).softmax(-1) for member in ensemble.members]
    torch.testing.assert_close(found, (each[0] + each[1] + each[2]) / 3)
    assert not torch.allclose(each[0], each[1])


def test_the_weights_are_the_networks_and_frozen(encoder: RequestReader) -> None:
    stored = load_file(WEIGHTS)
    assert {name: value.shape for name, value in stored.items()} == {
        name: value.shape for name, value in ReaderEnsemble().state_dict().items()
    }
    assert all(bool(torch.isfinite(value).all()) for value in stored.values())
    assert not any(parameter.requires_grad for parameter in encoder.network.parameters())
    assert not any(module.training for module in encoder.network.modules())


def test_it_is_made_by_its_name() -> None:
    pytest.importorskip("wordllama")
    made = make_encoder("request-reader", None)
    assert isinstance(made, RequestReader)
    assert made.name == "request-reader"
    with pytest.raises(EncoderError, match="does not take the options"):
        make_encoder("request-reader", {"dim": 3})


def test_without_the_package_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wordllama", None)
    with pytest.raises(MissingExtraError, match=r"cramer-peft\[wordllama\]"):
        make_encoder("request-reader", None)
