"""Wrap a Hugging Face decoder and generate under a different request in each row.

The decoder is a tiny GPT-2 with random weights, so that nothing is downloaded; its "words" are the
numbers 0 to 59. The generator learns what two requests mean: even numbers, odd numbers.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import GenerationConfig, GPT2Config, GPT2LMHeadModel

from cramer_peft import RequestMaskConfig, RequestMaskModel, inject_request_masks
from cramer_peft.training import minimal_edit_loss

NUMBERS = 60
EVEN, ODD = "even numbers please", "odd numbers please"


def make_decoder() -> GPT2LMHeadModel:
    config = GPT2Config(
        vocab_size=NUMBERS,
        n_positions=32,
        n_embd=48,
        n_layer=2,
        n_head=2,
        bos_token_id=None,
        eos_token_id=None,
        initializer_range=0.2,  # the default of 0.02 gives an untrained model almost equal probabilities
    )
    return GPT2LMHeadModel(config).eval()


def train(masks: RequestMaskModel, steps: int = 300) -> None:
    """Teach the generator the smallest change of the next number's distribution that satisfies each request."""
    optimizer = torch.optim.AdamW(masks.generator.parameters(), lr=3e-3)
    requests = [EVEN, ODD] * 16
    even = (torch.arange(NUMBERS) % 2 == 0).float()
    match = torch.stack([even, 1 - even] * 16)  # 1 where a number satisfies the row's request
    for _ in range(steps):
        prompts = torch.randint(NUMBERS, (len(requests), 8))
        with torch.no_grad():
            frozen = masks(prompts).logits[:, -1]
        loss = minimal_edit_loss(masks(prompts, request=requests).logits[:, -1], frozen, match, kappa=6.0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def generate(model: GPT2LMHeadModel, prompts: Tensor) -> Tensor:
    """Return the 20 numbers that follow each prompt, drawn with a fixed seed."""
    torch.manual_seed(7)
    config = GenerationConfig(max_new_tokens=20, do_sample=True, pad_token_id=0)
    tokens: Tensor = model.generate(prompts, attention_mask=torch.ones_like(prompts), generation_config=config)
    return tokens[:, prompts.shape[1] :]


def even_share(tokens: Tensor) -> float:
    return float((tokens % 2 == 0).float().mean())


def main() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = make_decoder()
    prompts = torch.randint(NUMBERS, (3, 6))
    frozen = generate(model, prompts)

    # No target_modules: for a known architecture they are the feed-forward and attention-output projections.
    config = RequestMaskConfig(gate="low_rank", generator_width=None, encoder="hashing", encoder_options={"dim": 32})
    masks = inject_request_masks(model, config)
    modules = masks.peft_config["default"].masked_modules
    assert modules is not None
    print("masked:", ", ".join(modules))
    train(masks)

    # generate() calls the model many times; inside the block the rows' requests apply to all calls.
    with masks.request([EVEN, None, ODD]):
        tokens = generate(model, prompts)
    for request, row in zip([EVEN, None, ODD], tokens, strict=True):
        print(f"{request!s:>20}: {' '.join(map(str, row.tolist()))}")
    assert torch.equal(tokens[1], frozen[1])
    print("a row without a request generates what the frozen model does: True")
    assert even_share(tokens[0]) > 0.75
    assert even_share(tokens[2]) < 0.25

    # Strength scales the deviation from the frozen model; 0 is the frozen model.
    many = torch.randint(NUMBERS, (64, 6))
    shares = []
    for strength in (0.0, 0.5, 1.0):
        with masks.request(EVEN, strength=strength):
            shares.append(even_share(generate(model, many)))
        print(f"share of even numbers at strength {strength}: {shares[-1]:.2f}")
    assert shares[0] == even_share(generate(model, many))
    assert shares[0] < shares[1] < shares[2]


if __name__ == "__main__":
    main()
