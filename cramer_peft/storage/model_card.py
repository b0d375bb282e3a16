"""The model card: the README.md beside an adapter's files."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from torch import nn

from cramer_peft.config import RequestMaskConfig
from cramer_peft.generator import RequestMaskGenerator
from cramer_peft.storage.files import write_bytes

CARD_NAME = "README.md"
MARKER = "<!-- Written by cramer-peft at each save. Delete this line to keep a text of your own. -->"
_MAX_CARD_BYTES = 2**20
_LISTED_MODULES = 12

_FORMS = {
    "low_rank": "W ∘ (1 + Σₖ aₖ bₖᵀ) with {rank} terms; {bias}",
    "scale": "W ∘ r cᵀ with gates 2·sigmoid(z) in (0, 2); {bias}",
    "signed": "W ∘ r cᵀ with gates 1 + z of any sign and size; {bias}",
    "topk": "W ∘ r cᵀ with binary gates, of which {drop_ratio:.0%} are dropped; {bias}",
}
_REGIMES = {"none": "frozen", "last": "its last layer is trained with the adapter", "all": "trained with the adapter"}


def write_model_card(folder: Path, card: str) -> bool:
    """Write the card, atomically, unless the README.md there is no card of this library; True if it was written."""
    path = folder / CARD_NAME
    if path.exists() and not is_own_card(path):
        return False
    write_bytes(path, card.encode())
    return True


def model_card(config: RequestMaskConfig, generator: RequestMaskGenerator, model: nn.Module) -> str:
    """Return the card's text: front matter, then Markdown."""
    sections = [
        _front_matter(config),
        MARKER,
        "# Request masks" + (f" for {base}" if (base := _hub_name(config)) else ""),
        "An adapter that masks the weights of a frozen model by a person's request: each row of a batch has its own "
        "request, a text or a vector, and a row without one is the frozen model's, bit for bit. Made with "
        "the package cramer-peft.",
        _facts(config, generator, model),
        _modules(config),
        _loading(config, type(model).__name__),
        _limits(config),
    ]
    return "\n\n".join(sections) + "\n"


def is_own_card(path: Path) -> bool:
    """Return True if a file is a card that this library wrote, and no text of a person's."""
    try:
        with path.open("rb") as file:
            return MARKER.encode() in file.read(_MAX_CARD_BYTES)
    except OSError:
        return False  # a folder or an unreadable file, which is not ours to replace


def _front_matter(config: RequestMaskConfig) -> str:
    base = _hub_name(config)
    values: dict[str, Any] = {"library_name": "peft"}
    if base:
        values["base_model"] = base
    values["tags"] = sorted({"cramer-peft", "request-mask", *([f"base_model:adapter:{base}"] if base else [])})
    # Every JSON value is a YAML value.
    lines = [f"{name}: {json.dumps(value, ensure_ascii=False)}" for name, value in values.items()]
    return "\n".join(["---", *lines, "---"])


def _hub_name(config: RequestMaskConfig) -> str | None:
    """Return the base model's name on the hub; None if it is a local folder or not known."""
    name = config.base_model_name_or_path
    if not isinstance(name, str) or not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", name) or Path(name).exists():
        return None
    return name


def _facts(config: RequestMaskConfig, generator: RequestMaskGenerator, model: nn.Module) -> str:
    trained = sum(parameter.numel() for parameter in generator.parameters())
    frozen = sum(parameter.numel() for parameter in model.parameters())
    width = "one linear layer" if config.generator_width is None else f"a hidden layer of {config.generator_width}"
    rows = {
        "Base model": f"`{_hub_name(config) or type(model).__name__}`, {frozen:,} parameters, frozen",
        "Fingerprint of the masked weights": f"`{config.base_fingerprint}`" if config.base_fingerprint else "not known",
        "Gate": f"`{config.gate}`: {_form(config)}",
        "Generator": f"{width}, {trained:,} parameters",
        "Request encoder": _encoder(config),
        "Width of request vectors": str(config.request_dim),
        "Strength": f"{config.strength:g}" if config.gate != "topk" else "none (binary gates)",
        "Stored default request": "none"
        if config.default_request is None
        else "yes: calls without a request follow it",
        "Trained whole and saved": ", ".join(f"`{name}`" for name in config.modules_to_save or []) or "nothing",
    }
    return "\n".join(["| | |", "| --- | --- |", *(f"| {name} | {value} |" for name, value in rows.items())])


def _form(config: RequestMaskConfig) -> str:
    bias = "the bias is gated too" if config.gate_bias else "the bias is not gated"
    return _FORMS[config.gate].format(rank=config.rank, drop_ratio=config.drop_ratio or 0.0, bias=bias)


def _encoder(config: RequestMaskConfig) -> str:
    if config.encoder is None:
        return "none: requests are ready vectors"
    options = config.encoder_options or {}
    named = options.get("model_name_or_path")
    shown = f" ({named})" if isinstance(named, str) and re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", named) else ""
    return f"`{config.encoder}`{shown}, {_REGIMES[config.encoder_tuning]}"


def _modules(config: RequestMaskConfig) -> str:
    modules = config.masked_modules or {}
    lines = [
        f"| `{name}` | {' × '.join(str(size) for size in shape) or 'rows, described by features'} |"
        for name, shape in list(modules.items())[:_LISTED_MODULES]
    ]
    more = len(modules) - len(lines)
    lines += [f"| and {more} more, in `adapter_config.json` | |"] if more > 0 else []
    head = ["| Masked | out × in, or features |", "| --- | --- |"]
    return "\n".join(["## What is masked", "", *head, *lines])


def _loading(config: RequestMaskConfig, model_class: str) -> str:
    requests = '["more of this", None]' if config.encoder else f"torch.randn(2, {config.request_dim})"
    needed = "import torch\n" if not config.encoder else ""
    described = "".join(
        f"\nmasks.set_row_features({name!r}, features)  # {width} for each row, not stored here"
        for name, width in (config.row_features.items() if isinstance(config.row_features, dict) else ())
    )
    return f"""## How to use it

`base_model` is the frozen {model_class}, `folder` the path of these files, `inputs` a batch of two rows.
On the hub, `folder` may be the name of the repository; `local_files_only=False` lets the first call download it.

```python
{needed}from cramer_peft import load_request_masks

masks = load_request_masks(base_model, folder){described}
outputs = masks(inputs, request={requests})
```

Or through PEFT:

```python
{needed}import cramer_peft  # registers the type REQUEST_MASK
from peft import PeftModel

model = PeftModel.from_pretrained(base_model, folder){described.replace("masks.", "model.base_model.")}
outputs = model(inputs, request={requests})
```"""


def _limits(config: RequestMaskConfig) -> str:
    limits = [
        "It fits the weights that it was made for and no others: the fingerprint is checked at loading.",
        "Rows without a request equal the frozen model bit for bit in eval mode; in training mode the frozen model's "
        "own dropout is on.",
        "This card is made from the configuration. It knows of no training data and no evaluation: add them.",
    ]
    if config.encoder:
        limits.insert(1, "Words that the encoder cannot tell apart, the masks cannot either.")
    if config.gate == "topk":
        limits.insert(1, "Binary gates have no strength other than 0 and 1.")
    return "\n".join(["## Limits", "", *(f"- {limit}" for limit in limits)])
