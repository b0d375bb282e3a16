"""Gradient checkpointing of transformers models, as their own switch turns it on."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import get_peft_model
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from cramer_peft import RequestMaskConfig, RequestMaskModel
from cramer_peft.errors import CheckpointingError


def llama() -> nn.Module:
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=40, attention_dropout=0.1, **size))


def gpt2() -> nn.Module:
    return GPT2LMHeadModel(GPT2Config(vocab_size=40, n_embd=16, n_layer=3, n_head=2, n_positions=16))  # dropout 0.1


IDS, REQUESTS = torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 11, 12]]), torch.randn(3, 5)
REENTRANT, NON_REENTRANT = {"use_reentrant": True}, {"use_reentrant": False}


def gradients(
    build: Any, gate: str, switch: dict[str, Any] | None, context: bool, default: bool = False, block: bool = False
) -> list[torch.Tensor]:
    torch.manual_seed(0)
    config = RequestMaskConfig(
        request_dim=5, gate=gate, init_weights=False, default_request=[1.0, 0.5, -1.0, 2.0, 0.0] if default else None
    )
    model = get_peft_model(build(), config).train()
    masks = model.base_model
    assert isinstance(masks, RequestMaskModel)
    if switch is not None:
        model.enable_input_require_grads()
        options = {**switch, "context_fn": masks.checkpoint_contexts} if context else switch
        model.gradient_checkpointing_enable(options)
    torch.manual_seed(4)
    losses = []
    for ids in (IDS, IDS.flip(1)):  # two forwards before one backward
        if default:
            losses.append(model(ids, labels=ids).loss)
        elif block:
            with masks.request(REQUESTS):
                losses.append(model(ids, labels=ids).loss)
        else:
            losses.append(model(ids, labels=ids, request=REQUESTS).loss)
    sum(losses).backward()
    return [p.grad.clone() for p in masks.generator.parameters()]


def equal(found: list[torch.Tensor], expected: list[torch.Tensor]) -> bool:
    assert expected[0].abs().sum() > 0
    return all(torch.allclose(a, b, rtol=1e-5, atol=1e-6) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("block", [False, True], ids=["keyword", "block"])
@pytest.mark.parametrize("build", [llama, gpt2])
def test_the_context_gives_the_gradients_of_no_checkpointing(build: Any, gate: str, block: bool) -> None:
    expected = gradients(build, gate, None, False, block=block)
    found = gradients(build, gate, NON_REENTRANT, True, block=block)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("switch", [REENTRANT, NON_REENTRANT], ids=["reentrant", "non-reentrant"])
@pytest.mark.parametrize("build", [llama, gpt2])
def test_without_the_context_it_is_refused(build: Any, switch: dict[str, Any]) -> None:
    with pytest.raises(CheckpointingError, match="was run again inside backward"):
        gradients(build, "low_rank", switch, False)


@pytest.mark.parametrize("switch", [REENTRANT, NON_REENTRANT], ids=["reentrant", "non-reentrant"])
@pytest.mark.parametrize("build", [llama, gpt2])
def test_a_default_request_needs_no_context(build: Any, gate: str, switch: dict[str, Any]) -> None:
    if gate == "topk":  # its noise is drawn once for the call, and a recompute cannot know it
        with pytest.raises(CheckpointingError):
            gradients(build, gate, switch, False, default=True)
        return
    expected = gradients(build, gate, None, False, default=True)
    assert equal(gradients(build, gate, switch, False, default=True), expected)
