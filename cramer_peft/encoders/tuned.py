"""Tuned copies of a request encoder's parameters (CRAMER, section "Encoder"); the encoder itself never changes."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.func import functional_call

from cramer_peft.encoders.encoder import CachedEncoder, RequestEncoder, check_texts, check_vectors
from cramer_peft.errors import EncoderError

REGIMES = ("none", "last", "all")


@runtime_checkable
class TunableEncoder(RequestEncoder, Protocol):
    """A request encoder that can be tuned: its vectors come from a torch module.

    Attributes:
        module: The network, in eval mode. It is read and never changed.
    """

    module: nn.Module

    def encode_with(self, texts: Sequence[str], run: Callable[..., Any]) -> Tensor:
        """Return the vectors of ``texts``, (texts, dim), with ``run(…)`` called in place of ``self.module(…)``.

        ``run`` takes inputs from any device; its outputs are on the device of the tuned parameters and
        carry their gradients.
        """

    def tunable_names(self, regime: str) -> Sequence[str]:
        """Return the names of the module's parameters that the regime "last" or "all" tunes."""


def tunable_names(module: nn.Module, regime: str) -> list[str]:
    """Return the names of the parameters that a regime tunes, for encoders that average a transformer's last states.

    "all" is every parameter but those of a module called ``pooler``, which an average never reads.
    "last" is the last element of the longest ``nn.ModuleList``, and the norms registered after it.

    Args:
        module: The encoder's network.
        regime: "last" or "all".
    """
    used = [name for name, _ in module.named_parameters() if "pooler" not in name.split(".")]
    if regime == "all":
        return used
    layers = _longest_list(module)
    prefixes = (f"{layers}.{len(module.get_submodule(layers)) - 1}.", *_norms_after(module, layers))  # type: ignore[arg-type]
    return [name for name in used if name.startswith(prefixes)]


def _longest_list(module: nn.Module) -> str:
    found: dict[str, int] = {}
    for name, child in module.named_modules():
        inside = any(name.startswith(f"{outer}.") for outer in found)
        if isinstance(child, nn.ModuleList) and len(child) and not inside:
            found[name] = len(child)
    if not found:
        raise EncoderError(
            f"encoder_tuning='last': {type(module).__name__} has no nn.ModuleList of layers, so its last layer is "
            "unknown. Use encoder_tuning='all', or give the encoder a tunable_names(regime) that names it."
        )
    return max(reversed(found), key=found.__getitem__)  # the last of equally long ones: a decoder, not its encoder


def _norms_after(module: nn.Module, layers: str) -> list[str]:
    names = [name for name, _ in module.named_modules()]
    after = names[names.index(layers) + 1 :]
    return [
        f"{name}."
        for name in after
        if not name.startswith(f"{layers}.") and "norm" in type(module.get_submodule(name)).__name__.lower()
    ]


class _Frozen:
    """An encoder, and a copy of its module that shares its tensors.

    ``functional_call`` swaps a module's tensors while it runs. On the encoder's own module other threads would see
    that, so it runs on the copy. Copies of this object are the object itself; a pickle holds the encoder alone.
    """

    def __init__(self, encoder: TunableEncoder) -> None:
        self.encoder = encoder
        module = encoder.module
        shared = [*module.parameters(), *module.buffers()]
        self._skeleton = copy.deepcopy(module, {id(tensor): tensor for tensor in shared}).eval()
        self._tensors: dict[torch.device, dict[str, Tensor]] = {}
        self._lock = threading.RLock()

    def run(self, tuned: Mapping[str, Tensor], *args: Any, **kwargs: Any) -> Any:
        device = next(iter(tuned.values())).device
        with self._lock:
            tensors = dict(self._on(device))
            # Cast to the encoder's precision, because the tuned copies may be kept in another.
            tensors.update((name, value.to(tensors[name].dtype)) for name, value in tuned.items())
            return functional_call(self._skeleton, tensors, _moved(args, device), _moved(kwargs, device))

    def _on(self, device: torch.device) -> dict[str, Tensor]:
        if device not in self._tensors:
            module = self.encoder.module
            with torch.inference_mode(False):  # they are kept, and may later be used in training
                self._tensors[device] = {
                    name: tensor.detach().to(device)
                    for name, tensor in (*module.named_parameters(), *module.named_buffers())
                }
        return self._tensors[device]

    def __deepcopy__(self, memo: dict[int, Any]) -> _Frozen:
        return self

    def __reduce__(self) -> tuple[type[_Frozen], tuple[TunableEncoder]]:
        return _Frozen, (self.encoder,)


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, Mapping):
        return {key: _moved(item, device) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_moved(item, device) for item in value)
    return value


