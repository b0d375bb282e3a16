import copy
import inspect
import threading
from typing import Any

import pytest
import torch
import torch._dynamo
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter

from cramer_peft import inject_request_masks
from cramer_peft.layers import fused_encoder
from cramer_peft.layers.fused_encoder import UnfusedForward

TARGETS = {
    "attention": ["self_attn"],
    "one linear layer": ["layers.1.linear1"],
    "last attention": ["layers.1.self_attn"],
    "all": ["self_attn", "linear1", "linear2"],
}
PADDING = {"none": None, "left aligned": [5, 3, 1, 4], "empty row": [5, 3, 0, 4]}
# Older versions of torch cannot compile their own choice of nested tensors.
TORCH_COMPILES_PADDING = "is_compiling" in inspect.getsource(nn.TransformerEncoder.forward)
pytestmark = pytest.mark.filterwarnings(
    "ignore:The PyTorch API of nested tensors", "ignore:enable_nested_tensor is True"
)


class Scaled(nn.TransformerEncoderLayer):
    """Scales its input, and leaves the rest to torch's forward."""

    def forward(self, src: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return super().forward(src * 1.5, *args, **kwargs)


def encoder(layer: type = nn.TransformerEncoderLayer, norm: bool = False, **options: Any) -> nn.TransformerEncoder:
    torch.manual_seed(0)
    first = layer(8, 2, 16, **{"batch_first": True, "dropout": 0.0, **options})
    stack = nn.TransformerEncoder(first, 2, norm=nn.LayerNorm(8) if norm else None)
    for parameter in stack.parameters():  # torch makes the layers equal, and their biases zero
        nn.init.normal_(parameter, std=0.4)
    return stack.eval()


def padding_of(lengths: list[int] | None) -> dict[str, Tensor]:
    if lengths is None:
        return {}
    return {"src_key_padding_mask": torch.arange(5) >= torch.tensor(lengths)[:, None]}


def touched_layers(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(vars(module).get("forward"), UnfusedForward)]


class Weighing(nn.TransformerEncoderLayer):
    """Asks for the attention weights, whose softmax is NaN for a row without positions."""

    def _sa_block(self, x: Tensor, attn_mask: Any, key_padding_mask: Any, is_causal: bool = False) -> Tensor:
        return self.dropout1(self.self_attn(x, x, x, key_padding_mask, attn_mask=attn_mask)[0])


@pytest.fixture
def put_masks(make_config):
    def put(model: nn.Module, targets: list[str], gate: str = "low_rank", **options: Any):
        return inject_request_masks(model, make_config(gate, target_modules=targets, request_dim=3, **options))

    return put


@pytest.fixture
def fused_calls(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """One entry for each call of the fused kernel: whether it was given a nested tensor."""
    calls: list[bool] = []
    kernel = torch._transformer_encoder_layer_fwd

    def counted(src: Tensor, *args: Any) -> Tensor:
        calls.append(src.is_nested)
        return kernel(src, *args)

    monkeypatch.setattr(torch, "_transformer_encoder_layer_fwd", counted)
    return calls


@pytest.fixture
def src() -> Tensor:
    return torch.randn(4, 5, 8)


@pytest.mark.parametrize("padding", PADDING)
@pytest.mark.parametrize("targets", TARGETS)
def test_without_a_request_the_fused_path_is_taken_as_before(put_masks, fused_calls, src, targets, padding) -> None:
    model, kwargs = encoder(), padding_of(PADDING[padding])
    with torch.no_grad():
        expected = model(src, **kwargs)
        before = list(fused_calls)
        assert before == [bool(kwargs)] * 2
        masks = put_masks(model, TARGETS[targets])
        requests = torch.randn(4, 3)

        def assert_fused(output: Tensor) -> None:
            assert torch.equal(output, expected)
            assert fused_calls == before
            fused_calls.clear()

        fused_calls.clear()
        assert_fused(model(src, **kwargs))
        assert_fused(masks(src, request=None, **kwargs))
        with masks.request(requests):
            assert not torch.allclose(model(src, **kwargs)[0], expected[0], atol=1e-2)
            assert fused_calls == []
            with masks.disable_adapter():
                assert_fused(model(src, **kwargs))
                assert_fused(nn.TransformerEncoder.forward(model, src, **kwargs))  # past the root's own forward
            with masks.request(None):
                assert_fused(model(src, **kwargs))
        assert_fused(model(src, **kwargs))


@pytest.mark.parametrize("layer", [nn.TransformerEncoderLayer, Scaled])
@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("padding", PADDING)
@pytest.mark.parametrize("targets", TARGETS)
def test_a_masked_encoder_equals_the_fused_one_with_folded_weights(
    put_masks, fused_calls, src, gate, targets, padding, norm, layer
) -> None:
    model, kwargs = encoder(layer, norm), padding_of(PADDING[padding])
    masks, requests = put_masks(model, TARGETS[targets], gate), [torch.randn(3), None, torch.randn(3), torch.randn(3)]
    with torch.no_grad():
        frozen, output = model(src, **kwargs), masks(src, request=requests, **kwargs)
        assert torch.allclose(output[1], frozen[1], atol=1e-5)  # at padded positions, too
        assert not torch.allclose(output[0], frozen[0], atol=1e-3)
        for row in (0, 2, 3):
            masks.merge_request(requests[row])
            fused_calls.clear()
            expected = model(src, **kwargs)
            assert len(fused_calls) == 2
            masks.unmerge()
            assert torch.allclose(output[row], expected[row], atol=1e-5)


@pytest.mark.parametrize(
    "options", [{"batch_first": False}, {"norm_first": True}, {"activation": "gelu"}, {"bias": False}]
)
def test_kinds_of_layers(put_masks, gate, options) -> None:
    model = encoder(**options)
    batch_dim = 0 if options.get("batch_first", True) else 1
    masks = put_masks(model, TARGETS["all"], gate, batch_dim=batch_dim, gate_bias=None)
    src = torch.randn(4, 5, 8) if batch_dim == 0 else torch.randn(5, 4, 8)
    kwargs = {"mask": torch.full((5, 5), float("-inf")).triu(1), "is_causal": True}
    requests = torch.randn(4, 3)
    output = masks(src, request=requests, **kwargs)
    assert not torch.allclose(output, model(src, **kwargs), atol=1e-2)
    for row in range(4):
        masks.merge_request(requests[row])
        assert torch.allclose(output.select(batch_dim, row), model(src, **kwargs).select(batch_dim, row), atol=1e-5)
        masks.unmerge()


@pytest.mark.parametrize("padding", PADDING)
@pytest.mark.parametrize("targets", TARGETS)
def test_gradients_in_eval_mode_are_those_in_training_mode(put_masks, src, targets, padding) -> None:
    model, kwargs = encoder(), padding_of(PADDING[padding])
    masks, requests, weight = put_masks(model, TARGETS[targets]), torch.randn(4, 3), torch.randn(4, 5, 8)
    real = torch.arange(5) < torch.tensor(PADDING[padding] or [5] * 4)[:, None]
    found = []
    for train in (False, True):
        masks.train(train).zero_grad()
        output = masks(src, request=requests, **kwargs)
        (output * weight)[real].sum().backward()
        found.append([parameter.grad.clone() for parameter in masks.generator.parameters()])
    assert found[0][-1].abs().sum() > 0
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(*found, strict=True))


def test_a_row_without_positions_keeps_gradients_finite(put_masks, src) -> None:
    model = encoder(Weighing)
    masks, kwargs = put_masks(model, TARGETS["all"]), padding_of(PADDING["empty row"])
    output = masks(src, request=torch.randn(4, 3), **kwargs)
    assert torch.equal(output[2], torch.zeros(5, 8))
    output.square().sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in masks.generator.parameters())


