"""Registers the adapter as a PEFT method, without touching PEFT's own enum.

PEFT looks up a method in dictionaries, by its type. A string enum hashes as its value, so entries under an enum of our
own are also found by the string in ``adapter_config.json``. A process that has not imported this package does not know
the type: ``import cramer_peft`` first.
"""

from typing import Any

from peft import mapping

from cramer_peft.config import RequestMaskPeftType
from cramer_peft.errors import CramerError

PREFIX = "request_mask_"  # by this prefix of their names PEFT tells an adapter's modules and parameters


def register(config_class: type[Any], model_class: type[Any]) -> None:
    """Enter the adapter into PEFT's mappings; a second call with the same classes does nothing.

    It raises :class:`CramerError` if another method already holds the type's name or the parameter prefix.
    """
    peft_type = RequestMaskPeftType.REQUEST_MASK
    registered = mapping.PEFT_TYPE_TO_CONFIG_MAPPING.get(peft_type)
    if registered is config_class:
        return
    if registered is not None:
        raise CramerError(f"PEFT already has a method of type {peft_type.value!r}: {registered!r}.")
    if PREFIX in mapping.PEFT_TYPE_TO_PREFIX_MAPPING.values():
        raise CramerError(f"PEFT already has a method with the parameter prefix {PREFIX!r}.")
    entries: list[tuple[dict[Any, Any], Any]] = [
        (mapping.PEFT_TYPE_TO_CONFIG_MAPPING, config_class),
        (mapping.PEFT_TYPE_TO_TUNER_MAPPING, model_class),
        (mapping.PEFT_TYPE_TO_PREFIX_MAPPING, PREFIX),
    ]
    for table, value in entries:
        table[peft_type] = value
