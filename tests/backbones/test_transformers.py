"""Models of transformers, tiny and with random weights."""

import dataclasses

import pytest
import torch
from checks import FIRST, Backbone, BackboneContract, Batch
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTForImageClassification,
)

VOCABULARY = 30
SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}


def bert() -> nn.Module:
    return BertForMaskedLM(BertConfig(vocab_size=VOCABULARY, **SIZES))


def gpt2() -> nn.Module:
    config = GPT2Config(
        vocab_size=VOCABULARY, n_embd=16, n_layer=2, n_head=2, n_positions=32, bos_token_id=0, eos_token_id=None
    )
    return GPT2LMHeadModel(config)


def llama() -> nn.Module:
    return LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY, num_key_value_heads=1, attention_dropout=0.1, **SIZES))


def t5() -> nn.Module:
    config = T5Config(
        vocab_size=VOCABULARY, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, decoder_start_token_id=0
    )
    return T5ForConditionalGeneration(config)


def vit() -> nn.Module:
    return ViTForImageClassification(
        ViTConfig(image_size=8, patch_size=4, num_labels=7, hidden_dropout_prob=0.1, **SIZES)
    )


def texts() -> Batch:
    mask = torch.tensor([[1] * 6, [1] * 5 + [0], [1] * 4 + [0] * 2])
    ids = torch.randint(1, VOCABULARY, (3, 6), generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, "attention_mask": mask}


def text_pairs() -> Batch:
    return {**texts(), "decoder_input_ids": torch.tensor([[0, 5, 6], [0, 8, 9], [0, 11, 12]])}


def images() -> Batch:
    return {"pixel_values": torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))}


def logits(model: nn.Module, batch: Batch) -> Tensor:
    return model(**batch).logits


PACKAGE = "transformers"
BACKBONES = [
    Backbone(PACKAGE, "Bert", bert, texts, logits, None),
    Backbone(PACKAGE, "GPT-2", gpt2, texts, logits, None),
    Backbone(PACKAGE, "Llama", llama, texts, logits, None),
    Backbone(PACKAGE, "T5", t5, text_pairs, logits, None),
    Backbone(PACKAGE, "ViT", vit, images, logits, "all-linear", config={"exclude_modules": ["classifier"]}),
]


class TestTransformers(BackboneContract):
    pass


BEAMS = {"num_beams": 3, "max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}


@pytest.mark.parametrize("backbone", [b for b in BACKBONES if b.name in ("GPT-2", "T5")], ids=lambda b: b.name)
def test_generate_with_beams_and_a_request_for_each_row(backbone: Backbone, gate: str) -> None:
    model = backbone.make()
    ids = texts()["input_ids"]
    frozen = model.generate(ids, **BEAMS)
    strength = {"strength": 3.0} if gate == "scale" else {}  # enough to change what is generated
    masks = dataclasses.replace(backbone, config={"batch_folding": "rows_first", **strength}).adapt(model, gate)
    with masks.request(FIRST):
        together = model.generate(ids, **BEAMS)
    assert torch.equal(together[1], frozen[1])
    assert not torch.equal(together, frozen)
    for row, request in enumerate(FIRST):
        with masks.request([request]):
            alone = model.generate(ids[row : row + 1], **BEAMS)
        assert torch.equal(alone[0, : together.shape[1]], together[row, : alone.shape[1]])
    assert torch.equal(model.generate(ids, **BEAMS), frozen)
