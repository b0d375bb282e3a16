"""The request reader: marks the words of a sentence that are asked for, and those that are asked against."""

from __future__ import annotations

import re
import threading
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from cramer_peft.encoders.encoder import one_form
from cramer_peft.encoders.wordllama import WordLlamaEncoder

Spans = Callable[[Sequence[str]], Iterable[tuple[int, int]]]  # finds names: words → start and stop of each name
WEIGHTS = Path(__file__).with_name("reader.safetensors")
WORD = re.compile(r"\w+(?:['’-]\w+)*|[^\w\s]")
LONGEST = 256  # number of words that are read of a text
_LONGEST_WORD = 100  # number of letters that are read of a word
_CACHED_WORDS = 50_000
_CACHED_WORDING_WORDS = 600_000  # the training wordings of a recommender have 480,000
_BATCH = 256
_BUCKETS, _BUCKET_WIDTH = 4096, 32  # number and width of learned vectors; 0 stands for unknown words and names

Wording = tuple[str | None, ...]  # the words of a text, None for each word of a known name


def words_of(text: str) -> tuple[str, ...]:
    """Return the words and punctuation marks that are read of a text, in lower case."""
    return tuple(word[:_LONGEST_WORD] for word in WORD.findall(one_form(text).lower())[:LONGEST])


@dataclass(frozen=True)
class Reading:
    """A sentence with its words marked as asked for, asked against, or neither.

    Attributes:
        words: Lower-case words and punctuation marks.
        wanted: Probability that each word is asked for, (words,) float32.
        unwanted: Probability that each word is asked against, (words,) float32.
    """

    words: tuple[str, ...]
    wanted: Tensor
    unwanted: Tensor

    def phrases(self) -> list[tuple[str, bool]]:
        """Return the phrases that are more likely asked for (True) or against (False) than neither."""
        return runs(self.words, self.wanted.tolist(), self.unwanted.tolist())


def runs(words: Sequence[str], wanted: Sequence[float], unwanted: Sequence[float]) -> list[tuple[str, bool]]:
    """Return the phrases of a text that are more likely asked for (True) or against (False) than neither.

    Args:
        words: The words of the text.
        wanted: Probability that each word is asked for.
        unwanted: Probability that each word is asked against.
    """
    found: list[tuple[str, bool]] = []
    previous = 0
    for word, by, against in zip(words, wanted, unwanted, strict=True):
        mark = 0 if 1 - by - against >= max(by, against) else 1 if by >= against else 2
        if mark and mark == previous:
            found[-1] = (f"{found[-1][0]} {word}", mark == 1)
        elif mark:
            found.append((word, mark == 1))
        previous = mark
    return found


def word_buckets(words: Sequence[str | None]) -> Tensor:
    """Return the number of each word's learned vector, (words,) int64.

    The number comes from a checksum, so that any word has one; several words may share a vector.

    Args:
        words: Lower-case words; None for a word of a known name, whose number is 0.
    """
    return torch.tensor([0 if word is None else 1 + zlib.crc32(word.encode()) % (_BUCKETS - 1) for word in words])