def test_padding_that_is_not_left_aligned(put_masks, src) -> None:
    model = encoder()
    masks, requests = put_masks(model, TARGETS["all"]), torch.randn(4, 3)
    padding = torch.zeros(4, 5, dtype=torch.bool)
    padding[:, 1] = True
    with torch.no_grad():
        output = masks(src, request=requests, src_key_padding_mask=padding)
        for row in range(4):
            masks.merge_request(requests[row])
            expected = model(src, src_key_padding_mask=padding)
            masks.unmerge()
            assert torch.allclose(output[row], expected[row], atol=1e-5)


def test_nested_tensors_given_to_a_layer(put_masks) -> None:
    model = encoder().layers[0]
    masks, requests = put_masks(model, TARGETS["all"]), torch.randn(2, 3)
    rows = [torch.randn(3, 8), torch.randn(5, 8)]
    with torch.no_grad():
        output = masks(src=torch.nested.nested_tensor(rows), request=requests)
        assert output.is_nested
        for row, found in enumerate(output.unbind()):
            alone = masks(rows[row][None], request=requests[row : row + 1])
            assert torch.allclose(found, alone[0], atol=1e-6)


@pytest.mark.parametrize("batch_first", [False, True])
def test_whole_transformers_and_their_decoders(put_masks, gate, batch_first) -> None:
    torch.manual_seed(0)
    model = nn.Transformer(8, 2, 2, 2, 16, dropout=0.1, batch_first=batch_first).eval()
    targets = ["self_attn", "multihead_attn", "linear1"]
    batch_dim = 0 if batch_first else 1
    masks = put_masks(model, targets, gate, batch_dim=batch_dim, gate_bias=None)
    src, tgt = torch.randn(3, 5, 8), torch.randn(3, 4, 8)
    if not batch_first:
        src, tgt = src.transpose(0, 1), tgt.transpose(0, 1)
    padding = torch.arange(5) >= torch.tensor([5, 3, 2])[:, None]
    kwargs = {
        "src_key_padding_mask": padding,
        "memory_key_padding_mask": padding,
        "tgt_mask": nn.Transformer.generate_square_subsequent_mask(4),
        "tgt_is_causal": True,
    }
    requests = [torch.randn(3), None, torch.randn(3)]
    with torch.no_grad():
        frozen, output = model(src, tgt, **kwargs), masks(src, tgt, request=requests, **kwargs)
        assert torch.allclose(output.select(batch_dim, 1), frozen.select(batch_dim, 1), atol=1e-5)
        for row in (0, 2):
            assert not torch.allclose(output.select(batch_dim, row), frozen.select(batch_dim, row), atol=1e-3)
            masks.merge_request(requests[row])
            expected = model(src, tgt, **kwargs)
            masks.unmerge()
            assert torch.allclose(output.select(batch_dim, row), expected.select(batch_dim, row), atol=1e-5)
        assert torch.equal(model(src, tgt, **kwargs), frozen)


