"""Half precision, autocast and moves: gates are made in float32, and rows without a request keep their bits."""

import pytest
import torch
from peft import get_peft_model

from cramer_peft import inject_request_masks

REQUESTS = ["more horror", None, "nothing sad"]
HALF = [torch.float16, torch.bfloat16]


@pytest.fixture(params=["ours", "peft"])
def door(request):
    return inject_request_masks if request.param == "ours" else get_peft_model


def handle(adapted):
    return adapted.base_model if hasattr(adapted, "get_base_model") else adapted


@pytest.mark.parametrize("dtype", HALF)
def test_a_base_model_in_half_precision(make_model, make_config, gate: str, x, door, dtype: torch.dtype) -> None:
    torch.manual_seed(1)
    expected = door(make_model(), make_config(gate)).eval()(x, request=REQUESTS)
    torch.manual_seed(1)
    model = make_model().to(dtype)
    masks, frozen = door(model, make_config(gate)).eval(), model(x)
    assert {parameter.dtype for parameter in handle(masks).generator.parameters()} == {torch.float32}
    output = masks(x, request=REQUESTS)
    assert output.dtype == dtype
    assert torch.equal(output[1], frozen[1])
    assert torch.allclose(output.float(), expected, atol=0.05)
    output.float().square().sum().backward()
    gradients = [parameter.grad for parameter in handle(masks).generator.parameters()]
    assert all(gradient is not None and torch.isfinite(gradient).all() for gradient in gradients)


@pytest.mark.parametrize("dtype", HALF)
def test_everything_cast_afterwards(make_model, make_config, gate: str, x, door, dtype: torch.dtype) -> None:
    masks = door(make_model(), make_config(gate)).eval()
    expected = masks(x, request=REQUESTS)
    masks.to(dtype)
    frozen, output = masks(x), masks(x, request=REQUESTS)
    assert {parameter.dtype for parameter in masks.parameters()} == {dtype}
    assert output.dtype == dtype
    assert torch.equal(output[1], frozen[1])
    if gate != "topk":  # logits in half precision may order otherwise
        assert torch.allclose(output.float(), expected, atol=0.05)
    assert not torch.equal(output[0], frozen[0])


@pytest.mark.parametrize("dtype", HALF)
def test_autocast(make_model, make_config, gate: str, x, door, dtype: torch.dtype) -> None:
    masks = door(make_model(), make_config(gate)).eval()
    expected = masks(x, request=REQUESTS)
    with torch.autocast("cpu", dtype=dtype):
        frozen, output = masks(x), masks(x, request=REQUESTS)
        with masks.request(REQUESTS):
            assert torch.equal(masks(x), output)
    assert torch.equal(output[1], frozen[1])
    if gate != "topk":
        assert torch.allclose(output.float(), expected.float(), atol=0.05)
    output.float().square().sum().backward()
    assert all(parameter.grad.dtype == torch.float32 for parameter in handle(masks).generator.parameters())


@pytest.mark.parametrize("dtype", HALF)
def test_autocast_of_the_generator_can_be_turned_off(model, make_config, x, dtype: torch.dtype) -> None:
    masks = get_peft_model(model.to(dtype), make_config(), autocast_adapter_dtype=False)
    assert {parameter.dtype for parameter in masks.base_model.generator.parameters()} == {dtype}
    assert masks.eval()(x, request=REQUESTS).dtype == dtype


def test_a_second_adapter_on_a_half_precision_base(model, make_config, x) -> None:
    masks = inject_request_masks(model.half(), make_config())
    masks.add_adapter("second", make_config("scale"))
    masks.set_adapter(["default", "second"])
    frozen, output = masks(x), masks(x, request=REQUESTS)
    assert output.dtype == torch.float16
    assert torch.equal(output[1], frozen[1])


def test_moving_the_handle_moves_model_and_generator(model, make_config, door) -> None:
    masks = door(model, make_config(default_request="more horror"))
    masks.to("meta")
    assert {tensor.device.type for tensor in (*masks.parameters(), *masks.buffers())} == {"meta"}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_and_back(make_model, make_config, gate: str, x, door) -> None:
    masks = door(make_model(), make_config(gate)).eval()
    expected, state = masks(x, request=REQUESTS), handle(masks).mask_state(REQUESTS)
    masks.to("cuda")
    frozen = masks(x.cuda())
    for request in (REQUESTS, state, state.to("cuda")):
        output = masks(x.cuda(), request=request)
        assert torch.equal(output[1], frozen[1])
        assert torch.allclose(output.cpu(), expected, atol=1e-4)
    masks.to("cpu")
    assert torch.equal(masks(x, request=REQUESTS), expected)
