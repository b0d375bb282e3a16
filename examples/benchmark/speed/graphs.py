"""CUDA graphs: the frozen model's call and ours under a request, each captured once and then replayed."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from benchmark.speed.models import SpeedModel
from benchmark.speed.notes import Notes
from benchmark.speed.rows import Form, Subject, Texts, adapted, encoded, made, with_shared_weights
from benchmark.speed.timing import Row
from cramer_peft import RequestMaskModel
from cramer_peft.encoders import RequestEncoder

FROZEN = "CUDA graph, frozen"
_WARM_UP = 3  # calls before the capture, as torch's documentation has it

_failed: list[torch.cuda.CUDAGraph] = []  # kept, since the allocator goes on asking those that did not end well


@dataclass(frozen=True)
class Captured:
    """One call as a graph.

    Attributes:
        graph: What is replayed.
        output: What the call returned; each replay writes its tensors anew.
        peak_bytes: The most that the call held at once while it was captured; a replay allocates nothing.
        kept: What holds the tensors that the graph reads, which it does not keep alive itself.
    """

    graph: torch.cuda.CUDAGraph
    output: Any
    peak_bytes: int
    kept: tuple[Any, ...]

    def replay(self) -> Any:
        """Run the call again; its output."""
        self.graph.replay()
        return self.output


def graph_rows(
    model: SpeedModel,
    batch: int,
    forms: tuple[Form, ...],
    encoder: RequestEncoder,
    notes: Notes,
    checks: list[dict[str, Any]],
) -> list[Subject]:
    """The frozen model and ours as CUDA graphs; ours is compared to the captured frozen model.

    Args:
        model: The model, on a CUDA device.
        batch: Number of rows.
        forms: Forms of mask.
        encoder: Makes the request vectors.
        notes: Told of what cannot be captured.
        checks: Gets one entry for each graph: whether its scores are those of the call that was captured.
    """
    inputs = model.make_inputs(batch)
    plain = with_shared_weights(model.module)
    found: list[Subject] = []

    def add(name: str, call: Callable[[], Any], module: nn.Module, against: str, *kept: Any) -> None:
        with notes.instead_of(name):
            captured, check = checked_capture(call, (call, module, inputs, *kept))
            checks.append({"row": name, "against": "eager", **check})
            row = Row(name, lambda _: captured.replay(), against)
            found.append(Subject(row, (module,), captured.peak_bytes))

    add(FROZEN, lambda: plain(**inputs), plain, "frozen")
    if not found:
        for form in forms:
            notes.add(f"{form}: CUDA graph", "the frozen model, which it is compared to, could not be captured")
        return found
    for form in forms:
        with notes.instead_of(f"{form}: CUDA graph"):
            own = form.encoder(encoder)
            masks = adapted(model, form, own)
            with torch.no_grad():
                state = masks.mask_state(encoded(model, own, Texts().new(batch)))
            _add_ours(add, masks, form, state, inputs)
    return found


def _add_ours(
    add: Callable[..., None], masks: RequestMaskModel, form: Form, state: Any, inputs: dict[str, Any]
) -> None:
    with torch.no_grad():
        ready = made(masks, state)  # the graph only reads them, and outlives the block
        with masks.request_context.using(ready):
            add(f"{form}: CUDA graph, gates ready", lambda: masks(**inputs), masks, FROZEN, ready)
    add(f"{form}: CUDA graph, mask state", lambda: masks(**inputs, request=state), masks, FROZEN, state)


def checked_capture(call: Callable[[], Any], kept: tuple[Any, ...] = ()) -> tuple[Captured, dict[str, Any]]:
    """Capture a call, and compare what replaying gives with what the call itself gave before.

    Returns:
        The graph, and ``equal`` (bit for bit), ``max_abs_difference`` and ``max_abs_score``, of the scores.
    """
    with torch.no_grad():
        before = scores_of(call()).clone()
        captured = capture(call, kept)
        replayed = scores_of(captured.replay())
        torch.cuda.synchronize()
        return captured, compared(replayed, before)


def compared(found: Tensor, expected: Tensor) -> dict[str, Any]:
    """``equal`` (bit for bit), ``max_abs_difference`` and ``max_abs_score`` (of ``expected``)."""
    return {
        "equal": torch.equal(found, expected),
        "max_abs_difference": float((found - expected).abs().max()),
        "max_abs_score": float(expected.abs().max()),
    }


def scores_of(output: Any) -> Tensor:
    """The scores in what a model returns: a tensor, or something with ``logits``."""
    if isinstance(output, Tensor):
        return output
    scores: Tensor = output["logits"] if isinstance(output, Mapping) else output.logits
    return scores


def capture(call: Callable[[], Any], kept: tuple[Any, ...] = ()) -> Captured:
    """Capture a call, after calls on a stream of their own. An error leaves the device usable.

    Args:
        call: Must look at no value on the CPU: a graph cannot wait for the device.
        kept: Kept as long as the graph.
    """
    stream, outside = torch.cuda.Stream(), torch.cuda.current_stream()
    stream.wait_stream(outside)
    with torch.no_grad(), torch.cuda.stream(stream):
        for _ in range(_WARM_UP):
            call()
    outside.wait_stream(stream)
    torch.cuda.synchronize()
    gc.collect()  # nothing that the device holds may be freed by chance during the capture
    graph = torch.cuda.CUDAGraph()
    held = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    try:
        with torch.no_grad(), torch.cuda.graph(graph, capture_error_mode="thread_local"):
            output = call()
    except Exception:
        _recover(graph, outside)
        raise
    peak = torch.cuda.max_memory_allocated() - held
    graph.replay()  # a first time, which also uploads it
    torch.cuda.synchronize()
    return Captured(graph, output, peak, kept)


def _recover(graph: torch.cuda.CUDAGraph, outside: Any) -> None:
    """Undo what a capture that failed leaves behind: its stream, and a random generator that waits for its end."""
    _failed.append(graph)
    torch.cuda.set_stream(outside)
    with contextlib.suppress(Exception):
        torch.cuda.synchronize()
    with contextlib.suppress(Exception):
        number, small = torch.zeros(1, device="cuda"), torch.cuda.CUDAGraph()
        with torch.cuda.graph(small, capture_error_mode="thread_local"):
            number.add_(1)  # the end of a capture that works sets the generator free
    torch.cuda.set_stream(outside)
