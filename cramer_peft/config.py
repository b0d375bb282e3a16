"""The configuration of a request-mask adapter."""

import copy
import dataclasses
import json
import re
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from peft import PeftConfig

from cramer_peft.errors import ConfigError
from cramer_peft.masks import FORMS, SCHEDULES
from cramer_peft.masks.config_values import check_outputs, check_sides, is_finite_number, is_int, is_layout

DEFAULT_ENCODER = "wordllama"

# The forms that each field belongs to, with its default for that form.
_FORM_FIELDS: dict[str, dict[str, Any]] = {
    "rank": {"low_rank": 4},
    "drop_ratio": {"topk": 0.1},
    "temperature_start": {"topk": 0.7},
    "temperature_end": {"topk": 0.3},
    "temperature_schedule": {"topk": "cosine"},
    "shared_masks": {"topk": False},
    "gate_bias": {"topk": False, "scale": True, "signed": True},
}


class RequestMaskPeftType(str, Enum):
    """The PEFT type of this library's adapter."""

    REQUEST_MASK = "REQUEST_MASK"


def _help(text: str) -> dict[str, str]:
    return {"help": text}


@dataclass
class RequestMaskConfig(PeftConfig):
    """Configuration of request masks, in PEFT's manner.

    A small generator makes the masks of every masked layer from a request's vector. Fields left at
    ``None`` take the default stated in their help text.

    Raises:
        ConfigError: At construction, if a field or a combination of fields is impossible.
    """

    target_modules: list[str] | str | None = field(
        default=None,
        metadata=_help(
            "Modules to mask: a list of names or name endings, one regular expression for the whole name, or "
            "'all-linear' (every Linear and Conv1D but the output head). None: the feed-forward and "
            "attention-output projections, where the architecture is known."
        ),
    )
    exclude_modules: list[str] | str | None = field(
        default=None,
        metadata=_help("Modules never to mask: a list of names or name endings, or one regular expression."),
    )
    layers_to_transform: list[int] | int | None = field(
        default=None,
        metadata=_help("Mask only these layer indices; needs target_modules as a list."),
    )
    layers_pattern: list[str] | str | None = field(
        default=None,
        metadata=_help("Name of the module list that layers_to_transform counts in, for example 'layers' or 'h'."),
    )
    target_outputs: list[str] | dict[str, dict[str, Any]] | None = field(
        default=None,
        metadata=_help(
            "Modules whose outputs are masked, whatever is inside: names ('' is the model itself), or names of methods "
            "('model.forward_inference'). A dictionary says more of each: 'field', where the tensor is a field of the "
            "output; 'candidates', the method's parameter with the rows to score; 'in_place': true, if each call "
            "returns a tensor that nothing else holds, which saves a copy; 'features', the tensor's width, "
            "which only gates need."
        ),
    )
    row_features: list[str] | dict[str, int | None] | None = field(
        default=None,
        metadata=_help(
            "Targets whose row values are made from descriptions of their rows, which set_row_features gives: names "
            "as in target_outputs, or else of modules with one weight, which need not be in target_modules. The values "
            "are added to the output, and no parameter depends on the number of rows. A dictionary gives the number of "
            "features of a row, too, else it is filled in."
        ),
    )
    row_fingerprints: dict[str, list[float]] | None = field(
        default=None,
        metadata=_help(
            "Filled in by set_row_features: sums over the row features, checked when they are set on a loaded adapter, "
            "because the features are not saved."
        ),
    )
    request_sides: dict[str, int] | None = field(
        default=None,
        metadata=_help(
            "Names and widths of the vectors that stand side by side in a request vector, and are compared with the "
            "first features of a row. Filled in from the encoder, if it names its sides. None: no comparison."
        ),
    )
    modules_to_save: list[str] | None = field(
        default=None,
        metadata=_help("Modules outside the masks that are trained whole and saved with the adapter."),
    )
    gate: str = field(
        default="signed",
        metadata=_help(
            "Form of the mask M on a weight W. 'low_rank': M = 1 + sum_k a_k b_k^T. 'scale': M = r c^T with "
            "gates 2*sigmoid(z) in (0, 2). 'signed': the same with gates 1 + z, unbounded. 'topk': the paper's "
            "binary M = r c^T keeping a fixed share of gates."
        ),
    )
    rank: int | None = field(
        default=None, metadata=_help("gate='low_rank' only: number of terms a_k b_k^T (default 4).")
    )
    drop_ratio: float | None = field(
        default=None,
        metadata=_help("gate='topk' only: share of all row and column gates that is dropped (default 0.1)."),
    )
    temperature_start: float | None = field(
        default=None,
        metadata=_help("gate='topk' only: straight-through temperature when training starts (default 0.7)."),
    )
    temperature_end: float | None = field(
        default=None,
        metadata=_help("gate='topk' only: straight-through temperature when training ends (default 0.3)."),
    )
    temperature_schedule: str | None = field(
        default=None,
        metadata=_help("gate='topk' only: way from start to end: 'cosine' (default), 'linear' or 'exponential'."),
    )
    shared_masks: bool | None = field(
        default=None,
        metadata=_help("gate='topk' only: True to train with one mask for all rows of a batch (default False)."),
    )
    gate_bias: bool | None = field(
        default=None,
        metadata=_help(
            "gate='scale', 'signed' and 'topk' only: True if a row gate multiplies the unit's bias, too "
            "(default False for 'topk', else True)."
        ),
    )
    generator_width: int | None = field(
        default=64,
        metadata=_help(
            "Width of the generator's hidden layer (default 64). None: one linear layer from the request vector to all "
            "gates, as in the paper."
        ),
    )
    normalize_requests: bool = field(
        default=True,
        metadata=_help(
            "True to scale each request vector to length sqrt(request_dim) before the generator, so that one learning "
            "rate suits encoders of any scale."
        ),
    )
    strength: float = field(
        default=1.0,
        metadata=_help(
            "Default strength: scales the deviation of the mask from the identity; 0 is the frozen model. "
            "gate='topk' allows only 1."
        ),
    )
    encoder: str | None = field(
        default=None,
        metadata=_help(
            "Registered name of the request encoder. None: 'wordllama'; but if request_dim is given there is none, and "
            "requests must be vectors."
        ),
    )
    encoder_options: dict[str, Any] | None = field(
        default=None, metadata=_help("Options of the encoder: JSON values, passed to it by keyword.")
    )
    encoder_tuning: str = field(
        default="none",
        metadata=_help(
            "Part of the request encoder that is trained with the generator: 'none', its 'last' layer, or 'all' of it "
            "(CRAMER, section 'Encoder'). The tuned copies belong to the adapter; the encoder itself does not change."
        ),
    )
    encoder_fingerprint: str | None = field(
        default=None,
        metadata=_help(
            "Filled in at injection if the encoder is tuned: digest of its parameters, checked when the adapter is "
            "loaded, because only the tuned ones are saved."
        ),
    )
    request_dim: int | None = field(
        default=None,
        metadata=_help("Width of the request vectors. Filled in from the encoder, if there is one."),
    )
    default_request: str | list[float] | None = field(
        default=None,
        metadata=_help(
            "Request of every call that gives none: a text, or a vector of request_dim numbers. It is saved with the "
            "adapter. None: such calls are the frozen model's."
        ),
    )
    init_weights: bool = field(
        default=True,
        metadata=_help(
            "True: the generator starts at the identity ('low_rank', 'scale', 'signed'). False: at random gates, "
            "for tests."
        ),
    )
    batch_dim: int = field(
        default=0,
        metadata=_help("Dimension of the masked layers' inputs that holds the rows of the batch."),
    )
    batch_folding: str | None = field(
        default=None,
        metadata=_help(
            "Repetition of requests if a masked layer's input holds n times as many rows as there are requests. None: "
            "refuse. 'rows_first': each request is used for n neighbours (beams of generate, (rows · n, …) made by "
            "reshape). 'rows_last': all requests repeat in turn."
        ),
    )
    module_parts: list[str] | None = field(
        default=None,
        metadata=_help(
            "Parts to mask of modules that have several: 'q', 'k', 'v', 'heads' and 'out' of attention, 'input' and "
            "'output' of recurrent layers. None: all."
        ),
    )
    masked_modules: dict[str, list[int]] | None = field(
        default=None,
        metadata=_help(
            "Filled in at injection: name of each masked module or part → [out_features, in_features], [features] "
            "for gates on features alone, or [] where the rows are described (row_features)."
        ),
    )
    base_fingerprint: str | None = field(
        default=None,
        metadata=_help("Filled in at injection: digest of the masked weights, checked when the adapter is loaded."),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = RequestMaskPeftType.REQUEST_MASK
        self.named_to_save = tuple(self.modules_to_save or ())  # PEFT adds others by task_type
        if isinstance(self.target_modules, (set, tuple)):
            self.target_modules = sorted(self.target_modules)
        if isinstance(self.exclude_modules, (set, tuple)):
            self.exclude_modules = sorted(self.exclude_modules)
        self._check_types()
        self._check_targets()
        self._check_form()
        self._check_encoder()

    @classmethod
    def paper(cls, **overrides: Any) -> "RequestMaskConfig":
        """Return the paper's configuration: top-k binary gates from one linear layer, the bias ungated.

        Drop ratio 0.1 and a straight-through temperature from 0.7 to 0.3 (CRAMER, ICML 2026, section
        "Settings"); target modules are the feed-forward and attention-output projections. Its loss is
        [`SparsityLoss`][cramer_peft.training.SparsityLoss] beside the backbone's own.

        Args:
            **overrides: Fields to set otherwise, for example ``drop_ratio=0.05``.
        """
        return cls(
            **{"gate": "topk", "drop_ratio": 0.1, "generator_width": None, "normalize_requests": False, **overrides}
        )

    def with_values(self, **values: Any) -> "RequestMaskConfig":
        """Return a copy with other values, without checks: for values that come from a model and not from a person."""
        new = copy.copy(self)
        for name, value in values.items():
            setattr(new, name, value)
        return new

    def copy(self) -> "RequestMaskConfig":
        """Return a copy, without the values that an injection has filled in."""
        return dataclasses.replace(self.as_given())

    def as_given(self) -> "RequestMaskConfig":
        """Return the configuration as it was before an injection filled in values, to use it for another model."""
        given = self.__dict__.get("_given")
        return self if given is None else dataclasses.replace(self, **given)

    def filled_in(self, filled: "RequestMaskConfig") -> "RequestMaskConfig":
        """Fill in the values that an injection took from the model; :meth:`as_given` still returns the original ones.

        Returns this object itself, as PEFT's own methods do, or a copy if another model that differs uses it already.
        """
        before, in_use = self.as_given(), "_given" in self.__dict__
        if in_use and self != filled:
            return before.filled_in(filled)
        changed = {
            item.name: getattr(before, item.name)
            for item in dataclasses.fields(self)
            if getattr(before, item.name) != getattr(filled, item.name)
        }
        for item in dataclasses.fields(self):
            setattr(self, item.name, getattr(filled, item.name))
        self._given = changed
        return self

    def fill_in(self, **values: Any) -> None:
        """Set fields that a model fills in after the injection; :meth:`as_given` still returns the original ones."""
        given = self.__dict__.setdefault("_given", {})
        for name, value in values.items():
            given.setdefault(name, getattr(self, name))
            setattr(self, name, value)

    def to_dict(self) -> dict[str, Any]:
        """Return the configuration as JSON values."""
        values = dataclasses.asdict(self)
        # PEFT condenses a long list of target modules into a set.
        values = {name: sorted(value) if isinstance(value, set) else value for name, value in values.items()}
        values["peft_type"] = self.peft_type.value if isinstance(self.peft_type, RequestMaskPeftType) else None
        return values

    def _check_types(self) -> None:
        for name in ("rank", "generator_width", "request_dim"):
            value = getattr(self, name)
            if value is not None and (not is_int(value) or value < 1):
                raise ConfigError(f"{name} must be a whole number of at least 1, found {value!r}.")
        for name in ("strength", "drop_ratio", "temperature_start", "temperature_end"):
            value = getattr(self, name)
            if (value is not None or name == "strength") and not is_finite_number(value):
                raise ConfigError(f"{name} must be a finite number, found {value!r}.")
        for name in ("init_weights", "inference_mode", "normalize_requests"):
            if not isinstance(getattr(self, name), bool):
                raise ConfigError(f"{name} must be true or false, found {getattr(self, name)!r}.")
        for name in ("gate_bias", "shared_masks"):
            if getattr(self, name) is not None and not isinstance(getattr(self, name), bool):
                raise ConfigError(f"{name} must be true, false or None, found {getattr(self, name)!r}.")
        if not is_int(self.batch_dim) or self.batch_dim == -1:
            raise ConfigError(
                f"batch_dim must be a whole number other than -1 (the last dimension holds features), "
                f"found {self.batch_dim!r}."
            )
        if self.batch_folding not in (None, "rows_first", "rows_last"):
            raise ConfigError(f"batch_folding must be 'rows_first', 'rows_last' or None, found {self.batch_folding!r}.")
        for name in ("base_fingerprint", "encoder_fingerprint"):
            if getattr(self, name) is not None and not isinstance(getattr(self, name), str):
                raise ConfigError(f"{name} must be text or None, found {getattr(self, name)!r}.")
        if self.masked_modules is not None and not is_layout(self.masked_modules):
            raise ConfigError("masked_modules must map names to [out_features, in_features], [features] or [].")
        check_outputs(self.target_outputs, self.row_features, self.row_fingerprints)
        check_sides(self.request_sides, self.request_dim)

    def _check_targets(self) -> None:
        for name in ("target_modules", "exclude_modules", "layers_pattern", "modules_to_save", "module_parts"):
            value = getattr(self, name)
            allowed_str = name not in ("modules_to_save", "module_parts")
            if value is None or (allowed_str and isinstance(value, str)):
                continue
            if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
                raise ConfigError(
                    f"{name} must be a list of names{' or one string' if allowed_str else ''}, found {value!r}."
                )
        self._check_patterns()
        if self.target_modules is not None and len(self.target_modules) == 0 and not self.target_outputs:
            raise ConfigError("target_modules is empty: name at least one module, or leave it out for the default.")
        layers = self.layers_to_transform
        if layers is not None:
            if not all(is_int(i) and i >= 0 for i in (layers if isinstance(layers, list) else [layers])):
                raise ConfigError(f"layers_to_transform must be layer indices of at least 0, found {layers!r}.")
            if isinstance(self.target_modules, str):
                raise ConfigError(
                    "layers_to_transform needs target_modules as a list; with a regular expression or 'all-linear', "
                    "select the layers there or by exclude_modules."
                )
        elif self.layers_pattern is not None:
            raise ConfigError("layers_pattern does nothing without layers_to_transform: give both or neither.")

    def _check_patterns(self) -> None:
        for name in ("target_modules", "exclude_modules", "layers_pattern", "modules_to_save"):
            value = getattr(self, name)
            if isinstance(value, str):
                patterns = [value]
            else:  # the items of these two lists are patterns too
                patterns = (value or []) if name in ("layers_pattern", "modules_to_save") else []
            for pattern in patterns:
                try:
                    re.compile(pattern)
                except (re.error, OverflowError, RecursionError) as error:
                    raise ConfigError(f"{name}: {pattern!r} is not a regular expression: {error}.") from error

    def _check_form(self) -> None:
        if not isinstance(self.gate, str) or self.gate not in FORMS:
            raise ConfigError(f"gate must be one of {sorted(FORMS)}, found {self.gate!r}.")
        for name, defaults in _FORM_FIELDS.items():
            if getattr(self, name) is None:
                setattr(self, name, defaults.get(self.gate))
            elif self.gate not in defaults:
                raise ConfigError(
                    f"{name} belongs to gate={' or '.join(map(repr, defaults))}, but gate is {self.gate!r}: "
                    f"leave {name} out or change the gate."
                )
        if self.drop_ratio is not None and not 0.0 <= self.drop_ratio < 1.0:
            raise ConfigError(f"drop_ratio must be at least 0 and below 1, found {self.drop_ratio!r}.")
        for name in ("temperature_start", "temperature_end"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ConfigError(f"{name} must be above 0, found {value!r}.")
        if self.temperature_schedule not in (None, *SCHEDULES):
            raise ConfigError(
                f"temperature_schedule must be one of {', '.join(SCHEDULES)}, found {self.temperature_schedule!r}."
            )
        if self.gate == "topk" and self.strength != 1.0:
            raise ConfigError(
                f"gate='topk' has binary gates and no strength: strength must be 1, found {self.strength}."
            )

    def _check_encoder(self) -> None:
        if self.encoder is None and self.request_dim is None:
            self.encoder = DEFAULT_ENCODER
        if self.encoder is not None and not isinstance(self.encoder, str):
            raise ConfigError(
                f"encoder must be a registered name, found {type(self.encoder).__name__}. Pass an encoder object to "
                "inject_request_masks(…, encoder=…) instead: a configuration holds only JSON values."
            )
        self._check_default_request()
        if self.encoder_tuning not in ("none", "last", "all"):
            raise ConfigError(f"encoder_tuning must be 'none', 'last' or 'all', found {self.encoder_tuning!r}.")
        if self.encoder_tuning != "none" and self.encoder is None:
            raise ConfigError("encoder_tuning without encoder: name the encoder, or leave it at 'none'.")
        if self.encoder_options is None:
            return
        if self.encoder is None:
            raise ConfigError("encoder_options without encoder: name the encoder, or leave the options out.")
        try:
            round_trip = json.loads(json.dumps(self.encoder_options, allow_nan=False))
        except (TypeError, ValueError) as error:
            raise ConfigError(f"encoder_options must hold JSON values only: {error}.") from error
        if not isinstance(self.encoder_options, dict) or round_trip != self.encoder_options:
            raise ConfigError("encoder_options must be a dict of JSON values with text keys (no tuples).")

    def _check_default_request(self) -> None:
        request = self.default_request
        if request is None:
            return
        if isinstance(request, str):
            if self.encoder is None:
                raise ConfigError("default_request as a text needs an encoder: name it, or give a vector of numbers.")
            if not request.strip():
                raise ConfigError("default_request is blank, which asks nothing: leave it out.")
        elif not isinstance(request, list) or not request or not all(is_finite_number(value) for value in request):
            raise ConfigError(f"default_request must be a text or a list of finite numbers, found {request!r}.")
        elif self.request_dim is not None and len(request) != self.request_dim:
            raise ConfigError(
                f"default_request must hold request_dim={self.request_dim} numbers, found {len(request)}."
            )