def test_unloading_leaves_no_trace(put_masks, make_config, snapshot, src) -> None:
    for model in (encoder(), encoder().layers[0], nn.Sequential(encoder(Scaled))):
        before = snapshot(model)
        with torch.no_grad():
            expected = model(src)
            masks = put_masks(model, ["linear1"])
            masks.add_adapter("other", make_config(target_modules=["linear2"], request_dim=3))
            masks(src, request=torch.randn(4, 3))
            masks.unload()
            assert before.differences(model) == []
            assert torch.equal(model(src), expected)


def test_only_stacks_with_masks_are_touched(put_masks, make_config) -> None:
    model = nn.ModuleDict({"first": encoder(), "second": encoder(), "decoder": nn.TransformerDecoderLayer(8, 2)})
    masks = put_masks(model, ["first.layers.1.linear1", "decoder.self_attn"])
    assert touched_layers(model) == ["first.layers.0", "first.layers.1"]
    assert fused_encoder.install(model, masks.request_context) == []
    masks.add_adapter("other", make_config(target_modules=["second.layers.0.self_attn"], request_dim=3))
    assert touched_layers(model) == ["first.layers.0", "first.layers.1", "second.layers.0", "second.layers.1"]
    requests, src = torch.randn(4, 3), torch.randn(4, 5, 8)
    with torch.no_grad():
        frozen = model["second"](src)
        masks.set_adapter("other")
        with masks.request(requests):
            assert not torch.allclose(model["second"](src), frozen, atol=1e-2)
    masks.unload()
    assert touched_layers(model) == []


class Own(nn.TransformerEncoderLayer):
    """Computes by itself, through its modules."""

    def forward(self, src: Tensor, src_mask: Any = None, src_key_padding_mask: Any = None, **_: Any) -> Tensor:
        return self.norm2(src + self._ff_block(self._sa_block(src, src_mask, src_key_padding_mask)))


def test_a_forward_of_its_own_is_run_as_it_is(put_masks, src) -> None:
    model = encoder(Own)
    masks, requests = put_masks(model, TARGETS["all"]), torch.randn(4, 3)
    with torch.no_grad():
        frozen, output = model(src), masks(src, request=requests)
        masks.merge_request(requests[2])
        assert torch.allclose(output[2], model(src)[2], atol=1e-5)
        assert not torch.allclose(output[2], frozen[2], atol=1e-2)


