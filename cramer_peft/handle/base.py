"""What every part of the handle relies on: its adapters, their generators, and whether it is still in use."""

from __future__ import annotations

from typing import TYPE_CHECKING

from peft.tuners.tuners_utils import BaseTuner
from torch import nn

from cramer_peft.carrier import RequestCarrier
from cramer_peft.config import RequestMaskConfig
from cramer_peft.encoders import CachedEncoder
from cramer_peft.errors import ConfigError
from cramer_peft.generator import RequestMaskGenerator

if TYPE_CHECKING:
    from cramer_peft.leftovers import ModelRecord
    from cramer_peft.merging import Merged


class HandleBase(BaseTuner):
    """The state of a handle, and how its adapters are named.

    Attributes:
        carrier: Carries the request in force to the masked layers.
        request_mask_generator: The adapters' generators, by name.
        request_mask_encoder: The tuned encoders of the adapters that have one, by name.
    """

    peft_config: dict[str, RequestMaskConfig]
    model: nn.Module
    carrier: RequestCarrier
    request_mask_generator: nn.ModuleDict
    request_mask_encoder: nn.ModuleDict
    _encoders: dict[str, CachedEncoder]
    _record: ModelRecord | None
    _merged: Merged | None

    @property
    def generator(self) -> RequestMaskGenerator:
        """The active adapter's generator, the trained part."""
        return self.generator_of(self._named(None))

    def generator_of(self, adapter_name: str) -> RequestMaskGenerator:
        """An adapter's generator."""
        generator = self.request_mask_generator[adapter_name]
        assert isinstance(generator, RequestMaskGenerator)
        return generator

    @property
    def adapters_enabled(self) -> bool:
        """Whether masks are on at all; False inside :meth:`disable_adapter`."""
        return self.carrier.enabled

    def active_names(self) -> list[str]:
        """Names of the active adapters, at least one."""
        self._check_alive()
        names = list(self.active_adapters)
        if not names:
            raise ConfigError("no adapter is active: call set_adapter(name).")
        return names

    def _named(self, adapter_name: str | None) -> str:
        """An adapter by name; None: the active one, the first where several are."""
        name = self.active_names()[0] if adapter_name is None else adapter_name
        if name not in self.peft_config:
            raise ConfigError(f"there is no adapter {name!r}; there are {sorted(self.peft_config)}.")
        return name

    def _check_alive(self) -> None:
        if self._record is None:
            raise ConfigError("these request masks have been unloaded: inject or load them again.")
