"""Row values made from descriptions of a layer's output rows, and the mask that adds them to its output.

A row is described by numbers that do not change, its *features*: for a recommender, an item's texts and embedding. The
value of a row under a request is a product of a vector of the row, its *key*, and one of the request, its *query*:

    z = c (u(e) . t(f) + sum_s g_s <e_s, f[:len(e_s)]>)

with the row's features f, one small network t that all rows share, the generator's output u(e), one learned number g_s
for each side e_s of the request, such as what it wants and what it does not want, and a constant c. No parameter
depends on the number of rows, and a row that is added later has a value at once. (The project's own; see "The method"
in the docs.)

The layer returns y + z. With z = 0 that is y, bit for bit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cramer_peft.errors import MergeError, RequestError, UnsupportedError
from cramer_peft.masks.mask import LayerMask, Projection, spread, with_strides_of
from cramer_peft.masks.tracing import is_plain

QUERY = "query"  # the one part of an entry with row values
KEY_WIDTH = 16  # numbers of a row's key that the network makes
SCALE = 8.0  # the constant c: scores span several units, and parameters learn best near 1


def compared_width(sides: Mapping[str, int]) -> int:
    """Return how many features of a row the sides of a request are compared with: all sides have one width."""
    return next(iter(sides.values()), 0)


class RowKeys(nn.Module):
    """The keys of a layer's rows, made from their features.

    Args:
        width: Number of features of a row.
        hidden: Width of the network's hidden layer.
        sides: Name and width of each side of a request that is compared with the first features of a row; {}: none.
    """

    features: Tensor | None

    def __init__(self, width: int, hidden: int, sides: Mapping[str, int]) -> None:
        super().__init__()
        self.sides = dict(sides)
        self.network = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, KEY_WIDTH))
        self.gains = nn.Parameter(torch.zeros(len(self.sides)))
        self.register_buffer("features", None, persistent=False)  # not stored: as large as the layer
        # The features and their version, the network's parameters, and the keys of all rows.
        self._kept: tuple[Tensor, int, tuple[Tensor, ...], Tensor] | None = None

    def query(self, made: Tensor, vectors: Tensor) -> Tensor:
        """Return the queries of requests, (requests, :attr:`query_width`).

        Args:
            made: The generator's outputs, (requests, KEY_WIDTH).
            vectors: The requests' vectors, (requests, request_dim): the sides one after the other.
        """
        made = SCALE * made
        if not self.sides:
            return made
        parts = vectors.to(made.dtype).split(list(self.sides.values()), dim=-1)
        compared = sum(SCALE * gain * part for gain, part in zip(self.gains, parts, strict=True))
        return torch.cat([made, compared], dim=-1)  # type: ignore[list-item]

    @property
    def query_width(self) -> int:
        """Width of a query."""
        return KEY_WIDTH + self.compared

    @property
    def compared(self) -> int:
        """Number of features that the sides are compared with."""
        return compared_width(self.sides)

    def keys(self, rows: Tensor | None = None) -> Tensor:
        """Return the keys of all rows, or of ``rows`` int64 of any shape, (..., :attr:`query_width`)."""
        features = self.features
        if features is None:
            raise RequestError("the row features are not set: call set_row_features(name, features) first.")
        parameters = tuple(self.network.parameters())
        changing = torch.is_grad_enabled() or torch.compiler.is_compiling() or not is_plain(features)
        if changing or any(map(torch._C._functorch.is_functorch_wrapped_tensor, parameters)):
            return self._made(features if rows is None else features[rows])
        kept = self._kept_keys(features, parameters)
        return kept if rows is None else kept[rows]

    def _made(self, features: Tensor) -> Tensor:
        return torch.cat([self.network(features), features[..., : self.compared]], dim=-1)

    def _kept_keys(self, features: Tensor, parameters: tuple[nn.Parameter, ...]) -> Tensor:
        """Return the keys of all rows, made once for equal parameters."""
        version = -1 if features.is_inference() else features._version
        kept = self._kept
        if kept is None or kept[0] is not features or kept[1] != version or not _equal(kept[2], parameters):
            copies = tuple(value.detach().clone() for value in parameters)
            kept = self._kept = (features, version, copies, self._made(features))
        return kept[3]

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_kept": None}  # a copy makes its own


def _equal(kept: tuple[Tensor, ...], current: tuple[Tensor, ...]) -> bool:
    # By value: an exchange of .data, or a change in place through it, moves no version counter.
    return all(
        old.device == new.device and old.dtype == new.dtype and torch.equal(old, new)
        for old, new in zip(kept, current, strict=True)
    )


@dataclass(frozen=True)
class RowValueMask(LayerMask):
    """Adds row values to a layer's output.

    ``query`` is (rows, query width). ``active`` (rows,) marks the rows that have a request, or is None if all have; the
    others are copied from the frozen output, because 0 times a NaN in a key would reach them.
    """

    query: Tensor
    active: Tensor | None
    keys: RowKeys

    def apply(self, layer: Projection, x: Tensor, batch_dim: int) -> Tensor:
        return self.add(layer.base_forward(x), batch_dim, layer.feature_dim)

    def add(
        self,
        output: Tensor,
        batch_dim: int,
        feature_dim: int = -1,
        chosen: Tensor | None = None,
        in_place: bool = False,
    ) -> Tensor:
        """Return ``output`` plus the values of all rows, or of the rows ``chosen``, (n,) or (batch, n) int64.

        With ``in_place`` the values may be added in ``output`` itself: a large tensor costs more to allocate than to
        fill.
        """
        kind = output.device.type
        if not torch.is_autocast_enabled(kind):
            return self._add(output, batch_dim, feature_dim, chosen, in_place)
        # It would round the frozen output, too; and keys that are kept must not depend on it.
        with torch.autocast(kind, enabled=False):
            return self._add(output, batch_dim, feature_dim, chosen, in_place)

    def _add(self, output: Tensor, batch_dim: int, feature_dim: int, chosen: Tensor | None, in_place: bool) -> Tensor:
        keys = self.keys.keys(chosen).to(output.dtype)
        if output.shape[feature_dim] != keys.shape[-2]:
            raise RequestError(
                f"an output of shape {tuple(output.shape)} has {output.shape[feature_dim]} features, but "
                f"{keys.shape[-2]} rows are described: give row features of the rows that the layer has, in their "
                "order, or name the argument that chooses some of them (target_outputs: 'candidates')."
            )
        changed = self._added(output, keys, batch_dim, feature_dim, in_place and self.active is None)
        if self.active is not None:
            chosen_rows = spread(self.active[:, None].float(), output, batch_dim, feature_dim) > 0
            changed = torch.where(chosen_rows, changed, output)
        return with_strides_of(changed, output)

    def _added(self, output: Tensor, keys: Tensor, batch_dim: int, feature_dim: int, in_place: bool) -> Tensor:
        query = self.query.to(output.dtype)
        if keys.dim() == 3:  # other rows for each row of the batch
            values = (keys @ query[..., None])[..., 0]
        elif output.dim() == 2 and batch_dim in (0, -2) and feature_dim == -1 and len(query) == len(output):
            if torch.is_grad_enabled() or torch.compiler.is_compiling() or not is_plain(output):
                return torch.addmm(output, query, keys.T)
            if in_place:
                return output.addmm_(query, keys.T)
            result = torch.empty_strided(output.shape, output.stride(), dtype=output.dtype, device=output.device)
            return torch.addmm(output, query, keys.T, out=result)  # the strides at once, without a copy
        else:
            values = query @ keys.T
        return output + spread(values, output, batch_dim, feature_dim)

    def weight_mask(self) -> Tensor:
        raise UnsupportedError("row values are added to an output: there is no mask on the weight.")

    def fold(self, weight: Tensor, bias: Tensor | None, row: int) -> tuple[Tensor, Tensor | None]:
        if bias is None:
            raise MergeError(
                "its row values are added to its output, so merging them would have to add a bias, which it does not "
                "have. Give the request at each call."
            )
        return weight, self.add(bias[None], 0)[row if self.rows > 1 else 0]


def row_value_mask(query: Tensor, keys: RowKeys, strength: Tensor | None, active: Tensor | None) -> RowValueMask:
    """Return the mask of queries (rows, width) at a strength (rows,); None: 1. ``active`` as for the forms."""
    return RowValueMask(query if strength is None else query * strength.to(query.dtype)[:, None], active, keys)
