"""Requests as people give them, brought into one form: vectors, which rows have one, how strongly."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Union

import torch
from torch import Tensor

from cramer_peft.errors import RequestError

Request = Union[str, Tensor, None]
Requests = Union[Request, Sequence[Request]]
Strength = Union[float, Sequence[float], Tensor, None]
EncodeTexts = Callable[[Sequence[str]], Tensor]


@dataclass(frozen=True)
class RequestBatch:
    """Requests in one form.

    Attributes:
        vectors: Request vectors, (rows, request_dim); rows without a request hold zeros.
        active: Rows that have a request, (rows,) bool, or None where all have.
        texts: The text of each row where it came as text, else None.
        shared: Whether the one row stands for a whole batch of any size.
    """

    vectors: Tensor
    active: Tensor | None
    texts: tuple[str | None, ...]
    shared: bool


def batch_requests(requests: Requests, request_dim: int, encode: EncodeTexts) -> RequestBatch | None:
    """Bring requests into one form; None where no row has a request.

    Args:
        requests: One text or (request_dim,) vector for the whole batch; or, one per row, a sequence of
            texts, vectors and None, or a (rows, request_dim) tensor. None and blank texts ask nothing.
        request_dim: Width that vectors must have.
        encode: Turns texts into (texts, request_dim) vectors.

    Raises:
        RequestError: If a request is of another type or width, or a vector holds NaN or infinity.
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
    raise RequestError(
        f"a request must be a text, a tensor, a mask state, None, or a sequence of these with one for each row; "
        f"found {type(requests).__name__}."
    )


def _from_sequence(
    requests: Sequence[Request], request_dim: int, encode: EncodeTexts, shared: bool
) -> RequestBatch | None:
    rows: dict[int, Tensor] = {}
    texts: dict[int, str] = {}
    for row, request in enumerate(requests):
        if request is None or (isinstance(request, str) and not request.strip()):
            continue
        if isinstance(request, str):
            texts[row] = request
        elif isinstance(request, Tensor):
            if request.dim() != 1:
                raise RequestError(
                    f"request {row} must be a vector of {request_dim}, found shape {tuple(request.shape)}."
                )
            _check_vectors(request[None], request_dim, row)
            rows[row] = request
        else:
            raise RequestError(f"request {row} must be a text, a vector or None, found {type(request).__name__}.")
    if len(texts) == len(requests) > 0:  # without taking the vectors apart and putting them together again
        return RequestBatch(encode(list(texts.values())), None, tuple(texts.values()), shared)
    if texts:
        rows.update(zip(texts, encode(list(texts.values())), strict=True))
    if not rows:
        return None
    like = next(iter(rows.values()))
    dtype = functools.reduce(torch.promote_types, (vector.dtype for vector in rows.values()))
    empty = torch.zeros(request_dim, dtype=dtype, device=like.device)
    vectors = torch.stack([rows.get(row, empty).to(empty) for row in range(len(requests))])
    complete = len(rows) == len(requests)
    active = None if complete else torch.tensor([row in rows for row in range(len(requests))], device=like.device)
    return RequestBatch(vectors, active, tuple(texts.get(row) for row in range(len(requests))), shared)


def _check_vectors(vectors: Tensor, request_dim: int, first_row: int = 0) -> None:
    if vectors.dim() != 2 or vectors.shape[-1] != request_dim:
        raise RequestError(
            f"request vectors must be of width {request_dim} (rows, {request_dim}), found shape {tuple(vectors.shape)}."
        )
    if not vectors.dtype.is_floating_point:
        raise RequestError(f"request vectors must be floating point, found {vectors.dtype}.")
    if torch.compiler.is_compiling():
        return  # a look at the values would break the graph
    bad = (~torch.isfinite(vectors)).any(-1).nonzero().flatten().tolist()
    if bad:
        raise RequestError(f"the vector of request {bad[0] + first_row} holds NaN or infinity.")


def batch_strength(strength: Strength, default: float, rows: int, shared: bool) -> Tensor | None:
    """Strength per row, (rows,) or, for a shared request, as many as were given; None where all are 1.

    Raises:
        RequestError: If a strength is not a finite number, or there are not as many as rows.
    """
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
    if not torch.compiler.is_compiling() and not bool(torch.isfinite(values).all()):
        raise RequestError("strength must hold finite numbers only.")
    return values


def without_silent(batch: RequestBatch) -> RequestBatch | None:
    """Leave rows whose text an encoder turned into zeros to the frozen model: it says that nothing is asked.

    None where no row is left. While compiling the batch stays as it is, since a look at values breaks the graph.
    """
    if torch.compiler.is_compiling() or all(text is None for text in batch.texts):
        return batch
    silent = (batch.vectors == 0).all(-1) & torch.tensor(
        [text is not None for text in batch.texts], device=batch.vectors.device
    )
    if not bool(silent.any()):
        return batch
    active = ~silent if batch.active is None else batch.active & ~silent
    return replace(batch, active=active) if bool(active.any()) else None
