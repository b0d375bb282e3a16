import pytest
import torch
from torch import nn

from cramer_peft.errors import RequestError
from cramer_peft.generator import RequestMaskGenerator
from cramer_peft.masks import KEY_WIDTH, LayerSpec, LowRankForm, RowSpec, ScaleForm, TopKForm

SPECS = {"block.up": LayerSpec(6, 4), "block.down": LayerSpec(4, 6)}


@pytest.mark.parametrize("gate", [LowRankForm(2), ScaleForm(), TopKForm()])
@pytest.mark.parametrize("width", [None, 5])
def test_outputs_have_the_named_shapes(gate, width) -> None:
    generator = RequestMaskGenerator(8, SPECS, gate, width, identity=False)
    output = generator(torch.randn(3, 8))
    assert list(output) == list(SPECS)
    for name, spec in SPECS.items():
        assert {part: tuple(v.shape) for part, v in output[name].items()} == {
            part: (3, *shape) for part, shape in gate.parts(spec).items()
        }
    assert not torch.equal(
        output["block.up"][next(iter(output["block.up"]))][0], output["block.up"][next(iter(output["block.up"]))][1]
    )


def test_without_a_width_it_is_one_linear_layer() -> None:
    generator = RequestMaskGenerator(8, SPECS, ScaleForm(), None)
    assert sorted(generator.state_dict()) == ["head.bias", "head.weight"]
    assert isinstance(generator.trunk, nn.Identity)
    assert generator.head.out_features == 20


@pytest.mark.parametrize("gate", [LowRankForm(2), ScaleForm()])
@pytest.mark.parametrize("width", [None, 5])
def test_identity_start_masks_nothing(gate, width) -> None:
    generator = RequestMaskGenerator(8, SPECS, gate, width, identity=True)
    for layer in gate.build(generator(torch.randn(3, 8)), None, None, training=True).values():
        assert torch.equal(layer.weight_mask(), torch.ones_like(layer.weight_mask()))


def test_vectors_take_the_generators_dtype() -> None:
    generator = RequestMaskGenerator(8, SPECS, ScaleForm(), 5)
    vectors = torch.randn(3, 8).half()
    output = generator(vectors)["block.up"]["row_logits"]
    assert output.dtype == torch.float32
    assert torch.equal(output, generator(vectors.float())["block.up"]["row_logits"])


def test_outputs_of_described_rows_come_last_and_start_at_zero() -> None:
    specs = {"a.head": RowSpec(7), "b": LayerSpec(3, 2), "c:forward": RowSpec()}
    generator = RequestMaskGenerator(4, specs, LowRankForm(rank=1), None, sides={"wanted": 2, "unwanted": 2})
    assert generator.row_keys == {"a.head": None, "c:forward": None}
    with pytest.raises(RequestError, match=r"'a\.head': its row features are not set"):
        generator(torch.ones(1, 4))
    for entry in generator.row_entries:
        keys = generator.describe_rows(entry, 5)
        assert generator.describe_rows(entry, 5) is keys
        keys.features = torch.ones(7, 5)
    tensors = generator(torch.randn(3, 4))
    assert tensors["b"]["a"].shape == (3, 1, 3)
    for entry in generator.row_entries:
        assert torch.equal(tensors[entry]["query"], torch.zeros(3, KEY_WIDTH + 2))
    assert not any("features" in name for name in generator.state_dict())


@pytest.mark.parametrize("gate", [LowRankForm(2), ScaleForm()])
def test_it_warns_once_that_it_was_never_trained(gate, recwarn) -> None:
    generator = RequestMaskGenerator(8, SPECS, gate, 5)
    generator(torch.randn(3, 8))
    assert not recwarn, "a training step"
    with torch.no_grad():
        with pytest.warns(UserWarning, match="never trained, so requests change nothing: train its generator"):
            generator(torch.randn(3, 8))
        recwarn.clear()
        generator(torch.randn(3, 8))
    assert not recwarn


@pytest.mark.parametrize("gate", [LowRankForm(2), ScaleForm(), TopKForm()])
def test_it_does_not_warn_when_a_request_can_change_something(gate, recwarn) -> None:
    trained = RequestMaskGenerator(8, SPECS, gate, 5)
    sum(value.sum() for parts in trained(torch.randn(3, 8)).values() for value in parts.values()).backward()
    torch.optim.SGD(trained.parameters(), lr=0.1).step()
    with torch.no_grad():
        trained(torch.randn(3, 8))
        RequestMaskGenerator(8, SPECS, gate, 5, identity=False)(torch.randn(3, 8))
    assert not recwarn
