"""Tiny random models in the hub's own cache layout, under the names that PEFT's tests ask for."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import torch
import transformers
from peft import LoraConfig
from transformers import PreTrainedConfig, PreTrainedModel

_REVISION = "0" * 40
_SIZES = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
_FEED_FORWARD = {**_SIZES, "intermediate_size": 48, "max_position_embeddings": 64}
_GPT = {"vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
_ENDS = {"pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 63}


def _opt() -> PreTrainedConfig:
    return transformers.OPTConfig(**_SIZES, **_ENDS, ffn_dim=48, max_position_embeddings=64, word_embed_proj_dim=32)


def _gpt2() -> PreTrainedConfig:
    return transformers.GPT2Config(**_GPT, **_ENDS)


def _gptj() -> PreTrainedConfig:
    return transformers.GPTJConfig(**_GPT, **_ENDS, rotary_dim=4)


def _llama() -> PreTrainedConfig:
    return transformers.LlamaConfig(**_FEED_FORWARD, **_ENDS, num_key_value_heads=2)


def _qwen2() -> PreTrainedConfig:
    return transformers.Qwen2Config(**_FEED_FORWARD, **_ENDS, num_key_value_heads=2)


def _gemma3() -> PreTrainedConfig:
    return transformers.Gemma3TextConfig(**_FEED_FORWARD, **_ENDS, num_key_value_heads=2, head_dim=8)


def _t5() -> PreTrainedConfig:
    return transformers.T5Config(
        vocab_size=64,
        d_model=32,
        d_kv=8,
        d_ff=48,
        num_layers=2,
        num_heads=4,
        pad_token_id=0,
        eos_token_id=63,
        decoder_start_token_id=0,
    )


def _bart() -> PreTrainedConfig:
    sizes = {f"{side}_{what}": n for side in ("encoder", "decoder") for what, n in _BART_SIDE.items()}
    return transformers.BartConfig(
        vocab_size=64, d_model=32, max_position_embeddings=64, **sizes, **_ENDS, decoder_start_token_id=63
    )


_BART_SIDE = {"layers": 2, "attention_heads": 4, "ffn_dim": 48}

_MODELS: dict[str, tuple[Callable[[], PreTrainedConfig], str]] = {
    "peft-internal-testing/tiny-random-OPTForCausalLM": (_opt, "AutoModelForCausalLM"),
    "peft-internal-testing/tiny-random-GPT2LMHeadModel": (_gpt2, "AutoModelForCausalLM"),
    "peft-internal-testing/tiny-random-GPTJForCausalLM": (_gptj, "AutoModelForCausalLM"),
    "trl-internal-testing/tiny-random-LlamaForCausalLM": (_llama, "AutoModelForCausalLM"),
    "peft-internal-testing/tiny-dummy-qwen2": (_qwen2, "AutoModelForCausalLM"),
    "hf-internal-testing/tiny-random-Gemma3ForCausalLM": (_gemma3, "AutoModelForCausalLM"),
    "peft-internal-testing/tiny-random-T5ForConditionalGeneration-calibrated": (_t5, "AutoModelForSeq2SeqLM"),
    "peft-internal-testing/tiny-random-BartForConditionalGeneration": (_bart, "AutoModelForSeq2SeqLM"),
    "peft-internal-testing/tiny-random-BertModel": (
        lambda: transformers.BertConfig(**_FEED_FORWARD),
        "AutoModel",
    ),
    "peft-internal-testing/tiny-random-RobertaModel": (
        lambda: transformers.RobertaConfig(**_FEED_FORWARD, pad_token_id=0),
        "AutoModel",
    ),
    "peft-internal-testing/tiny-random-DebertaModel": (
        lambda: transformers.DebertaConfig(**_FEED_FORWARD),
        "AutoModel",
    ),
    "peft-internal-testing/tiny-random-DebertaV2Model": (
        lambda: transformers.DebertaV2Config(**_FEED_FORWARD),
        "AutoModel",
    ),
}
MODEL_IDS = tuple(_MODELS)


# The adapter that the suite of configurations reads: id → revision.
_ADAPTER = ("peft-internal-testing/tiny-opt-lora-revision", "test")


def write_models() -> None:
    """Write everything to the hub's cache, where transformers and PEFT find it without a network."""
    adapter_id, revision = _ADAPTER
    LoraConfig(target_modules=["q_proj", "v_proj"]).save_pretrained(str(_repository(adapter_id, revision)))
    for model_id, (make_config, auto_class) in _MODELS.items():
        torch.manual_seed(0)
        model: PreTrainedModel = getattr(transformers, auto_class).from_config(make_config())
        _strengthen(model)
        model.save_pretrained(_repository(model_id, "main"))


def _repository(repository_id: str, revision: str) -> Path:
    """The folder for the files of a repository."""
    folder = Path(os.environ["HF_HOME"]) / "hub" / f"models--{repository_id.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / revision).write_text(_REVISION)
    return folder / "snapshots" / _REVISION


def _strengthen(model: PreTrainedModel) -> None:
    """Weights of a trained model's scale: at the usual start, logits hardly depend on the middle layers."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=parameter.shape[-1] ** -0.5)
            elif name.endswith("bias"):
                parameter.normal_(std=0.1)