class ReaderNetwork(nn.Module):
    """Marks each word as neither, wanted or unwanted, by a recurrent layer in both directions over word vectors.

    Static vectors tell what a word means. Learned vectors beside them tell what it does in a request: "hold", "skip"
    and "without" have different meanings, but do the same.

    Args:
        dim: Width of the word vectors.
        width: Width of each direction.
        dropout: Dropout in training mode.
    """

    def __init__(self, dim: int = 256, width: int = 96, dropout: float = 0.3) -> None:
        super().__init__()
        self.named = nn.Parameter(0.1 * torch.randn(dim))  # stands for every word of a known name
        self.words = nn.Embedding(_BUCKETS, _BUCKET_WIDTH, padding_idx=0)
        nn.init.normal_(self.words.weight, std=0.1)
        self.words.weight.data[0] = 0
        self.inputs = nn.Linear(dim + _BUCKET_WIDTH, 2 * width)
        self.recurrent = nn.GRU(2 * width, width, bidirectional=True, batch_first=True)
        self.outputs = nn.Linear(2 * width, 3)
        self.dropout = nn.Dropout(dropout)

    def forward(self, vectors: Tensor, lengths: Tensor, named: Tensor, buckets: Tensor) -> Tensor:
        """Return logits of neither, wanted, unwanted, (sentences, words, 3).

        Args:
            vectors: Word vectors, (sentences, words, dim).
            lengths: Number of words in each sentence, (sentences,) int64, at least 1.
            named: Words of known names, (sentences, words) bool. The network does not see which name it is, so that a
                sentence is read alike whatever it names.
            buckets: :func:`word_buckets` of the words, (sentences, words) int64; 0 for an unknown word.
        """
        static, learned = torch.where(named[..., None], self.named, vectors), self.words(buckets.masked_fill(named, 0))
        hidden = self.dropout(self.inputs(torch.cat([static, learned], -1)))
        packed = pack_padded_sequence(hidden, lengths.cpu(), batch_first=True, enforce_sorted=False)
        context, _ = pad_packed_sequence(self.recurrent(packed)[0], batch_first=True, total_length=hidden.shape[1])
        logits: Tensor = self.outputs(self.dropout(hidden + context))
        return logits


class ReaderEnsemble(nn.Module):
    """The mean of several networks that were taught alike from different seeds.

    It errs less often than one network, and is unsure where they disagree.

    Args:
        dim: Width of the word vectors.
        width: Width of each direction of each network.
        members: Number of networks.
    """

    def __init__(self, dim: int = 256, width: int = 96, members: int = 3) -> None:
        super().__init__()
        self.members = nn.ModuleList(ReaderNetwork(dim, width) for _ in range(members))

    def forward(self, vectors: Tensor, lengths: Tensor, named: Tensor, buckets: Tensor) -> Tensor:
        """Return probabilities of neither, wanted, unwanted, (sentences, words, 3); see :class:`ReaderNetwork`."""
        return torch.stack([member(vectors, lengths, named, buckets).softmax(-1) for member in self.members]).mean(0)


class WordVectors:
    """Gives whole words static vectors: the mean over a word's tokens, from the ``wordllama`` package.

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
        """Return the vectors of words, (words, dim) float32; zeros for a word without a token."""
        with self._lock:
            if len(self._known) > _CACHED_WORDS:
                self._known.clear()
            self._learn([word for word in dict.fromkeys(words) if word not in self._known])
            return torch.stack([self._known[word] for word in words]) if words else torch.empty(0, self.dim)

    def tokens_of(self, word: str) -> int:
        """Return the number of tokens that a word is split into."""
        return sum(self._tokenizer.encode(word, add_special_tokens=False).attention_mask)

    def vocabulary(self) -> list[str]:
        """Return the tokenizer's tokens; those that begin a word start with "▁"."""
        return sorted(self._tokenizer.get_vocab())

    def _learn(self, words: list[str]) -> None:
        """Keep the vectors of words; those of one number of tokens are made together."""
        by_count: dict[int, list[tuple[str, list[int]]]] = {}
        for word, found in zip(words, self._tokenizer.encode_batch(words, add_special_tokens=False), strict=True):
            ids = found.ids[: sum(found.attention_mask)]  # without padding, which is on the right
            by_count.setdefault(len(ids), []).append((word, ids))
        for count, pairs in by_count.items():
            own, ids = zip(*pairs, strict=True)
            vectors = self._table[torch.tensor(ids)].mean(1) * self._scale if count else torch.zeros(len(own), self.dim)
            self._known.update(zip(own, vectors, strict=True))


