"""The vectors of many texts, encoded once for all methods and seeds and kept in the folder of the results."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from cramer_peft.encoders import RequestEncoder
from cramer_peft.errors import AdapterFileError
from cramer_peft.storage import read_safetensors, write_safetensors

_FOLDER = "vectors"
_TOGETHER = 256  # texts encoded at a time
_KEY = "vectors"


class StoredVectors:
    """An encoder that looks most texts up; others go to the encoder behind it.

    Args:
        encoder: The encoder.
        texts: The texts to look up, distinct.
        vectors: Their vectors, (texts, dim), in any precision.
    """

    def __init__(self, encoder: RequestEncoder, texts: Sequence[str], vectors: Tensor) -> None:
        self.name, self.dim = encoder.name, encoder.dim
        self._encoder, self._vectors = encoder, vectors
        self._places = {text: place for place, text in enumerate(texts)}

    def encode(self, texts: Sequence[str]) -> Tensor:
        """Return the vectors of ``texts``, (texts, dim) float32."""
        found = torch.empty(len(texts), self.dim)
        unknown = [row for row, text in enumerate(texts) if text not in self._places]
        known = [row for row, text in enumerate(texts) if text in self._places]
        found[known] = self._vectors[[self._places[texts[row]] for row in known]].float()
        if unknown:
            found[unknown] = self._encoder.encode([texts[row] for row in unknown]).float().cpu()
        return found


def stored_vectors(encoder: RequestEncoder, texts: Sequence[str], output: Path, label: str) -> StoredVectors:
    """Return an encoder that looks ``texts`` up in a file of the results, which is written first if it is missing.

    Args:
        encoder: The encoder; equal labels stand for equal ones.
        texts: The texts.
        output: Folder of the results.
        label: Name of the encoder, with its weights if it has any of its own.
    """
    distinct = sorted(set(texts))
    digest = hashlib.sha256("\0".join([label, *distinct]).encode()).hexdigest()[:16]
    path = output / _FOLDER / f"{digest}.safetensors"
    try:
        vectors = read_safetensors(path)[0][_KEY]
    except (AdapterFileError, KeyError):
        batches = range(0, len(distinct), _TOGETHER)
        by_length = sorted(distinct, key=len)  # texts of like lengths need little padding
        rows = torch.cat([encoder.encode(by_length[at : at + _TOGETHER]).half().cpu() for at in batches])
        places = {text: place for place, text in enumerate(by_length)}
        vectors = rows[[places[text] for text in distinct]]
        path.parent.mkdir(parents=True, exist_ok=True)
        write_safetensors(path, {_KEY: vectors}, {"encoder": label})
    return StoredVectors(encoder, distinct, vectors)
