"""Where the rows of a batch can be: other dimensions, folded ones, beams, encoders beside decoders, several calls."""

import pytest
import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, OPTConfig, OPTForCausalLM, T5Config, T5ForConditionalGeneration

from cramer_peft import RequestMaskConfig, inject_request_masks
from cramer_peft.errors import RequestError

REQUESTS = ["more horror", None, "nothing sad"]
CONFIG = {"encoder": "hashing", "encoder_options": {"dim": 16}, "init_weights": False}


class Folded(nn.Module):
    """Runs its layer on (rows · positions, features), the rows first or last."""

    def __init__(self, rows_first: bool) -> None:
        super().__init__()
        self.layer, self.rows_first = nn.Linear(8, 8), rows_first

    def forward(self, x: Tensor) -> Tensor:
        ordered = x if self.rows_first else x.transpose(0, 1)
        out = self.layer(ordered.reshape(-1, 8)).view(*ordered.shape)
        return out if self.rows_first else out.transpose(0, 1)


@pytest.mark.parametrize("rows_first", [True, False])
def test_folded_batches(make_config, gate: str, rows_first: bool) -> None:
    model, x = Folded(rows_first).eval(), torch.randn(3, 5, 8)
    frozen = model(x)
    folding = "rows_first" if rows_first else "rows_last"
    masks = inject_request_masks(model, make_config(gate, target_modules=["layer"], batch_folding=folding))
    output = masks(x, request=REQUESTS)
    assert torch.equal(output[1], frozen[1])
    for row in (0, 2):
        weight, bias = model.layer.fold(masks.masks_for(REQUESTS)["layer"], row)
        assert torch.allclose(output[row], nn.functional.linear(x[row], weight, bias), atol=1e-5)
    with pytest.raises(RequestError, match=r"found 15 rows.*2 requests"):
        masks(x, request=["a", "b"])
    masks.unload()
    masks = inject_request_masks(model, make_config(gate, target_modules=["layer"]))
    with pytest.raises(RequestError, match=r"found 15 rows.*3 requests.*batch_folding"):
        masks(x, request=REQUESTS)
    assert masks(x, request="one for all").shape == x.shape


@pytest.mark.parametrize("batch_first", [True, False])
def test_a_whole_transformer_sequence_first_or_not(make_config, gate: str, batch_first: bool, snapshot) -> None:
    model = nn.Transformer(8, 2, 1, 1, 16, dropout=0.0, batch_first=batch_first).eval().requires_grad_(False)
    before = snapshot(model)

    def run(source: Tensor, target: Tensor, **keywords) -> Tensor:
        if batch_first:
            return model(source, target, **keywords)
        return model(source.transpose(0, 1), target.transpose(0, 1), **keywords).transpose(0, 1)

    source, target = torch.randn(3, 5, 8), torch.randn(3, 4, 8)
    frozen = run(source, target)
    targets = ["self_attn", "multihead_attn", "linear1", "linear2"]
    options = {} if gate == "low_rank" else {"gate_bias": None}
    masks = inject_request_masks(
        model, make_config(gate, target_modules=targets, batch_dim=0 if batch_first else 1, **options)
    )
    output = run(source, target, request=REQUESTS)
    assert torch.allclose(output[1], frozen[1], atol=1e-5)
    assert not torch.allclose(output[0], frozen[0], atol=1e-3)
    for row in range(3):
        alone = run(source[row : row + 1], target[row : row + 1], request=REQUESTS[row : row + 1])
        assert torch.allclose(output[row], alone[0], atol=1e-5)
    assert torch.equal(run(source, target), frozen)
    masks.unload()
    assert before.differences(model) == []
    assert torch.equal(run(source, target), frozen)


def gpt2() -> nn.Module:
    config = GPT2Config(
        vocab_size=30, n_embd=16, n_layer=1, n_head=2, n_positions=32, bos_token_id=0, eos_token_id=None,
        initializer_range=0.5,
    )  # fmt: skip
    return GPT2LMHeadModel(config).eval()


