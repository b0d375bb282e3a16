"""Fits an adapter's configuration and its request encoder to each other, at injection."""

from __future__ import annotations

from dataclasses import replace

from cramer_peft.config import RequestMaskConfig
from cramer_peft.encoders import CachedEncoder, TunedEncoder, encoder_of_width, make_encoder
from cramer_peft.storage.adapter_files import check_encoder_weights, encoder_fingerprint


def fit_encoder(
    config: RequestMaskConfig, adapter_name: str, encoders: dict[str, CachedEncoder]
) -> tuple[RequestMaskConfig, TunedEncoder | None]:
    """Return the configuration with the fields that the encoder decides, and the tuned encoder if there is one.

    ``encoders`` holds the frozen encoders that were given or made, by adapter; one that is made here is added.
    """
    encoder = encoders.get(adapter_name)
    if encoder is not None and config.encoder != encoder.name:
        config = replace(config, encoder=encoder.name, encoder_options=None)
    # A frozen encoder of known width is made later, with the first text.
    if encoder is None and (config.request_dim is None or config.encoder_tuning != "none"):
        encoder = CachedEncoder(make_encoder(str(config.encoder), config.encoder_options))
    if encoder is None:
        return config, None
    encoders[adapter_name] = encoder_of_width(encoder, config.request_dim)
    if config.request_sides is None and encoder.sides:
        config = config.with_values(request_sides=dict(encoder.sides))
    if config.request_dim is None:
        config = replace(config, request_dim=encoder.dim)  # raises if a stored default request is not as wide
    if config.encoder_tuning == "none":
        return config, None
    tuned = TunedEncoder(encoder.encoder, config.encoder_tuning)
    check_encoder_weights(config, encoder.encoder)
    return config.with_values(encoder_fingerprint=encoder_fingerprint(encoder.encoder)), tuned
