"""Import of optional dependencies with an error that says what to install."""

import importlib
from types import ModuleType

from cramer_peft.errors import MissingExtraError


def require(module: str, extra: str) -> ModuleType:
    """Import ``module``, or say which extra of this package brings it.

    Args:
        module: Importable name, for example ``"pandas"``.
        extra: The extra of ``cramer-peft`` that depends on it, for example ``"demo"``.

    Raises:
        MissingExtraError: If ``module`` is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] != module.split(".")[0]:
            raise  # installed, but one of its own dependencies is missing: its error is the better one
        raise MissingExtraError(
            f"{module!r} is not installed. It comes with an extra: pip install 'cramer-peft[{extra}]'."
        ) from error
