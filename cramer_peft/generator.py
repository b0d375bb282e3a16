"""The generator, the trained part: it maps a request vector to the numbers that masks are made of."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn import functional

from cramer_peft.config import RequestMaskConfig
from cramer_peft.errors import RequestError, UnsupportedError
from cramer_peft.masks import (
    KEY_WIDTH,
    QUERY,
    LayerTensors,
    LowRankForm,
    Mask,
    MaskForm,
    RowKeys,
    RowSpec,
    ScaleForm,
    SignedForm,
    Spec,
    TopKForm,
    compared_width,
    row_value_mask,
)
from cramer_peft.masks.tracing import is_plain

_HIDDEN = 64  # of the network that all rows share, if the generator has no hidden layer


class RequestMaskGenerator(nn.Module):
    """Maps request vectors to the numbers that the masks of all masked layers are made of.

    Without a width this is the paper's single linear layer, z = W e + b (CRAMER, ICML 2026, section
    "Generator"); with one, a hidden layer that all masked layers share comes first. The order of ``specs`` is that of
    the outputs, entries with row values last. ``identity`` starts every mask at the identity, if the form can.

    ``row_keys`` are, by entry with row values, the modules that make its rows' keys; None until its features are set.
    """

    head: nn.Linear
    default_request: Tensor | None
    _looked = False  # whether it is trained

    def __init__(
        self,
        request_dim: int,
        specs: Mapping[str, Spec],
        form: MaskForm,
        width: int | None,
        identity: bool = True,
        normalize: bool = True,
        sides: Mapping[str, int] | None = None,
    ) -> None:
        super().__init__()
        self.request_dim = request_dim
        self.specs = dict(specs)
        self.form = form
        self.normalize = normalize  # to length sqrt(request_dim)
        # Entry, part and shape of each piece of the output, in order.
        own, self.row_entries, queries = dict(specs), [], []
        for entry, spec in specs.items():
            if isinstance(spec, RowSpec):
                del own[entry]
                self.row_entries.append(entry)
                queries.append((entry, QUERY, (KEY_WIDTH,)))
        pieces = [(entry, part, shape) for entry, spec in own.items() for part, shape in form.parts(spec).items()]
        self._pieces = [*pieces, *queries]
        self._sizes = [math.prod(shape) for _, _, shape in self._pieces]
        self.trunk = nn.Identity() if width is None else nn.Sequential(nn.Linear(request_dim, width), nn.GELU())
        self.head = nn.Linear(request_dim if width is None else width, sum(self._sizes))
        # The request of calls that give none; a buffer, so that it moves and is saved with the adapter.
        self.register_buffer("default_request", None)
        self.sides = dict(sides or {})
        self.identity = identity
        self.rows = nn.ModuleList()  # no ModuleDict: names of entries hold dots
        for _ in self.row_entries:
            self.rows.append(nn.Identity())
        form.init_head(self.head, own, identity)
        if self.row_entries and identity:
            with torch.no_grad():
                for parameter in (self.head.weight, self.head.bias):
                    parameter[-KEY_WIDTH * len(self.row_entries) :] = 0

    @property
    def row_keys(self) -> dict[str, RowKeys | None]:
        return {
            entry: keys if isinstance(keys, RowKeys) else None
            for entry, keys in zip(self.row_entries, self.rows, strict=True)
        }

    def describe_rows(self, entry: str, width: int) -> RowKeys:
        """Return the module that makes an entry's keys from ``width`` features; it is made if there is none yet."""
        place = self.row_entries.index(entry)
        keys = self.rows[place]
        if not isinstance(keys, RowKeys):
            hidden = self.trunk[0].out_features if isinstance(self.trunk, nn.Sequential) else _HIDDEN
            with self.head.weight.device:
                keys = RowKeys(width, hidden, self.sides)  # type: ignore[arg-type]
            if not self.identity:
                nn.init.normal_(keys.gains, std=0.3)
            keys.to(self.head.weight.dtype).requires_grad_(self.head.weight.requires_grad).train(self.training)
            self.rows[place] = keys
        return keys

    def parts(self, spec: Spec) -> dict[str, tuple[int, ...]]:
        """Return names and shapes (without the rows) of the tensors of an entry."""
        if isinstance(spec, RowSpec):
            return {QUERY: (KEY_WIDTH + compared_width(self.sides),)}
        return self.form.parts(spec)

    def build(
        self, tensors: Mapping[str, LayerTensors], strength: Tensor | None, active: Tensor | None, training: bool
    ) -> dict[str, Mask]:
        """Return the masks of tensors as :meth:`forward` returns them; the arguments are those of the forms."""
        if not self.row_entries:
            return self.form.build(tensors, strength, active, training)
        own = {entry: parts for entry, parts in tensors.items() if QUERY not in parts}
        masks = self.form.build(own, strength, active, training) if own else {}
        for entry in self.row_entries:
            masks[entry] = row_value_mask(tensors[entry][QUERY], self._keys(entry), strength, active)
        return masks

    def _keys(self, entry: str) -> RowKeys:
        keys = self.row_keys[entry]
        if keys is None or keys.features is None:
            raise RequestError(
                f"{entry!r}: its row features are not set, so no request can act. They are not stored with an adapter: "
                "call set_row_features(name, features) on the handle first."
            )
        return keys

    def forward(self, vectors: Tensor) -> dict[str, LayerTensors]:
        """Return the tensors of each entry by part, each (rows, …), for ``vectors`` of shape (rows, request_dim)."""
        weight = self.head.weight
        if isinstance(weight, DTensor):  # inside a call of the handle, fully_shard has gathered it
            raise UnsupportedError(
                "the generator is sharded (DTensor): give requests to the handle that was given to fully_shard, as "
                "masks(x, request=…). Blocks, merging and mask states need a handle that is not sharded."
            )
        if not torch.compiler.is_compiling() and not self._looked and is_plain(vectors):
            self._warn_untrained()
        # In float32 at least: in half precision the zeros of a row without a request would be normalised to 0 / 0.
        given = vectors.to(weight.device, torch.promote_types(weight.dtype, torch.float32))
        scaled = functional.normalize(given, dim=-1) * self.request_dim**0.5 if self.normalize else given
        tensors = self.split(self.head(self.trunk(scaled.to(weight.dtype))))
        for entry in self.row_entries:
            tensors[entry][QUERY] = self._keys(entry).query(tensors[entry][QUERY], given)
        return tensors

    def _warn_untrained(self) -> None:
        """Warn, once and not in a training step, if no request can change anything yet."""
        weight = self.head.weight
        if weight.is_meta or (weight.requires_grad and torch.is_grad_enabled()):
            return
        self._looked = True
        gains = [keys.gains for keys in self.rows if isinstance(keys, RowKeys)]
        if not any(bool(values.detach().any()) for values in (weight, *gains)):
            warnings.warn(
                "this adapter was never trained, so requests change nothing: train its generator, or load a trained "
                "adapter. init_weights=False gives random masks to try things with.",
                stacklevel=2,
            )

    def split(self, flat: Tensor) -> dict[str, LayerTensors]:
        """Cut an output of shape (rows, total) into the tensors of each entry, by part."""
        tensors: dict[str, LayerTensors] = {}
        for (entry, part, shape), piece in zip(self._pieces, flat.split(self._sizes, dim=-1), strict=True):
            # Contiguous, because kernels are chosen by strides, and a row's bits must not depend on its neighbours.
            tensors.setdefault(entry, {})[part] = piece.reshape(-1, *shape).contiguous()
        return tensors


