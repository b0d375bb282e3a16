"""Reads requests for a model with masks: what is understood of each, and its vector."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from cramer_peft import RequestMaskModel
from cramer_peft.encoders import check_texts
from cramer_peft.errors import DataError
from cramer_peft.recsys.requests.catalogue_encoder import active_encoder
from cramer_peft.recsys.requests.heard import Heard
from cramer_peft.recsys.requests.hearing import HearingEncoder

_KEPT = 10_000  # texts


class Listener:
    """Reads the requests of the active adapter; what it read of a text is kept.

    Args:
        masks: The model with masks.
    """

    def __init__(self, masks: RequestMaskModel) -> None:
        self._masks = masks
        self._encoder: Any = None
        self._kept: dict[str, tuple[Heard, Tensor]] = {}

    def hear(
        self, request: Any, history: Sequence[int] = (), before: Sequence[str] = ()
    ) -> tuple[Heard, Tensor] | None:
        """Return what is understood of a request and its vector (dim,); None without one, or if nothing tells.

        Args:
            request: A text; anything else is no matter of the encoder's.
            history: Item numbers, for what a person usually takes.
            before: Earlier requests, oldest first.

        Raises:
            DataError: If there are earlier requests, and no request or an encoder that reads one alone.
            RequestError: If a text is no valid Unicode.
        """
        encoder = active_encoder(self._masks)
        blank = request is None or (isinstance(request, str) and not request.strip())
        if before and not isinstance(encoder, HearingEncoder):
            raise DataError(
                "before: found earlier requests, but this adapter's encoder reads one request alone. Leave them out, "
                "or train with the encoder 'catalogue'."
            )
        if before and blank:
            raise DataError("before: found earlier requests without a request. Give the last one as the request.")
        if not isinstance(encoder, HearingEncoder) or not isinstance(request, str) or blank:
            return None
        check_texts([request, *before])
        if before:
            return encoder.listen(request, before, history)
        if encoder is not self._encoder:
            self._encoder, self._kept = encoder, {}
        found = self._kept.get(request)
        if found is None:
            if len(self._kept) >= _KEPT:
                self._kept = {}
            found = self._kept[request] = encoder.listen(request)
        return encoder.listen(request, (), history) if found[0].needs_history and len(history) else found

    def vector(
        self, request: Any, history: Sequence[int] = (), before: Sequence[str] = ()
    ) -> tuple[Heard | None, Tensor | None]:
        """Return what is understood of one row's request, and its vector (dim,), None if it asks nothing.

        A text has the same vector alone and among others. Arguments as for :meth:`hear`; a vector stays as it is.
        """
        found = self.hear(request, history, before)
        if found is not None:
            heard, vector = found
        elif isinstance(request, str) and request.strip():
            heard, vector = None, self._masks.encode([request])[0]
        else:
            return None, request if isinstance(request, Tensor) else None
        return heard, vector if bool(torch.any(vector != 0)) else None  # of zeros would be a request
