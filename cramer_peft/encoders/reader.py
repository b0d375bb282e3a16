"""A reader of requests: which words of a sentence are asked for, and which are asked against."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from cramer_peft.encoders.static import WordLlamaEncoder

Spans = Callable[[Sequence[str]], Iterable[tuple[int, int]]]  # words of a text → start and stop of each name in it
WEIGHTS = Path(__file__).with_name("reader.safetensors")
WORD = re.compile(r"\w+(?:['’-]\w+)*|[^\w\s]")
LONGEST = 256  # words; what follows is not read
_CACHED_WORDS = 50_000
_BATCH = 256


@dataclass(frozen=True)
class Reading:
    """What a sentence asks, word by word.

    Attributes:
        words: Lower-case words and punctuation marks.
        wanted: Probability that each is part of what is asked for, (words,) float32.
        unwanted: Probability that each is part of what is asked against, (words,) float32.
    """

    words: tuple[str, ...]
    wanted: Tensor
    unwanted: Tensor

    def phrases(self) -> list[tuple[str, bool]]:
        """Runs of words that are more likely asked for (True) or against (False) than neither."""
        neither = 1 - self.wanted - self.unwanted
        marks = torch.stack([neither, self.wanted, self.unwanted], -1).argmax(-1).tolist()
        found: list[tuple[str, bool]] = []
        previous = 0
        for word, mark in zip(self.words, marks, strict=True):
            if mark and mark == previous:
                found[-1] = (f"{found[-1][0]} {word}", mark == 1)
            elif mark:
                found.append((word, mark == 1))
            previous = mark
        return found


class ReaderNetwork(nn.Module):
    """Marks each word as neither, wanted or unwanted: a recurrent layer in both directions over word vectors.

    Args:
        dim: Width of the word vectors.
        width: Of each direction.
        dropout: While it is taught.
    """

    def __init__(self, dim: int = 256, width: int = 96, dropout: float = 0.25) -> None:
        super().__init__()
        self.named = nn.Parameter(0.1 * torch.randn(dim))  # stands for any word known to name what can be asked for
        self.inputs = nn.Linear(dim, 2 * width)
        self.recurrent = nn.GRU(2 * width, width, bidirectional=True, batch_first=True)
        self.outputs = nn.Linear(2 * width, 3)
        self.dropout = nn.Dropout(dropout)

    def forward(self, vectors: Tensor, lengths: Tensor, named: Tensor) -> Tensor:
        """Logits of neither, wanted, unwanted, (sentences, words, 3).

        Args:
            vectors: Word vectors, (sentences, words, dim).
            lengths: Words of each sentence, (sentences,) int64, at least 1.
            named: Words known to name what can be asked for, (sentences, words) bool. What they are is not looked at,
                so that how a thing is asked for does not depend on which.
        """
        hidden = self.dropout(self.inputs(torch.where(named[..., None], self.named, vectors)))
        packed = pack_padded_sequence(hidden, lengths.cpu(), batch_first=True, enforce_sorted=False)
        context, _ = pad_packed_sequence(self.recurrent(packed)[0], batch_first=True, total_length=hidden.shape[1])
        logits: Tensor = self.outputs(self.dropout(hidden + context))
        return logits


class ReaderEnsemble(nn.Module):
    """Several networks taught alike from other seeds: their mean errs less, and doubts where they disagree.

    Args:
        dim: Width of the word vectors.
        width: Of each direction of each network.
        members: How many.
    """

    def __init__(self, dim: int = 256, width: int = 96, members: int = 3) -> None:
        super().__init__()
        self.members = nn.ModuleList(ReaderNetwork(dim, width) for _ in range(members))

    def forward(self, vectors: Tensor, lengths: Tensor, named: Tensor) -> Tensor:
        """Probabilities of neither, wanted, unwanted, (sentences, words, 3); see :class:`ReaderNetwork`."""
        return torch.stack([member(vectors, lengths, named).softmax(-1) for member in self.members]).mean(0)


class WordVectors:
    """Static vectors of whole words: means over their tokens, from the ``wordllama`` package.

    Raises:
        MissingExtraError: If ``wordllama`` is not installed.
    """

    def __init__(self) -> None:
        table, tokenizer = WordLlamaEncoder().tokens()
        self._table, self._tokenizer = table, tokenizer
        self._scale = 1.6 / table.norm(dim=-1).mean()
        self._known: dict[str, Tensor] = {}
        self._lock = threading.Lock()
        self.dim = int(table.shape[1])

    def __call__(self, words: Sequence[str]) -> Tensor:
        """Vectors of words, (words, dim) float32; zeros for one without a token."""
        with self._lock:
            if len(self._known) > _CACHED_WORDS:
                self._known.clear()
            return torch.stack([self._vector(word) for word in words]) if words else torch.empty(0, self.dim)

    def vocabulary(self) -> list[str]:
        """The tokenizer's tokens; those that begin a word start with "▁"."""
        return sorted(self._tokenizer.get_vocab())

    def _vector(self, word: str) -> Tensor:
        if word not in self._known:
            ids = self._tokenizer.encode(word, add_special_tokens=False).ids
            vector = self._table[torch.tensor(ids)].mean(0) * self._scale if ids else torch.zeros(self.dim)
            self._known[word] = vector
        return self._known[word]


