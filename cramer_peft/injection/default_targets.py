"""The modules that are masked by default in the known architectures of transformers."""

_BERT = ["attention.output.dense", "intermediate.dense", "output.dense"]
_LLAMA = ["o_proj", "gate_proj", "up_proj", "down_proj"]
_T5 = ["o", "wi", "wi_0", "wi_1", "wo"]

# Feed-forward and attention-output projections, as in the paper, by model_type.
DEFAULT_TARGET_MODULES: dict[str, list[str]] = {
    "bert": _BERT,
    "roberta": _BERT,
    "xlm-roberta": _BERT,
    "electra": _BERT,
    "camembert": _BERT,
    "deberta": _BERT,
    "deberta-v2": _BERT,
    "distilbert": ["out_lin", "lin1", "lin2"],
    "modernbert": ["attn.Wo", "mlp.Wi", "mlp.Wo"],
    "gpt2": ["attn.c_proj", "mlp.c_fc", "mlp.c_proj"],
    "gpt_neo": ["attention.out_proj", "mlp.c_fc", "mlp.c_proj"],
    "gpt_neox": ["attention.dense", "dense_h_to_4h", "dense_4h_to_h"],
    "opt": ["out_proj", "fc1", "fc2"],
    "gptj": ["out_proj", "fc_in", "fc_out"],
    "bart": ["out_proj", "fc1", "fc2"],
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "gemma": _LLAMA,
    "gemma2": _LLAMA,
    "gemma3_text": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "phi3": ["o_proj", "gate_up_proj", "down_proj"],
    "t5": _T5,
    "mt5": _T5,
}
