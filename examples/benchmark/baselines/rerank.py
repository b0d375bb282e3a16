"""REARANK: a causal language model puts the frozen model's best items in order, as one list."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmark.baselines.ranker import BaselineRanker, RankerTask
from cramer_peft.errors import DataError, MissingModelError
from cramer_peft.recsys.backbones import PADDING, SASRec
from cramer_peft.recsys.data.catalogue import Catalogue
from cramer_peft.recsys.requests.attribute_requests import phrase

_PROMPT = """A person has chosen these, the latest last:
{history}
They now ask: "{request}"
Candidates:
{candidates}
Put all candidates in order, the one that suits the person and the request best first. \
Answer with their numbers only, like [2] > [1] > [3].
Order:"""


class ListwiseReranker(BaselineRanker):
    """A reranker that asks a causal language model for an order of the frozen model's best unseen items.

    Candidates that the answer leaves out follow in the frozen order; an answer without numbers changes nothing.
    The rest of the catalogue stays where it is. Nothing is trained here; REARANK trains its model to reason about
    the order, so use such weights for a fair comparison.

    Args:
        model: Name or folder of a model and its tokenizer.
        candidates: Number of items that are put in order.
        recent: Number of items of the history in the prompt.
        max_new_tokens: Longest answer; None: 8 for each candidate.
        allow_download: Whether a model that is not on this machine may be downloaded.
    """

    def __init__(
        self,
        model: str | Path,
        candidates: int = 20,
        recent: int = 10,
        max_new_tokens: int | None = None,
        allow_download: bool = False,
    ) -> None:
        if candidates < 2:
            raise DataError(f"candidates: found {candidates}, expected 2 or more to put in order.")
        super().__init__("listwise reranking")
        self._source = str(model)
        self._candidates = candidates
        self._recent = recent
        self._max_new_tokens = 8 * candidates if max_new_tokens is None else max_new_tokens
        self._allow_download = allow_download
        self._catalogue: Catalogue | None = None
        self._model: Any = None
        self._tokenizer: Any = None

    def _fit(self, task: RankerTask, frozen: SASRec) -> None:
        self._catalogue = task.catalogue
        self._model, self._tokenizer = load_causal_lm(self._source, self._allow_download)
        self._model.to(frozen.device)

    def _request_scores(self, histories: Tensor, texts: Sequence[str], frozen: Tensor) -> Tensor:
        return torch.stack([self._row(*row) for row in zip(histories, texts, frozen, strict=True)])

    def _row(self, history: Tensor, text: str, frozen: Tensor) -> Tensor:
        seen = history[history != PADDING] - 1
        unseen = frozen.index_fill(0, seen, -torch.inf)
        count = min(self._candidates, len(frozen) - len(seen.unique()))
        best = unseen.topk(count)
        answer = self._answer(self._prompt(seen.tolist(), text, best.indices.tolist()))
        order = torch.tensor(parse_order(answer, count), dtype=torch.long, device=frozen.device)
        # the values stay, best first, so that the list as a whole keeps its place in the catalogue
        return frozen.index_copy(0, best.indices[order], best.values)

    def _prompt(self, seen: list[int], text: str, candidates: list[int]) -> str:
        return _PROMPT.format(
            history="\n".join(f"- {self._describe(item)}" for item in seen[-self._recent :]),
            request=text,
            candidates="\n".join(f"[{number}] {self._describe(item)}" for number, item in enumerate(candidates, 1)),
        )

    def _describe(self, item: int) -> str:
        assert self._catalogue is not None
        words = ", ".join(phrase(name) for name in self._catalogue.attribute_names(item))
        return f"{self._catalogue.titles[item]} ({words})" if words else self._catalogue.titles[item]

    def _answer(self, prompt: str) -> str:
        """Return the model's greedy answer to one prompt."""
        if self._tokenizer.chat_template:
            prompt = self._tokenizer.apply_chat_template(
                [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
            )
        # a chat template writes its own special tokens
        inputs = self._tokenizer(prompt, return_tensors="pt", add_special_tokens=not self._tokenizer.chat_template).to(
            self._model.device
        )
        length = inputs["input_ids"].shape[1]
        answer = self._model.generate(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            max_new_tokens=self._max_new_tokens,
            do_sample=False,
            pad_token_id=self._tokenizer.pad_token_id or self._tokenizer.eos_token_id,
        )[0, length:]
        text: str = self._tokenizer.decode(answer, skip_special_tokens=True)
        return text


def parse_order(answer: str, count: int) -> list[int]:
    """Return the order in an answer, as positions from 0, each of ``count`` once.

    Numbers in brackets count; if there are none, all numbers do. Only the text after the last "</think>" is read.
    Repeated and impossible numbers are skipped, missing ones follow in their old order.
    """
    final = answer.rsplit("</think>", 1)[-1]
    numbers = re.findall(r"\[(\d+)\]", final) or re.findall(r"\d+", final)
    named = dict.fromkeys(int(number) - 1 for number in numbers if len(number) < 10 and 1 <= int(number) <= count)
    return [*named, *(position for position in range(count) if position not in named)]


def load_causal_lm(source: str, allow_download: bool) -> tuple[Any, Any]:
    """Load a causal language model in eval mode and its tokenizer: safetensors only, and no code from the source.

    Raises:
        MissingModelError: If they are missing or cannot be read.
    """
    options: dict[str, Any] = {"local_files_only": not allow_download, "trust_remote_code": False}
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, **options)
        model = AutoModelForCausalLM.from_pretrained(source, use_safetensors=True, **options)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        reason = str(error).strip().split("\n")[0]
        how = "" if allow_download else " Give a folder, or allow_download=True to download it."
        raise MissingModelError(f"no causal language model can be loaded from {source!r}: {reason}{how}") from error
    return model.requires_grad_(False).eval(), tokenizer
