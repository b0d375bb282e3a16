"""For wrapped modules whose attributes models read: sizes, flags, ``flatten_parameters()``."""

from __future__ import annotations

from typing import Any

from cramer_peft.layers.base import RequestMaskLayer


class PassthroughMaskLayer(RequestMaskLayer):
    """A masked layer that hands out the frozen module's attributes where it has none of that name."""

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "base_layer":  # not set yet, while a copy or a pickle is being filled
                raise
            return getattr(self.base_layer, name)
