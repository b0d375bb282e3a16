import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from cramer_peft import RequestMaskConfig, inject_request_masks
from cramer_peft.errors import MergeError, UnsupportedError

IDS = torch.arange(1, 7)[None]


def llama(tie: bool = False) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=20,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        tie_word_embeddings=tie,
    )
    return LlamaForCausalLM(config).eval()


def config(*targets: str, **options) -> RequestMaskConfig:
    return RequestMaskConfig(target_modules=list(targets), request_dim=5, init_weights=False, **options)


@pytest.mark.parametrize("tie", [False, True])
@pytest.mark.parametrize("options", [{}, {"modules_to_save": ["norm"]}])
def test_a_wrapped_model_saves_its_own_weights(tie: bool, options: dict, tmp_path) -> None:
    model = llama(tie)
    expected, names = model(IDS).logits, set(model.state_dict())
    inject_request_masks(model, config("up_proj", "lm_head", **options))
    model.save_pretrained(tmp_path)
    again, report = LlamaForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert torch.equal(again.eval()(IDS).logits, expected)
    assert set(again.state_dict()) == names
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]


def test_a_merged_request_is_not_saved_as_the_models_own(tmp_path) -> None:
    model = llama()
    masks = inject_request_masks(model, config("up_proj"))
    masks.merge_request(torch.randn(5))
    with pytest.raises(MergeError, match="unmerge"):
        model.save_pretrained(tmp_path / "x")
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(("target", "tie"), [("lm_head", False), ("lm_head", True), ("embed_tokens", True)])
def test_masked_embeddings_are_not_resized(target: str, tie: bool) -> None:
    model = llama(tie)
    masks = inject_request_masks(model, config(target))
    with pytest.raises(UnsupportedError, match=f"'.*{target}' cannot be resized"):
        model.resize_token_embeddings(25)
    assert model.get_input_embeddings().weight.shape == (20, 16)
    masks.unload()
    assert not {"save_pretrained", "resize_token_embeddings"} & set(vars(model))
    assert model.resize_token_embeddings(25).weight.shape == (25, 16)


def test_other_embeddings_are_resized_under_masks() -> None:
    model = llama()
    masks = inject_request_masks(model, config("up_proj"))
    model.resize_token_embeddings(25)
    assert masks(IDS, request=torch.randn(5)).logits.shape == (1, 6, 25)


class OwnSave(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def save_pretrained(self, folder: str) -> None:
        torch.save(self.state_dict(), folder)


def test_a_method_that_cannot_be_given_the_weights_is_refused(tmp_path) -> None:
    model = OwnSave()
    inject_request_masks(model, config("layer"))
    with pytest.raises(UnsupportedError, match=r"OwnSave\.save_pretrained takes no state_dict"):
        model.save_pretrained(tmp_path / "x")