def t5() -> nn.Module:
    config = T5Config(
        vocab_size=30, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2, decoder_start_token_id=0,
        eos_token_id=None, initializer_factor=5.0,
    )  # fmt: skip
    return T5ForConditionalGeneration(config).eval()


@pytest.mark.parametrize("make", [gpt2, t5])
@pytest.mark.parametrize("sample", ["greedy", "beams"])
def test_generation_with_a_request_for_each_row(make, gate: str, sample: str, snapshot) -> None:
    model, ids = make(), torch.randint(1, 30, (3, 6))
    options = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0, "num_beams": 3 if sample == "beams" else 1}
    before, frozen = snapshot(model), model.generate(ids, **options)
    options_of_gate = {"strength": 3.0} if gate in ("scale", "signed") else {}  # enough to change what is generated
    config = RequestMaskConfig(gate=gate, batch_folding="rows_first", **options_of_gate, **CONFIG)
    masks = inject_request_masks(model, config)
    with masks.request(REQUESTS):
        together = model.generate(ids, **options)
    assert torch.equal(together[1], frozen[1])
    assert not torch.equal(together, frozen)
    for row in (0, 2):
        with masks.request(REQUESTS[row : row + 1]):
            assert torch.equal(model.generate(ids[row : row + 1], **options)[0], together[row])
    assert torch.equal(model.generate(ids, **options), frozen)
    masks.unload()
    assert before.differences(model) == []


def test_a_model_of_transformers_that_folds_positions(gate: str) -> None:
    sizes = {
        "hidden_size": 16,
        "ffn_dim": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "word_embed_proj_dim": 16,
    }
    model = OPTForCausalLM(OPTConfig(vocab_size=30, max_position_embeddings=32, **sizes)).eval()
    ids = torch.randint(2, 30, (3, 6))
    frozen = model(ids).logits
    masks = inject_request_masks(model, RequestMaskConfig(gate=gate, batch_folding="rows_first", **CONFIG))
    output = masks(ids, request=REQUESTS).logits
    assert torch.equal(output[1], frozen[1])
    for row in (0, 2):
        assert torch.allclose(masks(ids[row : row + 1], request=[REQUESTS[row]]).logits[0], output[row], atol=1e-4)
    assert not torch.allclose(output[0], frozen[0], atol=1e-3)


class Twice(nn.Module):
    """Calls one model two times in a forward, on batches of the same rows."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) - self.inner(x.flip(1)[:, :3])


def test_a_model_called_several_times_in_one_forward(model, make_config, gate: str, x: Tensor) -> None:
    outer = Twice(model).eval()
    frozen = outer(x)
    masks = inject_request_masks(outer, make_config(gate))
    output = masks(x, request=REQUESTS)
    assert torch.equal(output[1], frozen[1])
    with masks.request(REQUESTS):
        assert torch.allclose(output, model(x) - model(x.flip(1)[:, :3]), atol=1e-6)
    output.square().sum().backward()
    gradient = masks.generator.head.weight.grad.clone()
    masks.generator.zero_grad()
    with masks.request(REQUESTS):  # without the root's call, each layer asks for its gates
        (model(x) - model(x.flip(1)[:, :3])).square().sum().backward()
    assert torch.allclose(masks.generator.head.weight.grad, gradient, rtol=1e-4, atol=1e-6)


def test_requests_of_rows_that_differ_between_adapters(model, make_config, x: Tensor) -> None:
    masks = inject_request_masks(model, make_config())
    masks.add_adapter("other", make_config("scale"))
    masks.set_adapter(["default", "other"])
    with pytest.raises(RequestError, match="different numbers of rows"):
        masks(x, request={"default": ["a", "b", "c"], "other": ["a", "b"]})
    with pytest.raises(RequestError, match=r"\['nobody'\]"):
        masks(x, request={"nobody": ["a", "b", "c"]})
    assert torch.equal(
        masks(x, request={"default": "a", "other": ["b", None, "c"]})[1], masks(x, request={"default": "a"})[1]
    )
