"""Blocks of a request that overlap, or in which something else is changed, are right or refused."""

from collections.abc import Iterator
from contextvars import copy_context

import pytest
import torch
from torch import Tensor, nn

from cramer_peft import RequestMaskModel, inject_request_masks
from cramer_peft.errors import MergeError, RequestError


@pytest.fixture
def masks(model: nn.Module, make_config) -> RequestMaskModel:
    masks = inject_request_masks(model, make_config())
    masks.add_adapter("second", make_config())
    return masks


def stream(masks: RequestMaskModel, x: Tensor, text: str) -> Iterator[Tensor]:
    with masks.request(text):
        yield masks.model(x)
        yield masks.model(x)


def test_streams_that_overlap_are_refused_and_leave_nothing(masks: RequestMaskModel, x: Tensor) -> None:
    frozen = masks(x)
    first, second = stream(masks, x, "drama"), stream(masks, x, "horror")
    next(first), next(second), next(first)
    with pytest.raises(RequestError, match="ended while another one was open"):
        list(first)
    assert torch.equal(next(second), masks(x, request="horror"))
    assert list(second) == []
    assert torch.equal(masks(x), frozen)


def test_streams_that_are_closed_in_another_order_warn_and_leave_nothing(masks: RequestMaskModel, x: Tensor) -> None:
    frozen = masks(x)
    first, second = stream(masks, x, "drama"), stream(masks, x, "horror")
    next(first), next(second)
    with pytest.warns(RuntimeWarning, match="ended while another one was open"):
        first.close()
    second.close()
    assert torch.equal(masks(x), frozen)


def test_a_stream_that_is_stepped_in_copies_of_the_context_is_refused(masks: RequestMaskModel, x: Tensor) -> None:
    steps = stream(masks, x, "drama")
    copy_context().run(next, steps)
    with pytest.raises(RequestError, match="in another context"):
        copy_context().run(list, steps)


def test_names_of_rows_that_overlap_are_refused(masks: RequestMaskModel, x: Tensor) -> None:
    context = masks.request_context
    first, second = context.naming_rows(["default"] * 3), context.naming_rows(["second"] * 3)
    first.__enter__()
    second.__enter__()
    with pytest.raises(RequestError, match="ended while another one was open"):
        first.__exit__(None, None, None)
    second.__exit__(None, None, None)
    assert context.row_names() is None


@pytest.mark.parametrize("through", ["root", "layer"])
def test_another_adapter_inside_a_block_is_refused(masks: RequestMaskModel, x: Tensor, through: str) -> None:
    def call() -> Tensor:
        return masks.model(x) if through == "root" else masks.model.predict(x)

    with masks.request("drama"):
        before = call()
        masks.set_adapter("second")
        with pytest.raises(RequestError, match=r"set_adapter\(\['second'\]\) was called inside .* \['default'\]"):
            call()
        masks.set_adapter("default")
        assert torch.equal(call(), before)
    with masks.request("drama", adapter_names=["default", "second", "__base__"]):
        before = call()
        masks.set_adapter("second")
        assert torch.equal(call(), before)


def test_merging_inside_a_block_is_refused(masks: RequestMaskModel, x: Tensor) -> None:
    masks.set_default_request("comedy")
    with masks.request("drama"):
        for merge in (lambda: masks.merge_request("horror"), masks.merge_adapter):
            with pytest.raises(MergeError, match="block is open here"):
                merge()
        assert not masks.merged
    block = masks.lazy_masks("drama")  # of another thread
    masks.merge_request("horror")
    assert block is not None
    with pytest.raises(MergeError, match="while the block of another one was open"):
        block.for_call()