def test_a_forward_set_on_the_layer_is_kept(put_masks, src) -> None:
    model = encoder()
    own = model.layers[0].forward = lambda src, **_: model.layers[0].linear2(model.layers[0].linear1(src))
    masks = put_masks(model, ["linear1"])
    with torch.no_grad():
        assert not torch.allclose(masks(src, request=torch.randn(4, 3)), model(src), atol=1e-2)
    assert model.layers[0].forward is own
    masks.unload()
    assert model.layers[0].forward is own


def test_the_stand_in_looks_like_the_layers_forward(put_masks) -> None:
    model = encoder()
    signature = inspect.signature(model.layers[0].forward)
    put_masks(model, ["linear1"])
    assert inspect.signature(model.layers[0].forward) == signature
    assert model.layers[0].forward.__name__ == "forward"


def test_what_is_set_on_the_layer_later_counts(put_masks, src) -> None:
    model = encoder().layers[0]
    masks, requests = put_masks(model, ["linear1"]), torch.randn(4, 3)
    with torch.no_grad():
        before = masks(src, request=requests)
        model.norm_first = True
        model.linear2.weight = nn.Parameter(model.linear2.weight * 2)
        after = masks(src, request=requests)
        masks.merge_request(requests[1])
        assert torch.allclose(after[1], model(src)[1], atol=1e-5)
        assert not torch.allclose(after, before, atol=1e-2)


def test_a_copy_has_requests_of_its_own(put_masks, src) -> None:
    model = encoder()
    masks, requests = put_masks(model, TARGETS["all"]), torch.randn(4, 3)
    copied = copy.deepcopy(masks)
    with torch.no_grad():
        expected = masks(src, request=requests)
        masks.generator.requires_grad_(False).apply(lambda module: [p.zero_() for p in module.parameters()])
        for parameter in model.parameters():
            parameter.zero_()
        assert torch.equal(copied(src, request=requests), expected)
        frozen = copied(src)
        with masks.request(requests):
            assert torch.equal(copied(src), frozen)
    copied.unload()
    assert touched_layers(copied.model) == []
    assert touched_layers(model) == ["layers.0", "layers.1"]


@pytest.mark.parametrize("layer", [nn.TransformerEncoderLayer, Scaled])
@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("padding", ["none", "left aligned"])
@pytest.mark.parametrize("targets", ["one linear layer", "all"])
def test_compiled_whole_and_not_again_for_new_requests(put_masks, src, targets, padding, gradients, layer) -> None:
    model, kwargs, counter = encoder(layer), padding_of(PADDING[padding]), CompileCounter()
    if not TORCH_COMPILES_PADDING:
        model.use_nested_tensor = False
    masks = put_masks(model, TARGETS[targets])
    real = torch.arange(5) < torch.tensor(PADDING[padding] or [5] * 4)[:, None]  # elsewhere torch has no nested zeros
    torch._dynamo.reset()
    compiled = torch.compile(masks, fullgraph=True, backend=counter)
    with torch.set_grad_enabled(gradients):
        for _ in range(3):
            requests = torch.randn(4, 3)
            output = compiled(src, request=requests, **kwargs)
            assert torch.allclose(output[real], masks(src, request=requests, **kwargs)[real], atol=1e-5)
            assert counter.frame_count == 1
        assert torch.allclose(compiled(src, **kwargs)[real], model(src, **kwargs)[real], atol=1e-5)
        assert counter.frame_count == 2
    torch._dynamo.reset()


@pytest.mark.parametrize("padding", ["none", "left aligned"])
def test_threads_with_and_without_requests(put_masks, src, padding) -> None:
    model, kwargs = encoder(), padding_of(PADDING[padding])
    masks = put_masks(model, TARGETS["all"])
    requests = [torch.randn(4, 3) for _ in range(4)]
    with torch.no_grad():
        frozen = model(src, **kwargs)
        answers = [masks(src, request=request, **kwargs) for request in requests]
    wrong: list[str] = []
    done: list[str] = []
    barrier = threading.Barrier(2)

    def without_requests() -> None:
        barrier.wait()
        with torch.no_grad():
            for _ in range(2000):
                if not torch.equal(model(src, **kwargs), frozen):
                    wrong.append("frozen")
        done.append("frozen")

    def with_requests() -> None:
        barrier.wait()
        with torch.no_grad():
            for i in range(2000):
                if not torch.equal(masks(src, request=requests[i % 4], **kwargs), answers[i % 4]):
                    wrong.append(f"request {i}")
        done.append("requests")

    threads = [threading.Thread(target=work) for work in (without_requests, with_requests)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(done) == ["frozen", "requests"]
    assert wrong == []
