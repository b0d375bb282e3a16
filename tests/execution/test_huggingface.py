"""Tiny models of transformers, by the default target modules."""

import pytest
import torch
from peft import get_peft_model
from transformers import BertConfig, BertModel, GPT2Config, GPT2LMHeadModel

from cramer_peft import RequestMaskConfig, inject_request_masks
from cramer_peft.errors import CheckpointingError, RequestError

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore:None of the inputs have requires_grad")

REQUESTS = ["more horror", None, "nothing sad"]
CONFIG = {"encoder": "hashing", "encoder_options": {"dim": 16}, "init_weights": False}


@pytest.fixture
def bert() -> BertModel:
    sizes = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    return BertModel(BertConfig(vocab_size=30, is_decoder=True, **sizes), add_pooling_layer=False).eval()


@pytest.fixture
def gpt2() -> GPT2LMHeadModel:
    config = GPT2Config(
        vocab_size=30, n_embd=16, n_layer=2, n_head=2, n_positions=32, bos_token_id=0, eos_token_id=None,
        initializer_range=0.5,
    )  # fmt: skip
    return GPT2LMHeadModel(config).eval()


@pytest.fixture
def ids() -> torch.Tensor:
    return torch.randint(1, 30, (3, 6))


def test_bert(bert, gate: str, ids, snapshot) -> None:
    before, frozen = snapshot(bert), bert(input_ids=ids).last_hidden_state
    masks = inject_request_masks(bert, RequestMaskConfig(gate=gate, **CONFIG))
    assert len(masks.masks_for("a")) == 6
    output = bert(input_ids=ids, request=REQUESTS).last_hidden_state
    assert torch.equal(output[1], frozen[1])
    assert not torch.allclose(output[0], frozen[0], atol=1e-3)
    masks(input_ids=ids, request=REQUESTS).last_hidden_state.square().sum().backward()
    assert masks.generator.head.weight.grad.abs().sum() > 0
    masks.unload()
    assert before.differences(bert) == []
    assert torch.equal(bert(input_ids=ids).last_hidden_state, frozen)


@pytest.mark.parametrize("door", ["ours", "peft"])
def test_generate_with_a_request_for_each_row(gpt2, gate: str, ids, snapshot, door: str) -> None:
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    before, frozen = snapshot(gpt2), gpt2.generate(ids, **options)
    config = RequestMaskConfig(gate=gate, **CONFIG)
    if door == "ours":
        masks = handle = inject_request_masks(gpt2, config)
    else:
        handle = get_peft_model(gpt2, config).eval()
        masks = handle.base_model
    with masks.request(REQUESTS):
        together = gpt2.generate(ids, **options)
    assert torch.equal(together[1], frozen[1])
    assert not torch.equal(together, frozen)
    for row, request in enumerate(REQUESTS):
        with masks.request([request]):
            assert torch.equal(gpt2.generate(ids[row : row + 1], **options)[0], together[row])
    assert torch.equal(gpt2.generate(ids, **options), frozen)
    # Step by step without the cache, the whole prefix is masked again each time.
    prefix = ids
    for _ in range(6):
        step = gpt2(prefix, request=REQUESTS).logits[:, -1].argmax(-1, keepdim=True)
        prefix = torch.cat([prefix, step], dim=1)
    assert torch.equal(prefix, together)
    handle.unload()
    assert before.differences(gpt2) == []


def test_beams_are_more_rows_than_requests(gpt2, ids) -> None:
    masks = inject_request_masks(gpt2, RequestMaskConfig(**CONFIG))
    with (
        masks.request(REQUESTS),
        pytest.raises(RequestError, match=r"'transformer\.h\.0\.\S+'.*found 6 rows.*3 requests"),
    ):
        gpt2.generate(ids, num_beams=2, max_new_tokens=2, pad_token_id=0)
    with masks.request("one for all"):
        assert gpt2.generate(ids, num_beams=2, max_new_tokens=2, pad_token_id=0).shape == (3, 8)


def test_saving_the_handle_saves_the_adapter_not_the_base(gpt2, tmp_path) -> None:
    masks = inject_request_masks(gpt2, RequestMaskConfig(**CONFIG))
    masks.save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
    ]


@pytest.mark.parametrize("own_hook", [False, True])
def test_wrapping_a_checkpointed_model_leaves_no_hook(gpt2, snapshot, own_hook: bool) -> None:
    """PEFT then makes the input embeddings' output require gradients."""
    gpt2.gradient_checkpointing_enable()
    if own_hook:
        gpt2.enable_input_require_grads()
    before = snapshot(gpt2)
    get_peft_model(gpt2, RequestMaskConfig(**CONFIG)).unload()
    assert before.differences(gpt2) == []


@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize("door", ["ours", "peft"])
def test_gradient_checkpointing_of_a_hugging_face_model(gpt2, ids, use_reentrant: bool, door: str) -> None:
    make = inject_request_masks if door == "ours" else get_peft_model
    masks = make(gpt2, RequestMaskConfig(gate="scale", **CONFIG))
    gpt2.enable_input_require_grads()
    gpt2.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    gpt2.train()
    with pytest.raises(CheckpointingError, match="gradient_checkpointing_disable"):
        masks(input_ids=ids, request=REQUESTS).logits.sum().backward()
