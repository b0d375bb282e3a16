import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from cramer_peft import inject_request_masks
from cramer_peft.context import RequestContext
from cramer_peft.errors import RequestError, UnsupportedError
from cramer_peft.layers import MaskedConv1D, MaskedLinear
from cramer_peft.masks import LayerSpec


@pytest.mark.parametrize("bias", [True, False])
def test_linear_project_is_the_weight_without_the_bias(bias: bool) -> None:
    linear = nn.Linear(4, 6, bias=bias)
    layer = MaskedLinear(linear, "a", RequestContext())
    x = torch.randn(3, 2, 4)
    assert layer.spec(linear) == LayerSpec(out_features=6, in_features=4)
    assert (layer.out_features, layer.in_features) == (6, 4)
    assert layer.masked_weight(linear) is linear.weight
    assert layer.base_bias is linear.bias
    assert torch.equal(layer.base_forward(x), linear(x))
    assert torch.allclose(layer.project(x) + (linear.bias if bias else 0), linear(x), atol=1e-6)


def test_conv1d_stores_its_weight_the_other_way_round() -> None:
    conv = Conv1D(6, 4)
    nn.init.normal_(conv.bias)
    layer = MaskedConv1D(conv, "a", RequestContext())
    x = torch.randn(3, 2, 4)
    assert layer.spec(conv) == LayerSpec(out_features=6, in_features=4)
    assert torch.equal(layer.masked_weight(conv), conv.weight.T)
    assert torch.allclose(layer.project(x) + conv.bias, conv(x), atol=1e-6)
    folded = nn.functional.linear(x, layer.masked_weight(conv), conv.bias)
    assert torch.allclose(folded, conv(x), atol=1e-6)


def test_without_a_request_the_frozen_module_itself_is_called() -> None:
    linear = nn.Linear(4, 6)
    calls = []
    linear.register_forward_hook(lambda *_: calls.append(1))
    layer = MaskedLinear(linear, "a", RequestContext())
    x = torch.randn(2, 4)
    assert torch.equal(layer(x), linear(x))
    assert len(calls) == 2


def test_a_layer_has_no_parameters_of_its_own() -> None:
    linear = nn.Linear(4, 6)
    layer = MaskedLinear(linear, "a", RequestContext())
    assert list(layer.state_dict()) == ["base_layer.weight", "base_layer.bias"]
    assert layer.weight is linear.weight


def test_merging_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="merge"):
        MaskedLinear(nn.Linear(4, 6), "a", RequestContext()).merge()


@pytest.mark.parametrize("shape", [(3, 4), (3, 2, 4), (3, 2, 5, 4)])
def test_rows_along_the_first_dimension(make_config, gate: str, shape: tuple[int, ...]) -> None:
    model = nn.Sequential(nn.Linear(4, 6)).eval()
    masks = inject_request_masks(model, make_config(gate, target_modules=["0"], request_dim=5))
    x, requests = torch.randn(shape), torch.randn(3, 5)
    output = masks(x, request=requests)
    for row in range(3):
        alone = masks(x[row : row + 1], request=requests[row : row + 1])
        assert torch.allclose(output[row], alone[0], atol=1e-6)
    assert not torch.allclose(output, masks(x), atol=1e-3)


@pytest.mark.parametrize("batch_dim", [1, -2])
def test_batch_dim(make_config, gate: str, batch_dim: int) -> None:
    model = nn.Sequential(nn.Linear(4, 6)).eval()
    x, requests = torch.randn(2, 3, 4), torch.randn(3, 5)
    masks = inject_request_masks(
        model, make_config(gate, target_modules=["0"], request_dim=5, batch_dim=batch_dim, gate_bias=None)
    )
    output = masks(x, request=requests)
    gates = masks.masks_for(requests)["0"]
    for row in range(3):
        weight, bias = model[0].fold(gates, row)
        assert torch.allclose(output[:, row], nn.functional.linear(x[:, row], weight, bias), atol=1e-5)


def test_wrong_number_of_rows_names_module_and_both_counts(make_config, model, x) -> None:
    masks = inject_request_masks(model, make_config())
    with pytest.raises(RequestError, match=r"'up'.*found 3 rows.*2 requests"):
        masks(x, request=["a", "b"])
    with pytest.raises(RequestError, match=r"'up'.*found 3 rows.*4 requests"), masks.request(torch.randn(4, 16)):
        model.predict(x)
    assert torch.equal(masks(x, request=["a", "b", "c"])[1], masks(x, request=["z", "b", "c"])[1])


def test_a_batch_dimension_that_does_not_hold_the_rows(make_config, model, x) -> None:
    masks = inject_request_masks(model, make_config(batch_dim=1))
    with pytest.raises(RequestError, match=r"'up'.*found 5 rows in dimension 1.*3 requests.*batch_dim"):
        masks(x, request=["a", "b", "c"])


@pytest.mark.parametrize(("batch_dim", "shape"), [(0, (4,)), (1, (3, 4)), (2, (3, 2, 4)), (-2, (4,))])
def test_an_input_without_the_batch_dimension(make_config, batch_dim: int, shape: tuple[int, ...]) -> None:
    model = nn.Sequential(nn.Linear(4, 4))
    masks = inject_request_masks(model, make_config(target_modules=["0"], batch_dim=batch_dim))
    with pytest.raises(RequestError, match=r"'0'.*no batch dimension"):
        masks(torch.randn(shape), request=["a", "b", "c"])
    assert masks(torch.randn(shape), request="one for all").shape == shape
