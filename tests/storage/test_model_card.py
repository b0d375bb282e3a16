"""The card beside an adapter's files: true, safe to publish, and never in the way of a text of one's own."""

import re
from pathlib import Path

import pytest
import torch
import yaml
from peft import get_peft_model
from transformers import GPT2Config, GPT2LMHeadModel

from cramer_peft import RequestMaskConfig, inject_request_masks
from cramer_peft.storage.model_card import MARKER

REQUESTS = ["more horror", None, "nothing sad"]


def front_matter(card: str) -> dict:
    return yaml.safe_load(card.split("---")[1])


def test_it_says_what_a_reader_needs(model, make_config, gate: str, tmp_path) -> None:
    masks = inject_request_masks(model, make_config(gate))
    masks.save_pretrained(tmp_path)
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert card == masks.model_card()
    assert front_matter(card) == {"library_name": "peft", "tags": ["cramer-peft", "request-mask"]}
    config = masks.peft_config["default"]
    size = sum(parameter.numel() for parameter in masks.generator.parameters())
    for fact in (
        "TinyRecommender",
        config.base_fingerprint,
        f"`{gate}`",
        f"{size:,} parameters",
        "`hashing`, frozen",
        "| `down` | 8 × 16 |",
        "| `up` | 16 × 8 |",
        "## Limits",
    ):
        assert fact in card
    assert ("no strength" in card.replace("have no strength", "no strength")) is (gate == "topk")


@pytest.mark.parametrize("texts", [True, False])
def test_its_code_runs_and_answers_as_the_adapter(
    make_model, make_config, x, tmp_path, monkeypatch, texts: bool
) -> None:
    masks = inject_request_masks(make_model(), make_config() if texts else make_config(request_dim=16))
    vectors = torch.randn(2, 16)
    randn = torch.randn
    monkeypatch.setattr(torch, "randn", lambda *size, **how: vectors if size == (2, 16) else randn(*size, **how))
    masks.save_pretrained(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (tmp_path / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        names = {"base_model": make_model(), "folder": str(tmp_path), "inputs": x[:2]}
        exec(block, names)
        requests = ["more of this", None] if texts else vectors
        assert torch.equal(names["outputs"], masks(x[:2], request=requests))


def test_a_text_of_ones_own_stays(model, make_config, tmp_path) -> None:
    masks, card = inject_request_masks(model, make_config()), tmp_path / "README.md"
    card.write_text("# Mine\n", encoding="utf-8")
    masks.save_pretrained(tmp_path)
    assert card.read_text(encoding="utf-8") == "# Mine\n"
    card.unlink()
    masks.save_pretrained(tmp_path)
    first = card.read_text(encoding="utf-8")
    masks.peft_config["default"].base_model_name_or_path = "owner/base"
    masks.save_pretrained(tmp_path)
    assert card.read_text(encoding="utf-8") != first
    kept = first.replace(MARKER, "")
    card.write_text(kept, encoding="utf-8")
    masks.save_pretrained(tmp_path)
    assert card.read_text(encoding="utf-8") == kept
    card.unlink()
    card.mkdir()
    masks.save_pretrained(tmp_path)
    assert card.is_dir()


@pytest.mark.parametrize(
    ("name", "shown"), [("owner/base-1.5", True), ("gpt2", True), ("/home/someone/base", False), ("../base", False)]
)
def test_the_base_model_is_named_where_it_is_one_of_the_hub(model, make_config, name: str, shown: bool) -> None:
    masks = inject_request_masks(model, make_config())
    masks.peft_config["default"].base_model_name_or_path = name
    card = masks.model_card()
    assert front_matter(card).get("base_model") == (name if shown else None)
    assert (f"base_model:adapter:{name}" in front_matter(card)["tags"]) is shown
    assert (name in card) is shown


def test_a_base_that_is_a_folder_here_is_not_published(model, make_config, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("secret").mkdir()
    masks = inject_request_masks(model, make_config())
    masks.peft_config["default"].base_model_name_or_path = "secret"
    assert "secret" not in masks.model_card()


def test_a_stored_request_is_told_of_but_not_quoted(model, make_config) -> None:
    masks = inject_request_masks(model, make_config(default_request="my private wish", modules_to_save=["out"]))
    card = masks.model_card()
    assert "my private wish" not in card
    assert "calls without a request follow it" in card
    assert "| Trained whole and saved | `out` |" in card


def test_many_modules_are_not_all_listed(make_config) -> None:
    model = torch.nn.Sequential(*[torch.nn.Linear(3, 3) for _ in range(20)])
    card = inject_request_masks(model, make_config(target_modules="all-linear")).model_card()
    assert "and 8 more, in `adapter_config.json`" in card


def test_through_peft_its_own_card_stands_and_ours_can_be_put_there(make_config, tmp_path) -> None:
    torch.manual_seed(0)
    base = GPT2LMHeadModel(GPT2Config(vocab_size=20, n_positions=8, n_embd=8, n_layer=1, n_head=2))
    config = RequestMaskConfig(encoder="hashing", encoder_options={"dim": 16}, task_type="CAUSAL_LM")
    wrapped = get_peft_model(base, config)
    wrapped.save_pretrained(tmp_path / "theirs")
    theirs = (tmp_path / "theirs" / "README.md").read_text(encoding="utf-8")
    assert front_matter(theirs)["library_name"] == "peft"
    assert MARKER not in theirs
    # Written first, ours is what PEFT adds to.
    (tmp_path / "both").mkdir()
    (tmp_path / "both" / "README.md").write_text(wrapped.base_model.model_card(), encoding="utf-8")
    wrapped.save_pretrained(tmp_path / "both")
    both = (tmp_path / "both" / "README.md").read_text(encoding="utf-8")
    assert "## What is masked" in both
    assert "- PEFT " in both
    assert front_matter(both)["pipeline_tag"] == "text-generation"
