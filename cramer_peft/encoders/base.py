"""What a request encoder is, how it is found by name, and the cache in front of it."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from cramer_peft.errors import EncoderError


@runtime_checkable
class RequestEncoder(Protocol):
    """Turns request texts into vectors.

    Attributes:
        name: Under which the adapter's configuration names it.
        dim: Width of its vectors.
    """

    name: str
    dim: int

    def encode(self, texts: Sequence[str]) -> Tensor:
        """Vectors of ``texts``, (texts, dim), floating point and finite."""


_FACTORIES: dict[str, Callable[..., RequestEncoder]] = {}


def register_request_encoder(name: str, factory: Callable[..., RequestEncoder]) -> None:
    """Make ``RequestMaskConfig(encoder=name, encoder_options=…)`` call ``factory(**options)``.

    Only registered names are ever resolved: nothing is imported by a name from a file.
    """
    _FACTORIES[name] = factory


def is_registered(name: str) -> bool:
    """Whether an encoder of that name can be made."""
    return name in _FACTORIES


def make_encoder(name: str, options: dict[str, Any] | None) -> RequestEncoder:
    """The registered encoder ``name`` with its options.

    Raises:
        EncoderError: If the name is not registered or the options are not its.
        MissingExtraError: If the encoder's package is not installed.
    """
    factory = _FACTORIES.get(name)
    if factory is None:
        raise EncoderError(
            f"unknown request encoder {name!r}; registered are {sorted(_FACTORIES)}. Register it by "
            "cramer_peft.register_request_encoder, or pass the encoder object as encoder=…"
        )
    try:
        encoder = factory(**(options or {}))
    except TypeError as error:
        raise EncoderError(f"request encoder {name!r} does not take the options {options!r}: {error}.") from error
    return encoder


def check_vectors(encoder: RequestEncoder, texts: Sequence[str], vectors: Tensor) -> None:
    """Check what an encoder returned; while compiling its shape alone, since a look at values breaks the graph.

    Args:
        encoder: The encoder, for its name and width.
        texts: What it was given.
        vectors: What it returned, to be (texts, dim) and finite.

    Raises:
        EncoderError: If a vector holds NaN or infinity, or the shape is another; it names the text.
    """
    expected = (len(texts), encoder.dim)
    if tuple(vectors.shape) != expected:
        raise EncoderError(
            f"request encoder {encoder.name!r} returned shape {tuple(vectors.shape)} for {len(texts)} texts "
            f"(the first: {texts[0]!r}); expected {expected}."
        )
    if torch.compiler.is_compiling():
        return
    bad = (~torch.isfinite(vectors)).any(-1).nonzero().flatten().tolist()
    if bad:
        raise EncoderError(
            f"request encoder {encoder.name!r} returned NaN or infinity for the text {texts[bad[0]]!r}. It may hold "
            "no word that the encoder knows: give None for a row without a request."
        )


class CachedEncoder:
    """Encodes each text once; checks what comes back.

    Args:
        encoder: The encoder behind it.
        capacity: Number of texts kept; the least recently used go first.

    Raises:
        EncoderError: If ``encoder`` is no encoder.
    """

    def __init__(self, encoder: RequestEncoder, capacity: int = 65_536) -> None:
        missing = [name for name in ("name", "dim", "encode") if not hasattr(encoder, name)]
        if missing:
            raise EncoderError(
                f"a request encoder has name, dim and encode(texts); found {type(encoder).__name__} without "
                f"{', '.join(missing)}."
            )
        self.encoder = encoder
        self.capacity = capacity
        self._vectors: OrderedDict[str, Tensor] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def name(self) -> str:
        return self.encoder.name

    @property
    def dim(self) -> int:
        return self.encoder.dim

    def encode(self, texts: Sequence[str]) -> Tensor:
        """Vectors of ``texts``, (texts, dim) float32, on the CPU.

        Raises:
            EncoderError: If the encoder returns NaN, infinity or another shape; it names the text.
        """
        found: dict[str, Tensor] = {}
        with self._lock:
            for text in texts:
                if text in self._vectors:
                    self._vectors.move_to_end(text)
                    found[text] = self._vectors[text]
        missing = [text for text in dict.fromkeys(texts) if text not in found]
        if missing:
            new = self._encode_new(missing)
            if len(missing) == len(texts):
                return new
            found.update(zip(missing, new, strict=True))
        return torch.stack([found[text] for text in texts]) if texts else torch.empty(0, self.dim)

    def _encode_new(self, texts: list[str]) -> Tensor:
        with torch.no_grad():
            vectors = torch.as_tensor(self.encoder.encode(texts))
        vectors = vectors.detach().float().cpu()
        check_vectors(self.encoder, texts, vectors)
        # Cloned rows, so that keeping one does not keep the whole batch's storage, and the caller may change what it
        # gets; made outside inference mode, so that a cached row can later be used in training.
        with torch.inference_mode(False):
            vectors = vectors.clone()
        with self._lock:
            for text, vector in zip(texts, vectors, strict=True):
                self._vectors[text] = vector.clone()
            while len(self._vectors) > self.capacity:
                self._vectors.popitem(last=False)
        return vectors

    def __deepcopy__(self, memo: dict[int, Any]) -> CachedEncoder:
        return self  # frozen and safe to share

    def __reduce__(self) -> tuple[type[CachedEncoder], tuple[RequestEncoder, int]]:
        return CachedEncoder, (self.encoder, self.capacity)
