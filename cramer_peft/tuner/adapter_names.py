"""Names that an adapter can have, alone and beside other PEFT methods."""

from torch import nn

from cramer_peft.config import RequestMaskConfig
from cramer_peft.context import BASE
from cramer_peft.errors import ConfigError

# Names that would collide with parts of the keys under which PEFT saves an adapter's tensors.
_RESERVED_NAMES = {
    "head",
    "trunk",
    "default_request",
    BASE,  # names the rows of the frozen model
    "model",
    "base_model",
    "base_layer",
    "original_module",
    "modules_to_save",
}


def check_adapter_name(name: str, model: nn.Module, config: RequestMaskConfig) -> None:
    """Check that an adapter can have ``name``, beside those of other PEFT methods on ``model``."""
    if (
        not name
        or set(name) & set("./\\\0")
        or name.isdigit()
        or name in _RESERVED_NAMES
        or hasattr(nn.ModuleDict(), name)
    ):
        raise ConfigError(
            f"adapter name {name!r} cannot be used: it must not be empty, a number, hold a dot, slash or NUL, or be a "
            "name that the saved tensors' keys use."
        )
    other = (getattr(model, "peft_config", None) or {}).get(name)
    if config.modules_to_save and other is not None and not isinstance(other, RequestMaskConfig):
        raise ConfigError(
            f"adapter name {name!r} is that of a {type(other).__name__} on this model, and modules_to_save="
            f"{config.modules_to_save!r} are told apart by names: give the masks another one (adapter_name=…)."
        )