class TunedEncoder(nn.Module):
    """Runs an encoder with tuned copies of some of its parameters.

    Its state holds these copies alone, as ``parameters_.<name>`` with ``__`` for each dot. The encoder is neither
    registered nor changed; copies of this module share it. It runs in eval mode, without dropout.

    Args:
        encoder: An encoder that can be tuned, see :class:`TunableEncoder`.
        regime: "last" or "all".

    Raises:
        EncoderError: If the regime is unknown, or the encoder or one of the parameters cannot be tuned.
    """

    def __init__(self, encoder: RequestEncoder, regime: str) -> None:
        super().__init__()
        encoder = encoder.encoder if isinstance(encoder, CachedEncoder) else encoder
        self.regime = regime
        self._frozen = _Frozen(_tunable(encoder, regime))
        self._names = _keys(self.encoder, regime, self.encoder.tunable_names(regime))
        parameters = dict(self._frozen.encoder.module.named_parameters())
        with torch.inference_mode(False):
            copies = {key: nn.Parameter(parameters[name].detach().clone()) for key, name in self._names.items()}
        self.parameters_ = nn.ParameterDict(copies)

    @property
    def encoder(self) -> TunableEncoder:
        """The frozen encoder behind it."""
        return self._frozen.encoder

    @property
    def dim(self) -> int:
        """Width of the vectors."""
        return self.encoder.dim

    def forward(self, texts: Sequence[str]) -> Tensor:
        """Return the vectors of ``texts``, (texts, dim) float32, on the tuned parameters' device and with gradients.

        A repeated text is encoded once.
        """
        if not texts:
            return torch.empty(0, self.dim, device=next(self.parameters()).device)
        distinct = list(dict.fromkeys(texts))
        check_texts(distinct)
        vectors = self.encoder.encode_with(distinct, self._run).float()
        check_vectors(self.encoder, distinct, vectors)
        if len(distinct) == len(texts):
            return vectors
        place = {text: i for i, text in enumerate(distinct)}
        return vectors[torch.tensor([place[text] for text in texts], device=vectors.device)]

    def _run(self, *args: Any, **kwargs: Any) -> Any:
        tuned = {name: self.parameters_[key] for key, name in self._names.items()}
        return self._frozen.run(tuned, *args, **kwargs)

    def extra_repr(self) -> str:
        return f"{self.encoder.name!r}, regime={self.regime!r}"


def tuned_shapes(encoder: RequestEncoder, regime: str) -> dict[str, torch.Size]:
    """Return the shape of each key in the state of ``TunedEncoder(encoder, regime)``, without copying anything."""
    tunable = _tunable(encoder.encoder if isinstance(encoder, CachedEncoder) else encoder, regime)
    parameters = dict(tunable.module.named_parameters())
    keys = _keys(tunable, regime, tunable.tunable_names(regime))
    return {f"parameters_.{key}": parameters[name].shape for key, name in keys.items()}


def _tunable(encoder: RequestEncoder, regime: str) -> TunableEncoder:
    if regime not in REGIMES[1:]:
        raise EncoderError(f"encoder_tuning is {regime!r}; a tuned encoder needs 'last' or 'all'.")
    if not isinstance(encoder, TunableEncoder):
        raise EncoderError(
            f"encoder_tuning={regime!r}: the request encoder {encoder.name!r} cannot be tuned, since it has no torch "
            "module. Use encoder_tuning='none', or an encoder that can be tuned: 'transformers', 'all-minilm-l6-v2', "
            "'sentence-transformers', or your own with module, encode_with and tunable_names."
        )
    return encoder


def _keys(encoder: TunableEncoder, regime: str, names: Sequence[str]) -> dict[str, str]:
    """Return, for each key in the state, the name of the parameter in the encoder's module."""
    where = f"encoder_tuning={regime!r}: request encoder {encoder.name!r}"
    if not names:
        raise EncoderError(f"{where} names no parameter to tune. Use encoder_tuning='none'.")
    parameters = dict(encoder.module.named_parameters())
    keys: dict[str, str] = {}
    for name in names:
        key = name.replace(".", "__")
        if name not in parameters:
            raise EncoderError(f"{where} has no parameter {name!r}; tunable_names must give names of its module's own.")
        if not parameters[name].dtype.is_floating_point:
            raise EncoderError(
                f"{where}: parameter {name!r} is {parameters[name].dtype}, which cannot be trained. Load the encoder "
                "in a floating point type, or use encoder_tuning='none'."
            )
        if key in keys or hasattr(nn.ParameterDict, key):
            raise EncoderError(
                f"{where}: parameter {name!r} cannot be stored under {key!r}, "
                f"{f'which {keys[key]!r} has' if key in keys else 'a reserved name'}. Rename it in the module."
            )
        keys[key] = name
    return keys
