"""Request masks: frozen models that follow a person's words, as a PEFT adapter.

The names are imported on first use, because torch and PEFT take seconds. PEFT knows the adapter from the moment that
both packages are imported.
"""

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING

from cramer_peft.tuner.import_hook import after_import, being_imported

if TYPE_CHECKING:
    from cramer_peft.adapter import Adapter
    from cramer_peft.checks import validate
    from cramer_peft.config import RequestMaskConfig
    from cramer_peft.encoders import (
        HashingEncoder,
        PrecomputedEncoder,
        RequestEncoder,
        WordLlamaEncoder,
        register_request_encoder,
    )
    from cramer_peft.errors import Finding, FindingKind
    from cramer_peft.inject import inject_request_masks, load_request_masks
    from cramer_peft.layers import RequestMaskLayer, register_mask_layer
    from cramer_peft.mask_state import MaskState
    from cramer_peft.model import RequestMaskModel
else:

    def __getattr__(name):
        """Import a public name, after the model, which registers the adapter with PEFT; or a module of the package."""
        module = next((module for module, names in _MODULES.items() if name in names), None)
        if module is None:
            if name.startswith("_") or find_spec(f"{__name__}.{name}") is None:
                raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
            return import_module(f"{__name__}.{name}")
        import_module(f"{__name__}.model")
        value = globals()[name] = getattr(import_module(f"{__name__}.{module}"), name)
        return value

    def __dir__():
        return sorted({*globals(), *__all__})


__version__ = "0.1.0"

__all__ = [
    "Adapter",
    "Finding",
    "FindingKind",
    "HashingEncoder",
    "MaskState",
    "PrecomputedEncoder",
    "RequestEncoder",
    "RequestMaskConfig",
    "RequestMaskLayer",
    "RequestMaskModel",
    "WordLlamaEncoder",
    "inject_request_masks",
    "load_request_masks",
    "register_mask_layer",
    "register_request_encoder",
    "validate",
]

_MODULES = {
    "adapter": ("Adapter",),
    "checks": ("validate",),
    "config": ("RequestMaskConfig",),
    "encoders": (
        "HashingEncoder",
        "PrecomputedEncoder",
        "RequestEncoder",
        "WordLlamaEncoder",
        "register_request_encoder",
    ),
    "errors": ("Finding", "FindingKind"),
    "inject": ("inject_request_masks", "load_request_masks"),
    "layers": ("RequestMaskLayer", "register_mask_layer"),
    "mask_state": ("MaskState",),
    "model": ("RequestMaskModel",),
}


def _register() -> None:
    if not being_imported(__name__):  # else the module that is being imported brings in the model, or a name does later
        import_module(f"{__name__}.model")


after_import("peft", _register)
