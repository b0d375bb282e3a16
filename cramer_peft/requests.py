"""Turns requests, in any form that users give them, into one: vectors, rows that have a request, and strengths."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Union

import torch
from torch import Tensor

from cramer_peft.errors import MergeError, RequestError
from cramer_peft.mask_state import MaskState

Request = Union[str, Tensor, None]
Requests = Union[Request, Sequence[Request]]
AdapterRequests = Union[Requests, MaskState]
AllRequests = Union[AdapterRequests, Mapping[str, AdapterRequests]]
Strength = Union[float, Sequence[float], Tensor, None]
_HALF_PRECISION = 2  # bytes of a number
_SHORTEST = 1e-12  # torch's normalize divides by no less, so that a shorter vector would lose its request
EncodeTexts = Callable[[Sequence[str]], Tensor]


@dataclass(frozen=True)
class RequestBatch:
    """The requests of a batch in one form."""

    vectors: Tensor  # (rows, request_dim); rows without a request hold zeros
    active: Tensor | None  # rows that have a request, (rows,) bool; None if all have
    texts: tuple[str | None, ...]
    shared: bool  # the one row stands for a batch of any size


def batch_requests(requests: Requests, request_dim: int, encode: EncodeTexts) -> RequestBatch | None:
    """Return requests in one form, or None if no row has a request.

    One text or (request_dim,) vector is for the whole batch; a sequence of texts, vectors and None, or a (rows,
    request_dim) tensor, has one per row. None, blank texts and the missing texts of pandas are no request.
    """
    if requests is None:
        return None
    if isinstance(requests, str):
        return _from_sequence([requests], request_dim, encode, shared=True)
    if isinstance(requests, Tensor):
        vectors = requests[None] if requests.dim() == 1 else requests
        _check_vectors(vectors, request_dim)
        return RequestBatch(vectors, None, (None,) * vectors.shape[0], shared=requests.dim() == 1)
    if isinstance(requests, Sequence):
        return _from_sequence(requests, request_dim, encode, shared=False)
    if (listed := as_rows(requests)) is not requests:
        return batch_requests(listed, request_dim, encode)
    raise RequestError(
        f"a request must be a text, a tensor, a mask state, None, or a sequence of these with one for each row; "
        f"found {type(requests).__name__}."
    )


def as_rows(requests: Any) -> Any:
    """Return a column of pandas or numpy as a list, and anything else as it is."""
    listed = not isinstance(requests, (Tensor, MaskState)) and hasattr(requests, "tolist")
    return requests.tolist() if listed else requests


def _is_missing(request: Any) -> bool:
    """Return True for None and for NaN or NA, as pandas writes a missing text."""
    nan = isinstance(request, float) and request != request
    return request is None or nan or request is getattr(sys.modules.get("pandas"), "NA", None)


def _from_sequence(
    requests: Sequence[Request], request_dim: int, encode: EncodeTexts, shared: bool
) -> RequestBatch | None:
    rows: dict[int, Tensor] = {}
    texts: dict[int, str] = {}
    for row, request in enumerate(requests):
        if isinstance(request, str):
            if request.strip():
                texts[row] = request
        elif isinstance(request, Tensor):
            if request.dim() != 1:
                raise RequestError(
                    f"request {row} must be a vector of {request_dim}, found shape {tuple(request.shape)}."
                )
            _check_vectors(request[None], request_dim, row)
            rows[row] = request
        elif not _is_missing(request):
            raise RequestError(f"request {row} must be a text, a tensor or None, found {type(request).__name__}.")
    if len(texts) == len(requests) > 0:  # the usual case, which needs no copy of each vector
        return RequestBatch(encode(list(texts.values())), None, tuple(texts.values()), shared)
    if texts:
        rows.update(zip(texts, encode(list(texts.values())), strict=True))
    if not requests:  # fits a batch of no rows alone
        return RequestBatch(torch.zeros(0, request_dim), None, (), shared)
    if not rows:
        return None
    vector = next(iter(rows.values()))
    dtype = vector.dtype
    for other in rows.values():
        dtype = torch.promote_types(dtype, other.dtype)
    empty = torch.zeros(request_dim, dtype=dtype, device=vector.device)
    vectors: list[Tensor] = []
    active: list[bool] = []
    kept_texts: list[str | None] = []
    for row in range(len(requests)):
        vectors.append(rows.get(row, empty).to(empty))
        active.append(row in rows)
        kept_texts.append(texts.get(row))
    marked = None if len(rows) == len(requests) else torch.tensor(active, device=vector.device)
    return RequestBatch(torch.stack(vectors), marked, tuple(kept_texts), shared)


def _check_vectors(vectors: Tensor, request_dim: int, first_row: int = 0) -> None:
    if vectors.dim() != 2 or vectors.shape[-1] != request_dim:
        raise RequestError(
            f"request vectors must be of width {request_dim} (rows, {request_dim}), found shape {tuple(vectors.shape)}."
        )
    if not vectors.dtype.is_floating_point:
        raise RequestError(f"request vectors must be floating point, found {vectors.dtype}.")
    if not can_be_looked_at(vectors):
        return
    if vectors.layout != torch.strided or vectors.is_meta or vectors.element_size() < _HALF_PRECISION:
        found = "on the meta device" if vectors.is_meta else f"{vectors.dtype}, {vectors.layout}"
        raise RequestError(
            f"request vectors must be dense, of 16 bits a number or more, and have values; found {found}."
        )
    lengths = torch.linalg.vector_norm(vectors.detach().float(), dim=-1)  # as the generator computes them
    usable = torch.isfinite(lengths) & ((lengths >= _SHORTEST) | (vectors.detach() == 0).all(-1))
    if not bool(usable.all()):
        row = int((~usable).nonzero()[0])
        raise RequestError(
            f"the vector of request {row + first_row} holds NaN or infinity, or its length {float(lengths[row]):.2g} "
            f"is none that float32 can divide by: give finite numbers of a length between {_SHORTEST:g} and 1e19."
        )


def batch_strength(strength: Strength, default: float, rows: int, shared: bool) -> Tensor | None:
    """Return the strength per row, (rows,) or, for a shared request, as many as were given; None if all are 1."""
    value = default if strength is None else strength
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        if value != value or abs(value) > torch.finfo(torch.float32).max:
            raise RequestError(f"strength must be a finite number, found {value!r}.")
        return None if value == 1 else torch.full((rows,), float(value))
    try:
        values = torch.as_tensor(value, dtype=torch.float32)
    except (TypeError, ValueError, RuntimeError) as error:
        raise RequestError(f"strength must be a number or one number for each row, found {value!r}.") from error
    if values.dim() == 0:
        values = values.expand(rows)
    if values.dim() != 1 or (values.shape[0] != rows and not shared):
        raise RequestError(
            f"strength must be a number or one number for each of the {rows} rows, found shape {tuple(values.shape)}."
        )
    if can_be_looked_at(values) and not bool(torch.isfinite(values).all()):
        raise RequestError("strength must hold finite numbers only.")
    return values


def check_still_valid(holder: Any, active: list[str] | None, before: Callable[[], None]) -> None:
    """Check that nothing made a block's masks wrong since it was opened for ``active``; ``before`` is checked first.

    None as ``active``: the block names the adapter of each row.
    """
    before()
    if holder.merged:
        raise MergeError(
            "a request was merged while the block of another one was open: call unmerge(), or leave the block."
        )
    if active is not None and holder.active_adapters != active:
        raise RequestError(
            f"set_adapter({holder.active_adapters}) was called inside a request's block that was opened for {active}: "
            "open the block after it, or give the block adapter_names."
        )


def can_be_looked_at(x: Tensor) -> bool:
    """Return True if Python may look at the values of ``x``: it is not being compiled or transformed (vmap, grad)."""
    return not torch.compiler.is_compiling() and not torch._C._functorch.is_functorch_wrapped_tensor(x)


def without_silent(batch: RequestBatch) -> RequestBatch | None:
    """Return a batch without the texts whose vector is zero, of no known word; None if no row has a request then.

    While compiling the batch is returned as it is, because reading values would break the graph.
    """
    if not can_be_looked_at(batch.vectors):
        return batch
    silent = (batch.vectors == 0).all(-1)
    if not bool(silent.any()):
        return batch
    silent &= torch.tensor([text is not None for text in batch.texts], device=batch.vectors.device)
    if not bool(silent.any()):
        return batch
    active = ~silent if batch.active is None else batch.active & ~silent
    return replace(batch, active=active) if bool(active.any()) else None


def requests_by_adapter(requests: AllRequests, active: list[str]) -> dict[str, AdapterRequests]:
    """Return the requests of each active adapter, by name: all the same, or each its own by a dictionary."""
    if isinstance(requests, Mapping):
        unknown = sorted(set(requests) - set(active))
        if unknown:
            raise RequestError(f"requests were given for {unknown}; the active adapters are {active}.")
        return dict(requests)
    if isinstance(requests, MaskState) and len(active) > 1:
        if requests.adapter not in active:
            raise RequestError(
                f"the mask state is of adapter {requests.adapter!r}; the active adapters are {active}. Name the one it "
                "is for: request={name: state}."
            )
        return {requests.adapter: requests}
    return dict.fromkeys(active, requests)


def requests_by_row(requests: AllRequests, rows: int) -> list[Request]:
    """Return one request for each row of a batch that names its adapters by row."""
    requests = as_rows(requests)
    if isinstance(requests, (MaskState, Mapping)):
        raise RequestError(
            "adapter_names gives each row its adapter: give texts, vectors or None, one for each row or one for all, "
            f"not a {type(requests).__name__}."
        )
    if requests is None or isinstance(requests, str) or (isinstance(requests, Tensor) and requests.dim() == 1):
        return [requests] * rows
    if not isinstance(requests, Sequence) and not (isinstance(requests, Tensor) and requests.dim() > 1):
        found = f"shape {tuple(requests.shape)}" if isinstance(requests, Tensor) else type(requests).__name__
        raise RequestError(
            "with adapter_names, requests are one for all rows, or a sequence or tensor with one for each row; found "
            f"{found}."
        )
    given = list(requests)
    if len(given) != rows:
        raise RequestError(f"adapter_names names {rows} rows, but {len(given)} requests were given.")
    return given
