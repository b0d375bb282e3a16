"""Teach the reader's network to mark the wanted and the unwanted words."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from cramer_peft.encoders import ReaderNetwork, WordVectors, word_buckets
from teaching.grammar import NEITHER, Grammar
from teaching.sentences import Marked, sentences

STEPS = 13_500
_NO_WORD = -100
_ALL_KNOWN, _SOME_KNOWN, _OTHERS_KNOWN = 0.65, 0.4, 0.04  # shares of sentences
_FUNCTION_WORDS = (
    "that this with from they have were been when what which would could should about there their some more than "
    "just like want need love hate avoid skip only anything something nothing everything without instead except "
    "please less fewer never"
)


def common_words(vectors: WordVectors) -> list[str]:
    """Return words of four to ten letters that are one token, without function words."""
    function_words = set(_FUNCTION_WORDS.split())
    starts = (token[1:] for token in vectors.vocabulary() if token.startswith("▁"))
    return sorted(
        word
        for word in starts
        if word.isalpha() and word.islower() and 4 <= len(word) <= 10 and word not in function_words
    )


def teach(
    vectors: WordVectors,
    templates: Mapping[str, Sequence[str]],
    steps: int = STEPS,
    count: int = 200_000,
    batch_size: int = 128,
    learning_rate: float = 3e-3,
    unknown_share: float = 0.1,
    template_share: float = 0.85,
    seed: int = 0,
) -> ReaderNetwork:
    """Teach a network on sentences drawn from wordings and the grammar; return it in eval mode.

    Args:
        vectors: Word vectors.
        templates: Wordings by family.
        steps: Optimiser steps of AdamW, with 50 warm-up steps and a cosine to 0.
        count: Number of sentences.
        batch_size: Sentences per step, of similar lengths.
        learning_rate: Peak learning rate.
        unknown_share: Share of the words without a mark whose vectors are left out, as if the words were unknown.
        template_share: Share of sentences from the wordings; the grammar draws the rest.
        seed: Seed of sentences, initialisation and order.
    """
    rng = random.Random(seed)
    torch.manual_seed(seed)
    grammar = Grammar(common_words(vectors))
    drawn = sorted(sentences(count, templates, grammar, rng, template_share), key=lambda row: len(row[0]))
    network = ReaderNetwork(vectors.dim)
    optimizer = torch.optim.AdamW(network.parameters(), lr=learning_rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1, (step + 1) / 50) * (1 + math.cos(math.pi * step / steps)) / 2
    )
    for _ in range(steps):
        start = rng.randrange(max(1, len(drawn) - 2 * batch_size))
        window = drawn[start : start + 2 * batch_size]
        rows = rng.sample(window, min(batch_size, len(window)))
        loss = marking_loss(network, vectors, rows, [known_names(marks, rng) for _, marks in rows], unknown_share)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return network.eval()


def marked_words(marks: Sequence[int]) -> list[bool]:
    """Return for each word whether it is wanted or unwanted: all words that a catalogue may know by name."""
    return [mark != NEITHER for mark in marks]


def known_names(marks: Sequence[int], rng: random.Random) -> list[bool]:
    """Draw the words that a catalogue knows by name.

    They are mostly all marked words, often some or none of them, and rarely an unmarked word.

    Args:
        marks: Marks of a sentence's words.
        rng: Source of randomness.
    """
    every, some = rng.random() < _ALL_KNOWN, rng.random() < _SOME_KNOWN
    found: list[bool] = []
    previous, known = NEITHER, False
    for mark in marks:
        if mark != previous:  # a run of equal marks is known or not as a whole
            known = mark != NEITHER and (every or (some and rng.random() < 0.5))
        found.append(known)
        previous = mark
    if rng.random() < _OTHERS_KNOWN:
        found[rng.randrange(len(found))] = True
    return found


def marking_loss(
    network: ReaderNetwork,
    vectors: WordVectors,
    rows: Sequence[Marked],
    named: Sequence[Sequence[bool]],
    unknown_share: float = 0.0,
) -> Tensor:
    """Return the cross-entropy of the marks, a scalar.

    Args:
        network: The network to teach.
        vectors: Word vectors.
        rows: Sentences.
        named: For each sentence, the words that the catalogue knows by name.
        unknown_share: See :func:`teach`.
    """
    pad = nn.utils.rnn.pad_sequence
    inputs = pad([vectors(words) for words, _ in rows], batch_first=True)
    marks = pad([torch.tensor(marks) for _, marks in rows], batch_first=True, padding_value=_NO_WORD)
    known = pad([torch.tensor(own, dtype=torch.bool) for own in named], batch_first=True)
    buckets = pad([word_buckets(words) for words, _ in rows], batch_first=True)
    if unknown_share:
        kept = torch.rand(marks.shape) > unknown_share * (marks == NEITHER)
        inputs, buckets = inputs * kept[..., None], buckets * kept
    logits = network(inputs, torch.tensor([len(words) for words, _ in rows]), known, buckets)
    return functional.cross_entropy(logits.flatten(0, 1), marks.flatten(), ignore_index=_NO_WORD)


@torch.no_grad()
def share_read(network: nn.Module, vectors: WordVectors, rows: Sequence[Marked], known: bool = True) -> float:
    """Return the share of sentences whose words are all marked right.

    Args:
        network: A :class:`ReaderNetwork` or a :class:`ReaderEnsemble`.
        vectors: Word vectors.
        rows: Sentences.
        known: Whether the marked words are known by name, as a catalogue's attributes are.
    """
    right = 0
    for words, marks in rows:
        named = torch.tensor([marked_words(marks)]) & known
        logits = network(vectors(words)[None], torch.tensor([len(words)]), named, word_buckets(words)[None])
        right += logits[0].argmax(-1).tolist() == list(marks)
    return right / len(rows)
