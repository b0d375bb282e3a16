"""The protocol of request encoders, their registry by name, and the cache in front of each."""

from __future__ import annotations

import reprlib
import threading
import unicodedata
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from cramer_peft.errors import EncoderError, RequestError


@runtime_checkable
class RequestEncoder(Protocol):
    """Turns request texts into vectors.

    An encoder may also have ``sides``, a mapping of names to widths: its vectors are these vectors side by side, such
    as what a request wants and what it does not want, in the space of the first row features (see ``row_features``
    of :class:`~cramer_peft.RequestMaskConfig`).

    Attributes:
        name: The name by which an adapter's configuration names it.
        dim: Width of its vectors.
    """

    name: str
    dim: int

    def encode(self, texts: Sequence[str]) -> Tensor:
        """Return the vectors of ``texts``, (texts, dim), floating point and finite."""


_FACTORIES: dict[str, Callable[..., RequestEncoder]] = {}


def one_form(text: str) -> str:
    """Return a text in one of the forms that look the same: NFKC, without invisible characters (soft hyphen, BOM)."""
    if text.isascii():
        return text
    return "".join(char for char in unicodedata.normalize("NFKC", text) if unicodedata.category(char) != "Cf")


def register_request_encoder(name: str, factory: Callable[..., RequestEncoder]) -> None:
    """Make ``RequestMaskConfig(encoder=name, encoder_options=…)`` call ``factory(**options)``.

    Only registered names are ever resolved: nothing is imported by a name from a file.
    """
    _FACTORIES[name] = factory


def is_registered(name: str) -> bool:
    """Return True if an encoder of that name can be made."""
    return name in _FACTORIES


def make_encoder(name: str, options: dict[str, Any] | None) -> RequestEncoder:
    """Make the registered encoder ``name`` with its options.

    Raises:
        EncoderError: If the name is not registered, or the encoder does not take the options.
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


def check_texts(texts: Sequence[str]) -> None:
    """Raise a RequestError if a request's text is no valid Unicode, which encoders cannot read."""
    for text in texts:
        try:
            text.encode()
        except (AttributeError, UnicodeEncodeError) as error:
            raise RequestError(
                f"request: found {reprlib.repr(text)}, expected a text that can be written as UTF-8. Decode bytes that "
                "are not UTF-8 by their own encoding first; half a surrogate pair, such as \\udcff, is no character."
            ) from error


def check_vectors(encoder: RequestEncoder, texts: Sequence[str], vectors: Tensor) -> None:
    """Check that vectors are (texts, dim) and finite, or raise :class:`EncoderError` with the text.

    While compiling only their shape is checked, because reading values would break the graph.
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
    """Encodes each text once, and checks the vectors.

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

    @property
    def sides(self) -> Mapping[str, int]:
        return getattr(self.encoder, "sides", None) or {}

    def encode(self, texts: Sequence[str]) -> Tensor:
        """Return the vectors of ``texts``, (texts, dim) float32, on the CPU.

        Raises:
            EncoderError: If the encoder returns NaN, infinity or another shape; it names the text.
        """
        if isinstance(texts, str):
            raise RequestError(
                "texts: found one text, expected a list of texts: each letter would be a text of its own."
            )
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
        check_texts(texts)
        with torch.no_grad():
            vectors = torch.as_tensor(self.encoder.encode(texts))
        vectors = vectors.detach().float().cpu()
        check_vectors(self.encoder, texts, vectors)
        # Each row is cloned: a kept row must not hold the whole batch in memory, and the caller may write to its own.
        # Outside inference mode, because a cached row may later be used in training.
        with torch.inference_mode(False):
            vectors = vectors.clone()
        with self._lock:
            for text, vector in zip(texts, vectors, strict=True):
                self._vectors[text] = vector.clone()
            while len(self._vectors) > self.capacity:
                self._vectors.popitem(last=False)
        return vectors

    def __deepcopy__(self, memo: dict[int, Any]) -> CachedEncoder:
        return self  # frozen, so that copies of a model can share it

    def __reduce__(self) -> tuple[type[CachedEncoder], tuple[RequestEncoder, int]]:
        return CachedEncoder, (self.encoder, self.capacity)


def encoder_of_width(encoder: CachedEncoder, request_dim: int | None) -> CachedEncoder:
    """Return ``encoder`` if it makes vectors of width ``request_dim`` (None: any).

    Raises:
        EncoderError: If its vectors have another width.
    """
    if request_dim is not None and encoder.dim != request_dim:
        raise EncoderError(
            f"request encoder {encoder.name!r} makes vectors of width {encoder.dim}, the adapter expects "
            f"request_dim={request_dim}."
        )
    return encoder