class RequestReader:
    """Reads requests word by word; it knows language only, no catalogue.

    As an encoder it gives the mean direction of what is asked for beside that of what is asked against, so that
    "no horror" and "more horror" are far apart, and zeros where nothing is asked. Its network was taught on marked
    sentences (``python -m cramer_peft.recsys.teaching``) and is frozen.

    Raises:
        MissingExtraError: If ``wordllama`` is not installed (extra ``wordllama``).
    """

    name = "request-reader"

    def __init__(self) -> None:
        self.vectors = WordVectors()
        self.dim = 2 * self.vectors.dim
        self.network = ReaderEnsemble(self.vectors.dim)
        self.network.load_state_dict({name: value.float() for name, value in load_file(WEIGHTS).items()})
        self.network.eval().requires_grad_(False)

    @torch.no_grad()
    def read(self, texts: Sequence[str], names: Spans | None = None) -> list[Reading]:
        """What each text asks; a text without a word gives an empty reading.

        Args:
            texts: To be read.
            names: Finds names of what can be asked for among the words of a text: where each starts and stops. It
                reads more surely where it need not find them itself. None: nothing is known.
        """
        split = [tuple(WORD.findall(text.lower())[:LONGEST]) for text in texts]
        found = [Reading((), torch.empty(0), torch.empty(0))] * len(split)
        filled = [place for place, words in enumerate(split) if words]
        for start in range(0, len(filled), _BATCH):
            places = filled[start : start + _BATCH]
            padded = nn.utils.rnn.pad_sequence([self.vectors(split[place]) for place in places], batch_first=True)
            lengths = torch.tensor([len(split[place]) for place in places])
            named = torch.zeros(padded.shape[:2], dtype=torch.bool)
            for row, place in enumerate(places if names is not None else ()):
                for begin, end in names(split[place]):  # type: ignore[misc]
                    named[row, begin:end] = True
            chances = self.network(padded, lengths, named)
            for place, chance in zip(places, chances, strict=True):
                chance = chance[: len(split[place])]
                found[place] = Reading(split[place], chance[:, 1].clone(), chance[:, 2].clone())
        return found

    def encode(self, texts: Sequence[str]) -> Tensor:
        """Vectors of ``texts``, (texts, 512) float32: what is wanted, what is unwanted, each of length 1 or zeros."""
        return (
            torch.stack([self._slots(reading) for reading in self.read(texts)]) if texts else torch.empty(0, self.dim)
        )

    def _slots(self, reading: Reading) -> Tensor:
        slots = torch.zeros(2, self.vectors.dim)
        for phrase, wanted in reading.phrases():
            slots[0 if wanted else 1] += functional.normalize(self.vectors(phrase.split()).mean(0), dim=0)
        return functional.normalize(slots, dim=-1).flatten()