class RequestReader:
    """Reads requests word by word; it knows language, and no catalogue.

    As an encoder it returns the mean direction of the words that are asked for beside that of the words that are asked
    against, so that "no horror" and "more horror" are far apart; zeros if nothing is asked. Its network was taught on
    marked sentences (``python -m teaching``, in ``examples/``) and is frozen.

    The network sees a text with its known names left blank, the *wording*. Each wording is read once, and those used
    last are remembered, up to 600,000 words together.

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
        self._known: OrderedDict[Wording, Tensor] = OrderedDict()
        self._known_words = 0
        self._lock = threading.Lock()

    def read(self, texts: Sequence[str], names: Spans | None = None) -> list[Reading]:
        """Read each text; a text without a word gives an empty reading.

        Args:
            texts: The texts.
            names: Finds known names among the words of a text, and yields the start and stop of each. With it the
                reader errs less often, since it need not find the names itself. None: no name is known.
        """
        split = [words_of(text) for text in texts]
        return self.read_words(split, [names(words) if names is not None and words else () for words in split])

    @torch.no_grad()
    def read_words(self, texts: Sequence[tuple[str, ...]], names: Sequence[Iterable[tuple[int, int]]]) -> list[Reading]:
        """Do as :meth:`read`, for texts that :func:`words_of` split, and the start and stop of each text's names."""
        marks = self._marks([_wording(words, own) for words, own in zip(texts, names, strict=True)])
        return [
            Reading(words, mark[:, 1].clone(), mark[:, 2].clone()) for words, mark in zip(texts, marks, strict=True)
        ]

    def _marks(self, wordings: Sequence[Wording]) -> list[Tensor]:
        """Return each wording's probabilities of neither, wanted, unwanted, (words, 3); they must not be changed."""
        found: dict[Wording, Tensor] = {(): torch.empty(0, 3)}
        with self._lock:
            for wording in wordings:
                if wording in self._known:
                    self._known.move_to_end(wording)
                    found[wording] = self._known[wording]
        missing = [wording for wording in dict.fromkeys(wordings) if wording not in found]
        for start in range(0, len(missing), _BATCH):
            found.update(self._read_new(missing[start : start + _BATCH]))
        return [found[wording] for wording in wordings]

    def _read_new(self, wordings: Sequence[Wording]) -> dict[Wording, Tensor]:
        words = [word for wording in wordings for word in wording]
        lengths = [len(wording) for wording in wordings]
        with torch.inference_mode(False):  # what is kept may later be used in training
            counts = torch.tensor(lengths)
            inside = torch.arange(max(lengths)) < counts[:, None]
            padded = torch.zeros(*inside.shape, self.vectors.dim)
            padded[inside] = self.vectors([word or "" for word in words])
            named = torch.zeros_like(inside)
            named[inside] = torch.tensor([word is None for word in words])
            buckets = torch.zeros(inside.shape, dtype=torch.long)
            buckets[inside] = word_buckets(words)
            marks = self.network(padded, counts, named, buckets)
            rows = [mark[:length].clone() for mark, length in zip(marks, lengths, strict=True)]
        new = dict(zip(wordings, rows, strict=True))
        with self._lock:
            self._known_words += sum(len(wording) for wording in new if wording not in self._known)
            self._known.update(new)
            while self._known_words > _CACHED_WORDING_WORDS:
                self._known_words -= len(self._known.popitem(last=False)[0])
        return new

    def encode(self, texts: Sequence[str]) -> Tensor:
        """Return the vectors of ``texts``, (texts, 512) float32: wanted, then unwanted, each of length 1 or zeros."""
        return (
            torch.stack([self._slots(reading) for reading in self.read(texts)]) if texts else torch.empty(0, self.dim)
        )

    def _slots(self, reading: Reading) -> Tensor:
        slots = torch.zeros(2, self.vectors.dim)
        for phrase, wanted in reading.phrases():
            slots[0 if wanted else 1] += functional.normalize(self.vectors(phrase.split()).mean(0), dim=0)
        return functional.normalize(slots, dim=-1).flatten()


def _wording(words: tuple[str, ...], names: Iterable[tuple[int, int]]) -> Wording:
    blanked: list[str | None] = list(words)
    for start, stop in names:
        for place in range(start, min(stop, len(words))):
            blanked[place] = None
    return tuple(blanked)
