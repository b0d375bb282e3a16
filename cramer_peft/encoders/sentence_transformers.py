"""Encoders from Sentence Transformers, with their own pooling, normalisation and prompts."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from cramer_peft.encoders.bars import no_file_bars
from cramer_peft.encoders.model_folder import check_model_folder, local_folder
from cramer_peft.encoders.module_encoder import ModuleEncoder
from cramer_peft.errors import EncoderError, require

MODULES = ("Transformer", "Pooling", "Normalize", "Dense")
_ACTIVATIONS = ("torch.nn.modules.activation.", "torch.nn.modules.linear.Identity")
_FILES = ["*.json", "*.txt", "*.model", "*.safetensors"]  # no weights in pickles, no code
_TOKENIZER_LOCK = threading.Lock()


class SentenceTransformersEncoder(ModuleEncoder):
    """Encodes texts by a saved Sentence Transformers model (extra ``sentence-transformers``).

    The model's files are checked before anything is loaded: of its modules only Transformer, Pooling, Normalize and
    Dense are accepted, weights come from safetensors, and code beside the model is never run.

    Args:
        model_name_or_path: A folder that ``SentenceTransformer.save_pretrained`` wrote, or a name on the hub.
        revision: Revision on the hub.
        local_files_only: True to refuse the network, False to download.
        prompt: Text to put before each text.
        prompt_name: One of the model's own prompts, in place of ``prompt``. None: its default prompt, if it has one.
        truncate_dim: Keep this many of the first features.
        normalize_embeddings: True to scale the vectors to length 1, after truncation.
        batch_size: Texts per forward pass.
        device: Device to run on, for example ``"cuda"``.
    """

    name = "sentence-transformers"

    def __init__(
        self,
        model_name_or_path: str | os.PathLike[str],
        revision: str | None = None,
        local_files_only: bool = True,
        prompt: str | None = None,
        prompt_name: str | None = None,
        truncate_dim: int | None = None,
        normalize_embeddings: bool = False,
        batch_size: int = 64,
        device: str = "cpu",
    ) -> None:
        package = require("sentence_transformers", extra="sentence-transformers")
        model_name_or_path = os.fspath(model_name_or_path)
        folder = _folder(model_name_or_path, revision, local_files_only)
        _check_files(folder, model_name_or_path)
        try:
            with no_file_bars():
                self._model: Any = package.SentenceTransformer(
                    str(folder),
                    device=device,
                    trust_remote_code=False,
                    local_files_only=True,  # what may be downloaded is there by now
                    model_kwargs={"use_safetensors": True},
                )
        except Exception as error:  # transformers raises anything over files that it does not expect
            raise EncoderError(f"cannot load the request encoder {model_name_or_path!r}: {error}.") from error
        self.module: nn.Module = self._model.eval().requires_grad_(False)
        self._prompt = _prompt(self._model, prompt, prompt_name)
        self._truncate_dim, self._normalize = truncate_dim, normalize_embeddings
        self._batch_size, self._device = batch_size, device
        width = int(self._model.get_embedding_dimension())
        if truncate_dim is not None and not 1 <= truncate_dim <= width:
            raise EncoderError(f"truncate_dim is {truncate_dim!r}; {model_name_or_path!r} is {width} wide.")
        self.dim = truncate_dim or width

    def _encode_batch(self, texts: Sequence[str], run: Callable[..., Any]) -> Tensor:
        with _TOKENIZER_LOCK:  # a fast tokenizer keeps its padding as state
            features = self._model.preprocess(list(texts), prompt=self._prompt)
        features = {key: v.to(self._device) if isinstance(v, Tensor) else v for key, v in features.items()}
        vectors: Tensor = run(features)["sentence_embedding"].float()[:, : self._truncate_dim]
        return nn.functional.normalize(vectors, dim=-1) if self._normalize else vectors


def _folder(name: str, revision: str | None, local_files_only: bool) -> Path:
    if local_files_only or Path(name).is_dir():
        return local_folder(name, revision, "modules.json")
    from huggingface_hub import snapshot_download

    try:
        found = snapshot_download(name, revision=revision, allow_patterns=_FILES)
    except (OSError, ValueError) as error:
        raise EncoderError(f"cannot load the request encoder {name!r}: {error}. Give a folder.") from error
    return Path(found)


def _check_files(folder: Path, name: str) -> None:
    try:
        modules = json.loads((folder / "modules.json").read_text(encoding="utf-8"))
        entries = [(str(entry["type"]), str(entry["path"])) for entry in modules]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise EncoderError(
            f"{name!r} has no readable modules.json ({error}): save it by SentenceTransformer.save_pretrained, or use "
            "encoder='transformers' for a plain model."
        ) from error
    for kind, path in entries:
        parts = kind.split(".")
        if parts[0] != "sentence_transformers" or parts[-1] not in MODULES:
            raise EncoderError(
                f"{name!r} is made of {kind!r}; the request encoder 'sentence-transformers' takes {MODULES} alone. "
                "Wrap the model in an encoder of your own and register it."
            )
        if ".." in Path(path).parts or Path(path).is_absolute():
            raise EncoderError(f"{name!r}: the path {path!r} in its modules.json lies outside its folder.")
        check_model_folder(folder / path, name)
        if parts[-1] == "Dense":
            _check_dense(folder / path, name)


def _check_dense(folder: Path, name: str) -> None:
    if not (folder / "model.safetensors").is_file():
        raise EncoderError(
            f"{name!r}: its Dense module {folder.name!r} has no model.safetensors; pickled weights are never opened. "
            "Load and save it again by sentence-transformers."
        )
    try:
        activation = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("activation_function", "")
    except (OSError, ValueError) as error:
        raise EncoderError(
            f"{name!r}: its Dense module {folder.name!r} has no readable config.json ({error})."
        ) from error
    if not str(activation or _ACTIVATIONS[1]).startswith(_ACTIVATIONS):
        raise EncoderError(
            f"{name!r}: its Dense module {folder.name!r} names the activation {activation!r}, which is none of "
            "torch.nn's activations; nothing else is imported by a name from a file."
        )


def _prompt(module: Any, prompt: str | None, prompt_name: str | None) -> str | None:
    if prompt is not None and prompt_name is not None:
        raise EncoderError(f"prompt={prompt!r} and prompt_name={prompt_name!r} are both given: give one of them.")
    if prompt_name is not None and prompt_name not in module.prompts:
        raise EncoderError(f"prompt_name is {prompt_name!r}; the model's prompts are {sorted(module.prompts)}.")
    if prompt is None:
        found: str | None = module.prompts.get(prompt_name or module.default_prompt_name)
        return found or None
    return prompt