def make_form(config: RequestMaskConfig) -> MaskForm:
    """Return the form of mask that a configuration describes."""
    if config.gate == LowRankForm.name:
        assert config.rank is not None
        return LowRankForm(config.rank)
    gate_bias = bool(config.gate_bias)
    if config.gate == TopKForm.name:
        assert config.drop_ratio is not None
        assert config.temperature_start is not None
        return TopKForm(config.drop_ratio, config.temperature_start, gate_bias, bool(config.shared_masks))
    return ScaleForm(gate_bias) if config.gate == ScaleForm.name else SignedForm(gate_bias)


def make_generator(config: RequestMaskConfig, specs: Mapping[str, Spec]) -> RequestMaskGenerator:
    """Return the generator that a configuration describes, on torch's default device."""
    assert config.request_dim is not None  # filled in at injection
    generator = RequestMaskGenerator(
        config.request_dim,
        specs,
        make_form(config),
        config.generator_width,
        identity=config.init_weights,
        normalize=config.normalize_requests,
        sides=config.request_sides,
    )
    widths = config.row_features if isinstance(config.row_features, dict) else {}
    for entry in generator.row_entries:
        row_width = widths.get(entry)
        if row_width is not None:
            generator.describe_rows(entry, row_width)
    if config.default_request is not None:
        request = config.default_request
        generator.default_request = (
            torch.zeros(config.request_dim) if isinstance(request, str) else torch.tensor(request)
        )
    return generator
