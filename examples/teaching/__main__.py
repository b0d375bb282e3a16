"""Teach the request reader and write its weights; takes about half an hour."""

from __future__ import annotations

import argparse
import random
from pathlib import Path

import torch

from cramer_peft.encoders import ReaderEnsemble, WordVectors
from cramer_peft.recsys.requests.wordings import TRAIN_TEMPLATES
from cramer_peft.storage import write_safetensors
from teaching.grammar import Grammar
from teaching.sentences import sentences
from teaching.teach import STEPS, share_read, teach

FOLDS, MEMBERS = 5, 3


def main() -> None:
    """Teach on all training wordings and write the weights, or on four fifths and score the rest."""
    parser = argparse.ArgumentParser(prog="python -m teaching", description=__doc__)
    parser.add_argument("file", type=Path, nargs="?", help="File to write; without it a fifth is held out and scored.")
    parser.add_argument("--steps", type=int, default=STEPS, help="Optimiser steps of each network. (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="Seed of everything random. (%(default)s)")
    options = parser.parse_args()
    vectors = WordVectors()
    held = 0 if options.file is None else -1
    kept = {name: [t for place, t in enumerate(own) if place % FOLDS != held] for name, own in TRAIN_TEMPLATES.items()}
    network = ReaderEnsemble(vectors.dim, members=MEMBERS).eval()
    for member in range(MEMBERS):
        taught = teach(vectors, kept, options.steps, seed=MEMBERS * options.seed + member)
        network.members[member].load_state_dict(taught.state_dict())
    if options.file is not None:
        write_safetensors(options.file, {name: value.half() for name, value in network.state_dict().items()}, {})
        return
    for name, own in sorted(TRAIN_TEMPLATES.items()):
        rest = {name: [t for place, t in enumerate(own) if place % FOLDS == held]}
        rows = sentences(500, rest, Grammar(), random.Random(1), template_share=1.0)
        known, unknown = (share_read(network, vectors, rows, known) for known in (True, False))
        print(f"{name:14s} {known:.3f} of sentences read without a mistake, {unknown:.3f} where names are not known")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
