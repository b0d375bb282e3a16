import builtins
import importlib
import logging
import sys
from typing import Any

import pytest
import torch

from cramer_peft import RequestMaskConfig, WordLlamaEncoder, inject_request_masks
from cramer_peft.errors import MissingExtraError, require


def test_vectors_and_offline() -> None:
    pytest.importorskip("wordllama")
    encoder = WordLlamaEncoder()
    vectors = encoder.encode(["more horror", "something funny", "more horror films"])
    assert vectors.shape == (3, encoder.dim) == (3, 256)
    assert vectors.dtype == torch.float32
    similarity = torch.nn.functional.cosine_similarity(vectors[:1], vectors[1:])
    assert similarity[1] > similarity[0]


def test_vectors_are_the_packages_own() -> None:
    pytest.importorskip("wordllama")
    encoder = WordLlamaEncoder()
    texts = [
        "a film",
        "",
        "  ",
        "no",
        "ünïcode ☃ 東京",
        "long " * 300,
        *(f"film number {i}, not {i * i}" for i in range(90)),
    ]
    with torch.inference_mode():
        assert torch.equal(encoder.encode(texts), torch.from_numpy(encoder._model.embed(texts)))
    assert encoder.encode([]).shape == (0, 256)
    assert torch.equal(encoder.encode([""]), torch.from_numpy(encoder._model.embed([""])))


def test_importing_it_leaves_the_root_logger_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wordllama")
    before = list(logging.root.handlers), logging.root.level
    WordLlamaEncoder()
    assert (logging.root.handlers, logging.root.level) == before


def test_without_the_package_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch, model, snapshot) -> None:
    monkeypatch.setitem(sys.modules, "wordllama", None)
    before = snapshot(model)
    with pytest.raises(MissingExtraError, match=r"pip install 'cramer-peft\[wordllama\]'") as caught:
        inject_request_masks(model, RequestMaskConfig(target_modules=["up"]))
    assert isinstance(caught.value, ImportError)
    assert before.differences(model) == []


def test_a_missing_dependency_of_an_extra_keeps_its_own_error(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.import_module

    def fake(name: str, *args: Any) -> Any:
        if name == "wordllama":
            raise ModuleNotFoundError("No module named 'toml'", name="toml")
        return real(name, *args)

    monkeypatch.setattr(importlib, "import_module", fake)
    with pytest.raises(ModuleNotFoundError, match="toml") as caught:
        require("wordllama", extra="wordllama")
    assert not isinstance(caught.value, MissingExtraError)


def test_require_returns_the_module() -> None:
    assert require("builtins", extra="none") is builtins
