"""Where the time of a generator's training goes, on made-up data or on a data set.

Times are of the processor, so that what else runs on the machine shows less in them.

python examples/training_profile.py --data movielens-100k --steps 300
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from accelerate import Accelerator

from cramer_peft import RequestMaskModel
from cramer_peft.recsys.backbones import SASRec
from cramer_peft.recsys.data.catalogue import Catalogue
from cramer_peft.recsys.data.datasets import load_dataset
from cramer_peft.recsys.data.splits import Split, leave_one_out
from cramer_peft.recsys.masks import mask_backbone
from cramer_peft.recsys.requests.request_encoders import request_encoder
from cramer_peft.recsys.training.generator_training import GeneratorTrainer, train_generator
from cramer_peft.recsys.training.request_batches import GeneratorOptions, RequestCollator

REST = "the rest"
# What is timed, by the part that it is of; a part does not count what an inner one takes.
TIMED: tuple[tuple[type[Any], str, str], ...] = (
    (RequestCollator, "__call__", "making requests"),
    (RequestMaskModel, "encode", "reading requests"),
    (GeneratorTrainer, "compute_loss", "forward"),
    (Accelerator, "backward", "backward"),
    (torch.optim.AdamW, "step", "optimizer"),
)


class Clock:
    """Adds up how long each part runs; what a part calls that is a part itself counts there alone."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._inner = [0.0]

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count what runs inside."""
        start = time.process_time()
        self._inner.append(0.0)
        try:
            yield
        finally:
            took = time.process_time() - start
            self.seconds[name] += took - self._inner.pop()
            self._inner[-1] += took

    def timed(self, function: Callable[..., Any], name: str) -> Callable[..., Any]:
        """The function, counted."""

        def call(*args: Any, **kwargs: Any) -> Any:
            with self.part(name):
                return function(*args, **kwargs)

        return call


def made_up(users: int, items: int, attributes: int, events: int) -> tuple[Catalogue, Split]:
    """Random histories of items with one to three attributes each."""
    generator = torch.Generator().manual_seed(0)
    weights = torch.rand(items, attributes, generator=generator)
    flags = weights >= weights.topk(3).values.gather(1, torch.randint(3, (items, 1), generator=generator))
    names = tuple(f"Kind {number:03d}" for number in range(attributes))
    catalogue = Catalogue(tuple(map(str, range(items))), tuple(f"Tale {n}" for n in range(items)), names, flags)
    train = [torch.randint(items, (events,), generator=generator) for _ in range(users)]
    ends = torch.randint(items, (2, users), generator=generator)
    return catalogue, Split(tuple(train), ends[0], ends[1])


def profile(catalogue: Catalogue, split: Split, options: GeneratorOptions) -> Clock:
    """Train masks of an untrained SASRec, with the default encoder and masks."""
    torch.manual_seed(0)
    backbone = SASRec(SASRec.configure(len(catalogue))).eval()
    encoder = request_encoder(None, catalogue, backbone)
    masks = mask_backbone(backbone, catalogue, encoder=encoder)
    clock = Clock()
    with ExitStack() as stack:
        for owner, method, name in TIMED:
            stack.enter_context(mock.patch.object(owner, method, clock.timed(getattr(owner, method), name)))
        with clock.part(REST):
            train_generator(masks, catalogue, split, options, progress=False)
    return clock


def main() -> None:
    """Print milliseconds per step and shares of time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="a data set's name or folder; left out: made-up data")
    parser.add_argument("--items", type=int, default=60)
    parser.add_argument("--users", type=int, default=40)
    parser.add_argument("--attributes", type=int, default=6)
    parser.add_argument("--events", type=int, default=20, help="items in each made-up history")
    parser.add_argument("--steps", type=int, default=5)
    arguments = parser.parse_args()
    if arguments.data is None:
        catalogue, split = made_up(arguments.users, arguments.items, arguments.attributes, arguments.events)
    else:
        catalogue, interactions = load_dataset(arguments.data)
        split = leave_one_out(interactions)
    clock = profile(catalogue, split, GeneratorOptions(steps=arguments.steps))
    total = sum(clock.seconds.values())
    print(f"{len(catalogue)} items, {len(catalogue.attributes)} attributes, {len(split.train)} users")
    print(f"{'part':<18} {'ms per step':>11} {'share':>6}")
    for name in [*(name for _, _, name in TIMED), REST]:
        print(f"{name:<18} {1e3 * clock.seconds[name] / arguments.steps:>11.1f} {clock.seconds[name] / total:>6.0%}")
    print(f"{'all':<18} {1e3 * total / arguments.steps:>11.1f}")
    print(f"every part was timed: {all(clock.seconds[name] > 0 for _, _, name in TIMED)}")


if __name__ == "__main__":
    main()
