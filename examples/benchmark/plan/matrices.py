"""Named matrices of cells: their data, splits, methods and seeds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from benchmark.cells import Protocol
from benchmark.methods import CRAMER, METHODS, ONLY_OWN_REQUESTS, OURS, OURS_SHUFFLED, PAPER, STATIC_TOPK

_CEILINGS = ("parsed filter", "oracle filter")
# Every cell is measured with shuffled requests: training ours once more for that would double its cost.
_ALL = tuple(name for name in METHODS if name not in (OURS_SHUFFLED, *ONLY_OWN_REQUESTS))
_READ = ("text fusion", "query-seqrec token", "query-seqrec joined", "llm-esr", "film", "lora", "static mask")


@dataclass(frozen=True)
class Matrix:
    """Defaults of a named matrix.

    Attributes:
        data: Names of data sets; none: they must be given.
        protocols: Splits.
        methods: Methods.
        seeds: Seeds.
        variants: Whether all variants of ours are run on the first seed.
        steps: Steps of each generator's training; None: the default.
        epochs: Most epochs of each backbone's training; None: the default.
        backbones: Backbones.
        study: The study that replaces the tracks; None: the tracks are measured.
    """

    data: tuple[str, ...]
    protocols: tuple[Protocol, ...]
    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    variants: bool = False
    steps: int | None = None
    epochs: int | None = None
    backbones: tuple[str, ...] = ("sasrec",)
    study: Literal["real language", "transfer", "stated", "history"] | None = None


MATRICES: dict[str, Matrix] = {
    "full": Matrix(("movielens-100k",), ("leave-one-out",), _ALL, (0, 1, 2), variants=True),
    "headline": Matrix(
        ("movielens-1m",),
        ("temporal", "leave-one-out"),
        ("frozen", OURS, PAPER, "text fusion", "query-seqrec joined", *_CEILINGS),
        (0, 1, 2),
    ),
    "others": Matrix((), ("leave-one-out",), ("frozen", OURS, PAPER, "text fusion", *_CEILINGS), (0,)),
    "backbones": Matrix(
        ("movielens-100k",),
        ("leave-one-out",),
        ("frozen", OURS, PAPER, "text fusion"),
        (0,),
        backbones=("bert4rec", "gru4rec", "replay-sasrec"),
    ),
    "real-language": Matrix(
        (),
        ("leave-one-out",),
        ("frozen", OURS, PAPER, "text fusion"),
        (0, 1, 2),
        steps=500,
        study="real language",
    ),
    "transfer": Matrix(("movielens-100k",), ("leave-one-out",), (OURS,), (0, 1, 2), study="transfer"),
    "stated": Matrix((), ("leave-one-out",), ("frozen", OURS, CRAMER, *_READ), (0, 1, 2), True, study="stated"),
    "paper": Matrix(
        ("movielens-100k",),
        ("leave-one-out",),
        ("frozen", CRAMER, STATIC_TOPK, OURS, *_READ, "reranker"),
        (0, 1, 2, 3, 4),
        variants=True,
        steps=3000,
        backbones=("sasrec", "bert4rec"),
        study="history",
    ),
    "quick": Matrix(
        ("movielens-100k",),
        ("leave-one-out",),
        ("frozen", OURS, PAPER, "text fusion", *_CEILINGS),
        (0,),
        steps=30,
        epochs=1,
    ),
}
