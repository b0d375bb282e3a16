"""The handle's request encoders, one for each adapter."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from torch import Tensor

from cramer_peft.config import RequestMaskConfig
from cramer_peft.encoders import CachedEncoder, RequestEncoder, make_encoder
from cramer_peft.errors import EncoderError
from cramer_peft.handle.base import HandleBase

if TYPE_CHECKING:
    from cramer_peft.encoders.tuned import TunedEncoder


class HandleEncoders(HandleBase):
    """From texts to vectors, by each adapter's own encoder."""

    def encode(self, texts: Sequence[str]) -> Tensor:
        """Vectors of ``texts`` by the active adapter's encoder, (texts, request_dim) float32, on the CPU.

        Raises:
            EncoderError: If the adapter has no encoder, or it fails on a text.
        """
        return self.encoder().encode(texts)

    def encoder(self, adapter_name: str | None = None) -> CachedEncoder:
        """The encoder of an adapter (None: of the active one), behind its cache."""
        name = self._named(adapter_name)
        if name not in self._encoders:
            config = self.peft_config[name]
            if config.encoder is None:
                raise EncoderError(
                    f"adapter {name!r} has no request encoder (request_dim={config.request_dim}): give requests as "
                    "vectors, name an encoder in its configuration, or call set_encoder(encoder)."
                )
            self._encoders[name] = self._checked(
                CachedEncoder(make_encoder(config.encoder, config.encoder_options)), config
            )
        return self._encoders[name]

    def set_encoder(self, encoder: RequestEncoder, adapter_name: str | None = None) -> None:
        """Use ``encoder`` for an adapter's texts (None: the active one's).

        Raises:
            EncoderError: If its vectors are not as wide as the adapter expects.
        """
        name = self._named(adapter_name)
        if self.tuned_encoder(name) is not None:
            raise EncoderError(f"adapter {name!r} has tuned its encoder: another one cannot take its place.")
        self._encoders[name] = self._checked(CachedEncoder(encoder), self.peft_config[name])
        self.peft_config[name].encoder = encoder.name

    def encoder_of(self, adapter_name: str) -> Callable[[Sequence[str]], Tensor]:
        """What encodes an adapter's texts; the encoder itself is made when there is a text."""
        return lambda texts: self.encoder(adapter_name).encode(texts)

    def tuned_encoder(self, adapter_name: str) -> TunedEncoder | None:
        """The adapter's tuned copy of its encoder's parameters, or None where the encoder is frozen."""
        tuned = self.request_mask_encoder
        return tuned[adapter_name] if adapter_name in tuned else None  # type: ignore[return-value]  # noqa: SIM401

    def _with_encoder(self, config: RequestMaskConfig, adapter_name: str) -> RequestMaskConfig:
        """The configuration with the encoder's name and width filled in."""
        given = self._encoders.get(adapter_name)
        if given is not None:
            if config.encoder != given.name:
                config = replace(config, encoder=given.name, encoder_options=None)
            self._checked(given, config)
            return replace(config, request_dim=given.dim)
        if config.request_dim is not None:
            return config
        assert config.encoder is not None  # the configuration sees to it that one of the two is there
        encoder = CachedEncoder(make_encoder(config.encoder, config.encoder_options))
        self._encoders[adapter_name] = encoder
        return replace(config, request_dim=encoder.dim)

    def _make_tuned_encoder(self, config: RequestMaskConfig, adapter_name: str) -> TunedEncoder | None:
        if config.encoder_tuning == "none":
            return None
        from cramer_peft.encoders.tuned import TunedEncoder

        if adapter_name not in self._encoders:
            self._encoders[adapter_name] = CachedEncoder(make_encoder(str(config.encoder), config.encoder_options))
        return TunedEncoder(self._encoders[adapter_name].encoder, config.encoder_tuning)

    @staticmethod
    def _checked(encoder: CachedEncoder, config: RequestMaskConfig) -> CachedEncoder:
        if config.request_dim is not None and encoder.dim != config.request_dim:
            raise EncoderError(
                f"request encoder {encoder.name!r} makes vectors of width {encoder.dim}, the adapter expects "
                f"request_dim={config.request_dim}."
            )
        return encoder
